"""A store that was moved away, or replaced by another, under whoever shows it."""

from __future__ import annotations

import errno
import shutil

import pytest

from kvstatefs.presence import Presence
from tests.unit.walker import Walker, refused


@pytest.fixture
def moved(tmp_path, store):
    """The walker of a store whose folder is somewhere else now; its look is due."""
    walker = Walker(store)
    walker.folders("hot/acme/weekly")
    walker.write("hot/acme/weekly/a", b"before")
    handle = walker.writer("hot/acme/weekly/a")
    handle.write(0, b"after")
    now = [1000.0]
    walker.tree._presence.__init__(store, lambda: now[0])
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    now[0] += 1.0
    yield walker, handle, now
    if not (tmp_path / "store").exists():
        (tmp_path / "elsewhere").rename(tmp_path / "store")
    handle.release()


def test_nothing_is_written_to_a_store_that_was_moved_away(moved, caplog):
    walker, handle, _ = moved

    with refused(errno.EIO):
        handle.flush()
    with refused(errno.EIO):
        walker.mkdir("hot/other")
    with refused(errno.EIO):
        walker.unlink("hot/acme/weekly/a")
    with refused(errno.EIO):
        walker.mkdir("state/prs")

    assert walker.read("hot/acme/weekly/a") == b"before"
    assert [record.getMessage().count("is not at") for record in caplog.records] == [1]


def test_a_store_that_came_back_is_written_to_again(moved, tmp_path):
    walker, handle, now = moved
    with refused(errno.EIO):
        handle.flush()
    (tmp_path / "elsewhere").rename(tmp_path / "store")
    now[0] += 1.0

    handle.flush()

    assert walker.read("hot/acme/weekly/a") == b"after"


def test_another_store_in_its_place_is_not_it(moved, tmp_path):
    walker, handle, _ = moved
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "store")

    with refused(errno.EIO):
        handle.flush()

    shutil.rmtree(tmp_path / "store")
    assert walker.exists("hot/acme/weekly/a")


def test_it_is_looked_for_once_a_second(store, tmp_path):
    now = [1000.0]
    presence = Presence(store, lambda: now[0])
    (tmp_path / "store").rename(tmp_path / "elsewhere")

    presence.check()
    now[0] += 1.0
    with refused(errno.EIO):
        presence.check()
    (tmp_path / "elsewhere").rename(tmp_path / "store")
    with refused(errno.EIO):
        presence.check()
    now[0] += 1.0
    presence.check()
