"""Folders, artifacts and the trash as records: what is known of one, and its bytes."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, TypeAlias

from kvstate.codec import Value, decode, encode_plain
from kvstate.policy import TIERS, Facts
from kvstate.records import open_envelope

__all__ = [
    "FILE_KIND",
    "FOLDER_KIND",
    "Failure",
    "File",
    "Folder",
    "Node",
    "Trashed",
    "described",
    "facts_of",
    "open_trashed",
    "unpack",
]

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


class Failure(NamedTuple):
    """A move that failed: where to, why, how often, when last, and when to try again."""

    tier: int
    why: str
    tries: int
    at_ns: int
    retry_ns: int


class File(NamedTuple):
    """An artifact: its place, its content and its attributes.

    ``origin`` is the revision of the last write that was not an append: two states of one identity
    with the same origin differ only by what the longer one has more. ``modified_ns`` is what tools
    set it to; ``written_ns`` is when content was last written, by the store's own clock.
    ``aged_from_ns`` is when the artifact began to age: its last write, or its restoration.
    ``look_ns`` is its place in the due index (0: none), ``back`` the tier and the moment that it
    goes back to after a restoration for a time, ``spared_ns`` the moment before which it is not
    purged; ``sha256`` is empty unless its tenant asks for one.
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
    written_ns: int
    look_ns: int
    sha256: bytes
    back: tuple[int, int] | None
    failure: Failure | None
    spared_ns: int

    def shown_in(self, tier: int) -> bool:
        """Whether the artifact is visible in this tier."""
        return tier == self.tier


Node: TypeAlias = Folder | File


class Trashed(NamedTuple):
    """An artifact in the trash: under which name it was, since when, until when, and why."""

    name: str
    trashed_ns: int
    gone_ns: int
    why: str
    actor: str
    file: File


def described(node: Node | None) -> bytes | None:
    """Give what the journal says of an artifact's state."""
    if not isinstance(node, File):
        return None
    return encode_plain(
        {
            "id": node.id,
            "tier": TIERS[node.tier],
            "size": node.size,
            "digest": f"xxh3:{node.digest.hex()}",
            "written": node.written_ns,
        }
    )


def facts_of(path: str, file: File) -> Facts:
    """Give what rules may look at of an artifact."""
    failure = file.failure
    return Facts(
        path,
        file.tier,
        file.size,
        file.metadata,
        file.written_ns,
        file.aged_from_ns,
        file.accessed_ns,
        file.holds,
        file.back,
        None if failure is None else (failure.tier, failure.retry_ns),
        file.spared_ns,
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
    return _file(node_id, parent, key[9:].decode(), rest)


def _file(node_id: int, parent: int, name: str, rest: list[Value]) -> File:
    *plain, back, failure, spared_ns = rest
    back = None if back is None else tuple(back)
    failure = None if failure is None else Failure(*failure)
    return File._make((node_id, parent, name, *plain, back, failure, spared_ns))


def open_trashed(key: bytes, data: bytes) -> Trashed:
    """Give an artifact in the trash from its record (key ``Z``)."""
    envelope = open_envelope(key, data)
    path, why, actor, node_id, parent, name, *rest = decode(envelope.payload)
    gone_ns = int.from_bytes(key[1:9], "big")
    file = _file(node_id, parent, name, rest)
    return Trashed(path, envelope.updated_ns, gone_ns, why, actor, file)
