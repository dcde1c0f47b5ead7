"""Extended attributes that do something: a tier that is set, a hold that is set or removed."""

from __future__ import annotations

import errno
import os

import pytest

from tests.unit.walker import Walker, refused

A = "all/acme/weekly/a"
NAME = "acme/weekly/a"
TIER, HOLD = "user.kvstate.tier", "user.kvstate.hold"


@pytest.fixture
def walker(store):
    walker = Walker(store)
    walker.folders("all/acme/weekly")
    walker.write(A, os.urandom(200_000))
    return walker


def put(walker, name, value, flags=0, path=A):
    walker.tree.setxattr(walker.node(path), name, value, flags)


class TestTier:
    def test_setting_it_moves_the_artifact(self, walker, store):
        put(walker, TIER, b"cold")

        assert store.artifacts.stat(NAME).tier == "cold"
        assert walker.tree.xattrs(walker.node(A))[TIER] == b"cold"
        assert walker.exists("cold/acme/weekly/a")

    @pytest.mark.parametrize("value", [b"freezing", b"", b"\xff"])
    def test_only_tiers_are_taken(self, walker, value):
        with refused(errno.EINVAL):
            put(walker, TIER, value)

    def test_it_cannot_be_removed(self, walker):
        with refused(errno.ENOTSUP):
            put(walker, TIER, None)

    def test_a_copy_that_is_being_written_stays_where_it_is_made(self, walker, store):
        put(walker, TIER, b"cold")
        walker.folders("hot/acme/weekly")
        handle = walker.create("hot/acme/weekly/b")
        with refused(errno.ENOTSUP):  # what `cp -a` and `mv` pass over
            put(walker, TIER, b"cold", path="hot/acme/weekly/b")
        handle.flush()
        handle.write(0, b"x")
        with refused(errno.ENOTSUP):
            put(walker, TIER, b"cold", path="hot/acme/weekly/b")
        handle.flush()
        put(walker, TIER, b"hot", path="hot/acme/weekly/b")
        handle.release()

        assert store.artifacts.stat("acme/weekly/b").tier == "hot"


class TestHold:
    def holds(self, store):
        return {case: about["reason"] for case, about in store.artifacts.stat(NAME).holds.items()}

    def test_setting_it_adds_a_hold(self, walker, store):
        put(walker, HOLD, b"case-17")
        put(walker, HOLD, b"case-18: the audit")

        assert self.holds(store) == {"case-17": "", "case-18": "the audit"}
        assert walker.tree.xattrs(walker.node(A))[HOLD] == b"case-17, case-18"
        with refused(errno.EPERM):
            walker.unlink(A)
        put(walker, HOLD, b"-case-18: it is over")
        put(walker, HOLD, None)

        assert self.holds(store) == {}
        walker.unlink(A)

    def test_removing_one_of_several_has_to_say_which(self, walker, store):
        put(walker, HOLD, b"one")
        put(walker, HOLD, b"two")

        with refused(errno.EINVAL):
            put(walker, HOLD, None)

        assert set(self.holds(store)) == {"one", "two"}

    @pytest.mark.parametrize("value", [None, b"-case-17"])
    def test_what_is_not_held_cannot_be_released(self, walker, value):
        with refused(errno.ENODATA):
            put(walker, HOLD, value)

    def test_flags_hold(self, walker):
        with refused(errno.ENODATA):
            put(walker, HOLD, b"one", os.XATTR_REPLACE)
        put(walker, HOLD, b"one", os.XATTR_CREATE)
        with refused(errno.EEXIST):
            put(walker, HOLD, b"two", os.XATTR_CREATE)
        put(walker, HOLD, None)

    @pytest.mark.parametrize(
        ("value", "number"), [(b"", errno.EINVAL), (b"a\nb", errno.EINVAL), (b"\xff", errno.EILSEQ)]
    )
    def test_what_is_no_case_is_refused(self, walker, value, number):
        with refused(number):
            put(walker, HOLD, value)


def test_other_computed_attributes_cannot_be_set(walker):
    for name in ("user.kvstate.digest", "user.kvstate.due", "user.kvstate.nosuch"):
        with refused(errno.ENOTSUP):
            put(walker, name, b"x")


def test_own_attributes_have_64_kib_together(walker):
    put(walker, "user.one", bytes(60_000))
    with refused(errno.ENOSPC):
        put(walker, "user.two", bytes(10_000))
    put(walker, "user.one", None)
    put(walker, "user.two", bytes(10_000))
