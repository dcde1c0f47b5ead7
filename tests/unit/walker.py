"""Walks a tree by paths, as a mount would, without one."""

from __future__ import annotations

import os
from contextlib import contextmanager

import pytest

from kvstatefs.errnos import errno_of
from kvstatefs.nodes import Caller, Changes
from kvstatefs.tree import Tree

ROOT_USER = Caller(0, 0)


@contextmanager
def refused(number):
    """Expect an error that programs know under this number."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  (the number is what counts)
        yield
    assert errno_of(caught.value) == number


class Walker:
    def __init__(self, store, **options) -> None:
        self.tree = Tree(store, **options)

    def stat(self, path):
        found = self.tree.getattr(self.tree.root)
        for name in path.split("/") if path else ():
            found = self.tree.lookup(found.node, name)
        return found

    def node(self, path):
        return self.stat(path).node

    def place(self, path):
        parent, _, name = path.rpartition("/")
        return self.node(parent), name

    def exists(self, path):
        try:
            self.stat(path)
        except FileNotFoundError:
            return False
        return True

    def names(self, path):
        return [listed.name for _, listed in self.tree.listing(self.node(path)).entries()]

    def mkdir(self, path, mode=0o755):
        return self.tree.mkdir(*self.place(path), mode, ROOT_USER)

    def folders(self, path):
        for end in range(1, len(path.split("/")) + 1):
            folder = "/".join(path.split("/")[:end])
            if not self.exists(folder):
                self.mkdir(folder)

    def create(self, path, flags=os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode=0o644):
        return self.tree.create(*self.place(path), flags, mode, ROOT_USER)[1]

    def open(self, path, flags=os.O_RDONLY):
        return self.tree.open(self.node(path), flags)

    def writer(self, path):
        """Open as a shell's `>` does."""
        if self.exists(path):
            return self.open(path, os.O_WRONLY | os.O_TRUNC)
        return self.create(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def write(self, path, data):
        handle = self.writer(path)
        try:
            handle.write(0, data)
            handle.flush()
        finally:
            handle.release()

    def append(self, path, data):
        handle = self.open(path, os.O_WRONLY | os.O_APPEND)
        handle.write(0, data)
        handle.flush()
        handle.release()

    def read(self, path):
        handle = self.open(path)
        try:
            return handle.read(0, 1 << 30)
        finally:
            handle.release()

    def unlink(self, path):
        self.tree.unlink(*self.place(path))

    def rmdir(self, path):
        self.tree.rmdir(*self.place(path))

    def rename(self, old, new):
        self.tree.rename(*self.place(old), *self.place(new))

    def symlink(self, target, path):
        return self.tree.symlink(*self.place(path), target, ROOT_USER)

    def set(self, path, **changes):
        return self.tree.setattr(self.node(path), Changes(**changes))
