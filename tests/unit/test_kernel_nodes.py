"""One node shows one content: what opens, and what is looked up again, when content changes."""

from __future__ import annotations

import errno
import os
import sys
import threading

import pytest

from kvstatefs.kernel.wire import Code
from tests.unit.kernel_peer import OTHER_PID, mounting
from tests.unit.walker import refused

PATH = "all/acme/weekly/a"
NAME = "acme/weekly/a"
LARGE = os.urandom(300_000)


@pytest.fixture
def kernel(store):
    store.artifacts.put(NAME, b"first content")
    store.artifacts.put("acme/weekly/other", b"")
    store.namespace("ci").set("key", "first")
    with mounting() as mount:
        yield mount(store)


def replace_artifact(store, data):
    store.artifacts.put(NAME, data)


def replace_key(store, data):
    store.namespace("ci").set("key", data.decode())


@pytest.fixture(params=["artifact", "key"])
def replaced(request, store):
    """A path, and what replaces its content by another door."""
    path, change = {
        "artifact": (PATH, replace_artifact),
        "key": ("state/ci/key", replace_key),
    }[request.param]
    return path, lambda data: change(store, data)


def reserve_for(monkeypatch, seconds):
    """Say how long a node is kept for a writer who was told to look again."""
    found = [
        module
        for name, module in sys.modules.items()
        if name.startswith("kvstatefs.kernel.") and hasattr(module, "_RESERVED_SECONDS")
    ]
    assert found
    for module in found:
        monkeypatch.setattr(module, "_RESERVED_SECONDS", seconds)


# Readers, and content that is replaced


def test_new_content_is_a_new_node_with_the_same_inode_number(kernel, replaced):
    path, replace = replaced
    old = kernel.walk(path)

    replace(b"second content")
    new = kernel.walk(path)

    assert new.number != old.number
    assert new.inode == old.inode
    assert new.size != old.size


def test_who_opens_a_node_whose_content_was_replaced_is_told_to_look_again(kernel, replaced):
    path, replace = replaced
    old = kernel.walk(path)
    replace(b"second content")

    with refused(errno.ESTALE):
        kernel.open(old.number)
    new = kernel.walk(path)
    opened = kernel.open(new.number)

    assert (new.number != old.number, new.inode) == (True, old.inode)
    assert kernel.read(new.number, opened.handle).strip() == b"second content"


def test_the_second_try_succeeds_whatever_was_replaced_between(kernel, replaced):
    path, replace = replaced
    old = kernel.walk(path)
    replace(b"second content")
    with refused(errno.ESTALE):
        kernel.open(old.number)

    new = kernel.walk(path)
    replace(b"third content")
    opened = kernel.open(new.number)

    assert kernel.read(new.number, opened.handle).strip() == b"second content"
    assert kernel.open_path(path)[0].number not in {old.number, new.number}


def test_the_second_try_succeeds_when_the_file_was_removed_between(kernel, store):
    old = kernel.walk(PATH)
    store.artifacts.put(NAME, b"second content")
    with refused(errno.ESTALE):
        kernel.open(old.number)
    new = kernel.walk(PATH)

    store.artifacts.delete(NAME)
    opened = kernel.open(new.number)

    assert kernel.read(new.number, opened.handle) == b"second content"


def test_a_file_that_was_removed_is_looked_up_again_and_absent(kernel, store):
    old = kernel.walk(PATH)
    store.artifacts.delete(NAME)

    with refused(errno.ESTALE):
        kernel.open(old.number)

    assert kernel.walk(PATH).number == 0


def test_who_has_the_old_content_open_reads_it_to_the_end(kernel, store):
    store.artifacts.put(NAME, LARGE)
    entry, opened = kernel.open_path(PATH)
    assert kernel.read(entry.number, opened.handle, 0, 1000) == LARGE[:1000]

    store.artifacts.put(NAME, b"short")

    assert kernel.read(entry.number, opened.handle, 250_000, 50_000) == LARGE[250_000:]
    assert kernel.getattr(entry.number).size == len(LARGE)


def test_content_that_comes_back_does_not_come_back_to_a_node_without_a_name(kernel, store):
    first = kernel.walk(PATH)
    store.artifacts.put(NAME, b"second content")
    second = kernel.walk(PATH)
    store.artifacts.put(NAME, b"first content")

    third, opened = kernel.open_path(PATH)

    assert third.number != second.number
    assert third.inode == first.inode
    assert kernel.read(third.number, opened.handle) == b"first content"


def test_each_who_is_told_to_look_again_has_a_grace_of_its_own(kernel, store):
    old = kernel.walk(PATH)
    store.artifacts.put(NAME, b"second content")
    with refused(errno.ESTALE):
        kernel.open(old.number, pid=OTHER_PID)
    theirs = kernel.walk(PATH, pid=OTHER_PID)
    store.artifacts.put(NAME, b"third content")

    with refused(errno.ESTALE):
        kernel.open(theirs.number)
    ours, our_file = kernel.open_path(PATH)
    their_file = kernel.open(theirs.number, pid=OTHER_PID)

    assert kernel.read(ours.number, our_file.handle) == b"third content"
    assert kernel.read(theirs.number, their_file.handle) == b"second content"


def test_a_file_with_other_attributes_keeps_its_node(kernel, store):
    old = kernel.walk(PATH)
    entry, opened = kernel.open_path(PATH)
    kernel.setattr(old.number, valid=1, mode=0o600)

    again, second = kernel.open_path(PATH)

    assert again.number == old.number == entry.number
    assert second.handle == opened.handle


def test_a_file_that_moves_to_another_tier_keeps_its_node(kernel, store):
    old = kernel.walk(PATH)

    store.artifacts.move(NAME, "cold")

    new, opened = kernel.open_path(PATH)
    assert new.number == old.number
    assert kernel.read(new.number, opened.handle) == b"first content"


# Growth


def grow(kernel, store, data):
    """Append by another mount's door, so that the store knows that the file only grew."""
    with mounting() as mount:
        other = mount(store)
        entry, opened = other.open_path(PATH, os.O_WRONLY | os.O_APPEND)
        other.write(entry.number, opened.handle, data)
        other.close(entry.number, opened.handle)


def test_content_that_only_grew_keeps_its_node(kernel, store):
    old, _ = kernel.open_path(PATH)

    grow(kernel, store, b" and more")
    new, second = kernel.open_path(PATH)

    assert new.number == old.number
    assert new.size == len(b"first content and more")
    assert kernel.read(new.number, second.handle) == b"first content and more"


def test_the_attributes_of_a_node_follow_its_growth(kernel, store):
    old = kernel.walk(PATH)

    grow(kernel, store, b" and more")

    assert kernel.getattr(old.number).size == len(b"first content and more")


# Writers


def test_a_writer_takes_the_node_that_nobody_reads(kernel, store):
    old = kernel.walk(PATH)

    opened = kernel.open(old.number, os.O_WRONLY | os.O_TRUNC)
    kernel.write(old.number, opened.handle, b"second")
    kernel.close(old.number, opened.handle)

    assert store.artifacts.open(NAME, "rb").read() == b"second"
    assert kernel.walk(PATH).number == old.number


def test_the_closing_of_a_writer_settles_the_node(kernel, store):
    old = kernel.walk(PATH)
    opened = kernel.open(old.number, os.O_WRONLY | os.O_TRUNC)
    kernel.write(old.number, opened.handle, b"second")
    assert kernel.walk(PATH).valid == 0
    kernel.close(old.number, opened.handle)

    entry = kernel.walk(PATH)
    reading = kernel.open(entry.number)

    assert (entry.number, entry.size, entry.valid) == (old.number, 6, 3600)
    assert reading.keeps_cache
    assert kernel.read(entry.number, reading.handle) == b"second"


def test_a_writer_gets_a_node_of_its_own_when_others_read(kernel, store):
    old, reading = kernel.open_path(PATH)

    with refused(errno.ESTALE):
        kernel.open(old.number, os.O_WRONLY | os.O_TRUNC)
    new = kernel.walk(PATH)
    writing = kernel.open(new.number, os.O_WRONLY | os.O_TRUNC)
    kernel.write(new.number, writing.handle, b"second")
    kernel.close(new.number, writing.handle)

    assert new.number != old.number
    assert new.inode == old.inode
    assert kernel.read(old.number, reading.handle) == b"first content"
    assert kernel.getattr(old.number).size == len(b"first content")
    assert kernel.walk(PATH).number == new.number


def test_writers_share_a_node_and_what_they_write(kernel, store):
    entry, first = kernel.open_path(PATH, os.O_RDWR)
    again, second = kernel.open_path(PATH, os.O_RDWR)

    kernel.write(entry.number, first.handle, b"FIRST")

    assert again.number == entry.number
    assert kernel.read(again.number, second.handle) == b"FIRST content"
    kernel.close(entry.number, first.handle)
    kernel.close(again.number, second.handle)
    assert store.artifacts.open(NAME, "rb").read() == b"FIRST content"


def test_others_read_what_is_stored_while_a_file_is_written(kernel, store):
    written, writing = kernel.open_path(PATH, os.O_WRONLY | os.O_TRUNC)
    kernel.write(written.number, writing.handle, b"half of the sec")

    with refused(errno.ESTALE):
        kernel.open(written.number, pid=OTHER_PID)
    entry = kernel.walk(PATH, pid=OTHER_PID)
    reading = kernel.open(entry.number, pid=OTHER_PID)

    assert entry.number != written.number
    assert entry.inode == written.inode
    assert kernel.read(entry.number, reading.handle) == b"first content"
    kernel.close(written.number, writing.handle)
    assert kernel.read(entry.number, reading.handle) == b"first content"


def test_those_who_read_what_is_stored_while_a_file_is_written_share_its_node(kernel):
    old, first = kernel.open_path(PATH, pid=OTHER_PID)
    written, _ = kernel.open_path(PATH, os.O_WRONLY | os.O_TRUNC)

    again, second = kernel.open_path(PATH, pid=OTHER_PID)

    assert again.number == old.number != written.number
    assert second.handle == first.handle


def test_others_read_nothing_while_a_new_file_is_written(kernel):
    folder = kernel.walk("all/acme/weekly").number
    made, writing = kernel.create(folder, "new")
    kernel.write(made.number, writing.handle, b"unfinished")

    entry, reading = kernel.open_path("all/acme/weekly/new", pid=OTHER_PID)

    assert kernel.read(entry.number, reading.handle, pid=OTHER_PID) == b""


def test_the_process_that_writes_a_file_reads_what_it_wrote(kernel):
    written, writing = kernel.open_path(PATH, os.O_WRONLY | os.O_TRUNC)
    kernel.write(written.number, writing.handle, b"half of the sec")

    reading = kernel.open(written.number)

    assert kernel.read(written.number, reading.handle) == b"half of the sec"
    kernel.close(written.number, writing.handle)
    kernel.close(written.number, reading.handle)


def test_who_reads_what_it_writes_keeps_the_file_written_until_both_are_closed(kernel):
    written, writing = kernel.open_path(PATH, os.O_WRONLY | os.O_TRUNC)
    kernel.write(written.number, writing.handle, b"second")
    reading = kernel.open(written.number)
    kernel.close(written.number, writing.handle)

    assert kernel.walk(PATH).valid == 0
    kernel.close(written.number, reading.handle)

    assert kernel.walk(PATH).valid == 3600


def test_readers_who_wait_for_a_writer_get_the_new_content_afterwards(kernel):
    written, writing = kernel.open_path(PATH, os.O_WRONLY | os.O_TRUNC)
    kernel.write(written.number, writing.handle, b"second")
    old, reading = kernel.open_path(PATH, pid=OTHER_PID)
    kernel.close(written.number, writing.handle)

    new, again = kernel.open_path(PATH, pid=OTHER_PID)

    assert kernel.read(old.number, reading.handle) == b"first content"
    assert kernel.read(new.number, again.handle) == b"second"
    assert new.number == written.number


def test_a_node_that_is_kept_for_a_writer_is_not_read_through_pages(kernel, monkeypatch):
    reserve_for(monkeypatch, 600.0)
    old, _ = kernel.open_path(PATH)
    with refused(errno.ESTALE):
        kernel.open(old.number, os.O_WRONLY)
    kept = kernel.walk(PATH)

    reading = kernel.open(kept.number, pid=OTHER_PID)
    writing = kernel.open(kept.number, os.O_WRONLY)

    assert reading.direct
    assert kernel.read(kept.number, reading.handle) == b"first content"
    kernel.close(kept.number, writing.handle)


def test_who_was_to_write_and_reads_instead_reads(kernel):
    old, _ = kernel.open_path(PATH)
    with refused(errno.ESTALE):
        kernel.open(old.number, os.O_WRONLY)
    kept = kernel.walk(PATH)

    reading = kernel.open(kept.number)

    assert kernel.read(kept.number, reading.handle) == b"first content"


def test_a_node_that_no_writer_came_for_is_read_through_pages_again(kernel, monkeypatch):
    reserve_for(monkeypatch, 0.0)
    old, _ = kernel.open_path(PATH)
    with refused(errno.ESTALE):
        kernel.open(old.number, os.O_WRONLY)
    kept = kernel.walk(PATH)

    assert not kernel.open(kept.number, pid=OTHER_PID).direct


def test_a_file_that_another_door_changed_while_it_was_written_is_a_new_node(kernel, store):
    written, writing = kernel.open_path(PATH, os.O_RDWR)
    kernel.write(written.number, writing.handle, b"mine")
    kernel.flush(written.number, writing.handle)
    store.artifacts.put(NAME, b"theirs, later")
    kernel.release(written.number, writing.handle)

    entry, reading = kernel.open_path(PATH)

    assert entry.number != written.number
    assert kernel.read(entry.number, reading.handle) == b"theirs, later"


def test_a_file_that_was_opened_for_writing_and_not_written_keeps_content_and_node(kernel, store):
    entry, writing = kernel.open_path(PATH, os.O_RDWR)
    assert kernel.read(entry.number, writing.handle) == b"first content"
    kernel.close(entry.number, writing.handle)

    again, reading = kernel.open_path(PATH)

    assert again.number == entry.number
    assert kernel.read(again.number, reading.handle) == b"first content"


def test_a_failed_store_leaves_the_old_content_to_readers(kernel, store, monkeypatch):
    written, writing = kernel.open_path(PATH, os.O_WRONLY | os.O_TRUNC)
    kernel.write(written.number, writing.handle, b"second")
    with monkeypatch.context() as patch:

        def full(*_, **__):
            raise OSError(errno.ENOSPC, "no room")

        patch.setattr(store.artifacts, "commit_file", full)
        with refused(errno.ENOSPC):
            kernel.flush(written.number, writing.handle)
        kernel.release(written.number, writing.handle)

    entry, reading = kernel.open_path(PATH)

    assert kernel.read(entry.number, reading.handle) == b"first content"
    assert entry.number != written.number


def remove(kernel, folder):
    kernel.unlink(folder, "a")


def replace_by_another(kernel, folder):
    kernel.rename(folder, "other", folder, "a")


@pytest.mark.parametrize("lose", [remove, replace_by_another])
def test_a_file_that_loses_its_name_while_it_is_written_goes_on_for_its_writers(
    kernel, store, lose
):
    folder = kernel.walk("all/acme/weekly").number
    written, writing = kernel.open_path(PATH, os.O_RDWR)

    lose(kernel, folder)
    kernel.write(written.number, writing.handle, b"FIRST")

    assert kernel.read(written.number, writing.handle) == b"FIRST content"
    assert kernel.getattr(written.number).size == 13
    kernel.close(written.number, writing.handle)
    stored = {each.name: each.size for each in store.artifacts.list("acme/weekly")}
    assert 13 not in stored.values()


def test_a_file_that_is_made_again_is_another_file(kernel, store):
    folder = kernel.walk("all/acme/weekly").number
    old, reading = kernel.open_path(PATH)
    kernel.unlink(folder, "a")

    new = kernel.put(folder, "a", b"made anew")

    assert (new.number != old.number, new.inode != old.inode) == (True, True)
    assert kernel.read(old.number, reading.handle) == b"first content"
    entry, again = kernel.open_path(PATH)
    assert kernel.read(entry.number, again.handle) == b"made anew"


def test_a_new_file_has_its_inode_number_before_it_is_stored(kernel):
    folder = kernel.walk("all/acme/weekly").number
    made, writing = kernel.create(folder, "new")
    kernel.write(made.number, writing.handle, b"data")
    kernel.close(made.number, writing.handle)

    entry = kernel.walk("all/acme/weekly/new")

    assert (entry.number, entry.inode) == (made.number, made.inode)


def test_a_node_that_is_forgotten_while_it_is_open_goes_on_until_it_is_closed(kernel):
    entry, opened = kernel.open_path(PATH)
    kernel.forget(entry.number, 1)

    assert kernel.read(entry.number, opened.handle) == b"first content"
    kernel.release(entry.number, opened.handle)
    kernel.settle()

    assert kernel.service.mounted.table.find(entry.number) is None


def test_handles_of_forgotten_files_are_let_go(kernel, store):
    for number in range(20):
        store.artifacts.put(f"acme/many/{number}", b"x" * (number + 1))
        entry, opened = kernel.open_path(f"all/acme/many/{number}")
        kernel.release(entry.number, opened.handle)
        kernel.forget(entry.number, 1)
    kernel.settle()

    assert len(kernel.files) == 0
    assert kernel.ledger.replay().handles == {}


def test_a_reader_who_was_gone_before_the_answer_leaves_nothing_open(kernel, monkeypatch):
    entry = kernel.walk(PATH)
    first = kernel.open(entry.number)
    write, tried = os.write, threading.Event()

    def gone(descriptor, message):
        if descriptor != kernel.service.mounted.fd:
            return write(descriptor, message)
        tried.set()
        raise OSError(errno.ENOENT, "who asked is gone")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", gone)
        unique = kernel.send(Code.OPEN, entry.number, bytes(8))
        assert tried.wait(20)
    kernel.settle()

    kernel.release(entry.number, first.handle)
    kernel.settle()
    assert not kernel.answered(unique)
    assert kernel.service.mounted.table.find(entry.number).cached == 0


def test_who_reads_old_content_sees_a_new_mode_and_the_old_size_and_time(kernel, store):
    entry, _ = kernel.open_path(PATH)
    before = kernel.getattr(entry.number)
    store.artifacts.put(NAME, b"second and longer content")
    store.catalog.set_attributes(before.inode, mode=0o600, modified_ns=10**18)

    after = kernel.getattr(entry.number)

    assert after.mode & 0o777 == 0o600
    assert (after.size, after.modified_ns) == (before.size, before.modified_ns)


def test_a_reader_finds_the_content_though_its_writer_goes_while_it_looks_again(store, monkeypatch):
    store.artifacts.put("acme/weekly/late", b"stored")
    with mounting() as mount:
        kernel = mount(store)
        weekly = kernel.walk("all/acme/weekly").number
        entry = kernel.lookup(weekly, "late")
        writing = kernel.open(entry.number, os.O_WRONLY)
        with refused(errno.ESTALE):
            kernel.open(entry.number, pid=OTHER_PID)
        look = kernel.tree.lookup

        def late(*arguments):
            found = look(*arguments)
            monkeypatch.undo()
            kernel.service.opening.release(writing.handle)
            kernel.service.mounted.table.forget(entry.number, 1)
            return found

        monkeypatch.setattr(kernel.tree, "lookup", late)
        again = kernel.lookup(weekly, "late", pid=OTHER_PID)
        store.artifacts.put("acme/weekly/late", b"stored anew")

        opened = kernel.open(again.number, pid=OTHER_PID)
        assert kernel.read(again.number, opened.handle) == b"stored"
