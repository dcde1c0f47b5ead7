"""The store over the daemon's socket: the embedded store's names, results and errors.

    with kvstate.connect() as store:
        store.namespace("prs").set("9fceb02", 1287, ttl=3600)

A `RemoteStore` may be used by many threads at once: each request takes a connection of its own from
a pool, which grows as far as requests overlap. An iterator or an open artifact keeps its connection
until it is exhausted or closed. What happens when the daemon goes away stands in `kvstate.client`,
artifacts are in `kvstate.transfer`, what can be asked in `kvstate.operations`.
"""

from __future__ import annotations

import math
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from kvstate.check import Problem, Report
from kvstate.client import Client
from kvstate.errors import Denied, InvalidName, InvalidValue
from kvstate.journal import Event
from kvstate.key_mapping import KeyMapping
from kvstate.lifecycle import Move, Outcome
from kvstate.names import check_key, check_namespace
from kvstate.state import Entry
from kvstate.transfer import RemoteArtifacts
from kvstate.wire import default_socket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from datetime import datetime
    from types import TracebackType
    from typing import Self

    from kvstate.codec import Value

__all__ = ["RemoteLifecycle", "RemoteNamespace", "RemoteStore", "connect"]

_WAIT_SECONDS = 30.0
_KEYS_AT_ONCE = 4096


def connect(socket: str | os.PathLike[str] | None = None) -> RemoteStore:
    """Open the store of the daemon that answers on this socket; `Unavailable` when none does.

    Without ``socket``: ``$KVSTATE_SOCKET``, else ``$XDG_RUNTIME_DIR/kvstate.sock`` if it is there,
    else ``/run/kvstate/kvstate.sock``.
    """
    if socket is None:
        socket = default_socket(os.environ)
        if not os.environ.get("KVSTATE_SOCKET") and not os.path.exists(socket):  # noqa: PTH110
            socket = default_socket({})
    return RemoteStore(os.fspath(socket))


class RemoteStore:
    """A store in another process. The same methods as `kvstate.store.Store`."""

    read_only = False

    def __init__(self, socket: str) -> None:
        self._client = Client(socket)
        self.path = Path(self._client.greeting["store"])
        self.artifacts = RemoteArtifacts(self._client)
        self.lifecycle = RemoteLifecycle(self._client)

    def __repr__(self) -> str:
        return f"<kvstate store {str(self.path)!r} over {self._client.path!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; using the store afterwards raises `Unavailable`."""
        self._client.close()

    def namespace(self, name: str) -> RemoteNamespace:
        """Give the namespace; it comes into being with its first key."""
        return RemoteNamespace(self._client, name)

    def namespaces(self) -> Iterator[str]:
        """Give the names of all namespaces in byte order."""
        return cast("Iterator[str]", self._client.listing("namespaces"))

    def make_namespace(self, name: str) -> None:
        """Make an empty namespace; nothing happens when it is there."""
        self._client.call("make_namespace", name)

    def remove_namespace(self, name: str) -> bool:
        """Remove an empty namespace; `Conflict` when it has keys; say whether it was there."""
        return bool(self._client.call("remove_namespace", name))

    def revision(self) -> int:
        """Give the number of the newest commit."""
        return int(self._client.call("revision"))

    def wait(self, revision: int, timeout: float | None = None) -> int:
        """Wait until the store is past this revision, or the time is up; give its revision."""
        deadline = time.monotonic() + (math.inf if timeout is None else timeout)
        while True:
            seconds = max(0.0, min(deadline - time.monotonic(), _WAIT_SECONDS))
            current = int(self._client.call("wait", revision, seconds))
            if current > revision or seconds < _WAIT_SECONDS:
                return current

    def journal(self, since: int = 0, limit: int | None = None) -> Iterator[Event]:
        """Give the events after this revision, in order, up to the newest."""
        return (Event(*row) for row in self._client.listing("journal", since, limit))

    def watch(
        self,
        namespace: str | None = None,
        since: int | None = None,
        timeout: float | None = None,
    ) -> Iterator[Event]:
        """Give events as they are committed, by anyone; end after ``timeout`` quiet seconds."""
        if namespace is not None:
            check_namespace(namespace)
        seen = self.revision() if since is None else since
        return self._watch(namespace, seen, timeout)

    def _watch(self, namespace: str | None, seen: int, timeout: float | None) -> Iterator[Event]:
        while True:
            newest = self.revision() if namespace is not None else seen
            for row in self._client.listing("journal", seen, None, namespace):
                event = Event(*row)
                seen = event.revision
                yield event
            seen = max(seen, newest)
            if self.wait(seen, timeout) <= seen:
                return

    def stats(self) -> dict[str, object]:
        """Give what is stored, in numbers."""
        return dict(self._client.call("stats"))

    def check(
        self,
        *,
        verify: bool = False,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Report:
        """Walk over everything and name every inconsistency; ``verify`` reads every byte, too."""
        problems, counts = self._client.told("check", (verify, progress is not None), progress)
        return Report(tuple(Problem(*problem) for problem in problems), counts)

    def acting(self, actor: str) -> NoReturn:
        """Not here (`Denied`): the daemon says who acts, by the user of the connected process."""
        raise Denied(f"acting as {actor!r}", "over a socket the daemon says who acts")


class RemoteNamespace(KeyMapping):
    """A namespace in another process. The same methods as `kvstate.state.Namespace`."""

    def __init__(self, client: Client, name: str) -> None:
        check_namespace(name)
        self.name = name
        self._client = client
        self._call = client.call

    def __repr__(self) -> str:
        return f"<kvstate namespace {self.name!r}>"

    # Reading

    def get(self, key: str, default: Any = None) -> Value:
        """Give the key's value; the default when it is absent or has expired."""
        found = self._call("get", self.name, key)
        return default if found is None else found[0]

    def entry(self, key: str) -> Entry | None:
        """Give the key with its revision and times; None when it is absent or has expired."""
        row = self._call("entry", self.name, key)
        return None if row is None else Entry(*row)

    def get_many(self, keys: Iterable[str]) -> dict[str, Value]:
        """Give the values of those keys that are there; as of one moment for each few thousand."""
        wanted = list(keys)
        found: dict[str, Value] = {}
        while wanted:
            values, seen = self._call("get_many", self.name, wanted[:_KEYS_AT_ONCE])
            found.update(values)
            del wanted[:seen]
        return found

    def scan(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Iterator[Entry]:
        """Give the entries whose keys begin with ``prefix``, in the byte order of the keys."""
        rows = self._client.listing("scan", self.name, prefix, start, limit, reverse)
        return (Entry(*row) for row in rows)

    def ttl(self, key: str) -> float | None:
        """Give the seconds until the key expires; None if never; `NotFound` when it is absent."""
        left: float | None = self._call("ttl", self.name, key)
        return left

    # Writing

    def set(
        self,
        key: str,
        value: Value,
        *,
        ttl: float | timedelta | None = None,
        expires_at: datetime | float | None = None,
        if_absent: bool = False,
        if_present: bool = False,
        if_revision: int | None = None,
        keep_ttl: bool = False,
    ) -> int:
        """Set the key; give the revision. Durable when this returns."""
        revision: int = self._call(
            "set",
            self.name,
            key,
            value,
            _seconds(ttl),
            expires_at,
            if_absent,
            if_present,
            if_revision,
            keep_ttl,
        )
        return revision

    def set_many(
        self,
        mapping: Mapping[str, Value],
        *,
        ttl: float | timedelta | None = None,
        expires_at: datetime | float | None = None,
    ) -> int:
        """Set all these keys in one transaction; give the revision. They must fit one frame."""
        values = dict(mapping)
        try:
            revision: int = self._call("set_many", self.name, values, _seconds(ttl), expires_at)
        except InvalidValue:
            for key in values:
                check_key(key)
            raise
        return revision

    def delete(self, key: str, *, if_revision: int | None = None) -> bool:
        """Delete the key; say whether it was there. `Conflict` when ``if_revision`` is not its."""
        return bool(self._call("delete", self.name, key, if_revision))

    def expire(
        self,
        key: str,
        ttl: float | timedelta | None = None,
        *,
        expires_at: datetime | float | None = None,
    ) -> bool:
        """Let the key expire after so many seconds, or at a moment; say whether it was there."""
        return bool(self._call("expire", self.name, key, _seconds(ttl), expires_at))

    def persist(self, key: str) -> bool:
        """Let the key never expire; say whether it was there."""
        return bool(self._call("persist", self.name, key))

    def rename(self, old: str, new: str, *, replace: bool = False) -> int:
        """Give the key another name; its TTL goes with it."""
        revision: int = self._call("rename", self.name, old, new, replace)
        return revision

    # The mapping

    def __contains__(self, key: object) -> bool:
        try:
            return self._call("get", self.name, key) is not None
        except InvalidName:
            return False

    def __iter__(self) -> Iterator[str]:
        return cast("Iterator[str]", self._client.listing("keys", self.name))

    def __len__(self) -> int:
        return int(self._call("count", self.name))


class RemoteLifecycle:
    """The lifecycle in another process. The same methods as `kvstate.lifecycle.Lifecycle`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def plan(self, limit: int | None = None) -> Iterator[Move]:
        """Give what is due now, in due order."""
        return (Move(*row) for row in self._client.listing("lifecycle_plan", limit))

    def run(
        self,
        *,
        dry_run: bool = False,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Outcome:
        """Do what is due; ``progress`` gets what is done, the total or 0, and the name."""
        arguments = (dry_run, progress is not None)
        return _outcome(self._client.told("lifecycle_run", arguments, progress))

    def next_due_ns(self) -> int | None:
        """Give the earliest moment at which a key or an artifact becomes due."""
        due: int | None = self._client.call("lifecycle_next_due")
        return due

    def last(self) -> Outcome | None:
        """Give what the last run did."""
        row = self._client.call("lifecycle_last")
        return None if row is None else _outcome(row)

    def summary(self) -> dict[str, object]:
        """Give the tiers, the last run and the next due time."""
        return dict(self._client.call("lifecycle_summary"))


def _outcome(row: list[Any]) -> Outcome:
    outcome = Outcome(*row)
    return outcome._replace(failures=tuple((name, why) for name, why in outcome.failures))


def _seconds(ttl: float | timedelta | None) -> float | None:
    return ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
