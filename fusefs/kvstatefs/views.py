"""What a part of the tree can do with its nodes, and a part that allows only looking."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Protocol

from kvstatefs.nodes import refuse

if TYPE_CHECKING:
    from kvstatefs.listing import Listing
    from kvstatefs.nodes import Attributes, Caller, Changes, Handle, Node

__all__ = ["PlainView", "View"]


class View(Protocol):
    """One part of the tree: the operations on its nodes.

    They raise the store's errors or `OSError`. `PlainView` refuses everything that a part does not
    allow.
    """

    def lookup(self, parent: Node, name: str) -> Attributes:
        """Give what has this name in this folder."""
        ...

    def getattr(self, node: Node) -> Attributes:
        """Give a node's attributes."""
        ...

    def listing(self, node: Node) -> Listing:
        """Open a folder for listing."""
        ...

    def open(self, node: Node, flags: int) -> Handle:
        """Open a file, with the flags that the system call takes."""
        ...

    def create(
        self, parent: Node, name: str, flags: int, mode: int, caller: Caller
    ) -> tuple[Attributes, Handle]:
        """Make a file, or open the one that is there; it is stored when it is closed."""
        ...

    def mkdir(self, parent: Node, name: str, mode: int, caller: Caller) -> Attributes:
        """Make a folder."""
        ...

    def symlink(self, parent: Node, name: str, target: str, caller: Caller) -> Attributes:
        """Make a symbolic link."""
        ...

    def readlink(self, node: Node) -> str:
        """Give what a symbolic link says."""
        ...

    def unlink(self, parent: Node, name: str) -> None:
        """Remove a file; who has it open keeps its bytes."""
        ...

    def rmdir(self, parent: Node, name: str) -> None:
        """Remove an empty folder."""
        ...

    def rename(
        self, parent: Node, name: str, new_parent: Node, new_name: str, flags: int = 0
    ) -> None:
        """Give a file or folder another place, as renameat2(2) does with these flags."""
        ...

    def setattr(self, node: Node, changes: Changes) -> Attributes:
        """Change attributes or size."""
        ...

    def xattrs(self, node: Node) -> dict[str, bytes]:
        """Give all extended attributes, own and computed."""
        ...

    def setxattr(self, node: Node, name: str, value: bytes | None, flags: int) -> None:
        """Set an extended attribute, or remove it (None)."""
        ...


class PlainView:
    """A part of the tree that allows nothing but looking."""

    def open(self, node: Node, flags: int) -> Handle:
        """Refuse: a folder."""
        del node, flags
        refuse(errno.EISDIR)

    def create(
        self, parent: Node, name: str, flags: int, mode: int, caller: Caller
    ) -> tuple[Attributes, Handle]:
        """Refuse."""
        del parent, name, flags, mode, caller
        refuse(errno.EPERM)

    def mkdir(self, parent: Node, name: str, mode: int, caller: Caller) -> Attributes:
        """Refuse."""
        del parent, name, mode, caller
        refuse(errno.EPERM)

    def symlink(self, parent: Node, name: str, target: str, caller: Caller) -> Attributes:
        """Refuse."""
        del parent, name, target, caller
        refuse(errno.EPERM)

    def readlink(self, node: Node) -> str:
        """Refuse: no link."""
        del node
        refuse(errno.EINVAL)

    def unlink(self, parent: Node, name: str) -> None:
        """Refuse."""
        del parent, name
        refuse(errno.EPERM)

    def rmdir(self, parent: Node, name: str) -> None:
        """Refuse."""
        del parent, name
        refuse(errno.EPERM)

    def rename(
        self, parent: Node, name: str, new_parent: Node, new_name: str, flags: int = 0
    ) -> None:
        """Refuse."""
        del parent, name, new_parent, new_name, flags
        refuse(errno.EPERM)

    def setattr(self, node: Node, changes: Changes) -> Attributes:
        """Refuse."""
        del node, changes
        refuse(errno.EPERM)

    def xattrs(self, node: Node) -> dict[str, bytes]:
        """Give none."""
        del node
        return {}

    def setxattr(self, node: Node, name: str, value: bytes | None, flags: int) -> None:
        """Refuse."""
        del node, name, value, flags
        refuse(errno.EPERM)
