"""Reading blobs: opened, verified, scrubbed."""

from __future__ import annotations

import hashlib
from array import array
from typing import TYPE_CHECKING, Final

from kvstate.blob_reader import BlobReader, PackedReader
from kvstate.blob_records import INLINE, PACKED, Blob, BlobRecords
from kvstate.codec import Hasher, decode, digest, unseal
from kvstate.errors import Damaged, NotFound, Unavailable
from kvstate.keyspace import blob_content_key, quarantine_key
from kvstate.records import open_envelope
from kvstate.staging import BLOCK_BYTES, file_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstate.engine import Reader
    from kvstate.zstd import Frames

__all__ = ["BlobReading"]

_TRIES: Final = 100


class BlobReading(BlobRecords):
    """The contents of a store."""

    def reader(self, blob: bytes, *, suspect: bool = False) -> BlobReader:
        """Open a blob; `NotFound` when there is none, `Damaged` when it is, or its file is gone.

        ``suspect`` opens one in quarantine, too.
        """
        if not blob:
            return BlobReader(0, b"", -1, array("Q"), "empty content")
        for last_try in range(_TRIES):
            try:
                record, content, sums, frames = self._engine.read(
                    lambda found: self._load(found, blob, suspect=suspect)
                )
            except Damaged as error:
                self.quarantine(blob, str(error.facts[1]))
                raise
            what = f"blob {blob.hex()}"
            if record.form == INLINE:
                return BlobReader(record.size, content, -1, sums, what)
            name = file_name(blob, record.generation)
            place = self.places[record.place]
            try:
                fd = place.open(name)
            except NotFound:
                newer = self.record(self._engine, blob)
                if newer is None:
                    raise NotFound("blob", blob.hex()) from None
                if newer[3:5] == record[3:5] and last_try > 1:
                    self.quarantine(blob, "the file is not there")
                    raise Damaged(place.name_of(name), "the file is not there") from None
                continue
            except Damaged as error:
                self.quarantine(blob, str(error.facts[1]))
                raise
            reader = _opened(record, fd, sums, frames, place.name_of(name))
            reader.on_damage = lambda why: self.quarantine(blob, why)
            return reader
        raise Unavailable(f"blob {blob.hex()}", "it moves faster than it can be opened", retry=True)

    def _load(
        self, reader: Reader, blob: bytes, *, suspect: bool
    ) -> tuple[Blob, bytes | None, array[int], Frames | None]:
        record = self.record(reader, blob)
        if record is None:
            raise NotFound("blob", blob.hex())
        if not suspect:
            self._refuse_damaged(reader, blob)
        if record.form == INLINE:
            key = blob_content_key(blob)
            data = reader.get(key)
            if data is None:
                raise Damaged(f"blob {blob.hex()}", "its content is not there")
            return record, unseal(key, data), array("Q"), None
        frames = self.frames(reader, blob, record.size) if record.form == PACKED else None
        return record, None, self.sums(reader, blob, record.size), frames

    @staticmethod
    def _refuse_damaged(reader: Reader, blob: bytes) -> None:
        key = quarantine_key(blob)
        data = reader.get(key)
        if data is not None:
            raise Damaged(f"blob {blob.hex()}", decode(open_envelope(key, data).payload))

    def load(self, blob: bytes) -> bytes:
        """Give all bytes of a blob."""
        with self.reader(blob) as reader:
            return reader.pread(0, reader.size)

    def verify(
        self, blob: bytes, sha256: bytes = b"", progress: Callable[[int], None] | None = None
    ) -> None:
        """Read all of a blob; `Damaged` when anything about it is wrong, its SHA-256 included.

        What is found damaged goes into quarantine, what is found whole comes out of it.
        ``progress`` gets the bytes of each step.
        """
        if not blob:
            return
        try:
            self._verify(blob, sha256, progress)
        except Damaged as error:
            self.quarantine(blob, str(error.facts[1]))
            raise
        self.acquit(blob)

    def _verify(self, blob: bytes, sha256: bytes, progress: Callable[[int], None] | None) -> None:
        record = self.record(self._engine, blob)
        proof = hashlib.sha256() if sha256 else None
        with self.reader(blob, suspect=True) as reader:
            if reader.frames is not None:
                reader.verify_file()
            elif reader.file_size() != reader.size:
                reader.damaged(f"it has {reader.file_size()} bytes, {reader.size} were written")
            offset, step = 0, 16 * BLOCK_BYTES
            from_start = Hasher()
            while offset < reader.size:
                data = reader.pread(offset, step)
                from_start.update(data)
                if proof is not None:
                    proof.update(data)
                offset += step
                if progress is not None:
                    progress(len(data))
        if record is not None and from_start.digest() != record.digest:
            raise Damaged(f"blob {blob.hex()}", "its content has another digest")
        if proof is not None and proof.digest() != sha256:
            raise Damaged(f"blob {blob.hex()}", "its content has another SHA-256")

    def scrub(self, blob: bytes, told: Callable[[int], None] | None = None) -> int:
        """Compare the checksums of every byte that is stored of a blob; give how many there are.

        Faster than `verify`: nothing is unpacked. `Damaged`, and it is in quarantine. 0 when there
        is no such blob any more.
        """
        try:
            with self.reader(blob, suspect=True) as reader:
                if reader.fd < 0:
                    self._scrub_small(blob, reader)
                else:
                    reader.verify_file(told)
                stored = reader.size if reader.frames is None else reader.frames.size
        except NotFound:
            return 0
        except Damaged as error:
            self.quarantine(blob, str(error.facts[1]))
            raise
        self.acquit(blob)
        return stored

    def _scrub_small(self, blob: bytes, reader: BlobReader) -> None:
        record = self.record(self._engine, blob)
        if record is not None and digest(reader.pread(0, reader.size)) != record.digest:
            raise Damaged(f"blob {blob.hex()}", "its content has another digest")


def _opened(
    record: Blob, fd: int, sums: array[int], frames: Frames | None, what: str
) -> BlobReader:
    if frames is None:
        return BlobReader(record.size, None, fd, sums, what)
    return PackedReader(record.size, fd, sums, frames, what)
