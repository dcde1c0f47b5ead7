"""The threads that copy artifacts between tiers, under one rate limit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from kvstate.errors import StateError
from kvstate.pacing import Pace

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from kvstate.journal import Journal

__all__ = ["Workers"]

_JOBS_MAX: Final = 64


class _Done(Protocol):
    def __call__(self, job: Any, error: Exception | None, /, *, did: bool) -> None: ...


class Workers:
    """Threads, and what they have under way: a context manager that waits for all of it.

    ``copy`` does one job and says whether it did; ``done`` is told of each, in this thread.
    """

    def __init__(
        self,
        copy: Callable[[Any, Pace], bool],
        done: _Done,
        journal: Journal,
        rate: float,
        threads: int,
    ) -> None:
        self._copy = copy
        self._done = done
        self._journal = journal
        self._threads = threads
        self._pace = Pace(rate)
        self._pool: ThreadPoolExecutor | None = None
        self._jobs: list[tuple[Any, Future[bool]]] = []

    def submit(self, job: Any) -> None:
        """Let a job be done."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, "kvstate-move")
        self._jobs.append((job, self._pool.submit(self._work, job, self._journal.actor)))
        if len(self._jobs) >= _JOBS_MAX:
            self._collect()

    def _work(self, job: Any, actor: str) -> bool:
        with self._journal.acting(actor):
            return self._copy(job, self._pace)

    def _collect(self) -> None:
        jobs, self._jobs = self._jobs, []
        for job, future in jobs:
            try:
                did = future.result()
            except (StateError, OSError) as error:
                self._done(job, error, did=False)
            else:
                self._done(job, None, did=did)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._collect()
        finally:
            self._pace.end()
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)
