"""A tier's folder, held open, and the file in it that says whose it is.

    <tier>/kvstate-tier      the identity: format, store, tier, place; written once

The identity is what tells a tier's folder from the empty mount point below its disk, from another
tier's and from another store's. It has a place in the folder from the moment the store first writes
there, and the store remembers the place (record ``M tiers``), so a folder without it is not the
store's, whatever its path. It moves with the folder: to another disk, under another path.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from kvstate.errors import Damaged, Denied, Full, NotFound, Unavailable
from kvstate.faults import point

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = [
    "IDENTITY_FILE",
    "STAGING",
    "Folder",
    "Identity",
    "Owner",
    "make_folder",
    "raise_os_error",
]

IDENTITY_FILE = "kvstate-tier"
STAGING = "staging"
_IDENTITY_FORMAT = 1
_IDENTITY_BYTES_MAX = 4096
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def raise_os_error(error: OSError, what: str) -> NoReturn:
    """Raise the store's error for a system error on this file."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        raise Full(what, f"{os.strerror(error.errno)}: free some space, then go on") from error
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        raise Denied(f"writing {what}", os.strerror(error.errno)) from error
    if error.errno == errno.ELOOP:
        raise Damaged(what, "a link lies where a file should be") from error
    if error.errno == errno.ENOENT:
        raise NotFound("file", what) from error
    raise Unavailable(what, error.strerror or str(error)) from error


class Identity(NamedTuple):
    """Whose folder it is: the store's uuid, the tier's name, and 32 hex digits of its own."""

    store: str
    tier: str
    place: str

    def text(self) -> str:
        """Give the file's text: TOML."""
        return (
            f"# This folder is the {self.tier} tier of a kvstate store, which knows it by this "
            f"file:\n# leave it here, and take it along when the folder moves.\n"
            f"format = {_IDENTITY_FORMAT}\n"
            f'store = "{self.store}"\ntier = "{self.tier}"\nplace = "{self.place}"\n'
        )


class Owner(NamedTuple):
    """The store, as one tier's place sees it. ``remember`` commits: not within a transaction."""

    store: Callable[[], str]
    """Gives the store's uuid."""
    known: Callable[[], str | None]
    """Gives the identity of the place that the store uses for this tier; None when none yet."""
    remember: Callable[[str], None]
    """Lets the store use this place from now on, unless it has one already."""


class Folder:
    """An open folder and the open ones in it. Closed with its last user, not before.

    Whoever works in it keeps a reference meanwhile: a descriptor that another thread closes could
    be a descriptor of something else by the time it is used.
    """

    __slots__ = ("_path", "_subs", "_where", "root", "trusted")

    def __init__(self, path: str) -> None:
        """Open the folder, never a link to one; `OSError` as the system says."""
        self.root = -1
        self._subs: dict[str, int] = {}
        self._path = path
        self.trusted = False
        """Whether this was found to be the folder that the store uses."""
        self.root = os.open(path, _FOLDER)
        found = os.fstat(self.root)
        self._where = (found.st_dev, found.st_ino)

    def __del__(self) -> None:
        for fd in (*self._subs.values(), self.root):
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)

    def is_at(self, path: str) -> bool:
        """Say whether the path leads here, and not through a link in its last part."""
        try:
            found = os.lstat(path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._where

    def sub(self, name: str, *, create: bool = False) -> int:
        """Give the descriptor of a folder in it."""
        fd = self._subs.get(name)
        if fd is not None:
            return fd
        try:
            if create:
                self._make(name)
            fd = os.open(name, _FOLDER, dir_fd=self.root)
        except OSError as error:
            raise_os_error(error, f"{self._path}/{name}")
        kept = self._subs.setdefault(name, fd)
        if kept != fd:
            os.close(fd)
        return kept

    def _make(self, name: str) -> None:
        """Make a folder in it durably, unless it is there."""
        try:
            os.mkdir(name, 0o700, dir_fd=self.root)
        except FileExistsError:
            return
        try:
            os.fsync(self.root)
        except OSError:
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=self.root)  # else the next try would take it for durable
            raise

    def names(self) -> list[str]:
        """Give the names in it, but for its identity and what a file system keeps there."""
        hidden = {IDENTITY_FILE, "lost+found"}
        return sorted(set(os.listdir(self.root)) - hidden)  # noqa: PTH208  (a descriptor)

    def identity(self) -> Identity | None:
        """Read whose folder it is; None when nothing says so. `Damaged` when it is unreadable."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        what = f"{self._path}/{IDENTITY_FILE}"
        try:
            fd = os.open(IDENTITY_FILE, flags, dir_fd=self.root)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise_os_error(error, what)
        try:
            plain = stat.S_ISREG(os.fstat(fd).st_mode)
            data = os.read(fd, _IDENTITY_BYTES_MAX) if plain else b""
        except OSError as error:
            raise_os_error(error, what)
        finally:
            os.close(fd)
        return _parse(data.decode(errors="replace"), what)

    def sign(self, identity: Identity) -> None:
        """Write whose folder it is, durably, unless something says so already.

        What a crash leaves of it lies in ``staging/``, as all that was under way. Who clears up
        there may take this for such a leftover: then nothing is written; the caller tries again.
        """
        staging = self.sub(STAGING, create=True)
        name = f"{IDENTITY_FILE}.{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, 0o600, dir_fd=staging)
            try:
                data = identity.text().encode()
                if os.write(fd, data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(fd)
                point("synced")
                with contextlib.suppress(FileExistsError, FileNotFoundError):
                    os.link(
                        name,
                        IDENTITY_FILE,
                        src_dir_fd=staging,
                        dst_dir_fd=self.root,
                        follow_symlinks=False,
                    )
                point("linked")
            finally:
                os.close(fd)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=staging)
            os.fsync(self.root)
        except OSError as error:
            raise_os_error(error, f"{self._path}/{IDENTITY_FILE}")


def make_folder(path: Path) -> None:
    """Make a tier's folder durably; the one above it has to be there."""
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except FileNotFoundError as error:
        why = "the folder above it is not there: mount its disk, or make that folder"
        raise Unavailable(str(path), why, retry=True) from error
    except OSError as error:
        raise_os_error(error, str(path))


def _parse(text: str, what: str) -> Identity:
    """Read the few lines of TOML that `Identity.text` writes: a parser costs more to load."""
    found = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found[key.strip()] = value.strip().strip('"')
    if found.get("format", "").isdigit() and int(found["format"]) > _IDENTITY_FORMAT:
        why = f"it has format {found['format']}, this version of kvstate reads {_IDENTITY_FORMAT}"
        raise Unavailable(what, why)
    fields = [found.get(name, "") for name in Identity._fields]
    if not all(fields):
        raise Damaged(what, "it does not say whose folder this is")
    return Identity(*fields)
