"""Group commit: the writers that wait share one transaction, hence one fsync.

There is no committing thread. Whoever finds the commit lock free commits everything that is queued,
its own work included; the others find theirs done when they get the lock. A lone writer therefore
pays no hand-over. A function that raises before it wrote anything just gets its error back; one
that raises after a write spoils the shared transaction, which is then rolled back and run again
without it (functions may run more than once: that is the engine's contract).
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from kvstate.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Groups", "Member"]

T = TypeVar("T")
GROUP_MAX = 256


class Member(Generic[T]):
    """One writer's function, and what came of it."""

    __slots__ = ("done", "error", "function", "result")

    def __init__(self, function: Callable[[Any], T]) -> None:
        self.function = function
        self.result: T | None = None
        self.error: BaseException | None = None
        self.done = False


class Groups:
    """Collects writers and hands them over in groups, in the order in which they came."""

    def __init__(self, commit: Callable[[list[Member[Any]]], None]) -> None:
        """``commit`` runs a group in one transaction and sets each member's result or error."""
        self._commit = commit
        self._lock = threading.Lock()
        self._queue: deque[Member[Any]] = deque()
        self._committer: int | None = None

    def run(self, function: Callable[[Any], T]) -> T:
        """Run the function in the next group; return its result, or raise its error."""
        me = threading.get_ident()
        if self._committer == me:
            raise Unavailable("transaction", "one is already running in this thread")
        member = Member(function)
        self._queue.append(member)
        with self._lock:
            if not member.done:
                self._committer = me
                try:
                    self._commit_queued()
                finally:
                    self._committer = None
        if member.error is not None:
            raise member.error
        return cast("T", member.result)

    def _commit_queued(self) -> None:
        members = [self._queue.popleft() for _ in range(min(len(self._queue), GROUP_MAX))]
        try:
            self._commit(members)
        except BaseException as error:
            for member in members:
                if not member.done:
                    member.error = error
            if not isinstance(error, Exception):
                raise
        finally:
            for member in members:
                member.done = True
