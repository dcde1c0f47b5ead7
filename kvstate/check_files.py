"""The half of a check that looks at files: each is there, whole, and named by a record.

Files have no consistent state as records do: what is found amiss is looked at once more before it
is said.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

from kvstate.blob_records import INLINE
from kvstate.errors import NotFound, StateError
from kvstate.policy import TIERS
from kvstate.staging import file_name

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from kvstate.blob_records import Blob
    from kvstate.blobs import Blobs
    from kvstate.engine import Engine

__all__ = ["Walked", "check_files"]


class Walked(Protocol):
    """What a walk over the records found out about files, and where problems are noted."""

    blobs: dict[bytes, Blob]
    packed: dict[bytes, int]
    damaged: dict[bytes, str]
    garbage: set[tuple[int, str]]
    counts: Counter[str]
    orphans: list[tuple[int, str]]
    lost: list[bytes]

    def say(self, kind: str, where: object, why: str) -> None:
        """Note a problem."""
        ...


def check_files(
    engine: Engine,
    blobs: Blobs,
    walk: Walked,
    progress: Callable[[int, int, str], None] | None,
    *,
    verify: bool,
) -> None:
    """Compare the files of all tiers with what a walk over the records expects."""
    wanted = {
        (record.place, file_name(blob, record.generation)): blob
        for blob, record in walk.blobs.items()
        if record.form != INLINE
    }
    present, away = _present(blobs, walk)
    walk.counts["files"] = len(present)
    for (tier, name), size in present.items():
        if (tier, name) in walk.garbage or (tier, name) in wanted:
            continue
        if _still_orphan(engine, blobs, tier, name):
            where = blobs.places[tier].name_of(name)
            walk.say("orphan", where, f"no record names it ({size} bytes)")
            if _is_ours(name):
                walk.orphans.append((tier, name))
    for done, ((tier, name), blob) in enumerate(wanted.items()):
        if tier in away or blob in walk.damaged:
            continue
        size = walk.packed.get(blob, walk.blobs[blob].size)
        if present.get((tier, name)) != size or verify:
            _check_content(blobs, walk, blob, present.get((tier, name)), verify=verify)
        if progress is not None:
            progress(done + 1, len(wanted), name)


def _present(blobs: Blobs, walk: Walked) -> tuple[dict[tuple[int, str], int], set[int]]:
    """Give the sizes of all files, and the tiers that do not answer, each with one problem."""
    present: dict[tuple[int, str], int] = {}
    away = set()
    for tier, place in enumerate(blobs.places):
        try:
            present |= {(tier, name): size for name, size in place.files()}
        except StateError as error:
            walk.say("tier", TIERS[tier], f"{error}; none of its files was looked at")
            away.add(tier)
    return present, away


def _still_orphan(engine: Engine, blobs: Blobs, tier: int, name: str) -> bool:
    """Look again: the file may be on its way in, or have got its record after the walk."""
    return not (
        blobs.names(tier, name)
        or blobs.places[tier].is_staged(name)
        or engine.get(b"G" + bytes([tier]) + _bytes_of(name)) is not None
        or name not in dict(blobs.places[tier].files())
    )


def _is_ours(name: str) -> bool:
    """Say whether a file has a name as this store gives it."""
    return re.fullmatch(r"[0-9a-f]{36}", name) is not None


def _bytes_of(name: str) -> bytes:
    try:
        return bytes.fromhex(name)
    except ValueError:
        return name.encode()


def _check_content(
    blobs: Blobs, walk: Walked, blob: bytes, size: int | None, *, verify: bool
) -> None:
    try:
        if verify:
            blobs.verify(blob)
            return
        with blobs.reader(blob) as reader:
            found = reader.file_size()
            stored = reader.size if reader.frames is None else reader.frames.size
            if found != stored:
                walk.say("file", f"blob {blob.hex()}", f"{found} bytes, not {stored}")
                walk.lost.append(blob)
    except NotFound:
        return  # deleted since the walk
    except StateError as error:
        walk.say("file", f"blob {blob.hex()}", f"{error} (found {size})")
        walk.lost.append(blob)
