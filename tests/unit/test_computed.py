"""Computed texts: as old as a second, and the same from a stat to the open after it."""

from __future__ import annotations

import itertools

import pytest

from kvstatefs.computed import Text


@pytest.fixture
def now():
    return [1000.0]


@pytest.fixture
def text(now, clock):
    numbers = itertools.count(1)
    return Text(lambda: b"%d" % next(numbers), clock, lambda: now[0])


def test_it_is_made_anew_when_it_is_a_second_old(text, now):
    first = text.told()
    now[0] += 0.9
    same = text.told()
    now[0] += 0.1

    assert [made.text for made in (first, same, text.told())] == [b"1", b"1", b"2"]


def test_who_opens_it_gets_what_was_told_of_even_if_that_is_old_by_then(text, now):
    text.told()
    now[0] += 0.9
    told = text.told()
    now[0] += 0.9

    assert told.text == b"1"
    assert text.opened() == told


def test_who_opens_it_without_having_asked_gets_a_new_one(text, now):
    text.told()
    now[0] += 1.0

    assert text.opened().text == b"2"


def test_what_was_opened_is_told_next(text):
    assert text.opened() == text.told()


def test_its_time_is_when_it_became_what_it_is(now, clock):
    said = [b"same"]
    text = Text(lambda: said[0], clock, lambda: now[0])
    first = text.told()
    now[0] += 1.0
    clock.advance(60)
    same = text.told()
    now[0] += 1.0
    said[0] = b"other"

    assert same == first
    assert text.told() == (b"other", clock.now_ns())
