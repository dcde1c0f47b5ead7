"""``python -m benchmarks [--quick] [--only PART] [--write]``: one run, one report."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
from pathlib import Path

import kvstate
from benchmarks import ours, report, rivals, workloads
from benchmarks.artifacts import artifacts
from benchmarks.mounts import mount
from benchmarks.workloads import NotRun, best_of


def _gather(makers):
    """Make the contenders that are there; say what the others need."""
    made, missing = {}, []
    for name, make in makers.items():
        try:
            made[name] = make()
        except NotRun as error:
            missing.append(f"{name} was not run: {error}")
    return made, missing


def keys(folder, rounds, stack):
    """Compare keys and values."""
    store = stack.enter_context(kvstate.open(folder / "embedded"))
    socket = stack.enter_context(ours.daemon(folder))
    client = stack.enter_context(kvstate.connect(socket))
    contenders, missing = _gather(
        {
            "raw py-lmdb": lambda: rivals.RawLmdb(folder),
            "kvstate": lambda: ours.Keys(store),
            "kvstate client": lambda: ours.Keys(client),
            "diskcache": lambda: rivals.DiskCache(folder),
            "SQLite": lambda: rivals.Sqlite(folder),
            "Redis": lambda: rivals.Redis(folder),
        }
    )
    for contender in contenders.values():
        if hasattr(contender, "close"):
            stack.callback(contender.close)
        contender.set_many(dict.fromkeys(workloads.KEYS, workloads.VALUE))
    names = ["raw py-lmdb", "kvstate", "kvstate client", "diskcache", "SQLite", "Redis"]
    table = report.Table(
        "Keys (values of 100 bytes; each cell with its ratio to raw py-lmdb)",
        names,
        "diskcache does not sync, so it has no durable set. Redis syncs every write; it has no "
        "scan in key order. A scan gives entries with revision and times; raw py-lmdb's decodes "
        "CBOR.",
    )
    times = {
        "get": best_of(contenders, workloads.get, rounds * 3),
        "durable set": best_of(contenders, workloads.durable_set, rounds * 2),
        "set, one of a batch of 10,000": best_of(contenders, workloads.batch_set, rounds),
        "scan, one entry of 10,000": best_of(contenders, workloads.scan, rounds),
    }
    if "diskcache" in contenders:
        alone = {"diskcache": contenders["diskcache"]}
        times["set, one by one, not synced"] = best_of(alone, workloads.loose_set, rounds)
    for label, row in times.items():
        table.add(label, row)
    get, durable = times["get"], times["durable set"]
    batch, scan = times["set, one of a batch of 10,000"], times["scan, one entry of 10,000"]
    table.bar("embedded get / raw py-lmdb get", get["kvstate"] / get["raw py-lmdb"], 4)
    if "diskcache" in get:
        ratio = get["diskcache"] / get["kvstate"]
        table.bar("diskcache get / embedded get", ratio, 2.5, at_least=True)
    if "Redis" in get:
        table.bar("redis get / embedded get", get["Redis"] / get["kvstate"], 8, at_least=True)
    ratio = durable["kvstate"] / durable["raw py-lmdb"]
    table.bar("durable embedded set / raw py-lmdb put and commit", ratio, 1.25)
    ratio = batch["kvstate"] / batch["raw py-lmdb"]
    table.bar("set_many per key / raw py-lmdb batch per key", ratio, 15)
    if "diskcache" in contenders:
        ratio = times["set, one by one, not synced"]["diskcache"] / batch["kvstate"]
        table.bar("diskcache set / set_many per key", ratio, 10, at_least=True)
    table.bar("entries scanned per second", 1e6 / scan["kvstate"], 300_000, at_least=True)
    rate = max(ours.concurrent_sets(str(socket)) for _ in range(max(1, rounds // 3)))
    lines = [*table.lines(), f"32 clients at once over the socket: {rate:.0f} durable sets/s.", ""]
    return lines + [f"{text}." for text in missing]


def scale(folder, rounds, stack):
    """Measure what must not grow with what is stored: sweeps and memory."""
    few, many = (10_000, 100_000) if rounds <= 2 else (10_000, 1_000_000)
    stores = [ours.Expiring(folder / str(total), total, stack) for total in (few, many)]
    idle = [store.idle_sweep() for store in stores]
    rate = stores[-1].sweep_rate()
    memory = ours.anonymous_bytes(folder / str(many))
    table = report.Table(f"Scale: {few:,} and {many:,} keys, a tenth of them due", [])
    table.bar(f"due keys swept per second, of {many:,}", rate, 100_000, at_least=True)
    table.bar(f"sweep with nothing due, {many:,} / {few:,} keys", idle[1] / idle[0], 1.5)
    table.bar(f"sweep with nothing due, {many:,} keys, in µs", idle[1], 1000)
    table.bar("anonymous memory of a process that reads it, in MB", memory / 1e6, 60)
    return list(table.lines())


def content(folder, rounds, stack):
    """Compare artifacts with plain files."""
    store = stack.enter_context(kvstate.open(folder / "artifacts"))
    contenders = {
        "plain files, synced": rivals.PlainFiles(folder, sync=True),
        "kvstate": ours.Contents(store),
        "plain files, not synced": rivals.PlainFiles(folder, sync=False),
    }
    table = report.Table(
        "Content (each cell with its ratio to synced plain files)",
        list(contenders),
        "kvstate hashes, verifies and indexes; synced files are synced as kvstate syncs (file and "
        "folder), and know nothing of what is in them.",
    )
    for label, size in workloads.SIZES.items():
        count = 1 if size > 1 << 20 else 20
        turns = max(3, rounds // 2)
        table.add(f"put {label}", best_of(contenders, workloads.put_content(size, count), turns))
        table.add(f"get {label}", best_of(contenders, workloads.get_content(size, count), turns))
    return list(table.lines())


def files(folder, rounds, stack):
    """Compare the mount with the disk below it and with bindfs."""
    makers = {"disk": rivals.disk, "kvstate mount": ours.mounted, "bindfs": rivals.bindfs}
    contenders, missing = _gather(
        {name: lambda make=make: stack.enter_context(make(folder)) for name, make in makers.items()}
    )
    for place in contenders.values():
        workloads.prepare_files(place)
        workloads.open_read_close(place)
    table = report.Table(
        "Files (each cell with its ratio to the disk's own file system)",
        ["disk", "kvstate mount", "bindfs"],
        "The mount is the writable one on libfuse 2. A file that is closed on the kvstate mount is "
        "on the disk, whole; on the others only after fsync.",
    )
    small = {
        "stat": workloads.stat,
        "open, read 1 kB, close (warm)": workloads.open_read_close,
        "create, write 1 kB, close": workloads.create,
        "create, write 1 kB, fsync, close": workloads.create_durable,
        "ls -l of 1,000 files": workloads.list_long,
    }
    times = {label: best_of(contenders, work, rounds * 3) for label, work in small.items()}
    turns = max(2, rounds // 3)
    times["write 256 MiB and fsync, per MiB"] = best_of(contenders, workloads.write_big, turns)
    times["read 256 MiB, per MiB"] = best_of(contenders, workloads.read_big, turns)
    for place in contenders.values():
        workloads.drop_big(place)
    for label, row in times.items():
        table.add(label, row)
    warm = times["open, read 1 kB, close (warm)"]
    if "bindfs" in warm:
        ratio = warm["kvstate mount"] / warm["bindfs"]
        table.bar("warm open+read+close, mount / bindfs", ratio, 1)
    return list(table.lines()) + [f"{text}." for text in missing]


PARTS = {
    "keys": keys,
    "scale": scale,
    "content": content,
    "artifacts": artifacts,
    "files": files,
    "mount": mount,
}


def main():
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds: whether it runs at all")
    parser.add_argument("--only", choices=PARTS, action="append", help="one part")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/")
    options = parser.parse_args()
    rounds = 2 if options.quick else 9
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is mounted is unmounted
    machine = f"Measured on {report.machine()}."
    parts = {}
    for name, part in PARTS.items():
        if options.only and name not in options.only:
            continue
        folder = tempfile.TemporaryDirectory(prefix="kvstate-bench-")
        with folder as path, contextlib.ExitStack() as stack:
            parts[name] = [machine, "", *part(Path(path), rounds, stack)]
        print("\n".join(parts[name]), flush=True)
    if options.write:
        report.write(parts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
