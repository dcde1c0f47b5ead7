"""A disk that fails when it is told to: a folder shown through FUSE by a process of its own.

    python -m tests.crash.faulty_disk <orders> <folder> <mountpoint>

`FaultyDisk` starts it and gives the orders, which the process reads before each operation:

    fail     {operation: errno}: what fails; "all" for everything
    passes   so many of those operations still succeed
    short    writes take so many bytes at most
    flip     what is written has one bit flipped, silently
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.harness import wait_for

_REPOSITORY = Path(__file__).parents[2]


class _Passthrough:
    """The folder, as it is, but for what the orders say. Paths begin with a slash."""

    use_ns = True

    def __init__(self, orders: Path, folder: Path) -> None:
        self._path = orders
        self._folder = str(folder)
        self._text = ""
        self._orders: dict[str, Any] = {}
        self._passed = 0

    def __call__(self, operation: str, path: str, *arguments: Any) -> Any:
        text = self._path.read_text()
        if text != self._text:
            self._text, self._orders, self._passed = text, json.loads(text), 0
        fail = self._orders.get("fail", {})
        number = fail.get(operation) or fail.get("all")
        if number and operation != "destroy":
            self._passed += 1
            if self._passed > self._orders.get("passes", 0):
                raise OSError(number, os.strerror(number))
        return getattr(self, operation)(self._folder + path, *arguments)

    def init(self, path: str) -> None:
        """Nothing to do."""

    destroy = init

    def getattr(self, path: str, fh: object) -> dict[str, Any]:
        found = os.lstat(path)
        names = ("mode", "nlink", "uid", "gid", "size", "ino", "blocks")
        return {f"st_{name}": getattr(found, f"st_{name}") for name in names}

    def readdir(self, path: str, fh: object) -> list[str]:
        return [".", "..", *(item.name for item in Path(path).iterdir())]

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(path)
        names = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_frsize", "f_namemax")
        return {name: getattr(found, name) for name in names}

    def open(self, path: str, flags: int) -> int:
        return os.open(path, flags)

    def create(self, path: str, mode: int) -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    def release(self, path: str, fh: int) -> None:
        os.close(fh)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        data = data[: self._orders.get("short", len(data))]
        if self._orders.get("flip"):
            data = bytes([data[0] ^ 1]) + data[1:]
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: object = None) -> None:
        os.truncate(path, length)

    def fsync(self, path: str, datasync: object, fh: int) -> None:
        os.fsync(fh)

    def fsyncdir(self, path: str, datasync: object, fh: object) -> None:
        """Nothing to do."""

    def mkdir(self, path: str, mode: int) -> None:
        Path(path).mkdir(mode)

    def unlink(self, path: str) -> None:
        Path(path).unlink()

    def link(self, target: str, source: str) -> None:
        os.link(self._folder + source, target)


class FaultyDisk:
    """A mounted disk, and the orders that it is under."""

    def __init__(self, folder: Path) -> None:
        self.kept = folder / "kept"
        """What is really there."""
        self.path = folder / "mounted"
        self._orders = folder / "orders"
        self.kept.mkdir(parents=True)
        self.path.mkdir()
        self.order()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, self._orders, self.kept, self.path],
            cwd=_REPOSITORY,
            start_new_session=True,
        )
        try:
            wait_for(
                lambda: self._process.poll() is not None or os.path.ismount(self.path),
                what="the faulty disk",
            )
            assert os.path.ismount(self.path), "the faulty disk cannot be mounted"
        except BaseException:
            self.close()
            raise

    def order(self, **orders: Any) -> None:
        """Give orders, in the place of those before; none: it works."""
        new = self._orders.with_suffix(".new")
        new.write_text(json.dumps(orders))
        new.rename(self._orders)

    def close(self) -> None:
        """Take it away, whatever state it is in."""
        self.order()
        subprocess.run(["umount", "-l", self.path], check=False, capture_output=True)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()


def _serve(orders: str, folder: str, mountpoint: str) -> None:
    from fuse import FUSE  # noqa: PLC0415  (only this process needs it)

    options = {"direct_io": True, "hard_remove": True, "big_writes": True}
    options |= {"attr_timeout": 0, "entry_timeout": 0}
    passthrough = _Passthrough(Path(orders), Path(folder))
    FUSE(passthrough, mountpoint, foreground=True, nothreads=True, **options)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
