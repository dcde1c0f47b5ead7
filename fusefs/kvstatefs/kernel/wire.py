"""The kernel's FUSE protocol as bytes: numbers, structures, answers and notices.

Source: `linux/fuse.h`, the kernel's stable interface, versions 7.31 to 7.45. A request is

    length(4) code(4) unique(8) node(8) uid(4) gid(4) pid(4) extensions(2) padding(2)  body

and an answer ``length(4) -errno(4) unique(8) body``; a notice has unique 0 and its code where an
answer has its error. All numbers are in the machine's own order. Nothing here knows the store, and
nothing raises but `Malformed`, for a request that is cut short.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from kvstatefs.nodes import Attributes

__all__ = [
    "ANSWER",
    "ENTRY_BYTES",
    "HEAD_BYTES",
    "REQUEST",
    "REQUEST_BYTES_MAX",
    "Agreed",
    "Code",
    "Malformed",
    "Notice",
    "Open",
    "agree",
    "attributes_answer",
    "attributes_bytes",
    "dirent",
    "entry_answer",
    "failure",
    "negative_answer",
    "notice",
    "owned",
    "statfs_answer",
    "text",
]

HEAD_BYTES: Final = 40
WRITE_BYTES_MAX: Final = 1 << 20
READ_AHEAD_BYTES: Final = 1 << 20
REQUEST_BYTES_MAX: Final = WRITE_BYTES_MAX + 8192
"""The largest request: a write of `WRITE_BYTES_MAX`, its head, and room to spare."""
MINOR_MIN: Final = 31
_MINOR: Final = 41
_SECOND: Final = 1_000_000_000

REQUEST = struct.Struct("=IIQQIIIHH")
ANSWER = struct.Struct("=IiQ")


class Code(IntEnum):
    """What the kernel asks for."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


class Notice(IntEnum):
    """What the kernel is told without having asked."""

    INVAL_INODE = 2
    INVAL_ENTRY = 3
    STORE = 4
    RESEND = 7


class Open(IntEnum):
    """How the kernel may treat an open file."""

    DIRECT = 1 << 0
    KEEP_CACHE = 1 << 1
    CACHE_DIR = 1 << 3
    NOFLUSH = 1 << 5
    PASSTHROUGH = 1 << 7


RESENT: Final = 1 << 63
"""In a unique: the request was given to a process that is gone, and is given again."""

# What INIT agrees on: bits of flags, and from 32 on of flags2.
_ASYNC_READ: Final = 1 << 0
_ATOMIC_O_TRUNC: Final = 1 << 3
_BIG_WRITES: Final = 1 << 5
_DO_READDIRPLUS: Final = 1 << 13
_READDIRPLUS_AUTO: Final = 1 << 14
_NO_OPEN_SUPPORT: Final = 1 << 17
_PARALLEL_DIROPS: Final = 1 << 18
_MAX_PAGES: Final = 1 << 22
_CACHE_SYMLINKS: Final = 1 << 23
_HANDLE_KILLPRIV_V2: Final = 1 << 28
_INIT_EXT: Final = 1 << 30
_DIRECT_IO_ALLOW_MMAP: Final = 1 << 36
_PASSTHROUGH: Final = 1 << 37
_HAS_RESEND: Final = 1 << 39
_WANTED: Final = (
    _ASYNC_READ
    | _ATOMIC_O_TRUNC
    | _BIG_WRITES
    | _DO_READDIRPLUS
    | _READDIRPLUS_AUTO
    | _NO_OPEN_SUPPORT
    | _PARALLEL_DIROPS
    | _MAX_PAGES
    | _CACHE_SYMLINKS
    | _HANDLE_KILLPRIV_V2
    | _INIT_EXT
    | _DIRECT_IO_ALLOW_MMAP
    | _HAS_RESEND
)

_INIT_IN = struct.Struct("=IIII")
_INIT_OUT = struct.Struct("=IIIIHHIIHHIIH22x")
_AGREED = struct.Struct("=IQ")
_ENTRY = struct.Struct("=QQQQII")
_ATTRIBUTES = struct.Struct("=QQQqqqIIIIIIIIII")
_VALID = struct.Struct("=QII")
_DIRENT = struct.Struct("=QQII")
_STATFS = struct.Struct("=QQQQQIIII24x")
_MODE_AT, _OWNERS_AT = 60, 68
ENTRY_BYTES: Final = _ENTRY.size + _ATTRIBUTES.size
NO_ENTRY: Final = bytes(ENTRY_BYTES)

_pack_attributes = _ATTRIBUTES.pack
_pack_entry = _ENTRY.pack
_pack_valid = _VALID.pack
_pack_answer = ANSWER.pack


class Malformed(Exception):
    """A request that is not what its code says."""


class Agreed(NamedTuple):
    """What kernel and adapter agreed on when they met."""

    minor: int
    flags: int

    @property
    def passthrough(self) -> bool:
        """Whether open files may be handed over to the kernel."""
        return bool(self.flags & _PASSTHROUGH)

    @property
    def resend(self) -> bool:
        """Whether another process may take over, and get what was under way again."""
        return bool(self.flags & _HAS_RESEND)

    @property
    def opens_alone(self) -> bool:
        """Whether the kernel opens files without asking once `open` was answered ENOSYS."""
        return bool(self.flags & _NO_OPEN_SUPPORT)

    def packed(self) -> bytes:
        """Give it as bytes, for whoever takes over."""
        return _AGREED.pack(self.minor, self.flags)

    @classmethod
    def unpacked(cls, data: bytes) -> Agreed:
        """Give what `packed` made bytes of."""
        return cls(*_AGREED.unpack(data))


def agree(body: memoryview, *, passthrough: bool) -> tuple[Agreed | None, bytes]:
    """Answer INIT: give what is agreed on, and the answer's body.

    None for a kernel that speaks another major version (it is told ours, and asks again), or too
    old a minor one.
    """
    if len(body) < _INIT_IN.size:
        raise Malformed("INIT")
    major, minor, read_ahead, low = _INIT_IN.unpack_from(body)
    high = int.from_bytes(body[16:20], "little") if low & _INIT_EXT and len(body) >= 20 else 0
    flags = (low | high << 32) & (_WANTED | (_PASSTHROUGH if passthrough else 0))
    answered = _INIT_OUT.pack(
        *(7, min(minor, _MINOR), max(read_ahead, READ_AHEAD_BYTES), flags & 0xFFFF_FFFF),
        *(64, 48, WRITE_BYTES_MAX, 1, WRITE_BYTES_MAX // 4096, 0),
        *(flags >> 32, 1 if flags & _PASSTHROUGH else 0, 0),
    )
    if major != 7 or minor < MINOR_MIN:
        return None, answered
    return Agreed(minor, flags), answered


def failure(unique: int, number: int) -> bytes:
    """Give the answer to a request that failed with this errno."""
    return _pack_answer(16, -number, unique)


def notice(code: Notice, body: bytes = b"") -> bytes:
    """Give what tells the kernel something."""
    return _pack_answer(16 + len(body), code, 0) + body


def node_notice(number: int, offset: int) -> bytes:
    """Tell that a node's attributes changed, and its pages from an offset on; -1: no pages."""
    return notice(Notice.INVAL_INODE, struct.pack("=Qqq", number, offset, 0))


def store_notice(number: int, content: bytes) -> bytes:
    """Give a node's whole content to the kernel, before it asks."""
    body = struct.pack("=QQII", number, 0, len(content), 0)
    return notice(Notice.STORE, body + content)


def name_notice(parent: int, name: bytes) -> bytes:
    """Tell that a name in a folder leads elsewhere than before, or nowhere."""
    return notice(Notice.INVAL_ENTRY, struct.pack("=QII", parent, len(name), 0) + name + b"\0")


def attributes_bytes(found: Attributes, inode: int) -> bytes:
    """Give a ``struct fuse_attr``."""
    accessed, accessed_ns = divmod(found.accessed_ns, _SECOND)
    modified, modified_ns = divmod(found.modified_ns, _SECOND)
    changed, changed_ns = divmod(found.changed_ns, _SECOND)
    return _pack_attributes(
        *(inode, found.size, (found.size + 511) >> 9, accessed, modified, changed),
        *(accessed_ns, modified_ns, changed_ns, found.mode, found.links),
        *(found.uid, found.gid, 0, 4096, 0),
    )


def owned(packed: bytes, found: Attributes) -> bytes:
    """Give a ``struct fuse_attr`` with the mode and the owners of what was found."""
    changed = bytearray(packed)
    struct.pack_into("=I", changed, _MODE_AT, found.mode)
    struct.pack_into("=II", changed, _OWNERS_AT, found.uid, found.gid)
    return bytes(changed)


def entry_answer(number: int, packed: bytes, valid_ns: int, attributes_valid_ns: int) -> bytes:
    """Give the body that says which node a name is, and for how long that holds."""
    seconds, rest = divmod(valid_ns, _SECOND)
    others, left = divmod(attributes_valid_ns, _SECOND)
    return _pack_entry(number, 0, seconds, others, rest, left) + packed


def negative_answer(valid_ns: int) -> bytes:
    """Give the body that says that a name is nothing, and for how long that holds."""
    return entry_answer(0, bytes(_ATTRIBUTES.size), valid_ns, 0)


def attributes_answer(packed: bytes, valid_ns: int) -> bytes:
    """Give the body that answers GETATTR and SETATTR."""
    seconds, rest = divmod(valid_ns, _SECOND)
    return _pack_valid(seconds, rest, 0) + packed


def dirent(inode: int, after: int, mode: int, name: bytes) -> bytes:
    """Give one entry of a listing."""
    packed = _DIRENT.pack(inode, after, len(name), mode >> 12 & 15) + name
    return packed + bytes(-len(packed) % 8)


def statfs_answer(
    blocks: int, free: int, available: int, files: int, free_files: int, size: int
) -> bytes:
    """Give the body that answers STATFS; ``size`` is a block's."""
    return _STATFS.pack(blocks, free, available, files, free_files, size, 255, size, 0)


def text(name: bytes) -> str:
    """Give a name as text; what is not UTF-8 stays apart from every name that is."""
    return name.decode("utf-8", "surrogateescape")
