"""The trash as a tree of names: which folders there are, and which artifact has which name.

The store knows what is in the trash by when it goes for good. The tree of names is made of that
when somebody looks, and made anew when something went into the trash or out of it since.

An artifact `acme/weekly/report.md` is shown as `acme/weekly/report.md~20261128T001840Z-86017`: when
it was deleted, in UTC, and its identity, so that several of one name are told apart, for ever. A
name that would be longer than 255 bytes loses characters before the `~`.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

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
_NOTHING: Final[Children] = {}


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
        self._lock = threading.Lock()
        self._seen = -1
        self._folders: dict[tuple[str, ...], Children] = {}

    def folder(self, path: tuple[str, ...]) -> Children | None:
        """Give what is in a folder of the trash; None when nothing is there (any more)."""
        found = self._current().get(path)
        return _NOTHING if found is None and not path else found

    def _current(self) -> dict[tuple[str, ...], Children]:
        with self._lock:
            revision = self._store.revision()
            if revision != self._seen:
                if self._seen < 0 or self._store.catalog.trash_changed(self._seen):
                    self._folders = self._made()
                self._seen = revision
            return self._folders

    def _made(self) -> dict[tuple[str, ...], Children]:
        folders: dict[tuple[str, ...], Children] = {}
        for trashed in self._store.catalog.trashed():
            *above, _ = trashed.name.split("/")
            path = tuple(above)
            children = folders.get(path)
            if children is None:
                children = folders[path] = {}
                for depth in range(len(path), 0, -1):
                    folders.setdefault(path[: depth - 1], {}).setdefault(path[depth - 1], None)
            children[shown_name(trashed)] = Buried(trashed.gone_ns, trashed.file.id)
        return {path: dict(sorted(children.items())) for path, children in folders.items()}
