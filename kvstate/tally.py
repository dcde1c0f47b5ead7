"""What is counted of artifacts, exactly, in the transaction of each change.

Per tier the number and the bytes of the artifacts below the store (the root), each tenant and each
workflow, how many of them are held, and how many could not be moved: one record each (key ``U``),
eight numbers of 8 bytes; under the identity 0 the same of the trash. What one change adds is
gathered and written at its end: a thousand puts write a workflow's record once.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from kvstate.codec import seal, unseal
from kvstate.errors import Damaged
from kvstate.keyspace import tally_key

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvstate.engine import Engine, Reader
    from kvstate.journal import Change

__all__ = ["TRASH_ID", "Tally", "Totals", "Usage", "read_totals", "totals_record"]

_NUMBERS: Final = Struct(">8Q")
TRASH_ID: Final = 0
"""Under this identity the trash is counted."""


class Usage(NamedTuple):
    """How many artifacts a tier has, and how many bytes they have together (not deduplicated)."""

    artifacts: int
    bytes: int


class Totals(NamedTuple):
    """What a tenant, a workflow or the store holds."""

    hot: Usage
    warm: Usage
    cold: Usage
    held: int
    failed: int

    @property
    def tiers(self) -> tuple[Usage, Usage, Usage]:
        """What each tier holds."""
        return self.hot, self.warm, self.cold

    @property
    def artifacts(self) -> int:
        """How many there are in all tiers."""
        return sum(usage.artifacts for usage in self.tiers)

    @property
    def bytes(self) -> int:
        """How many bytes they have together."""
        return sum(usage.bytes for usage in self.tiers)


_NOTHING: Final = [0] * 8


def _numbers(reader: Reader | Engine, folder_id: int) -> list[int]:
    key = tally_key(folder_id)
    data = reader.get(key)
    return list(_NOTHING) if data is None else list(_NUMBERS.unpack(unseal(key, data)))


def _totals(numbers: list[int]) -> Totals:
    hot, warm, cold = (Usage(*numbers[at : at + 2]) for at in (0, 2, 4))
    return Totals(hot, warm, cold, *numbers[6:])


def read_totals(reader: Reader | Engine, folder_id: int) -> Totals:
    """Give what the store (the root), a tenant or a workflow holds."""
    return _totals(_numbers(reader, folder_id))


def totals_record(folder_id: int, numbers: Iterable[int]) -> tuple[bytes, bytes]:
    """Give the key and the record of eight numbers."""
    key = tally_key(folder_id)
    return key, seal(key, _NUMBERS.pack(*numbers))


class Tally:
    """What one change adds to the counts."""

    def __init__(self) -> None:
        self._added: dict[int, list[int]] = {}

    def add(self, folders: Iterable[int], tier: int, artifacts: int, size: int) -> None:
        """Count so many more artifacts and bytes in a tier of each of these."""
        for folder_id in folders:
            added = self._added.get(folder_id)
            if added is None:
                added = self._added[folder_id] = list(_NOTHING)
            added[2 * tier] += artifacts
            added[2 * tier + 1] += size

    def mark(self, folders: Iterable[int], held: int, failed: int) -> None:
        """Count so many more held artifacts, and failed ones, in each of these."""
        for folder_id in folders:
            added = self._added.setdefault(folder_id, list(_NOTHING))
            added[6] += held
            added[7] += failed

    def add_totals(self, folder_id: int, totals: Totals, sign: int) -> None:
        """Count all that another folder holds, or take it off."""
        added = self._added.setdefault(folder_id, list(_NOTHING))
        for at, (artifacts, size) in enumerate(totals.tiers):
            added[2 * at] += sign * artifacts
            added[2 * at + 1] += sign * size
        added[6] += sign * totals.held
        added[7] += sign * totals.failed

    def totals(self, reader: Reader, folder_id: int) -> Totals:
        """Give what there is with what this change has added so far."""
        numbers = _numbers(reader, folder_id)
        added = self._added.get(folder_id, _NOTHING)
        return _totals([a + b for a, b in zip(numbers, added, strict=True)])

    def write(self, change: Change) -> None:
        """Write what was added; what holds nothing has no record."""
        for folder_id, added in self._added.items():
            if not any(added):
                continue
            numbers = [a + b for a, b in zip(_numbers(change.tx, folder_id), added, strict=True)]
            if min(numbers) < 0:
                raise Damaged(f"count of #{folder_id}", "it would fall below zero")
            if any(numbers):
                change.tx.put(*totals_record(folder_id, numbers))
            else:
                change.tx.delete(tally_key(folder_id))
        self._added.clear()
