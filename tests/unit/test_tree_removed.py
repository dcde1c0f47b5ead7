"""Files that are gone and still open: what their holders see, and may change; without a mount."""

from __future__ import annotations

import os

import pytest

from kvstatefs.nodes import Changes
from tests.unit.walker import Walker

A = "hot/acme/weekly/a"
WANTED = Changes(mode=0o600, uid=5, gid=6, accessed_ns=10**18, modified_ns=2 * 10**18)


@pytest.fixture
def walker(store):
    walker = Walker(store)
    walker.folders("hot/acme/weekly")
    walker.write(A, b"text")
    return walker


def shown(found):
    return (found.mode & 0o777, found.uid, found.gid, found.accessed_ns, found.modified_ns)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
def test_attributes_are_kept_for_as_long_as_it_is_open(walker, flags):
    handle, node = walker.open(A, flags), walker.node(A)
    before = handle.attributes().links
    walker.unlink(A)

    walker.tree.setattr(node, WANTED, handle)

    found = handle.attributes()
    assert (before, found.links) == (1, 0)
    assert shown(found) == (0o600, 5, 6, 10**18, 2 * 10**18)
    handle.release()


def test_one_that_was_never_stored_keeps_them_too(walker):
    handle = walker.create("hot/acme/weekly/b")
    node = walker.node("hot/acme/weekly/b")
    walker.unlink("hot/acme/weekly/b")

    found = walker.tree.setattr(node, WANTED, handle)

    assert found.links == 0
    assert shown(found) == (0o600, 5, 6, 10**18, 2 * 10**18)
    handle.release()


def test_it_can_be_truncated(walker):
    handle, node = walker.open(A, os.O_RDWR), walker.node(A)
    walker.unlink(A)

    found = walker.tree.setattr(node, Changes(size=2), handle)

    assert (found.size, handle.read(0, 10)) == (2, b"te")
    handle.flush()
    handle.release()
    assert walker.names("hot/acme/weekly") == []


def test_an_open_key_that_is_deleted_takes_changes_and_forgets_them(walker, store):
    store.namespace("prs").set("one", "text")
    handle, node = walker.open("state/prs/one"), walker.node("state/prs/one")
    walker.unlink("state/prs/one")

    walker.tree.setattr(node, Changes(mode=0o600), handle)

    assert handle.read(0, 10) == b"text"


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
def test_of_one_that_is_there_they_are_changed_for_all(walker, flags):
    handle, node = walker.open(A, flags), walker.node(A)

    walker.tree.setattr(node, Changes(mode=0o600, uid=5), handle)

    assert (walker.stat(A).mode & 0o777, walker.stat(A).uid) == (0o600, 5)
    assert (handle.attributes().mode & 0o777, handle.attributes().uid) == (0o600, 5)
    handle.release()


LARGE = os.urandom(200_000)


@pytest.mark.parametrize("data", [b"text", LARGE])
@pytest.mark.parametrize("doing", ["unlinked", "deleted", "renamed over"])
def test_it_can_be_read_and_written_by_who_opened_it_to_write(walker, store, data, doing):
    walker.write(A, data)
    handle = walker.open(A, os.O_RDWR)
    if doing == "unlinked":
        walker.unlink(A)
    elif doing == "deleted":
        store.artifacts.delete("acme/weekly/a")
    else:
        walker.write("hot/acme/weekly/b", b"other")
        walker.rename("hot/acme/weekly/b", A)
    store.blobs.sweep(all_notes=True)
    before = handle.read(0, 1 << 20)
    handle.write(2, b"XY")

    assert before == data
    assert handle.read(0, 1 << 20) == data[:2] + b"XY" + data[4:]
    handle.release()


@pytest.mark.parametrize("data", [b"text", LARGE])
def test_it_can_be_read_by_who_stored_it_before_it_was_gone(walker, store, data):
    handle = walker.open(A, os.O_RDWR | os.O_TRUNC)
    handle.write(0, data)
    handle.flush()
    walker.unlink(A)
    store.blobs.sweep(all_notes=True)

    assert handle.read(0, 1 << 20) == data
    handle.release()
