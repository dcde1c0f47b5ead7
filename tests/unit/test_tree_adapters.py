"""What adapters stand on: paths, what the kernel may keep, errors as numbers, mount options."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

import pytest

from kvstate.errors import (
    Conflict,
    Damaged,
    Denied,
    Exists,
    Full,
    InvalidConfig,
    InvalidName,
    InvalidValue,
    NotFound,
    StateError,
    Unavailable,
)
from kvstatefs import mountpoint
from kvstatefs.descriptors import has_open
from kvstatefs.errnos import errno_of
from kvstatefs.kernel_cache import KernelCache
from kvstatefs.nodes import Attributes, Changes
from kvstatefs.open_nodes import OpenNodes, packed_attributes, requested_changes
from kvstatefs.options import parse_options
from kvstatefs.paths import Paths
from kvstatefs.session import Session, packed_open_flags
from kvstatefs.stat_layout import StatLayout
from tests.unit.walker import Walker


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (NotFound("artifact", "a"), errno.ENOENT),
        (Exists("folder", "a"), errno.EEXIST),
        (Conflict("a", "it is not empty"), errno.ENOTEMPTY),
        (InvalidName("artifact", "a:b", "no colons"), errno.EINVAL),
        (InvalidValue("JSON", "no"), errno.EINVAL),
        (Full("disk", "no room"), errno.ENOSPC),
        (Damaged("blob", "wrong"), errno.EIO),
        (Denied("removal", "it is held"), errno.EPERM),
        (Unavailable("store", "closed"), errno.EIO),
        (Unavailable("store", "busy", retry=True), errno.EAGAIN),
        (StateError("something"), errno.EIO),
        (OSError(errno.EXDEV, "far"), errno.EXDEV),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), errno.EILSEQ),
        (ZeroDivisionError(), errno.EIO),
    ],
)
def test_every_error_has_its_number(error, number):
    assert errno_of(error) == number


class TestPaths:
    @pytest.fixture
    def walker(self, store):
        walker = Walker(store)
        walker.folders("hot/acme/weekly")
        walker.write("hot/acme/weekly/a", b"text")
        return walker

    def test_a_path_leads_to_its_node(self, walker):
        paths = Paths(walker.tree)

        assert paths.find(b"/").attributes.node == walker.tree.root
        assert paths.find(b"/hot/acme/weekly/a").attributes == walker.stat("hot/acme/weekly/a")

    def test_what_is_known_is_looked_up_once(self, walker):
        paths = Paths(walker.tree)

        assert paths.find(b"/hot/acme/weekly/a") is paths.find(b"/hot/acme/weekly/a")

    def test_a_change_by_anybody_empties_the_memory(self, walker, store):
        paths = Paths(walker.tree)
        before = paths.find(b"/hot/acme/weekly/a").attributes.size

        store.artifacts.put("acme/weekly/a", b"longer text")

        assert before == 4
        assert paths.find(b"/hot/acme/weekly/a").attributes.size == 11

    def test_a_key_that_expires_is_not_remembered(self, walker, store, clock):
        store.namespace("prs").set("short", 1, ttl=60)
        paths = Paths(walker.tree)
        paths.find(b"/state/prs/short")

        clock.advance(60)

        with pytest.raises(FileNotFoundError):
            paths.find(b"/state/prs/short")

    def test_a_name_that_is_not_utf8_is_the_name_of_nothing(self, walker):
        with pytest.raises(FileNotFoundError):
            Paths(walker.tree).find(b"/hot/acme/weekly/\xff")


class TestKernelCache:
    PATH = b"/hot/acme/weekly/a"

    @pytest.fixture
    def cache(self):
        self.now = 1000.0
        return KernelCache(lambda: self.now)

    def opened(self, cache, content, *, writers=False):
        return cache.opened(self.PATH, content, writers=writers)

    def test_content_whose_size_the_kernel_was_not_told_is_read_past_it(self, cache):
        assert self.opened(cache, b"one").direct

    def test_content_whose_size_it_was_told_goes_through_its_pages(self, cache):
        cache.told(self.PATH, b"one")

        grant = self.opened(cache, b"one")

        assert (grant.direct, grant.keep) == (False, False)

    def test_pages_are_kept_for_the_next_who_opens_the_same_content(self, cache):
        cache.told(self.PATH, b"one")
        self.opened(cache, b"one")

        assert self.opened(cache, b"one").keep

    def test_other_content_than_it_was_told_of_is_read_past_it(self, cache):
        cache.told(self.PATH, b"one")

        assert self.opened(cache, b"two").direct

    def test_pages_of_other_content_are_dropped(self, cache):
        cache.told(self.PATH, b"one")
        cache.closed(self.opened(cache, b"one").seen)
        cache.told(self.PATH, b"two")

        grant = self.opened(cache, b"two")

        assert (grant.direct, grant.keep) == (False, False)

    def test_pages_that_somebody_still_reads_are_not_mixed_with_others(self, cache):
        cache.told(self.PATH, b"one")
        self.opened(cache, b"one")
        cache.told(self.PATH, b"two")

        assert self.opened(cache, b"two").direct

    def test_a_file_with_writers_is_read_past_it(self, cache):
        cache.told(self.PATH, b"one")

        assert self.opened(cache, b"one", writers=True).direct

    def test_content_that_changes_by_itself_is_read_past_it(self, cache):
        cache.told(self.PATH, None)

        assert self.opened(cache, None).direct

    def test_a_new_file_goes_through_its_pages_at_once(self, cache):
        cache.stored(self.PATH, b"one")

        assert not self.opened(cache, b"one").direct

    def test_content_that_was_just_replaced_is_read_past_it_for_a_second(self, cache):
        cache.stored(self.PATH, b"one")
        cache.stored(self.PATH, b"two")
        soon = self.opened(cache, b"two").direct

        self.now += 1.2

        assert soon
        assert not self.opened(cache, b"two").direct

    def test_pages_go_with_the_name(self, cache):
        cache.told(self.PATH, b"one")
        cache.closed(self.opened(cache, b"one").seen)

        cache.renamed(b"/hot/acme", b"/hot/acme2")

        assert cache.opened(b"/hot/acme2/weekly/a", b"one", writers=False).keep
        assert self.opened(cache, b"one").direct

    def test_a_name_made_anew_has_no_pages(self, cache):
        cache.told(self.PATH, b"one")
        self.opened(cache, b"one")
        cache.removed(self.PATH)
        cache.told(self.PATH, b"one")

        assert not self.opened(cache, b"one").keep

    def test_the_end_of_older_content_is_what_the_kernel_takes_for_the_files_end(self, cache):
        cache.told(self.PATH, b"one")
        seen = self.opened(cache, b"one").seen
        cache.told(self.PATH, b"two")
        cache.ended(seen, b"one")
        cache.closed(seen)

        assert self.opened(cache, b"two").direct

    def test_the_end_of_the_content_it_was_told_of_changes_nothing(self, cache):
        cache.told(self.PATH, b"one")
        seen = self.opened(cache, b"one").seen
        cache.ended(seen, b"one")

        assert self.opened(cache, b"one").keep


class TestSession:
    """What answers of libfuse mean is known from the request, not from their size."""

    OPEN, READLINK, CREATE, OPENDIR = 14, 5, 35, 27

    def answered(self, code, body):
        session = Session(None, lambda _: None, lambda _: False)
        session.answer_open(packed_open_flags(direct=True, keep=True, reads=True))
        session._turn.code, session._turn.node = code, 5
        buffer = ctypes.create_string_buffer(body, len(body))
        return session, session._body(ctypes.addressof(buffer), len(body))

    @pytest.mark.parametrize("code", [READLINK, OPENDIR, 22, 23])
    def test_an_answer_as_long_as_that_to_an_open_is_left_as_it_is(self, code):
        session, body = self.answered(code, b"sixteen bytes ok")

        session.open_nodes.unlinked(int.from_bytes(b"sixteen ", sys.byteorder))

        assert body == b"sixteen bytes ok"
        assert session.open_nodes.handle_of(5) is None

    def test_the_answer_to_an_open_gets_its_flags(self):
        session, body = self.answered(self.OPEN, struct.pack("=QII", 77, 0, 0))

        session.open_nodes.unlinked(77)

        assert body == struct.pack("=QII", 77, 1 | 2 | 32, 0)
        assert session.open_nodes.handle_of(5) == 77

    def failed(self, session, code, asker):
        session._turn.code, session._turn.asker = code, asker
        answer = struct.pack("=IiQ", 16, -errno.ENOENT, 1)
        buffer = ctypes.create_string_buffer(answer, len(answer))
        return struct.unpack("=IiQ", session._failed(ctypes.addressof(buffer), 16))[1]

    def test_who_lost_a_name_is_told_to_look_again_and_waited_for(self):
        session = Session(None, lambda _: None, lambda _: False)

        told = self.failed(session, self.OPEN, 100)
        waited_for = set(session._lost)
        session._has_found()

        assert (told, waited_for, session._lost) == (-errno.ESTALE, {100}, set())

    def test_who_learns_that_it_is_gone_is_not_waited_for(self):
        session = Session(None, lambda _: None, lambda _: False)
        self.failed(session, self.OPEN, 100)

        told = self.failed(session, 1, 100)

        assert (told, session._lost) == (-errno.ENOENT, set())

    def test_who_does_not_come_back_is_waited_for_once(self):
        session = Session(None, lambda _: None, lambda _: False)
        self.failed(session, self.OPEN, 100)

        session._let_find()

        assert session._lost == set()

    def test_a_value_as_long_as_the_answer_to_a_create_is_left_as_it_is(self):
        _, body = self.answered(22, bytes(128) + struct.pack("=QII", 77, 0, 0))

        assert body == bytes(128) + struct.pack("=QII", 77, 0, 0)


class TestOptions:
    def test_libfuse_gets_what_is_its_own(self):
        found = parse_options(["ro,allow_other", "fsname=mine"], "/data")

        assert found.read_only
        assert set(found.for_libfuse) == {
            "ro",
            "allow_other",
            "fsname=mine",
            "subtype=kvstatefs",
            "default_permissions",
        }

    def test_what_fstab_says_to_mount_itself_is_passed_over(self):
        found = parse_options(["noauto,nofail,_netdev,x-systemd.automount,user,defaults"], "/data")

        assert set(found.for_libfuse) == {
            "fsname=/data",
            "subtype=kvstatefs",
            "default_permissions",
        }

    def test_a_store_with_a_comma_in_its_name_is_one_option(self):
        assert r"fsname=/a\,b" in parse_options([], "/a,b").for_libfuse

    @pytest.mark.parametrize("text", ["nosuch", "ro=1", "fsname", "fsname=", "-f"])
    def test_what_is_not_known_is_refused_by_name(self, text):
        with pytest.raises(InvalidConfig, match=text):
            parse_options([text], "/data")


class TestMountPoint:
    def test_an_empty_folder_is_taken(self, tmp_path):
        (tmp_path / "mnt").mkdir()

        mountpoint.check(tmp_path / "mnt", tmp_path / "store")

        assert not mountpoint.heal(tmp_path / "mnt")

    def test_what_is_not_there_is_refused(self, tmp_path):
        with pytest.raises(InvalidConfig, match="no such folder"):
            mountpoint.check(tmp_path / "mnt", tmp_path / "store")

    def test_a_file_is_refused(self, tmp_path):
        (tmp_path / "mnt").touch()

        with pytest.raises(InvalidConfig, match="not a folder"):
            mountpoint.check(tmp_path / "mnt", tmp_path / "store")

    def test_a_folder_with_something_in_it_is_refused(self, tmp_path):
        (tmp_path / "mnt").mkdir()
        (tmp_path / "mnt" / "file").touch()

        with pytest.raises(InvalidConfig, match="not empty"):
            mountpoint.check(tmp_path / "mnt", tmp_path / "store")

    def test_a_mount_point_in_the_store_is_refused(self, tmp_path):
        (tmp_path / "store" / "mnt").mkdir(parents=True)

        with pytest.raises(InvalidConfig, match="in one another"):
            mountpoint.check(tmp_path / "store" / "mnt", tmp_path / "store")


class TestLayouts:
    FOUND = Attributes(
        7, 8, 0o100644, 1000, 1, 2, 3_000_000_004, 5_000_000_006, 7_000_000_008, links=9
    )

    def test_a_struct_stat_is_filled_field_by_field(self):
        class Time(ctypes.Structure):
            _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))

        class Stat(ctypes.Structure):
            _fields_ = (
                ("st_mode", ctypes.c_uint),
                ("st_nlink", ctypes.c_ulong),
                ("pad", ctypes.c_int),
                ("st_ino", ctypes.c_ulong),
                ("st_uid", ctypes.c_uint),
                ("st_gid", ctypes.c_uint),
                ("st_size", ctypes.c_longlong),
                ("st_blksize", ctypes.c_long),
                ("st_blocks", ctypes.c_long),
                ("st_atimespec", Time),
                ("st_mtimespec", Time),
                ("st_ctimespec", Time),
                ("unused", ctypes.c_long * 3),
            )

        found = Stat.from_buffer_copy(StatLayout(Stat).pack(self.FOUND))

        assert (found.st_mode, found.st_nlink, found.st_ino) == (0o100644, 9, 8)
        assert (found.st_uid, found.st_gid, found.st_size, found.st_blocks) == (1, 2, 1000, 2)
        assert (found.st_atimespec.tv_sec, found.st_atimespec.tv_nsec) == (3, 4)
        assert (found.st_ctimespec.tv_sec, found.st_ctimespec.tv_nsec) == (7, 8)

    def test_an_answer_about_a_file_without_a_name_has_the_kernels_layout(self):
        data = packed_attributes(self.FOUND)

        assert len(data) == 16 + 88
        assert struct.unpack_from("=QQQ", data, 16) == (8, 1000, 2)
        assert struct.unpack_from("=IIII", data, 16 + 60) == (0o100644, 0, 1, 2)


class TestRequestedChanges:
    def request(self, valid, **given):
        fields = (
            dict.fromkeys(("atime", "mtime", "atimensec", "mtimensec", "mode", "uid", "gid"), 0)
            | given
        )
        body = struct.pack("=IIQQQ", valid, 0, 0, 0, 0)
        body += struct.pack("=QQQ", fields["atime"], fields["mtime"], 0)
        body += struct.pack("=III", fields["atimensec"], fields["mtimensec"], 0)
        body += struct.pack("=IIIII", fields["mode"], 0, fields["uid"], fields["gid"], 0)
        assert len(body) == 88  # struct fuse_setattr_in
        return bytes(40) + body

    def test_only_what_is_valid_is_asked_for(self):
        given = {"mode": 0o100600, "uid": 5, "gid": 6, "atime": 7, "mtime": 8, "mtimensec": 9}

        assert requested_changes(self.request(0, **given), 1) == Changes()
        assert requested_changes(self.request(1 | 2 | 4, **given), 1) == Changes(0o100600, 5, 6)
        assert requested_changes(self.request(16, **given), 1) == Changes(accessed_ns=7 * 10**9)
        modified = Changes(modified_ns=8 * 10**9 + 9)
        assert requested_changes(self.request(32, **given), 1) == modified

    def test_now_is_what_the_clock_says(self):
        now = Changes(accessed_ns=77, modified_ns=77)

        assert requested_changes(self.request(16 | 32 | 128 | 256), 77) == now


class TestOpenNodes:
    def test_a_node_is_answered_for_once_its_name_is_gone_and_while_it_is_open(self):
        nodes = OpenNodes()
        nodes.opened(5, 1)
        nodes.opened(5, 2)
        before = nodes.handle_of(5)
        nodes.unlinked(1)
        nodes.unlinked(2)
        nodes.released(2)
        during = nodes.handle_of(5)

        nodes.released(1)

        assert (before, during, nodes.handle_of(5)) == (None, 1, None)


def test_a_process_is_asked_which_files_it_has_open(tmp_path):
    path = tmp_path / "file"
    with path.open("w"):
        during = has_open(os.getpid(), str(path))

    assert during
    assert not has_open(os.getpid(), str(path))
    assert not has_open(2**22 + 1, str(path))
