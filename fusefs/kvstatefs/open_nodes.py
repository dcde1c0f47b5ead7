"""Which kernel nodes the open files are, so that a file is known after its name is gone.

libfuse's path interface finds everything by name, and so answers `fstat` of an unlinked open file
with ENOENT. The session sees the kernel's node numbers; for nodes whose name is gone it answers
questions about attributes from the open handle, without libfuse.
"""

from __future__ import annotations

import struct
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from kvstatefs.nodes import Attributes

__all__ = ["OpenNodes", "packed_attributes"]

_SECOND: Final = 1_000_000_000
_ATTRIBUTES = struct.Struct("=QIIQQQqqqIIIIIIIIII")  # struct fuse_attr_out of linux/fuse.h


def packed_attributes(found: Attributes) -> bytes:
    """Give the answer's body, to be kept for no time at all. The link count is 0: no name."""
    accessed, accessed_ns = divmod(found.accessed_ns, _SECOND)
    modified, modified_ns = divmod(found.modified_ns, _SECOND)
    changed, changed_ns = divmod(found.changed_ns, _SECOND)
    return _ATTRIBUTES.pack(
        *(0, 0, 0),
        *(found.inode, found.size, -(-found.size // 512)),
        *(accessed, modified, changed, accessed_ns, modified_ns, changed_ns),
        *(found.mode, 0, found.uid, found.gid, 0, 4096, 0),
    )


class OpenNodes:
    """Kernel nodes and the numbers of the handles that are open on them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._node_of: dict[int, int] = {}
        self.orphans: dict[int, list[int]] = {}
        """Nodes whose name is gone, and the handles that are open on them."""

    def opened(self, node: int, number: int) -> None:
        """Take note of a handle on a node."""
        self._node_of[number] = node

    def released(self, number: int) -> None:
        """Forget a handle."""
        node = self._node_of.pop(number, None)
        if self.orphans and node is not None:
            with self._lock:
                left = [other for other in self.orphans.pop(node, ()) if other != number]
                if left:
                    self.orphans[node] = left

    def unlinked(self, number: int) -> None:
        """Take note that the file of this handle has lost its name."""
        with self._lock:
            node = self._node_of.get(number)
            if node is not None:
                self.orphans[node] = [*self.orphans.get(node, ()), number]

    def handle_of(self, node: int) -> int | None:
        """Give a handle on a node without a name; None for any other."""
        handles = self.orphans.get(node)
        return handles[-1] if handles else None
