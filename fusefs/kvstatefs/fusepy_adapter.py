"""The tree through fusepy and libfuse 2: the only file that imports fuse.

fusepy knows libfuse's structures on every machine, and that is what is used of it. Its wrappers
cost more than what they wrap, its `Operations` makes the kernel ask for what nobody means, and it
answers a name that is not UTF-8 with a traceback. So the callbacks here are our own, take pointers
as numbers and translate, and nothing else: paths and handle numbers are the business of
`operations.py`, numbers of errors of `errnos.py`, threads of `session.py`.

libfuse is told to remove files at once (`hard_remove`: no `.fuse_hidden` names, and a rename over
an open file has no moment without a name), and to call with a handle and no path where it has one.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import stat
import struct
import sys
from typing import TYPE_CHECKING, Any, Final

import fuse

from kvstatefs.errnos import errno_of
from kvstatefs.kernel_cache import STALE_SECONDS
from kvstatefs.nodes import Caller, Changes, refuse
from kvstatefs.operations import Operations
from kvstatefs.session import Session, packed_open_flags
from kvstatefs.stat_layout import StatLayout

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kvstatefs.nodes import Attributes
    from kvstatefs.operation_counts import OperationCounts
    from kvstatefs.tree import Tree

__all__ = ["FusepyMount"]

log = logging.getLogger("kvstatefs")

_SECOND: Final = 1_000_000_000
_NOW: Final = (1 << 30) - 1
_OMIT: Final = (1 << 30) - 2
_UNCHANGED: Final = 0xFFFF_FFFF

_KEPT_SECONDS: Final = 0.9 * STALE_SECONDS
"""For how long the kernel is told to keep: its clock is coarse, and the bound is a bound."""

_Address = ctypes.c_void_p
_Path = ctypes.c_char_p
_Size = ctypes.c_size_t
_Offset = ctypes.c_longlong
_Filler = ctypes.PYFUNCTYPE(ctypes.c_int, _Address, _Path, _Address, _Offset)
_FileInfo = fuse.fuse_file_info
_memmove = ctypes.memmove


_STAT = StatLayout(fuse.c_stat)
_OPEN_FLAGS: Final = {
    (direct, keep, reads): packed_open_flags(direct=direct, keep=keep, reads=reads)
    for direct in (False, True)
    for keep in (False, True)
    for reads in (False, True)
}

_PROTOTYPES: Final[dict[str, tuple[Any, ...]]] = {
    "getattr": (_Path, _Address),
    "fgetattr": (_Address, _Address, _Address),
    "readlink": (_Path, _Address, _Size),
    "mknod": (_Path, fuse.c_mode_t, fuse.c_dev_t),
    "mkdir": (_Path, fuse.c_mode_t),
    "unlink": (_Path,),
    "rmdir": (_Path,),
    "symlink": (_Path, _Path),
    "rename": (_Path, _Path),
    "link": (_Path, _Path),
    "chmod": (_Path, fuse.c_mode_t),
    "chown": (_Path, fuse.c_uid_t, fuse.c_gid_t),
    "truncate": (_Path, _Offset),
    "ftruncate": (_Address, _Offset, _Address),
    "utimens": (_Path, _Address),
    "open": (_Path, _Address),
    "create": (_Path, fuse.c_mode_t, _Address),
    "read": (_Address, _Address, _Size, _Offset, _Address),
    "write": (_Address, _Address, _Size, _Offset, _Address),
    "flush": (_Address, _Address),
    "release": (_Address, _Address),
    "fsync": (_Address, ctypes.c_int, _Address),
    "opendir": (_Path, _Address),
    "readdir": (_Address, _Address, _Address, _Offset, _Address),
    "releasedir": (_Address, _Address),
    "fsyncdir": (_Address, ctypes.c_int, _Address),
    "statfs": (_Path, _Address),
    "getxattr": (_Path, _Path, _Address, _Size),
    "listxattr": (_Path, _Address, _Size),
    "setxattr": (_Path, _Path, _Address, _Size, ctypes.c_int),
    "removexattr": (_Path, _Path),
    "fallocate": (_Address, ctypes.c_int, _Offset, _Offset, _Address),
}
"""The operations that are meant, and how libfuse calls them; the kernel asks for no others."""


class _LaterOperations(fuse.fuse_operations):  # type: ignore[misc]
    """libfuse's table of operations as of 2.9 on Linux; fusepy knows the beginning of it."""

    _fields_ = (
        ("poll", _Address),
        ("write_buf", _Address),
        ("read_buf", _Address),
        ("flock", _Address),
        ("fallocate", _Address),
    )


_WITH_FALLOCATE: Final = 29


class FusepyMount:
    """A tree mounted through libfuse 2."""

    def __init__(self, tree: Tree, mountpoint: str, options: Sequence[str]) -> None:
        """Prepare to mount on an absolute path; ``options`` are libfuse's own (``allow_other``)."""
        self._library = ctypes.CDLL(fuse._libfuse_path)  # noqa: SLF001  (where fusepy found it)
        self._mountpoint = mountpoint
        self._options = (
            "hard_remove",
            "use_ino",
            "big_writes",
            "atomic_o_trunc",
            "max_read=131072",
            f"attr_timeout={_KEPT_SECONDS}",
            f"entry_timeout={_KEPT_SECONDS}",
            "negative_timeout=0",
            *options,
        )
        self.session = Session(self._library, self._attributes_of, self._release_reader, self._keep)
        self._files = Operations(
            tree, mountpoint, self.session.step_aside, self.session.open_nodes.unlinked
        )
        self._callbacks: list[object] = []

    def _release_reader(self, number: int) -> bool:
        if not self._files.release_reader(number):
            return False
        self.session.open_nodes.released(number)
        return True

    def _keep(self, number: int, changes: Changes) -> None:
        self._files.keep(number, changes)

    def _attributes_of(self, number: int) -> Attributes:
        return self._files.fgetattr(number)

    def mount(self, ready: Callable[[], None], ended: Callable[[], None]) -> None:
        """Mount and serve in threads of its own; `OSError` when the kernel or fusermount refuse.

        ``ready`` is called when the mount answers, ``ended`` when it was unmounted.
        """
        arguments = ["kvstatefs", "-f", "-o", ",".join(self._options), self._mountpoint]
        argv = (_Path * len(arguments))(*(os.fsencode(argument) for argument in arguments))
        setup = self._library.fuse_setup
        setup.restype = _Address
        setup.argtypes = (ctypes.c_int, _Address, _Address, _Size, _Address, _Address, _Address)
        operations = self._operations()
        found, threaded = _Path(), ctypes.c_int()
        filesystem = setup(
            len(arguments),
            argv,
            ctypes.byref(operations),
            ctypes.sizeof(operations),
            ctypes.byref(found),
            ctypes.byref(threaded),
            None,
        )
        if not filesystem:
            refuse(errno.EIO, f"libfuse could not mount {self._mountpoint!r}")
        self.session.start(filesystem, ready, ended)

    def _operations(self) -> Any:
        """Give libfuse's table of operations, filled."""
        later = sys.platform == "linux" and self._library.fuse_version() >= _WITH_FALLOCATE
        operations = (_LaterOperations if later else fuse.fuse_operations)()
        kinds = {field[0]: field[1] for kind in type(operations).__mro__ for field in _fields(kind)}
        counts = self._files.tree.counts
        for name, arguments in _PROTOTYPES.items():
            if name not in kinds:
                continue
            guarded = _guarded(getattr(self, name), name, counts)
            callback = ctypes.CFUNCTYPE(ctypes.c_int, *arguments)(guarded)
            self._callbacks.append(callback)
            setattr(operations, name, ctypes.cast(callback, kinds[name]))
        operations.flag_nullpath_ok = 1
        operations.flag_nopath = 1
        operations.flag_utime_omit_ok = 1
        return operations

    @staticmethod
    def _caller() -> Caller:
        uid, gid, _ = fuse.fuse_get_context()
        return Caller(uid, gid)

    @staticmethod
    def _thread() -> int:
        _, _, pid = fuse.fuse_get_context()
        return int(pid)

    # Looking

    def getattr(self, path: bytes, buffer: int) -> int:
        """Answer `stat`."""
        _memmove(buffer, _STAT.pack(self._files.getattr(path)), _STAT.size)
        return 0

    def fgetattr(self, _path: int, buffer: int, info: int) -> int:
        """Answer `fstat`, when the kernel says of which open file."""
        number = _FileInfo.from_address(info).fh
        _memmove(buffer, _STAT.pack(self._files.fgetattr(number)), _STAT.size)
        return 0

    def readlink(self, path: bytes, buffer: int, size: int) -> int:
        """Answer `readlink`."""
        target = self._files.readlink(path)[: size - 1] + b"\0"
        _memmove(buffer, target, len(target))
        return 0

    def statfs(self, path: bytes, buffer: int) -> int:
        """Answer `statvfs`."""
        found = self._files.statfs(path)
        target = fuse.c_statvfs.from_address(buffer)
        for name in (
            "f_bsize",
            "f_frsize",
            "f_blocks",
            "f_bfree",
            "f_bavail",
            "f_files",
            "f_ffree",
            "f_favail",
            "f_flag",
            "f_namemax",
        ):
            setattr(target, name, getattr(found, name))
        return 0

    def opendir(self, path: bytes, info: int) -> int:
        """Answer `opendir`."""
        _FileInfo.from_address(info).fh = self._files.opendir(path)
        return 0

    def readdir(self, _path: int, buffer: int, filler: int, offset: int, info: int) -> int:
        """Answer `readdir`: fill the buffer from an offset on; 1 and 2 come after `.` and `..`."""
        fill = _Filler(filler)
        number = _FileInfo.from_address(info).fh
        for after, name in ((1, b"."), (2, b"..")):
            if offset < after and fill(buffer, name, None, after):
                return 0
        for after, listed in self._files.readdir(number, max(0, offset - 2)):
            entry = _STAT.pack_entry(listed.inode, listed.mode)
            if fill(buffer, listed.name.encode(), entry, after + 2):
                break
        return 0

    def releasedir(self, _path: int, info: int) -> int:
        """Answer `closedir`."""
        self._files.releasedir(_FileInfo.from_address(info).fh)
        return 0

    def fsyncdir(self, _path: int, _data_only: int, _info: int) -> int:
        """Answer `fsync` of a folder: every change of one is durable already."""
        return 0

    # Files

    def open(self, path: bytes, info: int) -> int:
        """Answer `open`."""
        fields = _FileInfo.from_address(info)
        flags = fields.flags
        fields.fh, grant = self._files.open(path, flags, self._thread())
        reads = flags & os.O_ACCMODE == os.O_RDONLY
        self.session.answer_open(_OPEN_FLAGS[grant.direct, grant.keep, reads])
        return 0

    def create(self, path: bytes, mode: int, info: int) -> int:
        """Answer `open` with O_CREAT, of what was not there a moment ago."""
        fields = _FileInfo.from_address(info)
        fields.fh, grant = self._files.create(
            path, fields.flags, mode, self._caller(), self._thread()
        )
        fields.direct_io = grant.direct
        return 0

    def mknod(self, path: bytes, mode: int, _device: int) -> int:
        """Answer `mknod`: files only."""
        if stat.S_IFMT(mode) not in {0, stat.S_IFREG}:
            return -errno.EPERM
        self._files.mknod(path, mode, self._caller())
        return 0

    def read(self, _path: int, buffer: int, size: int, offset: int, info: int) -> int:
        """Answer `read`."""
        data = self._files.read(_FileInfo.from_address(info).fh, offset, size)
        _memmove(buffer, data, len(data))
        return len(data)

    def write(self, _path: int, buffer: int, size: int, offset: int, info: int) -> int:
        """Answer `write`."""
        data = ctypes.string_at(buffer, size)
        return self._files.write(_FileInfo.from_address(info).fh, offset, data)

    def flush(self, _path: int, info: int) -> int:
        """Answer `close`."""
        self._files.flush(_FileInfo.from_address(info).fh, self._thread())
        return 0

    def release(self, _path: int, info: int) -> int:
        """Answer the last `close` of an open file."""
        number = _FileInfo.from_address(info).fh
        self.session.open_nodes.released(number)
        self._files.release(number)
        return 0

    def fsync(self, _path: int, _data_only: int, info: int) -> int:
        """Answer `fsync`."""
        self._files.fsync(_FileInfo.from_address(info).fh)
        return 0

    def truncate(self, path: bytes, size: int) -> int:
        """Answer `truncate`."""
        self._files.truncate(path, size)
        return 0

    def ftruncate(self, _path: int, size: int, info: int) -> int:
        """Answer `ftruncate`."""
        self._files.ftruncate(_FileInfo.from_address(info).fh, size)
        return 0

    def fallocate(self, _path: int, mode: int, offset: int, length: int, info: int) -> int:
        """Answer `fallocate`."""
        self._files.fallocate(_FileInfo.from_address(info).fh, mode, offset, length)
        return 0

    # Changing

    def mkdir(self, path: bytes, mode: int) -> int:
        """Answer `mkdir`."""
        self._files.mkdir(path, mode, self._caller())
        return 0

    def symlink(self, target: bytes, path: bytes) -> int:
        """Answer `symlink`."""
        self._files.symlink(target, path, self._caller())
        return 0

    def link(self, _path: bytes, _new: bytes) -> int:
        """Answer `link`: a file has one name."""
        return -errno.EPERM

    def unlink(self, path: bytes) -> int:
        """Answer `unlink`."""
        self._files.unlink(path)
        return 0

    def rmdir(self, path: bytes) -> int:
        """Answer `rmdir`."""
        self._files.rmdir(path)
        return 0

    def rename(self, old: bytes, new: bytes) -> int:
        """Answer `rename`."""
        self._files.rename(old, new)
        return 0

    def chmod(self, path: bytes, mode: int) -> int:
        """Answer `chmod`."""
        self._files.setattr(path, Changes(mode=stat.S_IMODE(mode)))
        return 0

    def chown(self, path: bytes, uid: int, gid: int) -> int:
        """Answer `chown`."""
        changes = Changes(
            uid=None if uid == _UNCHANGED else uid, gid=None if gid == _UNCHANGED else gid
        )
        self._files.setattr(path, changes)
        return 0

    def utimens(self, path: bytes, times: int) -> int:
        """Answer `utimensat`."""
        now = self._files.tree.store.clock.now_ns()
        moments: list[int | None] = [now, now]
        if times:
            fields = struct.unpack("@4l", ctypes.string_at(times, struct.calcsize("@4l")))
            for which, (seconds, nanoseconds) in enumerate((fields[:2], fields[2:])):
                if nanoseconds != _NOW:
                    moment = seconds * _SECOND + nanoseconds
                    moments[which] = None if nanoseconds == _OMIT else moment
        self._files.setattr(path, Changes(accessed_ns=moments[0], modified_ns=moments[1]))
        return 0

    # Extended attributes

    def getxattr(self, path: bytes, name: bytes, buffer: int, size: int) -> int:
        """Answer `getxattr`."""
        return _answered(self._files.getxattr(path, name), buffer, size)

    def listxattr(self, path: bytes, buffer: int, size: int) -> int:
        """Answer `listxattr`."""
        return _answered(self._files.listxattr(path), buffer, size)

    def setxattr(self, path: bytes, name: bytes, value: int, size: int, flags: int) -> int:
        """Answer `setxattr`."""
        self._files.setxattr(path, name, ctypes.string_at(value, size), flags)
        return 0

    def removexattr(self, path: bytes, name: bytes) -> int:
        """Answer `removexattr`."""
        self._files.removexattr(path, name)
        return 0


def _fields(kind: type) -> Sequence[tuple[Any, ...]]:
    """Give the fields that a structure adds to its base."""
    fields: Sequence[tuple[Any, ...]] = vars(kind).get("_fields_", ())
    return fields


def _answered(data: bytes, buffer: int, size: int) -> int:
    """Answer with data as extended attributes want it: its size, or the data if there is room."""
    if not size:
        return len(data)
    if len(data) > size:
        return -errno.ERANGE
    _memmove(buffer, data, len(data))
    return len(data)


def _guarded(
    function: Callable[..., int], kind: str, counts: OperationCounts
) -> Callable[..., int]:
    """Translate every error to its number: what passes ctypes would look like success. Count."""
    done = counts.done

    def guarded(*arguments: Any) -> int:
        done[kind] += 1
        try:
            return function(*arguments)
        except Exception as error:  # noqa: BLE001  (this is the edge)
            number = errno_of(error)
            counts.failed(kind, number)
            if number == errno.EIO:
                log.warning("%s: %s", function.__name__, error)
            return -number
        except BaseException:
            log.exception("%s was interrupted", function.__name__)
            return -errno.EINTR

    return guarded
