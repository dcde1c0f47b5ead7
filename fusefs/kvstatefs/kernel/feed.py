"""Keeping what the kernel was told true: the journal is read after every commit, by anyone.

Names, absent names and attributes are told for an hour (`VALID_NS`). After each commit the feed
looks up again what the commit was about, as far as the kernel was told of it, compares, and sends a
notice where the two differ. What this mount changed itself the kernel knows already, so it compares
equal, but in the other views of the same file.

An answer that is under way while the feed works may be of a state before: who answers notes
`position` before it looks, and afterwards asks `behind`, which looks once more if the feed has
moved. Between the two the name is in the table, or it is looked at by `behind`: no order of events
leaves the kernel with an old answer. (A notice about a name waits for whoever looks it up, since
the kernel holds the folder's lock; attributes that were asked for before a notice are dropped.)

When the journal cannot be read, or was trimmed too early, all that was told is taken back, and
answers hold for no time until the feed works again.
"""

from __future__ import annotations

import logging
import stat
import threading
import time
from typing import TYPE_CHECKING, Final

from kvstate.clock import SECOND
from kvstate.errors import Compacted, StateError, Unavailable
from kvstate.names import file_name_of_key
from kvstatefs.kernel.wire import attributes_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kvstate.journal import Named
    from kvstatefs.kernel.known import Known
    from kvstatefs.kernel.notices import Notices
    from kvstatefs.kernel.table import Table
    from kvstatefs.nodes import Attributes
    from kvstatefs.tree import Tree

__all__ = ["VALID_NS", "Feed", "places_of"]

log = logging.getLogger("kvstatefs")

VALID_NS: Final = 3600 * SECOND
"""For how long the kernel may keep what it is told."""
_VIEWS: Final = ("hot", "warm", "cold", "all")
_WAIT_SECONDS: Final = 2.0
_AGAIN_SECONDS: Final = 0.5
_BATCH: Final = 512
_LATE_SECONDS: Final = 2.0


def places_of(change: Named) -> Iterable[tuple[str, ...]]:
    """Give the paths in the tree that a change was about."""
    if change.scope:
        for name in (change.name, change.to):
            if name:
                yield "state", change.scope, file_name_of_key(name)
        yield "state", change.scope
        return
    for name in (change.name, change.to):
        if name:
            parts = name.split("/")
            for view in _VIEWS:
                yield view, *parts


def _is_file(found: Attributes) -> bool:
    return stat.S_ISREG(found.mode)


class Feed:
    """Reads the journal and compares it with what the kernel was told."""

    def __init__(
        self, tree: Tree, table: Table, notices: Notices, stale: Callable[[Known], None]
    ) -> None:
        """Serve a table; ``stale`` is told of nodes whose content is not the newest any more."""
        self._tree = tree
        self._table = table
        self._notices = notices
        self._stale = stale
        self._over = threading.Event()
        self._failed = ""
        self.moved: Callable[[], None] = lambda: None
        """Called after commits were looked at, and every two seconds."""
        self.position = 0
        """Counts how often the feed has begun to look at what changed."""
        self.coherent = False
        """Whether what is told will be taken back in time."""

    # What answers ask

    def valid_ns(self, found: Attributes) -> int:
        """Give for how long the kernel may keep what was found."""
        if not (self.coherent and found.lasting):
            return 0
        if found.until_ns:
            left = found.until_ns - self._tree.store.clock.now_ns()
            return min(max(0, left), VALID_NS)
        return VALID_NS

    def absent_ns(self) -> int:
        """Give for how long the kernel may keep that a name is absent."""
        return VALID_NS if self.coherent else 0

    def behind(self, position: int, parent: Known, names: Iterable[str]) -> None:
        """Look again at names that were answered, if the feed has moved since ``position``."""
        if self.position != position:
            for name in names:
                self._look(parent, name)

    # The thread

    def start(self) -> None:
        """Begin to follow; from now on what is told is kept true."""
        self._notices.start()
        self._seen = self._tree.store.revision()
        self.coherent = True
        threading.Thread(target=self._run, name="feed", daemon=True).start()

    def stop(self) -> None:
        """Follow no more."""
        self._over.set()

    def look_again_at_all(self) -> None:
        """Compare everything that was told, as after taking over."""
        for known in self._table.all():
            for name in list(known.children or ()):
                self._look(known, name)

    def _run(self) -> None:
        store = self._tree.store
        while not self._over.is_set():
            try:
                if store.wait(self._seen, _WAIT_SECONDS) > self._seen:
                    self._follow()
                self.moved()
                if self._failed:
                    self._recover()
            except Exception as error:  # noqa: BLE001  (whatever it is: nothing may stay stale)
                if self._over.is_set():
                    return
                self._fail(error)
                self._over.wait(_AGAIN_SECONDS)

    def _follow(self) -> None:
        """Look at what has changed since the last time."""
        batch: list[Named] = []
        for change in self._tree.store.changed_names(self._seen):
            if len(batch) >= _BATCH and change.revision != batch[-1].revision:
                self._compare(batch)
                batch = []
            batch.append(change)
        self._compare(batch)

    def _compare(self, changes: list[Named]) -> None:
        self.position += 1
        looked: set[tuple[int, str]] = set()
        for change in changes:
            for place in places_of(change):
                self._walk(place, looked)
        if changes:
            self._seen = changes[-1].revision

    def _walk(self, place: tuple[str, ...], looked: set[tuple[int, str]]) -> None:
        """Look at each part of a path that the kernel was told of."""
        folder = self._table.root
        for name in place:
            self._relist(folder)
            children = folder.children
            if children is None or name not in children:
                return
            child = children[name]
            if (folder.number, name) not in looked:
                looked.add((folder.number, name))
                if not self._look(folder, name):
                    return
            if child is None:
                return
            folder = child

    def _relist(self, folder: Known) -> None:
        """Let the kernel list a folder anew."""
        if folder.listed:
            folder.listed = False
            self._notices.pages(folder.number)

    def listed(self, position: int, folder: Known) -> None:
        """Take back a listing that was overtaken.

        The kernel keeps it only after it got our answer, and so perhaps after the notice: hence a
        second one, when nobody can be that late any more.
        """
        if self.position != position:
            self._notices.pages(folder.number)
            timer = threading.Timer(_LATE_SECONDS, self._late, (folder.number,))
            timer.daemon = True
            timer.start()

    def _late(self, number: int) -> None:
        if not self._over.is_set():  # else the descriptor may be closed, and its number another's
            self._notices.pages(number)

    def _look(self, parent: Known, name: str) -> bool:
        """Compare what was told of a name with what is; say whether it leads where it did."""
        found = self._found(lambda: self._tree.lookup(parent.node, name))
        stored = found
        if found is not None and found.content is None and _is_file(found):
            node = found.node
            stored = self._found(lambda: self._tree.stored(node))
        with self._table.lock:
            children = parent.children
            if children is None or name not in children:
                return False
            child = children[name]
            if child is None:
                same = found is None
            else:
                same = found is not None and self._same(child, found, stored)
            if not same:
                self._table.untell(parent, name)
        if not same:
            self._notices.name(parent.number, name)
            if child is not None:
                self._stale(child)
        if stored is not None and stored.origin:
            self._grow(stored)
        return same

    @staticmethod
    def _found(look: Callable[[], Attributes]) -> Attributes | None:
        try:
            return look()
        except Unavailable:
            raise
        except (StateError, OSError, UnicodeError):
            return None

    def _same(self, child: Known, found: Attributes, stored: Attributes | None) -> bool:
        """Whether a node is what was found; its attributes are told anew if only they differ.

        While a file is written, what is ``stored`` counts for a node that is not the writers'.
        """
        if child.node != found.node:
            return False
        if child.writers:
            return True
        if child.is_file:
            if child.detached or stored is None:
                return False
            if child.content != stored.content:
                if not child.grows_to(stored):
                    return False
                child.content = stored.content
            found = stored
        if attributes_bytes(found, found.inode) != child.packed:
            self._notices.attributes(child.number)
        return True

    def _grow(self, found: Attributes) -> None:
        """Tell those who keep an old name's file open that it has grown (`tail -f`)."""
        with self._table.lock:
            grown = [
                known
                for known in self._table.of(found.node)
                if known.detached and known.size < found.size and known.grows_to(found)
            ]
            for known in grown:
                known.content = found.content
        for known in grown:
            self._stale(known)
            self._notices.attributes(known.number)

    # When it does not work

    def _fail(self, error: Exception) -> None:
        if not self._failed:
            log.warning("changes cannot be followed, so nothing is kept: %s", error)
        self._failed = str(error) or type(error).__name__
        self.coherent = False
        self._take_all_back()
        if isinstance(error, Compacted):
            self._seen = self._tree.store.revision()

    def _recover(self) -> None:
        self._failed = ""
        self.position += 1
        self.coherent = True
        self._take_all_back()
        log.warning("changes are followed again")

    def _take_all_back(self) -> None:
        """Let the kernel look up again whatever it was told."""
        for known in self._table.all():
            for name in list(known.children or ()):
                self._notices.name(known.number, name)
                self._table.untell(known, name)
            if known.children is not None or known.cached:
                self._notices.attributes(known.number)
            self._relist(known)

    def settle(self, seconds: float) -> bool:
        """Wait until the newest commit was looked at and told; say whether that came."""
        deadline = time.monotonic() + seconds
        newest = self._tree.store.revision()
        while self._seen < newest:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return self._notices.settle(max(0.0, deadline - time.monotonic()))
