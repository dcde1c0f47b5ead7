"""Renaming files that are not stored yet, and over others; without a mount."""

from __future__ import annotations

import errno
import os

import pytest

from tests.unit.walker import Walker, refused

LARGE = os.urandom(200_000)
A, B, C = (f"hot/acme/weekly/{name}" for name in "abc")


@pytest.fixture
def walker(store):
    walker = Walker(store)
    walker.folders("hot/acme/weekly")
    return walker


class TestOverAnotherBeforeItIsStored:
    @pytest.fixture
    def handle(self, walker):
        """A file that was made as `a` and renamed over `b`, and is not stored yet."""
        walker.write(B, b"old")
        handle = walker.create(A, mode=0o600)
        self.made = walker.node(A)
        handle.write(0, b"new and longer")
        walker.rename(A, B)
        yield handle
        handle.release()

    def test_it_keeps_its_node_and_its_mode(self, walker, handle):
        before = walker.stat(B)
        handle.flush()

        after = walker.stat(B)

        assert (before.node, after.node) == (self.made, self.made)
        assert (before.mode & 0o777, after.mode & 0o777) == (0o600, 0o600)
        assert walker.names("hot/acme/weekly") == ["b"]

    def test_readers_see_the_old_content_until_it_is_stored(self, walker, handle):
        before = walker.read(B)
        stored = walker.tree.stored(self.made)
        handle.flush()

        assert (before, stored.size, stored.node) == (b"old", 3, self.made)
        assert walker.read(B) == b"new and longer"

    def test_it_is_listed_once(self, walker, handle):
        listed = [
            entry for _, entry in walker.tree.listing(walker.node("hot/acme/weekly")).entries()
        ]

        assert [(entry.name, entry.inode) for entry in listed] == [("b", self.made)]
        handle.flush()

    def test_removing_it_removes_what_it_replaced_too(self, walker, handle):
        walker.unlink(B)
        handle.flush()

        assert walker.names("hot/acme/weekly") == []

    def test_it_can_be_renamed_on_and_what_it_replaced_is_gone(self, walker, handle):
        walker.rename(B, C)
        handle.flush()

        assert walker.names("hot/acme/weekly") == ["c"]
        assert walker.read(C) == b"new and longer"

    def test_another_can_be_renamed_over_it(self, walker, handle):
        walker.write(C, b"third")
        walker.rename(C, B)
        handle.flush()

        assert walker.read(B) == b"third"
        assert walker.names("hot/acme/weekly") == ["b"]

    def test_what_it_replaced_may_be_gone_by_then(self, walker, store, handle):
        store.artifacts.delete("acme/weekly/b")
        handle.flush()

        assert walker.read(B) == b"new and longer"
        assert walker.node(B) == self.made


def test_a_file_is_not_renamed_over_a_held_one(walker, store):
    walker.write(B, b"old")
    store.artifacts.hold("acme/weekly/b", "case")
    handle = walker.create(A)

    with refused(errno.EPERM):
        walker.rename(A, B)

    handle.release()


def test_a_file_without_a_name_can_still_be_opened_and_changed_by_its_node(walker):
    handle = walker.create(A)
    node = walker.node(A)
    walker.unlink(A)
    second = walker.tree.open(node, os.O_WRONLY)
    second.write(0, b"text")

    assert handle.read(0, 10) == b"text"
    assert walker.tree.getattr(node).size == 4
    for each in (handle, second):
        each.flush()
        each.release()
    assert walker.names("hot/acme/weekly") == []
