"""The tables of the part ``mount``: what is done in which places, and the bars below them."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

from benchmarks import mount_changes, report
from benchmarks.mount_loops import MIB
from benchmarks.mount_rivals import LISTED, SMALL

DISK, BINDFS, JUICEFS, RCLONE = "ext4", "bindfs", "JuiceFS", "rclone"
OURS, READ_ONLY, PAGES, FUSEPY = "kvstate", "kvstate, ro", "kvstate, no passthrough", "fusepy"
SLOW = (JUICEFS, RCLONE)
RIVALS = (BINDFS, *SLOW)
NAMES_A_ROUND = 40
CREATED_A_ROUND = 20
LISTING_ROUNDS = 9
RANDOM_READS = 20_000
BUSY_MILLISECONDS = 100


class _Bars:
    """Bars as ratios of two cells of a row; what is missing is said."""

    def __init__(self, table):
        self.table = table

    def at_most(self, text, row, name, other, limit):
        """Bar: one takes at most so many times as long as another."""
        self._bar(f"{text}: {name} / {other}", row.get(name), row.get(other), limit)

    def ahead(self, text, row, name, others):
        """Bar: one is not slower than any of the others."""
        for other in others:
            self.at_most(text, row, name, other, 1)

    def as_fast(self, text, row, name, other, limit):
        """Bar: throughput is at least so many times another's."""
        label = f"{text}, throughput: {name} / {other}"
        self._bar(label, row.get(other), row.get(name), limit, at_least=True)

    def _bar(self, label, above, below, limit, *, at_least=False):
        if above and below:
            self.table.bar(label, above / below, limit, at_least=at_least)
        else:
            self.table.say(f"{label}: not run")


def small(mounts, _folder):
    """Measure what costs no more than a few system calls."""
    run, names = mounts.loops, mounts.sizes.first_names()
    everywhere, ours = [DISK, OURS, READ_ONLY, FUSEPY, *RIVALS], [OURS, READ_ONLY, FUSEPY]
    table = report.Table(
        "Mount: small files (each cell with its ratio to ext4)",
        everywhere,
        "First: nobody has asked this mount for this name before; the disk below is warm.",
    )

    def row(label, act, who=everywhere):
        times = mounts.row(label, act, who)
        table.add(label, dict.fromkeys(set(everywhere) - set(who)) | times)
        return times

    def first(folder, turn, size):
        return run("first", folder, names[turn * NAMES_A_ROUND :][:NAMES_A_ROUND], size)

    warm = row("open, read 1 kB, close, warm", lambda place, _: run("warm", place.folder / SMALL))
    row("the same, a state key", lambda place, _: run("warm", place.state / SMALL), ours)
    artifact = row(
        "first open, read 4 KiB, close",
        lambda place, turn: first(place.folder / "first", turn, 4096),
    )
    key = row(
        "first open, read 1 kB, close, a state key",
        lambda place, turn: first(place.state, turn, 1000),
        ours,
    )
    stat = row("stat, warm", lambda place, _: run("stat", place.folder / SMALL))
    bars = _Bars(table)
    bars.at_most("warm open+read+close", warm, READ_ONLY, DISK, 1.5)
    bars.at_most("warm open+read+close", warm, OURS, DISK, 5)
    bars.ahead("warm open+read+close", warm, READ_ONLY, RIVALS)
    bars.ahead("warm open+read+close", warm, OURS, RIVALS)
    bars.ahead("warm open+read+close", warm, FUSEPY, (BINDFS, JUICEFS))
    of_bindfs = {BINDFS: artifact.get(BINDFS)}
    bars.at_most("first open of a state key", key | of_bindfs, OURS, BINDFS, 1.5)
    bars.at_most("first open of a 4 KiB artifact", artifact, OURS, BINDFS, 1.5)
    bars.at_most("stat, warm", stat, OURS, DISK, 1.2)
    bars.at_most("stat, warm", stat, READ_ONLY, DISK, 1.2)
    return table


def listings(mounts, _folder):
    """Measure programs that look at every file of a folder."""
    run, names = mounts.loops, mounts.sizes.listed_names()
    everywhere = [DISK, OURS, READ_ONLY, FUSEPY, *RIVALS]
    commands = {
        "ls -l": ["ls", "-l"],
        "find": ["find"],
        "grep -r": ["grep", "-r", "nothing like this"],
    }
    table = report.Table(
        f"Mount: a folder of {len(names):,} files of 1 kB (each cell with its ratio to ext4)",
        everywhere,
        "Cold: the kernel has dropped the mount's pages, names and inodes; the disk below is warm.",
    )
    bars = _Bars(table)

    def act(place, command, *, cold):
        target = place.folder / LISTED
        if cold:
            read = names if place.keeps_pages and "grep" in command else []
            run("drop", target, read, place.below)
        return run("program", *command, target)

    for label, command in commands.items():
        for kind, who in (("cold", everywhere[1:]), ("warm", everywhere)):
            text = f"{label}, {kind}"
            if kind == "cold" and os.geteuid() != 0:
                table.say(f"{text}: not run: only root may drop the kernel's caches")
                continue
            row = mounts.row(
                text,
                lambda place, _, command=command, kind=kind: act(
                    place, command, cold=kind == "cold"
                ),
                who,
                (*SLOW, FUSEPY),
                LISTING_ROUNDS,
            )
            table.add(text, row if kind == "warm" else row | {DISK: None})
            bars.at_most(text, row, OURS, BINDFS, 1.5)
            bars.ahead(text, row, OURS, SLOW)
    return table


def large(mounts, _folder):
    """Measure one large file: read through, read here and there, written."""
    run, mib = mounts.loops, mounts.sizes.big_mib
    everywhere = [DISK, OURS, PAGES, FUSEPY, *RIVALS]
    table = report.Table(
        f"Mount: a file of {mib} MiB, per MiB (each cell with its ratio to ext4)",
        everywhere,
        "Reads of 1 MiB into one buffer, from the page cache. Cold: the mount's pages were dropped "
        "(with passthrough it has none); the disk below is warm. What is written is a new file of "
        "new content; fsync and close are in its time. One read at random is of 4 KiB.",
    )

    def row(label, act, who=everywhere, divisor=mib):
        times = mounts.row(label, act, who, SLOW)
        cells = dict.fromkeys(set(everywhere) - set(who))
        cells |= {name: took and took / divisor for name, took in times.items()}
        table.add(label, cells)
        return times

    def read(place, _turn=0, *, drop=False):
        return run("read_big", place.folder / "big", drop)

    def written(place, _turn):
        return run("write_big", place.folder / "made" / place.fresh(1)[0], mib)

    for place in mounts.there(everywhere).values():
        for path in _large_files(place):
            run("settle", path)
    for name in mounts.there(everywhere):
        mounts.once("a first read", name, read)
    warm = row("read", read)
    cold = row("read, cold", lambda place, _: read(place, drop=True), everywhere[2:])
    here_and_there = row(
        "read 4 KiB at random",
        lambda place, _: run("read_random", place.folder / "big", RANDOM_READS),
        divisor=RANDOM_READS,
    )
    write = row("write and fsync", written)
    bars = _Bars(table)
    bars.as_fast("read", warm, OURS, DISK, 0.95)
    bars.as_fast("read", warm, PAGES, DISK, 0.9)
    bars.as_fast("read, cold", cold, PAGES, BINDFS, 1)
    bars.at_most("read 4 KiB at random", here_and_there, OURS, DISK, 1.2)
    bars.as_fast("write and fsync", write, OURS, DISK, 0.85)
    bars.as_fast("write and fsync", write, PAGES, DISK, 0.6)
    bars.as_fast("write and fsync", write, PAGES, BINDFS, 1)
    return table


def _large_files(place):
    """Give the files of a MiB and more that lie on the disk below a place."""
    for root in [place.store] if place.store else place.below or [place.folder]:
        for where, _, files in os.walk(root):
            for path in (Path(where, name) for name in files):
                if path.stat().st_size >= MIB and path.suffix != ".mdb":
                    yield path


def durable(mounts, _folder):
    """Measure small files that are on the disk when the call has returned."""
    everywhere = [DISK, OURS, FUSEPY, *RIVALS]
    table = report.Table(
        "Mount: create, write 4 KiB, close, on the disk (each cell with its ratio to ext4)",
        everywhere,
        "A close on ours is durable; elsewhere the file and its folder are fsynced.",
    )

    def act(place, _turn):
        names = place.fresh(CREATED_A_ROUND)
        return mounts.loops("create", place.folder / "made", names, not place.durable_close)

    row = mounts.row("create", act, everywhere)
    table.add("create", row)
    bars = _Bars(table)
    bars.ahead("create", row, OURS, (JUICEFS,))
    bars.at_most("create", row, OURS, DISK, 1.5)
    return table


def beside_clients(mounts, folder):
    """Measure reads while many write to the same store."""
    table = report.Table(
        f"Mount: open, read 1 kB, close, warm, while {mount_changes.CLIENTS} socket clients write",
        [],
        "Each set is durable; kvstated has the store open beside the mount. Rounds at rest and "
        "busy take turns; the least of each counts, as everywhere; medians are beside.",
    )

    def act(place):
        return mounts.loops("warm", place.folder / SMALL, BUSY_MILLISECONDS) / 1e3

    def measure(place):
        return mount_changes.beside_clients(place, folder, act, mounts.rounds)

    for name in mounts.there([OURS, READ_ONLY, FUSEPY]):
        said = mounts.once("reads beside clients", name, measure)
        if said is None:
            continue
        rest, busy, rate = said
        table.bar(f"{name}: busy / at rest", min(busy) / min(rest), 2)
        for label, times in (("at rest", rest), ("busy", busy)):
            middle = statistics.median(times)
            table.say(f"{name}, {label}, in µs: {min(times):.1f}, median {middle:.1f}")
        table.say(f"{name}, busy: {rate:,.0f} sets a second")
    return table


def visible(mounts, _folder):
    """Measure how long the mount shows what another process has changed."""
    table = report.Table(
        "Mount: from another process's commit until the mount shows it, in ms",
        [],
        "The mount was asked the same a moment before; each change is looked for again and again.",
    )
    for name, limit in {OURS: 50, FUSEPY: 1000}.items():
        turns = mounts.rounds * (2 if name == OURS else 1)
        if name not in mounts.places:
            table.say(f"{name}: not run")
            continue
        times = mounts.once("changes", name, mount_changes.visible_after, turns)
        if times is None:
            continue
        every = [one for some in times.values() for one in some]
        table.bar(f"{name}, the longest of {len(every)}", max(every), limit)
        table.say(f"{name}, median: {statistics.median(every):.2f}")
        for label, some in times.items():
            table.say(
                f"{name}, {label}: median {statistics.median(some):.2f}, most {max(some):.2f}"
            )
    return table


TABLES = (small, durable, beside_clients, visible, large, listings)
