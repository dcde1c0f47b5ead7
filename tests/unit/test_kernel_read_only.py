"""Read-only mounts: the kernel opens files alone, so what a lookup told is pinned."""

from __future__ import annotations

import errno
import os
import stat
import struct

import pytest

from kvstatefs.kernel import open_files
from kvstatefs.kernel.wire import Code
from tests.unit.kernel_peer import ALL_FLAGS, HOUR, NO_OPEN_SUPPORT, ROOT, mounting
from tests.unit.walker import refused

PATH = "all/acme/weekly/a"
NAME = "acme/weekly/a"
LARGE = os.urandom(300_000)


@pytest.fixture
def mount(store):
    store.artifacts.put(NAME, b"first content")
    store.artifacts.put("acme/weekly/large", LARGE)
    store.namespace("ci").set("key", "first")
    with mounting() as mounts:
        yield mounts


@pytest.fixture
def kernel(store, mount):
    return mount(store, read_only=True)


def test_the_kernel_is_told_to_open_files_alone(kernel):
    with refused(errno.ENOSYS):
        kernel.open(kernel.walk(PATH).number)


@pytest.mark.parametrize(
    ("path", "data"),
    [(PATH, b"first content"), ("all/acme/weekly/large", LARGE), ("state/ci/key", b"first")],
    ids=["small", "large", "key"],
)
def test_files_are_read_without_having_been_opened(kernel, path, data):
    number = kernel.walk(path).number

    assert kernel.read(number, 0, 0, 100) == data[:100]
    assert kernel.read(number, 0, len(data) - 1) == data[-1:]
    assert kernel.read(number, 0, len(data)) == b""


def test_a_close_is_not_asked_for_either(kernel):
    with refused(errno.ENOSYS):
        kernel.flush(kernel.walk(PATH).number, 0)


def test_a_node_shows_what_it_was_told_as_whatever_becomes_of_the_name(kernel, store):
    number, large = kernel.walk(PATH).number, kernel.walk("all/acme/weekly/large").number
    store.artifacts.put(NAME, b"second content")
    store.artifacts.delete("acme/weekly/large", trash=False)

    assert kernel.read(number, 0) == b"first content"
    assert kernel.read(large, 0, 250_000, 100) == LARGE[250_000:250_100]
    assert kernel.getattr(number).size == 13


def test_new_content_is_a_new_node(kernel, store):
    old = kernel.walk(PATH)
    store.artifacts.put(NAME, b"second content")

    new = kernel.walk(PATH)

    assert (new.number != old.number, new.inode) == (True, old.inode)
    assert kernel.read(new.number, 0) == b"second content"
    assert kernel.read(old.number, 0) == b"first content"


def test_a_name_that_leads_elsewhere_is_taken_back(kernel, store):
    folder = kernel.walk("all/acme/weekly").number
    assert kernel.lookup(folder, "a").valid == HOUR

    store.artifacts.put(NAME, b"second content")

    assert kernel.told() == [("entry", folder, "a")]


def test_what_was_pinned_is_let_go_when_the_kernel_forgets_the_node(kernel, store):
    entry = kernel.walk(PATH)
    assert len(kernel.files) == 1

    kernel.forget(entry.number, 1)
    kernel.settle()

    assert len(kernel.files) == 0
    with refused(errno.ESTALE):
        kernel.read(entry.number, 0)


def test_what_is_computed_is_a_text_of_its_own_at_each_lookup(kernel, store):
    first = kernel.walk(".kvstate/stats.json")
    text = kernel.read(first.number, 0)

    second = kernel.walk(".kvstate/stats.json")

    assert first.number != second.number
    assert (first.valid, first.size) == (0, len(text))
    assert kernel.read(first.number, 0) == text


def test_a_listing_tells_no_nodes_of_files_since_it_pins_nothing(kernel):
    found = kernel.listing(kernel.walk("all/acme/weekly").number, plus=True)

    assert [each.name for each in found] == [".", "..", "a", "large"]
    assert {each.entry.number for each in found} == {0}
    assert len(kernel.files) == 0


def test_a_listing_tells_nodes_of_folders(kernel):
    tenant = kernel.walk("all/acme")
    found = {each.name: each.entry for each in kernel.listing(tenant.number, plus=True)}

    assert found["weekly"].number == kernel.lookup(tenant.number, "weekly").number


def test_data_and_holes_are_found_without_an_open(kernel):
    number = kernel.walk("all/acme/weekly/large").number

    answer = kernel.ask(Code.LSEEK, number, struct.pack("=QQII", 0, 10, os.SEEK_HOLE, 0))

    assert answer == struct.pack("=Q", len(LARGE))


def test_only_so_many_contents_are_pinned(kernel, store, monkeypatch):
    monkeypatch.setattr(open_files, "_IDLE_MAX", 500)
    names = [f"n{number:04}" for number in range(600)]
    store.artifacts.put_many((f"acme/many/{name}", name.encode()) for name in names)
    folder = kernel.walk("all/acme/many").number

    numbers = [kernel.lookup(folder, name).number for name in names]

    assert len(kernel.files) < 600
    assert [kernel.read(number, 0) for number in numbers] == [name.encode() for name in names]
    assert len(kernel.files) < 600


@pytest.mark.parametrize(
    ("code", "body"),
    [
        (Code.MKDIR, struct.pack("=II", 0o755, 0) + b"new\0"),
        (Code.MKNOD, struct.pack("=IIII", stat.S_IFREG | 0o644, 0, 0, 0) + b"new\0"),
        (Code.CREATE, struct.pack("=IIII", os.O_WRONLY, 0o644, 0, 0) + b"new\0"),
        (Code.SYMLINK, b"new\0target\0"),
        (Code.UNLINK, b"a\0"),
        (Code.RMDIR, b"weekly\0"),
        (Code.RENAME, struct.pack("=Q", ROOT) + b"a\0b\0"),
        (Code.RENAME2, struct.pack("=QII", ROOT, 1, 0) + b"a\0b\0"),
        (Code.SETATTR, struct.pack("=II80x", 1, 0)),
        (Code.SETXATTR, struct.pack("=II", 1, 0) + b"user.a\0v"),
        (Code.REMOVEXATTR, b"user.a\0"),
    ],
    ids=lambda each: each.name if isinstance(each, Code) else "",
)
def test_nothing_can_be_changed(kernel, code, body):
    with refused(errno.EROFS):
        kernel.ask(code, kernel.walk("all/acme/weekly").number, body)


# Kernels that ask before they open a file


@pytest.fixture
def asking(store, mount):
    kernel = mount(store, read_only=True, init=False)
    kernel.init(flags=ALL_FLAGS & ~NO_OPEN_SUPPORT)
    return kernel


def test_an_old_kernel_opens_files_on_a_read_only_mount(asking):
    entry, opened = asking.open_path(PATH)

    assert asking.read(entry.number, opened.handle) == b"first content"
    asking.close(entry.number, opened.handle)


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR])
def test_an_old_kernel_cannot_open_files_for_writing(asking, flags):
    number = asking.walk(PATH).number

    with refused(errno.EROFS):
        asking.open(number, flags)


# Takeovers


def test_a_node_is_read_on_after_a_takeover(kernel, mount):
    entry = kernel.walk(PATH)
    kernel.stop()

    ledger = type(kernel.ledger).attach([os.dup(each) for each in kernel.ledger.fds])
    after = mount(kernel.tree.store, read_only=True, ledger=ledger, link=kernel.link, resumed=True)

    assert after.read(entry.number, 0) == b"first content"
    assert after.walk(PATH).number == entry.number
