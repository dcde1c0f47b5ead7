"""What was written is not lost, whatever others do with it meanwhile; without a mount."""

from __future__ import annotations

import errno
import os

import pytest

from kvstate.settings import StoreSettings
from tests.unit.walker import Walker, refused

LARGE = os.urandom(200_000)
OTHER = os.urandom(250_000)
PATH = "all/acme/weekly/a"
NAME = "acme/weekly/a"


@pytest.fixture
def walker(store):
    walker = Walker(store)
    walker.folders("all/acme/weekly")
    return walker


class TestTiers:
    @pytest.mark.parametrize("tier", ["warm", "cold"])
    def test_content_written_while_another_moves_the_artifact_is_stored_whole(
        self, walker, store, tier
    ):
        walker.write(PATH, LARGE)
        handle = walker.open(PATH, os.O_RDWR)
        handle.write(0, OTHER)
        store.artifacts.move(NAME, tier)

        handle.flush()

        assert store.artifacts.get(NAME) == OTHER
        assert store.artifacts.stat(NAME).tier == tier

    def test_content_of_a_file_that_is_made_is_whole_when_it_is_moved_before_it_is_stored(
        self, walker, store
    ):
        walker.folders("cold/acme/weekly")
        handle = walker.create("hot/acme/weekly/a")
        handle.write(0, LARGE)
        walker.rename("hot/acme/weekly/a", "cold/acme/weekly/a")

        handle.flush()

        assert store.artifacts.get(NAME) == LARGE
        assert store.artifacts.stat(NAME).tier == "cold"

    def test_what_lies_in_another_tiers_place_is_moved_by_the_next_run(self, walker, store):
        walker.write(PATH, LARGE)
        handle = walker.open(PATH, os.O_RDWR)
        handle.write(0, OTHER)
        store.artifacts.move(NAME, "warm")
        handle.flush()
        handle.release()

        store.lifecycle.run()

        assert list(store.blobs.misplaced_blobs()) == []
        assert walker.read("warm/acme/weekly/a") == OTHER

    def test_a_move_by_another_is_not_undone_by_a_writer(self, walker, store):
        walker.write(PATH, b"small")
        handle = walker.open("hot/acme/weekly/a", os.O_RDWR)
        handle.write(0, b"SMALL")
        store.artifacts.move(NAME, "cold")

        handle.flush()

        assert (store.artifacts.stat(NAME).tier, store.artifacts.get(NAME)) == ("cold", b"SMALL")

    def test_a_file_being_written_shows_in_the_tier_that_another_moved_it_to(self, walker, store):
        walker.write(PATH, LARGE)
        handle = walker.open("hot/acme/weekly/a", os.O_RDWR)
        store.artifacts.move(NAME, "warm")

        assert not walker.exists("hot/acme/weekly/a")
        assert walker.names("hot/acme/weekly") == []
        assert walker.names("warm/acme/weekly") == ["a"]
        handle.release()


def test_what_was_large_and_is_cut_to_nothing_leaves_no_file(walker, store, tmp_path):
    handle = walker.create(PATH)
    handle.write(0, LARGE)
    handle.truncate(0)
    handle.flush()
    handle.release()

    assert store.artifacts.get(NAME) == b""
    assert [each for each in (tmp_path / "store/tiers").glob("*/??/*") if each.is_file()] == []


class TestContentThatWasStoredBefore:
    def test_content_that_another_deleted_is_stored_anew(self, walker, store):
        walker.write(PATH, LARGE)
        handle = walker.open(PATH, os.O_RDWR)
        handle.write(0, OTHER)
        handle.flush()
        handle.truncate(len(OTHER))  # changes nothing, and is stored all the same
        store.artifacts.delete(NAME)
        store.blobs.sweep(all_notes=True)

        handle.flush()

        assert store.artifacts.get(NAME) == OTHER

    def test_content_that_another_replaced_is_stored_anew(self, walker, store):
        walker.write(PATH, LARGE)
        handle = walker.open(PATH, os.O_RDWR)
        handle.write(0, OTHER)
        handle.flush()
        handle.truncate(len(OTHER))
        store.artifacts.put(NAME, b"something else")
        store.blobs.sweep(all_notes=True)

        handle.flush()

        assert store.artifacts.get(NAME) == OTHER

    def test_content_that_is_refused_stays_where_it_was_stored_before(self, walker, store):
        walker.write(PATH, LARGE)
        handle = walker.open(PATH, os.O_RDWR)
        handle.write(0, OTHER)
        handle.flush()
        blob = store.catalog.walk_path(tuple(NAME.split("/"))).blob
        store.blobs.quarantine(blob, "for the test")
        handle.truncate(len(OTHER))
        store.artifacts.hold(NAME, "case")

        with pytest.raises(PermissionError):
            try:
                handle.flush()
            except Exception as error:
                raise PermissionError from error

        store.blobs.acquit(blob)
        assert store.artifacts.get(NAME) == OTHER

    def test_content_equal_to_what_is_damaged_is_stored_beside_it(self, walker, store):
        walker.write(PATH, LARGE)
        store.artifacts.put("acme/weekly/b", LARGE)
        handle = walker.open(PATH, os.O_RDWR)
        handle.write(0, OTHER)
        handle.flush()
        store.artifacts.put("acme/weekly/c", OTHER)
        blob = store.catalog.walk_path(tuple(NAME.split("/"))).blob
        store.blobs.quarantine(blob, "for the test")
        handle.truncate(len(OTHER))

        handle.flush()

        assert store.artifacts.get(NAME) == OTHER
        store.blobs.acquit(blob)


def test_a_file_that_was_to_be_new_does_not_replace_one_that_another_made_meanwhile(walker, store):
    handle = walker.create(PATH, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    handle.write(0, b"ours")
    store.artifacts.put(NAME, b"theirs")

    with refused(errno.EEXIST):
        handle.flush()
    handle.release()

    assert walker.read(PATH) == b"theirs"


def test_what_is_damaged_can_be_overwritten(walker, store):
    walker.write(PATH, LARGE)
    blob = store.catalog.walk_path(tuple(NAME.split("/"))).blob
    store.blobs.quarantine(blob, "for the test")

    walker.write(PATH, OTHER)

    assert walker.read(PATH) == OTHER


def test_small_content_keeps_to_the_records_in_every_tier(tmp_path, open_checked):
    store = open_checked(tmp_path / "store", settings=StoreSettings(inline_bytes_max=0))
    walker = Walker(store)
    walker.folders("all/acme/weekly")
    walker.write(PATH, b"x")
    handle = walker.open(PATH, os.O_RDWR)
    handle.write(0, b"y")
    store.artifacts.move(NAME, "cold")

    handle.flush()

    assert store.artifacts.get(NAME) == b"y"


def test_a_new_file_that_could_not_be_stored_is_not_there(walker, store, monkeypatch):
    handle = walker.create(PATH)
    handle.write(0, b"x")
    assert walker.names("all/acme/weekly") == ["a"]

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "")

    monkeypatch.setattr(store.artifacts, "commit_file", full)
    with refused(errno.ENOSPC):
        handle.flush()

    assert not walker.exists(PATH)
    assert walker.names("all/acme/weekly") == []
    handle.write(1, b"y")
    assert walker.stat(PATH).size == 2
    handle.release()
