"""When the next worker begins after one has died: at once, later, or never. Decided purely.

A worker that is killed from outside is not to blame, and readers wait for the next one: it begins
at once, unless that goes on and on (the kernel, when memory is short). One that ends by itself
again and again, soon after it began, will do so for ever: a request that it cannot survive is asked
again of each. After so many in a row the mount is given up rather than left hanging.
"""

from __future__ import annotations

from typing import Final

__all__ = ["FAILURES_MAX", "STEADY_SECONDS", "Restarts"]

FAILURES_MAX: Final = 10
STEADY_SECONDS: Final = 10.0
"""A worker that served this long was a good one: counting begins anew."""
_QUICK_SECONDS: Final = 1.0
_FREE: Final = 3
_PAUSE_SECONDS: Final = 0.05
_LONGEST_SECONDS: Final = {True: 1.0, False: 5.0}
"""How long a pause may be, after one that was killed and after one that ended by itself."""


class Restarts:
    """Counts how workers die."""

    def __init__(self) -> None:
        self.failures = 0
        """How many ended by themselves, one after the other, without having served for long."""
        self._quick = 0

    def died(self, served_seconds: float, *, killed: bool) -> float | None:
        """Give how many seconds to wait for the next one; None: give the mount up.

        ``served_seconds`` is 0 for one that was never ready.
        """
        if served_seconds >= STEADY_SECONDS:
            self.failures = 0
        if served_seconds >= _QUICK_SECONDS:
            self._quick = 0
        self.failures += not killed
        self._quick += 1
        if self.failures > FAILURES_MAX:
            return None
        tried = self._quick - _FREE
        return min(_PAUSE_SECONDS * 2.0**tried, _LONGEST_SECONDS[killed]) if tried > 0 else 0.0
