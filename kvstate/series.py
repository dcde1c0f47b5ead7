"""Numbers over time: follower counts, sizes, durations. Each point is a key of the namespace.

A point's key is ``KEY@MOMENT`` (UTC, microseconds, ``2026-11-21T10:00:00.000000Z``), so that the
order of the keys is the order of time, a point is a file in the mount, and a series expires, is
watched and is counted like anything else.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from kvstate.clock import datetime_of, seconds_to_ns, time_to_ns
from kvstate.errors import InvalidValue
from kvstate.names import check_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvstate.codec import Value
    from kvstate.state import Entry

__all__ = ["Point", "Series"]

_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII)
_FORM = "%Y-%m-%dT%H:%M:%S.%fZ"


class Point(NamedTuple):
    """A number at a moment (UTC)."""

    at: datetime
    value: Any


class Series:
    """The points under one key of a namespace, oldest first."""

    def __init__(
        self,
        namespace: Any,
        key: str,
        *,
        max_count: int | None = None,
        max_age: float | timedelta | None = None,
    ) -> None:
        """Keep at most ``max_count`` points, each for ``max_age`` seconds from its moment."""
        check_key(_key(key, datetime.now(UTC)))
        if max_count is not None and (
            isinstance(max_count, bool) or not isinstance(max_count, int) or max_count < 1
        ):
            raise InvalidValue("max_count", f"{max_count!r} is no number of points")
        self._namespace = namespace
        self._key = key
        self._max_count = max_count
        self._max_age_ns = None if max_age is None else seconds_to_ns(max_age, "max_age")

    def append(self, value: Any, at: datetime | float | None = None) -> Point:
        """Add a number at a moment (now); one that is there at that moment is replaced.

        A point that is too old already is not kept.
        """
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
            raise InvalidValue("value", f"{type(value).__name__} is no number")
        moment = _moment(self._namespace.now() if at is None else at)
        expires_at = None
        if self._max_age_ns is not None:
            expires_at = moment + timedelta(microseconds=self._max_age_ns // 1000)
        self._namespace.set(_key(self._key, moment), value, expires_at=expires_at)
        if self._max_count is not None:
            self._drop_oldest(self._max_count)
        return Point(moment, value)

    def _drop_oldest(self, keep: int) -> None:
        for entry in list(islice(self._points(reverse=True), keep, None)):
            self._namespace.delete(entry.key)

    def _points(self, *, start: str | None = None, reverse: bool = False) -> Iterator[Entry]:
        """Give the entries that are points of this series, and no other keys that begin alike."""
        prefix = self._key + "@"
        for entry in self._namespace.scan(prefix, start=start, reverse=reverse):
            if _MOMENT.fullmatch(entry.key, len(prefix)):
                yield entry

    def range(
        self, start: datetime | float | None = None, stop: datetime | float | None = None
    ) -> Iterator[Point]:
        """Give the points from ``start`` on, before ``stop``."""
        first = None if start is None else _key(self._key, _moment(start))
        last = None if stop is None else _key(self._key, _moment(stop))
        for entry in self._points(start=first):
            if last is not None and entry.key >= last:
                return
            yield _point(entry.key, entry.value)

    def latest(self) -> Point | None:
        """Give the newest point; None when there is none."""
        for entry in self._points(reverse=True):
            return _point(entry.key, entry.value)
        return None

    def at(self, moment: datetime | float) -> Point | None:
        """Give the newest point that is not after a moment; None when there is none."""
        first = _key(self._key, _moment(moment))
        for entry in self._points(start=first, reverse=True):
            return _point(entry.key, entry.value)
        return None

    def change(self, over: float | timedelta) -> Any:
        """Give by how much the newest point differs from the one that held so long before it.

        The oldest point stands for what was before it; None without two points.
        """
        newest = self.latest()
        if newest is None:
            return None
        span = timedelta(microseconds=seconds_to_ns(over, "over") // 1000)
        before = self.at(newest.at - span) or next(self.range(), None)
        if before is None or before.at == newest.at:
            return None
        try:
            return newest.value - before.value
        except TypeError:  # a Decimal and a float
            return Decimal(str(newest.value)) - Decimal(str(before.value))


def _key(key: str, moment: datetime) -> str:
    return f"{key}@{moment.strftime(_FORM)}"


def _moment(at: datetime | float) -> datetime:
    return datetime_of(time_to_ns(at, "at"))


def _point(key: str, value: Value) -> Point:
    moment = datetime.strptime(key.rpartition("@")[2], _FORM)  # noqa: DTZ007  (it is UTC)
    return Point(moment.replace(tzinfo=UTC), value)
