"""Opening files, and what the kernel may do with those that are open.

One node shows one content (`table.py`), so an open for reading is answered in one of three ways:

    through the kernel's pages   the node's content is the newest: pages that are there hold
    handed over (passthrough)    large plain content that was verified: the kernel reads the file
    past the pages (direct)      what is computed, and what is not stored yet

All readers of a node share one handle and one answer, made by the first of them. An open of a node
whose content is no longer the newest is answered ESTALE: the kernel looks the name up again, once,
and gets the node of the new content. That is pinned (`Grace`), so it cannot fail again.

Writers share one node, in which pages are those of their working copy. The first writer takes the
node that is there, unless others read it: then the name gets a new node (by ESTALE, too), and the
readers keep theirs. Others who open a file for reading while it is written get the stored content,
as another node; the process that writes it reads what it wrote.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
import struct
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from kvstate.errors import NotFound
from kvstatefs.descriptors import thread_group
from kvstatefs.errnos import errno_of
from kvstatefs.kernel.keeping import DIRECT_KIND, FACTS, READER_KIND, WRITER_KIND
from kvstatefs.kernel.wire import Code, Open
from kvstatefs.nodes import Attributes, Handle, os_error, refuse

if TYPE_CHECKING:
    from kvstatefs.kernel.keeping import Keeping, Restorer
    from kvstatefs.kernel.mounted import Asker, Grace, Mounted
    from kvstatefs.kernel.passthrough import Passthrough
    from kvstatefs.kernel.table import Known
    from kvstatefs.nodes import Node

__all__ = ["OpenFile", "Opening"]

READER, DIRECT, WRITER = 0, 1, 2
_MANY: Final = 1 << 40
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_TRUNC
_IDLE_MAX: Final = 512
_TRIES: Final = 16
_RESERVED_SECONDS: Final = 1.0
_FRESH_SECONDS: Final = 60.0
_OPENED = struct.Struct("=QIi")
_MAPPED_DIRECT_MINOR: Final = 39
_u64 = struct.Struct("=Q").unpack_from
_OPENED_HEAD: Final = struct.pack("=Ii", 16 + _OPENED.size, 0)
_DONE_HEAD: Final = struct.pack("=Ii", 16, 0)
_TRUNCATES: Final = os.O_TRUNC >> 8
_CACHED: Final = Open.KEEP_CACHE | Open.NOFLUSH


class OpenFile:
    """An open file, or what all who read one node share."""

    __slots__ = ("count", "failed", "flushed", "handle", "kind", "known", "pid", "writes")

    def __init__(self, handle: Handle, known: Known, kind: int, pid: int = 0) -> None:
        self.handle = handle
        self.known = known
        self.kind = kind
        self.pid = pid
        self.count = 1
        self.writes = 0
        """How often it was written to."""
        self.failed = False
        """Whether it could not be stored: then nobody reads what was written."""
        self.flushed = 0
        """How many of these are stored."""


class Fast:
    """What the next reader of a node is given."""

    __slots__ = ("answer", "backing", "checked", "file", "number", "version")

    def __init__(self, number: int, file: OpenFile, backing: int, version: int) -> None:
        self.number = number
        self.file = file
        self.backing = backing
        self.version = version
        self.checked = time.monotonic()
        flags = Open.PASSTHROUGH | Open.NOFLUSH if backing else _CACHED
        self.answer = _OPENED.pack(number, flags, backing)


class Opening:
    """The open files of a mount."""

    def __init__(self, mounted: Mounted, passthrough: Passthrough, keeping: Keeping) -> None:
        self._mounted = mounted
        self._tree = mounted.tree
        self._table = mounted.table
        self._passthrough = passthrough
        self._keeping = keeping
        self._files: dict[int, OpenFile] = {}
        self.find = self._files.get
        self._numbers = itertools.count(1)
        self._idle: OrderedDict[int, Known] = OrderedDict()
        self._table.forgotten = self._abandon
        self._find_node = self._table.find
        self._version = self._tree.version

    def get(self, number: int) -> OpenFile:
        """Give an open file; EBADF when there is none of this number."""
        file = self._files.get(number)
        if file is None:
            refuse(errno.EBADF)
        return file

    def __len__(self) -> int:
        return len(self._files)

    def writers(self) -> int:
        """Give how many files are open for writing."""
        return sum(file.kind == WRITER for file in list(self._files.values()))

    def writer_of(self, known: Known) -> Handle | None:
        """Give a handle that writes a node, if there is one."""
        if known.writers:
            for number in list(known.handles):
                file = self._files.get(number)
                if file is not None and file.kind == WRITER:
                    return file.handle
        return None

    # Opening for reading

    def quick(self, data: bytearray) -> bool:
        """Answer what is asked most: a reader's open of what is known, and its last close."""
        code = data[4]
        if code == Code.OPEN:
            (number,) = _u64(data, 16)
            known = self._find_node(number)
            if known is None or data[40] & os.O_ACCMODE or data[41] & _TRUNCATES:
                return False
            fast: Fast | None = known.fast  # type: ignore[assignment]
            if fast is None or fast.version != self._version():
                return False
            with self._table.lock:
                if known.fast is not fast or known.writers:
                    return False
                known.cached += 1
                fast.file.count += 1
            if not self._answer(_OPENED_HEAD + data[8:16] + fast.answer):
                self.release(fast.number)
            return True
        if code == Code.RELEASE:
            (number,) = _u64(data, 40)
            file = self._files.get(number)
            if file is None or file.kind != READER:
                return False
            self._answer(_DONE_HEAD + data[8:16])
            self.release(number)
            return True
        return False

    def _answer(self, message: bytes | bytearray) -> bool:
        try:
            os.write(self._mounted.fd, message)
        except OSError:  # who asked is gone
            return False
        return True

    def open(self, number: int, flags: int, asker: Asker) -> bytes:
        """Answer OPEN."""
        known = self._table.get(number)
        if flags & _WRITING:
            return self._open_to_write(known, flags, asker)
        fast: Fast | None = known.fast  # type: ignore[assignment]
        if fast is not None and fast.version == self._tree.version():
            with self._table.lock:
                if known.fast is fast and not known.writers:
                    known.cached += 1
                    fast.file.count += 1
                    return fast.answer
        return self._open_to_read(known, flags, asker)

    def _open_to_read(self, known: Known, flags: int, asker: Asker) -> bytes:
        grace = self._mounted.end_grace(asker.pid)
        try:
            if grace is not None and grace.known is known:
                return self._open_pinned(known, grace)
            if known.writers:
                if self._writes(known, asker.pid):
                    return self._open_written(known, asker)
                return self._look_again(asker, writes=False)
            fast: Fast | None = known.fast  # type: ignore[assignment]
            if fast is not None and time.monotonic() - fast.checked < _FRESH_SECONDS:
                version = self._tree.version()
                if self._is_newest(known):
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
            self._idle.pop(known.number, None)
            return fast.answer

    def _is_newest(self, known: Known) -> bool:
        """Whether a node's content is what is stored now; what only grew is."""
        try:
            found = self._tree.getattr(known.node)
        except Exception as error:  # noqa: BLE001  (an open says what is wrong)
            del error
            return False
        if found.content == known.content:
            return True
        return self._grew(known, found)

    def _grew(self, known: Known, found: Attributes) -> bool:
        with self._table.lock:
            if not known.grows_to(found):
                return False
            known.content = found.content
        self._mounted.notices.attributes(known.number)
        return True

    def _open_anew(self, known: Known, flags: int, asker: Asker) -> bytes:
        version = self._tree.version()
        try:
            handle = self._tree.open(known.node, flags)
        except Exception as error:
            if errno_of(error) != errno.ENOENT:
                raise
            return self._look_again(asker, writes=False)
        content = handle.content
        if content is None:
            if known.content is not None and known.content != b"":
                handle.release()
                return self._look_again(asker, writes=False)
            return self._direct(known, handle)
        if content != known.content and not self._grew(known, handle.attributes()):
            handle.release()
            return self._look_again(asker, writes=False)
        return self._share(known, handle, version)

    def _open_pinned(self, known: Known, grace: Grace) -> bytes:
        fast: Fast | None = known.fast  # type: ignore[assignment]
        answer = None if fast is None else self._another(known, fast)
        if answer is not None:
            return answer
        handle, grace.handle = grace.handle, None
        assert handle is not None
        if handle.content is None:
            return self._direct(known, handle)
        return self._share(known, handle, -1)

    def _share(self, known: Known, handle: Handle, version: int) -> bytes:
        """Let a handle be the one of all who read this node."""
        if known.reserved():
            return self._direct(known, handle)
        backing = self._passthrough.hand_over(known, handle)
        with self._table.lock:
            there: Fast | None = known.fast  # type: ignore[assignment]
            if known.reserved() or known.writers:
                self._passthrough.take_back(backing)
                return self._direct(known, handle)
            if there is not None and there.file.count:
                known.cached += 1
                there.file.count += 1
                there.version = max(there.version, version)
                answer = there.answer
            else:
                if there is not None:
                    self._let_go(known, there)
                there = None
                number = next(self._numbers)
                file = OpenFile(handle, known, READER)
                self._files[number] = file
                known.handles.add(number)
                known.cached += 1
                fast = known.fast = Fast(number, file, backing, version)
                answer = fast.answer
                self._keeping.reader(number, known, handle, backing)
        if there is not None:
            handle.release()
            self._passthrough.take_back(backing)
        return answer

    def _direct(self, known: Known, handle: Handle) -> bytes:
        """Let a handle be read past the kernel's pages."""
        number = next(self._numbers)
        with self._table.lock:
            self._files[number] = OpenFile(handle, known, DIRECT)
            known.handles.add(number)
            known.mixed = True
            self._keeping.direct(number, known)
        return _OPENED.pack(number, Open.DIRECT | Open.NOFLUSH, 0)

    def unasked(self, known: Known) -> OpenFile:
        """Give what a node is read with that the kernel opened without asking.

        Kept from the lookup on, so that it is there whatever happens to the name: for the
        `_IDLE_MAX` nodes that were used last.
        """
        fast: Fast | None = known.fast  # type: ignore[assignment]
        if fast is None:
            handle = self._tree.open(known.node, os.O_RDONLY)
            if handle.content is not None and handle.content != known.content:
                handle.release()
                refuse(errno.ESTALE)
            with self._table.lock:
                number = next(self._numbers)
                file = self._files[number] = OpenFile(handle, known, READER)
                file.count = 0
                known.handles.add(number)
                fast = known.fast = Fast(number, file, 0, -1)
        with self._table.lock:
            self._idle[known.number] = known
            self._idle.move_to_end(known.number)
            while len(self._idle) > _IDLE_MAX:
                _, oldest = self._idle.popitem(last=False)
                self._drop_fast(oldest)
        return fast.file

    def pin_unasked(self, parent: Node, name: str, found: Attributes) -> tuple[Known, Attributes]:
        """Give the node for what was looked up, its content pinned, on a read-only mount."""
        for _ in range(_TRIES):
            if stat.S_ISDIR(found.mode) or stat.S_ISLNK(found.mode):
                break
            if found.content is None:  # computed: each lookup has a text, and a node, of its own
                found = found._replace(content=b"#%d" % next(self._numbers), lasting=False)
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

    def _look_again(self, asker: Asker, *, writes: bool) -> bytes:
        """Let the kernel look the name up again, and open what it leads to then."""
        self._mounted.give_grace(asker.pid, writes=writes)
        refuse(errno.ESTALE)

    # What those who look again are given

    def can_pin(self, node: Node) -> bool:
        """Whether a node is a file whose content can be replaced."""
        return any(known.is_file for known in self._table.of(node))

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

    def for_writer(self, grace: Grace, found: Attributes) -> Known:
        """Give the node for a writer: that of the writers, or one that nobody reads."""
        with self._table.lock:
            known = self._table.take(found)
            if known.cached and not known.writers and known.is_file:
                self._table.detach(known)
                self._table.forget(known.number, 1)
                known = self._table.take(found)
            known.reserved_until = time.monotonic() + _RESERVED_SECONDS
            self._drop_fast(known)
            grace.known = known
            return known

    # Opening for writing

    def _open_to_write(self, known: Known, flags: int, asker: Asker) -> bytes:
        grace = self._mounted.end_grace(asker.pid)
        again = grace is not None and grace.known is known
        if grace is not None:
            grace.drop()
        if not known.is_file:
            handle = self._tree.open(known.node, flags)
            return self._direct(known, handle)
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
            return self._look_again(asker, writes=True)
        keep = shown is not None and not flags & os.O_TRUNC
        return self._write(known, handle, flags, asker, keep=keep)

    def _claim(self, known: Known, asker: Asker, *, again: bool) -> bytes | None:
        """Make a node the writers' one (ESTALE if others read it); give the content it shows."""
        newest = known.writers > 0 or self._is_newest(known)
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
                    self._drop_fast(known)
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
        number = next(self._numbers)
        file = OpenFile(handle, known, WRITER, asker.pid)
        with self._table.lock:
            self._files[number] = file
            known.handles.add(number)
            self._keeping.writer(number, known, flags)
            if flags & (os.O_TRUNC | os.O_CREAT):
                self.wrote(file)
        agreed = self._mounted.agreed
        access = flags & os.O_ACCMODE
        only_writes = access == os.O_WRONLY
        direct = flags & os.O_APPEND or (
            only_writes and agreed is not None and agreed.minor >= _MAPPED_DIRECT_MINOR
        )
        how = Open.DIRECT if direct else (Open.KEEP_CACHE if keep else 0)
        return _OPENED.pack(number, how, 0)

    def created(self, known: Known, handle: Handle, flags: int, asker: Asker) -> bytes:
        """Open what CREATE has made."""
        with self._table.lock:
            known.writers += 1
            known.shown = None
            known.mixed = False
        return self._write(known, handle, flags, asker, keep=False)

    def _writes(self, known: Known, pid: int) -> bool:
        """Whether the process of a thread has this node open for writing."""
        pids = {
            file.pid
            for number in list(known.handles)
            if (file := self._files.get(number)) is not None
            and file.kind == WRITER
            and not file.failed
        }
        if pid in pids:
            return True
        group = thread_group(pid)
        return group is not None and any(thread_group(other) == group for other in pids)

    def _open_written(self, known: Known, asker: Asker) -> bytes:
        handle = self._tree.open_written(known.node)
        if handle is None:
            return self._look_again(asker, writes=False)
        with self._table.lock:
            known.writers += 1
            number = next(self._numbers)
            self._files[number] = OpenFile(handle, known, WRITER, asker.pid)
            known.handles.add(number)
            self._keeping.writer(number, known, os.O_RDONLY)
        return _OPENED.pack(number, Open.KEEP_CACHE, 0)

    # Writing and closing

    def wrote(self, file: OpenFile) -> None:
        """Take note that what a writer's node shows is not what is stored."""
        file.writes += 1
        file.failed = False
        file.known.shown = None
        file.known.changes += 1
        self._keeping.wrote(file)

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
                self._table.becomes(known, found.node, None, found.origin)
            if known.changes == changes:
                known.shown = content
            self._keeping.stored(known)

    def release(self, number: int) -> None:
        """Answer RELEASE: the last close of an open file."""
        file = self._files.get(number)
        if file is None:
            return
        known = file.known
        if file.kind == READER:
            with self._table.lock:
                known.cached -= 1
                file.count -= 1
                if not file.count:
                    self._rest(known, number)
            return
        with self._table.lock:
            del self._files[number]
            known.handles.discard(number)
            self._keeping.released(number)
        if file.kind == WRITER:
            self._close_writer(known, file)
        else:
            file.handle.release()
        self._gone(known)

    def _close_writer(self, known: Known, file: OpenFile) -> None:
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
                self._table.becomes(known, found.node, shown, found.origin)
                return
            known.content = None if shown is None else shown
            names = self._table.detach(known)
        for parent, name in names:
            self._mounted.notices.name(parent, name)

    def _rest(self, known: Known, number: int) -> None:
        """Keep a handle that nobody uses for the next reader, or let it go."""
        fast: Fast | None = known.fast  # type: ignore[assignment]
        if fast is None or fast.number != number:
            self._close(number)
            return
        if known.detached or known.lookups <= 0:
            self._let_go(known, fast)
            self._gone(known)
            return
        self._idle[known.number] = known
        while len(self._idle) > _IDLE_MAX:
            _, oldest = self._idle.popitem(last=False)
            self._drop_fast(oldest)

    def _let_go(self, known: Known, fast: Fast) -> None:
        if known.fast is fast:
            known.fast = None
        self._idle.pop(known.number, None)
        if not fast.file.count:
            self._passthrough.take_back(fast.backing)
            self._close(fast.number)

    def _drop_fast(self, known: Known) -> None:
        """Let the next reader of a node open it anew."""
        fast: Fast | None = known.fast  # type: ignore[assignment]
        if fast is not None and not fast.file.count:
            self._let_go(known, fast)

    def stale(self, known: Known) -> None:
        """Let go of a content that is not the newest any more, if nobody reads it."""
        with self._table.lock:
            self._drop_fast(known)

    def _close(self, number: int) -> None:
        file = self._files.pop(number, None)
        if file is not None:
            file.known.handles.discard(number)
            self._keeping.released(number)
            file.handle.release()

    def _gone(self, known: Known) -> None:
        with self._table.lock:
            if known.lookups <= 0 and not known.handles:
                self._table.drop(known)

    def _abandon(self, known: Known) -> None:
        """Close what readers of a node have left: the kernel has forgotten it."""
        for number in list(known.handles):
            file = self._files.get(number)
            if file is not None and file.kind == READER and (known.restored or not file.count):
                file.count = 0
                self._let_go(known, known.fast)  # type: ignore[arg-type]

    # Taking over

    def restore(self, handles: dict[int, bytes], restorer: Restorer) -> None:
        """Know again the files that are open, from what another process left in the ledger."""
        for number, facts in handles.items():
            kind, node, backing, flags = FACTS.unpack_from(facts)
            known = self._table.find(node)
            if known is None:
                self._keeping.released(number)
            elif kind == READER_KIND:
                handle = restorer.reader(known, facts[FACTS.size :])
                self._restore_reader(number, known, handle, backing)
            elif kind == DIRECT_KIND:
                self._restore(number, known, restorer.direct(known), DIRECT)
            else:
                clean = kind == WRITER_KIND
                self._restore(number, known, restorer.writer(known, flags, clean=clean), WRITER)
                known.writers += 1
                known.content = None
                self._keeping.writer(number, known, flags, lost=not clean)
        self._numbers = itertools.count(max(handles, default=0) + 1)

    def _restore(self, number: int, known: Known, handle: Handle, kind: int) -> OpenFile:
        file = self._files[number] = OpenFile(handle, known, kind)
        known.handles.add(number)
        return file

    def _restore_reader(self, number: int, known: Known, handle: Handle, backing: int) -> None:
        """Let a reader go on. How many share it is not known: it stays until the node goes."""
        file = self._restore(number, known, handle, READER)
        file.count = known.cached = _MANY
        known.restored = True
        if handle.content is not None and known.fast is None:
            known.fast = Fast(number, file, backing, -1)
