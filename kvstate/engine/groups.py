"""Group commit: the writers that wait share one transaction, hence one fsync.

There is no committing thread. Whoever finds nobody committing leads: it commits everything that is
queued, its own work included, wakes the others, and hands the lead to the first that came
meanwhile. A lone writer therefore pays no hand-over, and nobody takes the lead ahead of those who
wait. A function that raises before it wrote anything just gets its error back; one that raises
after a write spoils the shared transaction, which is then rolled back and run again without it
(functions may run more than once: that is the engine's contract).
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from kvstate.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["GROUP_MAX", "Groups", "Member"]

T = TypeVar("T")
GROUP_MAX = 256
"""Writers that share a transaction at most: it bounds how long the first of them waits."""


class Member(Generic[T]):
    """One writer's function, and what came of it."""

    __slots__ = ("done", "error", "function", "leads", "result", "wake")

    def __init__(self, function: Callable[[Any], T]) -> None:
        self.function = function
        self.result: T | None = None
        self.error: BaseException | None = None
        self.done = False
        self.leads = False
        self.wake = threading.Lock()
        self.wake.acquire()


class Groups:
    """Collects writers and hands them over in groups, in the order in which they came."""

    def __init__(self, commit: Callable[[list[Member[Any]]], None]) -> None:
        """``commit`` runs a group in one transaction and sets each member's result or error."""
        self._commit = commit
        self._lead = threading.Lock()
        self._queue: deque[Member[Any]] = deque()
        self._leader: int | None = None

    def run(self, function: Callable[[Any], T]) -> T:
        """Run the function in the next group; return its result, or raise its error."""
        me = threading.get_ident()
        if self._leader == me:
            raise Unavailable("transaction", "one is already running in this thread")
        member = Member(function)
        self._queue.append(member)
        if self._lead.acquire(blocking=False):
            self._lead_until_done(member, me)
        else:
            member.wake.acquire()
            if member.leads:
                self._lead_until_done(member, me)
        if member.error is not None:
            raise member.error
        return cast("T", member.result)

    def _lead_until_done(self, member: Member[Any], me: int) -> None:
        """Commit groups until the member's is among them; then let another lead."""
        self._leader = me
        try:
            while not member.done:
                self._commit_group(member)
        finally:
            self._leader = None
            self._pass_on()

    def _commit_group(self, mine: Member[Any]) -> None:
        members = [self._queue.popleft() for _ in range(min(len(self._queue), GROUP_MAX))]
        try:
            self._commit(members)
        except BaseException as error:
            for member in members:
                member.error = member.error or error
            if not isinstance(error, Exception):
                raise
        finally:
            for member in members:
                member.done = True
                if member is not mine:
                    member.wake.release()

    def _pass_on(self) -> None:
        """Hand the lead to who waits longest, or lay it down; nobody may be left waiting."""
        while True:
            if self._queue:
                heir = self._queue[0]
                heir.leads = True
                heir.wake.release()
                return
            self._lead.release()
            # Who came between the look at the queue and the release found the lead taken.
            if not self._queue or not self._lead.acquire(blocking=False):
                return
