"""The trash as a tree of names: which folders there are, and which artifact has which name.

The store knows what is in the trash by when it goes for good. The tree of names is made of that
when somebody looks, and follows what goes into the trash and out of it by the journal.

An artifact `acme/weekly/report.md` is shown as `acme/weekly/report.md~20261128T001840Z-86017`: when
it was deleted, in UTC, and its identity, so that several of one name are told apart, for ever. A
name that would be longer than 255 bytes loses characters before the `~`.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from kvstate.clock import datetime_of
from kvstate.names import NAME_BYTES_MAX

if TYPE_CHECKING:
    from kvstate.nodes import Trashed
    from kvstate.store import Store

__all__ = ["Buried", "TrashIndex", "shown_name"]


class Buried(NamedTuple):
    """Where an artifact is in the trash: when it goes for good, and its identity."""

    gone_ns: int
    identity: int


Children: TypeAlias = dict[str, Buried | None]
"""What is in a folder: an artifact, or None for another folder."""


def shown_name(trashed: Trashed) -> str:
    """Give the name under which an artifact is shown in its folder."""
    own = trashed.name.rpartition("/")[2].encode()
    when = datetime_of(trashed.trashed_ns).strftime("%Y%m%dT%H%M%SZ")
    suffix = f"~{when}-{trashed.file.id}"
    return own[: NAME_BYTES_MAX - len(suffix)].decode(errors="ignore") + suffix


class TrashIndex:
    """The tree of names of what is in the trash."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._catalog = store.catalog
        self._lock = threading.Lock()
        self._seen = -1
        self._paths: dict[Buried, tuple[str, ...]] = {}
        self._by_identity: dict[int, Buried] = {}
        self._folders: dict[tuple[str, ...], Children] = {(): {}}
        self._sorted: dict[tuple[str, ...], list[str]] = {}

    def children(self, path: tuple[str, ...]) -> Children | None:
        """Give what is in a folder of the trash; None when nothing is there (any more)."""
        with self._lock:
            self._update()
            return self._folders.get(path)

    def names_after(self, path: tuple[str, ...], after: str, limit: int) -> list[str]:
        """Give a page of the names in a folder, in order, after one that may be gone by now."""
        with self._lock:
            self._update()
            names = self._sorted.get(path)
            if names is None:
                names = self._sorted[path] = sorted(self._folders.get(path, ()))
            begin = bisect_right(names, after)
            return names[begin : begin + limit]

    def _update(self) -> None:
        """Take up what has changed since somebody looked last."""
        revision = self._store.revision()
        if revision == self._seen:
            return
        more, gone = (True, set()) if self._seen < 0 else self._catalog.trash_changes(self._seen)
        if more:
            self._compare()
        else:
            for identity in gone:
                buried = self._by_identity.get(identity)
                if buried is not None:
                    self._remove(buried)
        self._seen = revision

    def _compare(self) -> None:
        """Make the tree what the store has; only what is new is read."""
        there = {Buried(*place) for place in self._catalog.trash_places()}
        for buried in self._paths.keys() - there:
            self._remove(buried)
        for buried in there - self._paths.keys():
            trashed = self._catalog.trashed_at(*buried)
            if trashed is not None:
                self._add(buried, trashed)

    def _add(self, buried: Buried, trashed: Trashed) -> None:
        path = (*trashed.name.split("/")[:-1], shown_name(trashed))
        self._paths[buried] = path
        self._by_identity[buried.identity] = buried
        child: Buried | None = buried
        for depth in range(len(path) - 1, -1, -1):
            folder = path[:depth]
            children = self._folders.setdefault(folder, {})
            known = path[depth] in children
            children.setdefault(path[depth], child)
            self._sorted.pop(folder, None)
            if known:
                return
            child = None

    def _remove(self, buried: Buried) -> None:
        path = self._paths.pop(buried)
        if self._by_identity.get(buried.identity) == buried:
            del self._by_identity[buried.identity]
        for depth in range(len(path) - 1, -1, -1):
            folder = path[:depth]
            self._folders[folder].pop(path[depth], None)
            names = self._sorted.get(folder)
            if names is not None:
                at = bisect_left(names, path[depth])
                if names[at : at + 1] == [path[depth]]:
                    del names[at]
            if self._folders[folder] or not folder:
                return
            del self._folders[folder]
            self._sorted.pop(folder, None)
