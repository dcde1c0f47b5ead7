"""A key's file: open for reading, and being written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvstatefs.copies import WorkingCopy
from kvstatefs.handles import ReadingHandle
from kvstatefs.memory_staging import MemoryStaging

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstate.state import Entry
    from kvstatefs.keys import Keys, Place
    from kvstatefs.nodes import Attributes

__all__ = ["KeyCopy", "TextHandle"]

_VALUE_BYTES_MAX: Final = 64 << 20


class TextHandle(ReadingHandle):
    """A key open for reading: the content that it had."""

    def __init__(self, data: bytes, attributes: Attributes) -> None:
        self._data = data
        self._attributes = attributes
        self.content = attributes.content

    def read(self, offset: int, size: int) -> bytes:
        """Read what is pinned."""
        return self._data[offset : offset + size]

    def attributes(self) -> Attributes:
        """Give the attributes that the key had when it was opened."""
        return self._attributes._replace(size=len(self._data))


class KeyCopy(WorkingCopy[MemoryStaging]):
    """The working copy of a key's file."""

    def __init__(
        self,
        keys: Keys,
        place: Place,
        base: Entry | None,
        shown: Callable[[Place, int, int], Attributes],
        *,
        fresh: bool,
    ) -> None:
        """Begin at a place; ``shown`` gives the attributes of a key's file of a size and time."""
        self.place = place
        self.base = base
        self._keys = keys
        self._shown = shown
        super().__init__(keys.store.clock, fresh=fresh)

    def _stage(self) -> MemoryStaging:
        return MemoryStaging(_VALUE_BYTES_MAX)

    def _load(self, staged: MemoryStaging) -> None:
        self.base = self._keys.entry(self.place) or self.base
        assert self.base is not None
        staged.write(0, self._keys.text(self.place, self.base))

    def _outdated(self) -> bool:
        newer = self._keys.entry(self.place)
        return newer is not None and (self.base is None or newer.revision != self.base.revision)

    def _stored_size(self) -> int:
        return 0 if self.base is None else len(self._keys.text(self.place, self.base))

    def _keeps(self, staged: MemoryStaging) -> bool:
        del staged
        return False  # the text of what is stored may be another

    def _store(self, staged: MemoryStaging) -> bytes:
        self._keys.put(self.place, staged.read(0, staged.size))
        self.base = self._keys.entry(self.place)
        return b"" if self.base is None else str(self.base.revision).encode()

    def attributes(self) -> Attributes:
        """Give the key's attributes with the working copy's size."""
        with self.lock:
            modified_ns = self.modified_ns
            if self.base is not None and not self.dirty:
                modified_ns = self.base.updated_at_ns
            return self._shown(self.place, self.size, modified_ns)
