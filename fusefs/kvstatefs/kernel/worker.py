"""The process that opens the store and serves a mount: ``python -m kvstatefs.kernel.worker FD``.

A supervisor starts it, hands it the mount and starts the next one when it dies. It leaves signals
to the supervisor, whose service they reach as well, and ends with it.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kvstate.errors import InvalidConfig, StateError, Unavailable
from kvstate.process import prepare_to_serve
from kvstate.version import __version__
from kvstatefs.kernel import system_log
from kvstatefs.kernel.ledger import Ledger
from kvstatefs.kernel.link import Link
from kvstatefs.kernel.packets import HANDED_OVER, NOTHING_TO_RESUME
from kvstatefs.options import parse_options

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["main"]

_FAILED, _WRONG_USAGE = 1, 2
_DEATH_SIGNAL: Final = 1  # PR_SET_PDEATHSIG of prctl(2)

log = logging.getLogger("kvstatefs")


def main(arguments: Sequence[str], serve: Callable[..., str] | None = None) -> int:
    """Serve until the mount is over; give the exit status. The last argument is the connection.

    ``serve`` stands in for `kvstatefs.kernel.serving.serve` where the supervisor is tested alone.
    """
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    link = Link(socket.socket(fileno=int(arguments[-1])))
    logging.basicConfig(format="kvstatefs: %(message)s", level=logging.INFO)
    try:
        status = _serve(link, serve)
    except InvalidConfig as error:
        log.error("%s", error)  # noqa: TRY400  (the message says it)
        status = _WRONG_USAGE
    except (StateError, OSError) as error:
        log.error("%s", error)  # noqa: TRY400  (the message says it)
        status = _FAILED
    except Exception:
        log.exception("the worker fails")
        status = _FAILED
    link.ended(status)
    return status


def _serve(link: Link, serve: Callable[..., str] | None) -> int:
    # What is slow to load is loaded when the supervisor has been seen to be there.
    from kvstate.store import open_store  # noqa: PLC0415
    from kvstatefs.kernel.serving import serve as serve_kernel  # noqa: PLC0415
    from kvstatefs.tree import Tree  # noqa: PLC0415

    prepare_to_serve()
    settings = link.begin()
    options = parse_options(settings["options"], settings["store"])
    link.terminal_left = _log_to_system
    if settings["background"]:
        _log_to_system()
    if "debug" in options.words:
        logging.getLogger().setLevel(logging.DEBUG)
    path, create = Path(settings["store"]), bool(settings["create"])
    with open_store(path, create=create, read_only=options.read_only) as store:
        handed = link.opened(__version__)
        ledger = Ledger.attach(handed.ledger)
        if handed.resumed and not ledger.replay().init:
            return NOTHING_TO_RESUME
        refused = (serve or serve_kernel)(
            handed.fuse,
            Tree(store),
            settings["mountpoint"],
            ledger,
            link,
            resumed=handed.resumed,
            passthrough=options.passthrough,
        )
    if refused:
        raise Unavailable(f"mount on {settings['mountpoint']!r}", refused)
    return HANDED_OVER if link.handed_over else 0


class _SystemLog(logging.Handler):
    """Hands what is logged to the system's log."""

    def emit(self, record: logging.LogRecord) -> None:
        system_log.say(self.format(record))


def _log_to_system() -> None:
    logging.basicConfig(handlers=[_SystemLog()], level=logging.getLogger().level, force=True)


if __name__ == "__main__":
    ended = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(ended)  # whatever thread still waits for something
