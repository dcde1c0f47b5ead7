"""Paths to nodes, with a memory that the next change of anything empties."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvstatefs.nodes import Attributes, Handle, Node
    from kvstatefs.tree import Tree

__all__ = ["Found", "Paths", "decoded", "is_kept"]

_KNOWN_MAX = 50_000


class Found:
    """What is at a path, and, for the next one who reads it, the open file."""

    __slots__ = ("attributes", "handle")

    def __init__(self, attributes: Attributes) -> None:
        self.attributes = attributes
        self.handle: Handle | None = None


class Paths:
    """Finds what a path leads to. Paths are bytes, as the kernel gives them: ``/hot/a/b/c``."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._version = tree.version
        self._root = Found(tree.getattr(tree.root))
        # What is known is swapped whole: a thread that is late writes to a memory of the past.
        self._memory: tuple[int, dict[bytes, Found]] = (-1, {})

    def find(self, path: bytes) -> Found:
        """Give what is at this path; ENOENT and the like when nothing is."""
        version, known = self._memory
        now = self._version()
        if now != version or len(known) > _KNOWN_MAX:
            known = {}
            self._memory = (now, known)
        return known.get(path) or self._find(path, known)

    def _find(self, path: bytes, known: dict[bytes, Found]) -> Found:
        parent, _, name = path.rpartition(b"/")
        if not name:
            return self._root
        above = known.get(parent) or self._find(parent, known)
        found = Found(self._tree.lookup(above.attributes.node, decoded(name)))
        if is_kept(found.attributes):
            known[path] = found
        return found

    def folder(self, path: bytes) -> tuple[Node, str]:
        """Give the node of the folder that a path's last name is in, and that name."""
        parent, _, name = path.rpartition(b"/")
        return self.find(parent).attributes.node, name.decode()

    def remember(self, path: bytes, attributes: Attributes, version: int) -> None:
        """Take note of what a listing gave, if nothing has changed since this version."""
        memory = self._memory
        if memory[0] == version and is_kept(attributes) and len(memory[1]) <= _KNOWN_MAX:
            memory[1][path] = Found(attributes)


def is_kept(attributes: Attributes) -> bool:
    """Whether it stays as it is until a commit: what expires goes without one."""
    return attributes.lasting and not attributes.until_ns


def decoded(name: bytes) -> str:
    """Give a name as text; what is not UTF-8 is the name of nothing (ENOENT when looked up)."""
    return name.decode("utf-8", "surrogateescape")
