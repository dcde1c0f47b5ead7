"""Random operations on one folder, against a model of it: names, open files, what is stored."""

from __future__ import annotations

import os
import random

import pytest

from kvstate.settings import StoreSettings
from tests.unit.walker import Walker

FOLDER = "all/acme/weekly"
NAMES = "abcd"
NOREPLACE, EXCHANGE = 1, 2
OPERATIONS = 400


class Inode:
    """A file of the model: what is stored of it, what is being written, who has it open."""

    def __init__(self, stored=None) -> None:
        self.stored = stored
        self.working = None
        self.dirty = False
        self.writers = 0
        self.shadow = None

    def load(self):
        if self.working is None:
            self.working = bytearray(self.stored or b"")
        return self.working

    @property
    def seen(self):
        """What a reader sees."""
        if self.stored is None:
            return self.shadow.stored if self.shadow else b""
        return self.stored

    @property
    def size(self):
        return len(self.stored or b"" if self.working is None else self.working)


class Play:
    """One run: each operation is done to the tree and to the model, then all is compared."""

    def __init__(self, store, seed) -> None:
        self.store = store
        self.walker = Walker(store)
        self.walker.folders(FOLDER)
        self.random = random.Random(seed)
        self.names = {}
        self.open = []

    def path(self, name):
        return f"{FOLDER}/{name}"

    def step(self):
        operations = [
            self.open_or_create,
            self.open_or_create,
            self.write,
            self.write,
            self.truncate,
            self.allocate,
            self.flush,
            self.flush,
            self.release,
            self.release,
            self.unlink,
            self.rename,
            self.rename,
            self.exchange,
            self.move_by_another,
            self.overwrite_by_another,
            self.sweep,
        ]
        operation = self.random.choice(operations)
        operation()
        return operation.__name__

    # Operations

    def open_or_create(self):
        name = self.random.choice(NAMES)
        inode = self.names.get(name)
        if inode is None:
            handle = self.walker.create(self.path(name))
            inode = self.names[name] = Inode()
            inode.working, inode.dirty = bytearray(), True
        else:
            handle = self.walker.open(self.path(name), os.O_RDWR)
        inode.writers += 1
        self.open.append((handle, inode))

    def some_open(self):
        return self.random.choice(self.open) if self.open else (None, None)

    def data(self):
        return self.random.randbytes(self.random.choice([1, 10, 100, 1000]))

    def write(self):
        handle, inode = self.some_open()
        if handle is not None:
            offset, data = self.random.randrange(1500), self.data()
            handle.write(offset, data)
            working = inode.load()
            working += bytes(max(0, offset - len(working)))
            working[offset : offset + len(data)] = data
            inode.dirty = True

    def truncate(self):
        handle, inode = self.some_open()
        if handle is not None:
            size = self.random.randrange(1500)
            handle.truncate(size)
            working = inode.load()
            del working[size:]
            working += bytes(size - len(working))
            inode.dirty = True

    def allocate(self):
        handle, inode = self.some_open()
        if handle is not None:
            mode = self.random.choice([0, 1, 3, 16, 17])
            offset, length = self.random.randrange(1500), self.random.randrange(1, 1500)
            handle.allocate(mode, offset, length)
            working, end = inode.load(), offset + length
            before = bytes(working)
            if mode & 18:
                stop = min(end, len(working))
                working[offset:stop] = bytes(max(0, stop - offset))
            if not mode & 1:
                working += bytes(max(0, end - len(working)))
            inode.dirty = inode.dirty or mode & 18 != 0 or before != working

    def flush(self):
        handle, inode = self.some_open()
        if handle is not None:
            handle.flush()
            if inode.dirty and inode in self.names.values():
                inode.stored, inode.shadow, inode.dirty = bytes(inode.working), None, False

    def release(self):
        if not self.open:
            return
        handle, inode = self.open.pop(self.random.randrange(len(self.open)))
        handle.release()
        inode.writers -= 1
        if not inode.writers:
            inode.working, inode.dirty = None, False
            if inode.stored is None:  # was never stored: what it was renamed over is there again
                for name, there in list(self.names.items()):
                    if there is inode:
                        if inode.shadow is None:
                            del self.names[name]
                        else:
                            self.names[name] = inode.shadow

    def some_name(self):
        return self.random.choice(sorted(self.names)) if self.names else None

    def unlink(self):
        name = self.some_name()
        if name is not None:
            self.walker.unlink(self.path(name))
            del self.names[name]

    def rename(self):
        old, new = self.some_name(), self.random.choice(NAMES)
        if old is None:
            return
        inode = self.names[old]
        flags = self.random.choice([0, NOREPLACE])
        taken = flags and new in self.names
        try:
            self.walker.tree.rename(
                *self.walker.place(self.path(old)), *self.walker.place(self.path(new)), flags
            )
        except FileExistsError:
            assert taken
            return
        assert not taken
        if old == new:
            return
        del self.names[old]
        there = self.names.get(new)
        if inode.stored is None:
            while there is not None and there.stored is None:
                there = there.shadow
            # Who has it open goes on without a name, also if it is there again.
            inode.shadow = None if there is None else Inode(there.stored)
        self.names[new] = inode

    def exchange(self):
        one, other = self.some_name(), self.some_name()
        if one is None:
            return
        for name in (one, other):
            inode = self.names[name]
            if inode.stored is None:
                inode.stored, inode.shadow, inode.dirty = bytes(inode.working), None, False
        self.walker.tree.rename(
            *self.walker.place(self.path(one)), *self.walker.place(self.path(other)), EXCHANGE
        )
        self.names[one], self.names[other] = self.names[other], self.names[one]

    def move_by_another(self):
        name = self.some_name()
        if name is not None and self.names[name].stored is not None:
            self.store.artifacts.move(f"acme/weekly/{name}", self.random.choice(["hot", "cold"]))

    def overwrite_by_another(self):
        name = self.some_name()
        if name is None or self.names[name].stored is None:
            return
        inode, data = self.names[name], self.data()
        self.store.artifacts.put(f"acme/weekly/{name}", data)
        inode.stored = data
        if not inode.dirty:
            inode.working = None  # taken up before the next change

    def sweep(self):
        self.store.blobs.sweep(all_notes=True)

    # Comparing

    def compare(self, said):
        assert self.walker.names(FOLDER) == sorted(self.names), said
        for name, inode in self.names.items():
            found = self.walker.stat(self.path(name))
            assert found.size == inode.size, (said, name)
            assert self.walker.tree.getattr(found.node) == found, (said, name)
            assert self.walker.read(self.path(name)) == inode.seen, (said, name)
        for handle, inode in self.open:
            if inode in self.names.values():
                assert handle.read(0, 5000) == bytes(inode.load()), said

    def end(self):
        while self.open:
            self.release()
        self.compare("the end")
        for name, inode in self.names.items():
            assert self.store.artifacts.get(f"acme/weekly/{name}") == inode.stored


@pytest.mark.parametrize("inline_bytes_max", [64, 65536])
@pytest.mark.parametrize("seed", [1, 2])
def test_any_operations_leave_what_the_model_says(tmp_path, open_checked, seed, inline_bytes_max):
    settings = StoreSettings(inline_bytes_max=inline_bytes_max)
    play = Play(open_checked(tmp_path / "store", settings=settings), seed)
    said = []

    for _ in range(OPERATIONS):
        said.append(play.step())
        play.compare(said[-5:])

    play.end()
