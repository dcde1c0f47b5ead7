"""The open files of a mount: their numbers, what readers of a node share, what becomes of them."""

from __future__ import annotations

import errno
import itertools
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from kvstatefs.kernel.known import DIRECT, OPENED, READER, WRITER, Fast, Known, OpenFile
from kvstatefs.kernel.wire import Open, attributes_bytes
from kvstatefs.nodes import Handle, refuse

if TYPE_CHECKING:
    from kvstatefs.kernel.keeping import Keeping
    from kvstatefs.kernel.mounted import Asker, Mounted
    from kvstatefs.kernel.passthrough import Passthrough
    from kvstatefs.nodes import Attributes

__all__ = ["OpenFiles"]

_IDLE_MAX: Final = 16_384
_IDLE_BYTES_MAX: Final = 64 << 20
_IDLE_FILES_MAX: Final = 512
_SMALL_BYTES: Final = 64 * 1024


class OpenFiles:
    """All open files, by the numbers that the kernel knows them by."""

    def __init__(self, mounted: Mounted, passthrough: Passthrough, keeping: Keeping) -> None:
        self.mounted = mounted
        self.tree = mounted.tree
        self.table = mounted.table
        self.passthrough = passthrough
        self.keeping = keeping
        self.by_number: dict[int, OpenFile] = {}
        self.find = self.by_number.get
        self._numbers = itertools.count(1)
        self._idle_small: OrderedDict[int, tuple[Known, int]] = OrderedDict()
        self._idle_large: OrderedDict[int, tuple[Known, int]] = OrderedDict()
        self._idle_bytes = 0
        self.table.forgotten = self._abandon

    def number(self) -> int:
        """Give a number that no file has."""
        return next(self._numbers)

    def number_from(self, first: int) -> None:
        """Give none below this from now on."""
        self._numbers = itertools.count(first)

    def get(self, number: int) -> OpenFile:
        """Give an open file; EBADF when there is none of this number."""
        file = self.by_number.get(number)
        if file is None:
            refuse(errno.EBADF)
        return file

    def __len__(self) -> int:
        return len(self.by_number)

    def writers(self) -> int:
        """Give how many files are open for writing."""
        return sum(file.kind == WRITER for file in list(self.by_number.values()))

    def writer_of(self, known: Known) -> Handle | None:
        """Give a handle that writes a node, if there is one."""
        if known.writers:
            for number in list(known.handles):
                file = self.by_number.get(number)
                if file is not None and file.kind == WRITER:
                    return file.handle
        return None

    def add(self, file: OpenFile, number: int = 0) -> int:
        """Take a file in; give its number."""
        number = number or self.number()
        self.by_number[number] = file
        file.known.handles.add(number)
        return number

    def leave(self, number: int) -> None:
        """Let a file's number mean nothing any more."""
        file = self.by_number.pop(number, None)
        if file is not None:
            file.known.handles.discard(number)
            self.keeping.released(number)

    def is_newest(self, known: Known) -> bool:
        """Whether a node's content is what is stored now; what only grew is."""
        try:
            found = self.tree.getattr(known.node)
        except Exception as error:  # noqa: BLE001  (an open says what is wrong)
            del error
            return False
        if found.content == known.content:
            return True
        return self.grew(known, found)

    def grew(self, known: Known, found: Attributes) -> bool:
        """Let a node go on with what was found, if that begins with what it shows."""
        with self.table.lock:
            if not known.grows_to(found):
                return False
            known.content = found.content
            known.packed = attributes_bytes(found, found.inode)
        self.mounted.notices.attributes(known.number)
        return True

    def direct(self, known: Known, handle: Handle) -> bytes:
        """Let a handle be read past the kernel's pages."""
        number = self.number()
        with self.table.lock:
            self.add(OpenFile(handle, known, DIRECT), number)
            known.mixed = True
            self.keeping.direct(number, known)
        return OPENED.pack(number, Open.DIRECT | Open.NOFLUSH, 0)

    def look_again(self, asker: Asker, *, writes: bool) -> bytes:
        """Let the kernel look the name up again, and open what it leads to then."""
        self.mounted.give_grace(asker.pid, writes=writes)
        refuse(errno.ESTALE)

    def used(self, known: Known) -> None:
        """Keep what a node is read with, as the one that was used last.

        Those that were used longest ago go: small ones are in memory, large ones have descriptors.
        """
        if known.number in self._idle_small:
            return  # in their order, about
        size = known.size
        idle = self._idle_small if size <= _SMALL_BYTES else self._idle_large
        if known.number not in idle:
            idle[known.number] = (known, size)
            self._idle_bytes += size if idle is self._idle_small else 0
        idle.move_to_end(known.number)
        while len(self._idle_large) > _IDLE_FILES_MAX:
            self._dismiss(self._idle_large)
        while len(self._idle_small) > _IDLE_MAX or self._idle_bytes > _IDLE_BYTES_MAX:
            self._dismiss(self._idle_small)

    def _dismiss(self, idle: OrderedDict[int, tuple[Known, int]]) -> None:
        known, _ = next(iter(idle.values()))
        self.busy(known)
        self.drop_fast(known)

    def busy(self, known: Known) -> None:
        """Take note that what a node is read with is not idle any more."""
        small = self._idle_small.pop(known.number, None)
        if small is not None:
            self._idle_bytes -= small[1]
        self._idle_large.pop(known.number, None)

    def rest(self, known: Known, number: int) -> None:
        """Keep a handle that nobody uses for the next reader, or let it go."""
        fast = known.fast
        if fast is None or fast.number != number:
            self.close(number)
            return
        if known.detached or known.lookups <= 0:
            self.let_go(known, fast)
            self.gone(known)
            return
        self.used(known)

    def let_go(self, known: Known, fast: Fast) -> None:
        """Let the next reader of a node open it anew, and what its readers share go with them."""
        if known.fast is fast:
            known.fast = None
        self.busy(known)
        if not fast.file.count:
            self.passthrough.take_back(fast.backing)
            self.close(fast.number)

    def drop_fast(self, known: Known) -> None:
        """Let the next reader of a node open it anew."""
        fast = known.fast
        if fast is not None and not fast.file.count:
            self.let_go(known, fast)

    def stale(self, known: Known) -> None:
        """Let go of a content that is not the newest any more, if nobody reads it.

        Who opened a file without asking may read it still: such contents go when others come.
        """
        if self.mounted.opens_alone:
            return
        with self.table.lock:
            self.drop_fast(known)

    def close(self, number: int) -> None:
        """Let go of an open file."""
        file = self.by_number.get(number)
        if file is not None:
            self.leave(number)
            file.handle.release()

    def gone(self, known: Known) -> None:
        """Let a node go that the kernel has forgotten, once nobody has it open."""
        with self.table.lock:
            if known.lookups <= 0 and not known.handles:
                self.table.drop(known)

    def _abandon(self, known: Known) -> None:
        """Close what readers of a node have left: the kernel has forgotten it."""
        for number in list(known.handles):
            file = self.by_number.get(number)
            if file is not None and file.kind == READER and (known.restored or not file.count):
                file.count = 0
                if known.fast is not None:
                    self.let_go(known, known.fast)
                self.close(number)
