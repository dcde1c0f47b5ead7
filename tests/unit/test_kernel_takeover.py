"""A process that serves a mount is killed, and another one goes on with what the kernel knows."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from kvstatefs.kernel.wire import Code
from tests.unit.kernel_peer import HOUR, RESENT, ROOT, mounting
from tests.unit.walker import refused

PATH = "all/acme/weekly/a"
NAME = "acme/weekly/a"
LARGE = os.urandom(300_000)


@pytest.fixture
def mount():
    with mounting() as mounts:
        yield mounts


@pytest.fixture
def kernel(store, mount):
    store.artifacts.put(NAME, b"first content")
    store.artifacts.put("acme/weekly/large", LARGE)
    store.namespace("ci").set("key", "first")
    return mount(store)


# Nodes


def test_the_successor_has_what_was_not_answered_asked_again(kernel, mount):
    after = mount.succeed(kernel)

    after.wait_for_notice("resend", 0)
    assert after.link.said[-1] == ("ready", True)


@pytest.mark.parametrize("path", [PATH, "hot/acme/weekly", "state/ci/key", "state/ci", ".kvstate"])
def test_nodes_keep_their_numbers(kernel, mount, path):
    before = kernel.walk(path)

    after = mount.succeed(kernel)

    assert after.getattr(before.number)[:-2] == before.stat[:-2]
    assert after.walk(path).number == before.number


def test_new_nodes_get_numbers_that_none_had(kernel, mount):
    known = {kernel.walk(path).number for path in (PATH, "state/ci/key")}

    after = mount.succeed(kernel)

    assert after.walk("all/acme/weekly/large").number > max(known)


def test_lookups_are_counted_on(kernel, mount):
    for _ in range(3):
        entry = kernel.walk(PATH)
    kernel.forget(entry.number, 1)
    kernel.settle()

    after = mount.succeed(kernel)
    after.forget(entry.number, 1)
    assert after.getattr(entry.number).size == 13
    after.forget(entry.number, 1)

    with refused(errno.ESTALE):
        after.getattr(entry.number)


def test_nodes_that_were_forgotten_stay_so(kernel, mount):
    entry = kernel.walk(PATH)
    kernel.forget(entry.number, 1)
    kernel.settle()

    after = mount.succeed(kernel)

    with refused(errno.ESTALE):
        after.getattr(entry.number)


def test_a_third_process_goes_on_as_the_second_did(kernel, mount):
    entry, opened = kernel.open_path(PATH)

    third = mount.succeed(mount.succeed(kernel))

    assert third.read(entry.number, opened.handle) == b"first content"
    assert third.walk(PATH).number == entry.number


def test_a_name_whose_content_changed_between_the_two_is_taken_back(kernel, mount, store):
    folder = kernel.walk("all/acme/weekly")
    old = kernel.lookup(folder.number, "a")
    kernel.stop()
    store.artifacts.put(NAME, b"second content")

    after = mount.succeed(kernel)

    after.wait_for_notice("entry", folder.number, "a")
    new, opened = after.open_path(PATH)
    assert new.number != old.number
    assert after.read(new.number, opened.handle) == b"second content"


def test_who_opens_a_node_whose_content_changed_between_the_two_looks_again(kernel, mount, store):
    old = kernel.walk(PATH)
    kernel.stop()
    store.artifacts.put(NAME, b"second content")

    after = mount.succeed(kernel)

    with refused(errno.ESTALE):
        after.open(old.number)


def test_names_that_were_absent_are_taken_back_with_the_folders_above(kernel, mount, store):
    kernel.lookup(kernel.walk("all/acme/weekly").number, "none")

    after = mount.succeed(kernel)

    for name in ("hot", "warm", "cold", "all", "state"):
        after.wait_for_notice("entry", ROOT, name)


def test_names_are_followed_again_after_a_takeover(kernel, mount, store):
    folder = kernel.walk("all/acme/weekly")
    kernel.lookup(folder.number, "a")
    after = mount.succeed(kernel)
    after.lookup(folder.number, "a")
    after.told()

    store.artifacts.put(NAME, b"second content")

    assert ("entry", folder.number, "a") in after.told()


def test_what_was_agreed_on_holds_for_the_successor(store, mount):
    kernel = mount(store, init=False)
    kernel.init(minor=35)
    kernel.settle()

    after = mount.succeed(kernel)

    assert after.service.mounted.agreed == kernel.service.mounted.agreed
    assert after.walk("all").valid == HOUR


# Readers


def test_readers_go_on(kernel, mount):
    entry, opened = kernel.open_path(PATH)

    after = mount.succeed(kernel)

    assert after.read(entry.number, opened.handle, 6) == b"content"
    after.release(entry.number, opened.handle)


def test_readers_of_a_large_file_go_on(kernel, mount):
    entry, opened = kernel.open_path("all/acme/weekly/large")

    after = mount.succeed(kernel)

    assert after.read(entry.number, opened.handle, 200_000, 1000) == LARGE[200_000:201_000]


@pytest.mark.parametrize(("name", "data"), [("a", b"first content"), ("large", LARGE)])
def test_readers_go_on_with_content_that_the_store_has_dropped(kernel, mount, store, name, data):
    entry, opened = kernel.open_path(f"all/acme/weekly/{name}")
    kernel.stop()
    store.artifacts.put(f"acme/weekly/{name}", b"something else")

    after = mount.succeed(kernel)

    assert after.read(entry.number, opened.handle, 0, 400) == data[:400]
    assert after.read(entry.number, opened.handle, len(data) - 4) == data[-4:]


@pytest.mark.parametrize(("name", "data"), [("a", b"first content"), ("large", LARGE)])
def test_readers_go_on_with_files_that_were_removed(kernel, mount, store, name, data):
    entry, opened = kernel.open_path(f"all/acme/weekly/{name}")
    kernel.stop()
    store.artifacts.delete(f"acme/weekly/{name}", trash=False)

    after = mount.succeed(kernel)

    assert after.read(entry.number, opened.handle, 0, 400) == data[:400]


def test_readers_of_a_key_go_on_with_its_old_value(kernel, mount, store):
    entry, opened = kernel.open_path("state/ci/key")
    kernel.stop()
    store.namespace("ci").set("key", "second")

    after = mount.succeed(kernel)

    assert after.read(entry.number, opened.handle).strip() == b"first"


def test_readers_go_on_through_two_takeovers_after_a_removal(kernel, mount, store):
    entry, opened = kernel.open_path("all/acme/weekly/large")
    small, reading = kernel.open_path(PATH)
    kernel.stop()
    store.artifacts.put("acme/weekly/large", b"something else")
    store.artifacts.put(NAME, b"something else")

    after = mount.succeed(mount.succeed(kernel))

    assert after.read(entry.number, opened.handle, 100, 400) == LARGE[100:500]
    assert after.read(small.number, reading.handle) == b"first content"


def test_a_content_that_nothing_was_kept_of_is_an_error(kernel, mount, store):
    entry, opened = kernel.open_path("all/acme/weekly/large")
    kernel.stop()
    kernel.link.close()
    store.artifacts.put("acme/weekly/large", b"something else")

    after = mount.succeed(kernel)

    with refused(errno.EIO):
        after.read(entry.number, opened.handle)


def test_what_readers_hold_is_let_go_when_they_close(kernel, mount):
    entry, opened = kernel.open_path("all/acme/weekly/large")
    assert len(kernel.link.descriptors) == 1

    kernel.release(entry.number, opened.handle)
    kernel.forget(entry.number, 1)
    kernel.settle()

    assert kernel.link.descriptors == {}


def test_what_readers_held_is_let_go_when_their_node_is_forgotten_after_a_takeover(kernel, mount):
    entry, opened = kernel.open_path("all/acme/weekly/large")
    after = mount.succeed(kernel)

    after.release(entry.number, opened.handle)
    after.forget(entry.number, 1)
    after.settle()

    assert len(after.files) == 0
    assert after.ledger.replay().handles == {}
    assert after.link.descriptors == {}


def test_what_nobody_reads_any_more_is_not_held_through_a_takeover(kernel, mount):
    kernel.open_path("all/acme/weekly/large")
    kernel.link.hold(b"of a reader whose record is gone", 0)

    after = mount.succeed(kernel)

    assert len(after.link.descriptors) == 1
    assert b"of a reader whose record is gone" not in after.link.descriptors


def test_what_two_read_is_held_until_both_of_before_and_now_are_gone(kernel, mount):
    entry, opened = kernel.open_path("all/acme/weekly/large")
    after = mount.succeed(kernel)
    again = after.open(entry.number)

    after.release(entry.number, again.handle)
    after.settle()
    assert len(after.link.descriptors) == 1

    after.release(entry.number, opened.handle)
    after.forget(entry.number, 1)
    after.settle()
    assert after.link.descriptors == {}


def test_new_readers_share_with_those_of_before(kernel, mount):
    entry, opened = kernel.open_path(PATH)
    after = mount.succeed(kernel)

    again = after.open(entry.number)

    assert again.keeps_cache
    assert after.read(entry.number, again.handle) == b"first content"
    after.release(entry.number, again.handle)
    assert after.read(entry.number, opened.handle) == b"first content"


def test_readers_of_what_is_computed_go_on(kernel, mount):
    entry, opened = kernel.open_path(".kvstate/journal.jsonl")
    begun = kernel.read(entry.number, opened.handle, 0, 20)

    after = mount.succeed(kernel)

    assert after.read(entry.number, opened.handle, 0, 20) == begun


def test_listings_go_on_where_they_were(kernel, mount):
    folder = kernel.walk("all/acme/weekly").number
    handle = kernel.opendir(folder)
    begun = kernel.page(folder, handle, 0, 100)

    after = mount.succeed(kernel)
    rest = after.listing(folder, handle=handle, offset=begun[-1].after)

    assert [each.name for each in begun + rest] == [".", "..", "a", "large"]


def test_handles_of_the_successor_are_new_ones(kernel, mount):
    _, opened = kernel.open_path(PATH)
    after = mount.succeed(kernel)

    _, other = after.open_path("all/acme/weekly/large")

    assert other.handle != opened.handle


def test_a_folder_that_the_successor_opens_is_not_one_of_before(kernel, mount):
    first = kernel.walk("all/acme/weekly").number
    second = kernel.walk("all/acme").number
    handle = kernel.opendir(first)
    begun = kernel.page(first, handle, 0, 100)
    after = mount.succeed(kernel)

    other = after.opendir(second)
    rest = after.listing(first, handle=handle, offset=begun[-1].after)
    names = [each.name for each in after.listing(second, handle=other)]

    assert [each.name for each in begun + rest] == [".", "..", "a", "large"]
    assert names == [".", "..", "weekly"]


def test_a_long_listing_goes_on_pages_after_its_beginning(kernel, mount, store):
    names = [f"{number:04}" for number in range(1200)]
    store.namespace("long").update(dict.fromkeys(names, 1))
    folder = kernel.walk("state/long").number
    handle = kernel.opendir(folder)
    begun = []
    while len(begun) < 900:
        begun += kernel.page(folder, handle, begun[-1].after if begun else 0, 4096)

    after = mount.succeed(kernel)
    rest = after.listing(folder, handle=handle, offset=begun[-1].after)

    assert [each.name for each in begun + rest] == [".", "..", *names]


def test_a_listing_that_is_asked_for_past_its_end_is_at_its_end(kernel):
    folder = kernel.walk("all/acme/weekly").number

    assert kernel.page(folder, kernel.opendir(folder), 1 << 40, 4096) == []


# Writers


def test_who_had_written_what_was_not_stored_is_told_that_it_is_lost(kernel, mount, store):
    entry, writing = kernel.open_path(PATH, os.O_RDWR)
    kernel.write(entry.number, writing.handle, b"half of")

    after = mount.succeed(kernel)

    with refused(errno.EIO):
        after.write(entry.number, writing.handle, b" it", 7)
    with refused(errno.EIO):
        after.fsync(entry.number, writing.handle)
    with refused(errno.EIO):
        after.flush(entry.number, writing.handle)
    after.release(entry.number, writing.handle)
    assert store.artifacts.open(NAME, "rb").read() == b"first content"
    again, reading = after.open_path(PATH)
    assert after.read(again.number, reading.handle) == b"first content"


def test_a_write_during_which_another_stored_the_file_is_lost_as_well(kernel, mount, store):
    entry, first = kernel.open_path(PATH, os.O_RDWR)
    second = kernel.open(entry.number, os.O_RDWR)
    kernel.write(entry.number, first.handle, b"FIRST")
    handle = kernel.files.get(second.handle).handle
    write = handle.write

    def write_late(offset, data):
        kernel.service.opening.writers.flush(kernel.files.get(first.handle), None)
        return write(offset, data)

    handle.write = write_late
    kernel.write(entry.number, second.handle, b"SECOND", 6)

    after = mount.succeed(kernel)

    assert store.artifacts.open(NAME, "rb").read() == b"FIRST content"
    with refused(errno.EIO):
        after.flush(entry.number, second.handle)


def test_who_made_a_file_that_was_not_stored_is_told_that_it_is_lost(kernel, mount):
    folder = kernel.walk("all/acme/weekly").number
    made, writing = kernel.create(folder, "new")

    after = mount.succeed(kernel)

    with refused(errno.EIO):
        after.flush(made.number, writing.handle)
    after.release(made.number, writing.handle)
    assert after.walk("all/acme/weekly/new").number == 0


def test_a_writer_whose_all_was_stored_goes_on(kernel, mount, store):
    entry, writing = kernel.open_path(PATH, os.O_RDWR)
    kernel.write(entry.number, writing.handle, b"SECOND ")
    kernel.fsync(entry.number, writing.handle)

    after = mount.succeed(kernel)
    assert after.read(entry.number, writing.handle) == b"SECOND ontent"
    after.write(entry.number, writing.handle, b"!", 13)
    after.close(entry.number, writing.handle)

    assert store.artifacts.open(NAME, "rb").read() == b"SECOND ontent!"


def test_a_writer_who_had_not_written_goes_on(kernel, mount, store):
    entry, writing = kernel.open_path(PATH, os.O_WRONLY | os.O_APPEND)

    after = mount.succeed(kernel)
    after.write(entry.number, writing.handle, b" and more")
    after.close(entry.number, writing.handle)

    assert store.artifacts.open(NAME, "rb").read() == b"first content and more"


def test_a_writer_of_a_new_file_that_was_stored_goes_on(kernel, mount, store):
    folder = kernel.walk("all/acme/weekly").number
    made, writing = kernel.create(folder, "new")
    kernel.write(made.number, writing.handle, b"one")
    kernel.fsync(made.number, writing.handle)

    after = mount.succeed(kernel)
    after.write(made.number, writing.handle, b"two", 3)
    after.close(made.number, writing.handle)

    assert store.artifacts.open("acme/weekly/new", "rb").read() == b"onetwo"
    assert after.walk("all/acme/weekly/new").number == made.number


def test_a_writer_that_is_lost_stays_lost_through_another_takeover(kernel, mount):
    entry, writing = kernel.open_path(PATH, os.O_RDWR)
    kernel.write(entry.number, writing.handle, b"half of")

    after = mount.succeed(mount.succeed(kernel))

    with refused(errno.EIO):
        after.flush(entry.number, writing.handle)


def test_a_writers_node_settles_after_a_takeover(kernel, mount):
    entry, writing = kernel.open_path(PATH, os.O_RDWR)
    after = mount.succeed(kernel)
    after.close(entry.number, writing.handle)

    found, reading = after.open_path(PATH)

    assert found.valid == HOUR
    assert reading.keeps_cache
    assert after.read(found.number, reading.handle) == b"first content"


# What is asked again


def test_what_was_done_before_the_answer_was_given_is_not_an_error(kernel, mount):
    folder = kernel.walk("all/acme").number
    weekly = kernel.walk("all/acme/weekly").number
    kernel.mkdir(folder, "daily")
    kernel.rename(weekly, "a", weekly, "b")
    kernel.unlink(weekly, "large")
    kernel.ask(Code.SYMLINK, weekly, b"link\0target\0")
    after = mount.succeed(kernel)

    def again(code, node, body, number):
        return after.answer_to(code, node, body, unique=RESENT | number).error

    assert again(Code.MKDIR, folder, struct.pack("=II", 0o755, 0) + b"daily\0", 1000) == 0
    assert again(Code.RENAME, weekly, struct.pack("=Q", weekly) + b"a\0b\0", 1002) == 0
    assert again(Code.UNLINK, weekly, b"large\0", 1004) == 0
    assert again(Code.SYMLINK, weekly, b"link\0target\0", 1006) == 0


def test_what_was_never_done_is_an_error_as_ever(kernel, mount):
    weekly = kernel.walk("all/acme/weekly").number
    after = mount.succeed(kernel)

    with refused(errno.ENOENT):
        after.unlink(weekly, "never")


def test_a_file_that_was_made_and_not_answered_is_made_again(kernel, mount, store):
    folder = kernel.walk("all/acme/weekly").number
    kernel.create(folder, "new")
    after = mount.succeed(kernel)

    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    body = struct.pack("=IIII", flags, 0o100644, 0, 0) + b"new\0"
    answer = after.answer_to(Code.CREATE, folder, body, unique=RESENT | 1000)

    assert answer.error == 0


def test_the_ledger_knows_no_more_than_the_kernel_does(kernel, mount):
    for number in range(50):
        entry = kernel.put(kernel.walk("all/acme/weekly").number, f"n{number}", b"x")
        kernel.forget(entry.number, 1)
    for path in ("all/acme/weekly", "all/acme", "all"):
        kernel.forget(kernel.walk(path).number, 1000)
    kernel.settle()

    left = kernel.ledger.replay()

    assert left.handles == {}
    assert set(left.nodes) <= {ROOT}
