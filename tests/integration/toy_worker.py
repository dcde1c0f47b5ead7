"""A worker for tests of the supervisor: a few files, served as badly as the environment asks for.

TOY_DIES        reads (`read`), `ready`, `begin`: where each worker dies, or where `TOY_FIRST` does
TOY_STATUS      with which status; without, by SIGKILL
TOY_FIRST       a file: only the worker that makes it dies
TOY_RESEND      0: nobody could take over; TOY_FORGETS 1: the ledger says nothing
TOY_SETTLES     0: it never settles; TOY_UPGRADES refuse, ignore
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import struct
import sys
import threading
import time
from pathlib import Path

from kvstatefs.kernel import worker

HEAD = struct.Struct("<IIQQIIIHH")
ANSWER = struct.Struct("<IiQ")
ATTRIBUTES = struct.Struct("<QQQQQQIIIIIIIIII")
ENTRY = struct.Struct("<QQQQII")
OPENED = struct.Struct("<QIi")
CONTENT = b"0123456789"
RESEND, INVALIDATE_NAME = 7, 3
DIES = os.environ.get("TOY_DIES", "")


def die(where):
    if where != DIES:
        return
    first = os.environ.get("TOY_FIRST")
    if first is not None:
        try:
            os.close(os.open(first, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
    if "TOY_STATUS" in os.environ:
        os._exit(int(os.environ["TOY_STATUS"]))
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def attributes(number):
    kind = stat.S_IFDIR | 0o755 if number == 1 or number >= 100 else stat.S_IFREG | 0o644
    size = 0 if kind & stat.S_IFDIR else len(CONTENT)
    return ATTRIBUTES.pack(number, size, 0, 0, 0, 0, 0, 0, 0, kind, 1, 0, 0, 0, 4096, 0)


class Toy:
    def __init__(self, fuse, ledger, link):
        self.fuse, self.ledger, self.link = fuse, ledger, link
        self.over = threading.Event()
        link.stop_wanted = self.stop
        link.upgrade_wanted = self.upgrade
        self.files = [b"pid", *link.held()]

    def stop(self, _seconds):
        if os.environ.get("TOY_SETTLES") != "0":
            self.over.set()

    def upgrade(self, _seconds):
        wanted = os.environ.get("TOY_UPGRADES")
        if wanted == "refuse":
            self.link.refuse_upgrade("the toy will not")
        elif wanted != "ignore":
            self.link.hand_over()
            self.over.set()

    def answer(self, unique, *parts):
        os.writev(self.fuse, (ANSWER.pack(16 + sum(map(len, parts)), 0, unique), *parts))

    def fail(self, unique, number):
        with contextlib.suppress(OSError):
            os.write(self.fuse, ANSWER.pack(16, -number, unique))

    def content(self, number):
        return b"%-10d" % os.getpid() if number == 2 else CONTENT

    def ready(self):
        self.link.ready(resumable=os.environ.get("TOY_RESEND") != "0")
        die("ready")

    def loop(self):
        data = bytearray((1 << 20) + 4096)
        while True:
            try:
                size = os.readv(self.fuse, [data])
            except OSError as error:
                if error.errno in {errno.EINTR, errno.ENOENT}:
                    continue
                self.over.set()
                return
            self.serve(data, size)

    def serve(self, data, size):
        _, code, unique, node, *_ = HEAD.unpack_from(data)
        if code == 26:
            self.begin(unique)
        elif code == 1:
            self.look_up(unique, bytes(data[40 : size - 1]))
        elif code == 3:
            self.answer(unique, struct.pack("<QII", 3600, 0, 0), attributes(node))
        elif code in {14, 27}:
            self.answer(unique, OPENED.pack(0, code == 14, 0))  # past the page cache
        elif code == 15:
            die("read")
            offset = struct.unpack_from("<Q", data, 48)[0]
            self.answer(unique, self.content(node)[offset:])
        elif code == 9:
            self.make_folder(unique)
        elif code in {18, 25, 28, 29}:
            self.answer(unique)
        elif code not in {2, 36, 42}:
            self.fail(unique, errno.ENOSYS)

    def begin(self, unique):
        if DIES == "init":
            threading.Event().wait()
        limits = 7, 36, 1 << 20, 1 | 1 << 30, 16, 12, 1 << 20, 1, 256, 0, 1 << 7
        self.answer(unique, struct.pack("<IIIIHHIIHHI", *limits).ljust(64, b"\0"))
        if os.environ.get("TOY_FORGETS") != "1":
            self.ledger.init(b"agreed")
        self.ready()

    def make_folder(self, unique):
        """Die in a way that is hard to die in: a thread waits for the lock of who asks."""
        first = os.environ.get("TOY_FIRST")
        if first is None or Path(first).exists():
            self.answer(unique, ENTRY.pack(100, 0, 0, 0, 0, 0), attributes(100))
            return
        # The kernel holds the folder's lock until the request is answered, and this wants it.
        notice = struct.pack("<QII", 1, 3, 0) + b"new\0"
        head = ANSWER.pack(16 + len(notice), INVALIDATE_NAME, 0)
        threading.Thread(target=os.write, args=(self.fuse, head + notice), daemon=True).start()
        Path(first).touch()

    def look_up(self, unique, name):
        if name == b"pid":
            number = 2
        elif name == b"file":
            number = 3
        elif name.startswith(b"held-") and name in self.link.held():
            number = 4
        else:
            self.fail(unique, errno.ENOENT)
            return
        self.answer(unique, ENTRY.pack(number, 0, 0, 3600, 0, 0), attributes(number))


def serve(fuse, tree, mountpoint, ledger, link, *, resumed, passthrough):
    del tree, mountpoint, passthrough
    toy = Toy(fuse, ledger, link)
    if resumed:
        os.write(fuse, ANSWER.pack(16, RESEND, 0))
        toy.ready()
    else:
        reading, writing = os.pipe()
        os.close(writing)
        link.hold(b"held-pipe", reading)
        link.hold(b"held-dropped", reading)
        link.release(b"held-dropped")
    threading.Thread(target=toy.loop, daemon=True).start()
    toy.over.wait()
    return ""


die("begin")
status = worker.main(sys.argv[1:], serve)
os._exit(status)
