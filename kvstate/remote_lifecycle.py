"""The lifecycle over the daemon's socket: the methods of `kvstate.lifecycle.Lifecycle`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvstate.outcomes import Explanation, Move, Outcome, outcome_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from kvstate.client import Client

__all__ = ["RemoteLifecycle"]


class RemoteLifecycle:
    """The lifecycle in another process. The same methods as `kvstate.lifecycle.Lifecycle`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def policy(self) -> dict[str, Any]:
        """Give the rules in force, as plain data in the shape of the settings file."""
        return dict(self._client.call("lifecycle_policy"))

    def configure(self, **options: Any) -> dict[str, Any]:
        """Change some of the rules, for every process, from now on; give all in force."""
        return dict(self._client.call("lifecycle_configure", options))

    def plan(
        self,
        limit: int | None = None,
        *,
        until_ns: int | None = None,
        after: tuple[int, int] | None = None,
    ) -> Iterator[Move]:
        """Give what is due now, or until a moment, in due order; nothing is changed."""
        page = None if after is None else list(after)
        rows = self._client.listing("lifecycle_plan", limit, until_ns, page)
        return (Move(*row) for row in rows)

    def explain(self, name: str) -> Explanation:
        """Say which rule decides over an artifact, what is due when, and what is in the way."""
        name, tier, rule, action, steps, why = self._client.call("lifecycle_explain", name)
        pairs = tuple((step, due_ns) for step, due_ns in steps)
        return Explanation(name, tier, rule, action, pairs, tuple(why))

    def run(
        self,
        *,
        dry_run: bool = False,
        plan: Iterable[Move] | None = None,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Outcome:
        """Do what is due; ``progress`` gets what is done, the total or 0, and the name."""
        moves = None if plan is None else [list(move) for move in plan]
        arguments = (dry_run, moves, progress is not None)
        return outcome_of(self._client.told("lifecycle_run", arguments, progress))

    def next_due_ns(self) -> int | None:
        """Give the earliest moment at which a key or an artifact becomes due."""
        due: int | None = self._client.call("lifecycle_next_due")
        return due

    def last(self) -> Outcome | None:
        """Give what the last run did."""
        row = self._client.call("lifecycle_last")
        return None if row is None else outcome_of(row)

    def summary(self) -> dict[str, object]:
        """Give the tiers, the last run and the next due time."""
        return dict(self._client.call("lifecycle_summary"))
