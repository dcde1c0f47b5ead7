"""The Unix socket: one thread for each connection, so that no client is in another's way.

The socket is bound under a name of its own with its final mode and then renamed: nobody can connect
before, and a dead daemon's socket is replaced without a gap. Too many connections are told so; when
the process has no descriptor left, new ones wait in the kernel's queue until one is free.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import stat
import threading
import time
from struct import Struct
from typing import TYPE_CHECKING, Final

from kvstate.errors import Conflict, InvalidConfig, StateError, Unavailable
from kvstate.wire import FRAME_BYTES_MAX, SOCKET_PATH_BYTES_MAX, Channel, encode_error
from kvstated.revisions import Revisions
from kvstated.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kvstate.store import Store

__all__ = ["Server", "serving"]

BACKLOG: Final = 1024
STOP_SECONDS: Final = 5.0
"""How long requests under way may take when it is to stop."""
RETRY_SECONDS: Final = 0.1
_CREDENTIALS = Struct("3i")  # pid, uid, gid: unix(7), SO_PEERCRED
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

log = logging.getLogger(__name__)


class Server:
    """Listens, and answers every client in a thread of its own."""

    def __init__(
        self,
        store: Store,
        revisions: Revisions,
        *,
        path: Path,
        mode: int,
        frame_bytes_max: int,
        connections_max: int,
    ) -> None:
        self.path = path
        self._store = store
        self._revisions = revisions
        self._mode = mode
        self._frame_bytes_max = frame_bytes_max
        self._connections_max = connections_max
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._thread = threading.Thread(target=self._accept, name="accept", daemon=True)
        self._bound: tuple[int, int] | None = None

    def start(self) -> None:
        """Listen. `InvalidConfig` for a path that cannot be one, `Conflict` when it is taken."""
        try:
            self._bind()
        except OSError as error:
            raise InvalidConfig(
                f"socket {str(self.path)!r}", os.strerror(error.errno or 0)
            ) from None
        self._thread.start()

    def _bind(self) -> None:
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        if len(os.fsencode(temporary)) > SOCKET_PATH_BYTES_MAX:
            raise InvalidConfig(
                f"socket {str(self.path)!r}",
                f"its path is too long: with {len(str(os.getpid())) + 2} bytes of ours it must fit "
                f"{SOCKET_PATH_BYTES_MAX}",
            )
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _refuse_taken(self.path)
        temporary.unlink(missing_ok=True)
        mask = os.umask(0o777 & ~self._mode)
        try:
            self._listener.bind(str(temporary))
        finally:
            os.umask(mask)
        self._listener.listen(BACKLOG)
        temporary.rename(self.path)
        found = self.path.lstat()
        self._bound = (found.st_dev, found.st_ino)

    def stop(self, seconds: float) -> bool:
        """Take no more connections, let requests under way end; say whether all did in time."""
        self._stopping.set()
        self._unlink()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # ends accept(2)
        if self._thread.is_alive():
            self._thread.join(seconds)
        self._listener.close()
        deadline = time.monotonic() + seconds
        for how, until in ((socket.SHUT_RD, deadline - 1), (socket.SHUT_RDWR, deadline)):
            with self._lock:
                connections = dict(self._connections)
            for connection in connections:
                # What was sent before is still read, and answered; what comes now is refused.
                with contextlib.suppress(OSError):
                    connection.shutdown(how)
            for thread in connections.values():
                thread.join(max(0, until - time.monotonic()))
        with self._lock:
            return not self._connections

    def _unlink(self) -> None:
        """Remove the socket, unless it is another's by now."""
        with contextlib.suppress(OSError):
            found = self.path.lstat()
            if (found.st_dev, found.st_ino) == self._bound:
                self.path.unlink()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if error.errno in _NO_DESCRIPTOR:
                    self._stopping.wait(RETRY_SECONDS)
                elif not self._stopping.is_set() and error.errno != errno.ECONNABORTED:
                    log.exception("accept")
                    self._stopping.wait(RETRY_SECONDS)
                continue
            self._begin(connection)

    def _begin(self, connection: socket.socket) -> None:
        if len(self._connections) >= self._connections_max:
            _refuse(connection, f"it has {self._connections_max} connections already")
            return
        thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
        with self._lock:
            self._connections[connection] = thread
        try:
            thread.start()
        except RuntimeError:  # the system has no thread left
            with self._lock:
                del self._connections[connection]
            _refuse(connection, "it has no thread left")

    def _serve(self, connection: socket.socket) -> None:
        channel = Channel(connection, self._frame_bytes_max)
        try:
            self._answer_all(connection, channel)
        except StateError as error:
            log.debug("connection ended: %s", error)
        except Exception:
            log.exception("connection ended")
        finally:
            channel.close()
            with self._lock:
                del self._connections[connection]

    def _answer_all(self, connection: socket.socket, channel: Channel) -> None:
        session = Session(self._store, channel, self._revisions)
        try:
            with self._store.acting(f"uid:{_peer_uid(connection)}"):
                while not channel.broken:
                    body = self._receive(channel)
                    if body is None:
                        return
                    channel.send(_answer(session, body))
                    session.settle()
        finally:
            session.close()

    def _receive(self, channel: Channel) -> bytes | None:
        try:
            return channel.receive()
        except StateError as error:
            channel.send(encode_error(error))
            raise


@contextlib.contextmanager
def serving(
    store: Store,
    path: Path,
    *,
    mode: int = 0o600,
    frame_bytes_max: int = FRAME_BYTES_MAX,
    connections_max: int = 1024,
) -> Iterator[Server]:
    """Answer on a socket within this process, without the rest of the daemon."""
    revisions = Revisions(store)
    server = Server(
        store,
        revisions,
        path=path,
        mode=mode,
        frame_bytes_max=frame_bytes_max,
        connections_max=connections_max,
    )
    revisions.start()
    try:
        server.start()
        yield server
    finally:
        revisions.stop()
        server.stop(STOP_SECONDS)
        revisions.join()


def _answer(session: Session, body: bytes) -> bytes:
    try:
        return session.answer(body)
    except StateError as error:
        return encode_error(error)
    except OSError as error:
        if error.errno not in _NO_DESCRIPTOR:
            return _unforeseen(error)
        return encode_error(Unavailable("kvstated", os.strerror(error.errno), retry=True))
    except Exception as error:  # noqa: BLE001  (it is logged, and the client is told)
        return _unforeseen(error)


def _unforeseen(error: Exception) -> bytes:
    log.error("a request failed in a way that no one foresaw", exc_info=error)
    message = f"the daemon failed: {type(error).__name__}: {error}; its log says where"
    return encode_error(StateError(message))


def _peer_uid(connection: socket.socket) -> int:
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(data)[1]
    return uid


def _refuse(connection: socket.socket, why: str) -> None:
    channel = Channel(connection)
    with contextlib.suppress(StateError):
        channel.send(encode_error(Unavailable("kvstated", f"{why}: try again", retry=True)))
    channel.close()


def _refuse_taken(path: Path) -> None:
    """Raise `Conflict` when the path is no socket, or one on which somebody answers."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise Conflict(str(path), "there is something here that is no socket: name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except OSError as error:
            why = f"it does not say whether it is in use: {os.strerror(error.errno or 0)}"
            raise Conflict(str(path), why) from None
    raise Conflict(str(path), "another daemon answers on this socket: name another path")
