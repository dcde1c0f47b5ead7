"""What the view is made of: nodes, their attributes, handles on open files, listings.

A node is a number, or a tuple of names; either means the same to every process, for ever, and no
view remembers any. A number is eight bits that say which part of the tree it belongs to, and 56
bits of an identity: for folders and artifacts the store's own. A folder has a number of its own in
each of `hot/`, `warm/`, `cold/` and `all/`, an artifact is the same file in all of them. What has
no identity is called by its names, as ``("state", namespace, key)``; the first one says which part
has it. No word of FUSE here: adapters speak it.
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstate.blob_reader import BlobReader

__all__ = [
    "ALL",
    "COLD",
    "CONTROL",
    "FILE",
    "HOT",
    "RENAME_EXCHANGE",
    "RENAME_NOREPLACE",
    "ROOT",
    "SEEK_DATA",
    "SEEK_HOLE",
    "STATE",
    "Attributes",
    "Caller",
    "Changes",
    "Handle",
    "Node",
    "identity_of",
    "inode_of",
    "never",
    "node_number",
    "os_error",
    "refuse",
    "tag_of",
]

Node: TypeAlias = int | tuple[str, ...]

FILE: Final = 0
"""An artifact, by its identity, which it has before it is stored."""
HOT, WARM, COLD, ALL = 1, 2, 3, 4
"""A folder as `hot/`, `warm/`, `cold/` and `all/` show it."""
CONTROL: Final = 8
"""The root and what is below `.kvstate/`."""
STATE: Final = "state"
"""The first name of the folder of the namespaces, of a namespace and of a key."""

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
SEEK_DATA: Final = os.SEEK_DATA
SEEK_HOLE: Final = os.SEEK_HOLE

_SHIFT: Final = 56
_IDENTITY: Final = (1 << _SHIFT) - 1
_NAMED: Final = 1 << 62


def node_number(tag: int, identity: int) -> int:
    """Give the node of an identity in a part of the tree."""
    return tag << _SHIFT | identity & _IDENTITY


def tag_of(node: Node) -> int | str:
    """Give the part of the tree that a node belongs to."""
    return node[0] if isinstance(node, tuple) else node >> _SHIFT


def identity_of(node: Node) -> int:
    """Give a number's identity within its part; 0 for what is called by names."""
    return 0 if isinstance(node, tuple) else node & _IDENTITY


ROOT: Final = node_number(CONTROL, 1)
"""The mount's own root."""


def inode_of(node: Node) -> int:
    """Give the number, of 63 bits, that users see of a node: the same for ever."""
    if isinstance(node, tuple):
        return _digest(node)
    return 1 if node == ROOT else node


@lru_cache(maxsize=16384)
def _digest(names: tuple[str, ...]) -> int:
    text = "\0".join(names).encode("utf-8", "surrogateescape")
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
    return _NAMED | number & (_NAMED - 1)


class Caller(NamedTuple):
    """Who asks."""

    uid: int
    gid: int


class Attributes(NamedTuple):
    """A node with what `stat` says of it. Times are nanoseconds since 1970 UTC.

    ``inode`` is the number that users see. ``content`` names the bytes: the same content, the same
    bytes; None when they change by themselves or are being written. ``lasting`` is off for what may
    change without a commit; what does so at a known moment is lasting, ``until_ns`` (0: no such
    moment). ``origin`` is that of an artifact: of two states of one node with equal origins, the
    longer one only has more at its end.
    """

    node: Node
    inode: int
    mode: int
    size: int
    uid: int
    gid: int
    accessed_ns: int
    modified_ns: int
    changed_ns: int
    content: bytes | None = None
    links: int = 1
    lasting: bool = True
    origin: int = 0
    until_ns: int = 0


class Changes(NamedTuple):
    """What `setattr` is to change; None leaves a thing as it is."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    accessed_ns: int | None = None
    modified_ns: int | None = None


def never() -> bool:
    """Say no."""
    return False


class Handle(Protocol):
    """An open file.

    ``content`` names the bytes that a reader has pinned; None for a writer. ``slow`` is on when
    reading may have to wait for a disk.
    """

    content: bytes | None
    slow: bool

    def read(self, offset: int, size: int) -> bytes:
        """Give up to ``size`` bytes from there; fewer only at the end."""
        ...

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Write all of the data there; give how many bytes that were."""
        ...

    def truncate(self, size: int, *, opening: bool = False) -> None:
        """Cut or extend what is being written; ``opening`` for an O_TRUNC: more is to come."""
        ...

    def allocate(self, mode: int, offset: int, length: int) -> None:
        """Do what fallocate(2) does, by its mode; EOPNOTSUPP for what is not possible."""
        ...

    def seek(self, offset: int, whence: int) -> int:
        """Give where the next data (SEEK_DATA) or hole (SEEK_HOLE) is; ENXIO past the end."""
        ...

    def copy_from(self, source: Handle, offset: int, target_offset: int, size: int) -> int:
        """Copy bytes of another handle, or this one, to here; give how many: 0 at the end."""
        ...

    def file(self) -> BlobReader | None:
        """Give the reader of a plain file that holds just these bytes, if there is one."""
        ...

    def flush(self, held: Callable[[], bool] = never) -> bytes | None:
        """Store what is not stored yet, durably; give what names the stored bytes, if any were.

        ``held`` says whether the caller still has the file open elsewhere: a shell closes a
        descriptor right after opening it, and an empty file is not what it means to store.
        """
        ...

    def release(self) -> None:
        """Let go; what was never flushed is dropped."""
        ...

    def attributes(self) -> Attributes:
        """Give the attributes of what this handle reads or writes; no links when it has no name."""
        ...

    def keep(self, changes: Changes) -> None:
        """Change attributes of a file that has no name any more, for as long as it is open."""
        ...


def os_error(code: int, why: str = "") -> OSError:
    """Give the system error with this number."""
    return OSError(code, why or os.strerror(code))


def refuse(code: int, why: str = "") -> NoReturn:
    """Raise the system error with this number."""
    raise os_error(code, why)
