"""Folders and artifacts as records: what is known of one, and its bytes."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, TypeAlias

from kvstate.blobs import TIERS
from kvstate.codec import Value, decode, encode
from kvstate.records import open_envelope

__all__ = ["FILE_KIND", "FOLDER_KIND", "File", "Folder", "Node", "Usage", "described", "unpack"]

FOLDER_KIND = 1
FILE_KIND = 2


class Folder(NamedTuple):
    """A tenant, a workflow or a folder below one. Times are nanoseconds since 1970 UTC."""

    id: int
    parent: int
    name: str
    home: int
    implicit: bool
    shown: tuple[int, ...]
    created_ns: int
    modified_ns: int
    changed_ns: int
    mode: int
    uid: int
    gid: int
    xattrs: dict[str, bytes]

    @property
    def empty(self) -> bool:
        """Whether nothing is in it."""
        return not any(self.shown)

    def shown_in(self, tier: int) -> bool:
        """Whether the folder is visible in this tier."""
        return self.shown[tier] > 0 or (self.home == tier and self.empty)


class File(NamedTuple):
    """An artifact: its place, its content and its attributes.

    ``origin`` is the revision of the last write that was not an append: two states of one identity
    with the same origin differ only by what the longer one has more. ``aged_from_ns`` is when the
    artifact began to age: its last write, or its restoration.
    """

    id: int
    parent: int
    name: str
    tier: int
    size: int
    digest: bytes
    blob: bytes
    created_ns: int
    modified_ns: int
    changed_ns: int
    accessed_ns: int
    aged_from_ns: int
    revision: int
    origin: int
    mode: int
    uid: int
    gid: int
    metadata: dict[str, Value]
    xattrs: dict[str, bytes]
    holds: dict[str, Value]

    def shown_in(self, tier: int) -> bool:
        """Whether the artifact is visible in this tier."""
        return tier == self.tier


Node: TypeAlias = Folder | File


class Usage(NamedTuple):
    """How many artifacts a tier has, and how many bytes they have together (not deduplicated)."""

    artifacts: int
    bytes: int


def described(node: Node | None) -> bytes | None:
    """Give what the journal says of an artifact's state."""
    if not isinstance(node, File):
        return None
    return encode(
        {
            "id": node.id,
            "tier": TIERS[node.tier],
            "size": node.size,
            "digest": f"xxh3:{node.digest.hex()}",
        }
    )


@lru_cache(maxsize=8192)
def unpack(key: bytes, data: bytes) -> Node:
    """Give the folder or artifact of a record. Equal bytes were verified before: not again.

    What it gives is shared: nobody may change the dictionaries in it.
    """
    fields = decode(open_envelope(key, data).payload)
    parent = int.from_bytes(key[1:9], "big")
    kind, node_id, *rest = fields
    if kind == FOLDER_KIND:
        rest[2] = tuple(rest[2])
        return Folder(node_id, parent, key[9:].decode(), *rest)
    return File(node_id, parent, key[9:].decode(), *rest)
