"""Blobs' records: what content there is, who refers to it, where it lies, whether it is damaged.

A blob's record (key ``B``) is the array of `Blob`. Small content lies in a record of its own
(``C``); larger content in a file of the tier ``place``, plain or packed (`kvstate.zstd`), with
xxh3-64 checksums of the 64 KiB blocks of the content in records of `CHUNK_BLOCKS` (``Q``) and, if
it is packed, its frames (``F``). ``references`` counts the users per tier: artifacts in that tier;
values of keys and journal entries count as hot; users of small content are counted together, in
the first. A blob lies in the hottest tier that has a user; one that does not, or that is plain in a
tier that packs, is noted (``P``) and moved by the next lifecycle run.

A file that nobody refers to is noted (``G``) in the transaction that dropped the last reference,
and removed after it. ``O`` says that a blob is damaged: it is not read then.
"""

from __future__ import annotations

from array import array
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from kvstate.codec import decode, encode, encode_plain, seal, unseal
from kvstate.errors import Damaged, StateError
from kvstate.keyspace import (
    blob_content_key,
    blob_key,
    checksums_key,
    digest_key,
    frames_key,
    garbage_key,
    misplaced_key,
    quarantine_key,
)
from kvstate.policy import TIERS
from kvstate.records import open_envelope, seal_envelope
from kvstate.staging import BLOCK_BYTES, file_name
from kvstate.zstd import Corrupt, Frames, record_count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvstate.clock import Clock
    from kvstate.engine import Engine, Reader, Transaction
    from kvstate.journal import Change
    from kvstate.places import Place

__all__ = ["FILE", "INLINE", "PACKED", "TIERS", "Blob", "BlobRecords", "Quarantined"]

INLINE: Final = 0
FILE: Final = 1
PACKED: Final = 2
CHUNK_BLOCKS: Final = 4096
_PAGE: Final = 256


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
        """Give the record with these counts changed; small content has but one, in the first."""
        if self.form == INLINE:
            count = self.references[0] + sum(changes.values())
            return self._replace(references=(count, *self.references[1:]))
        counts = tuple(n + changes.get(tier, 0) for tier, n in enumerate(self.references))
        return self._replace(references=counts)


class Quarantined(NamedTuple):
    """A damaged blob: since when (ns since 1970), and what is wrong with it."""

    blob: bytes
    at_ns: int
    why: str


class BlobRecords:
    """The records of a store's blobs."""

    def __init__(self, engine: Engine, places: tuple[Place, ...], clock: Clock) -> None:
        self._engine = engine
        self.places = places
        self._clock = clock

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

    def records(self, after: bytes, limit: int = _PAGE) -> list[bytes]:
        """Give one page of the blobs that there are, in the order of their identities."""
        start = blob_key(after) + b"\0" if after else b"B"
        return [key[1:] for key, _ in self._engine.scan(start, b"C", limit=limit)]

    def form_in(self, tier: int) -> int:
        """Give the form that a file of a tier should have."""
        return FILE if self.places[tier].compression_level is None else PACKED

    def misplaced(self, record: Blob) -> bool:
        """Say whether a blob's file should lie elsewhere, or in another form."""
        if record.form == INLINE:
            return False
        return record.wanted() != record.place or (
            record.form == FILE and self.form_in(record.place) == PACKED
        )

    def write(self, change: Change, blob: bytes, record: Blob) -> None:
        """Write a blob's record, and the note whether it is misplaced."""
        change.seal(blob_key(blob), encode_plain([*record[:5], *record.references]))
        if record.form == INLINE:
            return
        if self.misplaced(record):
            change.tx.put(misplaced_key(blob), b"")
        else:
            change.tx.delete(misplaced_key(blob))

    def shift(self, change: Change, blob: bytes, changes: dict[int, int]) -> None:
        """Change the reference counts per tier; the last reference takes the content with it."""
        if not blob:
            return
        before = self.record(change.tx, blob)
        if before is None:
            raise Damaged(f"blob {blob.hex()}", "a record refers to it, but it is not there")
        record = before.shifted(changes)
        if record == before:
            return
        if min(record.references) < 0:
            raise Damaged(f"blob {blob.hex()}", "it has fewer references than users")
        if any(record.references):
            self.write(change, blob, record)
        else:
            self._drop(change, blob, record)

    def release(self, change: Change, blob: bytes) -> None:
        """Drop a key's or the journal's reference."""
        self.shift(change, blob, {0: -1})

    def _drop(self, change: Change, blob: bytes, record: Blob) -> None:
        tx = change.tx
        tx.delete(blob_key(blob))
        tx.delete(digest_key(record.digest, blob))
        tx.delete(quarantine_key(blob))
        if record.form == INLINE:
            tx.delete(blob_content_key(blob))
            return
        tx.delete(misplaced_key(blob))
        for chunk in range(_chunks(record.size)):
            tx.delete(checksums_key(blob, chunk))
        self.drop_file(change, blob, record)

    def drop_file(self, change: Change, blob: bytes, record: Blob) -> None:
        """Let a blob's file go: nothing refers to it any more."""
        if record.form == PACKED:
            for chunk in range(record_count(record.size)):
                change.tx.delete(frames_key(blob, chunk))
        name = bytes.fromhex(file_name(blob, record.generation))
        change.tx.put(garbage_key(record.place, name), b"")

    # Checksums

    def write_sums(self, change: Change, blob: bytes, sums: array[int]) -> None:
        """Write the checksums of a content's blocks."""
        for chunk, first in enumerate(range(0, len(sums), CHUNK_BLOCKS)):
            key = checksums_key(blob, chunk)
            change.tx.put(key, seal(key, sums[first : first + CHUNK_BLOCKS].tobytes()))

    def sums(self, reader: Reader, blob: bytes, size: int) -> array[int]:
        """Give the checksums of a content's blocks."""
        sums = array("Q")
        for chunk in range(_chunks(size)):
            key = checksums_key(blob, chunk)
            data = reader.get(key)
            if data is None:
                raise Damaged(f"blob {blob.hex()}", "its checksums are not there")
            sums.frombytes(unseal(key, data))
        return sums

    def write_frames(self, change: Change, blob: bytes, frames: Frames) -> None:
        """Write what a packed file consists of."""
        for chunk, part in enumerate(frames.to_records()):
            key = frames_key(blob, chunk)
            change.tx.put(key, seal(key, part))

    def frames(self, reader: Reader, blob: bytes, size: int) -> Frames:
        """Give what a packed file consists of."""
        parts = []
        for chunk in range(record_count(size)):
            key = frames_key(blob, chunk)
            data = reader.get(key)
            if data is None:
                raise Damaged(f"blob {blob.hex()}", "the record of its frames is not there")
            parts.append(unseal(key, data))
        try:
            return Frames.from_records(parts)
        except Corrupt as error:
            raise Damaged(f"blob {blob.hex()}", str(error)) from None

    # Quarantine

    def quarantine(self, blob: bytes, why: str) -> None:
        """Note that a blob is damaged; who finds out must not fail for the want of the note."""
        key = quarantine_key(blob)
        at_ns = self._clock.now_ns()
        record = seal_envelope(
            key, encode(why[:500]), revision=0, created_ns=at_ns, updated_ns=at_ns
        )

        def note(tx: Transaction) -> None:
            if tx.get(blob_key(blob)) is not None and tx.get(key) is None:
                tx.put(key, record)

        with suppress(StateError):
            self._engine.txn(note)

    def acquit(self, blob: bytes) -> None:
        """Take the note back: the blob is whole."""
        key = quarantine_key(blob)
        if self._engine.get(key) is not None:
            self._engine.txn(lambda tx: tx.delete(key))

    def quarantined(self, limit: int = 1000) -> Iterator[Quarantined]:
        """Give the damaged blobs."""
        for key, data in self._engine.scan(b"O", b"P", limit=limit):
            envelope = open_envelope(key, data)
            yield Quarantined(key[1:], envelope.updated_ns, decode(envelope.payload))


def _chunks(size: int) -> int:
    blocks = -(-size // BLOCK_BYTES)
    return -(-blocks // CHUNK_BLOCKS)
