"""Holes, room that is asked for ahead, copies of ranges; without a mount."""

from __future__ import annotations

import errno
import os

import pytest

from kvstate import sparse
from kvstate.errors import Damaged
from kvstatefs.nodes import SEEK_DATA, SEEK_HOLE
from tests.unit.walker import Walker, refused

KEEP, PUNCH, ZERO, COLLAPSE, INSERT = 1, 2, 16, 8, 32
BLOCK = 64 * 1024
SMALL = b"0123456789"
LARGE = os.urandom(4 * BLOCK)
A, B = "hot/acme/weekly/a", "hot/acme/weekly/b"


@pytest.fixture
def walker(store):
    walker = Walker(store)
    walker.folders("hot/acme/weekly")
    return walker


@pytest.fixture(params=["artifact, small", "artifact, large", "artifact, unable", "key"])
def file(request, walker, monkeypatch):
    """A path and the content that is there; on one disk that knows neither holes nor room."""
    path, data = A, LARGE if "large" in request.param else SMALL
    if request.param == "key":
        walker.mkdir("state/prs")
        path = "state/prs/one"
    if "unable" in request.param:
        data = LARGE

        def unable(*_):
            raise OSError(errno.EOPNOTSUPP, "unable")

        monkeypatch.setattr(sparse, "_fallocate", unable)
    walker.write(path, data)
    return path, data


@pytest.mark.parametrize(
    ("mode", "offset", "length", "expected"),
    [
        (0, 4, 3, lambda data: data),
        (0, 4, 400_000, lambda data: data + bytes(400_004 - len(data))),
        (KEEP, 4, 400_000, lambda data: data),
        (PUNCH | KEEP, 2, 5, lambda data: data[:2] + bytes(5) + data[7:]),
        (PUNCH | KEEP, 2, 400_000, lambda data: data[:2] + bytes(len(data) - 2)),
        (PUNCH | KEEP, 400_000, 5, lambda data: data),
        (ZERO | KEEP, 2, 400_000, lambda data: data[:2] + bytes(len(data) - 2)),
        (ZERO, 2, 400_000, lambda data: data[:2] + bytes(400_000)),
        (ZERO, 300_000, 5, lambda data: data + bytes(300_005 - len(data))),
    ],
)
def test_a_range_is_reserved_punched_or_zeroed(walker, file, mode, offset, length, expected):
    path, data = file
    handle = walker.open(path, os.O_RDWR)
    handle.allocate(mode, offset, length)
    during = handle.read(0, 1 << 20)
    handle.flush()
    handle.release()

    assert during == expected(data)
    assert walker.read(path) == expected(data)
    assert walker.stat(path).size == len(expected(data))


@pytest.mark.parametrize(
    ("mode", "offset", "length", "number"),
    [
        (COLLAPSE, 0, 4096, errno.EOPNOTSUPP),
        (INSERT, 0, 4096, errno.EOPNOTSUPP),
        (PUNCH, 0, 4096, errno.EOPNOTSUPP),
        (0, -1, 10, errno.EINVAL),
        (0, 0, 0, errno.EINVAL),
        (0, 1 << 62, 10, errno.EFBIG),
    ],
)
def test_what_is_not_possible_has_its_number(walker, file, mode, offset, length, number):
    handle = walker.open(file[0], os.O_RDWR)

    with refused(number):
        handle.allocate(mode, offset, length)

    handle.release()


def test_a_reader_cannot_allocate_or_be_copied_to(walker, file):
    reader = walker.open(file[0])

    with refused(errno.EBADF):
        reader.allocate(0, 0, 10)
    with refused(errno.EBADF):
        reader.copy_from(reader, 0, 0, 10)


def test_room_that_is_only_reserved_changes_nothing_that_is_stored(walker, store):
    walker.write(A, LARGE)
    before = store.revision()
    handle = walker.open(A, os.O_RDWR)
    handle.allocate(KEEP, 0, 10_000_000)
    handle.flush()
    handle.release()

    assert store.revision() == before


def test_room_beyond_the_end_is_let_go_of_when_the_file_is_stored(walker, store):
    handle = walker.create(A)
    handle.write(0, LARGE)
    handle.allocate(KEEP, 0, 64 << 20)
    handle.flush()
    handle.release()

    reader = store.blobs.reader(store.catalog.walk_path(("acme", "weekly", "a")).blob)

    with reader:
        assert os.fstat(reader.fd).st_blocks * 512 < 1 << 20


class TestHoles:
    @pytest.fixture
    def holey(self, walker):
        """Data, a hole of 1 MiB, data, a hole up to 4 MiB."""
        handle = walker.create(A)
        handle.write(0, LARGE)
        handle.write((1 << 20) + len(LARGE), LARGE)
        handle.truncate(4 << 20)
        yield handle
        handle.release()

    END = (1 << 20) + 2 * len(LARGE)

    def found(self, handle):
        first = handle.seek(0, SEEK_DATA)
        hole = handle.seek(first, SEEK_HOLE)
        data = handle.seek(hole, SEEK_DATA)
        return first, hole, data, handle.seek(data, SEEK_HOLE)

    def test_they_are_found_in_what_is_being_written(self, holey):
        assert self.found(holey) == (0, len(LARGE), (1 << 20) + len(LARGE), self.END)

    def test_they_are_found_in_what_is_stored(self, walker, holey):
        holey.flush()
        reader = walker.open(A)

        assert self.found(reader) == (0, len(LARGE), (1 << 20) + len(LARGE), self.END)
        with refused(errno.ENXIO):
            reader.seek(self.END, SEEK_DATA)
        assert reader.seek(self.END, SEEK_HOLE) == self.END

    def test_they_stay_when_the_file_is_written_to_again(self, walker, holey):
        holey.flush()
        again = walker.open(A, os.O_RDWR)
        again.write(0, b"x")
        fresh = Walker(walker.tree.store)
        another = fresh.open(A, os.O_RDWR)
        another.write(1, b"y")

        assert self.found(again)[1:] == (len(LARGE), (1 << 20) + len(LARGE), self.END)
        assert self.found(another)[1:] == (len(LARGE), (1 << 20) + len(LARGE), self.END)
        again.flush()
        another.release()
        again.release()
        assert walker.read(A)[:10] == b"x" + LARGE[1:10]

    def test_a_hole_that_was_not_written_is_no_hole_but_damage(self, walker, store, tmp_path):
        walker.write(A, LARGE)
        blob = store.catalog.walk_path(("acme", "weekly", "a")).blob
        (path,) = (tmp_path / "store/tiers/hot").glob(f"*/{blob.hex()}*")
        with path.open("r+b") as file:
            sparse.punch(file.fileno(), BLOCK, BLOCK)
        reader = walker.open(A)

        with pytest.raises(Damaged):
            reader.seek(BLOCK, SEEK_DATA)

        with path.open("r+b") as file:
            file.write(LARGE)
        store.blobs.acquit(blob)

    @pytest.mark.parametrize("data", [SMALL, LARGE])
    def test_without_holes_all_is_data_and_the_end_a_hole(self, walker, data):
        walker.write(A, data)
        for handle in (walker.open(A), walker.open(A, os.O_RDWR)):
            assert handle.seek(3, SEEK_DATA) == 3
            assert handle.seek(3, SEEK_HOLE) == len(data)
            with refused(errno.ENXIO):
                handle.seek(len(data), SEEK_DATA)
            with refused(errno.EINVAL):
                handle.seek(0, 9)
            handle.release()


class TestCopies:
    @pytest.mark.parametrize("data", [SMALL, LARGE])
    def test_a_range_of_one_file_is_copied_to_another(self, walker, data):
        walker.write(A, data)
        target = walker.create(B)
        count = target.copy_from(walker.open(A), 2, 1, 1 << 30)
        end = target.copy_from(walker.open(A), len(data), 1, 10)
        target.flush()
        target.release()

        assert (count, end) == (len(data) - 2, 0)
        assert walker.read(B) == b"\0" + data[2:]

    def test_a_range_is_copied_within_a_file_that_is_written(self, walker):
        walker.write(A, SMALL)
        handle = walker.open(A, os.O_RDWR)
        handle.copy_from(handle, 0, 10, 10)
        handle.flush()
        handle.release()

        assert walker.read(A) == SMALL * 2

    def test_a_key_is_copied_to_an_artifact(self, walker, store):
        store.namespace("prs").set("one", "text")
        target = walker.create(A)
        target.copy_from(walker.open("state/prs/one"), 0, 0, 100)
        target.flush()
        target.release()

        assert walker.read(A) == b"text"


def test_only_plain_files_give_a_file(walker, store):
    walker.write(A, LARGE)
    walker.write(B, SMALL)
    plain, small = walker.open(A), walker.open(B)
    store.artifacts.move("acme/weekly/a", "cold")
    packed = Walker(store).open("cold/acme/weekly/a")

    reader = plain.file()

    assert reader is not None
    reader.verify_file()
    assert os.pread(reader.fd, 10, 0) == LARGE[:10]
    assert (small.file(), packed.file()) == (None, None)
