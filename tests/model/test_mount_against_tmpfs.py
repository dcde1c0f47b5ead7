"""Random operations on a mount and on a tmpfs: every result, attribute, error and byte agrees.

`KVSTATE_MOUNT_OPERATIONS=1000000` is the long form, `KVSTATE_MOUNT_SEED=7` another walk. A walk
that finds a difference is cut down to the few operations that show it.
"""

from __future__ import annotations

import os
import random
from itertools import count
from pathlib import Path

import pytest

from tests.integration.mounts import mounted_in
from tests.model.mount_operations import (
    Chooser,
    Different,
    Pair,
    compare_trees,
    shortened,
    shortest,
)

pytestmark = pytest.mark.fuse

OPERATIONS = int(os.environ.get("KVSTATE_MOUNT_OPERATIONS", "2500"))
SEED = int(os.environ.get("KVSTATE_MOUNT_SEED", "1"))
COMPARED_EVERY = 500
ALL_CLOSED = ("all closed",)


@pytest.fixture(scope="module")
def process(adapter, memory):
    yield from mounted_in(memory / adapter, adapter)


@pytest.fixture
def numbers():
    return count(1)


def fresh_pair(process, adapter, number):
    """Make two empty folders."""
    mine = process.path / "all/model" / f"workflow-{number}/d"
    theirs = process.path.parent / "plain" / f"workflow-{number}/d"
    mine.mkdir(parents=True)
    theirs.mkdir(parents=True)
    return Pair(mine, theirs, adapter)


def difference(pair, operations):
    """Play a run; give what differs, or None."""
    try:
        for operation in operations:
            pair.do(operation)
        pair.close()
        compare_trees(pair.mine.root, pair.theirs.root)
    except Different as found:
        return found
    finally:
        pair.close()
    return None


def walk(pair, chance, steps, done):
    """Do so many operations; note each in `done` before it is done."""
    chooser = Chooser(pair, chance)
    for number in range(1, steps + 1):
        done.append(chooser.operation())
        pair.do(done[-1])
        if number % COMPARED_EVERY == 0 or number == steps:
            pair.close()
            compare_trees(pair.mine.root, pair.theirs.root)
            done.append(ALL_CLOSED)


def few_that_show(found, play_fresh, operations):
    """Cut a run down to the operations that show the same difference; give them as text."""

    def fails(some):
        return getattr(play_fresh(some), "kind", None) == found.kind

    few = shortest(fails, operations)
    again = "these do it again:" if fails(few) else "it took its time, the last were:"
    return "\n".join([again, *map(shortened, few[-60:])])


@pytest.mark.timeout(180 + OPERATIONS // 20)
def test_every_result_is_that_of_a_tmpfs(process, adapter, numbers):
    chance = random.Random(SEED)
    for start in range(0, OPERATIONS, 5000):  # a fresh folder now and then
        pair = fresh_pair(process, adapter, f"{SEED}-{next(numbers)}")
        done = []
        try:
            walk(pair, chance, min(5000, OPERATIONS - start), done)
        except Different as found:
            played = [operation for operation in done if operation != ALL_CLOSED]

            def play_fresh(some):
                return difference(fresh_pair(process, adapter, f"cut-{next(numbers)}"), some)

            few = few_that_show(found, play_fresh, played)
            pytest.fail(f"seed {SEED}, operation {start + len(played)}: {found}\n\n{few}")
        finally:
            pair.close()
    assert "Traceback" not in process.log()


def test_a_difference_is_found_and_cut_down_to_what_shows_it(process, adapter, numbers):
    """The comparison itself: a mount that lost a byte would not pass."""
    pair = fresh_pair(process, adapter, "other")
    for name in ("a", "b", "c"):
        pair.do(("write_file", name, 1, 100))
    (Path(pair.theirs.root) / "b").write_bytes(b"x" * 100)

    with pytest.raises(Different, match="read_file"):
        pair.do(("read_file", "b"))
    with pytest.raises(Different, match="content of b"):
        compare_trees(pair.mine.root, pair.theirs.root)

    operations = [("mkdir", name, 0o755) for name in "abcdefg"]
    found = shortest(lambda some: ("mkdir", "d", 0o755) in some, operations)
    assert found == [("mkdir", "d", 0o755)]
