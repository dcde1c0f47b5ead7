"""Blobs: content, stored once, counted, checked, in the tier that its users want.

Equal content is found by digest and believed only after its bytes were compared. How a blob's
records look is in `kvstate.blob_records`, how it is read in `kvstate.blob_reading`; here it comes
in, moves between tiers, is healed and is swept.
"""

from __future__ import annotations

import os
from array import array
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from kvstate.blob_reader import BlobReader, PackedReader
from kvstate.blob_reading import BlobReading
from kvstate.blob_records import FILE, INLINE, PACKED, TIERS, Blob
from kvstate.codec import digest, seal, unseal
from kvstate.errors import Damaged, Exists, StateError, Unavailable
from kvstate.faults import point
from kvstate.keyspace import (
    after_prefix,
    blob_content_key,
    blob_key,
    digest_key,
    digest_prefix,
    quarantine_key,
)
from kvstate.places import raise_os_error
from kvstate.staging import BLOCK_BYTES, Content, Staging, file_name
from kvstate.zstd import Corrupt, Frames, pack_verified

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kvstate.clock import Clock
    from kvstate.engine import Engine
    from kvstate.journal import Change, Journal
    from kvstate.places import Place

__all__ = ["FILE", "INLINE", "PACKED", "TIERS", "Blob", "Blobs", "Copy"]

T = TypeVar("T")

_GENERATIONS: Final = 1 << 16
_SWEEP_AT: Final = 32
_SWEEP_MAX: Final = 1024
_CLAIM_BYTES: Final = 16 << 20
_TURNS: Final = 8


class Copy(NamedTuple):
    """A blob's file, copied to a tier, verified and published; not yet in the records."""

    tier: int
    generation: int
    name: str
    fd: int
    form: int
    frames: Frames | None


class _Vanished(Exception):
    """The equal blob that was found went away before the commit."""


class Blobs(BlobReading):
    """The blobs of a store."""

    def __init__(
        self,
        engine: Engine,
        places: tuple[Place, ...],
        clock: Clock,
        inline_bytes_max: int,
        *,
        threads: int = 2,
    ) -> None:
        super().__init__(engine, places, clock)
        self._inline_max = inline_bytes_max
        self._threads = threads

    # Content on its way in

    def staging(self, tier: int, content: bytes = b"") -> Staging:
        """Give a new staging for content of this tier, with content to begin with."""
        return Staging(self.places[tier], self._inline_max, content)

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
        """Store several contents, and run the function with their blobs, in one transaction.

        ``tier`` is that of their users. A file lies where its staging is, whatever that is: what
        lies elsewhere than its users want is noted, and moved by the next lifecycle run.
        """
        self.places[0].free_floor_check()
        contents = [staging.seal() for staging in stagings]
        point("sealed")
        damaged: list[bytes] = []
        equals: list[bytes | None] = [
            self._equal(content, staging, damaged) if content.inline is None else None
            for content, staging in zip(contents, stagings, strict=True)
        ]
        _equal_among(contents, stagings, equals)
        places = [self.places.index(staging.place) for staging in stagings]

        def run(change: Change) -> T:
            stored = [
                (content, self._adopt(change, content, tier, place, equal, references, damaged))
                for content, place, equal in zip(contents, places, equals, strict=True)
            ]
            return function(change, stored)

        result = self._publish_and_commit(journal, stagings, contents, equals, run)
        for staging in stagings:
            staging.settle()
        point("settled")
        self.sweep()
        for blob in dict.fromkeys(damaged):
            self.quarantine(blob, "its checksum does not match")
            self.heal(journal, blob)
        return result

    def _publish_and_commit(
        self,
        journal: Journal,
        stagings: Sequence[Staging],
        contents: list[Content],
        equals: list[bytes | None],
        run: Callable[[Change], T],
    ) -> T:
        """Publish the files that are new, and commit; after a refusal take them back.

        What an earlier commit published is its blob's file, or gone by now: a new blob gets a copy.
        """
        published: list[Staging] = []
        try:
            while True:
                for at, (content, staging) in enumerate(zip(contents, stagings, strict=True)):
                    if content.inline is None and equals[at] is None and staging not in published:
                        staging.unshare()
                        contents[at] = content._replace(blob=staging.blob)
                        published.append(staging)
                        staging.publish()
                point("published")
                try:
                    return journal.commit(run)
                except _Vanished:
                    equals[:] = [None] * len(contents)
        except Unavailable:
            raise  # what the disk holds is unknown: the note in the staging folder decides later
        except Exception:
            for staging in published:
                with suppress(StateError):  # then its note in the staging folder tells of it
                    staging.unpublish()
            raise

    def _equal(self, content: Content, staging: Staging, damaged: list[bytes]) -> bytes | None:
        """Give a blob with this very content; take note of those that had it and are damaged."""
        prefix = digest_prefix(content.digest)
        for key, _ in self._engine.scan(prefix, after_prefix(prefix), limit=64):
            blob = key[len(prefix) :]
            try:
                with self.reader(blob) as reader:
                    if reader.size == content.size and _same(reader.pread, staging):
                        return blob
            except Damaged:
                damaged.append(blob)
            except StateError:
                continue  # gone meanwhile: the new content does not depend on it
        return None

    def _adopt(
        self,
        change: Change,
        content: Content,
        tier: int,
        place: int,
        equal: bytes | None,
        references: int,
        damaged: list[bytes],
    ) -> bytes:
        if not content.size:
            return b""
        if content.inline is not None:
            equal = self._equal_inline(change, content, damaged)
        elif equal is not None and change.tx.get(blob_key(equal)) is None:
            raise _Vanished
        if equal is not None:
            self.shift(change, equal, {tier: references})
            return equal
        blob = content.blob
        change.tx.put(digest_key(content.digest, blob), b"")
        if content.inline is not None:
            small = Blob(INLINE, content.size, content.digest, tier, 0, (references, 0, 0))
            self.write(change, blob, small)
            key = blob_content_key(blob)
            change.tx.put(key, seal(key, content.inline))
            return blob
        counts = tuple(references if t == tier else 0 for t in range(len(TIERS)))
        self.write(change, blob, Blob(FILE, content.size, content.digest, place, 0, counts))
        self.write_sums(change, blob, array("Q", content.checksums))
        return blob

    def _equal_inline(self, change: Change, content: Content, damaged: list[bytes]) -> bytes | None:
        prefix = digest_prefix(content.digest)
        for found, _ in change.tx.scan(prefix, after_prefix(prefix)):
            blob = found[len(prefix) :]
            if change.tx.get(quarantine_key(blob)) is not None:
                damaged.append(blob)
                continue
            key = blob_content_key(blob)
            data = change.tx.get(key)
            try:
                if data is not None and unseal(key, data) == content.inline:
                    return blob
            except Damaged:
                damaged.append(blob)
        return None

    # Moving between tiers

    def must_copy(self, blob: bytes, source: int, target: int) -> bool:
        """Say whether one user's move from a tier to another moves the content, too."""
        record = self.record(self._engine, blob) if blob else None
        if record is None or record.form == INLINE:
            return False
        return record.shifted({source: -1, target: 1}).wanted() != record.place

    def copy(
        self, blob: bytes, after: Blob, progress: Callable[[int, int], None] | None = None
    ) -> Copy | None:
        """Copy a blob's file to where it will be wanted, verify it and publish it.

        None when it need not be copied. ``after`` is the record as it will be. ``progress`` gets
        the bytes done and the total: each is copied, and read again.
        """
        tier = after.wanted()
        for _ in range(_TURNS):
            record = self.record(self._engine, blob)
            if record is None or not self.misplaced(record._replace(references=after.references)):
                return None
            try:
                with self.reader(blob) as reader:
                    return self._copy(blob, record, reader, tier, progress)
            except Exists:
                # Somebody copies it for another of its users: what is left to do is seen after it.
                self.places[tier].wait(file_name(blob, _next(record)))
                self.recover()
        raise Unavailable(self.places[tier].name_of(blob.hex()), "it is being copied", retry=True)

    def _copy(
        self,
        blob: bytes,
        record: Blob,
        reader: BlobReader,
        tier: int,
        progress: Callable[[int, int], None] | None,
    ) -> Copy:
        """Write what a reader gives as the next generation of a blob's file."""
        generation = _next(record)
        name = file_name(blob, generation)
        place, form = self.places[tier], self.form_in(tier)
        if form == FILE:
            place.claim(record.size)
        if place.is_staged(name):
            self.recover()  # a try before this one failed, and could not be taken back
        copy = Copy(tier, generation, name, place.create(name), form, None)
        try:
            point("staged")
            told = _Told(place, record.size, progress)
            if form == PACKED:
                copy = copy._replace(frames=self._pack(reader, copy.fd, tier, told))
            else:
                self._copy_plain(reader, copy.fd, place.name_of(name), told)
            point("verified")
            place.publish(name, copy.fd)
            point("published")
        except OSError as error:
            self.drop_copy(copy)
            raise_os_error(error, place.name_of(name))
        except BaseException:
            self.drop_copy(copy)
            raise
        return copy

    def _pack(self, reader: BlobReader, fd: int, tier: int, told: _Told) -> Frames:
        level = self.places[tier].compression_level
        assert level is not None
        if reader.frames is not None:
            reader.copy_to(fd, told)
            point("copied")
            with reader.twin(os.dup(fd), reader.name) as copied:
                copied.verify_file(told)
            return reader.frames
        try:
            return pack_verified(
                reader.fd,
                reader.size,
                fd,
                level,
                reader.sums,
                told=lambda count: told(2 * count),
                threads=self._threads,
            )
        except Corrupt as error:
            # The source is the likeliest to be wrong: reading it says so, and where.
            for offset in range(0, reader.size, 16 * BLOCK_BYTES):
                reader.pread(offset, 16 * BLOCK_BYTES)
            raise Unavailable("the copy", str(error), retry=True) from None

    def _copy_plain(self, reader: BlobReader, fd: int, what: str, told: _Told) -> None:
        if isinstance(reader, PackedReader):
            reader.write_to(fd, told)
        else:
            reader.copy_to(fd, told)
        point("copied")
        with BlobReader(reader.size, None, os.dup(fd), reader.sums, what) as copied:
            copied.verify_file(told)

    def drop_copy(self, copy: Copy) -> None:
        """Take a copy back that no record names."""
        place = self.places[copy.tier]
        try:
            place.withdraw(copy.name, copy.fd)
        finally:
            os.close(copy.fd)

    def keep_copy(self, copy: Copy) -> None:
        """Drop a committed copy's note."""
        self.places[copy.tier].settle(copy.name)
        os.close(copy.fd)
        point("settled")
        self.sweep()

    def switch(self, change: Change, blob: bytes, copy: Copy) -> bool:
        """Let the record name the copy, if it still wants it; say whether it did."""
        record = self.record(change.tx, blob)
        if record is None or record.wanted() != copy.tier or not self.misplaced(record):
            return False
        return self._name_copy(change, blob, record, copy)

    def _name_copy(self, change: Change, blob: bytes, record: Blob, copy: Copy) -> bool:
        if _next(record) != copy.generation:
            return False
        self.drop_file(change, blob, record)
        named = record._replace(place=copy.tier, generation=copy.generation, form=copy.form)
        if copy.frames is not None:
            self.write_frames(change, blob, copy.frames)
        self.write(change, blob, named)
        return True

    def misplaced_blobs(self) -> Iterator[bytes]:
        """Give the blobs that lie elsewhere, or in another form, than they should."""
        for key, _ in self._engine.scan(b"P", b"Q", limit=_SWEEP_MAX):
            yield key[1:]

    def settle(self, journal: Journal, blob: bytes) -> bool:
        """Move a misplaced blob to where its users want it; say whether anything was moved."""
        record = self.record(self._engine, blob)
        if record is None:
            return False
        copy = self.copy(blob, record)
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

    # Healing

    def heal(self, journal: Journal, blob: bytes) -> bool:
        """Give a damaged blob good content again, if there is any elsewhere; say whether.

        It is looked for among other blobs of the same digest, and among files of its own that lie
        in some tier still. What is taken has every checksum that this blob has, and the same bytes
        wherever this blob's own blocks are good.
        """
        record = self.record(self._engine, blob)
        if record is None or self._engine.get(quarantine_key(blob)) is None:
            return False
        if record.form == INLINE:
            return self._heal_small(journal, blob, record)
        for reader in self._candidates(blob, record):
            with reader:
                try:
                    if not self._is_twin(blob, record, reader):
                        continue
                    copy = self._copy(blob, record, reader, record.place, None)
                except StateError:
                    continue

            def run(change: Change, copy: Copy = copy, sums: array[int] = reader.sums) -> bool:
                now = self.record(change.tx, blob)
                if now is None or not self._name_copy(change, blob, now, copy):
                    return False
                self.write_sums(change, blob, sums)
                change.tx.delete(quarantine_key(blob))
                change.say("heal", "", "", None, None, f"blob {blob.hex()}")
                return True

            return self.with_copy(journal, copy, run)
        return False

    def _candidates(self, blob: bytes, record: Blob) -> Iterator[BlobReader]:
        """Open what may hold a blob's content."""
        prefix = digest_prefix(record.digest)
        for key, _ in self._engine.scan(prefix, after_prefix(prefix), limit=64):
            other = key[len(prefix) :]
            if other != blob:
                with suppress(StateError):
                    yield self.reader(other)
        with suppress(StateError):
            sums = self._engine.read(lambda found: self.sums(found, blob, record.size))
            for place in self.places:
                yield from _former(place, blob, record, sums)

    def _is_twin(self, blob: bytes, record: Blob, reader: BlobReader) -> bool:
        """Say whether a reader has a blob's content, as far as it can be known."""
        if reader.size != record.size:
            return False
        with suppress(StateError):
            sums = self._engine.read(lambda found: self.sums(found, blob, record.size))
            if sums != reader.sums:
                return False
        with suppress(StateError), self.reader(blob, suspect=True) as own:
            own.on_damage = None
            for offset in range(0, record.size, BLOCK_BYTES):
                try:
                    block = own.pread(offset, BLOCK_BYTES)
                except StateError:
                    continue
                if block != reader.pread(offset, BLOCK_BYTES):
                    return False
        return True

    def _heal_small(self, journal: Journal, blob: bytes, record: Blob) -> bool:
        def run(change: Change) -> bool:
            prefix = digest_prefix(record.digest)
            for found, _ in change.tx.scan(prefix, after_prefix(prefix)):
                data = change.tx.get(blob_content_key(found[len(prefix) :]))
                if data is not None and digest(data[8:]) == record.digest:
                    key = blob_content_key(blob)
                    change.tx.put(key, seal(key, data[8:]))
                    change.tx.delete(quarantine_key(blob))
                    change.say("heal", "", "", None, None, f"blob {blob.hex()}")
                    return True
            return False

        return journal.commit(run)

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
        if removed:
            point("removed")
        if len(gone) >= _SWEEP_AT or (gone and all_notes):
            self._drop_notes(gone)
            point("swept")
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
                    with suppress(StateError):  # one file that cannot go must not keep all closed
                        if not self.names(tier, name):
                            place.remove(name, fd)
                            point("removed")
                        place.settle(name)
                        point("settled")
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
        return (
            record is not None
            and record.form != INLINE
            and (record.place, record.generation) == (tier, generation)
        )


class _Told:
    """Tells of the bytes of a copy as they go, and asks for room now and then."""

    def __init__(
        self, place: Place, size: int, progress: Callable[[int, int], None] | None
    ) -> None:
        self._place = place
        self._total = 2 * size
        self._progress = progress
        self._done = 0
        self._asked = 0

    def __call__(self, count: int) -> None:
        self._done += count
        point("copying")
        if self._done - self._asked >= _CLAIM_BYTES:
            self._asked = self._done
            self._place.claim(0)
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total)


def _next(record: Blob) -> int:
    return (record.generation + 1) % _GENERATIONS


def _former(place: Place, blob: bytes, record: Blob, sums: array[int]) -> Iterator[BlobReader]:
    """Open plain files of a blob's former generations that lie in a tier still."""
    own = file_name(blob, record.generation)
    for name in place.names_like(blob.hex()):
        if name == own:
            continue
        with suppress(StateError):
            yield BlobReader(record.size, None, place.open(name), sums, place.name_of(name))


def _equal_among(
    contents: Sequence[Content], stagings: Sequence[Staging], equals: list[bytes | None]
) -> None:
    """Let a file's content that comes twice in one batch be the first one's blob."""
    first: dict[tuple[bytes, int], int] = {}
    for at, content in enumerate(contents):
        if content.inline is None and equals[at] is None:
            there = first.setdefault((content.digest, content.size), at)
            if there != at and _same(stagings[there].read, stagings[at]):
                equals[at] = contents[there].blob


def _same(read: Callable[[int, int], bytes], staging: Staging) -> bool:
    step = 16 * BLOCK_BYTES
    return all(
        read(offset, step) == staging.read(offset, step) for offset in range(0, staging.size, step)
    )
