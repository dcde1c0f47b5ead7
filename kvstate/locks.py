"""Locks with a lease: one holder at a time among all processes of a store, freed when it dies.

A lock is a key of the namespace ``kvstate:locks`` with the owner as its value and a TTL. It is held
by who set it while it was absent. The revision of that set is the *fencing token*: each holder's is
greater than that of the one before, so whoever the work is done on can refuse a holder that is
late.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Self

from kvstate.clock import seconds_to_ns
from kvstate.errors import Conflict, Exists, StateError, Unavailable
from kvstate.names import check_key

if TYPE_CHECKING:
    from datetime import timedelta
    from types import TracebackType

__all__ = ["LOCKS", "Lock"]

LOCKS: Final = "kvstate:locks"
_RENEW_PARTS: Final = 3
_WAIT_SECONDS_MAX: Final = 30.0


class Lock:
    """A lock by name; a context manager. Not reentrant, and not to be shared by threads."""

    def __init__(
        self,
        store: Any,
        name: str,
        *,
        ttl: float | timedelta = 30.0,
        owner: str | None = None,
        timeout: float | None = None,
    ) -> None:
        """Be the lock of this name.

        It is freed ``ttl`` seconds after its owner died, and renewed by a thread until then.
        ``timeout`` is for how long `acquire` and ``with`` wait, for ever by default.
        """
        check_key(name)
        self.name = name
        self.owner = owner or f"{socket.gethostname()}:{os.getpid()}:{threading.get_ident()}"
        self.token: int | None = None
        """The fencing token; None while the lock is not held."""
        self._ttl = seconds_to_ns(ttl, "ttl") / 1e9
        self._timeout = timeout
        self._store = store
        self._keys = store.namespace(LOCKS)
        self._renewal: threading.Thread | None = None
        self._ending = threading.Event()

    def __repr__(self) -> str:
        return f"<kvstate lock {self.name!r}, {'held' if self.token else 'not held'}>"

    def acquire(self, timeout: float | None = None) -> int:
        """Wait until the lock is ours; give the token. `Conflict` when the time is up first."""
        if self.token is not None:
            raise Conflict(self.name, "this lock is held already, by us")
        wait = self._timeout if timeout is None else timeout
        deadline = None if wait is None else time.monotonic() + wait
        while True:
            seen = self._store.revision()
            try:
                self.token = self._keys.set(self.name, self.owner, ttl=self._ttl, if_absent=True)
            except Exists:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise Conflict(self.name, f"it is held by {self.holder()!r}") from None
                self._wait(seen, left)
            else:
                break
        self._ending.clear()
        self._renewal = threading.Thread(
            target=self._renew, args=(self.token,), name=f"kvstate-lock-{self.name}", daemon=True
        )
        self._renewal.start()
        return self.token

    def _wait(self, seen: int, left: float | None) -> None:
        """Wait for a change of the store, the holder's end, or the end of our patience."""
        entry = self._keys.entry(self.name)
        if entry is None:
            return
        ttl = _WAIT_SECONDS_MAX
        try:
            ttl = self._keys.ttl(self.name) or ttl
        except StateError:
            return
        patience = min(ttl + 0.001, _WAIT_SECONDS_MAX, _WAIT_SECONDS_MAX if left is None else left)
        self._store.wait(max(seen, entry.revision), max(0.0, patience))

    def _renew(self, token: int) -> None:
        while not self._ending.wait(self._ttl / _RENEW_PARTS):
            try:
                if not self._keys.expire(self.name, self._ttl, if_revision=token):
                    return  # it expired: `held` says so
            except Conflict:
                return
            except Unavailable:
                continue  # perhaps it answers before the lease is over
            except StateError:
                return

    def held(self) -> bool:
        """Whether the lock is still ours, as the store sees it."""
        if self.token is None:
            return False
        entry = self._keys.entry(self.name)
        return entry is not None and entry.revision == self.token

    def holder(self) -> str | None:
        """Give who holds the lock; None when nobody does."""
        owner: str | None = self._keys.get(self.name)
        return owner

    def release(self) -> bool:
        """Free the lock; False when it was not ours any more."""
        token, self.token = self.token, None
        self._ending.set()
        if self._renewal is not None:
            self._renewal.join(self._ttl)
            self._renewal = None
        if token is None:
            return False
        try:
            return bool(self._keys.delete(self.name, if_revision=token))
        except Conflict:
            return False

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
