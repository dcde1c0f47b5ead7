"""A question that may never be answered, such as one to a network disk that has gone away.

Each is asked in a thread of its own, one at a time: whoever asks again while it is under way waits
for the same answer.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Question", "answers"]

T = TypeVar("T")


class Question(Generic[T]):
    """One question."""

    def __init__(self, ask: Callable[[], T]) -> None:
        """Take what asks; it must not raise."""
        self._ask = ask
        self._lock = threading.Lock()
        self._asking: tuple[threading.Thread, list[T]] | None = None

    def begin(self) -> tuple[threading.Thread, list[T]]:
        """Ask, unless that is under way; give the thread, and where it puts the answer."""
        with self._lock:
            if self._asking is None or not self._asking[0].is_alive():
                answer: list[T] = []
                thread = threading.Thread(
                    target=lambda: answer.append(self._ask()), name="kvstate-ask", daemon=True
                )
                thread.start()
                self._asking = thread, answer
            return self._asking


def answers(questions: Sequence[Question[T]], seconds: float) -> list[T | None]:
    """Ask all at once and wait so long for them together; None for what was not answered."""
    begun = [question.begin() for question in questions]
    deadline = time.monotonic() + seconds
    for thread, _ in begun:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [answer[0] if answer else None for _, answer in begun]
