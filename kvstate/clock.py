"""Time as something that is passed in: nothing below reads the wall clock by itself.

All times in the store are nanoseconds since 1970 UTC in 64 signed bits (until the year 2262).
"""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

from kvstate.errors import InvalidValue

__all__ = [
    "NEVER",
    "NS_MAX",
    "SECOND",
    "Clock",
    "SystemClock",
    "datetime_of",
    "deadline_ns",
    "seconds_to_ns",
    "time_to_ns",
]

SECOND = 1_000_000_000
NEVER = 0
"""The stored expiry of what never expires."""
NS_MAX = 2**63 - 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Clock(Protocol):
    """What tells the time."""

    def now_ns(self) -> int:
        """Give nanoseconds since 1970 UTC."""
        ...


class SystemClock:
    """The wall clock of this machine."""

    now_ns = staticmethod(time.time_ns)


def datetime_of(at_ns: int) -> datetime:
    """Give the time as an aware datetime in UTC (microseconds: what datetime can hold)."""
    return _EPOCH + timedelta(microseconds=at_ns // 1000)


def seconds_to_ns(seconds: float | timedelta, what: str) -> int:
    """Give a duration in nanoseconds; `InvalidValue` unless it is positive and fits 64 bits."""
    if isinstance(seconds, timedelta):
        seconds = seconds.total_seconds()
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise InvalidValue(what, f"{seconds!r} is neither seconds nor a timedelta")
    if not 0 < seconds <= NS_MAX / SECOND:
        raise InvalidValue(what, f"{seconds!r} seconds is not between 0 and 292 years")
    return max(1, round(seconds * SECOND))


def time_to_ns(at: datetime | float, what: str) -> int:
    """Give a moment in nanoseconds since 1970; a datetime must know its time zone."""
    if isinstance(at, datetime):
        if at.tzinfo is None:
            raise InvalidValue(what, f"{at!r} has no time zone")
        delta = at - _EPOCH
        at_ns = (delta.days * 86400 + delta.seconds) * SECOND + delta.microseconds * 1000
    elif isinstance(at, bool) or not isinstance(at, int | float):
        raise InvalidValue(what, f"{at!r} is neither a datetime nor seconds since 1970")
    elif not abs(at) <= NS_MAX / SECOND:
        raise InvalidValue(what, f"{at!r} is past the year 2262")
    else:
        at_ns = round(at * SECOND)
    if not 0 < at_ns <= NS_MAX:
        raise InvalidValue(what, f"{at!r} is not between 1970 and 2262")
    return at_ns


def deadline_ns(
    now_ns: int,
    ttl: float | timedelta | None,
    expires_at: datetime | float | None,
) -> int:
    """Give the moment of expiry that ``ttl=`` or ``expires_at=`` asks for, or `NEVER`.

    An infinite ``ttl`` is `NEVER`, too.
    """
    if ttl is not None and expires_at is not None:
        raise InvalidValue("ttl", "give ttl or expires_at, not both")
    if ttl is not None:
        if ttl == math.inf:
            return NEVER
        at_ns = now_ns + seconds_to_ns(ttl, "ttl")
        if at_ns > NS_MAX:
            raise InvalidValue("ttl", f"{ttl!r} from now is past the year 2262")
        return at_ns
    if expires_at is not None:
        return time_to_ns(expires_at, "expires_at")
    return NEVER
