"""Packed content: standard seekable zstd, every byte of it covered by a checksum."""

from __future__ import annotations

import errno
import io
import os
import random
import shutil
import struct
import subprocess
import sys
import threading
from array import array

import pytest
import pyzstd
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from kvstate import zstd
from kvstate.codec import block_checksum
from kvstate.errors import InvalidValue
from kvstate.staging import BLOCK_BYTES
from kvstate.zstd import FRAME_BYTES, Corrupt, Frames

SIZES = (0, 1, BLOCK_BYTES, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 3 * FRAME_BYTES + 12_345)


def content_of(size: int) -> bytes:
    """Give bytes of which some compress and some do not, no two frames the same."""
    source = random.Random(size)
    parts, length = [], 0
    while length < size:
        part = source.choice((source.randbytes(3000), b"%d lines\n" % source.randrange(9) * 500))
        parts.append(part)
        length += len(part)
    return b"".join(parts)[:size]


def checksums_of(content):
    blocks = range(0, len(content), BLOCK_BYTES)
    return array("Q", [block_checksum(content[at : at + BLOCK_BYTES]) for at in blocks])


@pytest.fixture
def file_of(tmp_path):
    """Make a file of these bytes, open for reading and writing; closed at the end."""
    opened = []

    def make(data: bytes = b"") -> int:
        path = tmp_path / f"file-{len(opened)}"
        path.write_bytes(data)
        opened.append(os.open(path, os.O_RDWR))
        return opened[-1]

    yield make
    for fd in opened:
        os.close(fd)


@pytest.fixture
def packed(file_of):
    """Pack content into a new file; give its descriptor and its frames."""

    def make(content: bytes, level: int = 3, **options) -> tuple[int, Frames]:
        target = file_of()
        return target, zstd.pack(file_of(content), len(content), target, level, **options)

    return make


def bytes_of(fd):
    return os.pread(fd, os.fstat(fd).st_size, 0)


def unpacked(fd, sizes, contents):
    offset, found = 0, []
    for size, content in zip(sizes, contents, strict=True):
        found.append(zstd.unpack_frame(os.pread(fd, size, offset), content))
        offset += size
    return b"".join(found)


def contents_of(size):
    return [min(FRAME_BYTES, size - at) for at in range(0, size, FRAME_BYTES)]


class TestThePackedFile:
    @pytest.mark.parametrize("size", SIZES)
    def test_its_frames_hold_the_content_each_for_itself(self, packed, size):
        content = content_of(size)

        fd, frames = packed(content)

        assert unpacked(fd, frames.sizes, contents_of(size)) == content
        assert frames.size == os.fstat(fd).st_size
        assert [*frames.offsets()] == [sum(frames.sizes[:n]) for n in range(len(frames.sizes) + 1)]

    @pytest.mark.parametrize("size", SIZES)
    def test_zstd_restores_it_by_hand(self, packed, size):
        if shutil.which("zstd") is None:
            pytest.skip("needs zstd")
        content = content_of(size)
        fd, _ = packed(content)

        done = subprocess.run(["zstd", "-d"], input=bytes_of(fd), capture_output=True, check=True)

        assert done.stdout == content

    @pytest.mark.parametrize("size", SIZES)
    def test_another_reader_of_the_seekable_format_reads_it_anywhere(self, packed, size):
        content = content_of(size)
        fd, _ = packed(content)
        places = [random.Random(1).randrange(size + 1) for _ in range(20)]

        with pyzstd.SeekableZstdFile(io.BytesIO(bytes_of(fd))) as file:
            found = [file.seek(at) and file.read(5000) for at in (*places, size)]

        assert found == [at and content[at : at + 5000] for at in (*places, size)]

    @pytest.mark.parametrize("size", SIZES)
    def test_its_own_table_says_what_was_written(self, packed, size):
        fd, frames = packed(content_of(size))

        table = zstd.read_table(fd)

        assert (table.sizes, table.table_size) == (frames.sizes, frames.table_size)
        assert [*table.contents] == contents_of(size)

    def test_its_own_table_has_the_checksums_that_the_format_wants(self, packed):
        content = content_of(FRAME_BYTES + 1)
        fd, frames = packed(content)

        entries = os.pread(fd, 24, sum(frames.sizes) + 8)

        assert struct.unpack("<IIIIII", entries)[2::3] == (
            xxhash.xxh64_intdigest(content[:FRAME_BYTES]) & 0xFFFFFFFF,
            xxhash.xxh64_intdigest(content[FRAME_BYTES:]) & 0xFFFFFFFF,
        )

    @pytest.mark.parametrize("threads", [1, 2, 3])
    @pytest.mark.parametrize("size", [*SIZES, 9 * FRAME_BYTES])
    def test_it_is_the_same_with_any_number_of_threads_and_verified(
        self, packed, file_of, size, threads
    ):
        content = content_of(size)
        fd, frames = packed(content)
        other = file_of()

        verified = zstd.pack_verified(
            file_of(content), size, other, 3, checksums_of(content), threads=threads
        )

        assert (bytes_of(other), verified) == (bytes_of(fd), frames)

    def test_a_higher_level_is_smaller(self, packed):
        content = b"".join(b"%d, %d\n" % (n, n * n) for n in range(20_000))

        assert packed(content, level=19)[1].size < packed(content)[1].size

    def test_a_level_that_zstd_does_not_have_is_refused(self, file_of):
        with pytest.raises(ValueError, match="level"):
            zstd.pack(file_of(b"x"), 1, file_of(), 99)

    @pytest.mark.parametrize("pack", ["pack", "verified"])
    def test_who_asks_is_told_of_all_content_bytes(self, file_of, pack):
        size = 2 * FRAME_BYTES + 5
        content = content_of(size)
        told = []

        if pack == "pack":
            zstd.pack(file_of(content), size, file_of(), 3, told=told.append, threads=2)
        else:
            sums = checksums_of(content)
            zstd.pack_verified(file_of(content), size, file_of(), 3, sums, told=told.append)

        assert told == [FRAME_BYTES, FRAME_BYTES, 5]

    def test_more_content_than_the_format_can_hold_is_refused(self, file_of):
        with pytest.raises(InvalidValue):
            zstd.pack(file_of(), zstd.SIZE_MAX + 1, file_of(), 3)


class TestASystemThatFails:
    def test_short_writes_and_reads_are_gone_on_with(self, packed, file_of, monkeypatch):
        content = content_of(FRAME_BYTES + 7)
        whole = bytes_of(packed(content)[0])
        source, target = file_of(content), file_of()
        pread, pwrite = os.pread, os.pwrite

        with monkeypatch.context() as system:
            system.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:100_000], at))
            system.setattr(os, "pread", lambda fd, size, at: pread(fd, min(size, 300_000), at))
            zstd.pack(source, len(content), target, 3)

        assert bytes_of(target) == whole

    @pytest.mark.parametrize("threads", [1, 2])
    def test_a_source_that_ends_early_is_an_io_error(self, file_of, threads):
        content = content_of(FRAME_BYTES)

        with pytest.raises(OSError, match="ended early") as caught:
            zstd.pack(file_of(content), 9 * FRAME_BYTES, file_of(), 3, threads=threads)

        assert caught.value.errno == errno.EIO

    @pytest.mark.parametrize("threads", [1, 2])
    def test_a_full_disk_passes_as_it_is_and_leaves_no_thread(self, file_of, threads):
        content = content_of(5 * FRAME_BYTES)
        before = threading.active_count()
        full = os.open("/dev/full", os.O_RDWR)

        try:
            with pytest.raises(OSError, match="space") as caught:
                zstd.pack(file_of(content), len(content), full, 3, threads=threads)
        finally:
            os.close(full)

        assert caught.value.errno == errno.ENOSPC
        assert threading.active_count() == before

    @pytest.mark.parametrize("threads", [1, 2])
    def test_a_source_that_is_not_what_its_checksums_say_is_refused(self, file_of, threads):
        content = bytearray(content_of(3 * FRAME_BYTES))
        sums = checksums_of(bytes(content))
        content[FRAME_BYTES + 3 * BLOCK_BYTES] ^= 1

        with pytest.raises(Corrupt, match="block 19 ") as caught:
            zstd.pack_verified(file_of(content), len(content), file_of(), 3, sums, threads=threads)

        assert caught.value.frame == 1

    @pytest.mark.parametrize("wrong", [0, 2, 3])
    def test_a_target_that_keeps_something_else_is_refused(self, file_of, monkeypatch, wrong):
        content = content_of(3 * FRAME_BYTES)
        source, target, pwrite = file_of(content), file_of(), os.pwrite
        writes = []

        def flip(fd, data, at):
            writes.append(at)
            data = bytearray(data)
            data[len(data) // 2] ^= len(writes) == wrong + 1
            return pwrite(fd, data, at)

        monkeypatch.setattr(os, "pwrite", flip)
        with pytest.raises(Corrupt, match="something else is read") as caught:
            zstd.pack_verified(source, len(content), target, 3, checksums_of(content))

        assert caught.value.frame == (wrong if wrong < 3 else None)

    def test_checksums_of_another_size_are_refused(self, file_of):
        with pytest.raises(InvalidValue):
            zstd.pack_verified(file_of(b"x"), 1, file_of(), 3, [])


class TestVerifying:
    def test_a_whole_file_passes_and_who_asks_is_told_of_its_bytes(self, packed):
        fd, frames = packed(content_of(5 * FRAME_BYTES + 1))
        told = []

        zstd.verify_packed(fd, frames, told.append)

        assert sum(told) == frames.size

    @pytest.mark.parametrize("size", [0, 9, 3 * FRAME_BYTES + 12_345])
    def test_a_flipped_bit_anywhere_is_found_and_its_frame_named(self, packed, size):
        fd, frames = packed(content_of(size))
        offsets = [*frames.offsets(), frames.size]
        places = {*offsets[:-1], *(end - 1 for end in offsets[1:]), frames.size // 2}

        for place in places:
            was = os.pread(fd, 1, place)
            os.pwrite(fd, bytes([was[0] ^ 0x10]), place)
            with pytest.raises(Corrupt) as caught:
                zstd.verify_packed(fd, frames)
            os.pwrite(fd, was, place)

            number = max(n for n, offset in enumerate(offsets[:-1]) if offset <= place)
            assert caught.value.frame == (number if number < len(frames.sizes) else None)
        zstd.verify_packed(fd, frames)

    @pytest.mark.parametrize("change", [-1, 1])
    def test_a_file_of_another_size_is_found(self, packed, change):
        fd, frames = packed(content_of(1000))
        os.ftruncate(fd, frames.size + change)

        with pytest.raises(Corrupt, match="were written"):
            zstd.verify_packed(fd, frames)


def with_memory_for(size, frame):
    """Unpack a frame, without its magic, where so much memory is left; give the error's name."""
    code = (
        "import resource, sys\n"
        "from kvstate import zstd\n"
        "data = sys.stdin.buffer.read()\n"
        "zstd._library()\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        f"resource.setrlimit(resource.RLIMIT_AS, (used + {size},) * 2)\n"
        "try: zstd.unpack_frame(data, 1 << 20)\n"
        "except Exception as error: print(type(error).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=b"\x28\xb5\x2f\xfd" + frame,
        capture_output=True,
        check=True,
    )
    return done.stdout.decode().strip()


class TestAFrame:
    content = content_of(100_000)

    @pytest.fixture
    def frame(self, packed):
        fd, frames = packed(self.content)
        return os.pread(fd, frames.sizes[0], 0)

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda frame: b"", id="nothing"),
            pytest.param(lambda frame: frame[:4], id="a magic number"),
            pytest.param(lambda frame: frame[:-1], id="an end that is missing"),
            pytest.param(lambda frame: frame + b"\0", id="a byte that follows"),
            pytest.param(lambda frame: frame + frame, id="a second frame"),
            pytest.param(lambda frame: b"\x50\x2a\x4d\x18\0\0\0\0" + frame, id="a skippable one"),
            pytest.param(lambda frame: frame[1:], id="a byte that is missing"),
            pytest.param(lambda frame: bytes(100), id="zeros"),
        ],
    )
    def test_it_is_refused_when_it_is_something_else(self, frame, change):
        with pytest.raises(Corrupt, match="frame 7: ") as caught:
            zstd.unpack_frame(change(frame), len(self.content), 7)

        assert caught.value.frame == 7

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            (-1, "more than 99999 "),
            (-100_000, "more than 0 "),
            (1, "not 100001"),
            (1 << 40, "not "),
        ],
    )
    def test_it_is_refused_when_it_holds_another_size(self, frame, change, why):
        with pytest.raises(Corrupt, match=why):
            zstd.unpack_frame(frame, len(self.content) + change)

    def test_a_flipped_bit_gives_no_wrong_byte(self, frame):
        source = random.Random(1)

        for _ in range(300):
            changed = bytearray(frame)
            changed[source.randrange(len(frame))] ^= 1 << source.randrange(8)
            try:
                assert zstd.unpack_frame(changed, len(self.content)) == self.content
            except Corrupt as error:
                assert str(error)  # noqa: PT017  (either way is right)

    @given(st.binary(max_size=200), st.integers(0, 1 << 20))
    def test_bytes_of_any_kind_are_refused(self, data, size):
        with pytest.raises(Corrupt):
            zstd.unpack_frame(b"\x28\xb5\x2f\xfd" + data[:2], size + 1)
        with pytest.raises(Corrupt):
            zstd.unpack_frame(data, size + 1)

    @pytest.mark.parametrize(
        "frame",
        [
            # 64 Ki blocks of 128 KiB, each one byte repeated: 8 GiB in 256 KiB.
            pytest.param(b"\x00\x38" + b"\x02\x00\x10x" * 65_536, id="more than was asked for"),
            pytest.param(b"\x00\x88" + b"\x02\x00\x10x", id="a window of 128 MiB"),
            pytest.param(b"\x00\xa8" + b"\x02\x00\x10x", id="a window of 2 GiB"),
            pytest.param(b"\xc0\x38" + b"\xff" * 7 + b"\x0f" + b"\x02\x00\x10x", id="a lie"),
        ],
    )
    def test_a_hostile_one_takes_little_memory(self, frame):
        assert with_memory_for(24 << 20, frame).startswith("Corrupt")

    def test_where_memory_is_short_it_is_not_the_frame_that_is_to_blame(self):
        assert with_memory_for(4 << 20, b"\x00\x68" + b"\x02\x00\x10x") == "MemoryError"


class TestAForeignFile:
    def test_what_another_writer_of_the_format_wrote_is_read(self, file_of):
        content = content_of(700_000)
        written = io.BytesIO()
        with pyzstd.SeekableZstdFile(written, "w", max_frame_content_size=300_000) as file:
            file.write(content)
        fd = file_of(written.getvalue())

        table = zstd.read_table(fd)

        assert [*table.contents] == [300_000, 300_000, 100_000]
        assert unpacked(fd, table.sizes, table.contents) == content

    @given(st.binary(max_size=400))
    def test_any_other_file_is_refused(self, data):
        fd = os.memfd_create("any")
        os.write(fd, data)

        try:
            with pytest.raises(Corrupt):
                zstd.read_table(fd)
        finally:
            os.close(fd)

    @pytest.mark.parametrize(
        ("sizes", "count", "descriptor", "why"),
        [
            ([(50, 100)], 2, 0, "does not fit|begin"),
            ([(50, 100)], 1 << 31, 0, "does not fit"),
            ([(50, 100)], 1, 0x80, "begin"),
            ([(50, 100)], 1, 0x04, "does not end"),
            ([(49, 100)], 1, 0, "have 49 bytes, not 50"),
            ([(0xFFFFFFFF, 100)], 1, 0, "not 50"),
            ([(50, 0xFFFFFFFF)], 1, 0, "cannot hold"),
            ([(50, (50 << 15) + 1)], 1, 0, "cannot hold"),
            ([(45, 100), (5, 100)], 2, 0, "cannot hold"),
        ],
    )
    def test_a_table_that_does_not_fit_its_file_is_refused(
        self, file_of, sizes, count, descriptor, why
    ):
        entries = b"".join(struct.pack("<II", *each) for each in sizes)
        head = struct.pack("<II", 0x184D2A5E, len(entries) + 9)
        foot = struct.pack("<IBI", count, descriptor, 0x8F92EAB1)

        with pytest.raises(Corrupt, match=why):
            zstd.read_table(file_of(bytes(50) + head + entries + foot))


class TestRecords:
    @pytest.mark.parametrize("count", [0, 1, 4095, 4096, 4097, 3 * 4096])
    def test_they_give_the_frames_back(self, count):
        frames = Frames(
            array("I", range(count)), array("Q", (n << 40 for n in range(count))), 17, 1 << 63
        )

        records = frames.to_records()

        assert Frames.from_records(records) == frames
        assert len(records) == zstd.record_count(count * FRAME_BYTES)
        assert max(map(len, records)) <= 4096 * 12 + 16

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda records: [], id="none"),
            pytest.param(lambda records: records[:1], id="one is missing"),
            pytest.param(lambda records: [records[0][:-1], records[1]], id="one is shorter"),
            pytest.param(lambda records: [records[0] + b"x", records[1]], id="one is longer"),
        ],
    )
    def test_some_that_are_not_whole_are_refused(self, change):
        frames = Frames(array("I", range(5000)), array("Q", range(5000)), 17, 1)

        with pytest.raises(Corrupt):
            Frames.from_records(change(frames.to_records()))


def test_nothing_of_it_is_loaded_before_it_is_used():
    code = (
        "import sys, kvstate.zstd; before = set(sys.modules); kvstate.zstd._library();"
        "print(*(set(sys.modules) - before))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert {"backports.zstd", "compression.zstd"} & {*done.stdout.split()}
