"""A folder opened for listing: offsets that stay right while names come and go.

An offset says how many entries were given; to go on from there means to go on after the name that
was given last, in the order of the folder's source. So a name that stays is given exactly once,
whatever is made or removed meanwhile, and the folder is read in pages, however large it is.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kvstatefs.nodes import Attributes

__all__ = ["Listed", "Listing", "Page"]


class Listed(NamedTuple):
    """One name in a folder. ``attributes`` when the source knew them anyway."""

    name: str
    inode: int
    mode: int
    attributes: Attributes | None = None


class Page(NamedTuple):
    """Some entries in order; ``after`` is where the next page begins, None at the end."""

    entries: list[Listed]
    after: str | None


class Listing:
    """The entries of one folder, from an open of it."""

    def __init__(self, source: Callable[[str], Page]) -> None:
        """Take a source: given a marker (empty: the beginning), it gives the page after it."""
        self._source = source
        self._lock = threading.Lock()
        self._given: list[Listed] = []
        self._after: str | None = ""

    def entries(self, offset: int = 0) -> Iterator[tuple[int, Listed]]:
        """Give the entries from an offset on, each with the offset after it.

        Offset 0 begins anew and looks again. Attributes come only with what was read since this
        was called: those of a page that was read before may be out of date.
        """
        with self._lock:
            if offset == 0:
                self._given, self._after = [], ""
            read_before = len(self._given)
        while True:
            with self._lock:
                while offset >= len(self._given):  # it may be pages ahead of what was read here
                    if not self._more():
                        return
                listed = self._given[offset]
                if listed.attributes is not None:
                    bare = self._given[offset] = listed._replace(attributes=None)
                    listed = bare if offset < read_before else listed
            offset += 1
            yield offset, listed

    def _more(self) -> bool:
        """Read pages until there is another entry; say whether there is."""
        while self._after is not None:
            page = self._source(self._after)
            self._after = page.after
            self._given += page.entries
            if page.entries:
                return True
        return False
