"""How often a mount did what: counted by adapters, shown in `.kvstate/metrics`."""

from __future__ import annotations

from collections import defaultdict

__all__ = ["OperationCounts"]


class OperationCounts:
    """Operations by kind (`read`, `lookup`, ...), errors by kind and number (errno).

    An adapter may write ``counts.done["read"] += 1`` itself: one addition in a dictionary, about
    30 ns. Names of files have no place here.
    """

    __slots__ = ("done", "errors")

    def __init__(self) -> None:
        self.done: defaultdict[str, int] = defaultdict(int)
        self.errors: defaultdict[tuple[str, int], int] = defaultdict(int)

    def did(self, kind: str) -> None:
        """Count an operation."""
        self.done[kind] += 1

    def failed(self, kind: str, number: int) -> None:
        """Count an operation's error."""
        self.errors[kind, number] += 1
