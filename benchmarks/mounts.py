"""The part ``mount``: the mount beside the disk below it, bindfs, JuiceFS and rclone.

A row is something that is done; a round does it once in every place, each time beginning with
another one, and the least of the rounds counts. What cannot be mounted, fails or hangs is named.
"""

from __future__ import annotations

import shutil
import sys
import time

from benchmarks import mount_rivals, mount_tables
from benchmarks.mount_loops import MIB, Hung, Loops
from benchmarks.mount_rivals import Sizes
from benchmarks.mount_tables import (
    BINDFS,
    DISK,
    FUSEPY,
    JUICEFS,
    NAMES_A_ROUND,
    OURS,
    PAGES,
    RCLONE,
    READ_ONLY,
)
from benchmarks.workloads import NotRun

MAKERS = {
    DISK: mount_rivals.disk,
    OURS: mount_rivals.ours("kernel", "adapter=kernel"),
    READ_ONLY: mount_rivals.ours("kernel-ro", "adapter=kernel,ro", big=False, write=False),
    PAGES: mount_rivals.ours("kernel-pages", "adapter=kernel,passthrough=off"),
    FUSEPY: mount_rivals.ours("fusepy", "adapter=fusepy"),
    BINDFS: mount_rivals.bindfs,
    JUICEFS: mount_rivals.juicefs,
    RCLONE: mount_rivals.rclone,
}
SECONDS_A_ROW, ROUNDS_AT_LEAST = 10, 3
"""Slow contenders end a row when they have been measured for so long."""


class Mounts:
    """The places that are there, and what was measured in them."""

    def __init__(self, places, sizes, rounds, stack):
        self.places, self.sizes, self.rounds = places, sizes, rounds
        self.loops = stack.enter_context(Loops())
        self.gone, self.failed = {}, []

    def there(self, names):
        """Give those places that can still be used."""
        return {name: self.places[name] for name in names if name in self.places}

    def row(self, label, act, names, slow=(), rounds=None):
        """Give each named place's least number of µs; the ``slow`` may take part in less rounds."""
        best, spent = {}, dict.fromkeys(names, 0.0)
        for turn in range(min(self.rounds, rounds or self.rounds)):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                long = name in slow and turn >= ROUNDS_AT_LEAST and spent[name] > SECONDS_A_ROW
                if name not in self.places or best.get(name, 0) is None or long:
                    continue
                began = time.perf_counter()
                took = self.once(label, name, act, turn)
                spent[name] += time.perf_counter() - began
                best[name] = took and min(took / 1e3, best.get(name, float("inf")))
        print(f"{label}: {sum(spent.values()):.0f} s", file=sys.stderr, flush=True)
        return {name: took for name, took in best.items() if name in self.places}

    def once(self, label, name, act, *arguments):
        """Act in a place; who hangs is left out from there on, who fails has no figure there."""
        try:
            return act(self.places[name], *arguments)
        except Hung as error:
            del self.places[name]
            self.gone[name] = f"it hung at {label}: {error}"
        except OSError as error:
            self.failed.append(f"{name} failed at {label}: {error}")
        return None


def mount(folder, rounds, stack):
    """Compare the mounts; each bar of the page is one line below a table."""
    quick = rounds <= 2
    rounds = 3 if quick else 25
    sizes = Sizes(64 if quick else 1024, 10_000, rounds * NAMES_A_ROUND)
    wanted, free = 20 * sizes.big_mib * MIB, shutil.disk_usage(folder).free
    if free < wanted:
        return [f"Not run: {folder} has {free >> 20} MiB free; {wanted >> 20} are needed.", ""]
    places, missing = {}, {}
    for name, make in MAKERS.items():
        try:
            places[name] = stack.enter_context(make(folder, sizes))
        except NotRun as error:
            missing[name] = str(error)
    mounts = Mounts(places, sizes, rounds, stack)
    lines = [f"{rounds} rounds. Rivals: {mount_rivals.versions()}.", ""]
    for make_table in mount_tables.TABLES:
        lines += make_table(mounts, folder).lines()
    missing |= mounts.gone
    lines += [f"- {name} was not run: {why}" for name, why in missing.items()]
    lines += [f"- {text}" for text in mounts.failed]
    return [*lines, ""]
