"""What tests share beside fixtures: a clock to set, an engine that runs all again, waiting."""

from __future__ import annotations

import os
import random
import time

import pytest

SECOND = 1_000_000_000
START_NS = 1_700_000_000 * SECOND


class ManualClock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self, at_ns: int = START_NS) -> None:
        self.at_ns = at_ns

    def now_ns(self) -> int:
        return self.at_ns

    def advance(self, seconds: float = 0, *, days: float = 0) -> None:
        self.at_ns += round((seconds + days * 86400) * SECOND)


class _ConflictAtTheEnd(Exception):
    """The commit that never was."""


class RerunEngine:
    """An engine that runs every transaction's function again, at random: retries must not show."""

    def __init__(self, engine, seed: int = 1) -> None:
        self._engine = engine
        self._random = random.Random(seed)

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def txn(self, function):
        def lost(tx):
            function(tx)
            tx.put(b"Zlost", b"")
            raise _ConflictAtTheEnd

        while self._random.random() < 0.5:
            try:
                self._engine.txn(lost)
            except _ConflictAtTheEnd:
                continue
        return self._engine.txn(function)


def wait_for(condition, seconds: float = 20.0, what: str = ""):
    """Wait until the condition gives something true; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what or condition}"
        time.sleep(0.005)
    return found


def within(seconds, change, condition, tries: int = 8):
    """See that a change shows within a bound; a busy machine may need a few tries for one.

    `change(n)` makes a change, `condition(n)` says whether it shows; a bound that does not hold
    fails every time.
    """
    took = []
    for number in range(tries):
        change(number)
        began = time.monotonic()
        wait_for(lambda number=number: condition(number), what="the change to show")
        took.append(time.monotonic() - began)
        if took[-1] < seconds:
            return
    pytest.fail(f"the bound is {seconds} s, but it took {took}")


def fuse_or_skip() -> None:
    """Skip where there is no FUSE; fail where there has to be (KVSTATE_REQUIRE_FUSE=1)."""
    if os.access("/dev/fuse", os.R_OK | os.W_OK):
        return
    if os.environ.get("KVSTATE_REQUIRE_FUSE") == "1":
        pytest.fail("KVSTATE_REQUIRE_FUSE=1, but /dev/fuse cannot be opened")
    pytest.skip("needs /dev/fuse")
