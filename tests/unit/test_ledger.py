"""What the kernel knows of a mount outlives whoever writes it down, wherever it is killed."""

from __future__ import annotations

import os
import random
import sys
import threading

import pytest

from kvstatefs.kernel import ledger as ledgers
from kvstatefs.kernel.ledger import Ledger, Replayed, create_descriptors
from kvstatefs.kernel.record_log import SMALLEST

PINS_BYTES = 1 << 16


class Killed(BaseException):
    """Nothing runs after it: as little as a process does after SIGKILL."""


@pytest.fixture
def ledger():
    made = Ledger.create(PINS_BYTES)
    yield made
    made.close()


def contents(ledger):
    return [os.pread(fd, os.fstat(fd).st_size, 0) for fd in ledger.fds]


def replay_of(files):
    """Give what a new process finds in such files."""
    fds = create_descriptors(PINS_BYTES)
    for fd, data in zip(fds, files, strict=True):
        os.ftruncate(fd, 0)
        os.pwrite(fd, data, 0)
    found = Ledger.attach(fds)
    try:
        return found.replay()
    finally:
        found.close()


def found_by_the_next(ledger):
    return replay_of(contents(ledger))


def torn(before, after):
    """Give each state of two files between before and after, when bytes are written in order."""
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        if old != new:
            old += bytes(len(new) - len(old))  # noqa: PLW2901  (as ftruncate does)
            first = next(at for at in range(len(new)) if old[at] != new[at])
            last = max(at for at in range(first, min(first + 4096, len(new))) if old[at] != new[at])
            for at in range(first, last + 1):
                yield [*after[:number], new[:at] + old[at:], *before[number + 1 :]]


def run_until_line(number, function):
    """Run a function and kill it at the n-th line that it runs; say whether it came to its end."""
    left = [number]

    def trace(frame, event, _argument):
        if "kvstatefs" not in frame.f_code.co_filename:
            return None
        if event == "line":
            left[0] -= 1
            if left[0] < 0:
                raise Killed
        return trace

    sys.settrace(trace)
    try:
        function()
    except Killed:
        return False
    finally:
        sys.settrace(None)
    return True


def fill(ledger):
    """Write until the next record has no room, and nothing of it is true any more."""
    while (left := ledger._log.size - ledger._log.end) >= 56:
        ledger.node(8, bytes(min(left - 56, 1 << 16)), 1)
        ledger.forgot(8, 1)


class TestWhatIsFound:
    def test_a_new_one_knows_nothing(self, ledger):
        assert ledger.replay() == Replayed(b"", {}, {})
        assert found_by_the_next(ledger) == Replayed(b"", {}, {})

    def test_all_that_was_written(self, ledger):
        ledger.init(b"agreed")
        ledger.node(1, b"root")
        ledger.node(7, b"a file", 1)
        ledger.looked_up(7, 2)
        ledger.handle(3, b"of a file")

        expected = Replayed(b"agreed", {1: (0, b"root"), 7: (3, b"a file")}, {3: b"of a file"})

        assert ledger.replay() == expected
        assert found_by_the_next(ledger) == expected

    def test_other_facts_of_a_node_keep_its_lookups(self, ledger):
        ledger.node(7, b"a", 5)

        ledger.node(7, b"something else")

        assert found_by_the_next(ledger).nodes == {7: (5, b"something else")}

    def test_a_node_goes_with_its_last_lookup(self, ledger):
        ledger.node(7, b"a", 3)
        ledger.forgot(7, 2)
        assert found_by_the_next(ledger).nodes == {7: (1, b"a")}

        ledger.forgot(7, 1)

        assert ledger.replay().nodes == {}
        assert found_by_the_next(ledger).nodes == {}

    def test_a_number_that_comes_back_is_a_new_node(self, ledger):
        ledger.node(7, b"old", 1)
        ledger.forgot(7, 1)

        ledger.node(7, b"new", 1)

        assert found_by_the_next(ledger).nodes == {7: (1, b"new")}

    def test_what_nobody_knows_may_be_forgotten_and_released(self, ledger):
        ledger.forgot(8, 1)
        ledger.released(9)

        assert found_by_the_next(ledger) == Replayed(b"", {}, {})

    def test_a_handle_goes_when_it_is_released(self, ledger):
        ledger.handle(3, b"x")
        ledger.handle(3, b"y")
        assert found_by_the_next(ledger).handles == {3: b"y"}

        ledger.released(3)

        assert found_by_the_next(ledger).handles == {}

    def test_the_largest_numbers(self, ledger):
        ledger.node((1 << 64) - 1, b"f", (1 << 62))
        ledger.handle((1 << 64) - 1, b"h")

        found = found_by_the_next(ledger)

        assert found.nodes == {(1 << 64) - 1: (1 << 62, b"f")}
        assert found.handles == {(1 << 64) - 1: b"h"}

    def test_the_next_writes_on(self, ledger):
        ledger.node(7, b"a", 1)
        second = Ledger.attach([os.dup(fd) for fd in ledger.fds])
        second.node(8, b"b", 1)
        second.close()

        third = Ledger.attach([os.dup(fd) for fd in ledger.fds])
        third.looked_up(8)

        assert third.replay().nodes == {7: (1, b"a"), 8: (2, b"b")}
        third.close()


class TestDying:
    @pytest.mark.parametrize(
        "write",
        [
            pytest.param(lambda each: each.init(b"new"), id="init"),
            pytest.param(lambda each: each.node(9, b"another node", 1), id="a new node"),
            pytest.param(lambda each: each.node(7, b"b" * 30), id="other facts"),
            pytest.param(lambda each: each.looked_up(7), id="a lookup"),
            pytest.param(lambda each: each.forgot(7, 2), id="the last forget"),
            pytest.param(lambda each: each.handle(4, b"another"), id="a handle"),
            pytest.param(lambda each: each.released(3), id="a release"),
        ],
    )
    def test_within_any_record_it_was_written_or_it_was_not(self, ledger, write):
        ledger.init(b"old")
        ledger.node(7, b"a", 2)
        ledger.handle(3, b"h")
        before, known = contents(ledger), ledger.replay()
        write(ledger)
        after, then = contents(ledger), ledger.replay()

        found = [replay_of(files) for files in torn(before, after)]

        assert known != then
        assert found
        assert all(each in (known, then) for each in found)
        assert replay_of(after) == then

    def test_at_any_line_of_a_rewrite_nothing_is_lost(self):
        line, ended = 0, False
        while not ended:
            ledger = Ledger.create(PINS_BYTES)
            ledger.init(b"agreed")
            ledger.node(7, b"a", 1)
            ledger.handle(3, b"h")
            fill(ledger)

            ended = run_until_line(line, lambda each=ledger: each.looked_up(7))
            found = found_by_the_next(ledger)

            assert (found.init, found.handles) == (b"agreed", {3: b"h"})
            assert found.nodes in ({7: (1, b"a")}, {7: (2, b"a")})
            for fd in ledger.fds:
                os.close(fd)
            line += 1
        assert found.nodes == {7: (2, b"a")}
        assert line > 30

    @pytest.mark.parametrize("seed", range(3))
    def test_what_follows_a_damaged_record_does_not_count(self, ledger, seed):
        chance = random.Random(seed)
        states = [ledger.replay()]
        ends = [ledger._log.end]
        for number in range(1, 40):
            ledger.node(number, chance.randbytes(chance.randrange(50)), chance.randrange(1, 3))
            states.append(ledger.replay())
            ends.append(ledger._log.end)
        files = contents(ledger)
        active = max(range(2), key=lambda each: len(files[each]))

        for number in range(39):
            damaged = list(files)
            at = ends[number]
            damaged[active] = (
                files[active][:at] + bytes([files[active][at] ^ 64]) + files[active][at + 1 :]
            )
            cut = [*files]
            cut[active] = files[active][:at] + bytes(len(files[active]) - at)

            assert replay_of(damaged) == states[number]
            assert replay_of(cut) == states[number]

    def test_files_of_anything_are_a_new_ledger(self):
        chance = random.Random(1)
        files = [chance.randbytes(5000), b"kvledger" + bytes(5000), chance.randbytes(PINS_BYTES)]

        assert replay_of(files) == Replayed(b"", {}, {})


class TestRoom:
    def test_a_million_lookups_of_few_nodes_take_one_log(self, ledger):
        ledger.node(7, b"a")
        for _ in range(300_000):
            ledger.looked_up(7)
            ledger.looked_up(8)
            ledger.forgot(8, 1)

        assert sum(map(len, contents(ledger)[:2])) == SMALLEST
        assert found_by_the_next(ledger).nodes == {7: (300_000, b"a")}

    def test_many_nodes_grow_it_and_forgotten_ones_shrink_it(self, ledger):
        for number in range(1, 50_001):
            ledger.node(number, b"facts of %d" % number, 1)
        large = sum(map(len, contents(ledger)[:2]))
        assert found_by_the_next(ledger) == ledger.replay()
        assert len(ledger.replay().nodes) == 50_000

        for number in range(1, 50_001):
            ledger.forgot(number, 1)
        for _ in range(large // 24):
            ledger.looked_up(60_000)

        assert large > SMALLEST
        assert sum(map(len, contents(ledger)[:2])) == SMALLEST
        assert found_by_the_next(ledger).nodes == {60_000: (large // 24, b"")}

    def test_facts_larger_than_the_log(self, ledger):
        ledger.node(7, b"x" * (3 * SMALLEST), 1)

        assert found_by_the_next(ledger).nodes == {7: (1, b"x" * (3 * SMALLEST))}

    def test_without_memory_it_is_given_up_and_the_next_finds_nothing(self, ledger, monkeypatch):
        ledger.init(b"agreed")
        monkeypatch.setattr(ledgers.os, "ftruncate", raise_no_space)

        for number in range(1, 50_000):
            ledger.node(number, b"f", 1)
        monkeypatch.undo()

        assert not ledger.whole
        assert len(ledger.replay().nodes) == 49_999
        assert found_by_the_next(ledger) == Replayed(b"", {}, {})

    @pytest.mark.parametrize("seed", range(3))
    def test_random_work_is_found_by_the_next_at_any_time(self, ledger, seed):
        chance = random.Random(seed)
        for _ in range(30):
            for _ in range(2000):
                number = chance.randrange(1, 300)
                act = chance.randrange(6)
                if act == 0:
                    ledger.node(number, chance.randbytes(chance.randrange(100)), 1)
                elif act in {1, 2}:
                    ledger.looked_up(number, chance.randrange(1, 4))
                elif act == 3:
                    ledger.forgot(number, chance.randrange(1, 9))
                elif act == 4:
                    ledger.handle(number, chance.randbytes(20))
                else:
                    ledger.released(number)

            assert found_by_the_next(ledger) == ledger.replay()


def raise_no_space(*_arguments):
    raise OSError(28, "No space left on device")


def test_threads_may_write_together(ledger):
    def work(first):
        for number in range(first, first + 3000):
            ledger.node(number, b"f", 1)
            ledger.looked_up(5)

    ledger.node(5, b"five")
    threads = [threading.Thread(target=work, args=(10_000 * each,)) for each in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    found = found_by_the_next(ledger)

    assert found == ledger.replay()
    assert len(found.nodes) == 12_001
    assert found.nodes[5] == (12_000, b"five")


class TestPins:
    def test_a_content_is_kept_for_the_next(self, ledger):
        ledger.pin(b"one", b"content")
        ledger.pin(b"empty", b"")

        following = Ledger.attach([os.dup(fd) for fd in ledger.fds])

        assert ledger.pinned(b"one") == following.pinned(b"one") == b"content"
        assert following.pinned(b"empty") == b""
        assert following.pinned(b"other") is None
        following.close()

    def test_the_last_that_were_opened_are_kept(self, ledger):
        names = [b"%d" % number for number in range(500)]
        for name in names:
            ledger.pin(name, name * 300)

        following = Ledger.attach([os.dup(fd) for fd in ledger.fds])
        kept = [name for name in names if following.pinned(name) is not None]

        assert kept == names[-len(kept) :]
        assert PINS_BYTES // 2 < sum(len(name) * 300 for name in kept) < PINS_BYTES
        assert all(following.pinned(name) == ledger.pinned(name) for name in names)
        assert all(following.pinned(name) == name * 300 for name in kept)
        following.close()

    def test_what_is_opened_again_and_again_stays(self, ledger):
        for number in range(1000):
            ledger.pin(b"favourite", b"f" * 500)
            ledger.pin(b"%d" % number, b"x" * 500)

        assert ledger.pinned(b"favourite") == b"f" * 500

    def test_one_that_is_too_large_is_not_kept_and_pushes_nothing_out(self, ledger):
        ledger.pin(b"one", b"content")

        ledger.pin(b"large", bytes(PINS_BYTES // 8))

        assert ledger.pinned(b"large") is None
        assert ledger.pinned(b"one") == b"content"

    def test_at_any_line_of_pinning_no_other_bytes_are_found(self):
        ended, line = False, 0
        while not ended:
            ledger = Ledger.create(PINS_BYTES)
            for number in range(20):
                ledger.pin(b"%d" % number, b"%d" % number * 1500)

            ended = run_until_line(line, lambda each=ledger: each.pin(b"new", b"n" * 6000))
            following = Ledger.attach([os.dup(fd) for fd in ledger.fds])

            assert following.pinned(b"new") in {None, b"n" * 6000}
            assert following.pinned(b"19") == b"19" * 1500
            assert all(
                following.pinned(b"%d" % number) in {None, b"%d" % number * 1500}
                for number in range(20)
            )
            following.close()
            for fd in ledger.fds:
                os.close(fd)
            line += 1
        assert line > 10
