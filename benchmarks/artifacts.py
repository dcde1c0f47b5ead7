"""The part ``artifacts``: how fast content comes in, ages, is packed, scrubbed and read."""

from __future__ import annotations

import os
import shutil
import statistics
import time

import kvstate
from benchmarks import children, ours, report, rivals, workloads
from benchmarks.workloads import NotRun, best_of

MIB = 1 << 20


def artifacts(folder, rounds, stack):
    """Measure puts, streams, the lifecycle's run, moves to cold and scrubbing."""
    quick = rounds <= 2
    turns = 2 if quick else 5
    lines = [
        *_small(folder, turns, stack),
        *_streams(folder, 256 if quick else 1024, turns),
        *_cold(folder, 64 if quick else 256, turns),
        *_scrub(folder, 64 if quick else 256, turns),
    ]
    return [*lines, *_ages(folder, 100_000 if quick else 1_000_000, stack)]


def _best(makers, turns):
    """Give each maker's least number of seconds; a turn takes every one once.

    Each turn begins with another one: whoever comes after a large file was removed finds memory
    and disk in another state than whoever comes first.
    """
    best = dict.fromkeys(makers, float("inf"))
    names = list(makers)
    for _ in range(turns):
        for name in names:
            best[name] = min(best[name], makers[name]())
        names.append(names.pop(0))
    return best


def _small(folder, turns, stack):
    store = stack.enter_context(kvstate.open(folder / "small"))
    (folder / "cycles").mkdir()
    cycle = rivals.SyncedCycle(folder / "cycles")
    stack.callback(cycle.close)
    store_puts = ours.Contents(store)
    contenders = {"synced files": cycle, "kvstate": store_puts}
    table = report.Table(
        "Artifacts of 4 KiB (each cell with its ratio to synced files)",
        list(contenders),
        "A synced file is written, fsynced and renamed, and its folder is fsynced: the best ten in "
        "a row stand for 10,000. kvstate's are 10,000 each time, in a new workflow. Whoever else "
        "uses the disk slows 20,000 syncs more than ten: the first bar says something only where "
        "the median is near the best.",
    )
    before = os.getloadavg()[0]
    seen = []
    single = best_of(contenders, workloads.put_content(4096, 10), turns * 40, seen=seen)
    used = time.process_time()
    rounds = turns * 2
    together = best_of({"kvstate": store_puts}, workloads.put_together(4096), rounds)
    used = (time.process_time() - used) / rounds / 10_000 * 1e6
    many = {"synced files": single["synced files"], **together}
    table.add("durable put, one by one", single)
    table.add("put, one of 10,000 together", many)
    ratio = many["synced files"] / many["kvstate"]
    table.bar("10,000 puts together, times as fast as synced files", ratio, 10, at_least=True)
    table.bar("one durable put / one synced file", single["kvstate"] / single["synced files"], 1.3)
    middle = statistics.median(spent for name, spent in seen if name == "synced files")
    best = single["synced files"]
    table.say(f"a synced file, in µs: best {best:.0f}, median {middle:.0f}")
    table.say(f"CPU of a put, one of 10,000, in µs, on average: {used:.0f}")
    table.say(f"load average, of {os.cpu_count()} cores, before: {before:.1f}")
    return table.lines()


def _streams(folder, mib, turns):
    source, target, store = (folder / name for name in ("source", "target", "streams"))
    memory = {}

    def child(what, *arguments):
        said = children.run(what, *arguments)
        memory[what] = max(memory.get(what, 0), said["anonymous"])
        return said["seconds"]

    def fresh():
        shutil.rmtree(store, ignore_errors=True)
        target.unlink(missing_ok=True)
        workloads.random_file(source, mib * MIB)
        workloads.touch_memory(folder, mib * MIB)

    def dd():
        fresh()
        return rivals.dd(source, target)

    def into_fresh(what):
        fresh()
        return child(what, store, source)

    writing = {
        "plain": dd,
        "kvstate, writer": lambda: into_fresh("write_stream"),
        "kvstate, by path": lambda: into_fresh("put_path"),
    }
    into = _best(writing, min(turns, 4))
    into_fresh("write_stream")
    reading = {
        "plain": lambda: child("read_plain", store),
        "kvstate, writer": lambda: child("read_stream", store),
    }
    out = _best(reading, turns * 2)
    shutil.rmtree(store)
    source.unlink()
    table = report.Table(
        f"Artifacts of {mib} MiB, per MiB (each cell with its ratio to plain)",
        list(writing),
        "In: dd bs=1M conv=fsync copies a file; a writer is given the same file by 1 MiB; a put by "
        "path; all of them synced. Out: the artifact, verified, and its own file, plainly, from "
        "the page cache into a buffer of 1 MiB; the best of several passes of a process. Content "
        "is random, and new for each of them; memory is the most RssAnon that was seen of a "
        "process that does nothing else.",
    )
    per_mib = 1e6 / mib
    table.add("in", {name: seconds * per_mib for name, seconds in into.items()})
    table.add("out", {name: seconds * per_mib for name, seconds in out.items()})
    for name in ("kvstate, writer", "kvstate, by path"):
        label = f"in ({name.split()[-1]}), throughput / dd's"
        table.bar(label, into["plain"] / into[name], 0.8, at_least=True)
    ratio = out["plain"] / out["kvstate, writer"]
    table.bar("out, throughput / a plain read's", ratio, 0.5, at_least=True)
    for label, whats in {"in": ("write_stream", "put_path"), "out": ("read_stream",)}.items():
        most = max(memory[what] for what in whats) / MIB
        table.bar(f"anonymous memory, {label}, in MiB", most, 64)
    return table.lines()


def _cold(folder, mib, turns):
    text, packed, cold = (folder / name for name in ("text", "text.zst", "cold"))
    workloads.text_file(text, mib * MIB)
    table = report.Table(
        f"Moving {mib} MiB of a log to cold",
        [],
        "zstd reads a file and writes one. A move packs, reads the copy back, unpacks it, compares "
        "every block with its checksum, and syncs.",
    )
    shares = {}

    def zstd(some):
        seconds = rivals.zstd(text, packed, some)
        shares["zstd -3"] = packed.stat().st_size / text.stat().st_size
        return seconds

    def move(some):
        shutil.rmtree(cold, ignore_errors=True)
        said = children.run("pack", cold, text, some)
        shares["kvstate"] = said["bytes"] / text.stat().st_size
        return said["seconds"]

    cores = sorted(os.sched_getaffinity(0))[:2]
    for some in dict.fromkeys((str(cores[-1]), ",".join(map(str, cores)))):
        makers = {
            "zstd": lambda some=some: zstd(some),
            "kvstate": lambda some=some: move(some),
        }
        label = f"throughput / zstd -3's, cores: {some.count(',') + 1}"
        try:
            best = _best(makers, turns * 2)
        except NotRun as error:
            table.say(f"{label} was not run: {error}")
            continue
        table.bar(label, best["zstd"] / best["kvstate"], 0.8, at_least=True)
    table.say("what is left of the size: " + ", ".join(f"{n} {s:.3f}" for n, s in shares.items()))
    return table.lines()


def _scrub(folder, mib, turns):
    text, noise, store = (folder / name for name in ("text", "noise", "scrubbed"))
    workloads.text_file(text, mib * MIB)
    workloads.random_file(noise, mib * MIB)
    children.run("fill", store, text, noise, 5000)
    groups = {
        "plain and packed files": ("bench/stream", "bench/text", "bench/packed"),
        "plain files": ("bench/stream",),
        "packed files": ("bench/text", "bench/packed"),
        "records of 4 KiB": ("bench/small",),
    }
    rates = dict.fromkeys(groups, 0.0)
    for _ in range(turns):
        for label, names in groups.items():
            said = children.run("scrub", store, *names)
            rates[label] = max(rates[label], said["bytes"] / said["seconds"] / 1e9)
    table = report.Table(
        f"Scrub from the page cache: {mib} MiB each of random bytes, plain and packed, and a log",
        [],
        "Bytes are those that are stored; nothing is unpacked.",
    )
    (label, rate), *others = rates.items()
    table.bar(f"{label}, GB/s", rate, 1, at_least=True)
    for label, rate in others:
        table.say(f"{label}, GB/s: {rate:.2f}")
    return table.lines()


def _ages(folder, many, stack):
    few, due, moved = 10_000, [1000] * 5, [10_000] * (3 if many < 1_000_000 else 8)
    stores = [
        ours.Aging(folder / "aged-few", [*due, few - sum(due)], stack),
        ours.Aging(folder / "aged-many", [*due, *moved, many - sum(due) - sum(moved)], stack),
    ]
    table = report.Table(f"Lifecycle: {few:,} and {many:,} artifacts of 64 bytes", [])
    contenders = dict(zip(("few", "many"), stores, strict=True))
    idle = {"a run": ours.Aging.run, "the daemon's look": ours.Aging.look}
    for label, act in idle.items():
        best = best_of(contenders, lambda store, act=act: (act(store), 1)[1], 200)
        table.bar(f"{label} with nothing due, {many:,} artifacts, in µs", best["many"], 2000)
        ratio = best["many"] / best["few"]
        table.bar(f"{label} with nothing due, {many:,} / {few:,}", ratio, 1.5)
    best = _best(
        {
            name: lambda store=store: store.run_due(store.make_due())
            for name, store in contenders.items()
        },
        len(due),
    )
    ratio = best["many"] / best["few"]
    table.bar(f"a run with 1,000 due, {many:,} / {few:,}", ratio, 1.5)
    used = time.process_time()
    spent = min(stores[1].run_due(stores[1].make_due()) for _ in moved)
    used = (time.process_time() - used) / sum(moved) * 1e6
    rate = moved[0] / spent * 1e6
    table.bar("small artifacts moved per second, 10,000 due", rate, 10_000, at_least=True)
    table.say(f"CPU of a move, in µs, on average: {used:.0f}")
    rate = many / stores[1].built_seconds
    table.say(f"{many:,} were put in {stores[1].built_seconds:.0f} s: {rate:,.0f} a second")
    return table.lines()
