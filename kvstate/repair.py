"""What `check --repair` writes: whatever can be found again from what is not derived.

Indexes, counts, notes and references are derived from the records of keys, folders, artifacts,
trash and journal; where a check found that they disagree, those records decide. A file that no
record names, under a name that only this store gives, is removed; a file that is not there puts its
content into quarantine, and it is healed if it can be. Content and records whose bytes are not what
was written cannot be made up: they stay named by the check.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvstate.codec import encode, seal
from kvstate.identities import BLOCKS_KEY, seal_blocks
from kvstate.keyspace import (
    after_prefix,
    entry_key,
    identity_key,
    namespace_key,
    stale_key,
    usage_key,
)
from kvstate.nodes import FOLDER_KIND
from kvstate.records import open_envelope, seal_envelope
from kvstate.space import NamespaceSettings, made_space, space_payload
from kvstate.state import USAGE, unpack_usage
from kvstate.tally import totals_record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kvstate.blob_records import Blob
    from kvstate.blobs import Blobs
    from kvstate.journal import Change
    from kvstate.nodes import Folder, Node

    Mend = Callable[[Change], None]

__all__ = [
    "count",
    "erase",
    "lead",
    "name_space",
    "refer",
    "reserve",
    "show",
    "stale",
    "toggle",
    "total",
]


def toggle(key: bytes) -> Mend:
    """Enter what is missing in an index, or take out what it has too much."""

    def mend(change: Change) -> None:
        if not change.tx.delete(key):
            change.tx.put(key, b"")

    return mend


def erase(prefix: bytes) -> Mend:
    """Remove records that belong to nothing."""

    def mend(change: Change) -> None:
        for key, _ in list(change.tx.scan(prefix, after_prefix(prefix))):
            change.tx.delete(key)

    return mend


def reserve(blocks: int) -> Mend:
    """Let so many blocks of identities be taken: none of them is given again."""
    return lambda change: change.tx.put(BLOCKS_KEY, seal_blocks(blocks, change.at_ns))


def lead(number: int, node: Node | None) -> Mend:
    """Let an identity lead to what has it."""

    def mend(change: Change) -> None:
        key = identity_key(number)
        if node is None:
            change.tx.delete(key)
        else:
            where = node.parent.to_bytes(8, "big") + node.name.encode()
            change.tx.put(key, seal(key, where))

    return mend


def total(folder: int, numbers: Sequence[int]) -> Mend:
    """Let a count of artifacts be what was counted."""

    def mend(change: Change) -> None:
        key, record = totals_record(folder, numbers)
        if any(numbers):
            change.tx.put(key, record)
        else:
            change.tx.delete(key)

    return mend


def show(folder: Folder, shown: Sequence[int]) -> Mend:
    """Let a folder count what is visible in it."""

    def mend(change: Change) -> None:
        key = entry_key(folder.parent, folder.name.encode())
        data = change.tx.get(key)
        if data is None:
            return
        envelope = open_envelope(key, data)
        kept = folder._replace(shown=tuple(shown))
        record = seal_envelope(
            key,
            encode([FOLDER_KIND, kept.id, *kept[3:]]),
            revision=envelope.revision,
            created_ns=envelope.created_ns,
            updated_ns=envelope.updated_ns,
        )
        change.tx.put(key, record)

    return mend


def refer(blobs: Blobs, blob: bytes, record: Blob, users: Sequence[int]) -> Mend:
    """Let a blob count its users; without any it goes."""

    def mend(change: Change) -> None:
        if any(users):
            blobs.write(change, blob, record._replace(references=tuple(users)))
        else:
            # It has to have a user, to lose it.
            blobs.write(change, blob, record._replace(references=(1, 0, 0)))
            blobs.shift(change, blob, {0: -1})

    return mend


def count(number: int, keys: int, size: int) -> Mend:
    """Let a namespace count its keys and bytes."""

    def mend(change: Change) -> None:
        key = usage_key(number)
        data = change.tx.get(key)
        floor = (0, 0) if data is None else unpack_usage(key, data)[2:]
        change.tx.put(key, seal(key, USAGE.pack(keys, size, *floor)))

    return mend


def stale(number: int, name: bytes) -> Mend:
    """Let versions be looked at for their age at once."""
    return lambda change: change.tx.put(stale_key(change.at_ns, number, name), b"")


def name_space(number: int) -> Mend:
    """Give keys whose namespace was lost a namespace, named after its identity."""

    def mend(change: Change) -> None:
        name = f"recovered-{number}"
        key = namespace_key(name.encode())
        if change.tx.get(key) is None:
            space = made_space(name, number, NamespaceSettings(), ())
            change.seal(key, space_payload(space))

    return mend
