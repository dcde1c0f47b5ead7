"""Commands on artifacts: put, cat, ls, stat, rm, mv, tier, restore."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from kvstate.cli.doors import open_door
from kvstate.cli.exits import DONE, NOT_FOUND
from kvstate.cli.output import artifact_facts, print_json, print_line, print_tree
from kvstate.errors import InvalidValue
from kvstate.progress import Meter

if TYPE_CHECKING:
    from argparse import Namespace

    from kvstate.artifact_files import Artifact

__all__ = ["cat", "ls", "mv", "put", "restore", "rm", "stat", "tier"]

_CHUNK_BYTES = 1 << 20


class _Counted:
    """A file that moves a progress bar as it is read."""

    def __init__(self, file: BinaryIO, meter: Meter) -> None:
        self._file = file
        self._meter = meter

    def read(self, size: int) -> bytes:
        """Give the next bytes."""
        data = self._file.read(size)
        self._meter.add(len(data))
        return data


def put(options: Namespace) -> int:
    """Store files as artifacts."""
    metadata = dict(_pair(text) for text in options.meta) or None
    folder = len(options.files) > 1 or options.name.endswith("/")
    with open_door(options) as store:
        for file in options.files:
            name = options.name.rstrip("/") + "/" + Path(file).name if folder else options.name
            path = Path(file)
            total = path.stat().st_size if file != "-" else None
            if path.is_dir():
                raise InvalidValue(file, "it is a folder: copy it into the mount with cp -r")
            source = sys.stdin.buffer if file == "-" else path.open("rb")
            with source, Meter(total, name) as meter:
                artifact = store.artifacts.put(
                    name,
                    _Counted(source, meter),  # type: ignore[arg-type]
                    metadata=metadata,
                    tier=options.tier,
                )
            if options.json:
                print_json(artifact_facts(artifact))
    return DONE


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise InvalidValue("--meta", f"{text!r} has not the form KEY=VALUE")
    return key, value


def cat(options: Namespace) -> int:
    """Print an artifact's content, in pieces."""
    with open_door(options) as store:
        size = store.artifacts.stat(options.name).size
        with store.artifacts.open(options.name) as reader, Meter(size, options.name) as meter:
            while data := reader.read(_CHUNK_BYTES):
                sys.stdout.buffer.write(data)
                meter.add(len(data))
        sys.stdout.buffer.flush()
    return DONE


def ls(options: Namespace) -> int:
    """List artifacts."""
    with open_door(options) as store:
        for artifact in store.artifacts.list(options.prefix, tier=options.tier):
            print_json(artifact_facts(artifact)) if options.json else print_line(_line(artifact))
    return DONE


def _line(artifact: Artifact) -> str:
    at = artifact.modified_at.strftime("%Y-%m-%d %H:%M")
    return f"{artifact.tier:<4} {artifact.size:>12} {at} {artifact.name}"


def stat(options: Namespace) -> int:
    """Print what is known of an artifact."""
    with open_door(options) as store:
        _show(options, store.artifacts.stat(options.name))
    return DONE


def _show(options: Namespace, artifact: Artifact) -> None:
    facts = artifact_facts(artifact)
    print_json(facts) if options.json else print_tree(facts)


def rm(options: Namespace) -> int:
    """Delete artifacts; say by the exit code whether all of them were there."""
    with open_door(options) as store:
        missing = [name for name in options.names if not store.artifacts.delete(name)]
    for name in missing:
        sys.stderr.write(f"kvstate: no artifact {name!r}\n")
    return NOT_FOUND if missing else DONE


def mv(options: Namespace) -> int:
    """Rename an artifact or a folder."""
    with open_door(options) as store:
        moved = store.artifacts.rename(options.name, options.new, replace=options.replace)
    if options.json:
        print_json({"name": options.new} if moved is None else artifact_facts(moved))
    return DONE


def tier(options: Namespace) -> int:
    """Move an artifact to another tier."""
    with open_door(options) as store, Meter(None, options.name) as meter:
        moved = store.artifacts.move(options.name, options.tier, progress=meter.reach)
    if options.json:
        print_json(artifact_facts(moved))
    return DONE


def restore(options: Namespace) -> int:
    """Bring artifacts back to a hotter tier."""
    with open_door(options) as store:
        for name in options.names:
            with Meter(None, name) as meter:
                restored = store.artifacts.restore(name, options.tier, progress=meter.reach)
            if options.json:
                print_json(artifact_facts(restored))
    return DONE
