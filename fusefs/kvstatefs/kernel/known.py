"""A node that the kernel knows, and an open file of it."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, Final

from kvstatefs.kernel.wire import Open
from kvstatefs.nodes import CONTROL, FILE, ROOT, tag_of

if TYPE_CHECKING:
    from kvstatefs.nodes import Attributes, Handle, Node

__all__ = ["DIRECT", "OPENED", "READER", "WRITER", "Fast", "Known", "OpenFile", "is_file"]

READER, DIRECT, WRITER = 0, 1, 2
OPENED = struct.Struct("=QIi")
"""The answer to an open: number, how the kernel may treat it, what it was handed over."""
_CACHED: Final = Open.KEEP_CACHE | Open.NOFLUSH
_SIZE_AT: Final = 8
_COMPUTED: Final = frozenset({CONTROL, "history", "trash", "meta"})


def is_file(node: Node) -> bool:
    """Whether a node has content that can be replaced: an artifact, a key."""
    if isinstance(node, tuple):
        return len(node) == 3 and node[0] == "state"
    return tag_of(node) == FILE


class Known:
    """A node that the kernel knows."""

    __slots__ = (
        "cached",
        "changes",
        "children",
        "computed",
        "content",
        "detached",
        "fast",
        "handles",
        "listed",
        "lookups",
        "mixed",
        "names",
        "node",
        "number",
        "origin",
        "packed",
        "reserved_until",
        "restored",
        "shown",
        "unlinked",
        "writers",
    )

    def __init__(self, number: int, node: Node, content: bytes | None, origin: int) -> None:
        self.number = number
        self.node = node
        self.content = content
        """What names the bytes that it shows; None for folders, and while it is written."""
        self.computed = tag_of(node) in _COMPUTED and node != ROOT
        """Whether looking at it may take a while: what the store says of itself."""
        self.origin = origin
        self.packed = b""
        """The attributes as the kernel was last told them (``struct fuse_attr``)."""
        self.lookups = 0
        self.names: set[tuple[int, str]] = set()
        """Under which names, and in which folders, the kernel was told of it."""
        self.children: dict[str, Known | None] | None = None
        """Of a folder: what was told of the names in it."""
        self.listed = False
        """Of a folder: whether the kernel may have kept a listing since it was last told not to."""
        self.cached = 0
        """How many open files read it through the kernel's pages, or are handed over to it."""
        self.writers = 0
        self.handles: set[int] = set()
        """Numbers of the open files that are its own."""
        self.fast: Fast | None = None
        """What the next one who opens it for reading is given."""
        self.detached = False
        """Whether no name leads here any more: who has it open goes on."""
        self.reserved_until = 0.0
        """Until when it is kept for a writer: others read past the kernel's pages."""
        self.mixed = False
        """Whether some read the old content past the pages of a node that is the writers' one."""
        self.unlinked = False
        self.restored = False
        """Whether it is read by some whose number is not known: opened before a takeover."""
        self.shown: bytes | None = None
        """While it is written: the stored content that its pages are, if they are one."""
        self.changes = 0
        """How often its writers have changed it."""

    @property
    def size(self) -> int:
        """The size that the kernel was told."""
        return int.from_bytes(self.packed[_SIZE_AT : _SIZE_AT + 8], "little")

    @property
    def is_file(self) -> bool:
        """Whether it has content that can be replaced: an artifact, a key."""
        return is_file(self.node)

    def reserved(self) -> bool:
        """Whether a writer is about to open it."""
        return self.reserved_until > 0 and self.reserved_until > time.monotonic()

    def grows_to(self, found: Attributes) -> bool:
        """Whether what was found begins with what this node shows."""
        return (
            found.origin != 0
            and found.origin == self.origin
            and self.content is not None
            and found.content is not None
            and not self.writers
            and found.size >= self.size
        )


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
        self.answer = OPENED.pack(number, flags, backing)
