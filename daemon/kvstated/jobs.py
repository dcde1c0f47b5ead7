"""The lifecycle, run when something is due rather than every so often: APScheduler's only door.

One job with one date: the earliest moment at which a key or an artifact becomes due. Each run, and
each commit that brings that moment forward, sets the date anew. A run never overlaps itself, and
dates that passed while nothing could run (the machine slept) count as one. Far dates are cut to
`LOOK_SECONDS_MAX`, because the wall clock may be set meanwhile; that look costs one index read.
"""

from __future__ import annotations

import logging
import math
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from kvstate.clock import SECOND, datetime_of
from kvstate.errors import StateError

if TYPE_CHECKING:
    from kvstate.store import Store

__all__ = ["Jobs"]

LOOK_SECONDS_MAX: Final = 3600
GAP_SECONDS: Final = 0.1
"""Between two runs at least: what becomes due in between is done in one."""
RETRY_SECONDS: Final = 60
"""What could not be done is tried again after this time, whatever else becomes due."""
SCRUB_EVERY_SECONDS: Final = 60
SCRUB_BYTES_MIN: Final = 1 << 20
SCRUB_SPARE: Final = 1.5
"""Of what a step should read, so that a round ends in time when the daemon was not always up."""
_JOB = "lifecycle"

log = logging.getLogger(__name__)


class _Ending(Exception):
    """The daemon ends: not an error, it ends a run between two of its steps."""


class Jobs:
    """Runs the lifecycle at its due times."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._running = False
        self._stopping = False
        self._armed_ns: int | None = None
        self._not_before_ns = 0
        self._scheduler: Any = BackgroundScheduler(
            timezone=UTC,
            executors={"default": {"type": "threadpool", "max_workers": 2}},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )

    def start(self) -> None:
        """Begin: what is due already runs at once."""
        self._scheduler.start()
        self.arm()
        if self._store.settings.scrub_days:
            self._scheduler.add_job(
                self.scrub, IntervalTrigger(seconds=SCRUB_EVERY_SECONDS), id="scrub"
            )

    def arm(self) -> None:
        """Set the date anew if something is due before it; cheap, called after commits."""
        try:
            due_ns = self._store.lifecycle.next_due_ns()
        except StateError as error:
            log.warning("asking what is due next: %s", error)
            due_ns = None
        now_ns = self._store.clock.now_ns()
        at_ns = now_ns + LOOK_SECONDS_MAX * SECOND
        if due_ns is not None:
            at_ns = min(at_ns, max(due_ns, self._not_before_ns))
        with self._lock:
            if self._running or self._stopping:
                return  # it arms itself when it is done
            if self._armed_ns is not None and self._armed_ns <= at_ns:
                return
            self._armed_ns = at_ns
            date = max(datetime_of(at_ns + 999), datetime.now(UTC))  # never a microsecond early
            self._scheduler.add_job(
                self._run, DateTrigger(date, UTC), id=_JOB, replace_existing=True
            )

    def _run(self) -> None:
        with self._lock:
            if self._running or self._stopping:
                return
            self._running = True
            self._armed_ns = None
        try:
            self._run_due()
        finally:
            with self._lock:
                self._running = False
            self.arm()

    def _run_due(self) -> None:
        now_ns = self._store.clock.now_ns()
        try:
            due_ns = self._store.lifecycle.next_due_ns()
            if due_ns is None or due_ns > now_ns:
                return  # a far date, cut
            with self._store.acting("lifecycle"):
                outcome = self._store.lifecycle.run(progress=self._progress)
            left_ns = self._store.lifecycle.next_due_ns()
        except _Ending:
            return
        except Exception as error:  # the next run may do better; a dead scheduler would not
            log.log(
                logging.WARNING if isinstance(error, StateError) else logging.ERROR,
                "lifecycle: %s",
                error,
                exc_info=not isinstance(error, StateError),
            )
            self._not_before_ns = now_ns + RETRY_SECONDS * SECOND
            return
        if outcome.errors or (left_ns is not None and left_ns <= now_ns):
            self._not_before_ns = now_ns + RETRY_SECONDS * SECOND
            log.warning("lifecycle: %d failed, tried again in %d s", outcome.errors, RETRY_SECONDS)
        else:
            self._not_before_ns = self._store.clock.now_ns() + round(GAP_SECONDS * SECOND)
        log.debug("lifecycle: %s", outcome)

    def scrub(self) -> None:
        """Read some of what is stored: so much that all is read once in its period."""
        settings = self._store.settings
        steps = settings.scrub_days * 86400 / SCRUB_EVERY_SECONDS
        stats = self._store.engine.stats()["used_bytes"]
        content = self._store.artifacts.usage().bytes
        share = math.ceil((stats + content) * SCRUB_SPARE / steps) + SCRUB_BYTES_MIN
        try:
            found = self._store.scrub(
                bytes_max=share, rate=settings.scrub_bytes_per_second, progress=self._progress
            )
        except _Ending:
            return
        except StateError as error:
            log.warning("scrub: %s", error)
            return
        for what, why in found.damaged:
            log.error("scrub: %s: %s", what, why)
        if found.healed:
            log.warning("scrub: %d healed", found.healed)

    def _progress(self, _done: int, _total: int, _name: str) -> None:
        if self._stopping:
            raise _Ending

    @property
    def idle(self) -> bool:
        """Whether no run is under way."""
        return not self._running

    def stop(self) -> None:
        """Run no more; a run under way ends at its next step, which is not waited for here."""
        with self._lock:
            self._stopping = True
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
