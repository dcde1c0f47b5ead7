from __future__ import annotations

import os
import threading
from itertools import chain
from pathlib import Path

import pytest

from kvstate.codec import decode
from kvstate.errors import Conflict, InvalidConfig, InvalidValue
from kvstated.mounting import check_folder, is_dead, is_ours, mounted
from kvstated.notify import notify
from kvstated.pidfile import PID_FILE, PidFile
from kvstated.revisions import Revisions
from kvstated.streams import ROWS_MAX, Listing

ME = str(os.getpid())


class TestThePidFile:
    def test_it_says_who_has_the_store(self, tmp_path):
        ours = PidFile(tmp_path)
        ours.take()

        assert (tmp_path / PID_FILE).read_text() == ME + "\n"
        ours.release()
        assert not (tmp_path / PID_FILE).exists()

    def test_who_comes_second_is_told_the_pid_and_changes_nothing(self, tmp_path):
        ours, second = PidFile(tmp_path), PidFile(tmp_path)
        ours.take()

        with pytest.raises(Conflict, match=f"pid {ME}"):
            second.take()
        second.release()

        assert (tmp_path / PID_FILE).read_text() == ME + "\n"
        ours.release()

    def test_what_a_dead_daemon_left_is_in_nobodys_way(self, tmp_path):
        (tmp_path / PID_FILE).write_text("4194304999\n")
        ours = PidFile(tmp_path)

        ours.take()

        assert (tmp_path / PID_FILE).read_text() == ME + "\n"
        ours.release()

    def test_a_link_in_its_place_is_not_followed(self, tmp_path):
        elsewhere = tmp_path / "elsewhere"
        elsewhere.write_text("precious")
        (tmp_path / PID_FILE).symlink_to(elsewhere)

        with pytest.raises(Exception, match="denied"):
            PidFile(tmp_path).take()

        assert elsewhere.read_text() == "precious"


class TestRevisions:
    @pytest.fixture
    def revisions(self, store):
        watching = Revisions(store)
        watching.start()
        yield watching
        watching.stop()
        watching.join()

    def test_who_waits_is_woken_by_a_commit(self, store, revisions):
        before = store.revision()
        writer = threading.Timer(0.05, store.namespace("ns").set, ("key", 1))
        writer.start()

        found = revisions.wait(before, 20)
        writer.join()

        assert found == before + 1

    def test_nothing_new_gives_the_old_revision_when_the_time_is_up(self, store, revisions):
        assert revisions.wait(store.revision(), 0.01) == store.revision()

    def test_another_descriptor_ends_the_wait(self, store, revisions):
        reader, writer = os.pipe()
        os.write(writer, b"x")

        found = revisions.wait(store.revision(), 20, reader)
        os.close(reader)
        os.close(writer)

        assert found == store.revision()

    def test_the_end_wakes_who_waits(self, store, revisions):
        threading.Timer(0.05, revisions.stop).start()

        assert revisions.wait(store.revision(), 20) == store.revision()

    def test_a_callback_is_called_after_a_commit(self, store, revisions):
        called = threading.Event()
        revisions.call(called.set)

        store.namespace("ns").set("key", 1)

        assert called.wait(20)


class TestListings:
    def test_a_page_has_no_more_rows_than_its_limit(self):
        listing = Listing(iter(range(2 * ROWS_MAX + 1)), 1 << 20)

        pages = []
        while not listing.at_end:
            pages.append([decode(row) for row in listing.page()])

        assert [len(page) for page in pages] == [ROWS_MAX, ROWS_MAX, 1]
        assert list(chain.from_iterable(pages)) == list(range(2 * ROWS_MAX + 1))

    def test_a_page_fits_into_a_frame_whatever_its_rows_weigh(self):
        rows = ["x" * (size % 3000) for size in range(0, 100_000, 777)]
        listing = Listing(iter(rows), 8192)

        pages = []
        while not listing.at_end:
            pages.append(listing.page())

        assert max(sum(map(len, page)) for page in pages) <= 8192
        assert [decode(row) for page in pages for row in page] == rows

    def test_a_row_that_fits_into_no_frame_is_an_error_and_the_end(self):
        listing = Listing(iter(["small", "x" * 9000, "small"]), 8192)

        with pytest.raises(InvalidValue, match="frame_bytes_max"):
            listing.page()
        assert listing.at_end

    def test_a_listing_that_is_left_early_ends_its_iterator(self):
        ended = []

        def rows():
            try:
                yield from range(10 * ROWS_MAX)
            finally:
                ended.append(True)

        listing = Listing(rows(), 1 << 20)
        listing.page()
        listing.close()

        assert ended


class TestMountPoints:
    def test_an_empty_folder_will_do(self, tmp_path):
        check_folder(tmp_path)

        assert not is_dead(tmp_path)
        assert mounted(tmp_path) is None
        assert not is_ours(tmp_path, tmp_path / "store")

    def test_what_is_mounted_is_found_by_its_exact_folder(self, tmp_path):
        kind, _source = mounted(Path("/proc"))

        assert kind == "proc"

    @pytest.mark.parametrize("what", ["missing", "file", "full"])
    def test_anything_else_will_not(self, tmp_path, what):
        folder = tmp_path / "mnt"
        if what == "file":
            folder.write_text("")
        elif what == "full":
            (folder / "inside").mkdir(parents=True)

        with pytest.raises(InvalidConfig, match="mount point"):
            check_folder(folder)


class TestTheServiceManager:
    def test_nobody_who_listens_is_no_error(self, tmp_path):
        assert not notify("READY=1", {})
        assert not notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "nobody")})
        assert not notify("READY=1", {"NOTIFY_SOCKET": "relative"})
