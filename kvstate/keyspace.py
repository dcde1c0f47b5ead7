"""The key space: the one place that knows what a record's key looks like.

Numbers are big-endian, so that byte order is numeric order. ``id`` is an identity (8 bytes) that is
given once and never again; ``blob`` a blob's random identity (16 bytes).

    M name                         a fact about the store (format, usage, last run)
    N name                         a namespace: its identity and settings
    K namespace-id                 how much a namespace holds: keys, bytes; how far back it knows
    S namespace-id key             a key's value
    E expires_ns namespace-id key  index: what expires when                          (no value)
    V namespace-id key 0 version   a value that a key had before
    W due_ns namespace-id key      index: when versions of a key become too old      (no value)
    X namespace-id field value key index: which keys have this value in a field      (no value)
    T parent-id name               a folder or an artifact below its folder
    I id                           where an identity is: parent-id, name
    D look_ns id                   index: which artifact is to be looked at when     (no value)
    R workflow-id written_ns id    index: the artifacts of a workflow by time        (no value)
    Y workflow-id id               index: which artifacts are held                   (no value)
    U folder-id                    how much a tenant, a workflow or the store holds per tier
    A folder-id                    a folder whose artifacts are all to be looked at
    Z gone_ns id                   an artifact in the trash, by when it goes for good
    B blob                         content: form, size, digest, references, place
    C blob                         content that is small: the bytes themselves
    Q blob chunk                   content in a file: checksums of its blocks
    F blob chunk                   content in a packed file: its frames
    O blob                         content in quarantine: since when, and why
    H digest blob                  index: which content has this digest              (no value)
    P blob                         index: a file that lies in another tier than its references want
    G tier blob                    a file that nothing refers to any more: to be removed
    J revision chunk               the journal
"""

from __future__ import annotations

from struct import Struct
from typing import Final

__all__ = [
    "ROOT_ID",
    "after_prefix",
    "blob_content_key",
    "blob_key",
    "checksums_key",
    "digest_key",
    "digest_prefix",
    "due_key",
    "entry_key",
    "expiry_key",
    "field_prefix",
    "frames_key",
    "garbage_key",
    "held_key",
    "held_prefix",
    "identity_key",
    "journal_key",
    "meta_key",
    "misplaced_key",
    "namespace_key",
    "parse_due",
    "parse_expiry",
    "parse_held",
    "parse_journal",
    "parse_recent",
    "parse_stale",
    "parse_trash",
    "parse_version",
    "quarantine_key",
    "queue_key",
    "recent_key",
    "recent_prefix",
    "stale_key",
    "state_prefix",
    "tally_key",
    "trash_key",
    "usage_key",
    "version_key",
    "versions_prefix",
]

ROOT_ID: Final = 1
"""The identity of the folder that holds the tenants."""

_ID = Struct(">cQ")
_EXPIRY = Struct(">cQQ")
_PAIR = Struct(">cQQ")
_TRIPLE = Struct(">cQQQ")
_JOURNAL = Struct(">cQH")
_CHUNK = Struct(">I")
_FIELD = Struct(">cQH")


def after_prefix(prefix: bytes) -> bytes:
    """Give the first key that is greater than every key with this prefix."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else b"\xff" * 512


def meta_key(name: str) -> bytes:
    """Give the key of a fact about the store."""
    return b"M" + name.encode()


def namespace_key(name: bytes) -> bytes:
    """Give the key of a namespace's record."""
    return b"N" + name


def state_prefix(namespace_id: int) -> bytes:
    """Give what the keys of one namespace begin with; the key's own bytes follow."""
    return _ID.pack(b"S", namespace_id)


def expiry_key(expires_ns: int, namespace_id: int, key: bytes) -> bytes:
    """Give the index key of a key that expires."""
    return _EXPIRY.pack(b"E", expires_ns, namespace_id) + key


def parse_expiry(key: bytes) -> tuple[int, int, bytes]:
    """Give the moment, the namespace's identity and the key of an expiry index key."""
    _, expires_ns, namespace_id = _EXPIRY.unpack_from(key)
    return expires_ns, namespace_id, key[_EXPIRY.size :]


def usage_key(namespace_id: int) -> bytes:
    """Give the key of what is counted of a namespace."""
    return _ID.pack(b"K", namespace_id)


def versions_prefix(namespace_id: int, key: bytes | None = None) -> bytes:
    """Give what the keys of one key's versions begin with; without a key, of all in a namespace."""
    prefix = _ID.pack(b"V", namespace_id)
    return prefix if key is None else prefix + key + b"\0"  # no key has a 0 in it


def version_key(namespace_id: int, key: bytes, version: int) -> bytes:
    """Give the key of one version of a key."""
    return versions_prefix(namespace_id, key) + _CHUNK.pack(version)


def parse_version(key: bytes) -> tuple[int, bytes, int]:
    """Give the namespace's identity, the key and the version of a version's key."""
    return int.from_bytes(key[1:9], "big"), key[9:-5], _CHUNK.unpack(key[-4:])[0]


def stale_key(due_ns: int, namespace_id: int, key: bytes) -> bytes:
    """Give the index key of a key whose oldest versions become too old."""
    return _EXPIRY.pack(b"W", due_ns, namespace_id) + key


def parse_stale(key: bytes) -> tuple[int, int, bytes]:
    """Give the moment, the namespace's identity and the key of a stale index key."""
    return parse_expiry(key)


def field_prefix(namespace_id: int, field: int) -> bytes:
    """Give what the keys of one secondary index begin with; the value and the key follow."""
    return _FIELD.pack(b"X", namespace_id, field)


def entry_key(parent_id: int, name: bytes = b"") -> bytes:
    """Give the key of a folder or an artifact; without a name, the prefix of a folder's entries."""
    return _ID.pack(b"T", parent_id) + name


def identity_key(node_id: int) -> bytes:
    """Give the key that says where an identity is."""
    return _ID.pack(b"I", node_id)


def due_key(look_ns: int, node_id: int) -> bytes:
    """Give the index key of an artifact that is to be looked at then."""
    return _PAIR.pack(b"D", look_ns, node_id)


def parse_due(key: bytes) -> tuple[int, int]:
    """Give the moment and the identity of a due index key."""
    _, look_ns, node_id = _PAIR.unpack(key)
    return look_ns, node_id


def recent_key(workflow_id: int, written_ns: int, node_id: int) -> bytes:
    """Give the index key of an artifact of a workflow that was last written then."""
    return _TRIPLE.pack(b"R", workflow_id, written_ns, node_id)


def recent_prefix(workflow_id: int) -> bytes:
    """Give what the index keys of one workflow's artifacts begin with."""
    return _ID.pack(b"R", workflow_id)


def parse_recent(key: bytes) -> tuple[int, int, int]:
    """Give the workflow's identity, the moment and the artifact's identity."""
    _, workflow_id, written_ns, node_id = _TRIPLE.unpack(key)
    return workflow_id, written_ns, node_id


def held_key(workflow_id: int, node_id: int) -> bytes:
    """Give the index key of a held artifact."""
    return _PAIR.pack(b"Y", workflow_id, node_id)


def held_prefix(workflow_id: int) -> bytes:
    """Give what the index keys of one workflow's held artifacts begin with."""
    return _ID.pack(b"Y", workflow_id)


def parse_held(key: bytes) -> tuple[int, int]:
    """Give the workflow's and the artifact's identity of a held index key."""
    _, workflow_id, node_id = _PAIR.unpack(key)
    return workflow_id, node_id


def tally_key(folder_id: int) -> bytes:
    """Give the key of what a tenant, a workflow or the store (the root) holds."""
    return _ID.pack(b"U", folder_id)


def queue_key(folder_id: int) -> bytes:
    """Give the key of a folder whose artifacts are all to be looked at."""
    return _ID.pack(b"A", folder_id)


def trash_key(gone_ns: int, node_id: int) -> bytes:
    """Give the key of an artifact in the trash that goes for good then."""
    return _PAIR.pack(b"Z", gone_ns, node_id)


def parse_trash(key: bytes) -> tuple[int, int]:
    """Give the moment and the identity of a trash key."""
    _, gone_ns, node_id = _PAIR.unpack(key)
    return gone_ns, node_id


def blob_key(blob: bytes) -> bytes:
    """Give the key of a blob's record."""
    return b"B" + blob


def blob_content_key(blob: bytes) -> bytes:
    """Give the key of a small blob's bytes."""
    return b"C" + blob


def checksums_key(blob: bytes, chunk: int) -> bytes:
    """Give the key of one chunk of a blob file's block checksums."""
    return b"Q" + blob + _CHUNK.pack(chunk)


def frames_key(blob: bytes, chunk: int) -> bytes:
    """Give the key of one chunk of a packed file's frames."""
    return b"F" + blob + _CHUNK.pack(chunk)


def quarantine_key(blob: bytes) -> bytes:
    """Give the key of the note that a blob is damaged."""
    return b"O" + blob


def digest_prefix(content_digest: bytes) -> bytes:
    """Give what the index keys of this digest begin with; the blob follows."""
    return b"H" + content_digest


def digest_key(content_digest: bytes, blob: bytes) -> bytes:
    """Give the index key from a digest to a blob that has it."""
    return b"H" + content_digest + blob


def misplaced_key(blob: bytes) -> bytes:
    """Give the index key of a blob that lies in the wrong tier."""
    return b"P" + blob


def garbage_key(tier: int, blob: bytes) -> bytes:
    """Give the key of a file that is to be removed."""
    return b"G" + bytes([tier]) + blob


def journal_key(revision: int, chunk: int = 0) -> bytes:
    """Give the key of one chunk of a revision's journal."""
    return _JOURNAL.pack(b"J", revision, chunk)


def parse_journal(key: bytes) -> tuple[int, int]:
    """Give the revision and the chunk of a journal key."""
    _, revision, chunk = _JOURNAL.unpack(key)
    return revision, chunk
