"""What the parts of the adapter share: tree, nodes, feed, descriptor, answers."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from kvstate.clock import SECOND
from kvstatefs.kernel.feed import Feed
from kvstatefs.kernel.notices import Notices
from kvstatefs.kernel.table import Table
from kvstatefs.kernel.wire import ANSWER, entry_answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstatefs.kernel.known import Known
    from kvstatefs.kernel.ledger import Ledger
    from kvstatefs.kernel.wire import Agreed
    from kvstatefs.nodes import Attributes, Handle
    from kvstatefs.tree import Tree

__all__ = ["GRACE_SECONDS", "Asker", "Grace", "Mounted"]

GRACE_SECONDS: Final = 10.0
"""More than a starved machine takes between two requests of one system call."""
_GRACES_MAX: Final = 4096


class Asker(NamedTuple):
    """Who asks: user, group, and the thread's number."""

    uid: int
    gid: int
    pid: int


class Grace:
    """What one who was answered ESTALE to an `open` is about to look up: the kernel asks again.

    The second time it must not fail, whatever else happens meanwhile: so a reader's content is
    pinned by the lookup.
    """

    __slots__ = ("handle", "known", "until", "writes")

    def __init__(self, *, writes: bool) -> None:
        self.writes = writes
        self.until = time.monotonic() + GRACE_SECONDS
        self.known: Known | None = None
        self.handle: Handle | None = None

    def drop(self) -> None:
        """Let go of what was pinned and not used."""
        handle, self.handle = self.handle, None
        if handle is not None:
            handle.release()


class Mounted:
    """One mount in one process."""

    def __init__(
        self,
        fd: int,
        tree: Tree,
        mountpoint: str,
        ledger: Ledger,
        stale: Callable[[Known], None],
    ) -> None:
        self.fd = fd
        self.tree = tree
        self.mountpoint = mountpoint
        self.ledger = ledger
        self.notices = Notices(fd)
        self.table = Table(ledger, tree.root, self.notices.name)
        self.feed = Feed(tree, self.table, self.notices, stale)
        self.agreed: Agreed | None = None
        self.read_only = tree.read_only
        self.opens_alone = False
        """Whether the kernel opens files without asking: on a read-only mount."""
        self._graces: dict[int, Grace] = {}

    # Answers

    def answer(self, unique: int, body: bytes) -> bool:
        """Answer a request; say whether anybody took it: who asked may be gone."""
        with contextlib.suppress(OSError):
            os.write(self.fd, ANSWER.pack(16 + len(body), 0, unique) + body)
            return True
        return False

    def entry(self, known: Known, found: Attributes) -> bytes:
        """Give the body that tells what a name leads to."""
        valid_ns = attributes_ns = self.feed.valid_ns(found)
        if known.is_file and (found.content is None or known.content != found.content):
            valid_ns = 0  # being written: the next one who asks may have to be told another
            attributes_ns = SECOND if known.writers else 0  # the kernel sees every write itself
        return entry_answer(known.number, known.packed, valid_ns, attributes_ns)

    # Those who were answered ESTALE

    def give_grace(self, pid: int, *, writes: bool) -> None:
        """Take note that this thread will look a name up again and open it."""
        if len(self._graces) >= _GRACES_MAX:
            now = time.monotonic()
            for number, grace in list(self._graces.items()):
                if grace.until < now:
                    self._graces.pop(number, None)
                    grace.drop()
        old = self._graces.get(pid)
        self._graces[pid] = Grace(writes=writes)
        if old is not None:
            old.drop()

    def grace(self, pid: int) -> Grace | None:
        """Give what is known of one who looks a name up again."""
        if not self._graces:
            return None
        grace = self._graces.get(pid)
        if grace is None or grace.until < time.monotonic():
            return None
        return grace

    def end_grace(self, pid: int) -> Grace | None:
        """Give what is known of one who opens a file again, for the last time."""
        if not self._graces:
            return None
        grace = self._graces.pop(pid, None)
        if grace is not None and grace.until < time.monotonic():
            grace.drop()
            return None
        return grace

    def path(self, known: Known) -> str:
        """Give a path on this machine that leads to a node; empty when none does."""
        parts: list[str] = []
        for _ in range(4096):
            if known is self.table.root:
                return "/".join((self.mountpoint, *reversed(parts)))
            place = next(iter(known.names), None)
            parent = None if place is None else self.table.find(place[0])
            if place is None or parent is None:
                return ""
            parts.append(place[1])
            known = parent
        return ""
