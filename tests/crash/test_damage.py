"""Damaged content: found by reads, verification and scrub; kept in quarantine; healed, or not."""

from __future__ import annotations

import os
import random
from typing import NamedTuple

import pytest

from kvstate.errors import Damaged
from kvstate.keyspace import blob_content_key, checksums_key
from kvstate.staging import BLOCK_BYTES, file_name
from kvstate.store import open_store

CONTENT = random.Random(5).randbytes(130 * 1024)
REPETITIVE = b"the same line again and again\n" * 6000 + random.Random(7).randbytes(900)
SMALL = random.Random(6).randbytes(3000)
OTHER = bytes(reversed(CONTENT))
NAME = "t/w/a"


class Stored(NamedTuple):
    """A store with one artifact in a file of its own."""

    store: object
    blob: bytes
    file: object
    good: bytes
    content: bytes


def _files(store, tier="*"):
    return [f for f in store.path.glob(f"tiers/{tier}/??/*") if f.is_file()]


def _blob(store, name=NAME):
    return store.artifacts._file(name).blob


def _stored(store, content):
    (file,) = _files(store)
    return Stored(store, _blob(store), file, file.read_bytes(), content)


@pytest.fixture
def in_memory(tmp_path):
    """Open a store whose records are in memory: notes of damage come by the ten thousand here."""
    with open_store(tmp_path / "store", engine="memory") as store:
        yield store


@pytest.fixture
def plain(in_memory):
    in_memory.artifacts.put(NAME, CONTENT)
    return _stored(in_memory, CONTENT)


@pytest.fixture
def packed(in_memory):
    in_memory.artifacts.put(NAME, REPETITIVE)
    in_memory.artifacts.move(NAME, "cold")
    found = _stored(in_memory, REPETITIVE)
    assert len(found.good) < 1500
    return found


def _missed(there):
    """Say who misses the damage that is there, and whether a wrong byte was given."""
    missed = []
    store, blob = there.store, there.blob
    store.blobs.acquit(blob)
    read = True
    try:
        if store.artifacts.get(NAME) != there.content:
            missed.append("a wrong byte")
    except Damaged:
        read = False
    for what, find in (
        ("scrub", lambda: store.blobs.scrub(blob)),
        ("verify", lambda: store.artifacts.verify(NAME)),
    ):
        store.blobs.acquit(blob)
        try:
            find()
        except Damaged:
            continue
        missed.append(what)
    return missed, read


def _flips(there, bits):
    """Flip each of these bits of the file; give what was missed, and which flips were read over."""
    missed, read_over = [], []
    fd = os.open(there.file, os.O_RDWR)
    for bit in bits:
        byte = bit // 8
        os.pwrite(fd, bytes([there.good[byte] ^ 1 << bit % 8]), byte)
        found, read = _missed(there)
        missed += [(bit, what) for what in found]
        if read:
            read_over.append(bit)
        os.pwrite(fd, there.good[byte : byte + 1], byte)
    os.close(fd)
    there.store.artifacts.verify(NAME)  # it is whole again
    return missed, read_over


def test_every_bit_of_chosen_bytes_and_some_of_all_of_a_plain_file_count(plain):
    blocks = range(0, len(CONTENT), BLOCK_BYTES)
    ends = [min(first + BLOCK_BYTES, len(CONTENT)) - 1 for first in blocks]
    chosen = [*blocks, *(first + 1000 for first in blocks), *ends]
    bits = [8 * byte + bit for byte in chosen for bit in range(8)]
    bits += random.Random(1).sample(range(8 * len(CONTENT)), 300)

    assert _flips(plain, bits) == ([], [])


def test_every_bit_of_a_packed_file_counts(packed):
    table = packed.store.blobs.frames(packed.store.engine, packed.blob, len(REPETITIVE)).table_size

    missed, read_over = _flips(packed, range(8 * len(packed.good)))

    assert missed == []
    assert len(read_over) > 0
    assert min(read_over) >= 8 * (len(packed.good) - table)


def _contents_that_differ(good, lengths):
    yield from (good[:length] for length in lengths)
    yield good + b"\0"
    yield good + good


@pytest.mark.parametrize("form", ["plain", "packed"])
def test_a_file_of_another_length_is_damaged(request, form):
    there = request.getfixturevalue(form)
    size = len(there.good)
    ends = [n * BLOCK_BYTES + d for n in (1, 2) for d in (-1, 0, 1)]
    lengths = range(size) if form == "packed" else [0, 1, 4095, 4096, *ends, size - 1]

    for data in _contents_that_differ(there.good, lengths):
        there.file.write_bytes(data)
        missed, _ = _missed(there)
        assert (len(data), missed) == (len(data), [])

    there.file.write_bytes(there.good)
    there.store.artifacts.verify(NAME)


@pytest.mark.parametrize("form", ["plain", "packed"])
def test_a_file_that_is_gone_is_damaged(request, form):
    there = request.getfixturevalue(form)
    there.file.unlink()

    assert _missed(there) == ([], False)


# Quarantine


@pytest.fixture
def opened(tmp_path):
    with open_store(tmp_path / "store") as store:
        yield store


def _flip_in_file(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 16
    file.write_bytes(data)


def _damage_file(store):
    (file,) = _files(store)
    good = file.read_bytes()
    _flip_in_file(file)
    return lambda: file.write_bytes(good)


def _damage_record(key_of, at):
    def damage(store):
        key = key_of(_blob(store))
        good = store.engine.get(key)
        bad = bytearray(good)
        bad[at] ^= 1
        store.engine.txn(lambda tx: tx.put(key, bytes(bad)))
        return lambda: store.engine.txn(lambda tx: tx.put(key, good))

    return damage


def _lose_record(key_of):
    def damage(store):
        key = key_of(_blob(store))
        good = store.engine.get(key)
        store.engine.txn(lambda tx: tx.delete(key))
        return lambda: store.engine.txn(lambda tx: tx.put(key, good))

    return damage


def _sums_key(blob):
    return checksums_key(blob, 0)


# What is stored, in which tier, and how it is damaged; each damage gives what takes it back.
DAMAGES = {
    "plain": (CONTENT, "hot", _damage_file),
    "packed": (CONTENT, "cold", _damage_file),
    "checksums": (CONTENT, "hot", _damage_record(_sums_key, -1)),
    "checksums lost": (CONTENT, "hot", _lose_record(_sums_key)),
    "inline": (SMALL, "hot", _damage_record(blob_content_key, -1)),
    "seal of inline": (SMALL, "hot", _damage_record(blob_content_key, 0)),
    "inline lost": (SMALL, "hot", _lose_record(blob_content_key)),
}


def _damaged(store, kind):
    """Store and damage; give the content, and what takes the damage back."""
    content, tier, damage = DAMAGES[kind]
    store.artifacts.put(NAME, content)
    if tier != "hot":
        store.artifacts.move(NAME, tier)
    return content, damage(store)


def _is_damaged(store, name=NAME):
    with pytest.raises(Damaged):
        store.artifacts.get(name)
    return True


@pytest.mark.parametrize("kind", DAMAGES)
def test_what_is_damaged_is_not_read_again_before_it_was_verified(opened, kind):
    content, take_back = _damaged(opened, kind)
    assert _is_damaged(opened)

    take_back()

    assert _is_damaged(opened)
    assert [problem.kind for problem in opened.check(verify=True).problems] == ["damaged"]
    opened.artifacts.verify(NAME)
    assert opened.artifacts.get(NAME) == content
    assert opened.check(verify=True).clean


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_check_names_what_is_damaged(opened, kind):
    _damaged(opened, kind)
    assert _is_damaged(opened)

    kinds = {problem.kind for problem in opened.check(verify=True).problems}

    assert "damaged" in kinds


@pytest.mark.parametrize("name", [NAME, "t/w/other", "another/tenant/a"])
@pytest.mark.parametrize("kind", DAMAGES)
def test_the_same_content_put_again_heals(opened, kind, name):
    content, _ = _damaged(opened, kind)
    assert _is_damaged(opened)

    opened.artifacts.put(name, content)

    assert opened.artifacts.get(name) == content
    assert opened.artifacts.get(NAME) == content
    assert opened.check(verify=True).clean


@pytest.mark.parametrize("kind", DAMAGES)
def test_content_that_is_put_is_readable_whatever_lay_there_damaged_and_unnoticed(opened, kind):
    content, _ = _damaged(opened, kind)

    opened.artifacts.put("t/w/other", content)

    assert opened.artifacts.get("t/w/other") == content


@pytest.mark.parametrize("kind", sorted(DAMAGES.keys() - {"seal of inline"}))
def test_other_content_of_the_same_size_heals_nothing(opened, kind):
    content, _ = _damaged(opened, kind)
    assert _is_damaged(opened)

    opened.artifacts.put("t/w/other", bytes(reversed(content)))

    assert opened.blobs.heal(opened._journal, _blob(opened)) is False
    assert _is_damaged(opened)


def _plant(store, tier, generation, content):
    """Put a file where a former generation of the blob may lie."""
    name = file_name(_blob(store), generation)
    folder = store.path / "tiers" / tier / name[30:32]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def _heal(store):
    return store.blobs.heal(store._journal, _blob(store))


@pytest.mark.parametrize("kind", ["plain", "packed"])
@pytest.mark.parametrize("tier", ["hot", "warm", "cold"])
def test_a_former_file_of_the_content_heals_it(opened, kind, tier):
    content, _ = _damaged(opened, kind)
    opened.artifacts.put("t/w/x", OTHER, tier="warm")  # each tier has been used
    opened.artifacts.put("t/w/y", OTHER[1:], tier="cold")
    opened.artifacts.put("t/w/z", OTHER[2:], tier="hot")
    assert _is_damaged(opened)
    former = _plant(opened, tier, 9, content)

    assert _heal(opened) is True

    former.unlink()
    assert opened.artifacts.get(NAME) == content
    assert opened.check(verify=True).clean


def test_a_former_file_that_is_not_the_same_heals_nothing(opened):
    content, _ = _damaged(opened, "plain")
    assert _is_damaged(opened)
    _flip_in_file(_plant(opened, "hot", 9, content))

    assert _heal(opened) is False

    assert _is_damaged(opened)


def test_an_artifact_that_is_overwritten_takes_its_damage_with_it(opened):
    _damaged(opened, "plain")
    assert _is_damaged(opened)

    opened.artifacts.put(NAME, OTHER)

    assert opened.artifacts.get(NAME) == OTHER
    assert opened.check(verify=True).clean
