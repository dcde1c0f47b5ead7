"""Group commit: who leads, who follows, and that nobody is left behind."""

from __future__ import annotations

import threading

import pytest

from kvstate.engine.groups import GROUP_MAX, Groups


class Recorder:
    """Commits groups and remembers their sizes; the first waits until it is let go."""

    def __init__(self):
        self.sizes = []
        self.go = threading.Event()
        self.entered = threading.Event()

    def commit(self, members):
        self.sizes.append(len(members))
        self.entered.set()
        assert self.go.wait(20)
        for member in members:
            try:
                member.result = member.function(None)
            except ValueError as error:
                member.error = error


def _run_all(groups, recorder, count, work):
    """Let one writer lead and the others queue up behind it."""
    outcomes = {}

    def write(number):
        try:
            outcomes[number] = groups.run(lambda _tx: work(number))
        except Exception as error:  # noqa: BLE001  (it is what the test looks at)
            outcomes[number] = error

    threads = [threading.Thread(target=write, args=(number,)) for number in range(count)]
    threads[0].start()
    assert recorder.entered.wait(20)
    for thread in threads[1:]:
        thread.start()
    while len(groups._queue) < count - 1:
        threading.Event().wait(0.001)
    recorder.go.set()
    for thread in threads:
        thread.join(20)
    return outcomes


def test_who_waits_shares_the_next_group():
    recorder = Recorder()

    outcomes = _run_all(Groups(recorder.commit), recorder, 10, lambda number: number * 2)

    assert outcomes == {number: number * 2 for number in range(10)}
    assert recorder.sizes == [1, 9]


def test_more_than_a_group_can_hold_are_all_done():
    recorder = Recorder()
    count = GROUP_MAX + 50

    outcomes = _run_all(Groups(recorder.commit), recorder, count, lambda number: number)

    assert outcomes == {number: number for number in range(count)}
    assert recorder.sizes == [1, GROUP_MAX, 49]


def test_each_gets_its_own_error():
    recorder = Recorder()

    def work(number):
        if number % 2:
            raise ValueError(number)
        return number

    outcomes = _run_all(Groups(recorder.commit), recorder, 6, work)

    assert [repr(outcomes[n]) for n in range(6)] == [
        "0",
        "ValueError(1)",
        "2",
        "ValueError(3)",
        "4",
        "ValueError(5)",
    ]


def test_an_error_of_the_commit_reaches_all_of_the_group_and_the_next_goes_on():
    failing = [True]

    def commit(members):
        if failing.pop():
            raise OSError("the disk")
        for member in members:
            member.result = member.function(None)

    groups = Groups(commit)
    with pytest.raises(OSError, match="the disk"):
        groups.run(lambda _tx: 1)
    failing.append(False)

    assert groups.run(lambda _tx: 2) == 2


def test_an_interrupted_leader_leaves_nobody_waiting():
    calls = []

    def commit(members):
        calls.append(len(members))
        if len(calls) == 1:
            raise KeyboardInterrupt
        for member in members:
            member.result = member.function(None)

    groups = Groups(commit)
    with pytest.raises(KeyboardInterrupt):
        groups.run(lambda _tx: 1)

    assert groups.run(lambda _tx: 2) == 2
