"""Opening files for writing, storing what was written, and what becomes of the writers' node."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import TYPE_CHECKING, Final

from kvstate.errors import NotFound
from kvstatefs.descriptors import thread_group
from kvstatefs.errnos import errno_of
from kvstatefs.kernel.known import OPENED, WRITER, Known, OpenFile
from kvstatefs.kernel.wire import Open
from kvstatefs.nodes import Attributes, Handle, os_error

if TYPE_CHECKING:
    from kvstatefs.kernel.mounted import Asker, Grace
    from kvstatefs.kernel.open_files import OpenFiles

__all__ = ["Writers"]

_RESERVED_SECONDS: Final = 1.0
_MAPPED_DIRECT_MINOR: Final = 39


class Writers:
    """Those who write files."""

    def __init__(self, files: OpenFiles) -> None:
        self._open = files
        self._mounted = files.mounted
        self._tree = files.tree
        self._table = files.table

    def for_writer(self, grace: Grace, found: Attributes) -> Known:
        """Give the node for a writer: that of the writers, or one that nobody reads."""
        with self._table.lock:
            known = self._table.take(found)
            if known.cached and not known.writers and known.is_file:
                self._table.detach(known)
                self._table.forget(known.number, 1)
                known = self._table.take(found)
            known.reserved_until = time.monotonic() + _RESERVED_SECONDS
            self._open.drop_fast(known)
            grace.known = known
            return known

    def open(self, known: Known, flags: int, asker: Asker) -> bytes:
        """Open a node for writing; give the answer's body."""
        grace = self._mounted.end_grace(asker.pid)
        again = grace is not None and grace.known is known
        if grace is not None:
            grace.drop()
        if not known.is_file:
            handle = self._tree.open(known.node, flags)
            return self._open.direct(known, handle)
        shown = self._claim(known, asker, again=again)
        try:
            handle = self._tree.open(known.node, flags)
        except Exception as error:
            with self._table.lock:
                known.writers -= 1
                if not known.writers:
                    known.content = shown
            if errno_of(error) != errno.ENOENT:
                raise
            return self._open.look_again(asker, writes=True)
        keep = shown is not None and not flags & os.O_TRUNC
        return self._write(known, handle, flags, asker, keep=keep)

    def _claim(self, known: Known, asker: Asker, *, again: bool) -> bytes | None:
        """Make a node the writers' one (ESTALE if others read it); give the content it shows."""
        newest = known.writers > 0 or self._open.is_newest(known)
        with self._table.lock:
            others = any(
                other.writers and other is not known for other in self._table.of(known.node)
            )
            if others and again:
                known.mixed = True  # they are closing: the kernel would not ask a third time
                others = False
            if others or (known.cached and not known.writers):
                names = self._table.detach(known) if not others else ()
            else:
                shown = known.content if newest and not known.writers else None
                if not known.writers:
                    known.content = None
                    self._table.note(known)
                    self._open.drop_fast(known)
                known.writers += 1
                known.shown = shown if known.writers == 1 else known.shown
                return known.shown
        for parent, name in names:
            self._mounted.notices.name(parent, name)
        self._mounted.give_grace(asker.pid, writes=True)
        raise os_error(errno.ESTALE)

    def _write(
        self, known: Known, handle: Handle, flags: int, asker: Asker, *, keep: bool
    ) -> bytes:
        number = self._open.number()
        file = OpenFile(handle, known, WRITER, asker.pid)
        with self._table.lock:
            self._open.add(file, number)
            self._open.keeping.writer(number, known, flags)
            if flags & (os.O_TRUNC | os.O_CREAT):
                self.wrote(file)
        agreed = self._mounted.agreed
        access = flags & os.O_ACCMODE
        only_writes = access == os.O_WRONLY
        direct = flags & os.O_APPEND or (
            only_writes and agreed is not None and agreed.minor >= _MAPPED_DIRECT_MINOR
        )
        how = Open.DIRECT if direct else (Open.KEEP_CACHE if keep else 0)
        return OPENED.pack(number, how, 0)

    def created(self, known: Known, handle: Handle, flags: int, asker: Asker) -> bytes:
        """Open what CREATE has made."""
        with self._table.lock:
            known.writers += 1
            known.shown = None
            known.mixed = False
        return self._write(known, handle, flags, asker, keep=False)

    def writes(self, known: Known, pid: int) -> bool:
        """Whether the process of a thread has this node open for writing."""
        pids = {
            file.pid
            for number in list(known.handles)
            if (file := self._open.find(number)) is not None
            and file.kind == WRITER
            and not file.failed
        }
        if pid in pids:
            return True
        group = thread_group(pid)
        return group is not None and any(thread_group(other) == group for other in pids)

    def open_written(self, known: Known, asker: Asker) -> bytes:
        """Open for reading what the asker's own process writes."""
        handle = self._tree.open_written(known.node)
        if handle is None:
            return self._open.look_again(asker, writes=False)
        with self._table.lock:
            known.writers += 1
            number = self._open.add(OpenFile(handle, known, WRITER, asker.pid))
            self._open.keeping.writer(number, known, os.O_RDONLY)
        return OPENED.pack(number, Open.KEEP_CACHE, 0)

    def wrote(self, file: OpenFile) -> None:
        """Take note that what a writer's node shows is not what is stored.

        Before a write, for whoever takes over if this process ends in it, and after it, since
        another writer may have stored the file in between.
        """
        if file.kind != WRITER:
            return
        file.writes += 1
        file.failed = False
        file.known.shown = None
        file.known.changes += 1
        self._open.keeping.wrote(file)

    def flush(self, file: OpenFile, held: object) -> None:
        """Store what was written, durably."""
        known = file.known
        changes, writes = known.changes, file.writes
        try:
            content = file.handle.flush(held) if callable(held) else file.handle.flush()
        except BaseException:
            file.failed = True
            raise
        file.flushed = writes
        if content is None:
            return
        with self._table.lock:
            with contextlib.suppress(NotFound, OSError):
                found = file.handle.attributes()
                self._table.becomes(known, found, None)
            if known.changes == changes:
                known.shown = content
                self._open.keeping.stored(known)
                if known.changes != changes:  # by somebody who found it noted already
                    known.shown = None
                    self._open.keeping.wrote(file)

    def close(self, known: Known, file: OpenFile) -> None:
        """Let a writer go; after the last one the node shows what is stored, if its pages do."""
        file.handle.release()
        with self._table.lock:
            known.writers -= 1
            if known.writers:
                return
            shown, known.shown = known.shown, None
        found: Attributes | None = None
        with contextlib.suppress(Exception):
            found = self._tree.stored(known.node)
        names: list[tuple[int, str]] = []
        with self._table.lock:
            if known.writers > 0:
                return
            if shown and not known.mixed and found is not None and found.content == shown:
                self._table.becomes(known, found, shown)
                return
            known.content = None if shown is None else shown
            names = self._table.detach(known)
        for parent, name in names:
            self._mounted.notices.name(parent, name)
