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
from kvstate.process import prepare_to_serve
from kvstate.version import __version__
from kvstatefs import mountpoint as mountpoints
from kvstatefs.kernel import mounting
from kvstatefs.kernel.control import upgrade
from kvstatefs.kernel.link import leave_terminal
from kvstatefs.kernel.supervisor import Supervisor
from kvstatefs.options import parse_options

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kvstatefs.options import MountOptions

__all__ = ["main", "main_fstab"]

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ENDED: Final = signal.SIGUSR1
_SETTLE_SECONDS: Final = 8.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; give its exit status: 0 done, 1 failed, 2 usage."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if (options.upgrade is None) == (options.mountpoint is None):
        parser.error("STORE and MOUNTPOINT are wanted, or --upgrade MOUNTPOINT alone")
    try:
        if options.upgrade is not None:
            sys.stdout.write(f"{upgrade(Path(options.upgrade).absolute())}\n")
            return 0
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
    add("store", metavar="STORE", nargs="?", help="the store's folder; made if there is none")
    add("mountpoint", metavar="MOUNTPOINT", nargs="?", help="an empty folder")
    add(
        "--upgrade",
        metavar="MOUNTPOINT",
        help="let a live mount be served by this version, without unmounting it",
    )
    add("-f", "--foreground", action="store_true", help="stay in the foreground")
    add(
        "-o",
        dest="options",
        action="append",
        default=[],
        metavar="OPTIONS",
        help="ro, allow_other, adapter=kernel|fusepy, passthrough=off, ... (commas between)",
    )
    add("--version", action="version", version=f"kvstatefs {__version__}")
    return parser


def _mount(store: Path, mountpoint: Path, options: argparse.Namespace) -> int:
    store, mountpoint = store.absolute(), mountpoints.resolved(mountpoint.absolute())
    wanted = parse_options(options.options, str(store))
    if not mountpoints.is_dead(mountpoint):
        mountpoints.check(mountpoint, store.resolve())
    obstacle = _obstacle(wanted)
    if wanted.adapter == "kernel" and obstacle:
        raise InvalidConfig("-o adapter=kernel", obstacle)
    run: Callable[[Callable[[], bool]], int]
    if wanted.adapter == "fusepy" or obstacle:
        if wanted.adapter == "auto":
            sys.stderr.write(f"kvstatefs: the fusepy adapter serves the mount: {obstacle}\n")
        signal.pthread_sigmask(signal.SIG_BLOCK, {*_SIGNALS, _ENDED})
        run = _Server(store, mountpoint, wanted.for_libfuse, read_only=wanted.read_only).run
    else:
        run = Supervisor(store, mountpoint, wanted, options.options).run
    if not options.foreground:
        return _in_background(run)
    return run(lambda: _say_mounted(store, mountpoint))


def _obstacle(wanted: MountOptions) -> str:
    """Say why the kernel adapter cannot serve; empty if it can."""
    if wanted.only_fusepy:
        return f"only it knows the option {wanted.only_fusepy}"
    return mounting.obstacle()


def _say_mounted(store: Path, mountpoint: Path) -> bool:
    sys.stderr.write(f"kvstatefs: {store} is mounted on {mountpoint}\n")
    sys.stderr.flush()
    return False


class _Server:
    """One mount, from the opening of the store to its closing."""

    def __init__(
        self, store: Path, mountpoint: Path, options: tuple[str, ...], *, read_only: bool
    ) -> None:
        self._store = store
        self._mountpoint = mountpoint
        self._options = options
        self._read_only = read_only

    def run(self, ready: Callable[[], bool]) -> int:
        """Mount, serve until a signal or an unmount, and end."""
        # What mounts is loaded here: a wrong argument is answered without it.
        from kvstate.store import open_store  # noqa: PLC0415
        from kvstatefs.fusepy_adapter import FusepyMount  # noqa: PLC0415
        from kvstatefs.tree import Tree  # noqa: PLC0415

        logging.basicConfig(format="kvstatefs: %(message)s", level=logging.INFO)
        read_only = self._read_only
        with open_store(self._store, create=not read_only, read_only=read_only) as store:
            prepare_to_serve()
            mount = FusepyMount(Tree(store), str(self._mountpoint), self._options)
            main_thread = threading.main_thread().ident
            assert main_thread is not None
            device = ""

            def answers() -> None:
                nonlocal device
                mounted = mountpoints.top_mount(self._mountpoint)
                device = mounted.device if mounted is not None else ""
                ready()

            with mountpoints.claimed(self._mountpoint, self._store.resolve()):
                mount.mount(answers, lambda: signal.pthread_kill(main_thread, _ENDED))
            if signal.sigwait({*_SIGNALS, _ENDED}) != _ENDED:
                mountpoints.unmount_ours(self._mountpoint, device)
            mount.session.settle(_SETTLE_SECONDS)
        return 0


def _say(error: Exception) -> None:
    sys.stderr.write(f"kvstatefs: {error}\n")


def _in_background(run: Callable[[Callable[[], bool]], int]) -> int:
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


def _leave_terminal(pipe: int) -> bool:
    """Say that the mount is there, and let go of the terminal."""
    leave_terminal()
    os.write(pipe, b"1")
    os.close(pipe)
    return True
