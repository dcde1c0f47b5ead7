"""What the kernel may keep of a file, given that it cannot be told when the file changes.

The kernel keeps names and attributes for a second and pages until an open says otherwise. It takes
the size that it was told last for the size of whatever is opened, and its pages belong to the name,
not to the content. So pages are used only when the content at hand is the one whose size the kernel
was told, and while all who read through them read the same content; everything else reads past the
kernel (`direct`). Content that was just written over is read past it, too: the next writer's
truncation would cut it short under its readers.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["STALE_SECONDS", "Grant", "KernelCache", "Seen"]

STALE_SECONDS = 1.0
"""For how long the kernel may keep names and attributes: the bound on what is stale."""
_SETTLED_SECONDS = 1.1
_STEP_SECONDS = 0.0005
_SEEN_MAX = 100_000


class Seen:
    """What the kernel knows of one path."""

    __slots__ = ("held", "holders", "known", "outlasted", "rewritten", "told")

    def __init__(self) -> None:
        self.told: bytes | None = None
        """The content whose size the kernel was told last."""
        self.held: bytes | None = None
        """The content that the kernel's pages are of."""
        self.holders = 0
        """How many open files use the kernel's pages."""
        self.known = False
        """Whether the path ever had stored content."""
        self.outlasted = 0.0
        """Until when a writer need not wait for the holders again."""
        self.rewritten = 0.0
        """When this mount last replaced its content."""


class Grant(NamedTuple):
    """How a file is opened: past the kernel's pages, or through them; and whether old ones hold."""

    direct: bool
    keep: bool
    seen: Seen | None = None


_DIRECT = Grant(direct=True, keep=False)


class KernelCache:
    """What the kernel was told, path by path."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._seen: dict[bytes, Seen] = {}
        self._lock = threading.Lock()
        """For whether the pages are free, and whose they are."""

    def told(self, path: bytes, content: bytes | None) -> None:
        """Take note that the kernel is being told the size of this content."""
        seen = self._seen.get(path)
        if seen is None:
            if content is None:
                return
            seen = self._new(path)
        if content is not None:
            seen.known = True
        seen.told = content

    def _new(self, path: bytes) -> Seen:
        if len(self._seen) >= _SEEN_MAX:
            self._seen = {key: seen for key, seen in list(self._seen.items()) if seen.holders}
        return self._seen.setdefault(path, Seen())

    def opened(self, path: bytes, content: bytes | None, *, writers: bool) -> Grant:
        """Say how this content may be opened; `closed` is owed for a grant that names a `Seen`."""
        seen = self._seen.get(path)
        if content is None or writers or seen is None or seen.told != content:
            return _DIRECT
        if seen.rewritten and self._now() - seen.rewritten < _SETTLED_SECONDS:
            return _DIRECT
        with self._lock:
            if seen.told != content or (seen.holders and seen.held != content):
                return _DIRECT
            keep = seen.held == content
            seen.held = content
            seen.holders += 1
        return Grant(direct=False, keep=keep, seen=seen)

    @staticmethod
    def ended(seen: Seen, content: bytes | None) -> None:
        """Take note that a read through the pages has met the end of this content.

        Where that is not what it was told of last, the kernel takes it for the end of the file.
        """
        if seen.told != content:
            seen.told = None

    def held(self, path: bytes) -> bool:
        """Whether somebody reads a path through the kernel's pages."""
        seen = self._seen.get(path)
        return seen is not None and seen.holders > 0

    def wait(self, path: bytes, seconds: float) -> None:
        """Wait until nobody does, or so long; who has outlasted it is not waited for again soon."""
        seen = self._seen.get(path)
        if seen is None or self._now() < seen.outlasted:
            return
        deadline = self._now() + seconds
        while seen.holders > 0:
            if self._now() > deadline:
                seen.outlasted = self._now() + _SETTLED_SECONDS
                return
            time.sleep(_STEP_SECONDS)

    def closed(self, seen: Seen) -> None:
        """One who read through the kernel's pages is done."""
        with self._lock:
            seen.holders -= 1

    def stored(self, path: bytes, content: bytes) -> None:
        """Take note of new content; the kernel saw it being written, so it knows the size."""
        seen = self._seen.get(path) or self._new(path)
        if seen.known:
            seen.rewritten = self._now()
        seen.known = True
        seen.told = content

    def renamed(self, old: bytes, new: bytes) -> None:
        """Let the kernel's pages go with the name."""
        below = old + b"/"
        moved = [path for path in list(self._seen) if path == old or path.startswith(below)]
        for path in moved:
            seen = self._seen.pop(path, None)
            if seen is not None:
                self._seen[new + path[len(old) :]] = seen

    def removed(self, path: bytes) -> None:
        """Forget a name: what comes under it is another file to the kernel."""
        self._seen.pop(path, None)
