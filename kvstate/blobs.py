"""Blobs: content, stored once, counted, checked, in the tier that its users want.

A blob's record (key ``B``) is the array of `Blob`. Small content lies in a record of its own
(``C``); larger content in a file of the tier ``place``, with xxh3-64 checksums of its 64 KiB blocks
in records of `CHUNK_BLOCKS` (``K``). ``references`` counts the users per tier: artifacts in that
tier; values of keys and journal entries count as hot. A blob lies in the hottest tier that has a
user; one that does not is noted (``P``) and moved by the next lifecycle run.

Equal content is found by digest and believed only after its bytes were compared. A file that nobody
refers to is noted (``G``) in the transaction that dropped the last reference, and removed after it.
"""

from __future__ import annotations

import os
from array import array
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from kvstate.blob_reader import BlobReader
from kvstate.codec import Hasher, decode, digest, encode, seal, unseal
from kvstate.errors import Damaged, NotFound, StateError, Unavailable
from kvstate.keyspace import (
    after_prefix,
    blob_content_key,
    blob_key,
    checksums_key,
    digest_key,
    digest_prefix,
    garbage_key,
    misplaced_key,
)
from kvstate.places import raise_os_error
from kvstate.records import open_envelope
from kvstate.staging import BLOCK_BYTES, Content, Staging, file_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kvstate.engine import Engine, Reader
    from kvstate.journal import Change, Journal
    from kvstate.places import Place

__all__ = ["FILE", "INLINE", "TIERS", "Blob", "Blobs", "Copy"]

T = TypeVar("T")

TIERS = ("hot", "warm", "cold")
INLINE = 0
FILE = 1
CHUNK_BLOCKS = 4096
_GENERATIONS = 1 << 16
_SWEEP_AT = 32
_SWEEP_MAX = 1024
_TRIES = 100


class Blob(NamedTuple):
    """A blob's record."""

    form: int
    size: int
    digest: bytes
    place: int
    generation: int
    references: tuple[int, ...]

    def wanted(self) -> int:
        """Give the hottest tier that has a user."""
        return next((tier for tier, count in enumerate(self.references) if count), self.place)

    def shifted(self, changes: dict[int, int]) -> Blob:
        """Give the record with these counts changed."""
        counts = tuple(n + changes.get(tier, 0) for tier, n in enumerate(self.references))
        return self._replace(references=counts)


class Copy(NamedTuple):
    """A blob's file, copied to another tier, verified and published; not yet in the records."""

    tier: int
    generation: int
    name: str
    fd: int


class _Vanished(Exception):
    """The equal blob that was found went away before the commit."""


class Blobs:
    """The blobs of a store."""

    def __init__(self, engine: Engine, places: tuple[Place, ...], inline_bytes_max: int) -> None:
        self._engine = engine
        self.places = places
        self._inline_max = inline_bytes_max

    # Content on its way in

    def staging(self, tier: int) -> Staging:
        """Give a new staging for content of this tier."""
        return Staging(self.places[tier], self._inline_max)

    def commit(
        self,
        journal: Journal,
        staging: Staging,
        tier: int,
        function: Callable[[Change, Content, bytes], T],
        *,
        references: int = 1,
    ) -> T:
        """Store the staged content, and run the function with its blob, in one transaction.

        The function gets the change, the content's facts and the blob's identity (empty for empty
        content). The staging stays usable.
        """
        return self.commit_many(
            journal,
            [staging],
            tier,
            lambda change, stored: function(change, *stored[0]),
            references=references,
        )

    def commit_many(
        self,
        journal: Journal,
        stagings: Sequence[Staging],
        tier: int,
        function: Callable[[Change, list[tuple[Content, bytes]]], T],
        *,
        references: int = 1,
    ) -> T:
        """Store several contents, and run the function with their blobs, in one transaction."""
        contents = [staging.seal() for staging in stagings]
        equals: list[bytes | None] = [
            self._equal(content, staging) if content.inline is None else None
            for content, staging in zip(contents, stagings, strict=True)
        ]

        def run(change: Change) -> T:
            stored = [
                (content, self._adopt(change, content, tier, equal, references))
                for content, equal in zip(contents, equals, strict=True)
            ]
            return function(change, stored)

        published: list[Staging] = []
        try:
            while True:
                for content, equal, staging in zip(contents, equals, stagings, strict=True):
                    if content.inline is None and equal is None and staging not in published:
                        published.append(staging)
                        staging.publish()
                try:
                    result = journal.commit(run)
                    break
                except _Vanished:
                    equals = [None] * len(contents)
        except Unavailable:
            raise  # what the disk holds is unknown: the note in the staging folder decides later
        except Exception:
            for staging in published:
                staging.unpublish()
            raise
        for staging in stagings:
            staging.settle()
        self.sweep()
        return result

    def _equal(self, content: Content, staging: Staging) -> bytes | None:
        prefix = digest_prefix(content.digest)
        for key, _ in self._engine.scan(prefix, after_prefix(prefix), limit=64):
            blob = key[len(prefix) :]
            try:
                with self.reader(blob) as reader:
                    if reader.size == content.size and _same(reader, staging):
                        return blob
            except StateError:
                continue  # gone meanwhile, or damaged: the new content does not depend on it
        return None

    def _adopt(
        self, change: Change, content: Content, tier: int, equal: bytes | None, references: int
    ) -> bytes:
        if not content.size:
            return b""
        if content.inline is not None:
            equal = self._equal_inline(change, content)
        elif equal is not None and change.tx.get(blob_key(equal)) is None:
            raise _Vanished
        if equal is not None:
            self.shift(change, equal, {tier: references})
            return equal
        blob = content.blob
        counts = tuple(references if t == tier else 0 for t in range(len(TIERS)))
        form = FILE if content.inline is None else INLINE
        self._write(change, blob, Blob(form, content.size, content.digest, tier, 0, counts))
        change.tx.put(digest_key(content.digest, blob), b"")
        if content.inline is not None:
            key = blob_content_key(blob)
            change.tx.put(key, seal(key, content.inline))
        for chunk, first in enumerate(range(0, len(content.checksums), CHUNK_BLOCKS)):
            key = checksums_key(blob, chunk)
            part = array("Q", content.checksums[first : first + CHUNK_BLOCKS])
            change.tx.put(key, seal(key, part.tobytes()))
        return blob

    def _equal_inline(self, change: Change, content: Content) -> bytes | None:
        prefix = digest_prefix(content.digest)
        for found, _ in change.tx.scan(prefix, after_prefix(prefix)):
            blob = found[len(prefix) :]
            key = blob_content_key(blob)
            data = change.tx.get(key)
            if (
                data is not None
                and data[8:] == content.inline
                and digest(data[8:]) == content.digest
            ):
                return blob
        return None

    # References

    def record(self, reader: Reader | Engine, blob: bytes) -> Blob | None:
        """Give a blob's record."""
        key = blob_key(blob)
        data = reader.get(key)
        if data is None:
            return None
        form, size, content_digest, place, generation, *counts = decode(
            open_envelope(key, data).payload
        )
        return Blob(form, size, content_digest, place, generation, tuple(counts))

    def _write(self, change: Change, blob: bytes, record: Blob) -> None:
        change.seal(blob_key(blob), encode([*record[:5], *record.references]))
        if record.form == FILE and record.wanted() != record.place:
            change.tx.put(misplaced_key(blob), b"")
        else:
            change.tx.delete(misplaced_key(blob))

    def shift(self, change: Change, blob: bytes, changes: dict[int, int]) -> None:
        """Change the reference counts per tier; the last reference takes the content with it."""
        if not blob:
            return
        record = self.record(change.tx, blob)
        if record is None:
            raise Damaged(f"blob {blob.hex()}", "a record refers to it, but it is not there")
        record = record.shifted(changes)
        if min(record.references) < 0:
            raise Damaged(f"blob {blob.hex()}", "it has fewer references than users")
        if any(record.references):
            self._write(change, blob, record)
        else:
            self._drop(change, blob, record)

    def release(self, change: Change, blob: bytes) -> None:
        """Drop a key's or the journal's reference."""
        self.shift(change, blob, {0: -1})

    def _drop(self, change: Change, blob: bytes, record: Blob) -> None:
        tx = change.tx
        tx.delete(blob_key(blob))
        tx.delete(digest_key(record.digest, blob))
        if record.form == INLINE:
            tx.delete(blob_content_key(blob))
            return
        tx.delete(misplaced_key(blob))
        for chunk in range(_chunks(record.size)):
            tx.delete(checksums_key(blob, chunk))
        tx.put(garbage_key(record.place, bytes.fromhex(file_name(blob, record.generation))), b"")

    # Reading

    def reader(self, blob: bytes) -> BlobReader:
        """Open a blob; `NotFound` when there is none, `Damaged` when its file is gone."""
        if not blob:
            return BlobReader(0, b"", -1, array("Q"), "empty content")
        for last_try in range(_TRIES):
            record, content, sums = self._engine.read(lambda found: self._load(found, blob))
            if record.form == INLINE:
                return BlobReader(record.size, content, -1, sums, f"blob {blob.hex()}")
            name = file_name(blob, record.generation)
            place = self.places[record.place]
            try:
                return BlobReader(record.size, None, place.open(name), sums, place.name_of(name))
            except NotFound:
                newer = self.record(self._engine, blob)
                if newer is None:
                    raise NotFound("blob", blob.hex()) from None
                if newer[3:5] == record[3:5] and last_try > 1:
                    raise Damaged(place.name_of(name), "the file is not there") from None
        raise Unavailable(f"blob {blob.hex()}", "it moves faster than it can be opened", retry=True)

    def _load(self, reader: Reader, blob: bytes) -> tuple[Blob, bytes | None, array[int]]:
        record = self.record(reader, blob)
        if record is None:
            raise NotFound("blob", blob.hex())
        sums = array("Q")
        if record.form == INLINE:
            key = blob_content_key(blob)
            data = reader.get(key)
            if data is None:
                raise Damaged(f"blob {blob.hex()}", "its content is not there")
            return record, unseal(key, data), sums
        for chunk in range(_chunks(record.size)):
            key = checksums_key(blob, chunk)
            data = reader.get(key)
            if data is None:
                raise Damaged(f"blob {blob.hex()}", "its checksums are not there")
            sums.frombytes(unseal(key, data))
        return record, None, sums

    def load(self, blob: bytes) -> bytes:
        """Give all bytes of a blob."""
        with self.reader(blob) as reader:
            return reader.pread(0, reader.size)

    def verify(self, blob: bytes) -> None:
        """Read all of a blob; `Damaged` when anything about it is wrong."""
        record = self.record(self._engine, blob)
        with self.reader(blob) as reader:
            offset, step = 0, 16 * BLOCK_BYTES
            from_start = Hasher()
            while offset < reader.size:
                from_start.update(reader.pread(offset, step))
                offset += step
        if record is not None and from_start.digest() != record.digest:
            raise Damaged(f"blob {blob.hex()}", "its content has another digest")

    # Moving between tiers

    def copy(
        self, blob: bytes, tier: int, progress: Callable[[int, int], None] | None = None
    ) -> Copy | None:
        """Copy a blob's file to another tier, verify it and publish it; None for small content.

        ``progress`` gets the bytes done and the total: each is copied, and read again.
        """
        record = self.record(self._engine, blob)
        if record is None or record.form == INLINE or record.place == tier:
            return None
        generation = (record.generation + 1) % _GENERATIONS
        name = file_name(blob, generation)
        place = self.places[tier]
        with self.reader(blob) as reader:
            fd = place.create(name)
            copy = Copy(tier, generation, name, fd)
            try:
                done = 0

                def told(count: int) -> None:
                    nonlocal done
                    done += count
                    if progress is not None:
                        progress(done, 2 * reader.size)

                reader.copy_to(fd, None if progress is None else told)
                with reader.twin(os.dup(fd), place.name_of(name)) as copied:
                    for offset in range(0, copied.size, 16 * BLOCK_BYTES):
                        told(len(copied.pread(offset, 16 * BLOCK_BYTES)))
                place.publish(name, fd)
            except OSError as error:
                self.drop_copy(copy)
                raise_os_error(error, place.name_of(name))
            except BaseException:
                self.drop_copy(copy)
                raise
        return copy

    def drop_copy(self, copy: Copy) -> None:
        """Take a copy back that no record names."""
        place = self.places[copy.tier]
        place.remove(copy.name)
        place.settle(copy.name)
        os.close(copy.fd)

    def keep_copy(self, copy: Copy) -> None:
        """Drop a committed copy's note."""
        self.places[copy.tier].settle(copy.name)
        os.close(copy.fd)
        self.sweep()

    def switch(self, change: Change, blob: bytes, copy: Copy) -> bool:
        """Let the record name the copy, if it still wants it; say whether it did."""
        record = self.record(change.tx, blob)
        if record is None or record.wanted() != copy.tier or record.place == copy.tier:
            return False
        if (record.generation + 1) % _GENERATIONS != copy.generation:
            return False
        old = bytes.fromhex(file_name(blob, record.generation))
        change.tx.put(garbage_key(record.place, old), b"")
        self._write(change, blob, record._replace(place=copy.tier, generation=copy.generation))
        return True

    def misplaced(self) -> Iterator[bytes]:
        """Give the blobs that lie in another tier than their users want."""
        for key, _ in self._engine.scan(b"P", b"Q", limit=_SWEEP_MAX):
            yield key[1:]

    def settle(self, journal: Journal, blob: bytes) -> bool:
        """Move a misplaced blob to where its users want it; say whether anything was moved."""
        record = self.record(self._engine, blob)
        if record is None:
            return False
        copy = self.copy(blob, record.wanted())
        if copy is None:
            return False
        return self.with_copy(journal, copy, lambda change: self.switch(change, blob, copy))

    def with_copy(self, journal: Journal, copy: Copy, function: Callable[[Change], bool]) -> bool:
        """Commit a function that says whether it switched to the copy; keep or drop the copy."""
        try:
            switched = journal.commit(function)
        except Unavailable:
            os.close(copy.fd)  # unknown on disk: the note decides at the next start
            raise
        except Exception:
            self.drop_copy(copy)
            raise
        if switched:
            self.keep_copy(copy)
        else:
            self.drop_copy(copy)
        return switched

    # Sweeping

    def sweep(self, *, all_notes: bool = False) -> int:
        """Remove the files that nobody refers to; say how many. Notes go in bunches."""
        page = self._engine.scan(b"G", b"H", limit=_SWEEP_MAX)
        removed = 0
        gone = []
        for key, _ in page:
            with suppress(StateError):  # a tier that does not answer keeps its notes
                removed += self.places[key[1]].remove(key[2:].hex())
                gone.append(key)
        if len(gone) >= _SWEEP_AT or (gone and all_notes):
            self._drop_notes(gone)
        return removed

    def _drop_notes(self, notes: list[bytes]) -> None:
        """Drop the notes of files that are gone for good.

        A commit of the records says nothing about the file system's own: after a power cut the
        note could be gone and the file there again, and nobody would ever remove it.
        """
        synced: list[bytes] = []
        for tier, place in enumerate(self.places):
            keys = [key for key in notes if key[1] == tier]
            with suppress(StateError):
                place.sync_removed(key[2:].hex() for key in keys)
                synced += keys
        if synced:
            self._engine.txn(lambda tx: [tx.delete(key) for key in synced])

    def recover(self) -> int:
        """Finish or undo what dead writers left in the staging folders; say how many files."""
        count = 0
        for tier, place in enumerate(self.places):
            for name, fd in place.leftovers():
                try:
                    if not self.names(tier, name):
                        place.remove(name)
                    place.settle(name)
                    count += 1
                finally:
                    os.close(fd)
        return count

    def names(self, tier: int, name: str) -> bool:
        """Say whether a record names this file."""
        try:
            blob, generation = bytes.fromhex(name[:32]), int(name[32:], 16)
        except ValueError:
            return False
        record = self.record(self._engine, blob)
        return record is not None and (record.form, record.place, record.generation) == (
            FILE,
            tier,
            generation,
        )


def _chunks(size: int) -> int:
    blocks = -(-size // BLOCK_BYTES)
    return -(-blocks // CHUNK_BLOCKS)


def _same(reader: BlobReader, staging: Staging) -> bool:
    step = 16 * BLOCK_BYTES
    return all(
        reader.pread(offset, step) == staging.read(offset, step)
        for offset in range(0, reader.size, step)
    )
