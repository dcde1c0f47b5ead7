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
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from kvstate.audit import audited
from kvstate.chain import ChainReport
from kvstate.check import Problem, Report
from kvstate.client import Client
from kvstate.errors import Denied, Unavailable
from kvstate.journal import Event
from kvstate.locks import Lock
from kvstate.names import check_namespace
from kvstate.remote_artifacts import RemoteArtifacts
from kvstate.remote_lifecycle import RemoteLifecycle
from kvstate.remote_namespace import RemoteNamespace
from kvstate.scrubbing import Scrubbed, scrubbed_of
from kvstate.space import settings_of
from kvstate.transaction import Transaction, transact
from kvstate.wire import default_socket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

    from kvstate.space import NamespaceSettings
    from kvstate.transaction import Seen, SeenRange, Write

__all__ = ["RemoteStore", "connect"]

T = TypeVar("T")

_WAIT_SECONDS = 30.0
_PATIENCE_SECONDS = 60.0
_RETRY_SECONDS = 0.1


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

    def journal(
        self,
        since: int = 0,
        limit: int | None = None,
        *,
        namespace: str | None = None,
        prefix: str = "",
        strict: bool = False,
    ) -> Iterator[Event]:
        """Give the events after this revision, in order, up to the newest."""
        rows = self._client.listing("journal", since, limit, namespace, prefix, strict)
        return (Event(*row) for row in rows)

    def audit(
        self,
        since: int = 0,
        limit: int | None = None,
        *,
        tenant: str | None = None,
        artifact: str | None = None,
        newest: int | None = None,
    ) -> Iterator[dict[str, object]]:
        """Give what was done to artifacts as audit records (`kvstate.audit`), oldest first."""
        return audited(self, since, limit, tenant=tenant, artifact=artifact, newest=newest)

    def verify_journal(self, expect: str | None = None) -> ChainReport:
        """Walk along the journal's hash chain, and say the first revision that was altered."""
        return ChainReport(*self._client.call("journal_verify", expect))

    def configure(self, namespace: str, **options: Any) -> NamespaceSettings:
        """Change some settings of a namespace, kept in the store; give all of them."""
        for name, value in options.items():
            if isinstance(value, timedelta):
                options[name] = value.total_seconds()
        return settings_of(self._client.call("configure", namespace, options))

    def transaction(self) -> Transaction:
        """Begin a transaction over any namespaces: a context manager, all or nothing."""
        return Transaction(self.namespace, self._apply)

    def _apply(self, seen: list[Seen], ranges: list[SeenRange], writes: list[Write]) -> int:
        return int(self._client.call("transact", seen, ranges, writes))

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

    def watch(
        self,
        namespace: str | None = None,
        since: int | None = None,
        timeout: float | None = None,
        *,
        prefix: str = "",
    ) -> Iterator[Event]:
        """Give events as they are committed, by anyone; end after ``timeout`` quiet seconds.

        When the daemon goes away, it is waited for up to a minute; what happened meanwhile is given
        then, nothing twice and nothing left out. `Compacted` when it was trimmed.
        """
        if namespace is not None:
            check_namespace(namespace)
        seen = self.revision() if since is None else since
        return self._watch(namespace, prefix, seen, timeout)

    def _watch(
        self, namespace: str | None, prefix: str, seen: int, timeout: float | None
    ) -> Iterator[Event]:
        given = 0  # events of the revision after `seen` that were given already
        patience: float | None = None
        while True:
            try:
                newest = self.revision()
                skip, current = given, 0
                for event in self.journal(seen, namespace=namespace, prefix=prefix, strict=True):
                    if event.revision != current:
                        if current:
                            seen, given = event.revision - 1, 0
                        current = event.revision
                    if skip:
                        skip -= 1
                        continue
                    given += 1
                    yield event
                seen, given, patience = max(seen, newest, current), 0, None
                if self.wait(seen, timeout) <= seen:
                    return
            except Unavailable as error:
                patience = patience or time.monotonic() + _PATIENCE_SECONDS
                if not error.retry or self._client.closed or time.monotonic() > patience:
                    raise
                time.sleep(_RETRY_SECONDS)

    def stats(self) -> dict[str, object]:
        """Give what is stored, in numbers."""
        return dict(self._client.call("stats"))

    def check(
        self,
        *,
        verify: bool = False,
        repair: bool = False,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Report:
        """Walk over everything and name every inconsistency; ``verify`` reads every byte, too.

        With ``repair`` write anew what can be found again; the report says what is left.
        """
        operation = "repair" if repair else "check"
        arguments = (verify, progress is not None)
        problems, counts, *more = self._client.told(operation, arguments, progress)
        repaired = tuple(Problem(*each) for each in more[0]) if more else ()
        return Report(tuple(Problem(*problem) for problem in problems), counts, repaired)

    def scrub(
        self,
        *,
        bytes_max: int | None = None,
        rate: float = 0,
        restart: bool = False,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Scrubbed:
        """Read everything that is stored and compare checksums, from where the last scrub ended."""
        options = {"bytes_max": bytes_max, "rate": rate, "restart": restart}
        return scrubbed_of(self._client.told("scrub", (options, progress is not None), progress))

    def acting(self, actor: str) -> NoReturn:
        """Not here (`Denied`): the daemon says who acts, by the user of the connected process."""
        raise Denied(f"acting as {actor!r}", "over a socket the daemon says who acts")
