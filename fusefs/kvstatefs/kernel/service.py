"""One request to its answer: which operation it is, in which lane it belongs, what its errors are.

Nothing raises out of here. The store's errors become their numbers (`errnos.py`); what nobody
foresaw is logged with the operation and the node, and answered EIO.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import struct
import time
from typing import TYPE_CHECKING, Any, Final

from kvstatefs.descriptors import has_open
from kvstatefs.errnos import errno_of
from kvstatefs.kernel.changing import Changing
from kvstatefs.kernel.keeping import Keeping
from kvstatefs.kernel.known import WRITER, OpenFile
from kvstatefs.kernel.listings import Listings
from kvstatefs.kernel.looking import Looking
from kvstatefs.kernel.loop import Lane, Loop, Request
from kvstatefs.kernel.mounted import Asker, Mounted
from kvstatefs.kernel.opening import Opening
from kvstatefs.kernel.passthrough import Passthrough
from kvstatefs.kernel.wire import ANSWER, HEAD_BYTES, REQUEST, Code, Malformed, agree, failure
from kvstatefs.nodes import FILE, identity_of, refuse, tag_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstatefs.kernel.known import Known
    from kvstatefs.kernel.ledger import Ledger
    from kvstatefs.kernel.link import Link
    from kvstatefs.nodes import Handle
    from kvstatefs.tree import Tree

__all__ = ["Service"]

log = logging.getLogger("kvstatefs")

_READ = struct.Struct("=QQI")
_FALLOCATE = struct.Struct("=QQQII")
_LSEEK = struct.Struct("=QQII")
_COPY = struct.Struct("=QQQQQQQ")
_KINDS: Final[dict[int, str]] = {code.value: code.name.lower() for code in Code}
_QUICK_BYTES: Final = 64 * 1024
_PARKED_SECONDS: Final = 1.5
_WRITE_CACHE: Final = 1 << 0
_WRITE_KILLS_SET_ID: Final = 1 << 2
_COMMITTING: Final = frozenset({
    Code.SETATTR, Code.SYMLINK, Code.MKNOD, Code.MKDIR, Code.UNLINK, Code.RMDIR, Code.RENAME,
    Code.RENAME2, Code.FSYNC, Code.SETXATTR, Code.REMOVEXATTR,
})  # fmt: skip
_LOOKING: Final = frozenset({Code.READDIR, Code.READDIRPLUS, Code.STATFS, Code.LISTXATTR})
_OF_NODES: Final = frozenset({Code.LOOKUP, Code.GETATTR, Code.GETXATTR, Code.OPEN})
_OF_FILES: Final = frozenset({Code.READ, Code.WRITE, Code.FLUSH, Code.RELEASE})
_MOVING_BYTES: Final = frozenset(
    {Code.FALLOCATE, Code.COPY_FILE_RANGE, Code.COPY_FILE_RANGE_64, Code.LSEEK}
)
_NEVER_ANSWERED: Final = frozenset({Code.FORGET, Code.BATCH_FORGET, Code.NOTIFY_REPLY})
_WRONG: Final = (Malformed, OverflowError, struct.error)
"""What a request is answered EINVAL for: it is none, or has numbers that nothing has."""
_LEAST: Final = {
    Code.FORGET: 8, Code.GETATTR: 16, Code.SETATTR: 88, Code.MKNOD: 17, Code.MKDIR: 9,
    Code.RENAME: 10, Code.LINK: 9, Code.OPEN: 8, Code.READ: 40, Code.WRITE: 40, Code.RELEASE: 24,
    Code.FSYNC: 16, Code.SETXATTR: 9, Code.GETXATTR: 9, Code.LISTXATTR: 8, Code.FLUSH: 24,
    Code.INIT: 16, Code.OPENDIR: 8, Code.READDIR: 40, Code.RELEASEDIR: 24, Code.CREATE: 17,
    Code.INTERRUPT: 8, Code.BATCH_FORGET: 8, Code.FALLOCATE: 32, Code.READDIRPLUS: 40,
    Code.RENAME2: 18, Code.LSEEK: 24, Code.COPY_FILE_RANGE: 56, Code.COPY_FILE_RANGE_64: 56,
    Code.LOOKUP: 1, Code.UNLINK: 1, Code.RMDIR: 1, Code.SYMLINK: 2, Code.REMOVEXATTR: 1,
}  # fmt: skip
"""How many bytes a request's body has at least."""
_NAMED: Final = frozenset({
    Code.LOOKUP, Code.UNLINK, Code.RMDIR, Code.SYMLINK, Code.REMOVEXATTR, Code.MKDIR, Code.MKNOD,
    Code.CREATE, Code.RENAME, Code.RENAME2, Code.GETXATTR,
})  # fmt: skip
"""What ends with a name, and so with a zero byte."""


class Service:
    """Answers the requests of one mount."""

    def __init__(
        self,
        fd: int,
        tree: Tree,
        mountpoint: str,
        ledger: Ledger,
        link: Link,
        *,
        passthrough: bool,
        ended: Callable[[], None],
    ) -> None:
        self.mounted = Mounted(fd, tree, mountpoint, ledger, self._stale)
        self.ready: Callable[[], None] = lambda: None
        self.refused = ""
        """Why the kernel cannot be served, if it cannot."""
        self._fd = fd
        self._tree = tree
        self._done = tree.counts.done
        self._table = self.mounted.table
        self._passthrough = Passthrough(fd, wanted=passthrough)
        self.keeping = Keeping(ledger, link)
        self.opening = Opening(self.mounted, self._passthrough, self.keeping)
        self.looking = Looking(self.mounted, self.opening)
        self.changing = Changing(self.mounted, self.opening, self.looking)
        self.loop = Loop(fd, self.opening.quick, self._lane_of, self.serve, ended)
        self._commits = self.loop.lane("commits", 8)
        self._folders = self.loop.lane("folders", 4)
        self._others = self.loop.lane("others", 4)
        self._tiers = [self.loop.lane(name, 6) for name in ("hot", "warm", "cold")]
        self._parked: list[tuple[int, Any, int, int, float]] = []
        self.mounted.feed.moved = self._unpark
        self._handlers = self._table_of_handlers()

    def _table_of_handlers(self) -> dict[int, Callable[..., bytes | None]]:
        looking, changing, listings = self.looking, self.changing, Listings(self.mounted)
        return {
            Code.LOOKUP: looking.lookup,
            Code.FORGET: self._forget,
            Code.BATCH_FORGET: self._forget_many,
            Code.GETATTR: looking.getattr,
            Code.SETATTR: changing.setattr,
            Code.READLINK: looking.readlink,
            Code.SYMLINK: changing.symlink,
            Code.MKNOD: changing.mknod,
            Code.MKDIR: changing.mkdir,
            Code.UNLINK: changing.unlink,
            Code.RMDIR: changing.rmdir,
            Code.RENAME: changing.rename,
            Code.RENAME2: changing.rename2,
            Code.LINK: _refused,
            Code.OPEN: self._open,
            Code.READ: self._read,
            Code.WRITE: self._write,
            Code.STATFS: looking.statfs,
            Code.RELEASE: self._release,
            Code.FSYNC: self._fsync,
            Code.SETXATTR: changing.setxattr,
            Code.GETXATTR: looking.getxattr,
            Code.LISTXATTR: looking.listxattr,
            Code.REMOVEXATTR: changing.removexattr,
            Code.FLUSH: self._flush,
            Code.INIT: self._init,
            Code.OPENDIR: listings.opendir,
            Code.READDIR: listings.readdir,
            Code.READDIRPLUS: listings.readdirplus,
            Code.RELEASEDIR: listings.releasedir,
            Code.FSYNCDIR: _done,
            Code.CREATE: changing.create,
            Code.INTERRUPT: self._interrupt,
            Code.DESTROY: _done,
            Code.FALLOCATE: self._fallocate,
            Code.LSEEK: self._lseek,
            Code.COPY_FILE_RANGE: self._copy,
            Code.COPY_FILE_RANGE_64: self._copy,
            Code.NOTIFY_REPLY: _nothing,
        }

    # The edge

    def serve(self, request: Request) -> None:
        """Answer a request."""
        data, size = request.data, request.size
        if size < HEAD_BYTES:
            log.error("a request of %d bytes has no head", size)
            return
        length, code, unique, node, uid, gid, pid, _, _ = REQUEST.unpack_from(data)
        try:
            handler = self._handlers.get(code)
            if handler is None:
                refuse(errno.ENOSYS)
            _check(code, data, size, length)
            self._done[_KINDS[code]] += 1
            body = handler(unique, node, data, size, Asker(uid, gid, pid))
        except Exception as error:  # noqa: BLE001  (this is the edge)
            self._fail(unique, code, node, error)
            return
        except BaseException:
            log.exception("%s of node %d was interrupted", _name(code), node)
            self._fail(unique, code, node, OSError(errno.EINTR, ""))
            return
        if body is not None:
            with contextlib.suppress(OSError):  # who asked may be gone
                if len(body) > _QUICK_BYTES:
                    os.writev(self._fd, (ANSWER.pack(16 + len(body), 0, unique), body))
                else:
                    os.write(self._fd, ANSWER.pack(16 + len(body), 0, unique) + body)

    def _fail(self, unique: int, code: int, node: int, error: Exception) -> None:
        number = errno.EINVAL if isinstance(error, _WRONG) else errno_of(error)
        if number == errno.EIO:
            log.warning("%s of node %d: %s", _name(code), node, error or type(error).__name__)
        self._tree.counts.failed(_KINDS.get(code, "unknown"), number)
        if code not in _NEVER_ANSWERED:
            with contextlib.suppress(OSError):
                os.write(self._fd, failure(unique, number))

    def _stale(self, known: Known) -> None:
        self.opening.stale(known)

    # Which thread

    def _lane_of(self, request: Request) -> Lane | None:
        """Say which requests may have to wait, and for what."""
        data = request.data
        code = data[4]
        if code in _COMMITTING:
            return self._commits
        if code in _LOOKING:
            return self._folders
        if code in _OF_NODES:
            known = self._table.find(int.from_bytes(data[16:24], "little"))
            return self._lane_of_look(code, known, request)
        if code in _OF_FILES:
            return self._lane_of_use(code, data)
        return self._others if code in _MOVING_BYTES else None

    def _lane_of_look(self, code: int, known: Known | None, request: Request) -> Lane | None:
        """Let what is computed, and an open of large content, step aside: they may have to wait.

        So may who looks at a file that is just being stored, or loaded.
        """
        if known is None:
            return None
        if known.computed:
            return self._others
        written = known
        if code == Code.LOOKUP and known.children and self.keeping.has_writers:
            name = request.data[40 : request.size - 1].decode("utf-8", "surrogateescape")
            written = known.children.get(name) or known
        if written.writers and _is_busy(self.opening.files.writer_of(written)):
            return self._lane_of_node(written)
        if code == Code.OPEN and known.fast is None and known.size > _QUICK_BYTES:
            return self._lane_of_node(known)
        return None

    def _lane_of_use(self, code: int, data: bytearray) -> Lane | None:
        """Let large content, which needs a disk, and what commits step aside."""
        file = self.opening.find(int.from_bytes(data[40:48], "little"))
        if code == Code.READ:
            if file is None and self.mounted.opens_alone:
                known = self._table.find(int.from_bytes(data[16:24], "little"))
                slow = known is not None and (known.size > _QUICK_BYTES or known.computed)
                return self._lane_of_node(known) if known is not None and slow else None
            return self._lane_of_node(file.known) if file and file.handle.slow else None
        if code == Code.WRITE:
            end = int.from_bytes(data[48:56], "little") + int.from_bytes(data[56:60], "little")
            quick = end <= _QUICK_BYTES and (file is None or file.known.size <= _QUICK_BYTES)
            busy = file is not None and _is_busy(file.handle)
            return None if quick and not busy else self._others
        return None if file is None or file.kind != WRITER else self._commits

    def _lane_of_node(self, known: Known) -> Lane:
        if tag_of(known.node) == FILE:
            file = self._tree.files.records.fetch(identity_of(known.node))
            if file is not None:
                return self._tiers[file.tier]
        return self._others

    # Beginning, forgetting, interrupting

    def _init(self, unique: int, node: int, data: bytearray, size: int, asker: Asker) -> None:
        del node, asker
        agreed, body = agree(
            memoryview(data)[HEAD_BYTES:size], passthrough=self._passthrough.wanted
        )
        if agreed is None:
            self.refused = "the kernel's FUSE protocol is older than 7.31"
        else:
            self.agree(agreed)
            self.mounted.ledger.init(agreed.packed())
        self.mounted.answer(unique, body)
        self.ready()

    def agree(self, agreed: Any) -> None:
        """Take note of what was agreed on, now or with the process before this one."""
        self.mounted.agreed = agreed
        self.mounted.opens_alone = self.mounted.read_only and agreed.opens_alone
        self._passthrough.begin(offered=agreed.passthrough)

    def _forget(self, unique: int, node: int, data: bytearray, size: int, asker: Asker) -> None:
        del unique, size, asker
        self._table.forget(node, int.from_bytes(data[40:48], "little"))

    def _forget_many(
        self, unique: int, node: int, data: bytearray, size: int, asker: Asker
    ) -> None:
        del unique, node, asker
        count = int.from_bytes(data[40:44], "little")
        if size < 48 + 16 * count:
            raise Malformed("BATCH_FORGET")
        for at in range(48, 48 + 16 * count, 16):
            number = int.from_bytes(data[at : at + 8], "little")
            self._table.forget(number, int.from_bytes(data[at + 8 : at + 16], "little"))

    def _interrupt(self, unique: int, node: int, data: bytearray, size: int, asker: Asker) -> None:
        del unique, node, size, asker
        wanted = int.from_bytes(data[40:48], "little")
        if self.loop.interrupt(wanted):
            return
        with self._table.lock:
            parked = [each for each in self._parked if each[0] == wanted]
            self._parked = [each for each in self._parked if each[0] != wanted]
        for _ in parked:
            with contextlib.suppress(OSError):
                os.write(self._fd, failure(wanted, errno.EINTR))

    # Files

    def _open(self, unique: int, node: int, data: bytearray, size: int, asker: Asker) -> bytes:
        del unique, size
        flags = int.from_bytes(data[40:44], "little")
        if self.mounted.opens_alone:
            refuse(errno.ENOSYS)  # from now on it neither asks nor says when it closes
        if self.mounted.read_only and flags & os.O_ACCMODE != os.O_RDONLY:
            refuse(errno.EROFS)
        return self.opening.open(node, flags, asker)

    def _read(
        self, unique: int, node: int, data: bytearray, size: int, asker: Asker
    ) -> bytes | None:
        del size, asker
        number, offset, length = _READ.unpack_from(data, 40)
        file = self._file(number, node)
        blocks = getattr(file.handle, "blocks", None)
        if blocks is not None and blocks(offset):
            until = time.monotonic() + _PARKED_SECONDS
            with self._table.lock:
                self._parked.append((unique, file, offset, length, until))
            if not blocks(offset):  # a commit came between the two
                self._unpark()
            return None
        return file.handle.read(offset, length)

    def _file(self, number: int, node: int) -> OpenFile:
        """Give an open file; of one that the kernel opened alone, what its node is read with."""
        if number or not self.mounted.opens_alone:
            return self.opening.get(number)
        return self.opening.readers.unasked(self._table.get(node))

    def _unpark(self) -> None:
        """Answer those who wait at the end of a file that grows."""
        now = time.monotonic()
        for each in list(self._parked):
            unique, file, offset, length, until = each
            body, failed = b"", None
            try:
                body = file.handle.read(offset, length)
            except Exception as error:  # noqa: BLE001  (this is an edge, too)
                failed = error
            if not (body or failed or now > until):
                continue
            with self._table.lock:
                if each not in self._parked:  # interrupted, or answered by another thread
                    continue
                self._parked.remove(each)
            if failed is None:
                self.mounted.answer(unique, body)
            else:
                self._fail(unique, Code.READ, file.known.number, failed)

    def _write(self, unique: int, node: int, data: bytearray, size: int, asker: Asker) -> bytes:
        del unique, node, asker
        number, offset, length = _READ.unpack_from(data, 40)
        flags = int.from_bytes(data[60:64], "little")
        if size < 80 + length:
            raise Malformed("WRITE")
        file = self.opening.get(number)
        self.opening.writers.wrote(file)
        content = bytes(memoryview(data)[80 : 80 + length])
        # What comes from a mapping has its place, wherever the handle would append.
        back = flags & _WRITE_CACHE and getattr(file.handle, "write_back", None)
        written = (back or file.handle.write)(offset, content)
        self.opening.writers.wrote(file)
        if flags & _WRITE_KILLS_SET_ID:
            self.changing.wrote_with_set_id(file.known)
        return struct.pack("=II", written, 0)

    def _flush(self, unique: int, node: int, data: bytearray, size: int, asker: Asker) -> bytes:
        del unique, size
        if self.mounted.opens_alone:
            refuse(errno.ENOSYS)  # nor does it ask again
        file = self.opening.get(int.from_bytes(data[40:48], "little"))
        if file.kind == WRITER:
            known = self._table.get(node)
            held = lambda: has_open(asker.pid, self.mounted.path(known))  # noqa: E731
            self.opening.writers.flush(file, held)
        return b""

    def _fsync(self, unique: int, node: int, data: bytearray, size: int, asker: Asker) -> bytes:
        del unique, node, size, asker
        file = self.opening.get(int.from_bytes(data[40:48], "little"))
        if file.kind == WRITER:
            self.opening.writers.flush(file, None)
        return b""

    def _release(self, unique: int, node: int, data: bytearray, size: int, asker: Asker) -> bytes:
        del unique, node, size, asker
        number = int.from_bytes(data[40:48], "little")
        file = self.opening.find(number)
        if file is not None and file.kind == WRITER and file.flushed != file.writes:
            # A mapping that outlived its descriptor was written to: there was no close to say so.
            try:
                self.opening.writers.flush(file, None)
            except Exception as error:  # noqa: BLE001  (nobody is left to be told)
                log.warning("what was written through a mapping is lost: %s", error)
        self.opening.release(number)
        return b""

    def _fallocate(self, unique: int, node: int, data: bytearray, size: int, asker: Asker) -> bytes:
        del unique, node, size, asker
        number, offset, length, mode, _ = _FALLOCATE.unpack_from(data, 40)
        file = self.opening.get(number)
        self.opening.writers.wrote(file)
        file.handle.allocate(mode, offset, length)
        self.opening.writers.wrote(file)
        return b""

    def _lseek(self, unique: int, node: int, data: bytearray, size: int, asker: Asker) -> bytes:
        del unique, size, asker
        number, offset, whence, _ = _LSEEK.unpack_from(data, 40)
        return struct.pack("=Q", self._file(number, node).handle.seek(offset, whence))

    def _copy(self, unique: int, node: int, data: bytearray, size: int, asker: Asker) -> bytes:
        del unique, node, size, asker
        source, offset, _, target, target_offset, length, _ = _COPY.unpack_from(data, 40)
        file = self.opening.get(target)
        self.opening.writers.wrote(file)
        reader = self.opening.get(source).handle
        copied = file.handle.copy_from(reader, offset, target_offset, length)
        self.opening.writers.wrote(file)
        if data[4] == Code.COPY_FILE_RANGE_64:
            return struct.pack("=Q", copied)
        return struct.pack("=II", min(copied, 0xFFFF_F000), 0)


def _is_busy(handle: Handle | None) -> bool:
    """Whether what a handle writes to is just being stored, or loaded, by somebody."""
    copy = getattr(handle, "copy", None)
    if copy is None:
        return False
    if copy.lock.acquire(blocking=False):
        copy.lock.release()
        return False
    return True


def _check(code: int, data: bytearray, size: int, length: int) -> None:
    """Refuse a request that is shorter than it says, or than its code needs."""
    least = _LEAST.get(code, 0)  # type: ignore[call-overload]
    if size != length or size - HEAD_BYTES < least:
        raise Malformed(_name(code))
    if code in _NAMED and data[size - 1]:
        raise Malformed(_name(code))


def _name(code: int) -> str:
    try:
        return Code(code).name
    except ValueError:
        return f"operation {code}"


def _done(*_: object) -> bytes:
    return b""


def _nothing(*_: object) -> None:
    return None


def _refused(*_: object) -> bytes:
    refuse(errno.EPERM)
