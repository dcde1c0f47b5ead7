"""The way to a tier's folder: made sure of at each use, and looked for again when it is lost.

A disk that is not mounted leaves an empty folder under the tier's path, a mistyped path leads to
another's, and both may change while the store is open. So each use compares what the path leads to
with the folder that is held open, and a folder is used only when its identity is the one that the
store remembers. If not, the tier is unavailable: `Unavailable` (`Denied`, `Damaged`) says why and
what to do, nothing is written, and it is looked at again at most once a second, until it is back.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from threading import Lock
from typing import TYPE_CHECKING

from kvstate.errors import Denied, StateError, Unavailable, from_facts
from kvstate.tier_folders import STAGING, Folder, Identity, make_folder, raise_os_error

if TYPE_CHECKING:
    from pathlib import Path

    from kvstate.tier_folders import Owner

__all__ = ["Access"]

_LOOK_SECONDS = 1.0
_TRIES = 8
_MISSING = "its folder is not there: mount its disk, put the folder back, or correct PATH"
_UNSIGNED = (
    "its folder has no kvstate-tier file, so it is not the one in use: mount its disk, or copy the "
    "tier's folder there, with that file"
)
_LINK = "a link lies where its folder should be: put the folder back, or name it itself in PATH"
_NO_FOLDER = "no folder lies there: put the folder back, or correct PATH"
_NOTHING_ABOVE = "the folder above it is not there: mount its disk, or correct PATH"
_RIGHT_ONE = "mount the right disk there, or correct PATH"


class Access:
    """The folder of one tier, or why it cannot be used. For any thread."""

    def __init__(
        self, path: Path, tier: str, owner: Owner | None, *, configured: bool, read_only: bool
    ) -> None:
        """Take note of the path; without an owner, whatever folder lies there is used.

        ``configured`` paths were named by someone: nothing is made there before it is needed.
        """
        self.what = f"the {tier} tier at {str(path)!r}"
        self.held: Folder | None = None
        """The folder that was found last."""
        self.lost: StateError | None = None
        """Why it cannot be used, as far as is known."""
        self._path = path
        self._where = os.fspath(path)
        self._tier = tier
        self._owner = owner
        self._configured = configured
        self._read_only = read_only
        self._lock = Lock()
        self._look_again_at = 0.0

    def close(self) -> None:
        """Let go of the folder, for good."""
        with self._lock:
            self.held = None
            self.lost = Unavailable(self.what, "the store is closed")
            self._look_again_at = float("inf")

    def prepare(self) -> None:
        """Make the store's own folder for a tier that it never used; sign a used one of old."""
        with contextlib.suppress(StateError, OSError):  # the first use says what is wrong
            folder = self.use()
            if folder is None and not self._configured:
                make_folder(self._path)
            elif folder is not None and not folder.trusted and STAGING in folder.names():
                self.own()

    def use(self) -> Folder | None:
        """Give the folder, made sure of; None when the tier was never used and has none yet."""
        folder = self.held
        if folder is not None and folder.trusted and folder.is_at(self._where):
            return folder
        with self._lock:
            if self.lost is not None and time.monotonic() < self._look_again_at:
                raise _again(self.lost)
            self.held = None
            try:
                self.held = self._found()
            except StateError as error:
                self.lost = error
                self._look_again_at = time.monotonic() + _LOOK_SECONDS
                raise
            self.lost = None
            return self.held

    def _found(self) -> Folder | None:
        """Open the folder and see whose it is."""
        known = None if self._owner is None else self._owner.known()
        try:
            folder = Folder(self._where)
        except FileNotFoundError:
            if known is None:
                return None
            raise self.away(_MISSING, retry=True) from None
        except NotADirectoryError:
            raise self.away(_LINK if self._path.is_symlink() else _NO_FOLDER) from None
        except PermissionError as error:
            raise Denied(f"using {self.what}", str(error.strerror)) from error
        except OSError as error:
            raise self.away(error.strerror or str(error), retry=True) from error
        if self._owner is None:
            folder.trusted = True
            return folder
        identity = folder.identity()
        if identity is not None:
            self._compare(identity, known)
        elif known is not None:
            raise self.away(_UNSIGNED, retry=True)
        elif self._configured and any(_is_foreign(name) for name in folder.names()):
            raise self.away("other files lie in its folder: give it an empty one in PATH")
        folder.trusted = known is not None
        return folder

    def _compare(self, found: Identity, known: str | None) -> None:
        assert self._owner is not None
        if found.store != self._owner.store():
            raise self.away(f"its folder belongs to another store ({found.store}): {_RIGHT_ONE}")
        if found.tier != self._tier:
            raise self.away(f"its folder is that of the {found.tier} tier: {_RIGHT_ONE}")
        if known not in {None, found.place}:
            raise self.away(f"its folder is another than the one in use: {_RIGHT_ONE}")

    def own(self) -> Folder:
        """Give the folder to write in; the first time, make it and sign it."""
        if self._read_only:
            raise Denied(f"writing {self.what}", "the store was opened for reading only")
        for _ in range(_TRIES):
            folder = self.use()
            if folder is not None and folder.trusted:
                return folder
            if folder is None:
                make_folder(self._path)
            else:
                self._take(folder)
        raise self.away("its folder changes faster than it can be used", retry=True)

    def _take(self, folder: Folder) -> None:
        """Sign a folder for this tier, if nobody did, and let the store remember it."""
        assert self._owner is not None
        identity = folder.identity()
        if identity is None:
            folder.sign(Identity(self._owner.store(), self._tier, secrets.token_hex(16)))
            identity = folder.identity()
        if identity is not None:
            self._compare(identity, None)
            self._owner.remember(identity.place)

    def away(self, why: str, *, retry: bool = False) -> Unavailable:
        """Give the error that says why the tier is unavailable; PATH stands for its setting."""
        hint = why.replace("PATH", f"tiers.{self._tier}.path")
        return Unavailable(self.what, hint, retry=retry)

    def space(self, folder: Folder | None) -> os.statvfs_result:
        """Give the state of the file system that the folder is, or will be, on."""
        try:
            if folder is not None:
                return os.fstatvfs(folder.root)
            with contextlib.suppress(FileNotFoundError):
                return os.statvfs(self._where)
            return os.statvfs(self._path.parent)
        except FileNotFoundError:
            raise self.away(_NOTHING_ABOVE, retry=True) from None
        except OSError as error:
            raise_os_error(error, self.what)


def _is_foreign(name: str) -> bool:
    return name != STAGING and re.fullmatch(r"[0-9a-f]{2}", name) is None


def _again(error: StateError) -> StateError:
    """Give an error to raise once more: one object for several threads would mix their traces."""
    copy = from_facts(error.code, error.message, error.facts)
    if isinstance(copy, Unavailable) and isinstance(error, Unavailable):
        copy.retry = error.retry
    return copy
