"""Working copies: what the writers of a file have written and not stored yet.

All writers of one file in this mount share one working copy. It is stored when one of them flushes
(close, fsync), whole and durably; until then every reader sees the old content. What is never
flushed is dropped. Where the content goes is the business of the two kinds below this one: an
artifact's (`files.py`) and a key's (`state_view.py`).
"""

from __future__ import annotations

import errno
import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from kvstate.sparse import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from kvstate.staging import SIZE_MAX
from kvstatefs.handles import found_by
from kvstatefs.nodes import refuse

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from kvstate.clock import Clock
    from kvstatefs.memory_staging import StagedContent
    from kvstatefs.nodes import Attributes, Changes

__all__ = ["Copies", "WorkingCopy"]

_ALLOCATIONS: Final = frozenset(
    {0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE}
)

S = TypeVar("S", bound="StagedContent")


class WorkingCopy(ABC, Generic[S]):
    """The content of one file while it is being written."""

    def __init__(self, clock: Clock, *, fresh: bool) -> None:
        """Begin with what is stored, or with nothing (``fresh``): then it is to be stored."""
        self.lock = threading.RLock()
        self.writers = 0
        self.unlinked = False
        self.failed = False
        """Whether it could not be stored: a file that never was is not there then."""
        self.dirty = fresh
        self.key: Hashable = None
        """What it is kept under among the working copies."""
        self.blank = fresh
        """Whether nothing was written since it was made or emptied by an open."""
        self.appended = not fresh
        """Whether what is stored is a prefix of this."""
        self.modified_ns = clock.now_ns()
        """When it was last written to, or what a caller set as its time."""
        self._clock = clock
        self._staged: S | None = self._stage() if fresh else None

    # What the kinds of working copies do

    @abstractmethod
    def _stage(self) -> S:
        """Give an empty staging."""

    @abstractmethod
    def _load(self, staged: S) -> None:
        """Copy what is stored into the staging."""

    @abstractmethod
    def _stored_size(self) -> int:
        """Give the size of what is stored."""

    @abstractmethod
    def _store(self, staged: S) -> bytes | None:
        """Store the staging, durably; give what names the content."""

    @abstractmethod
    def _outdated(self) -> bool:
        """Whether something else was stored since this was loaded or stored."""

    @abstractmethod
    def _keeps(self, staged: S) -> bool:
        """Whether a staging that was stored is used on, rather than loaded again when needed."""

    @abstractmethod
    def attributes(self) -> Attributes:
        """Give the file's attributes with the working copy's size and time."""

    def keep(self, changes: Changes) -> None:
        """Change attributes of a file that is gone; a kind that has none forgets it."""
        del changes

    # For everybody

    @property
    def size(self) -> int:
        """Bytes of the working copy."""
        with self.lock:
            self._renew()
            return self._stored_size() if self._staged is None else self._staged.size

    def _ready(self, *, load: bool = True) -> S:
        if self._staged is None:
            staged = self._stage()
            if load:
                try:
                    self._load(staged)
                except BaseException:
                    staged.discard()
                    raise
            self._staged = staged
        return self._staged

    def _renew(self) -> None:
        """Before the first change, take up what another process may have stored meanwhile."""
        if not self.dirty and self._staged is not None and self._outdated():
            self._staged.discard()
            self._staged = None

    def read(self, offset: int, size: int) -> bytes:
        """Read from the working copy."""
        with self.lock:
            self._renew()
            return self._ready().read(offset, size)

    def write(self, offset: int, data: bytes | memoryview, *, append: bool) -> int:
        """Write to the working copy; with ``append`` at its end, wherever that is now."""
        with self.lock:
            _check_end(offset + len(data))
            self._renew()
            staged = self._ready()
            if append:
                offset = staged.size
            if offset < staged.size:
                self.appended = False
            self._touched()
            return staged.write(offset, data)

    def truncate(self, size: int) -> None:
        """Cut or extend the working copy."""
        _check_end(size)
        with self.lock:
            self._renew()
            staged = self._ready(load=size > 0)
            if size < self._stored_size():
                self.appended = False
            self._touched()
            staged.truncate(size)

    def allocate(self, mode: int, offset: int, length: int) -> None:
        """Do what fallocate(2) does."""
        if offset < 0 or length <= 0:
            refuse(errno.EINVAL)
        if mode not in _ALLOCATIONS:
            refuse(errno.EOPNOTSUPP)
        _check_end(offset + length)
        with self.lock:
            self._renew()
            staged = self._ready()
            if mode & ~KEEP_SIZE and offset < staged.size:
                self.appended = False
            if mode & ~KEEP_SIZE or (not mode and offset + length > staged.size):
                self._touched()
            staged.allocate(mode, offset, length)

    def seek(self, offset: int, whence: int) -> int:
        """Give where the next data or hole is."""
        with self.lock:
            self._renew()
            staged = self._ready()
            return found_by(staged.seek, staged.size, offset, whence)

    def _touched(self) -> None:
        self.dirty = True
        self.blank = self.failed = False
        self.modified_ns = self._clock.now_ns()

    def empty(self) -> None:
        """Drop the content, as O_TRUNC asks: the writer is about to write another."""
        with self.lock:
            self.truncate(0)
            self.blank = True

    def flush(self, held: Callable[[], bool]) -> bytes | None:
        """Store what is not stored yet; give what names the content, None if there was nothing."""
        with self.lock:
            if not self.dirty or self.unlinked or (self.blank and held()):
                return None
            staged = self._ready()
            try:
                content = self._store(staged)
            except BaseException:
                self.failed = True
                raise
            self.dirty = self.blank = self.failed = False
            if not self._keeps(staged):
                self._staged = None
                staged.discard()
            self.appended = True
            return content

    def discard(self) -> None:
        """Drop what was never stored."""
        with self.lock:
            if self._staged is not None:
                self._staged.discard()
                self._staged = None


def _check_end(end: int) -> None:
    if end > SIZE_MAX:
        refuse(errno.EFBIG)


C = TypeVar("C", bound=WorkingCopy)  # type: ignore[type-arg]


class Copies(Generic[C]):
    """The working copies of one part of the tree, each under what names its file."""

    def __init__(self, changed: Callable[[], None], check: Callable[[], None]) -> None:
        """Call ``changed`` when a file begins or ceases to have a copy, or one is renamed.

        ``check`` raises what forbids to store anything now.
        """
        self.lock = threading.Lock()
        self._by_key: dict[Hashable, C] = {}
        self._changed = changed
        self.check = check

    def __bool__(self) -> bool:
        return bool(self._by_key)

    def __iter__(self) -> Iterator[C]:
        with self.lock:
            return iter(list(self._by_key.values()))

    def find(self, *keys: Hashable) -> C | None:
        """Give the working copy under the first of these keys that has one."""
        if self._by_key:
            for key in keys:
                found = self._by_key.get(key)
                if found is not None:
                    return found
        return None

    def share(self, keys: tuple[Hashable, ...], make: Callable[[], C]) -> tuple[C, bool]:
        """Give the working copy under these keys to one more writer, making it if there is none.

        A new one is kept under the last key. Say whether it is new.
        """
        with self.lock:
            copy = self.find(*keys)
            made = copy is None
            if copy is None:
                copy = self._by_key[keys[-1]] = make()
                copy.key = keys[-1]
                self._changed()
            copy.writers += 1
            return copy, made

    def join(self, copy: C) -> C:
        """Let one more write to a working copy; ENOENT when its last writer has just gone."""
        with self.lock:
            if not copy.writers:
                refuse(errno.ENOENT)
            copy.writers += 1
        return copy

    def let_go(self, copy: C) -> None:
        """Take one writer away; without writers a working copy is dropped."""
        with self.lock:
            copy.writers -= 1
            if copy.writers:
                return
            self._forget(copy)
        copy.discard()

    def rekey(self, copy: C, key: Hashable) -> None:
        """Keep a working copy under another key; what was there is unlinked."""
        with self.lock:
            there = self._by_key.get(key)
            if there is copy:
                return
            if there is not None:
                there.unlinked = True
            self._forget(copy)
            self._by_key[key] = copy
            copy.key = key
            self._changed()

    def unlink(self, copy: C) -> None:
        """Let a file be gone: its writers go on, but nothing is stored any more."""
        with self.lock:
            copy.unlinked = True
            self._forget(copy)

    def _forget(self, copy: C) -> None:
        if self._by_key.get(copy.key) is copy:
            del self._by_key[copy.key]
        self._changed()
