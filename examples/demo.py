"""What `./run demo` shows: a daemon on an embedded store, mounted, with real data in it.

    python examples/demo.py [--folder DIR] [--library DIR]

Starts `kvstated` on DIR/store with the mount point DIR/mount, copies the running Python's standard
library through the mount with `cp -r`, loads one key per installed Debian package through the
socket, shows what ordinary tools see, and stays until Ctrl-C; then it stops the daemon, which
unmounts. The folder stays: the next run finds everything there and copies nothing.
"""  # noqa: INP001  (a script, not a package)

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import NoReturn

import dpkg

import kvstate

READY_SECONDS = 30
STOP_SECONDS = 20
LIBRARY = Path(sysconfig.get_path("stdlib"))
NOT_LIBRARY = {"site-packages", "dist-packages"}


class Failed(Exception):
    """The demonstration cannot go on; the message is for the person who started it."""


def say(text: str) -> None:
    """Print a line at once, also into a pipe."""
    print(text, flush=True)  # noqa: T201  (it is made to be read)


def show(command: str) -> None:
    """Run a shell command as a person would, its prompt before it."""
    say(f"\n$ {command}")
    subprocess.run(["sh", "-c", command], check=False)  # noqa: S603, S607  (ours, nothing added)


class Daemon:
    """A `kvstated` process of our own; made when it is ready, gone when `stop` has returned."""

    def __init__(self, folder: Path) -> None:
        """Start it and wait until it says that all of it is up."""
        self.mount = folder / "mount"
        self.socket = folder / "kvstated.sock"
        self.log = folder / "kvstated.log"
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # perhaps a dead mount: the daemon heals it
            self.mount.mkdir()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, self.log.open("wb") as log:
            ready.bind(f"\0kvstate-demo-{os.getpid()}")
            ready.settimeout(0.1)
            command = [sys.executable, "-m", "kvstated", "--store", str(folder / "store")]
            command += ["--mount", str(self.mount), "--socket", str(self.socket)]
            # A session of its own: Ctrl-C is ours to handle, so that it always stops in order.
            self.process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"NOTIFY_SOCKET": f"@kvstate-demo-{os.getpid()}"},
            )
            try:
                self._wait_until_ready(ready)
            except BaseException:
                self.stop()
                raise

    def _wait_until_ready(self, ready: socket.socket) -> None:
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise Failed(
                    f"kvstated ended with status {self.process.returncode}:\n{self.tail()}"
                )
            try:
                message = ready.recv(4096)
            except TimeoutError:
                continue
            if b"READY=1" in message.splitlines():
                return
        raise Failed(f"kvstated is not ready after {READY_SECONDS} seconds:\n{self.tail()}")

    def tail(self) -> str:
        """Give the last lines of what it said."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-20:])

    def stop(self) -> int:
        """End it in order; give its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def copy_library(source: Path, mount: Path) -> None:
    """Copy the standard library through the mount, as `cp` does it for anyone."""
    target = mount / "hot/python/stdlib"
    entries = sorted(each for each in source.iterdir() if each.name not in NOT_LIBRARY)
    say(f"\n$ cp -r {source}/* {target}/")
    started = time.monotonic()
    target.mkdir(parents=True, exist_ok=True)
    command = ["cp", "-r", "--", *map(str, entries), str(target)]
    subprocess.run(command, check=True)  # noqa: S603
    count = sum(len(files) for _, _, files in os.walk(target))
    say(f"{count} files in {time.monotonic() - started:.1f} seconds")


def fill(daemon: Daemon, library: Path) -> None:
    """Put real data into the store, unless an earlier run did."""
    with kvstate.connect(str(daemon.socket)) as store:
        notes = store.namespace("demo")
        if notes.get("library") == str(library):
            say(f"{library} is in the store from an earlier run; nothing to copy")
        else:
            copy_library(library, daemon.mount)
            notes["library"] = str(library)
    say(f"\n$ python examples/dpkg.py --socket {daemon.socket}")
    say(f"{dpkg.load(str(daemon.socket))} packages are in namespace dpkg")


def look(mount: Path) -> None:
    """Show the tree with the tools that everyone has."""
    at = shlex.quote(str(mount))
    show(f"ls -A {at}")
    show(f"ls {at}/hot/python/stdlib | head -n 8")
    show(f"du -sh --apparent-size {at}/hot/python/stdlib")
    show(f"head -n 3 {at}/hot/python/stdlib/json/__init__.py")
    show(f"getfattr -d -m user.kvstate {at}/hot/python/stdlib/json/__init__.py")
    show(f"ls {at}/state/dpkg | wc -l")
    show(f"cat {at}/state/dpkg/dpkg")


def stay(daemon: Daemon) -> NoReturn:
    """Wait for Ctrl-C, or fail when the daemon ends by itself."""
    say(f"\nThe store is mounted at {daemon.mount}. In another terminal, from this folder:")
    say(f"    . {shlex.quote(sys.prefix)}/bin/activate; export KVSTATE_SOCKET={daemon.socket}")
    say(f"    kvstate stats; kvstate watch; ls {daemon.mount}/all")
    say("Ctrl-C stops the daemon and unmounts.")
    status = daemon.process.wait()
    raise Failed(f"kvstated ended by itself with status {status}:\n{daemon.tail()}")


def interrupted(*_: object) -> NoReturn:
    """Turn any signal that asks for the end into the same exception."""
    raise KeyboardInterrupt


def run(folder: Path, library: Path) -> int:
    """Start, fill, show, stay, stop; give the exit status."""
    daemon = None
    try:
        say(f"Starting kvstated on {folder}/store, mounted at {folder}/mount")
        daemon = Daemon(folder)
        fill(daemon, library)
        look(daemon.mount)
        stay(daemon)
    except KeyboardInterrupt:
        pass
    except (Failed, kvstate.StateError, OSError, subprocess.CalledProcessError) as error:
        say(f"\ndemo: {error}")
        if daemon is not None:
            daemon.stop()
        return 1
    if daemon is None:
        return 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # once is enough
    say("\nStopping ...")
    status = daemon.stop()
    if status != 0 or daemon.mount.is_mount():
        say(f"demo: kvstated ended with status {status}:\n{daemon.tail()}")
        return 1
    say(f"Stopped and unmounted; {folder} may be removed, or kept for the next time.")
    return 0


def main() -> int:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(prog="./run demo", description="Show a mounted store.")
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="default: ./demo")
    parser.add_argument(
        "--library",
        type=Path,
        default=LIBRARY,
        metavar="DIR",
        help="what to copy through the mount (default: Python's standard library)",
    )
    arguments = parser.parse_args()
    # Set here because a shell starts its background jobs with SIGINT ignored.
    signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGTERM, interrupted)
    return run(arguments.folder, arguments.library)


if __name__ == "__main__":
    sys.exit(main())
