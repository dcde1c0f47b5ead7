"""Owners and modes: kept per artifact and per folder, the same in every view; without a mount."""

from __future__ import annotations

import os

import pytest

from kvstatefs.nodes import Caller
from tests.unit.walker import Walker

VIEWS = ("hot", "warm", "cold", "all")


@pytest.fixture
def walker(store):
    walker = Walker(store)
    walker.folders("all/acme/weekly")
    walker.write("all/acme/weekly/a", b"text")
    return walker


def rights(found):
    return (found.mode & 0o7777, found.uid, found.gid)


@pytest.mark.parametrize("folder", ["acme", "acme/weekly"])
@pytest.mark.parametrize("view", VIEWS)
def test_a_folders_rights_are_the_same_in_every_view(walker, view, folder):
    before = walker.tree.version()

    walker.set(f"{view}/{folder}", mode=0o2750, uid=5, gid=6)

    assert {rights(walker.stat(f"{each}/{folder}")) for each in VIEWS} == {(0o2750, 5, 6)}
    assert walker.tree.version() > before


def test_a_files_rights_stay_when_it_is_written_moved_and_renamed(walker, store):
    walker.set("all/acme/weekly/a", mode=0o640, uid=5, gid=6)
    walker.write("all/acme/weekly/a", os.urandom(200_000))
    store.artifacts.move("acme/weekly/a", "cold")
    walker.rename("all/acme/weekly/a", "all/acme/weekly/b")

    for each in (walker.stat("cold/acme/weekly/b"), Walker(store).stat("all/acme/weekly/b")):
        assert rights(each) == (0o640, 5, 6)


def test_what_is_made_belongs_to_who_makes_it(walker):
    parent, caller = walker.node("all/acme/weekly"), Caller(7, 8)
    walker.tree.mkdir(parent, "d", 0o40700, caller)
    walker.tree.symlink(parent, "l", "a", caller)
    _, handle = walker.tree.create(parent, "f", os.O_WRONLY | os.O_CREAT, 0o600, caller)
    before = walker.stat("all/acme/weekly/f")
    handle.flush()
    handle.release()

    assert rights(walker.stat("all/acme/weekly/d")) == (0o700, 7, 8)
    assert rights(walker.stat("all/acme/weekly/l")) == (0o777, 7, 8)
    assert rights(before) == rights(walker.stat("all/acme/weekly/f")) == (0o600, 7, 8)


def test_in_a_folder_that_says_so_it_belongs_to_the_folders_group(walker):
    walker.set("all/acme/weekly", mode=0o2775, gid=99)
    parent, caller = walker.node("hot/acme/weekly"), Caller(7, 8)
    walker.tree.mkdir(parent, "d", 0o40755, caller)
    walker.tree.symlink(parent, "l", "a", caller)
    _, handle = walker.tree.create(parent, "f", os.O_WRONLY | os.O_CREAT, 0o644, caller)
    handle.flush()
    handle.release()

    assert rights(walker.stat("all/acme/weekly/d")) == (0o2755, 7, 99)
    assert rights(walker.stat("all/acme/weekly/l")) == (0o777, 7, 99)
    assert rights(walker.stat("all/acme/weekly/f")) == (0o644, 7, 99)
