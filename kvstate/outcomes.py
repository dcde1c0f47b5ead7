"""What a plan, a run and an explanation say: plain values, the same through every door."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kvstate.policy import PURGE, TIERS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from kvstate.tally import Totals

__all__ = ["Counts", "Explanation", "Move", "Outcome", "move_of", "outcome_of", "tiers_of"]

_FAILURES_KEPT: Final = 100


class Move(NamedTuple):
    """One step that is due: an artifact goes to another tier, or is purged, and by which rule.

    ``revision`` is that of the artifact: a saved plan is refused where it has changed.
    """

    name: str
    source: str
    target: str
    due_at_ns: int
    size: int
    id: int
    rule: str
    revision: int


class Outcome(NamedTuple):
    """What a run did (or, with ``dry_run``, would have done).

    ``expired`` counts keys; ``purged`` what is gone or, where there is a trash, in it; ``emptied``
    what left the trash; ``refused`` what a saved plan named and has changed since.
    """

    promoted_to_warm: int
    promoted_to_cold: int
    purged: int
    expired: int
    errors: int
    seconds: float
    dry_run: bool
    at_ns: int
    failures: tuple[tuple[str, str], ...]
    moved_bytes: int = 0
    emptied: int = 0
    refused: int = 0


class Explanation(NamedTuple):
    """Why an artifact is where it is: ``steps`` are (tier or purge, moment), ``why`` is for people.

    ``action`` is what is due now, None for nothing.
    """

    name: str
    tier: str
    rule: str
    action: str | None
    steps: tuple[tuple[str, int], ...]
    why: tuple[str, ...]


class Counts:
    """What a run has done so far."""

    def __init__(self, progress: Callable[[int, int, str], None] | None) -> None:
        self.by = dict.fromkeys((*TIERS, PURGE), 0)
        self.failures: list[tuple[str, str]] = []
        self.errors = 0
        self.bytes = 0
        self.emptied = 0
        self.refused = 0
        self.done = 0
        self._progress = progress

    def did(self, name: str, target: str, size: int) -> None:
        """Count a step."""
        self.by[target] += 1
        self.bytes += size if target != PURGE else 0
        self.tell(name)

    def failed(self, name: str, why: str) -> None:
        """Count a failure."""
        self.errors += 1
        if len(self.failures) < _FAILURES_KEPT:
            self.failures.append((name, why))
        self.tell(name)

    def tell(self, name: str) -> None:
        """Say that something was done; whoever listens may end the run by an exception."""
        self.done += 1
        if self._progress is not None:
            self._progress(self.done, 0, name)


def tiers_of(totals: Totals) -> dict[str, dict[str, int]]:
    """Give what each tier holds, as plain values."""
    return {
        tier: {"artifacts": usage.artifacts, "bytes": usage.bytes}
        for tier, usage in zip(TIERS, totals.tiers, strict=True)
    }


def outcome_of(fields: Sequence[Any]) -> Outcome:
    """Give an outcome from its fields, as a record or a wire has them."""
    outcome = Outcome(*fields)
    return outcome._replace(failures=tuple((name, why) for name, why in outcome.failures))


def move_of(fields: Mapping[str, Any]) -> Move:
    """Give a planned move from a mapping, as a saved plan has it."""
    return Move(**{name: fields[name] for name in Move._fields})
