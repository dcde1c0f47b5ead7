"""File operations by path and by handle number: what libfuse asks, in Python's own terms.

Between the adapter, which only translates, and the tree, which knows nothing of paths. Operations
that may have to wait for a disk say so first (`step_aside`), so that others are served meanwhile.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
from typing import TYPE_CHECKING, NamedTuple

from kvstatefs.descriptors import has_open, thread_group
from kvstatefs.kernel_cache import KernelCache
from kvstatefs.nodes import Changes, refuse
from kvstatefs.paths import Paths, is_kept

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kvstatefs.kernel_cache import Grant, Seen
    from kvstatefs.listing import Listed, Listing
    from kvstatefs.nodes import Attributes, Caller, Handle, Node
    from kvstatefs.tree import Tree

__all__ = ["Opened", "Operations"]

_QUICK_BYTES = 64 * 1024
_PATIENCE_SECONDS = 0.05
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_TRUNC


class Opened(NamedTuple):
    """An open file: its handle, and how the kernel may treat it."""

    handle: Handle
    grant: Grant
    path: bytes
    node: Node
    writer: int = 0
    """The thread that opened it for writing; 0 for a reader."""


class OpenFolder(NamedTuple):
    """An open folder."""

    listing: Listing
    path: bytes


class Operations:
    """Everything that a path-based binding needs."""

    def __init__(
        self,
        tree: Tree,
        mountpoint: str,
        step_aside: Callable[[], None],
        unlinked: Callable[[int], None],
    ) -> None:
        """Serve a tree; ``unlinked`` is told the number of an open file that lost its name."""
        self.tree = tree
        self.paths = Paths(tree)
        self.cache = KernelCache()
        self._mountpoint = mountpoint
        self._step_aside = step_aside
        self._unlinked = unlinked
        self._open: dict[int, Opened] = {}
        self._writing: dict[Node, list[int]] = {}
        """The threads that have a file open for writing."""
        self._lock = threading.Lock()
        self._folders: dict[int, OpenFolder] = {}
        self._numbers = itertools.count(1)

    # Looking

    def getattr(self, path: bytes) -> Attributes:
        """Give the attributes of what is at a path."""
        found = self.paths.find(path).attributes
        self.cache.told(path, found.content)
        return found

    def fgetattr(self, number: int) -> Attributes:
        """Give the attributes of an open file, with the size of what it reads or writes."""
        opened = self._open[number]
        found = opened.handle.attributes()
        if not opened.path:
            return found._replace(links=0)
        self.cache.told(opened.path, found.content)
        return found

    def readlink(self, path: bytes) -> bytes:
        """Give what a symbolic link says."""
        return self.tree.readlink(self.paths.find(path).attributes.node).encode(
            "utf-8", "surrogateescape"
        )

    def statfs(self, path: bytes) -> os.statvfs_result:
        """Give the truth about the room there is for what is below a path."""
        return self.tree.statfs(self.paths.find(path).attributes.node)

    def opendir(self, path: bytes) -> int:
        """Open a folder; give its number."""
        number = next(self._numbers)
        self._folders[number] = OpenFolder(
            self.tree.listing(self.paths.find(path).attributes.node), path
        )
        return number

    def readdir(self, number: int, offset: int) -> Iterator[tuple[int, Listed]]:
        """Give the entries of an open folder from an offset on."""
        self._step_aside()
        listing, path = self._folders[number]
        version = self.tree.version()
        prefix = path.rstrip(b"/") + b"/"
        for after, listed in listing.entries(offset):
            if listed.attributes is not None:
                self.paths.remember(prefix + listed.name.encode(), listed.attributes, version)
            yield after, listed

    def releasedir(self, number: int) -> None:
        """Close a folder."""
        del self._folders[number]

    # Files

    def open(self, path: bytes, flags: int, thread: int = 0) -> tuple[int, Grant]:
        """Open a file for a thread; give its number and how the kernel may treat it.

        Who opens for reading what another has opened, with no change since, shares the handle. A
        process that reads what it is writing itself reads what it has written so far.
        """
        found = self.paths.find(path)
        node = found.attributes.node
        handle = found.handle
        if flags & _WRITING:
            return self._open_to_write(node, path, flags, thread)
        if handle is None:
            if self._writing and self._writes(node, thread):
                handle = self.tree.open_written(node)
            handle = handle or self.tree.open(node, flags)
            if self.tree.has_writers(node):
                return self._opened(handle, path, node, writers=True)
            if handle.content is not None and is_kept(found.attributes):
                found.handle = handle
        return self._opened(handle, path, node, writers=False)

    def _writes(self, node: Node, thread: int) -> bool:
        """Whether the thread's process has a file open for writing."""
        threads = self._writing.get(node, ())
        if not threads or thread in threads:
            return bool(threads)
        group = thread_group(thread)
        return group is not None and any(thread_group(other) == group for other in threads)

    def _open_to_write(self, node: Node, path: bytes, flags: int, thread: int) -> tuple[int, Grant]:
        """Open a file for writing, when those who read it through the kernel's pages are done.

        The kernel truncates what they see. From now on nobody else reads through its pages; who
        keeps the file open longer than `_PATIENCE_SECONDS` is not waited for.
        """
        handle = self.tree.open(node, flags & ~os.O_TRUNC)
        try:
            if flags & (os.O_TRUNC | os.O_APPEND) != os.O_APPEND and self.cache.held(path):
                self._step_aside()
                self.cache.wait(path, _PATIENCE_SECONDS)
            if flags & os.O_TRUNC:
                handle.truncate(0, opening=True)
        except BaseException:
            handle.release()
            raise
        return self._opened(handle, path, node, writers=True, writer=thread)

    def _opened(
        self, handle: Handle, path: bytes, node: Node, *, writers: bool, writer: int = 0
    ) -> tuple[int, Grant]:
        grant = self.cache.opened(path, handle.content, writers=writers)
        number = next(self._numbers)
        self._open[number] = Opened(handle, grant, path, node, writer)
        if writer:
            with self._lock:
                self._writing[node] = [*self._writing.get(node, ()), writer]
        return number, grant

    def create(
        self, path: bytes, flags: int, mode: int, caller: Caller, thread: int = 0
    ) -> tuple[int, Grant]:
        """Make a file, or open the one that is there."""
        parent, name = self.paths.folder(path)
        found, handle = self.tree.create(parent, name, flags, mode, caller)
        writer = thread if flags & _WRITING else 0
        return self._opened(handle, path, found.node, writers=True, writer=writer)

    def mknod(self, path: bytes, mode: int, caller: Caller) -> None:
        """Make an empty file and store it."""
        number, _ = self.create(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode, caller)
        try:
            self.flush(number, 0)
        finally:
            self.release(number)

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Read from an open file."""
        opened = self._open[number]
        handle = opened.handle
        if handle.slow:
            self._step_aside()
        data = handle.read(offset, size)
        if len(data) < size and opened.grant.seen is not None:
            self.cache.ended(opened.grant.seen, handle.content)
        return data

    def write(self, number: int, offset: int, data: bytes) -> int:
        """Write to an open file's working copy."""
        if offset + len(data) > _QUICK_BYTES:
            self._step_aside()
        return self._open[number].handle.write(offset, data)

    def ftruncate(self, number: int, size: int) -> None:
        """Cut or extend an open file's working copy."""
        self._step_aside()
        self._open[number].handle.truncate(size)

    def fallocate(self, number: int, mode: int, offset: int, length: int) -> None:
        """Reserve room in an open file, make a hole or zeros."""
        self._step_aside()
        self._open[number].handle.allocate(mode, offset, length)

    def flush(self, number: int, pid: int) -> None:
        """Store what an open file was given: a close, whose error reaches the one who closes."""
        opened = self._open[number]
        if opened.handle.content is not None:
            return
        self._step_aside()
        where = self._mountpoint + os.fsdecode(opened.path)
        self._stored(opened, opened.handle.flush(lambda: has_open(pid, where)))

    def fsync(self, number: int) -> None:
        """Store what an open file was given, durably."""
        self._step_aside()
        opened = self._open[number]
        self._stored(opened, opened.handle.flush())

    def _stored(self, opened: Opened, content: bytes | None) -> None:
        if content is not None and opened.path:
            self.cache.stored(opened.path, content)

    def release(self, number: int) -> None:
        """Close an open file for good."""
        opened = self._open.pop(number)
        seen: Seen | None = opened.grant.seen
        if seen is not None:
            self.cache.closed(seen)
        if opened.writer:
            with self._lock:
                left = self._writing.pop(opened.node)
                left.remove(opened.writer)
                if left:
                    self._writing[opened.node] = left
        opened.handle.release()

    def release_reader(self, number: int) -> bool:
        """Close an open file for good, if it was open for reading; say whether it was."""
        opened = self._open[number]
        if opened.handle.content is None:
            return False
        del self._open[number]
        if opened.grant.seen is not None:
            self.cache.closed(opened.grant.seen)
        return True

    # Changing

    def truncate(self, path: bytes, size: int) -> None:
        """Cut or extend a file that is not open."""
        self.setattr(path, Changes(size=size))

    def setattr(self, path: bytes, changes: Changes) -> None:
        """Change attributes."""
        self._step_aside()
        if changes.size is not None and self.cache.held(path):
            self.cache.wait(path, _PATIENCE_SECONDS)
        self.tree.setattr(self.paths.find(path).attributes.node, changes)

    def keep(self, number: int, changes: Changes) -> None:
        """Change attributes of an open file that has no name any more."""
        self._open[number].handle.keep(changes)

    def mkdir(self, path: bytes, mode: int, caller: Caller) -> None:
        """Make a folder."""
        self._step_aside()
        parent, name = self.paths.folder(path)
        self.tree.mkdir(parent, name, mode, caller)

    def symlink(self, target: bytes, path: bytes, caller: Caller) -> None:
        """Make a symbolic link at the path."""
        self._step_aside()
        parent, name = self.paths.folder(path)
        self.tree.symlink(parent, name, target.decode("utf-8", "surrogateescape"), caller)

    def unlink(self, path: bytes) -> None:
        """Remove a file."""
        self._step_aside()
        self.tree.unlink(*self.paths.folder(path))
        self._lost_name(path)

    def rmdir(self, path: bytes) -> None:
        """Remove an empty folder."""
        self._step_aside()
        self.tree.rmdir(*self.paths.folder(path))

    def rename(self, old: bytes, new: bytes) -> None:
        """Give a file or folder another path."""
        self._step_aside()
        parent, name = self.paths.folder(old)
        new_parent, new_name = self.paths.folder(new)
        self.tree.rename(parent, name, new_parent, new_name)
        if old != new:
            self._lost_name(new)
            self.cache.renamed(old, new)
            self._got_name(old, new)

    def _lost_name(self, path: bytes) -> None:
        """Let those who have a file open know that its name is gone or another file's."""
        self.cache.removed(path)
        for number, opened in list(self._open.items()):
            if opened.path == path:
                self._open[number] = opened._replace(path=b"")
                self._unlinked(number)

    def _got_name(self, old: bytes, new: bytes) -> None:
        """Let those who have a file open know its new name."""
        below = old + b"/"
        for number, opened in list(self._open.items()):
            if opened.path == old or opened.path.startswith(below):
                self._open[number] = opened._replace(path=new + opened.path[len(old) :])

    # Extended attributes

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        """Give one extended attribute; ENODATA when there is none."""
        key = name.decode("utf-8", "surrogateescape")
        if not key.startswith("user."):
            refuse(errno.ENODATA if key.startswith("security.") else errno.ENOTSUP)
        value = self.tree.xattrs(self.paths.find(path).attributes.node).get(key)
        if value is None:
            refuse(errno.ENODATA)
        return value

    def listxattr(self, path: bytes) -> bytes:
        """Give the names of the extended attributes, each with a zero byte after it."""
        names = self.tree.xattrs(self.paths.find(path).attributes.node)
        return b"".join(name.encode() + b"\0" for name in names)

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        """Set an extended attribute."""
        self._step_aside()
        self.tree.setxattr(self.paths.find(path).attributes.node, name.decode(), value, flags)

    def removexattr(self, path: bytes, name: bytes) -> None:
        """Remove an extended attribute."""
        self._step_aside()
        self.tree.setxattr(self.paths.find(path).attributes.node, name.decode(), None)
