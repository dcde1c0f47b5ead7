"""Opening files for reading; the ways are drawn in `opening.py`."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from typing import TYPE_CHECKING, Final

from kvstatefs.errnos import errno_of
from kvstatefs.kernel.known import READER, Fast, Known, OpenFile
from kvstatefs.kernel.wire import store_notice
from kvstatefs.nodes import Attributes, Handle, refuse

if TYPE_CHECKING:
    from kvstatefs.kernel.mounted import Asker, Grace
    from kvstatefs.kernel.open_files import OpenFiles
    from kvstatefs.kernel.writers import Writers
    from kvstatefs.nodes import Node

__all__ = ["Readers"]

_TRIES: Final = 16
_GIVEN_BYTES: Final = 16 * 1024
"""Content of this size is given to the kernel when it is opened for the first time."""
_FRESH_SECONDS: Final = 60.0
"""After so long an open counts as an access again."""


class Readers:
    """Those who read files."""

    def __init__(self, files: OpenFiles, writers: Writers) -> None:
        self._open = files
        self._writers = writers
        self._mounted = files.mounted
        self._tree = files.tree
        self._table = files.table

    def open(self, known: Known, flags: int, asker: Asker) -> bytes:
        """Open a node for reading; give the answer's body."""
        grace = self._mounted.end_grace(asker.pid)
        try:
            if grace is not None and grace.known is known and grace.handle is not None:
                return self._open_pinned(known, grace)
            if known.writers:
                if self._writers.writes(known, asker.pid):
                    return self._writers.open_written(known, asker)
                return self._open.look_again(asker, writes=False)
            fast = known.fast
            if fast is not None and time.monotonic() - fast.checked < _FRESH_SECONDS:
                version = self._tree.version()
                if self._open.is_newest(known):
                    fast.version = version
                    answer = self._another(known, fast)
                    if answer is not None:
                        return answer
            return self._open_anew(known, flags, asker)
        finally:
            if grace is not None:
                grace.drop()

    def _another(self, known: Known, fast: Fast) -> bytes | None:
        """Give what the readers of a node share to one more, if it is still there."""
        with self._table.lock:
            if known.fast is not fast:
                return None
            known.cached += 1
            fast.file.count += 1
            self._open.busy(known)
            return fast.answer

    def _open_anew(self, known: Known, flags: int, asker: Asker) -> bytes:
        version = self._tree.version()
        try:
            handle = self._tree.open(known.node, flags)
        except Exception as error:
            if errno_of(error) != errno.ENOENT:
                raise
            return self._open.look_again(asker, writes=False)
        content = handle.content
        if content is None:
            if known.content is not None and known.content != b"":
                handle.release()
                return self._open.look_again(asker, writes=False)
            return self._open.direct(known, handle)
        if content != known.content and not self._open.grew(known, handle.attributes()):
            handle.release()
            return self._open.look_again(asker, writes=False)
        return self._share(known, handle, version)

    def _open_pinned(self, known: Known, grace: Grace) -> bytes:
        fast = known.fast
        answer = None if fast is None else self._another(known, fast)
        if answer is not None:
            return answer
        handle, grace.handle = grace.handle, None
        assert handle is not None  # `open` has looked
        if handle.content is None:
            return self._open.direct(known, handle)
        return self._share(known, handle, -1)

    def _share(self, known: Known, handle: Handle, version: int) -> bytes:
        """Let a handle be the one of all who read this node."""
        if known.reserved():
            return self._open.direct(known, handle)
        backing = self._open.passthrough.hand_over(known, handle)
        with self._table.lock:
            there = known.fast
            if known.reserved() or known.writers:
                self._open.passthrough.take_back(backing)
                return self._open.direct(known, handle)
            if there is not None and there.file.count:
                known.cached += 1
                there.file.count += 1
                there.version = max(there.version, version)
                answer = there.answer
            else:
                if there is not None:
                    self._open.let_go(known, there)
                there = None
                number = self._open.number()
                file = OpenFile(handle, known, READER)
                self._open.add(file, number)
                known.cached += 1
                fast = known.fast = Fast(number, file, backing, version)
                answer = fast.answer
                self._open.keeping.reader(number, known, handle, backing)
                if known.cached == 1 and 0 < known.size <= _GIVEN_BYTES and not handle.slow:
                    self._give(known, handle)
        if there is not None:
            handle.release()
            self._open.passthrough.take_back(backing)
        return answer

    def _give(self, known: Known, handle: Handle) -> None:
        """Give the kernel a small content together with the file: it need not ask for it.

        Nobody else has the node open, so none of its pages is locked by one who waits for us.
        """
        content = handle.read(0, known.size)
        if len(content) == known.size:
            with contextlib.suppress(OSError):
                os.write(self._mounted.fd, store_notice(known.number, content))

    def unasked(self, known: Known) -> OpenFile:
        """Give what a node is read with that the kernel opened without asking.

        Kept from the lookup on, so that it is there whatever happens to the name: for the
        few hundred nodes that were used last.
        """
        fast = known.fast
        if fast is None:
            handle = self._tree.open(known.node, os.O_RDONLY)
            if handle.content is not None and handle.content != known.content:
                handle.release()
                refuse(errno.ESTALE)
            with self._table.lock:
                file = OpenFile(handle, known, READER)
                file.count = 0
                number = self._open.add(file)
                fast = known.fast = Fast(number, file, 0, -1)
        with self._table.lock:
            self._open.used(known)
        return fast.file

    def pin_unasked(self, parent: Node, name: str, found: Attributes) -> tuple[Known, Attributes]:
        """Give the node for what was looked up, its content pinned, on a read-only mount."""
        for _ in range(_TRIES):
            if stat.S_ISDIR(found.mode) or stat.S_ISLNK(found.mode):
                break
            if found.content is None:  # computed: each lookup has a text, and a node, of its own
                found = found._replace(content=b"#%d" % self._open.number(), lasting=False)
            known = self._table.take(found)
            try:
                file = self.unasked(known)
            except Exception as error:
                self._table.forget(known.number, 1)
                if errno_of(error) not in {errno.ESTALE, errno.ENOENT}:
                    raise
                found = self._tree.lookup(parent, name)
                continue
            if file.handle.content is None:
                found = found._replace(size=file.handle.attributes().size)
            return known, found
        else:
            refuse(errno.ESTALE)
        return self._table.take(found), found

    def pin(self, grace: Grace, found: Attributes) -> tuple[Known, Attributes]:
        """Pin the stored content for a reader, and give the node that shows it."""
        handle = self._tree.open(found.node, os.O_RDONLY)
        grace.drop()
        attributes = handle.attributes()
        if handle.content is None:
            attributes = attributes._replace(content=b"", size=0)
        else:
            attributes = attributes._replace(content=handle.content)
        known = self._table.take(attributes, old=True)
        grace.handle, grace.known = handle, known
        return known, attributes
