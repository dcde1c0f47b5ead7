"""Every error that kvstate raises on purpose, in one tree.

Grouped by when they occur, so that a caller can catch what it can handle. Constructors take facts;
the message says what happened, to what, and what to do next. The edges translate once, each by one
table: errno in the mount, exit code in the command line, ``code`` on the wire.

    StateError
    ├── InvalidName   (ValueError)   not a name that the store can hold
    ├── InvalidValue  (ValueError)   not a value of the model
    ├── InvalidConfig (ValueError)   a setting that is unknown, of the wrong type or out of range
    ├── NotFound      (KeyError)     nothing lives under this name
    ├── Conflict                     someone changed it first: read again, retry
    │   └── Exists                   the name is taken
    ├── Compacted                    the journal, or a history, does not reach that far back
    ├── Full                         quota or disk: what is full, how much it wants
    │   └── QuotaExceeded            a namespace has as much as it may have
    ├── Damaged                      what was read is not what was written: `kvstate check`
    ├── Incompatible                 written by another version or another kind of machine
    ├── Denied                       the caller may not do this
    │   └── Held                     a hold forbids it: which, and how to release it
    └── Unavailable                  the store, a tier or the daemon does not answer
"""

from __future__ import annotations

__all__ = [
    "Compacted",
    "Conflict",
    "Damaged",
    "Denied",
    "Exists",
    "Full",
    "Held",
    "Incompatible",
    "InvalidConfig",
    "InvalidName",
    "InvalidValue",
    "NotFound",
    "QuotaExceeded",
    "StateError",
    "Unavailable",
    "from_facts",
]


class StateError(Exception):
    """The root: what kvstate raises on purpose. ``facts`` are what the constructor was given."""

    code = "state_error"
    facts: tuple[object, ...]

    def __init__(self, message: str, *facts: object) -> None:
        """Keep the message apart from the facts, so that an edge can carry both."""
        super().__init__(message)
        self.message = message
        self.facts = facts

    def __str__(self) -> str:
        """Say the message as it is (``KeyError`` would quote it)."""
        return self.message

    def __reduce__(self) -> tuple[object, ...]:
        """Survive pickling between processes, whatever the constructor's shape."""
        return (from_facts, (self.code, self.message, self.facts))


class InvalidName(StateError, ValueError):
    """Not a name that the store can hold."""

    code = "invalid_name"

    def __init__(self, kind: str, name: object, why: str) -> None:
        """Name the kind of name, the name and the rule that it breaks."""
        super().__init__(f"{name!r} is no {kind} name: {why}", kind, repr(name), why)


class InvalidValue(StateError, ValueError):
    """Not a value of the model, or an argument that makes no sense."""

    code = "invalid_value"

    def __init__(self, what: str, why: str) -> None:
        """Name what was given and why it cannot be taken."""
        super().__init__(f"{what}: {why}", what, why)


class InvalidConfig(StateError, ValueError):
    """A setting that is unknown, of the wrong type or out of range."""

    code = "invalid_config"

    def __init__(self, source: str, why: str) -> None:
        """Name the file and line, or the variable, and what is wrong there."""
        super().__init__(f"{source}: {why}", source, why)


class NotFound(StateError, KeyError):
    """Nothing lives under this name."""

    code = "not_found"

    def __init__(self, kind: str, name: str) -> None:
        """Name the kind of thing and its name."""
        super().__init__(f"no {kind} {name!r}", kind, name)


class Conflict(StateError):
    """Someone changed it first: read again, retry."""

    code = "conflict"

    def __init__(self, name: str, why: str) -> None:
        """Name the thing and what was met instead of what was expected."""
        super().__init__(f"{name!r}: {why}", name, why)


class Exists(Conflict):
    """The name is taken."""

    code = "exists"

    def __init__(self, kind: str, name: str) -> None:
        """Name what is in the way."""
        StateError.__init__(self, f"{kind} {name!r} exists already", kind, name)


class Compacted(StateError):
    """The journal, or a key's history, does not reach that far back."""

    code = "compacted"

    def __init__(self, asked: int, oldest: int) -> None:
        """Give the revision asked for and the oldest that is still there."""
        super().__init__(
            f"{f'revision {asked}' if asked else 'that time'} is not known any more, {oldest} is "
            f"the oldest revision that is: read the current state and go on from there",
            asked,
            oldest,
        )
        self.oldest = oldest


class Full(StateError):
    """Quota or disk: what is full, how much it wants."""

    code = "full"

    def __init__(self, what: str, why: str) -> None:
        """Name what is full and how to make room."""
        super().__init__(f"{what} is full: {why}", what, why)


class QuotaExceeded(Full):
    """A quota is used up: whose, which, and what was wanted."""

    code = "quota_exceeded"

    def __init__(self, what: str, limit: str, wanted: str) -> None:
        """Name what has the quota, the limit, and what there would be."""
        StateError.__init__(
            self,
            f"{what} may have {limit}, this would make {wanted}: delete some, or raise the quota",
            what,
            limit,
            wanted,
        )


class Damaged(StateError):
    """What was read is not what was written."""

    code = "damaged"

    def __init__(self, what: str, why: str) -> None:
        """Name the record or file and the check that failed."""
        super().__init__(f"{what} is damaged: {why}; run `kvstate check`", what, why)


class Incompatible(StateError):
    """Written by another version or another kind of machine."""

    code = "incompatible"

    def __init__(self, what: str, why: str) -> None:
        """Name the store and what does not fit."""
        super().__init__(f"{what} cannot be opened: {why}", what, why)


class Denied(StateError):
    """The caller may not do this."""

    code = "denied"

    def __init__(self, what: str, why: str) -> None:
        """Name the act and the rule against it."""
        super().__init__(f"{what} is denied: {why}", what, why)


class Held(Denied):
    """A hold forbids it."""

    code = "held"

    def __init__(self, act: str, name: str, cases: str) -> None:
        """Name the act, the artifact and the cases that hold it."""
        StateError.__init__(
            self,
            f"{act} {name!r} is denied: it is held by {cases}; release it first",
            act,
            name,
            cases,
        )


class Unavailable(StateError):
    """The store, a tier or the daemon does not answer; ``retry`` says whether waiting can help."""

    code = "unavailable"

    def __init__(self, what: str, why: str, *, retry: bool = False) -> None:
        """Name what does not answer and why."""
        super().__init__(f"{what} is unavailable: {why}", what, why)
        self.retry = retry


_BY_CODE: dict[str, type[StateError]] = {
    kind.code: kind
    for kind in (
        StateError,
        InvalidName,
        InvalidValue,
        InvalidConfig,
        NotFound,
        Conflict,
        Exists,
        Compacted,
        Full,
        QuotaExceeded,
        Damaged,
        Incompatible,
        Denied,
        Held,
        Unavailable,
    )
}


def from_facts(code: str, message: str, facts: tuple[object, ...] = ()) -> StateError:
    """Build the error that has this code, as another process raised it."""
    kind = _BY_CODE.get(code, StateError)
    error = kind.__new__(kind)
    StateError.__init__(error, message, *facts)
    if isinstance(error, Compacted):
        oldest = facts[1] if len(facts) > 1 else 0
        error.oldest = oldest if isinstance(oldest, int) else 0
    if isinstance(error, Unavailable):
        error.retry = False
    return error
