"""Commands on artifacts that are there: put, cat, ls, stat, usage."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from kvstate.cli.doors import open_door
from kvstate.cli.exits import DONE
from kvstate.cli.meanings import age_or_moment, metadata_of
from kvstate.cli.output import artifact_line, print_json, print_line, print_table, print_tree
from kvstate.errors import InvalidValue
from kvstate.facts import artifact_facts, total_facts
from kvstate.progress import Meter
from kvstate.sizes import format_size, parse_size

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from kvstate.artifact_files import Artifact, Content
    from kvstate.remote import RemoteStore
    from kvstate.store import Store
    from kvstate.tally import Totals

__all__ = ["cat", "ls", "put", "stat", "usage"]

_CHUNK_BYTES = 1 << 20
_SMALL_BYTES = 1 << 16
_STDIN = "-"


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
    total = _total(options.files)
    with open_door(options) as store:
        if options.parts:
            _put_parts(options, store)
        elif len(options.files) > 1 or options.name.endswith("/"):
            _put_many(options, store, total)
        else:
            _put_one(options, store, total)
    return DONE


def _total(files: list[str]) -> int | None:
    """Give the size of all files together, None when one is a pipe; refuse folders."""
    total: int | None = 0
    for file in files:
        path = Path(file)
        if file == _STDIN:
            total = None
            continue
        status = path.stat()
        if path.is_dir():
            raise InvalidValue(file, "it is a folder: copy it into the mount with cp -r")
        total = None if total is None or not path.is_file() else total + status.st_size
    return total


def _open(file: str) -> BinaryIO:
    return sys.stdin.buffer if file == _STDIN else Path(file).open("rb")


def _put_one(options: Namespace, store: Store | RemoteStore, total: int | None) -> None:
    (file,) = options.files
    with _open(file) as source, Meter(total, options.name) as meter:
        artifact = store.artifacts.put(
            options.name,
            cast("BinaryIO", _Counted(source, meter)),
            metadata=metadata_of(options.meta) or None,
            tier=options.tier,
            reason=options.reason,
        )
    if options.json:
        print_json(artifact_facts(artifact))


def _put_many(options: Namespace, store: Store | RemoteStore, total: int | None) -> None:
    folder = options.name.rstrip("/")
    names = [f"{folder}/{Path(file).name}" for file in options.files]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise InvalidValue("FILE", f"several would be {', '.join(sorted(twice))}")

    def contents() -> Iterator[tuple[str, Content]]:
        for name, file in zip(names, options.files, strict=True):
            with _open(file) as source:
                # Small ones as bytes: over a socket those go many at once.
                first = source.read(_SMALL_BYTES)
                if len(first) < _SMALL_BYTES:
                    yield name, first
                    meter.add(len(first))
                else:
                    counted = _Counted(cast("BinaryIO", _Rest(first, source)), meter)
                    yield name, cast("BinaryIO", counted)

    with Meter(total, folder) as meter:
        stored = store.artifacts.put_many(
            contents(),
            metadata=metadata_of(options.meta) or None,
            tier=options.tier,
            reason=options.reason,
        )
    if options.json:
        for name in names:
            print_json(artifact_facts(store.artifacts.stat(name)))
    else:
        counts = stored._asdict()
        print_line(", ".join(f"{count} {kind}" for kind, count in counts.items()))


class _Rest:
    """A file whose beginning was read already."""

    def __init__(self, first: bytes, file: BinaryIO) -> None:
        self._first = first
        self._file = file

    def read(self, size: int) -> bytes:
        """Give the next bytes."""
        if self._first:
            data, self._first = self._first[:size], self._first[size:]
            return data
        return self._file.read(size)


def _put_parts(options: Namespace, store: Store | RemoteStore) -> None:
    if _STDIN in options.files:
        raise InvalidValue("--parts", "it takes files, not standard input")
    parts = store.artifacts.put_parts(
        options.name,
        [Path(file) for file in options.files],
        metadata=metadata_of(options.meta) or None,
        tier=options.tier,
        reason=options.reason,
    )
    _print_artifacts(options, iter(parts))


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
        if options.parts:
            _check_parts(options)
            _print_artifacts(options, iter(store.artifacts.parts(options.prefix.rstrip("/"))))
            return DONE
        found = store.artifacts.list(
            options.prefix,
            tier=options.tier,
            older_than=age_or_moment(options.older_than, "--older-than"),
            newer_than=age_or_moment(options.newer_than, "--newer-than"),
            size_min=0 if options.min_size is None else parse_size(options.min_size),
            size_max=None if options.max_size is None else parse_size(options.max_size),
            metadata=metadata_of(options.meta) or None,
            held=True if options.held else None,
            newest=options.newest,
            after=options.after,
            limit=options.limit,
        )
        _print_artifacts(options, found)
    return DONE


def _check_parts(options: Namespace) -> None:
    """Refuse what `--parts` would ignore: it may have been meant."""
    given = (
        (options.tier, options.older_than, options.newer_than, options.min_size, options.max_size),
        (options.limit, options.after),
    )
    if any(each is not None for each in (*given[0], *given[1])) or any(
        (options.meta, options.held, options.newest)
    ):
        raise InvalidValue("--parts", "it lists one folder as it is, whole")


def _print_artifacts(options: Namespace, artifacts: Iterator[Artifact]) -> None:
    for artifact in artifacts:
        if options.json:
            print_json(artifact_facts(artifact))
        else:
            print_line(artifact_line(artifact))


def stat(options: Namespace) -> int:
    """Print what is known of an artifact."""
    with open_door(options) as store:
        facts = artifact_facts(store.artifacts.stat(options.name))
    print_json(facts) if options.json else print_tree(facts)
    return DONE


def usage(options: Namespace) -> int:
    """Print what each tenant, or each workflow of a tenant, holds, and all of it together."""
    path = options.path.rstrip("/")
    with open_door(options) as store:
        total = store.artifacts.usage(path)
        below = f"{path}/" if path else ""
        found = [] if "/" in path else list(store.artifacts.usages(path))
    rows = [(below + name, each) for name, each in found] + [(path, total)]
    if options.json:
        for name, each in rows:
            print_json({"name": name, **total_facts(each)})
    else:
        head = ("", "hot", "", "warm", "", "cold", "", "together", "", "held")
        print_table(head, [_usage_row(name or "together", each) for name, each in rows])
    return DONE


def _usage_row(name: str, total: Totals) -> list[str]:
    figures = [each for usage in total.tiers for each in (usage.artifacts, usage.bytes)]
    figures += [total.artifacts, total.bytes]
    shown = [format_size(n) if at % 2 else str(n) for at, n in enumerate(figures)]
    return [name, *shown, str(total.held)]
