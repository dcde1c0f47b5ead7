"""The hash chain over the journal: an entry that was altered, removed or moved is found later.

A checksum finds accidents; who may write the record file can renew it. So each record of the
journal also carries a link to all that came before it:

    link = SHA-256(link before | key | record without its checksum and its link)

that is, over the record's header (revision, times), its ``start`` and its entries. The first record
of a store follows 32 zero bytes. What was trimmed leaves its last link in ``M journal``
(``[revision, chunk, link]``, written by trimming alone, in its transaction), so that the oldest
record that is left can still be verified.

There is no key in it: who rewrites every record from one on to the newest, or cuts the newest off,
leaves a sound chain. That is found only by comparing with a link that was noted elsewhere.
"""

from __future__ import annotations

from hashlib import sha256
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from kvstate.codec import SEAL_BYTES, decode, encode, seal
from kvstate.errors import Damaged, InvalidValue, StateError
from kvstate.keyspace import after_prefix, meta_key, parse_journal
from kvstate.records import HEADER_BYTES, header, open_envelope

if TYPE_CHECKING:
    from kvstate.engine import Engine, Reader

__all__ = [
    "BODY",
    "NO_LINK",
    "TRIMMED_KEY",
    "Chain",
    "ChainReport",
    "Flaw",
    "Link",
    "link_record",
    "open_link",
    "pack_link",
    "verify",
]

NO_LINK: Final = bytes(32)
"""What the first record of a store follows."""
TRIMMED_KEY: Final = meta_key("journal")
"""Where the link of the last record that was trimmed is kept."""
_START: Final = Struct(">Q")
BODY: Final = _START.size + len(NO_LINK)
"""Where the entries begin in a record's payload, after ``start`` and the link."""
_LINK_AT: Final = HEADER_BYTES + _START.size
_BODY_AT: Final = HEADER_BYTES + BODY
_PREFIX: Final = b"J"
_KEY_BYTES: Final = 11
_PAGE: Final = 1024
_PAGE_BYTES: Final = 1 << 20


class Link(NamedTuple):
    """A record's place in the chain; ``link`` is None when nobody can read it any more."""

    revision: int
    chunk: int
    link: bytes | None


class Flaw(NamedTuple):
    """What is wrong with the chain at a revision.

    ``kind`` is ``link`` (it does not follow from what is before it), ``gap`` (it is missing) or
    ``damaged`` (it cannot be read).
    """

    revision: int
    kind: str
    why: str


class ChainReport(NamedTuple):
    """What a walk along the chain found.

    ``first`` and ``last`` are revisions, 0 in an empty journal; ``tip`` is the newest record's link
    as hex, empty when it cannot be read. ``altered`` is the first revision with which something is
    wrong, ``kind`` and ``why`` say what, as in `Flaw` (None and empty when nothing is). ``noted``
    says whether the expected link was met; None when none was expected.
    """

    records: int
    first: int
    last: int
    tip: str
    altered: int | None
    kind: str
    why: str
    noted: bool | None

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong, and the expected link, if any, is in the chain."""
        return self.altered is None and self.noted is not False


def link_record(
    before: bytes, key: bytes, at_ns: int, revision: int, start: int, body: bytes
) -> tuple[bytes, bytes]:
    """Give a record's bytes, and its link, which the next one follows."""
    head = header(revision, at_ns) + _START.pack(start)
    link = sha256(before + key + head + body).digest()
    return seal(key, head + link + body), link


def open_link(payload: bytes) -> tuple[int, bytes]:
    """Give a record's ``start`` and its link."""
    return _START.unpack_from(payload)[0], payload[_START.size : BODY]


def pack_link(key: bytes, payload: bytes) -> bytes:
    """Give what `TRIMMED_KEY` holds after this record was trimmed."""
    return encode([*parse_journal(key), open_link(payload)[1]])


def _trimmed(reader: Reader) -> Link:
    """Give what the oldest record that is left has to follow."""
    data = reader.get(TRIMMED_KEY)
    if data is None:
        return Link(0, 0, NO_LINK)
    revision, chunk, link = decode(open_envelope(TRIMMED_KEY, data).payload)
    if not (isinstance(revision, int) and isinstance(chunk, int) and isinstance(link, bytes)):
        raise Damaged(f"record {TRIMMED_KEY!r}", "it holds no link")
    return Link(revision, chunk, link)


class Chain:
    """A walk along the chain: takes record after record, in the order of their keys."""

    def __init__(self, reader: Reader) -> None:
        self.at: Link | None = None
        """The last record that was taken, or trimmed; None when that cannot be known."""
        self._follow(reader)

    def _follow(self, reader: Reader) -> None:
        try:
            self.at = _trimmed(reader)
        except (StateError, ValueError, TypeError):
            self.at = None

    def catch_up(self, reader: Reader) -> None:
        """Go on behind what was trimmed since the last record was taken, if it was."""
        at = self.at
        self._follow(reader)
        if self.at is None or (at is not None and at[:2] > self.at[:2]):
            self.at = at

    def take(self, key: bytes, data: bytes) -> Flaw | None:
        """Say what is wrong with the next record; the one after it is held to this one's link."""
        if len(key) != _KEY_BYTES:
            return Flaw(
                int.from_bytes(key[1:9], "big"), "damaged", f"no record has such a key: {key!r}"
            )
        last, place = self.at, parse_journal(key)
        revision = place[0]
        self.at = Link(*place, None)
        try:
            payload = open_envelope(key, data).payload
            if len(payload) < BODY:
                raise Damaged(f"record {key!r}", "it is shorter than its link")
        except StateError as error:
            return Flaw(revision, "damaged", str(error))
        self.at = Link(*place, open_link(payload)[1])
        if last is None:
            return Flaw(revision, "damaged", "what says what was trimmed before it is unreadable")
        if place <= last[:2]:
            return Flaw(revision, "link", f"it was trimmed, as everything up to {last.revision}")
        if place not in {(last.revision + 1, 0), (last.revision, last.chunk + 1)}:
            missing = min(last.revision + 1, revision)
            return Flaw(
                missing, "gap", f"it is missing: revision {last.revision} is followed by {revision}"
            )
        if last.link is not None and _link(last.link, key, data) != self.at.link:
            return Flaw(revision, "link", "its link does not match what is before it and in it")
        return None


def _link(before: bytes, key: bytes, data: bytes) -> bytes:
    return sha256(before + key + data[SEAL_BYTES:_LINK_AT] + data[_BODY_AT:]).digest()


def verify(engine: Engine, expect: str | None = None) -> ChainReport:
    """Walk along the whole chain, beside writers if there are any, in pages of bounded size.

    ``expect`` is a link as hex that was noted before; `InvalidValue` when it is none.
    """
    walk = _Verification(None if expect is None else _parsed(expect))
    while engine.read(walk.page):
        pass
    return walk.report()


def _parsed(expect: str) -> bytes:
    try:
        link = bytes.fromhex(expect)
    except (ValueError, TypeError):
        link = b""
    if len(link) != len(NO_LINK):
        raise InvalidValue("expect", f"{expect!r} is no link: {2 * len(NO_LINK)} digits of hex")
    return link


class _Verification:
    """The walk, from page to page: each is read on a state of its own."""

    def __init__(self, expect: bytes | None) -> None:
        self._expect = expect
        self._met = False
        self._chain: Chain | None = None
        self._start = _PREFIX
        self._records = self._first = self._last = 0
        self._tip: bytes | None = NO_LINK
        self._flaw: Flaw | None = None

    def page(self, reader: Reader) -> bool:
        """Take as many records as a page has; say whether there may be more."""
        if self._chain is None:
            self._chain = Chain(reader)
        else:
            self._chain.catch_up(reader)  # trimming may have been faster
        self._note()
        taken = size = 0
        for key, data in reader.scan(self._start, after_prefix(_PREFIX)):
            self._take(self._chain, key, data)
            self._start = key + b"\0"
            taken, size = taken + 1, size + len(data)
            if taken >= _PAGE or size >= _PAGE_BYTES:
                return True
        return False

    def _take(self, chain: Chain, key: bytes, data: bytes) -> None:
        flaw = chain.take(key, data)
        self._flaw = self._flaw or flaw
        self._records += 1
        self._last = int.from_bytes(key[1:9], "big")
        self._first = self._first or self._last
        self._note()

    def _note(self) -> None:
        """Take note of the link that the walk has reached."""
        at = self._chain and self._chain.at
        self._tip = at.link if at else None
        self._met = self._met or (self._expect is not None and self._tip == self._expect)

    def report(self) -> ChainReport:
        """Give what was found."""
        flaw = self._flaw
        return ChainReport(
            self._records,
            self._first,
            self._last,
            (self._tip or b"").hex(),
            None if flaw is None else flaw.revision,
            "" if flaw is None else flaw.kind,
            "" if flaw is None else flaw.why,
            None if self._expect is None else self._met,
        )
