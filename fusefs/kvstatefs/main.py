"""The command: ``kvstatefs STORE MOUNTPOINT [-f] [-o ro,allow_other,...]``, and mount.kvstatefs.

Without ``-f`` it goes to the background once the mount answers, so that the next command finds it.
SIGTERM and SIGINT unmount and end it with status 0; what was closed is on disk already.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kvstate.errors import InvalidConfig, StateError
from kvstate.version import __version__
from kvstatefs import mountpoint as mountpoints
from kvstatefs.options import parse_options

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["main", "main_fstab"]

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ENDED: Final = signal.SIGUSR1
_SETTLE_SECONDS: Final = 8.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; give its exit status: 0 done, 1 failed, 2 usage."""
    options = _parser().parse_args(arguments)
    try:
        return _mount(Path(options.store), Path(options.mountpoint), options)
    except InvalidConfig as error:
        _say(error)
        return 2
    except (StateError, OSError) as error:
        _say(error)
        return 1


def main_fstab() -> int:
    """Run as ``mount.kvstatefs STORE MOUNTPOINT [-sfnv] [-o OPTIONS]``, as mount(8) calls it."""
    words = [word for word in sys.argv[1:] if word not in {"-s", "-n", "-v"}]
    if "-f" in words:  # mount --fake: all but the mounting
        return 0
    return main(words)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kvstatefs", description="Show a kvstate store as files.", allow_abbrev=False
    )
    add = parser.add_argument
    add("store", metavar="STORE", help="the store's folder; made if there is none")
    add("mountpoint", metavar="MOUNTPOINT", help="an empty folder")
    add("-f", "--foreground", action="store_true", help="stay in the foreground")
    add(
        "-o",
        dest="options",
        action="append",
        default=[],
        metavar="OPTIONS",
        help="ro, allow_other, allow_root, default_permissions, fsname=NAME, ... (commas between)",
    )
    add("--version", action="version", version=f"kvstatefs {__version__}")
    return parser


def _mount(store: Path, mountpoint: Path, options: argparse.Namespace) -> int:
    store, mountpoint = store.absolute(), mountpoint.absolute()
    wanted = parse_options(options.options, str(store))
    if not mountpoints.is_dead(mountpoint):
        mountpoint = mountpoint.resolve()
        mountpoints.check(mountpoint, store.resolve())
    signal.pthread_sigmask(signal.SIG_BLOCK, {*_SIGNALS, _ENDED})
    serve = _Server(store, mountpoint, wanted.for_libfuse, read_only=wanted.read_only)
    return serve.run() if options.foreground else _in_background(serve.run)


class _Server:
    """One mount, from the opening of the store to its closing."""

    def __init__(
        self, store: Path, mountpoint: Path, options: tuple[str, ...], *, read_only: bool
    ) -> None:
        self._store = store
        self._mountpoint = mountpoint
        self._options = options
        self._read_only = read_only

    def run(self, ready: Callable[[], None] | None = None) -> int:
        """Mount, serve until a signal or an unmount, and end."""
        # What mounts is loaded here: a wrong argument is answered without it.
        from kvstate.store import open_store  # noqa: PLC0415
        from kvstatefs.fusepy_adapter import FusepyMount  # noqa: PLC0415
        from kvstatefs.tree import Tree  # noqa: PLC0415

        logging.basicConfig(format="kvstatefs: %(message)s", level=logging.INFO)
        log = logging.getLogger("kvstatefs")
        read_only = self._read_only
        with open_store(self._store, create=not read_only, read_only=read_only) as store:
            mount = FusepyMount(Tree(store), str(self._mountpoint), self._options)
            main_thread = threading.main_thread().ident
            assert main_thread is not None
            # Not a moment earlier: who writes where a mount was finds an ordinary folder.
            if mountpoints.heal(self._mountpoint):
                mountpoints.check(self._mountpoint, self._store.resolve())
            mount.mount(
                ready or (lambda: log.info("%s is mounted on %s", self._store, self._mountpoint)),
                lambda: signal.pthread_kill(main_thread, _ENDED),
            )
            if signal.sigwait({*_SIGNALS, _ENDED}) != _ENDED:
                mountpoints.unmount(self._mountpoint)
            mount.session.settle(_SETTLE_SECONDS)
        return 0


def _say(error: Exception) -> None:
    sys.stderr.write(f"kvstatefs: {error}\n")


def _in_background(run: Callable[[Callable[[], None]], int]) -> int:
    """Run in a child; return when it says that it is ready, or with its status when it ends."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        os.setsid()
        status = 1
        try:
            status = run(lambda: _leave_terminal(writing))
        except InvalidConfig as error:
            _say(error)
            status = 2
        except (StateError, OSError) as error:
            _say(error)
        finally:
            os._exit(status)  # the parent's buffers and exit handlers are the parent's
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        if pipe.read(1):
            return 0
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) or 1


def _leave_terminal(pipe: int) -> None:
    """Say that the mount is there, and let go of the terminal."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    os.write(pipe, b"1")
    os.close(pipe)
