"""Looking at everything again, in steps: when rules change, or a folder gets another name.

``A folder-id`` is a folder whose artifacts are all to be looked at, with the place that was reached
(a chain of names). Each step is one transaction; a crash leaves the queue where it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvstate.codec import decode, encode
from kvstate.errors import NotFound
from kvstate.keyspace import ROOT_ID, after_prefix, entry_key, queue_key
from kvstate.nodes import File, Folder, facts_of, unpack
from kvstate.records import open_envelope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kvstate.catalog import Catalog
    from kvstate.engine import Engine, Reader
    from kvstate.journal import Change, Journal

__all__ = ["Assessing"]

_STEP: Final = 1000


class Assessing:
    """The queue of folders whose artifacts are all to be looked at."""

    def __init__(self, engine: Engine, journal: Journal, catalog: Catalog) -> None:
        self._engine = engine
        self._journal = journal
        self._catalog = catalog
        self._policies = catalog.policies

    def pending(self) -> bool:
        """Say whether there is a folder in the queue."""
        return bool(self._engine.scan(b"A", b"B", limit=1))

    def every(self) -> Iterator[int]:
        """Give the identities of all artifacts."""
        start = b"T"
        while page := self._engine.scan(start, b"U", limit=_STEP):
            for key, data in page:
                node = unpack(key, data)
                if isinstance(node, File):
                    yield node.id
            start = page[-1][0] + b"\0"

    def users(self, blobs: set[bytes], limit: int) -> list[str]:
        """Give the names of artifacts that have one of these contents, at most so many.

        It reads the records of all artifacts, but opens only those that mention one.
        """
        names: list[str] = []
        start = b"T"
        while page := self._engine.scan(start, b"U", limit=_STEP):
            for key, data in page:
                if not any(blob in data for blob in blobs):
                    continue
                node = unpack(key, data)
                if isinstance(node, File) and node.blob in blobs:
                    names.append(self._catalog.path(node.id))
                    if len(names) >= limit:
                        return names
            start = page[-1][0] + b"\0"
        return names

    def run(self, tell: Callable[[str], None]) -> None:
        """Go through the queue, after everything was put into it if the rules are new."""
        ruling = self._policies.ruling()
        if not self._policies.assessed(self._engine, ruling):

            def adopt(change: Change) -> None:
                self._policies.adopt(change)
                change.seal(queue_key(ROOT_ID), encode([]))

            self._journal.commit(adopt)
        while page := self._engine.scan(b"A", b"B", limit=1):
            folder_id = int.from_bytes(page[0][0][1:], "big")
            while self._journal.commit(lambda change, at=folder_id: self._step(change, at)):  # type: ignore[misc]
                tell("")

    def _step(self, change: Change, folder_id: int) -> bool:
        """Look at the next artifacts below a folder; say whether there are more."""
        key = queue_key(folder_id)
        data = change.tx.get(key)
        if data is None:
            return False
        reached = decode(open_envelope(key, data).payload) or []
        policy, _ = self._policies.in_force(change.tx)
        last: list[str] = []
        try:
            top = self._catalog.path(folder_id, change.tx)
        except NotFound:  # removed meanwhile
            change.tx.delete(key)
            return False
        count = 0
        for names, file in list(_some(change.tx, folder_id, reached, _STEP)):
            count += 1
            last = names
            path = "/".join(([top] if top else []) + names)
            verdict = policy.verdict(facts_of(path, file), change.at_ns)
            self._catalog.look(change, file, verdict.look_ns or 0)
        if count < _STEP:
            change.tx.delete(key)
            return False
        change.seal(key, encode(last))
        return True


def _some(
    reader: Reader, folder_id: int, after: list[str], limit: int
) -> Iterator[tuple[list[str], File]]:
    """Give at most so many artifacts below a folder, with their names, after a chain of names."""
    for count, found in enumerate(_below(reader, folder_id, [], after)):
        if count >= limit:
            return
        yield found


def _below(
    reader: Reader, folder_id: int, names: list[str], after: list[str]
) -> Iterator[tuple[list[str], File]]:
    prefix = entry_key(folder_id)
    start = prefix + (after[0].encode() if after else b"\0")
    for key, data in reader.scan(start, after_prefix(prefix)):
        node = unpack(key, data)
        rest = after[1:] if after and node.name == after[0] else []
        here = [*names, node.name]
        if isinstance(node, Folder):
            yield from _below(reader, node.id, here, rest)
        elif not (after and node.name == after[0]):
            yield here, node
