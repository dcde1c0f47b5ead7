from __future__ import annotations

import os

import pytest

from kvstate.places import Place, start_writing
from kvstate.staging import Staging

MIB = 1 << 20


@pytest.fixture
def staging(tmp_path):
    place = Place(tmp_path / "hot", tier="hot")
    made = Staging(place, 64 * 1024)
    yield made
    made.discard()
    place.close()


@pytest.fixture
def started(monkeypatch):
    """What the kernel was advised of, as (offset, size)."""
    ranges = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _fd, *span: ranges.append(span[:2]))
    return ranges


def test_the_disk_begins_with_a_stream_long_before_its_end(staging, started):
    for number in range(17):
        staging.write(number * MIB, bytes([number]) * MIB)

    assert started == [(0, 8 * MIB), (8 * MIB, 8 * MIB)]


def test_the_disk_is_not_hurried_by_writes_here_and_there(staging, started):
    for number in reversed(range(20)):
        staging.write(number * 2 * MIB, b"x" * MIB)

    assert not started


def test_content_that_is_under_way_to_the_disk_can_be_written_again(staging):
    for number in range(9):
        staging.write(number * MIB, bytes([number]) * MIB)
    staging.write(3 * MIB, b"again" * 1000)

    content = b"".join(bytes([number]) * MIB for number in range(9))
    expected = content[: 3 * MIB] + b"again" * 1000 + content[3 * MIB + 5000 :]
    assert staging.read(0, 9 * MIB) == expected
    assert staging.seal().size == 9 * MIB


def test_advice_that_a_file_cannot_take_is_kept_back():
    source, target = os.pipe()
    try:
        start_writing(target, 0, MIB)
    finally:
        os.close(source)
        os.close(target)


def test_what_was_in_a_file_and_is_empty_now_needs_no_file(staging):
    staging.write(0, b"x" * MIB)
    staging.truncate(0)

    assert staging.seal().inline == b""
    assert staging.seal().size == 0
