"""Exit codes: the one table from what went wrong to what a script sees."""

from __future__ import annotations

from kvstate.errors import (
    Compacted,
    Conflict,
    Damaged,
    InvalidConfig,
    InvalidName,
    InvalidValue,
    NotFound,
    StateError,
    Unavailable,
)

__all__ = [
    "CLOSED_PIPE",
    "CONFLICT",
    "DAMAGED",
    "DONE",
    "FAILED",
    "INTERRUPTED",
    "NOT_FOUND",
    "code_of",
]

DONE = 0
FAILED = 1
USAGE = 2
NOT_FOUND = 3
CONFLICT = 4
DAMAGED = 5
UNAVAILABLE = 6
INTERRUPTED = 130
CLOSED_PIPE = 141

_CODES: tuple[tuple[type[StateError], int], ...] = (
    (InvalidName, USAGE),
    (InvalidValue, USAGE),
    (InvalidConfig, USAGE),
    (NotFound, NOT_FOUND),
    (Compacted, NOT_FOUND),
    (Conflict, CONFLICT),
    (Damaged, DAMAGED),
    (Unavailable, UNAVAILABLE),
)


def code_of(error: StateError) -> int:
    """Give the exit code for an error."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), FAILED)
