"""`.kvstate/history/`: what keys were."""

from __future__ import annotations

import errno
import os

import pytest

from kvstate.names import file_name_of_key
from tests.unit.walker import Walker, refused


@pytest.fixture
def walker(store):
    return Walker(store)


@pytest.fixture
def prs(store):
    store.configure("prs", history=10)
    return store.namespace("prs")


def test_each_version_is_a_file_with_what_the_key_was_then(walker, prs, clock):
    revisions = []
    for value in ("first", b"\xff\x00", {"n": 3}):
        clock.advance(60)
        revisions.append(prs.set("a", value))

    assert walker.names(".kvstate/history/prs/a") == [str(number) for number in revisions]
    contents = [walker.read(f".kvstate/history/prs/a/{number}") for number in revisions]
    assert contents == [b"first", b"\xff\x00", b'{\n  "n": 3\n}\n']
    assert contents[-1] == walker.read("state/prs/a")


def test_a_versions_time_is_when_it_was_set(walker, prs, clock):
    clock.advance(60)
    then = clock.now_ns()
    revision = prs.set("a", "old")
    clock.advance(60)
    prs.set("a", "newer")

    found = walker.stat(f".kvstate/history/prs/a/{revision}")

    assert (found.modified_ns, found.size, found.content) == (then, 3, None)


def test_what_took_a_key_away_is_an_empty_file_that_says_so(walker, prs, store, clock):
    first = prs.set("a", 1, ttl=60)
    clock.advance(61)
    prs.set("b", 1)
    expired = store.revision()
    second = prs.set("a", 2)
    prs.delete("a")
    deleted = store.revision()

    names = walker.names(".kvstate/history/prs/a")

    assert names == [str(first), f"{expired}.expire", str(second), f"{deleted}.delete"]
    assert walker.read(f".kvstate/history/prs/a/{deleted}.delete") == b""
    assert not walker.exists("state/prs/a")


def test_a_key_without_versions_has_the_present_one(walker, store):
    revision = store.namespace("plain").set("a", "now")
    store.namespace("plain").set("a", "new")

    assert walker.names(".kvstate/history/plain/a") == [str(revision + 1)]
    assert not walker.exists(f".kvstate/history/plain/a/{revision}")


def test_keys_that_are_gone_are_listed_with_those_that_are_there(walker, prs, store):
    prs.set_many({"a/b": 1, "kept": 2, "%": 3})
    prs.delete("a/b")
    store.namespace("plain").set("gone", 1)
    store.namespace("plain").delete("gone")

    assert walker.names(".kvstate/history") == ["plain", "prs"]
    assert walker.names(".kvstate/history/prs") == ["%25", "a%2Fb", "kept"]
    assert walker.names(".kvstate/history/plain") == []
    with refused(errno.ENOENT):
        walker.stat(".kvstate/history/plain/gone")


def test_a_key_that_expired_without_a_history_is_nowhere(walker, store, clock):
    store.namespace("plain").set("a", 1, ttl=60)
    clock.advance(61)

    assert walker.names(".kvstate/history/plain") == []
    with refused(errno.ENOENT):
        walker.stat(".kvstate/history/plain/a")


def test_thousands_of_keys_and_namespaces_are_listed_page_by_page(walker, prs, store):
    keys = [f"key{number:04}" for number in range(1200)]
    prs.set_many(dict.fromkeys(keys, 1))
    for key in keys[::3]:
        prs.delete(key)
    names = [f"ns{number:03}" for number in range(600)]
    for name in names:
        store.make_namespace(name)

    assert walker.names(".kvstate/history/prs") == keys
    assert walker.names(".kvstate/history") == [*names, "prs"]


def test_a_renamed_key_has_its_past_under_its_new_name(walker, prs):
    first = prs.set("a", "one")
    prs.rename("a", "b")

    assert walker.read(f".kvstate/history/prs/b/{first}") == b"one"


def test_a_large_value_is_read_whole(walker, prs):
    revision = prs.set("a", "x" * 500_000)
    prs.set("a", "small")

    assert walker.stat(f".kvstate/history/prs/a/{revision}").size == 500_000
    assert walker.read(f".kvstate/history/prs/a/{revision}") == b"x" * 500_000


def test_who_has_a_version_open_reads_it_though_it_is_dropped_meanwhile(walker, prs, store):
    revision = prs.set("a", "old")
    prs.set("a", "new")
    handle = walker.open(f".kvstate/history/prs/a/{revision}")

    store.configure("prs", history=1)
    prs.set("a", "newest")

    assert handle.read(0, 100) == b"old"
    assert not walker.exists(f".kvstate/history/prs/a/{revision}")


@pytest.mark.parametrize("name", ["0", "999", "x", "1.delete", "01", ""])
def test_what_is_no_version_is_not_there(walker, prs, name):
    prs.set("a", 1)

    with refused(errno.ENOENT):
        walker.tree.lookup(walker.node(".kvstate/history/prs/a"), name)


def test_bad_names_are_answered_as_elsewhere(walker, prs):
    prs.set("a", 1)
    for name in ("%", "%ZZ", "bad\x01", "\udcff"):
        with refused(errno.ENOENT):
            walker.tree.lookup(walker.node(".kvstate/history/prs"), name)
    with refused(errno.ENAMETOOLONG):
        walker.stat(".kvstate/history/prs/" + "x" * 256)
    with refused(errno.ENOENT):
        walker.stat(".kvstate/history/none")
    longest = "/" * 85
    revision = prs.set(longest, 1)
    assert walker.exists(f".kvstate/history/prs/{file_name_of_key(longest)}/{revision}")


def test_the_past_cannot_be_changed(walker, prs):
    revision = prs.set("a", 1)
    path = f".kvstate/history/prs/a/{revision}"

    with refused(errno.EACCES):
        walker.open(path, os.O_RDWR)
    with refused(errno.EPERM):
        walker.unlink(path)
    with refused(errno.EPERM):
        walker.rmdir(".kvstate/history/prs")
    with refused(errno.EPERM):
        walker.rename(path, ".kvstate/history/prs/a/other")
    with refused(errno.ENOTDIR):
        walker.stat(path + "/below")
    with refused(errno.ENOTDIR):
        walker.names(path)
    with refused(errno.EISDIR):
        walker.open(".kvstate/history/prs/a")


def test_attributes_say_what_the_version_was(walker, prs):
    revision = prs.set("a", 1, ttl=60)

    found = walker.tree.xattrs(walker.node(f".kvstate/history/prs/a/{revision}"))

    assert found["user.kvstate.revision"] == str(revision).encode()
    assert found["user.kvstate.kind"] == b"set"
    assert "user.kvstate.expires" in found
