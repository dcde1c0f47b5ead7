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

    def test_what_it_replaced_may_be_gone_before_and_then_it_reads_as_empty(
        self, walker, store, handle
    ):
        store.artifacts.delete("acme/weekly/b")

        assert walker.read(B) == b""
        with refused(errno.ENOENT):
            walker.tree.stored(self.made)
        handle.flush()
        assert walker.read(B) == b"new and longer"

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


class TestFlags:
    NOREPLACE, EXCHANGE = 1, 2

    def rename(self, walker, old, new, flags):
        walker.tree.rename(*walker.place(old), *walker.place(new), flags)

    def test_a_rename_that_must_not_replace_replaces_nothing(self, walker):
        walker.write(A, b"a")
        walker.write(B, b"b")

        with refused(errno.EEXIST):
            self.rename(walker, A, B, self.NOREPLACE)
        self.rename(walker, A, C, self.NOREPLACE)

        assert (walker.read(B), walker.read(C)) == (b"b", b"a")

    def test_nor_does_it_replace_what_is_in_another_tier_or_not_stored_yet(self, walker, store):
        walker.write(A, b"a")
        store.artifacts.put("acme/weekly/b", b"b", tier="cold")
        handle = walker.create(C)

        for taken, number in ((B, errno.EINVAL), (C, errno.EEXIST)):
            with refused(number):
                self.rename(walker, A, taken, self.NOREPLACE)

        assert store.artifacts.get("acme/weekly/b") == b"b"
        handle.release()

    def test_a_file_that_moves_to_another_tier_is_not_in_its_own_way(self, walker, store):
        walker.write(A, b"a")
        assert A.startswith("hot/")
        walker.folders("cold/acme/weekly")

        self.rename(walker, A, A.replace("hot/", "cold/"), self.NOREPLACE)

        assert store.artifacts.stat("acme/weekly/a").tier == "cold"

    def test_two_files_have_each_others_names_in_one_step(self, walker, store):
        walker.write(A, b"a")
        walker.write(B, LARGE)
        nodes = walker.node(A), walker.node(B)
        before = store.revision()

        self.rename(walker, A, B, self.EXCHANGE)

        assert (walker.node(B), walker.node(A)) == nodes
        assert (walker.read(A), walker.read(B)) == (LARGE, b"a")
        assert store.revision() == before + 1

    def test_two_folders_have_each_others_names_with_all_that_is_below(self, walker, store):
        walker.folders("all/acme/weekly/x")
        walker.folders("all/other/daily/y")
        walker.write("all/acme/weekly/x/1", b"1")
        walker.write("all/other/daily/y/2", LARGE)

        self.rename(walker, "all/acme/weekly/x", "all/other/daily/y", self.EXCHANGE)

        assert walker.read("all/acme/weekly/x/2") == LARGE
        assert walker.read("all/other/daily/y/1") == b"1"
        assert store.artifacts.usage("acme").bytes == len(LARGE)

    def test_a_file_and_a_folder_have_each_others_names(self, walker):
        walker.folders("all/acme/weekly/x")
        walker.write("all/acme/weekly/x/1", b"1")
        walker.write("all/acme/weekly/a", b"a")

        self.rename(walker, "all/acme/weekly/x", "all/acme/weekly/a", self.EXCHANGE)

        assert walker.read("all/acme/weekly/x") == b"a"
        assert walker.read("all/acme/weekly/a/1") == b"1"

    def test_a_folder_is_not_exchanged_with_what_is_in_it(self, walker):
        walker.folders("all/acme/weekly/x/y")

        with refused(errno.EINVAL):
            self.rename(walker, "all/acme/weekly/x", "all/acme/weekly/x/y", self.EXCHANGE)

    def test_a_held_file_is_not_exchanged(self, walker, store):
        walker.write(A, b"a")
        walker.write(B, b"b")
        store.artifacts.hold("acme/weekly/b", "case")

        with refused(errno.EPERM):
            self.rename(walker, A, B, self.EXCHANGE)

        store.artifacts.release("acme/weekly/b", "case")

    def test_both_must_be_there(self, walker):
        walker.write(A, b"a")

        with refused(errno.ENOENT):
            self.rename(walker, A, B, self.EXCHANGE)

    def test_what_is_being_written_goes_with_its_file(self, walker):
        walker.write(A, b"a")
        writer, new = walker.open(A, os.O_RDWR), walker.create(B)
        writer.write(0, b"A")
        new.write(0, b"b")

        self.rename(walker, A, B, self.EXCHANGE)
        for handle in (writer, new):
            handle.flush()
            handle.release()

        assert (walker.read(A), walker.read(B)) == (b"b", b"A")

    def test_files_of_two_tiers_and_folders_of_one_are_not_exchanged(self, walker, store):
        walker.write(A, b"a")
        store.artifacts.put("acme/weekly/b", b"b", tier="cold")
        walker.folders("hot/acme/weekly/x")
        walker.folders("hot/acme/weekly/y")

        with refused(errno.EXDEV):
            self.rename(walker, A, "cold/acme/weekly/b", self.EXCHANGE)
        with refused(errno.EXDEV):
            self.rename(walker, "hot/acme/weekly/x", "hot/acme/weekly/y", self.EXCHANGE)
        with refused(errno.EINVAL):
            self.rename(walker, A, C, self.EXCHANGE | self.NOREPLACE)
        with refused(errno.EINVAL):
            self.rename(walker, A, C, 4)

    def test_two_keys_have_each_others_names_with_their_expiries(self, walker, store):
        prs = store.namespace("prs")
        prs.set("one", 1, ttl=60)
        prs.set("two", {"b": 2})

        self.rename(walker, "state/prs/one", "state/prs/two", self.EXCHANGE)

        assert (prs.get("one"), prs.get("two")) == ({"b": 2}, 1)
        assert prs.ttl("one") is None
        assert 59 < prs.ttl("two") <= 60

    def test_keys_are_replaced_only_where_they_may_be(self, walker, store):
        prs = store.namespace("prs")
        prs.set("one", 1)
        prs.set("two", 2)

        with refused(errno.EEXIST):
            self.rename(walker, "state/prs/one", "state/prs/two", self.NOREPLACE)
        self.rename(walker, "state/prs/one", "state/prs/three", self.NOREPLACE)
        with refused(errno.ENOENT):
            self.rename(walker, "state/prs/two", "state/prs/none", self.EXCHANGE)

        assert prs.get_many(["two", "three"]) == {"two": 2, "three": 1}
