"""Each request of the kernel's protocol, byte by byte, and what is answered."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import struct

import pytest

from kvstate.store import open_store
from kvstatefs.kernel.wire import Code
from tests.harness import ManualClock
from tests.unit.kernel_peer import (
    ALL_FLAGS,
    HOUR,
    INIT_EXT,
    NO_OPEN_SUPPORT,
    PASSTHROUGH,
    ROOT,
    entry_of,
    mounting,
)
from tests.unit.walker import refused

LARGE = os.urandom(100_000)
NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def clock():
    return ManualClock()


@pytest.fixture(scope="module")
def store(tmp_path_factory, clock):
    with open_store(tmp_path_factory.mktemp("kernel") / "store", clock=clock) as store:
        yield store
        assert not store.check(verify=True).problems


@pytest.fixture(scope="module")
def mount():
    with mounting() as mounts:
        yield mounts


@pytest.fixture(scope="module")
def kernel(store, mount):
    """One mount for all tests: each has a workflow of its own in it."""
    store.namespace("ci").set("key", "value")
    return mount(store)


@pytest.fixture
def place(store, kernel, request):
    place = f"acme/{next(NUMBERS)}"
    store.artifacts.put_many([(f"{place}/a", b"content of a"), (f"{place}/large", LARGE)])
    return place


@pytest.fixture
def folder(kernel, place):
    return kernel.walk(f"all/{place}").number


# Beginning


def test_a_kernel_and_the_adapter_agree_on_the_older_of_their_versions(store, mount):
    agreed = mount(store, init=False).init(minor=35)

    assert (agreed.major, agreed.minor) == (7, 35)


def test_a_newer_kernel_is_told_the_adapters_version(store, mount):
    agreed = mount(store, init=False).init(minor=99)

    assert (agreed.major, agreed.minor) == (7, 41)


def test_a_kernel_of_another_major_version_is_told_ours(store, mount):
    kernel = mount(store, init=False)

    assert kernel.init(major=8, minor=1).major == 7


def test_a_kernel_that_is_too_old_is_refused_with_a_reason(store, mount):
    kernel = mount(store, init=False)

    kernel.init(minor=30)

    assert "7.31" in kernel.service.refused
    assert kernel.serving.wait(20)
    assert kernel.link.said == []


def test_the_supervisor_hears_that_the_mount_is_ready_and_can_be_resumed(store, mount):
    kernel = mount(store)
    kernel.settle()

    assert kernel.link.said == [("ready", True)]


def test_the_supervisor_hears_that_an_old_kernel_cannot_be_resumed(store, mount):
    kernel = mount(store, init=False)
    kernel.init(minor=31, extended=False)
    kernel.settle()

    assert kernel.link.said == [("ready", False)]


def test_nothing_is_agreed_on_that_the_kernel_did_not_offer(store, mount):
    assert mount(store, init=False).init(flags=0, extended=False).flags == 0


def test_upper_flags_count_only_when_the_kernel_says_that_there_are_any(store, mount):
    agreed = mount(store, init=False).init(extended=False)

    assert agreed.flags >> 32 == 0
    assert agreed.flags & NO_OPEN_SUPPORT
    assert not agreed.flags & INIT_EXT


def test_open_files_are_handed_over_only_if_both_want_that(store, mount):
    both = mount(store, init=False).init()
    kernel_does_not = mount(store, init=False).init(flags=ALL_FLAGS & ~PASSTHROUGH)
    we_do_not = mount(store, init=False, passthrough=False).init()

    assert (both.flags & PASSTHROUGH, both.stack_depth) == (PASSTHROUGH, 1)
    assert (kernel_does_not.flags & PASSTHROUGH, kernel_does_not.stack_depth) == (0, 0)
    assert (we_do_not.flags & PASSTHROUGH, we_do_not.stack_depth) == (0, 0)


def test_a_file_that_cannot_be_handed_over_is_read_all_the_same(store, mount, place):
    data = os.urandom(400_000)
    store.artifacts.put(f"{place}/huge", data)
    kernel = mount(store)

    entry, opened = kernel.open_path(f"all/{place}/huge")

    assert opened.backing == 0
    assert kernel.read(entry.number, opened.handle, 300_000, 50_000) == data[300_000:350_000]


# Names


def test_a_name_leads_to_a_node_for_an_hour(kernel, folder):
    entry = kernel.lookup(folder, "a")

    assert entry.number > ROOT
    assert stat.S_ISREG(entry.stat.mode)
    assert (entry.size, entry.valid, entry.stat.valid) == (12, HOUR, HOUR)


def test_the_same_name_leads_to_the_same_node(kernel, folder):
    first = kernel.lookup(folder, "a")

    assert kernel.lookup(folder, "a") == first


def test_an_absent_name_is_told_for_an_hour_as_well(kernel, folder):
    entry = kernel.lookup(folder, "none")

    assert (entry.number, entry.valid) == (0, HOUR)


@pytest.mark.parametrize("name", [b"\xff\xfe", b"a\nb", b".", b"..", b"x" * 255])
def test_a_name_that_nothing_can_have_is_an_error_or_absent(kernel, folder, name):
    answer = kernel.answer_to(Code.LOOKUP, folder, name + b"\0")

    assert answer.error in {0, errno.EINVAL, errno.EILSEQ, errno.ENOENT}
    assert answer.error or entry_of(answer.body).number == 0


def test_a_node_is_kept_until_each_of_its_lookups_is_forgotten(kernel, folder):
    entry = [kernel.lookup(folder, "a") for _ in range(3)][-1]

    kernel.forget(entry.number, 2)
    assert kernel.getattr(entry.number).size == 12

    kernel.forget(entry.number, 1)
    with refused(errno.ESTALE):
        kernel.getattr(entry.number)


def test_a_node_that_was_forgotten_gets_another_number_and_the_same_inode(kernel, folder):
    first = kernel.lookup(folder, "a")
    kernel.forget(first.number, 1)

    again = kernel.lookup(folder, "a")

    assert again.number != first.number
    assert again.inode == first.inode


def test_many_nodes_are_forgotten_at_once(kernel, folder):
    entries = [kernel.lookup(folder, name) for name in ("a", "large")]
    each = b"".join(struct.pack("=QQ", entry.number, 1) for entry in entries)

    kernel.send(Code.BATCH_FORGET, 0, struct.pack("=II", 2, 0) + each)

    for entry in entries:
        with refused(errno.ESTALE):
            kernel.getattr(entry.number)


def test_the_root_is_never_forgotten(kernel):
    kernel.forget(ROOT, 1 << 40)

    assert stat.S_ISDIR(kernel.getattr(ROOT).mode)


def test_forgetting_is_not_answered(kernel, folder):
    unique = kernel.send(Code.FORGET, folder, struct.pack("=Q", 1))
    kernel.settle()

    assert not kernel.answered(unique)


# Attributes


def test_attributes_hold_for_an_hour(kernel, folder):
    found = kernel.getattr(kernel.lookup(folder, "large").number)

    assert (found.size, found.valid) == (100_000, HOUR)


MODE, UID, GID, SIZE, ATIME, MTIME, FH, ATIME_NOW, MTIME_NOW = (1 << bit for bit in range(9))


def test_only_what_a_bit_says_is_set(kernel, folder):
    number = kernel.lookup(folder, "a").number
    before = kernel.getattr(number)

    after = kernel.setattr(number, valid=MODE, mode=0o100600, uid=5, gid=6, mtime=7, size=3)

    assert stat.S_IMODE(after.mode) == 0o600
    assert (after.uid, after.gid, after.size) == (before.uid, before.gid, before.size)
    assert after.modified_ns == before.modified_ns


def test_owner_and_times_are_set(kernel, folder):
    number = kernel.lookup(folder, "a").number

    after = kernel.setattr(
        number, valid=UID | GID | MTIME, uid=5, gid=6, mtime=1_600_000_000, mtime_ns=7
    )

    assert (after.uid, after.gid) == (5, 6)
    assert after.modified_ns == 1_600_000_000_000_000_007
    assert kernel.getattr(number)[:-2] == after[:-2]


def test_times_before_1970_are_set(kernel, folder):
    number = kernel.lookup(folder, "a").number

    after = kernel.setattr(number, valid=MTIME, mtime=(1 << 64) - 5)

    assert after.raw[32:40] == struct.pack("=q", -5)


def test_a_time_is_set_to_now(kernel, folder, clock):
    number = kernel.lookup(folder, "a").number
    clock.advance(1000)

    assert kernel.setattr(number, valid=MTIME_NOW, mtime=1).modified_ns == clock.now_ns()


def test_a_file_is_truncated_by_its_name(kernel, folder, store, place):
    number = kernel.lookup(folder, "a").number

    assert kernel.setattr(number, valid=SIZE, size=7).size == 7

    assert store.artifacts.open(f"{place}/a", "rb").read() == b"content"


def test_a_file_is_truncated_by_its_handle_and_stored_when_that_is_closed(
    kernel, folder, store, place
):
    number = kernel.lookup(folder, "a").number
    opened = kernel.open(number, os.O_RDWR)

    kernel.setattr(number, valid=SIZE | FH, handle=opened.handle, size=7)
    assert store.artifacts.stat(f"{place}/a").size == 12
    kernel.close(number, opened.handle)

    assert store.artifacts.stat(f"{place}/a").size == 7


# Listings


def test_a_listing_begins_with_the_dots(kernel, folder):
    names = [found.name for found in kernel.listing(folder)]

    assert names == [".", "..", "a", "large"]


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("room", [4096, 700, 190])
def test_a_listing_that_has_little_room_goes_on_where_it_stopped(kernel, store, room, plus, place):
    store.artifacts.put_many((f"{place}/many/{number:03}", b"x") for number in range(40))
    folder = kernel.walk(f"all/{place}/many").number

    found = kernel.listing(folder, room=room, plus=plus)

    assert [each.name for each in found][2:] == [f"{number:03}" for number in range(40)]
    assert [each.after for each in found] == list(range(1, 43))


def test_a_listing_without_room_for_one_name_is_empty(kernel, folder):
    assert kernel.page(folder, kernel.opendir(folder), 2, 20) == []


def test_a_listing_goes_on_from_any_offset(kernel, folder):
    handle = kernel.opendir(folder)
    whole = kernel.listing(folder, handle=handle)

    for found in whole:
        rest = kernel.listing(folder, handle=handle, offset=found.after)
        assert rest == [each for each in whole if each.after > found.after]


def test_a_listing_with_attributes_tells_nodes_as_a_lookup_does(kernel, folder):
    found = {each.name: each.entry for each in kernel.listing(folder, plus=True)}

    assert found["."].number == found[".."].number == 0
    assert found["a"] == kernel.lookup(folder, "a")
    kernel.forget(found["a"].number, 1)
    assert kernel.getattr(found["a"].number).size == 12
    kernel.forget(found["a"].number, 1)
    with refused(errno.ESTALE):
        kernel.getattr(found["a"].number)


def test_a_listing_without_room_for_attributes_counts_no_lookup(kernel, store, place):
    store.artifacts.put_many((f"{place}/many/{number:03}", b"x") for number in range(10))
    folder = kernel.walk(f"all/{place}/many").number
    handle = kernel.opendir(folder)

    first = kernel.page(folder, handle, 2, 200, plus=True)
    assert [each.name for each in first] == ["000"]
    kernel.forget(first[0].entry.number, 1)
    kernel.ask(Code.RELEASEDIR, folder, struct.pack("=QIIQ", handle, 0, 0, 0))

    assert len(kernel.service.mounted.table.of(first[0].inode)) == 0


def test_the_kinds_of_names_are_in_the_listing(kernel):
    kinds = {each.name: each.kind for each in kernel.listing(ROOT)}

    assert kinds["hot"] == kinds["state"] == stat.S_IFDIR >> 12


# Making, removing, renaming


def test_a_folder_is_made_and_removed(kernel):
    parent = kernel.walk("all").number
    made = kernel.mkdir(parent, "new", 0o750)

    assert stat.S_ISDIR(made.stat.mode)
    assert stat.S_IMODE(made.stat.mode) == 0o750
    assert kernel.lookup(parent, "new").number == made.number
    with refused(errno.EEXIST):
        kernel.mkdir(parent, "new")
    assert kernel.ask(Code.RMDIR, parent, b"new\0") == b""
    assert kernel.lookup(parent, "new").number == 0


def test_a_folder_with_something_in_it_is_not_removed(kernel):
    with refused(errno.ENOTEMPTY):
        kernel.ask(Code.RMDIR, kernel.walk("all").number, b"acme\0")


def test_who_asks_owns_what_is_made(kernel):
    made = kernel.mkdir(kernel.walk("all").number, "new", uid=1234, gid=5678)

    assert (made.stat.uid, made.stat.gid) == (1234, 5678)


def test_a_file_is_made_written_flushed_and_read(kernel, folder, store, place):
    entry, opened = kernel.create(folder, "new")

    assert kernel.write(entry.number, opened.handle, b"hello ") == 6
    assert kernel.write(entry.number, opened.handle, b"world", 6) == 5
    kernel.flush(entry.number, opened.handle)
    assert store.artifacts.open(f"{place}/new", "rb").read() == b"hello world"
    kernel.release(entry.number, opened.handle)

    entry, opened = kernel.open_path(f"all/{place}/new")
    assert kernel.read(entry.number, opened.handle) == b"hello world"


def test_what_is_only_released_is_stored_as_well(kernel, folder, store, place):
    entry, opened = kernel.create(folder, "mapped")
    kernel.write(entry.number, opened.handle, b"data")

    kernel.release(entry.number, opened.handle)

    assert store.artifacts.open(f"{place}/mapped", "rb").read() == b"data"


def test_fsync_stores_what_was_written_and_the_file_stays_open(kernel, folder, store, place):
    entry, opened = kernel.create(folder, "new")
    kernel.write(entry.number, opened.handle, b"one")
    kernel.fsync(entry.number, opened.handle)
    assert store.artifacts.open(f"{place}/new", "rb").read() == b"one"

    kernel.write(entry.number, opened.handle, b"two", 3)
    kernel.close(entry.number, opened.handle)

    assert store.artifacts.open(f"{place}/new", "rb").read() == b"onetwo"


def test_a_large_write_goes_its_own_way_to_the_same_bytes(kernel, folder, store, place):
    entry, opened = kernel.create(folder, "new")

    assert kernel.write(entry.number, opened.handle, LARGE) == len(LARGE)
    kernel.close(entry.number, opened.handle)

    assert store.artifacts.open(f"{place}/new", "rb").read() == LARGE


def test_a_file_is_made_without_being_opened(kernel, folder, store, place):
    body = struct.pack("=IIII", stat.S_IFREG | 0o640, 0, 0, 0) + b"node\0"

    made = entry_of(kernel.ask(Code.MKNOD, folder, body))

    assert (stat.S_IMODE(made.stat.mode), made.size) == (0o640, 0)
    assert store.artifacts.stat(f"{place}/node").size == 0


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFBLK, stat.S_IFCHR])
def test_devices_and_pipes_are_not_made(kernel, folder, kind):
    with refused(errno.EPERM):
        kernel.ask(Code.MKNOD, folder, struct.pack("=IIII", kind | 0o644, 0, 0, 0) + b"x\0")


def test_a_symbolic_link_is_made_and_read(kernel, folder):
    made = entry_of(kernel.ask(Code.SYMLINK, folder, b"link\0../target\0"))

    assert stat.S_ISLNK(made.stat.mode)
    assert kernel.ask(Code.READLINK, made.number) == b"../target"


def test_hard_links_are_refused(kernel, folder):
    number = kernel.lookup(folder, "a").number

    with refused(errno.EPERM):
        kernel.ask(Code.LINK, folder, struct.pack("=Q", number) + b"other\0")


def test_a_file_is_removed_and_who_has_it_open_reads_on(kernel, folder, place):
    entry, opened = kernel.open_path(f"all/{place}/large")

    kernel.unlink(folder, "large")

    assert kernel.lookup(folder, "large").number == 0
    assert kernel.read(entry.number, opened.handle, 5, 100) == LARGE[5:105]
    assert kernel.getattr(entry.number).links == 0
    with refused(errno.ENOENT):
        kernel.unlink(folder, "large")


def test_a_file_is_renamed_and_keeps_its_node(kernel, folder):
    entry = kernel.lookup(folder, "a")

    kernel.rename(folder, "a", folder, "b")

    assert kernel.lookup(folder, "b").number == entry.number
    assert kernel.lookup(folder, "a").number == 0


def test_a_file_is_renamed_over_another(kernel, folder, store, place):
    kernel.lookup(folder, "a")
    replaced = kernel.lookup(folder, "large")

    kernel.rename(folder, "a", folder, "large", 0)

    assert kernel.lookup(folder, "large").number != replaced.number
    assert store.artifacts.open(f"{place}/large", "rb").read() == b"content of a"


def test_a_rename_that_must_replace_nothing_does_not(kernel, folder, store, place):
    with refused(errno.EEXIST):
        kernel.rename(folder, "a", folder, "large", 1)

    assert store.artifacts.stat(f"{place}/large").size == len(LARGE)


def test_a_rename_with_flags_that_nobody_knows_is_refused(kernel, folder):
    with refused(errno.EINVAL):
        kernel.rename(folder, "a", folder, "b", 1 << 9)


def test_a_file_moves_to_another_tier_by_its_name(kernel, store, place):
    store.artifacts.put(f"{place}/in-warm", b"", tier="warm")
    hot, warm = (kernel.walk(f"{tier}/{place}").number for tier in ("hot", "warm"))

    kernel.rename(hot, "large", warm, "large")

    assert store.artifacts.stat(f"{place}/large").tier == "warm"


def test_a_rename_between_parts_of_the_tree_is_refused(kernel, folder):
    with refused(errno.EXDEV):
        kernel.rename(folder, "a", kernel.walk("state/ci").number, "a")


# Open files


def test_readers_of_one_content_share_a_handle_that_keeps_the_pages(kernel, folder):
    number = kernel.lookup(folder, "a").number

    first, second = kernel.open(number), kernel.open(number)

    assert first == second
    assert first.keeps_cache
    assert not first.direct
    kernel.release(number, first.handle)
    assert kernel.read(number, second.handle, 8) == b"of a"
    kernel.release(number, second.handle)


def test_reading_past_the_end_gives_nothing(kernel, folder, place):
    entry, opened = kernel.open_path(f"all/{place}/a")

    assert kernel.read(entry.number, opened.handle, 12) == b""
    assert kernel.read(entry.number, opened.handle, 1 << 40) == b""
    assert kernel.read(entry.number, opened.handle, 10, 100) == b" a"


def test_a_handle_that_is_not_open_is_ebadf(kernel, folder):
    number = kernel.lookup(folder, "a").number

    with refused(errno.EBADF):
        kernel.read(number, 4711)
    with refused(errno.EBADF):
        kernel.write(number, 4711, b"x")
    with refused(errno.EBADF):
        kernel.flush(number, 4711)
    kernel.release(number, 4711)


def test_a_reader_does_not_write(kernel, folder, place):
    entry, opened = kernel.open_path(f"all/{place}/a")

    with refused(errno.EBADF):
        kernel.write(entry.number, opened.handle, b"x")


def test_a_folder_is_not_opened_as_a_file(kernel, folder):
    with refused(errno.EISDIR):
        kernel.open(folder)


def test_what_is_computed_is_read_past_the_pages(kernel):
    entry, opened = kernel.open_path(".kvstate/stats.json")

    assert entry.valid == 0
    assert opened.direct
    assert kernel.read(entry.number, opened.handle).startswith(b"{")


def test_a_key_is_read_and_written(kernel, store):
    entry, opened = kernel.open_path("state/ci/key")
    assert kernel.read(entry.number, opened.handle).strip() == b"value"
    kernel.release(entry.number, opened.handle)

    entry, opened = kernel.open_path("state/ci/key", os.O_WRONLY | os.O_TRUNC)
    kernel.write(entry.number, opened.handle, b"other")
    kernel.close(entry.number, opened.handle)

    assert store.namespace("ci")["key"] == "other"


def test_a_key_that_expires_is_told_until_then(kernel, store, clock):
    store.namespace("ci").set("brief", 1, ttl=90)

    assert kernel.walk("state/ci/brief").valid == 90


def test_what_is_appended_goes_to_the_end_whatever_the_offset(kernel, folder, store, place):
    entry, opened = kernel.open_path(f"all/{place}/a", os.O_WRONLY | os.O_APPEND)

    kernel.write(entry.number, opened.handle, b"!", 0)
    kernel.close(entry.number, opened.handle)

    assert store.artifacts.open(f"{place}/a", "rb").read() == b"content of a!"


def test_writing_by_another_clears_the_set_id_bits(kernel, folder, place):
    number = kernel.lookup(folder, "a").number
    kernel.setattr(number, valid=MODE, mode=0o104755)
    opened = kernel.open(number, os.O_WRONLY)

    kernel.write(number, opened.handle, b"x", flags=1 << 2)
    kernel.close(number, opened.handle)

    assert stat.S_IMODE(kernel.walk(f"all/{place}/a").stat.mode) == 0o755


def seek(kernel, number, handle, offset, whence):
    body = struct.pack("=QQII", handle, offset, whence, 0)
    return struct.unpack("=Q", kernel.ask(Code.LSEEK, number, body))[0]


def test_data_and_holes_are_found(kernel, place):
    entry, opened = kernel.open_path(f"all/{place}/large")

    assert seek(kernel, entry.number, opened.handle, 10, os.SEEK_DATA) == 10
    assert seek(kernel, entry.number, opened.handle, 10, os.SEEK_HOLE) == len(LARGE)
    with refused(errno.ENXIO):
        seek(kernel, entry.number, opened.handle, len(LARGE), os.SEEK_DATA)
    with refused(errno.EINVAL):
        seek(kernel, entry.number, opened.handle, 0, os.SEEK_END)


def allocate(kernel, number, handle, mode, offset, length):
    body = struct.pack("=QQQII", handle, offset, length, mode, 0)
    assert kernel.ask(Code.FALLOCATE, number, body) == b""


def test_room_is_made_in_a_file_and_holes_are_punched(kernel, store, place):
    entry, opened = kernel.open_path(f"all/{place}/a", os.O_RDWR)

    allocate(kernel, entry.number, opened.handle, 0, 0, 20)
    allocate(kernel, entry.number, opened.handle, 1 | 2, 0, 7)
    with refused(errno.EOPNOTSUPP):
        allocate(kernel, entry.number, opened.handle, 8, 0, 4096)
    kernel.close(entry.number, opened.handle)

    content = store.artifacts.open(f"{place}/a", "rb").read()
    assert content == bytes(7) + b" of a" + bytes(8)


@pytest.mark.parametrize("code", [Code.COPY_FILE_RANGE, Code.COPY_FILE_RANGE_64])
def test_bytes_are_copied_from_file_to_file(kernel, folder, store, code, place):
    source, reading = kernel.open_path(f"all/{place}/large")
    target, writing = kernel.create(folder, "copy")

    body = struct.pack("=QQQQQQQ", reading.handle, 10, target.number, writing.handle, 0, 90_000, 0)
    answer = kernel.ask(code, source.number, body)
    copied = int.from_bytes(answer[:8] if code == Code.COPY_FILE_RANGE_64 else answer[:4], "little")
    kernel.close(target.number, writing.handle)

    assert len(answer) == 8
    assert 0 < copied <= 90_000
    assert store.artifacts.open(f"{place}/copy", "rb").read() == LARGE[10 : 10 + copied]


# Extended attributes, room, the rest


def test_an_extended_attribute_is_set_measured_read_and_removed(kernel, folder):
    number = kernel.lookup(folder, "a").number
    kernel.setxattr(number, "user.colour", b"green")

    assert kernel.getxattr(number, "user.colour", 0) == struct.pack("=II", 5, 0)
    assert kernel.getxattr(number, "user.colour", 5) == b"green"
    with refused(errno.ERANGE):
        kernel.getxattr(number, "user.colour", 4)
    assert kernel.ask(Code.REMOVEXATTR, number, b"user.colour\0") == b""
    with refused(errno.ENODATA):
        kernel.getxattr(number, "user.colour")
    with refused(errno.ENODATA):
        kernel.ask(Code.REMOVEXATTR, number, b"user.colour\0")


def test_the_names_of_extended_attributes_are_measured_and_listed(kernel, folder):
    number = kernel.lookup(folder, "a").number
    kernel.setxattr(number, "user.colour", b"green")

    (size, _) = struct.unpack("=II", kernel.ask(Code.LISTXATTR, number, struct.pack("=II", 0, 0)))
    names = kernel.ask(Code.LISTXATTR, number, struct.pack("=II", size, 0))

    assert len(names) == size
    assert names.endswith(b"\0")
    assert {b"user.colour", b"user.kvstate.tier"} <= set(names.split(b"\0"))
    with refused(errno.ERANGE):
        kernel.ask(Code.LISTXATTR, number, struct.pack("=II", size - 1, 0))


def test_extended_attributes_honour_create_and_replace(kernel, folder):
    number = kernel.lookup(folder, "a").number

    with refused(errno.ENODATA):
        kernel.setxattr(number, "user.colour", b"green", os.XATTR_REPLACE)
    kernel.setxattr(number, "user.colour", b"green", os.XATTR_CREATE)
    with refused(errno.EEXIST):
        kernel.setxattr(number, "user.colour", b"red", os.XATTR_CREATE)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("security.capability", errno.ENOTSUP),
        ("system.posix_acl_access", errno.ENOTSUP),
        ("user.none", errno.ENODATA),
    ],
)
def test_other_extended_attributes_are_not_there(kernel, folder, name, error):
    with refused(error):
        kernel.getxattr(kernel.lookup(folder, "a").number, name)


def test_the_room_that_there_is_is_told(kernel, store):
    answer = kernel.ask(Code.STATFS, ROOT)
    blocks, free, available, _, _, size, name_bytes, fragment, _ = struct.unpack(
        "=QQQQQIIII24x", answer
    )

    assert 0 < available <= free <= blocks
    assert size == fragment > 0
    assert name_bytes == 255


def test_the_room_of_a_node_that_nobody_knows_is_that_of_the_root(kernel):
    assert len(kernel.ask(Code.STATFS, 987654)) == 80


@pytest.mark.parametrize(
    "code",
    [Code.ACCESS, Code.GETLK, Code.SETLK, Code.SETLKW, Code.BMAP, Code.IOCTL, Code.POLL, 7, 200],
)
def test_an_operation_that_is_not_there_is_enosys(kernel, code):
    assert kernel.answer_to(code, ROOT, bytes(64)).error == errno.ENOSYS


def test_destroying_and_syncing_a_folder_do_nothing(kernel, folder):
    assert kernel.ask(Code.DESTROY, 0) == b""
    assert kernel.ask(Code.FSYNCDIR, folder, struct.pack("=QII", 0, 0, 0)) == b""


def test_an_interrupt_of_what_nobody_asked_is_not_answered(kernel):
    unique = kernel.send(Code.INTERRUPT, 0, struct.pack("=Q", 4711))
    kernel.settle()

    assert not kernel.answered(unique)
    assert not kernel.answered(4711)


@pytest.mark.parametrize("number", [0, 999_999, 1 << 60])
def test_a_node_that_the_kernel_was_never_told_of_is_stale(kernel, number):
    with refused(errno.ESTALE):
        kernel.getattr(number)
    with refused(errno.ESTALE):
        kernel.lookup(number, "a")
    with refused(errno.ESTALE):
        kernel.open(number)
