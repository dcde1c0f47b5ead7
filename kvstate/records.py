"""What a record's bytes look like: one envelope for all of them.

    checksum (8)  xxh3-64 over the key and all that follows
    form (1)      high half: format version; low half: flags
    revision (8)  the commit that wrote it
    version (4)   how many times it was written since it was made
    created_ns (8), updated_ns (8), expires_ns (8; 0 is never)
    payload       CBOR; for SPILLED the blob (16) that holds it; for GONE why it went

Each record kind's payload is an array in the order of its NamedTuple below.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from kvstate.codec import SEAL_BYTES, seal, unseal
from kvstate.errors import Damaged, Incompatible

__all__ = [
    "EXPIRES",
    "FORMAT",
    "GONE",
    "HEADER_BYTES",
    "PLAIN",
    "SPILLED",
    "Envelope",
    "header",
    "open_envelope",
    "seal_envelope",
]

FORMAT: Final = 1
PLAIN: Final = FORMAT << 4
EXPIRES: Final = 1
"""Flag: the record has an expiry."""
SPILLED: Final = 2
"""Flag: the payload is the identity of the blob that holds it."""
GONE: Final = 4
"""Flag of a version: the key was deleted or expired; the payload says which."""

_HEADER = Struct(">BQIqqq")
_HEADER_BYTES = _HEADER.size
_pack = _HEADER.pack
_VERSION_MAX = 0xFFFFFFFF
HEADER_BYTES: Final = SEAL_BYTES + _HEADER.size
"""Where the payload begins."""
_new_envelope = tuple.__new__  # what a NamedTuple's own constructor calls


class Envelope(NamedTuple):
    """An opened record."""

    form: int
    revision: int
    version: int
    created_ns: int
    updated_ns: int
    expires_ns: int
    payload: bytes


def seal_envelope(
    key: bytes,
    payload: bytes,
    *,
    revision: int,
    created_ns: int,
    updated_ns: int,
    expires_ns: int = 0,
    version: int = 1,
    flags: int = 0,
) -> bytes:
    """Give the record's bytes; ``flags`` are SPILLED and GONE."""
    return sealed(key, payload, revision, version, (created_ns, updated_ns, expires_ns), flags)


def sealed(
    key: bytes,
    payload: bytes,
    revision: int,
    version: int,
    times: tuple[int, int, int],
    flags: int,
) -> bytes:
    """Do the same as `seal_envelope`, with created, updated and expires in a tuple: faster."""
    created_ns, updated_ns, expires_ns = times
    form = PLAIN | flags | EXPIRES if expires_ns else PLAIN | flags
    head = _pack(form, revision, version & _VERSION_MAX, created_ns, updated_ns, expires_ns)
    return seal(key, head + payload)


def header(revision: int, at_ns: int) -> bytes:
    """Give the header of a plain record that is written once, for who seals it himself."""
    return _pack(PLAIN, revision, 1, at_ns, at_ns, 0)


def open_envelope(key: bytes, data: bytes) -> Envelope:
    """Open a record; `Damaged` when its bytes are not those that were written."""
    body = unseal(key, data)
    if len(body) < _HEADER_BYTES:
        raise Damaged(f"record {key!r}", "it is shorter than its header")
    header = _HEADER.unpack_from(body)
    if header[0] >> 4 != FORMAT:
        raise Incompatible(
            f"record {key!r}", f"its format is {header[0] >> 4}, this reads {FORMAT}"
        )
    return _new_envelope(Envelope, (*header, body[_HEADER_BYTES:]))
