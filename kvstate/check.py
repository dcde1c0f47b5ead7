"""The walk over the whole store that names every inconsistency.

It reads one consistent state of the records, so it may run beside writers; whatever it finds amiss
among the blob files, which have no such state, it looks at once more before it says so.

Invariants, by the name that a `Problem` bears:

- ``record``      every record's bytes are those that were written, under their own key
- ``key``         every key of the key space can be parsed
- ``expiry``      a key that expires has its index entry, and each entry its key
- ``namespace``   a key belongs to a namespace, an identity to one namespace
- ``count``       a namespace's keys and bytes are what it counts
- ``version``     a key's versions follow each other, and something says when they are too old
- ``index``       a key has exactly the entries of its value in each index that is ready
- ``identity``    every folder and artifact is found by its identity, each identity leads to one,
                  and those that were given ahead are of blocks that were taken
- ``folder``      a folder's counts equal its visible children; its parent is a folder
- ``depth``       artifacts lie below tenant/workflow/
- ``due``         every artifact has its due index entry, and each entry its artifact
- ``recent``      the same for the order of time of its workflow
- ``held``        the held artifacts, and no others, are in the index of what is held
- ``usage``       the counts of store, tenants and workflows equal what a walk counts
- ``reference``   a blob's references equal its users: artifacts, trash, values, journal entries
- ``content``     small content is there, and has its digest
- ``checksums``   a blob file has the checksums of all its blocks
- ``digest``      every blob is found by its digest, and each entry leads to a blob
- ``misplaced``   a blob that lies in another tier than its users want is noted
- ``file``        a blob's file is there and has its size (with ``verify``: and its checksums)
- ``tier``        each tier's folder is there, and the store's (else none of its files is looked at)
- ``damaged``     no blob is in quarantine
- ``orphan``      a file in a tier has a record, or a note that it is to be removed
- ``journal``     revisions follow each other, each linked to the one before; the count of bytes is
                  right
"""

from __future__ import annotations

import struct
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from kvstate.blob_records import INLINE, PACKED, Blob
from kvstate.chain import Chain
from kvstate.check_files import check_files
from kvstate.codec import decode, digest, unseal
from kvstate.errors import StateError
from kvstate.identities import BLOCKS_KEY, block_of, open_blocks
from kvstate.indexes import entries, key_of_entry
from kvstate.journal import unpack_entries
from kvstate.keyspace import (
    ROOT_ID,
    digest_key,
    due_key,
    expiry_key,
    held_key,
    misplaced_key,
    parse_due,
    parse_expiry,
    parse_held,
    parse_journal,
    parse_recent,
    parse_stale,
    parse_version,
    recent_key,
    usage_key,
)
from kvstate.nodes import File, Folder, open_trashed, unpack
from kvstate.policy import TIERS
from kvstate.policy_record import ASSESSED
from kvstate.records import GONE, SPILLED, open_envelope
from kvstate.repair import (
    count,
    erase,
    lead,
    name_space,
    refer,
    reserve,
    show,
    stale,
    toggle,
    total,
)
from kvstate.space import open_space
from kvstate.staging import BLOCK_BYTES
from kvstate.state import unpack_usage
from kvstate.tally import TRASH_ID
from kvstate.zstd import Corrupt, Frames

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstate.blobs import Blobs
    from kvstate.engine import Engine, Reader
    from kvstate.journal import Change, Journal
    from kvstate.nodes import Node
    from kvstate.repair import Mend
    from kvstate.space import Space

__all__ = ["Problem", "Report", "Walk", "check", "repair"]


_REPAIRS_MAX = 3
_COUNTED = (
    "records",
    "namespaces",
    "keys",
    "versions",
    "index_entries",
    "folders",
    "artifacts",
    "trashed",
    "blobs",
    "journal_entries",
)


class Problem(NamedTuple):
    """One inconsistency: which invariant, where, and what is wrong."""

    kind: str
    where: str
    why: str


class Report(NamedTuple):
    """What a check found."""

    problems: tuple[Problem, ...]
    counts: dict[str, int]
    repaired: tuple[Problem, ...] = ()
    """What was wrong, and is not any more."""

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def check(
    engine: Engine,
    blobs: Blobs,
    *,
    verify: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> Report:
    """Walk over the store; with ``verify`` also read every byte of every blob."""
    walk = Walk(blobs)
    engine.read(walk.run)
    check_files(engine, blobs, walk, progress, verify=verify)
    return Report(tuple(walk.problems), dict(walk.counts))


def repair(
    engine: Engine,
    journal: Journal,
    blobs: Blobs,
    *,
    verify: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> Report:
    """Check, write anew what can be found again, and check once more: what is left stands there."""

    def run(change: Change) -> Walk:
        walk = Walk(blobs)
        walk.run(change.tx)
        change.tx.memo.clear()
        for problem, mend in walk.mends:
            mend(change)
            change.say("repair", "", problem.where, None, None, f"{problem.kind}: {problem.why}")
        return walk

    found = journal.commit(run)
    for _ in range(_REPAIRS_MAX if found.mends else 0):  # what was mended may show more
        if not journal.commit(run).mends:
            break
    check_files(engine, blobs, found, progress, verify=verify)
    for tier, name in found.orphans:
        with suppress(StateError):
            blobs.places[tier].remove(name)
    for blob in found.lost:
        blobs.quarantine(blob, "its file is not what it should be")
    for quarantined in list(blobs.quarantined()):
        with suppress(StateError):
            blobs.verify(quarantined.blob)  # what is whole after all is let out
        with suppress(StateError):
            blobs.heal(journal, quarantined.blob)
    left = check(engine, blobs, verify=verify, progress=progress)
    known = {(problem.kind, problem.where) for problem in left.problems}
    repaired = [each for each in found.problems if (each.kind, each.where) not in known]
    return left._replace(repaired=tuple(repaired))


class Walk:
    """The records of one consistent state."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self.problems: list[Problem] = []
        self.mends: list[tuple[Problem, Mend]] = []
        self.orphans: list[tuple[int, str]] = []
        self.lost: list[bytes] = []
        self.counts: Counter[str] = Counter(dict.fromkeys(_COUNTED, 0))
        self.blobs: dict[bytes, Blob] = {}
        self.garbage: set[tuple[int, str]] = set()
        self._namespaces: dict[int, str] = {}
        self._expiries: set[tuple[int, int, bytes]] = set()
        self._spaces: dict[int, Space] = {}
        self._used: dict[int, list[int]] = {}
        self._kept_usage: dict[int, tuple[int, int]] = {}
        self._versions: dict[tuple[int, bytes], int] = {}
        self._stales: set[tuple[int, bytes]] = set()
        self._fields: set[bytes] = set()
        self._spilled: dict[bytes, bytes] = {}
        self._nodes: dict[int, Node] = {}
        self._blocks = 0
        self._block_max = -1
        self._places: dict[int, tuple[int, str]] = {}
        self._dues: set[tuple[int, int]] = set()
        self._recents: set[tuple[int, int, int]] = set()
        self._helds: set[tuple[int, int]] = set()
        self._totals: dict[int, list[int]] = {}
        self._trashed = [0] * 8
        self._digests: set[tuple[bytes, bytes]] = set()
        self._misplaced: set[bytes] = set()
        self._contents: dict[bytes, bytes] = {}
        self._sums: Counter[bytes] = Counter()
        self._frames: dict[bytes, list[bytes]] = {}
        self.packed: dict[bytes, int] = {}
        self.damaged: dict[bytes, str] = {}
        self._users: dict[bytes, list[int]] = {}
        self._chain: Chain | None = None
        self._journal_end: int | None = None

    def say(self, kind: str, where: object, why: str, mend: Mend | None = None) -> None:
        """Note a problem, and what would mend it."""
        problem = Problem(kind, str(where), why)
        self.problems.append(problem)
        if mend is not None:
            self.mends.append((problem, mend))

    def run(self, reader: Reader) -> None:
        """Read every record, then compare them."""
        self._chain = Chain(reader)  # what says where it begins sorts after it
        readers: dict[int, Callable[[bytes, bytes], None]] = {
            ord("M"): self._meta,
            ord("N"): self._namespace,
            ord("S"): self._state,
            ord("E"): self._expiry,
            ord("T"): self._entry,
            ord("I"): self._identity,
            ord("D"): self._due,
            ord("B"): self._blob,
            ord("C"): self._content,
            ord("K"): self._kept,
            ord("Q"): self._checksums,
            ord("F"): self._frame,
            ord("O"): self._quarantine,
            ord("V"): self._version,
            ord("W"): self._stale,
            ord("X"): self._field,
            ord("H"): self._digest,
            ord("P"): self._misplace,
            ord("G"): self._garbage,
            ord("R"): self._recent,
            ord("Y"): self._held,
            ord("U"): self._tally,
            ord("A"): self._queue,
            ord("Z"): self._trash,
            ord("J"): self._journal,
        }
        for key, data in reader.scan(b"", b"\xff" * 512):
            self.counts["records"] += 1
            known = readers.get(key[0])
            if known is None:
                self.say("key", key, "no record has such a key")
                continue
            try:
                known(key, data)
            except (StateError, ValueError, TypeError, IndexError, LookupError) as error:
                self.say("record", key, str(error))
            except Exception as error:  # noqa: BLE001  (struct and CBOR errors of bad bytes)
                self.say("key", key, f"{type(error).__name__}: {error}")
        self._compare()

    def _use(self, blob: bytes, tier: int) -> None:
        if blob:
            known = self.blobs.get(blob)  # B sorts before everything that has users
            tier = 0 if known is not None and known.form == INLINE else tier
            self._users.setdefault(blob, [0] * len(TIERS))[tier] += 1

    def _meta(self, key: bytes, data: bytes) -> None:
        payload = open_envelope(key, data).payload
        if key == BLOCKS_KEY:
            self._blocks = open_blocks(data)
        elif key != ASSESSED:
            decode(payload)

    def _namespace(self, key: bytes, data: bytes) -> None:
        space = open_space(key, data)
        number, name = space.number, key[1:].decode()
        self._spaces[number] = space
        if number in self._namespaces:
            self.say("namespace", name, f"{self._namespaces[number]!r} has the same identity")
        self._namespaces[number] = name
        self.counts["namespaces"] += 1

    def _state(self, key: bytes, data: bytes) -> None:
        envelope = open_envelope(key, data)
        number = int.from_bytes(key[1:9], "big")
        if number not in self._namespaces:  # N sorts before S
            self.say("namespace", key, "the key belongs to no namespace", name_space(number))
        if envelope.expires_ns:
            self._expiries ^= {(envelope.expires_ns, number, key[9:])}
        size = len(key) - 9
        if envelope.form & SPILLED:
            self._use(envelope.payload, 0)
            self._spilled[key] = envelope.payload
        else:
            value = decode(envelope.payload)
            size += len(envelope.payload)
            space = self._spaces.get(number)
            if space is not None and space.fields:
                self._fields ^= entries(space, key[9:], value)
        used = self._used.setdefault(number, [0, 0])
        used[0] += 1
        used[1] += size
        self.counts["keys"] += 1

    def _kept(self, key: bytes, data: bytes) -> None:
        self._kept_usage[int.from_bytes(key[1:], "big")] = unpack_usage(key, data)[:2]

    def _version(self, key: bytes, data: bytes) -> None:
        envelope = open_envelope(key, data)
        number, name, version = parse_version(key)
        if version != envelope.version:
            self.say("version", key, f"its record says that it is version {envelope.version}")
        if number not in self._namespaces:
            self.say("namespace", key, "the version belongs to no namespace")
        before = self._versions.get((number, name))
        if before is not None and version != before + 1:
            self.say("version", key, f"it follows version {before}")
        self._versions[number, name] = version
        if envelope.form & SPILLED:
            self._use(envelope.payload, 0)
        elif not envelope.form & GONE:
            decode(envelope.payload)
        self.counts["versions"] += 1

    def _stale(self, key: bytes, _data: bytes) -> None:
        _, number, name = parse_stale(key)
        self._stales.add((number, name))

    def _field(self, key: bytes, _data: bytes) -> None:
        self._fields ^= {key}
        self.counts["index_entries"] += 1

    def _expiry(self, key: bytes, _data: bytes) -> None:
        self._expiries ^= {parse_expiry(key)}  # what is left in the end is unmatched

    def _entry(self, key: bytes, data: bytes) -> None:
        node = unpack(key, data)
        self._nodes[node.id] = node
        self._block_max = max(self._block_max, _block(node.id))
        if isinstance(node, File):
            self._use(node.blob, node.tier)
            if node.look_ns:
                self._dues ^= {(node.look_ns, node.id)}
        self.counts["artifacts" if isinstance(node, File) else "folders"] += 1

    def _identity(self, key: bytes, data: bytes) -> None:
        place = unseal(key, data)
        number = int.from_bytes(key[1:], "big")
        self._places[number] = (int.from_bytes(place[:8], "big"), place[8:].decode())

    def _due(self, key: bytes, _data: bytes) -> None:
        self._dues ^= {parse_due(key)}

    def _recent(self, key: bytes, _data: bytes) -> None:
        self._recents.add(parse_recent(key))

    def _held(self, key: bytes, _data: bytes) -> None:
        self._helds.add(parse_held(key))

    def _tally(self, key: bytes, data: bytes) -> None:
        body = unseal(key, data)
        self._totals[int.from_bytes(key[1:], "big")] = list(struct.unpack(">8Q", body))

    def _queue(self, key: bytes, data: bytes) -> None:
        decode(open_envelope(key, data).payload)

    def _trash(self, key: bytes, data: bytes) -> None:
        file = open_trashed(key, data).file
        self._block_max = max(self._block_max, _block(file.id))
        self._use(file.blob, file.tier)
        self._trashed[2 * file.tier] += 1
        self._trashed[2 * file.tier + 1] += file.size
        self.counts["trashed"] += 1

    def _blob(self, key: bytes, data: bytes) -> None:
        form, size, content_digest, place, generation, *counts = decode(
            open_envelope(key, data).payload
        )
        self.blobs[key[1:]] = Blob(form, size, content_digest, place, generation, tuple(counts))
        self.counts["blobs"] += 1

    def _content(self, key: bytes, data: bytes) -> None:
        content = unseal(key, data)
        self._contents[key[1:]] = digest(content)

    def _checksums(self, key: bytes, data: bytes) -> None:
        self._sums[key[1:17]] += len(unseal(key, data)) // 8

    def _frame(self, key: bytes, data: bytes) -> None:
        self._frames.setdefault(key[1:17], []).append(unseal(key, data))

    def _quarantine(self, key: bytes, data: bytes) -> None:
        self.damaged[key[1:]] = decode(open_envelope(key, data).payload)

    def _digest(self, key: bytes, _data: bytes) -> None:
        self._digests.add((key[1:17], key[17:]))

    def _misplace(self, key: bytes, _data: bytes) -> None:
        self._misplaced.add(key[1:])

    def _garbage(self, key: bytes, _data: bytes) -> None:
        self.garbage.add((key[1], key[2:].hex()))

    def _journal(self, key: bytes, data: bytes) -> None:
        revision, _chunk = parse_journal(key)
        flaw = self._chain and self._chain.take(key, data)
        if flaw and flaw.kind != "damaged":  # that is said of the record
            self.say("journal", f"revision {flaw.revision}", flaw.why)
        expected, self._journal_end = self._journal_end, None
        envelope = open_envelope(key, data)
        start, _actor, entries = unpack_entries(envelope.payload)
        if expected is not None and start != expected:
            self.say("journal", f"revision {revision}", f"it starts at {start}, not {expected}")
        self._journal_end = start + len(key) + len(envelope.payload)
        for _kind, _scope, _name, value, previous, _why in entries:
            for raw in (value, previous):
                if isinstance(raw, list):
                    self._use(raw[0], 0)
        self.counts["journal_entries"] += len(entries)

    # Comparing

    def _compare_namespaces(self) -> None:
        for number, name in self._versions.keys() - self._stales:
            where = f"{number}/{name.decode()}"
            self.say("version", where, "nothing says when it gets too old", stale(number, name))
        for key, blob in self._spilled.items():
            record = self.blobs.get(blob)
            self._used[int.from_bytes(key[1:9], "big")][1] += 0 if record is None else record.size
        for number, space_name in self._namespaces.items():
            kept, used = self._kept_usage.pop(number, (0, 0)), self._used.get(number, [0, 0])
            if list(kept) != used:
                why = f"it counts {list(kept)} keys and bytes, not {used}"
                self.say("count", space_name, why, count(number, *used))
        for number in self._kept_usage:
            mend = erase(usage_key(number))
            self.say("count", f"identity {number}", "no namespace has it", mend)
        for entry in self._fields:
            self._compare_field(entry)

    def _compare_field(self, entry: bytes) -> None:
        number, field = int.from_bytes(entry[1:9], "big"), int.from_bytes(entry[9:11], "big")
        space = self._spaces.get(number)
        if space is None or not any(f.number == field and f.ready for f in space.fields):
            return  # of an index that is being built, or dropped
        if space.prefix + key_of_entry(entry)[1] not in self._spilled:
            self.say("index", entry, "index and record disagree", toggle(entry))

    def _compare(self) -> None:
        self._compare_namespaces()
        for moment, number, name in sorted(self._expiries):
            where = f"{self._namespaces.get(number, number)}/{name.decode(errors='replace')}"
            mend = toggle(expiry_key(moment, number, name))
            self.say("expiry", where, f"index and record disagree on the expiry {moment}", mend)
        for moment, number in sorted(self._dues):
            why = f"index and record disagree on {moment}"
            self.say("due", f"identity {number}", why, toggle(due_key(moment, number)))
        self._compare_identities()
        self._compare_folders()
        self._compare_blobs()
        self._compare_totals()

    def _lineage(self, node: Node) -> tuple[int, ...]:
        """Give the identities of what counts an artifact: store, tenant, workflow."""
        above: list[int] = []
        while node.id != ROOT_ID and len(above) < len(self._nodes):
            found = self._nodes.get(node.parent)
            if found is None:
                break
            above.append(found.id)
            node = found
        return tuple(reversed(above))[:3]

    def _compare_totals(self) -> None:
        totals = {TRASH_ID: self._trashed}
        recents, helds = set(), set()
        for node in self._nodes.values():
            if not isinstance(node, File):
                continue
            lineage = self._lineage(node)
            recents.add((lineage[-1] if lineage else 0, node.written_ns, node.id))
            if node.holds:
                helds.add((lineage[-1] if lineage else 0, node.id))
            for folder in lineage:
                counted = totals.setdefault(folder, [0] * 8)
                counted[2 * node.tier] += 1
                counted[2 * node.tier + 1] += node.size
                counted[6] += bool(node.holds)
                counted[7] += node.failure is not None
        for folder in sorted(totals.keys() | self._totals.keys()):
            kept, counted = self._totals.get(folder, [0] * 8), totals.get(folder, [0] * 8)
            if kept != counted:
                name = self._nodes[folder].name if folder in self._nodes else "nothing"
                where = f"{name or 'store'} #{folder}"
                self.say("usage", where, f"{kept}, not {counted}", total(folder, counted))
        for entry in sorted(recents ^ self._recents):
            why = f"index and record disagree: {entry}"
            self.say("recent", f"identity {entry[2]}", why, toggle(recent_key(*entry)))
        for held in sorted(helds ^ self._helds):
            mend = toggle(held_key(*held))
            self.say("held", f"identity {held[1]}", "index and record disagree", mend)

    def _compare_identities(self) -> None:
        for number, (parent, name) in self._places.items():
            node = self._nodes.get(number)
            if node is None or (node.parent, node.name) != (parent, name):
                why = f"it leads to {name!r}, which is not it"
                self.say("identity", f"identity {number}", why, lead(number, node))
        if self._block_max >= self._blocks:
            why = f"block {self._block_max} was given, {self._blocks} were taken"
            self.say("identity", "identities", why, reserve(self._block_max + 1))
        for number in self._nodes.keys() - self._places.keys():
            node = self._nodes[number]
            why = "its identity leads nowhere"
            self.say("identity", node.name or "root", why, lead(number, node))

    def _compare_folders(self) -> None:
        shown: dict[int, list[int]] = {}
        for node in self._nodes.values():
            counts = shown.setdefault(node.parent, [0] * len(TIERS))
            for tier in range(len(TIERS)):
                counts[tier] += node.shown_in(tier)
            if node.id != ROOT_ID and not isinstance(self._nodes.get(node.parent), Folder):
                self.say("folder", node.name, "its parent is no folder")
            if isinstance(node, File) and self._depth(node) < 3:
                self.say("depth", node.name, "it does not lie below tenant/workflow/")
        for node in self._nodes.values():
            if isinstance(node, Folder) and list(node.shown) != shown.get(node.id, [0, 0, 0]):
                counted = shown.get(node.id, [0, 0, 0])
                why = f"it counts {node.shown}, it has {counted}"
                self.say("folder", node.name, why, show(node, counted))
        if ROOT_ID not in self._nodes:
            self.say("folder", "root", "it is not there")

    def _depth(self, node: Node) -> int:
        depth = 0
        while node.id != ROOT_ID and depth <= len(self._nodes):
            depth += 1
            parent = self._nodes.get(node.parent)
            if parent is None:
                break
            node = parent
        return depth

    def _compare_blobs(self) -> None:
        for blob, record in self.blobs.items():
            where = f"blob {blob.hex()}"
            users = self._users.pop(blob, [0] * len(TIERS))
            if list(record.references) != users or not any(users):
                why = f"it counts {record.references}, it has {users}"
                self.say("reference", where, why, refer(self._blobs, blob, record, users))
            if (record.digest, blob) not in self._digests:
                mend = toggle(digest_key(record.digest, blob))
                self.say("digest", where, "its digest does not lead to it", mend)
            self._digests.discard((record.digest, blob))
            if record.form == INLINE:
                self._compare_content(where, blob, record)
            else:
                self._compare_file(where, blob, record)
        for blob, users in self._users.items():
            self.say("reference", f"blob {blob.hex()}", f"{users} refer to it, it is not there")
        for content_digest, blob in self._digests:
            mend = toggle(digest_key(content_digest, blob))
            self.say("digest", f"blob {blob.hex()}", "a digest leads to it, it is not there", mend)
        for blob, why in self.damaged.items():
            self.say("damaged", f"blob {blob.hex()}", why)
        left = self._contents.keys() | self._sums.keys() | self._frames.keys() | self._misplaced
        for blob in left:
            mend = self._erase_content(blob)
            why = "its content is there, its record is not"
            self.say("content", f"blob {blob.hex()}", why, mend)

    @staticmethod
    def _erase_content(blob: bytes) -> Mend:
        mends = [erase(kind + blob) for kind in (b"C", b"Q", b"F", b"P")]

        def mend(change: Change) -> None:
            for each in mends:
                each(change)

        return mend

    def _compare_content(self, where: str, blob: bytes, record: Blob) -> None:
        found = self._contents.pop(blob, None)
        if found != record.digest:
            why = "is not there" if found is None else "has another digest"
            self.say("content", where, f"its content {why}")

    def _compare_file(self, where: str, blob: bytes, record: Blob) -> None:
        if self._sums.pop(blob, 0) != -(-record.size // BLOCK_BYTES):
            self.say("checksums", where, "it has not the checksums of all its blocks")
        # A plain file may be noted that is to be packed where it is.
        misplaced, noted = record.wanted() != record.place, blob in self._misplaced
        if (misplaced and not noted) or (noted and not misplaced and record.form == PACKED):
            mend = toggle(misplaced_key(blob))
            self.say("misplaced", where, "its place and the note of it disagree", mend)
        self._misplaced.discard(blob)
        parts = self._frames.pop(blob, None)
        if record.form == PACKED:
            try:
                self.packed[blob] = Frames.from_records(parts or []).size
            except Corrupt as error:
                self.say("checksums", where, str(error))
        elif parts is not None:
            self.say("checksums", where, "it has frames, and is not packed")


def _block(identity: int) -> int:
    block = block_of(identity)
    return -1 if block is None else block
