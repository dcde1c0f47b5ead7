"""Which kernel nodes the open files are, so that a file is known after its name is gone.

libfuse's path interface finds everything by name, and so answers `fstat` of an unlinked open file
with ENOENT. The session sees the kernel's node numbers; for nodes whose name is gone it answers
questions about attributes from the open handle, without libfuse.
"""

from __future__ import annotations

import struct
import threading
from typing import TYPE_CHECKING, Final

from kvstatefs.nodes import Changes

if TYPE_CHECKING:
    from kvstatefs.nodes import Attributes

__all__ = ["OpenNodes", "packed_attributes", "requested_changes"]

_SECOND: Final = 1_000_000_000
_HEADER_BYTES: Final = 40
_CHANGES = struct.Struct("=I28xqq8xII4xI4xII")
_MODE, _UID, _GID, _ACCESSED, _ACCESSED_NOW = 1, 2, 4, 16, 128  # FATTR_...; modified: next bit
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


def requested_changes(request: bytes | bytearray, now_ns: int) -> Changes:
    """Give what a request to set attributes asks for, but for the size (struct fuse_setattr_in)."""
    fields = _CHANGES.unpack_from(request, _HEADER_BYTES)
    valid, times, parts, mode, uid, gid = fields[0], fields[1:3], fields[3:5], *fields[5:]
    moments: list[int | None] = []
    for which in (0, 1):
        given_ns = times[which] * _SECOND + parts[which]
        is_now = valid & (_ACCESSED_NOW << which)
        moments.append((now_ns if is_now else given_ns) if valid & (_ACCESSED << which) else None)
    return Changes(
        mode=mode if valid & _MODE else None,
        uid=uid if valid & _UID else None,
        gid=gid if valid & _GID else None,
        accessed_ns=moments[0],
        modified_ns=moments[1],
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
