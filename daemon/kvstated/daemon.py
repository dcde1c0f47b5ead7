"""The daemon's parts, brought up in order and down in the reverse: lock, socket, mount, jobs."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from kvstate.store import Store, open_store
from kvstate.wire import default_socket
from kvstated.jobs import Jobs
from kvstated.mounting import Mount
from kvstated.notify import notify
from kvstated.pidfile import PidFile
from kvstated.revisions import Revisions
from kvstated.server import STOP_SECONDS, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kvstate.config import Config

__all__ = ["Daemon"]

log = logging.getLogger("kvstated")


class Daemon:
    """One store, kept alive."""

    def __init__(
        self,
        path: Path,
        config: Config,
        environ: Mapping[str, str],
        *,
        socket: Path | None,
        mountpoint: Path | None,
    ) -> None:
        self._path = path
        self._config = config
        self._environ = environ
        self._socket = socket or Path(default_socket(environ))
        self._mountpoint = mountpoint
        self._pid_file = PidFile(path)
        self._store: Store | None = None
        self._revisions: Revisions | None = None
        self._server: Server | None = None
        self._mount: Mount | None = None
        self._jobs: Jobs | None = None

    def start(self, cancelled: Callable[[], bool]) -> None:
        """Bring everything up, then say so; `stop` also takes down what came up before an error."""
        settings = self._config.daemon
        store = open_store(self._path, settings=self._config.store_settings())
        self._store = store
        self._pid_file.take()
        self._revisions = Revisions(store)
        self._revisions.start()
        self._server = Server(
            store,
            self._revisions,
            path=self._socket,
            mode=settings.socket_mode,
            frame_bytes_max=settings.frame_bytes_max,
            connections_max=settings.connections_max,
        )
        self._server.start()
        if self._mountpoint is not None:
            options = self._config.mount.options
            self._mount = Mount(self._path, self._mountpoint, options=options)
            self._mount.start(cancelled)
        self._jobs = Jobs(store)
        self._jobs.start()
        self._revisions.call(self._jobs.arm)
        self._say_ready()

    def _say_ready(self) -> None:
        where = f"store {self._path}, socket {self._socket}"
        if self._mountpoint is not None:
            where += f", mounted on {self._mountpoint}"
        notify(f"READY=1\nSTATUS={where}", self._environ)
        log.info("ready, %s", where)

    def stop(self) -> bool:
        """Take everything down; say whether every thread of ours is at its end."""
        notify("STOPPING=1", self._environ)
        if self._jobs is not None:
            self._jobs.stop()
        if self._revisions is not None:
            self._revisions.stop()
        # The mount and the clients each take their time: both at once.
        unmounting = threading.Thread(target=self._unmount)
        unmounting.start()
        idle = self._server is None or self._server.stop(STOP_SECONDS)
        unmounting.join()
        idle = idle and (self._jobs is None or self._jobs.idle)
        watched = self._revisions is not None and not self._revisions.join()
        if self._store is not None and idle and not watched:
            self._store.close()  # or else the process ends with it open: all is on disk
        self._pid_file.release()
        return idle

    def _unmount(self) -> None:
        if self._mount is not None:
            self._mount.stop()
