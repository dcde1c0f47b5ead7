"""What the view is made of: nodes, their attributes, handles on open files, listings.

A node is a number: eight bits that say which part of the tree it belongs to, and 56 bits of an
identity. For folders and artifacts that is the store's own identity, so that the number means the
same to every process; a folder has a number of its own in each of `hot/`, `warm/`, `cold/` and
`all/`, an artifact is the same file in all of them. No word of FUSE here: adapters speak it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "ALL",
    "COLD",
    "CONTROL",
    "FILE",
    "HOT",
    "KEY",
    "NAMESPACE",
    "PENDING",
    "ROOT",
    "Attributes",
    "Caller",
    "Changes",
    "Handle",
    "identity_of",
    "never",
    "node_number",
    "os_error",
    "refuse",
    "tag_of",
]

FILE: Final = 0
"""An artifact, by its identity."""
HOT, WARM, COLD, ALL = 1, 2, 3, 4
"""A folder as `hot/`, `warm/`, `cold/` and `all/` show it."""
PENDING: Final = 5
"""A file that was made but is not stored yet."""
NAMESPACE: Final = 6
KEY: Final = 7
CONTROL: Final = 8
"""The root and what is below `.kvstate/`."""

_SHIFT: Final = 56
_IDENTITY: Final = (1 << _SHIFT) - 1


def node_number(tag: int, identity: int) -> int:
    """Give the node of an identity in a part of the tree."""
    return tag << _SHIFT | identity & _IDENTITY


def tag_of(node: int) -> int:
    """Give the part of the tree that a node belongs to."""
    return node >> _SHIFT


def identity_of(node: int) -> int:
    """Give a node's identity within its part."""
    return node & _IDENTITY


ROOT: Final = node_number(CONTROL, 1)
"""The mount's own root."""


class Caller(NamedTuple):
    """Who asks."""

    uid: int
    gid: int


class Attributes(NamedTuple):
    """A node with what `stat` says of it. Times are nanoseconds since 1970 UTC.

    ``inode`` is the number that users see. ``content`` names the bytes: the same content, the same
    bytes; None when they change by themselves or are being written. ``lasting`` is off for what may
    change without a commit.
    """

    node: int
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
        """Give the attributes of what this handle reads or writes."""
        ...


def os_error(code: int, why: str = "") -> OSError:
    """Give the system error with this number."""
    return OSError(code, why or os.strerror(code))


def refuse(code: int, why: str = "") -> NoReturn:
    """Raise the system error with this number."""
    raise os_error(code, why)
