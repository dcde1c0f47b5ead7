"""The store: a folder that holds everything, opened by this process.

    <store>/kvstate.toml        settings that all who open it share (optional)
    <store>/records/            the record file (LMDB)
    <store>/tiers/hot|warm|cold blob files, where the settings name no other folders

The folder is made with mode 0700: who may read the store is decided by who may enter it.
"""

from __future__ import annotations

import os
import uuid
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from kvstate.artifacts import Artifacts
from kvstate.asking import Question, answers
from kvstate.audit import audited
from kvstate.blobs import Blobs
from kvstate.catalog import Catalog
from kvstate.chain import verify as verify_chain
from kvstate.check import check as walk
from kvstate.check import repair as mend
from kvstate.clock import SECOND, SystemClock
from kvstate.codec import decode, encode
from kvstate.configuring import configure, own, remove_namespace
from kvstate.engine.lmdb import LmdbEngine
from kvstate.engine.memory import MemoryEngine
from kvstate.errors import Damaged, Incompatible, InvalidValue, NotFound
from kvstate.expiry import Expiry
from kvstate.identities import Identities
from kvstate.journal import Journal, chosen
from kvstate.keyspace import meta_key
from kvstate.lifecycle import Lifecycle
from kvstate.locks import Lock
from kvstate.moving import Moving
from kvstate.names import check_namespace
from kvstate.namespace import Namespace
from kvstate.places import raise_os_error
from kvstate.policy import TIERS
from kvstate.policy_record import Policies
from kvstate.reads import Reads
from kvstate.records import FORMAT, open_envelope
from kvstate.scrubbing import Scrubbing
from kvstate.settings import StoreSettings
from kvstate.state import State
from kvstate.tier_places import open_places
from kvstate.transaction import Transaction, apply, transact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from datetime import timedelta

    from kvstate.chain import ChainReport
    from kvstate.check import Report
    from kvstate.clock import Clock
    from kvstate.engine import Engine
    from kvstate.journal import Change, Event, Named
    from kvstate.places import Place
    from kvstate.scrubbing import Scrubbed
    from kvstate.space import NamespaceSettings, Owner, Space
    from kvstate.transaction import Seen, SeenRange, Write

__all__ = ["Store", "open_store"]

T = TypeVar("T")

SETTINGS_FILE = "kvstate.toml"
TENANTS_SHOWN = 1000
ANSWER_SECONDS = 2.0
"""For how long the figures wait for a tier's disk."""
_FORMAT_KEY = meta_key("format")


class Store:
    """An open store. Use it from any thread; close it, or use it as a context manager."""

    def __init__(
        self,
        path: Path,
        engine: Engine,
        places: tuple[Place, ...],
        settings: StoreSettings,
        clock: Clock,
        *,
        read_only: bool,
        actor: str | None,
    ) -> None:
        self.path = path
        self.engine = engine
        self.settings = settings
        self.clock = clock
        self.read_only = read_only
        self._places = places
        self._asked = [Question(place.status) for place in places]
        self._journal = Journal(engine, clock, settings, actor=actor)
        self.blobs = Blobs(
            engine, places, clock, settings.inline_bytes_max, threads=settings.move_threads
        )
        self._journal.release = self.blobs.release
        self._journal.load = self.blobs.load
        self._state = State(engine, self._journal, self.blobs, clock, settings.inline_bytes_max)
        self._state.writable = not read_only
        expiry = Expiry(self._state)
        policies = Policies(engine, settings.policy())
        self.catalog = Catalog(engine, self._journal, self.blobs, policies, len(TIERS))
        self.moving = Moving(engine, self._journal, self.catalog, self.blobs)
        self.identities = Identities(engine, clock)
        self.reads = Reads(self.catalog, clock, read_only=read_only)
        self.artifacts = Artifacts(
            self.catalog, self.moving, self.blobs, self._journal, self.reads, engine, clock
        )
        expiry.archive = self.artifacts.put_with
        self._expiry = expiry
        self._scrubbing = Scrubbing(engine, self._journal, self.blobs, clock)
        self.lifecycle = Lifecycle(
            engine,
            self._journal,
            expiry,
            self.catalog,
            self.moving,
            self.blobs,
            clock,
            self.reads,
            path,
            rate=settings.move_bytes_per_second,
            threads=settings.move_threads,
        )

    def namespace(self, name: str) -> Namespace:
        """Give a namespace; it is made when its first key is set."""
        return Namespace(self._state, name)

    def namespaces(self) -> Iterator[str]:
        """Give the names of all namespaces, in byte order."""
        return self._state.names()

    def make_namespace(self, name: str, owner: Owner | None = None) -> None:
        """Make a namespace before its first key, if it is not there."""

        def run(change: Change) -> None:
            before = self._state.found(data, change)
            made = self._state.made(data, change)
            if before is None:
                if owner is not None:
                    self._state.put_space(change, made._replace(owner=owner))
                change.say("mkspace", name, "")

        data = check_namespace(name)
        self._journal.commit(run)

    def configure(self, namespace: str, **options: Any) -> NamespaceSettings:
        """Change some settings of a namespace, kept in the store; give all of them.

        ``ttl``, ``sliding``, ``history``, ``history_age``, ``on_expire``, ``index``, ``schema``,
        ``keys_max``, ``bytes_max``: `NamespaceSettings` says what each is; None is its default.
        Returns when an index is built. `InvalidValue` names what is wrong.
        """
        return configure(self._state, namespace, options)

    def space(self, name: str) -> Space | None:
        """Give what is known of a namespace; None when there is none of this name."""
        return self._state.space(name.encode("utf-8", "surrogateescape"))

    def own_namespace(self, name: str, change_owner: Callable[[Owner | None], Owner]) -> Owner:
        """Change who owns a namespace, and its mode, by a function; give what it gave."""
        return own(self._state, name, change_owner)

    def transaction(self) -> Transaction:
        """Begin a transaction over any namespaces: a context manager, all or nothing.

        `Conflict` at the end when somebody changed what was read.
        """
        return Transaction(self.namespace, self.apply)

    def apply(self, seen: list[Seen], ranges: list[SeenRange], writes: list[Write]) -> int:
        """Check what a transaction saw, and write what it wrote, in one commit."""
        return apply(self._state, seen, ranges, writes)

    def transact(self, function: Callable[[Transaction], T]) -> T:
        """Run the function in a transaction, again after a conflict; give its result."""
        return transact(self.transaction, function)

    def lock(
        self,
        name: str,
        *,
        ttl: float | timedelta = 30.0,
        owner: str | None = None,
        timeout: float | None = None,
    ) -> Lock:
        """Give a lock among all processes of the store: a context manager with a lease."""
        return Lock(self, name, ttl=ttl, owner=owner, timeout=timeout)

    def remove_namespace(self, name: str) -> bool:
        """Remove an empty namespace; `Conflict` when it has keys; say whether it was there."""
        return remove_namespace(self._state, name)

    def journal(
        self,
        since: int = 0,
        limit: int | None = None,
        *,
        namespace: str | None = None,
        prefix: str = "",
        strict: bool = False,
    ) -> Iterator[Event]:
        """Give the changes after a revision, oldest first, up to the newest.

        Of one namespace, if it is given, and of names that begin with ``prefix``. `Compacted` when
        some of them were trimmed; ``since=0`` asks for all that there are, unless ``strict``.
        """
        events = self._journal.events(since, strict=strict)
        return islice(chosen(events, namespace, prefix), limit)

    def audit(
        self,
        since: int = 0,
        limit: int | None = None,
        *,
        tenant: str | None = None,
        artifact: str | None = None,
        newest: int | None = None,
    ) -> Iterator[dict[str, object]]:
        """Give what was done to artifacts as audit records (`kvstate.audit`), oldest first.

        Of one tenant, or of one artifact (``tenant/workflow/name``), if they are given; only the
        ``newest`` so many, if that is. `Compacted` as for `journal`.
        """
        return audited(self, since, limit, tenant=tenant, artifact=artifact, newest=newest)

    def changed_names(self, since: int) -> Iterator[Named]:
        """Give what each change after a revision was about, oldest first, without its values.

        `Compacted` when some of them were trimmed.
        """
        return self._journal.names(since)

    def verify_journal(self, expect: str | None = None) -> ChainReport:
        """Walk along the journal's hash chain, and say the first revision that was altered.

        ``expect`` is a tip, as hex, that was noted earlier: the chain has to contain it.
        """
        return verify_chain(self.engine, expect)

    def watch(
        self,
        namespace: str | None = None,
        since: int | None = None,
        timeout: float | None = None,
        *,
        prefix: str = "",
    ) -> Iterator[Event]:
        """Give changes as they are committed, by any process, after a revision or from now on.

        Of one namespace, if it is given, and of names that begin with ``prefix``. Ends after
        ``timeout`` seconds without a change; without one it goes on for ever. `Compacted` when
        events between were trimmed. Keys that expire meanwhile are swept on time.
        """
        if namespace is not None:
            check_namespace(namespace)
        events = self._journal.watch(since, timeout, self._sweep_when_due)
        return chosen(events, namespace, prefix)

    def _sweep_when_due(self) -> float | None:
        """Sweep what is due; give the seconds until something is due again."""
        if self.read_only:
            return None
        due_ns = self._expiry.next_due_ns()
        if due_ns is not None and due_ns <= self.clock.now_ns():
            self._expiry.sweep()
            due_ns = self._expiry.next_due_ns()
        if due_ns is None:
            return None
        return max(0.001, (due_ns - self.clock.now_ns()) / SECOND)

    def wait(self, revision: int, timeout: float | None = None) -> int:
        """Wait until the store is past a revision, or the time is up; give its revision."""
        return self._journal.wait(revision, timeout)

    def revision(self) -> int:
        """Give the newest revision."""
        return self._journal.revision()

    def acting(self, actor: str) -> AbstractContextManager[None]:
        """Let what this thread commits meanwhile bear another actor in the journal."""
        return self._journal.acting(actor)

    def stats(self) -> dict[str, object]:
        """Give figures about the store, as plain values. Bytes of tiers count duplicates."""
        engine = self.engine.stats()
        names = list(self.namespaces())
        keys, keys_bytes = self._state.totals()
        places = self._place_status()
        return {
            "path": str(self.path),
            "revision": self.revision(),
            "journal_oldest": self._journal.oldest(),
            "journal_bytes": self._journal.size(),
            "namespaces": len(names),
            "keys": keys,
            "keys_bytes": keys_bytes,
            **self.lifecycle.summary(),
            "damaged": self.lifecycle.damaged(),
            "tenants": {
                name: {"artifacts": totals.artifacts, "bytes": totals.bytes}
                for name, totals in islice(self.artifacts.usages(), TENANTS_SHOWN)
            },
            "records_bytes": engine["used_bytes"],
            "records_free_bytes": engine["free_bytes"],
            "page_bytes": engine["page_bytes"],
            "map_bytes": engine["map_bytes"],
            "readers": engine["readers"],
            "readers_max": engine["readers_max"],
            "free_bytes": {tier: places[tier]["free_bytes"] for tier in TIERS},
            "places": places,
        }

    def _place_status(self) -> dict[str, dict[str, object]]:
        """Give what is known of each tier's place; one that does not answer is unavailable."""
        given = answers(self._asked, ANSWER_SECONDS)
        silent = f"it did not answer within {ANSWER_SECONDS:g} s"
        return {
            tier: place.unknown(silent) if status is None else status
            for tier, place, status in zip(TIERS, self._places, given, strict=True)
        }

    def check(
        self,
        *,
        verify: bool = False,
        repair: bool = False,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Report:
        """Walk over everything and name every inconsistency; ``verify`` reads every byte, too.

        With ``repair`` write anew what can be found again (indexes, counts, references), remove
        files that nothing names, heal what is damaged; the report says what is left, and what not.
        """
        if repair:
            return mend(self.engine, self._journal, self.blobs, verify=verify, progress=progress)
        return walk(self.engine, self.blobs, verify=verify, progress=progress)

    def scrub(
        self,
        *,
        bytes_max: int | None = None,
        rate: float = 0,
        restart: bool = False,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Scrubbed:
        """Read everything that is stored and compare checksums, from where the last scrub ended.

        For about so many bytes, or to the end; at so many bytes a second, or as fast as it goes.
        ``restart`` begins a new round. ``progress`` gets the bytes read, 0, and what is being read.
        """
        return self._scrubbing.run(
            bytes_max=bytes_max, rate=rate, restart=restart, progress=progress
        )

    def close(self) -> None:
        """Let go of everything. What was acknowledged is on disk already."""
        self.reads.flush()
        self.engine.close()
        for place in self._places:
            place.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Making

    def prepare(self) -> None:
        """Make what a new store lacks, refuse another format, clear up after dead writers."""
        data = self.engine.get(_FORMAT_KEY)
        if data is None:
            if self.read_only:
                raise NotFound("store", str(self.path))
            self._journal.commit(self._found)
        else:
            self._check_format(data)
        if not self.read_only:
            for place in self._places:
                place.prepare()
            self.blobs.recover()
            self.blobs.sweep(all_notes=True)

    def _check_format(self, data: bytes) -> None:
        try:
            facts = decode(open_envelope(_FORMAT_KEY, data).payload)
        except Incompatible as error:
            raise Incompatible(f"store {str(self.path)!r}", str(error.facts[1])) from None
        if not isinstance(facts, dict) or "format" not in facts:
            raise Damaged(f"store {str(self.path)!r}", "its format record is unreadable")
        if facts["format"] != FORMAT:
            raise Incompatible(
                f"store {str(self.path)!r}",
                f"it has format {facts['format']}, this version of kvstate reads {FORMAT}",
            )

    def _found(self, change: Change) -> None:
        if change.tx.get(_FORMAT_KEY) is not None:
            return
        change.seal(_FORMAT_KEY, encode({"format": FORMAT, "id": str(uuid.uuid4())}))
        self.catalog.make_root(change, os.getuid(), os.getgid())
        self.catalog.policies.adopt(change)
        change.say("create", "", "")


def open_store(
    path: str | os.PathLike[str],
    *,
    create: bool = True,
    read_only: bool = False,
    engine: str = "lmdb",
    settings: StoreSettings | None = None,
    clock: Clock | None = None,
    actor: str | None = None,
) -> Store:
    """Open the store in a folder; make it if there is none and ``create`` is on.

    Without ``settings``, those of the store's own ``kvstate.toml`` hold. ``engine="memory"`` keeps
    the records in memory (they are gone on close). ``actor`` is who the journal says did it.
    Errors: `NotFound`, `Denied`, `Incompatible`, `Full`, `InvalidConfig`.
    """
    folder = Path(path)
    made = engine == "memory" or not (folder / "records" / "data.mdb").exists()
    if made and (read_only or not create):
        raise NotFound("store", str(folder))
    try:
        if made:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (folder / "records").mkdir(mode=0o700, exist_ok=True)
            (folder / "tiers").mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise_os_error(error, str(folder))
    settings = settings or _own_settings(folder)
    opened = _open_engine(engine, folder, settings, read_only=read_only, create=create)
    clock = clock or SystemClock()
    try:
        places = open_places(
            opened, folder, settings, clock, signed=engine != "memory", read_only=read_only
        )
        store = Store(folder, opened, places, settings, clock, read_only=read_only, actor=actor)
        store.prepare()
    except BaseException:
        opened.close()
        raise
    return store


def _open_engine(
    kind: str, folder: Path, settings: StoreSettings, *, read_only: bool, create: bool
) -> Engine:
    if kind == "memory":
        return MemoryEngine()
    if kind != "lmdb":
        raise InvalidValue("engine", f"{kind!r} is neither 'lmdb' nor 'memory'")
    return LmdbEngine(
        folder / "records",
        map_bytes=settings.map_bytes,
        readers_max=settings.readers_max,
        read_only=read_only,
        create=create,
    )


def _own_settings(folder: Path) -> StoreSettings:
    """Read the store's own settings file; its library is loaded only if there is one."""
    if not (folder / SETTINGS_FILE).exists():
        return StoreSettings()
    from kvstate.config import load  # noqa: PLC0415  (costs 30 ms, and most stores have no file)

    return load(folder, None, {}).store_settings()
