"""The root of the tree, `pipelines/`, and what the store says of itself below `.kvstate/`.

stats.json      figures about the store                               `Store.stats`
journal.jsonl   every change, a line each; it grows                   `journal_file.py`
config.toml     the settings and the rules in force                   `kvstate.config_text`
metrics         figures for Prometheus, those of this mount with them `kvstate.metrics`
health          whether all is well, and what is not                  `kvstate.health`
history/ trash/ meta/      views of their own
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from kvstate.config_text import text_in_force
from kvstate.errors import StateError
from kvstate.health import health_of, health_text
from kvstate.jsonview import to_json
from kvstate.metrics import metrics_text
from kvstatefs.computed import (
    FILE_MODE,
    FOLDER_MODE,
    ComputedHandle,
    ComputedView,
    Text,
    check_length,
    check_reading,
)
from kvstatefs.journal_file import JournalHandle, JournalIndex
from kvstatefs.listing import Listed, Listing, Page
from kvstatefs.nodes import CONTROL, ROOT, Attributes, inode_of, node_number, os_error, refuse

if TYPE_CHECKING:
    from kvstate.store import Store
    from kvstatefs.nodes import Handle, Node
    from kvstatefs.operation_counts import OperationCounts

__all__ = ["ControlView"]

PIPELINES: Final = node_number(CONTROL, 2)
OWN: Final = node_number(CONTROL, 3)
STATS: Final = node_number(CONTROL, 4)
JOURNAL: Final = node_number(CONTROL, 5)
CONFIG: Final = node_number(CONTROL, 6)
METRICS: Final = node_number(CONTROL, 7)
HEALTH: Final = node_number(CONTROL, 8)

_FILES: Final = {
    "config.toml": CONFIG,
    "health": HEALTH,
    "journal.jsonl": JOURNAL,
    "metrics": METRICS,
    "stats.json": STATS,
}
_JOURNAL_MODE: Final = stat.S_IFREG | 0o400
"""It has every value of every namespace: nobody else's modes may be got round through it."""


class ControlView(ComputedView):
    """The fixed folders, and the files that the store computes."""

    def __init__(
        self,
        store: Store,
        parts: dict[str, Node],
        own: dict[str, Node],
        counts: OperationCounts,
    ) -> None:
        """Take the folders of other views: those of the root, and those of `.kvstate/`."""
        self._store = store
        self._names: dict[Node, dict[str, Node]] = {
            ROOT: {**parts, "pipelines": PIPELINES, ".kvstate": OWN},
            PIPELINES: {},
            OWN: {**_FILES, **own},
        }
        self._uid, self._gid = os.getuid(), os.getgid()
        self._started_ns = store.clock.now_ns()
        self._index: JournalIndex | None = None
        self._counts = counts
        self._texts: dict[Node, Text] = {
            STATS: Text(self._stats, store.clock),
            CONFIG: Text(self._config, store.clock),
            METRICS: Text(self._metrics, store.clock),
            HEALTH: Text(lambda: health_text(health_of(store)), store.clock),
        }

    # What the files hold

    def _stats(self) -> bytes:
        return to_json(self._store.stats(), indent=2).encode() + b"\n"

    def _config(self) -> bytes:
        return text_in_force(self._store.settings, self._store.lifecycle.policy()).encode()

    def _metrics(self) -> bytes:
        try:
            stats = self._store.stats()
        except (StateError, OSError):
            stats = {}
        health = health_of(self._store, stats or None)
        return metrics_text(stats, health, dict(self._counts.done), dict(self._counts.errors))

    def _journal(self) -> JournalIndex:
        if self._index is None:
            self._index = JournalIndex(self._store)
        return self._index

    # Looking

    def child(self, parent: Node, name: str) -> Node | None:
        """Give the node of a fixed name, if there is one; another view may have it."""
        return self._names.get(parent, {}).get(name)

    def lookup(self, parent: Node, name: str) -> Attributes:
        """Give what has this name in a fixed folder."""
        if parent not in self._names:
            refuse(errno.ENOTDIR)
        node = self.child(parent, name)
        if node is None:
            check_length(name)
            refuse(errno.ENOENT)
        return self.getattr(node)

    def getattr(self, node: Node) -> Attributes:
        """Give a node's attributes."""
        if node in self._names:
            folder = self._attributes(node, FOLDER_MODE, 0, self._started_ns)
            return folder._replace(links=2, lasting=True)
        if node == JOURNAL:
            return self._of_journal(self._journal().size())
        made = self._text(node).told()
        return self._attributes(node, FILE_MODE, len(made.text), made.since_ns)

    def _text(self, node: Node) -> Text:
        text = self._texts.get(node)
        if text is None:
            raise os_error(errno.ENOENT)
        return text

    def _of_journal(self, size: int) -> Attributes:
        return self._attributes(JOURNAL, _JOURNAL_MODE, size, self._store.clock.now_ns())

    def _attributes(self, node: Node, mode: int, size: int, at_ns: int) -> Attributes:
        times = (at_ns, at_ns, at_ns)
        return Attributes(
            node, inode_of(node), mode, size, self._uid, self._gid, *times, lasting=False
        )

    def listing(self, node: Node) -> Listing:
        """Open a fixed folder for listing."""
        if node not in self._names:
            refuse(errno.ENOTDIR)
        entries = [
            Listed(name, inode_of(child), _mode(child))
            for name, child in sorted(self._names[node].items())
        ]
        return Listing(lambda _: Page(entries, None))

    def open(self, node: Node, flags: int) -> Handle:
        """Open a computed file for reading."""
        if node in self._names:
            refuse(errno.EISDIR)
        check_reading(flags)
        if node == JOURNAL:
            self._index = self._journal().current()
            return JournalHandle(self._index, self._journal, self._of_journal)
        made = self._text(node).opened()
        attributes = self._attributes(node, FILE_MODE, len(made.text), made.since_ns)
        return ComputedHandle(made.text, attributes)


def _mode(node: Node) -> int:
    if node == JOURNAL:
        return _JOURNAL_MODE
    return FILE_MODE if node in _FILES.values() else FOLDER_MODE
