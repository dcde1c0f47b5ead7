"""The command ``kvstated``: keeps one store alive until SIGTERM or Ctrl-C.

    kvstated --store DIR [--mount MNT] [--socket PATH] [--config FILE]

It runs in the foreground, as systemd and containers want it, and says when it is ready: to the
service manager (``READY=1``) and in one line on stderr. Exit status: 0 after a signal; 2 for a
wrong command line or configuration; 4 when another daemon has the store or the socket; 6 when
something does not answer; 1 for anything else.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from kvstate.errors import Conflict, InvalidConfig, StateError, Unavailable
from kvstate.process import prepare_to_serve
from kvstate.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["main"]

STACK_BYTES: Final = 1 << 20
"""What a connection's thread may use: a thousand of them fit easily."""

log = logging.getLogger("kvstated")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon; give its exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, format="kvstated: %(message)s", level=logging.INFO)
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
    try:
        return _run(options, os.environ)
    except StateError as error:
        log.error("%s", error)  # noqa: TRY400  (the message says what to do; a traceback would hide it)
        return _status(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kvstated",
        description="Keep a kvstate store alive: answer on a socket, run its lifecycle, mount it.",
    )
    add = parser.add_argument
    add("--store", type=Path, required=True, metavar="DIR", help="the store; made if there is none")
    add("--mount", type=Path, metavar="MNT", help="an empty folder on which to mount the store")
    add("--socket", type=Path, metavar="PATH", help="where to answer")
    add("--config", type=Path, metavar="FILE", help="settings, instead of DIR/kvstate.toml")
    add("--version", action="version", version=f"kvstated {__version__}")
    return parser


def _status(error: StateError) -> int:
    for kind, status in ((InvalidConfig, 2), (Conflict, 4), (Unavailable, 6)):
        if isinstance(error, kind):
            return status
    return 1


def _run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from kvstate.config import load  # noqa: PLC0415  (`kvstated --help` is quick)
    from kvstated.daemon import Daemon  # noqa: PLC0415

    config = load(options.store, options.config, environ)
    prepare_to_serve()
    threading.stack_size(STACK_BYTES)
    with _Told() as told:
        daemon = Daemon(
            options.store.absolute(),
            config,
            environ,
            socket=_named(options.socket, config.daemon.socket),
            mountpoint=_named(options.mount, config.daemon.mount),
        )
        try:
            daemon.start(told.is_told)
            told.wait()
        except Unavailable:
            if not told.is_told():
                raise
        finally:
            idle = daemon.stop()
    logging.shutdown()
    if not idle:
        os._exit(0)  # a thread that will not end must not keep the process: all is on disk
    return 0


def _named(option: Path | None, setting: str) -> Path | None:
    if option is not None:
        return option.absolute()
    return Path(setting).absolute() if setting else None


class _Told:
    """Whether the process was told to end, by SIGTERM or SIGINT.

    A pipe, since setting an event in a signal handler can deadlock with waiting for it.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC)
        self._told = False

    def __enter__(self) -> Self:
        os.set_blocking(self._writer, False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._tell)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the handlers: a second signal changes nothing while the daemon ends."""

    def _tell(self, _number: int, _frame: object) -> None:
        self._told = True
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, b"\0")

    def is_told(self) -> bool:
        """Say whether a signal came."""
        return self._told

    def wait(self) -> None:
        """Wait for a signal."""
        os.read(self._reader, 1)
