"""Progress on standard error: only on a terminal, and only for what takes over a second."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Meter"]

_DELAY_SECONDS = 1.0


class Meter:
    """A progress bar, or nothing at all; the library is loaded only if there may be one."""

    def __init__(self, total: int | None, label: str, *, unit: str = "B") -> None:
        """``total`` is how much there is to do, or None when nobody knows."""
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm  # noqa: PLC0415  (60 ms, only for somebody who looks)

            self._bar = tqdm(
                total=total,
                desc=label[-40:],
                unit=unit or "it",
                unit_scale=True,
                unit_divisor=1024 if unit == "B" else 1000,
                delay=_DELAY_SECONDS,
                leave=False,
                dynamic_ncols=True,
            )

    def add(self, count: int) -> None:
        """Say that so much more is done."""
        if self._bar is not None:
            self._bar.update(count)

    def reach(self, done: int, total: int, _name: str) -> None:
        """Say how much is done, and how much there is (0: nobody knows)."""
        if self._bar is not None:
            self._bar.total = total or None
            self._bar.update(done - self._bar.n)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
