"""Identities that are given ahead: never twice, whoever takes them, and seen to by the check."""

from __future__ import annotations

import os

from kvstate.engine.memory import MemoryEngine
from kvstate.identities import BLOCKS_KEY, Identities, block_of, open_blocks, seal_blocks
from kvstatefs.nodes import identity_of, node_number
from tests.harness import ManualClock, RerunEngine
from tests.unit.walker import Walker


def test_each_is_given_once_and_a_block_is_taken_in_one_commit():
    engine = MemoryEngine()
    identities = Identities(engine, ManualClock())

    given = [identities.take() for _ in range(5000)]

    assert len(set(given)) == 5000
    assert open_blocks(engine.get(BLOCKS_KEY)) == 2


def test_two_processes_take_different_ones():
    engine = RerunEngine(MemoryEngine())
    one, other = Identities(engine, ManualClock()), Identities(engine, ManualClock())

    given = [identities.take() for _ in range(5000) for identities in (one, other)]

    assert len(set(given)) == 10_000


def test_one_fits_a_node_and_is_not_one_that_a_commit_gives(store):
    store.artifacts.put("acme/weekly/a", b"a")
    made = store.catalog.walk_path(("acme", "weekly", "a")).id

    ahead = store.identities.take()

    assert identity_of(node_number(0, ahead)) == ahead
    assert (block_of(made), block_of(ahead)) == (None, 0)


def test_one_of_a_block_that_nobody_took_is_found_and_mended(store):
    walker = Walker(store)
    walker.folders("hot/acme/weekly")
    walker.write("hot/acme/weekly/a", b"a")
    store.engine.txn(lambda tx: tx.put(BLOCKS_KEY, seal_blocks(0, 1)))

    found = store.check().problems
    report = store.check(repair=True)

    assert [problem.kind for problem in found] == ["identity"]
    assert (report.problems, [problem.kind for problem in report.repaired]) == ((), ["identity"])
    assert open_blocks(store.engine.get(BLOCKS_KEY)) == 1


class TestFiles:
    def test_a_file_is_the_same_node_before_and_after_it_is_stored(self, store):
        walker = Walker(store)
        walker.folders("hot/acme/weekly")
        handle = walker.create("hot/acme/weekly/a")
        made = walker.stat("hot/acme/weekly/a")
        handle.write(0, b"text")
        handle.flush()
        handle.release()

        stored = walker.stat("hot/acme/weekly/a")

        assert (stored.node, stored.inode) == (made.node, made.inode)
        assert walker.tree.getattr(made.node) == stored
        assert store.catalog.walk_path(("acme", "weekly", "a")).id == identity_of(made.node)

    def test_it_is_the_same_node_for_another_process(self, tmp_path, store, open_checked, clock):
        walker = Walker(store)
        walker.folders("hot/acme/weekly")
        walker.write("hot/acme/weekly/a", b"text")

        other = Walker(open_checked(tmp_path / "store", clock=clock))

        assert other.stat("hot/acme/weekly/a") == walker.stat("hot/acme/weekly/a")

    def test_a_node_leads_to_what_another_process_made_under_its_name_first(self, store):
        walker = Walker(store)
        walker.folders("hot/acme/weekly")
        handle = walker.create("hot/acme/weekly/a", os.O_WRONLY | os.O_CREAT)
        made = walker.node("hot/acme/weekly/a")
        store.artifacts.put("acme/weekly/a", b"theirs", metadata={"kept": True})
        handle.write(0, b"ours")
        handle.flush()
        handle.release()

        found = walker.tree.getattr(made)

        assert found == walker.stat("hot/acme/weekly/a")
        assert walker.tree.open(made, os.O_RDONLY).read(0, 10) == b"ours"
        assert store.artifacts.stat("acme/weekly/a").metadata == {"kept": True}

    def test_a_file_that_another_process_deleted_while_it_was_written_is_found_again(self, store):
        walker = Walker(store)
        walker.folders("hot/acme/weekly")
        walker.write("hot/acme/weekly/a", b"old")
        node = walker.node("hot/acme/weekly/a")
        handle = walker.open("hot/acme/weekly/a", os.O_RDWR)
        handle.write(0, b"new")
        store.artifacts.delete("acme/weekly/a")
        handle.flush()
        handle.release()

        assert walker.tree.getattr(node) == walker.stat("hot/acme/weekly/a")
        assert walker.node("hot/acme/weekly/a") != node  # an identity is not given twice
