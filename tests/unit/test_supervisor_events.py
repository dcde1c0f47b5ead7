"""The supervisor's loop: what is called when descriptors, times and signals come together."""

from __future__ import annotations

import os
import signal
import time

import pytest

from kvstatefs.kernel.events import Events


@pytest.fixture
def events():
    with Events() as made:
        yield made


def test_a_number_that_is_another_descriptors_now_is_not_called_for_what_was(events):
    first, second = os.pipe(), os.pipe()
    calls = []

    def replace(own, other):
        """Close both, as for a worker that died; the numbers are those of the next one's."""
        calls.append(own)
        for pipe in (own, other):
            events.unwatch(pipe[0])
        os.dup2(os.open(os.devnull, os.O_RDONLY), own[0])
        fresh = os.pipe()
        os.dup2(fresh[0], other[0])
        events.watch(other[0], lambda: calls.append("new"))

    events.watch(first[0], lambda: replace(first, second))
    events.watch(second[0], lambda: replace(second, first))
    os.write(first[1], b"x")
    os.write(second[1], b"x")

    events.wait(1)
    events.wait(0)

    assert len(calls) == 1


def test_what_is_due_is_called_once_and_what_was_forgotten_never(events):
    calls = []

    def never():
        calls.append("never")

    events.call_at(time.monotonic() - 1, lambda: calls.append("due"))
    events.call_at(time.monotonic() - 1, never)
    events.call_at(time.monotonic() + 1000, lambda: calls.append("later"))
    events.forget(never)

    events.wait(0)
    events.wait(0)

    assert calls == ["due"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_called_for(events, number):
    calls = []
    before = signal.getsignal(number)

    with events.signals(lambda: calls.append("stop"), lambda: calls.append("child")):
        os.kill(os.getpid(), number)
        events.wait(10)

    assert calls == ["stop"]
    assert signal.getsignal(number) == before
