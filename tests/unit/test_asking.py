"""Questions that may never be answered."""

from __future__ import annotations

import threading

import pytest

from kvstate.asking import Question, answers
from kvstate.health import health_of
from tests.harness import wait_for


@pytest.fixture
def stuck():
    """Something that does not answer until it is let go."""
    event = threading.Event()
    yield event
    event.set()


def test_what_answers_is_answered_though_another_is_stuck(stuck):
    questions = [Question(lambda: "yes"), Question(lambda: stuck.wait(60) and "late")]

    assert answers(questions[:1], 20) == ["yes"]
    assert answers(questions, 0.2)[1] is None


def test_it_is_asked_once_while_it_is_under_way_and_anew_after_that(stuck):
    asked = []
    question = Question(lambda: (asked.append(1), stuck.wait(60), len(asked))[2])
    assert answers([question, question], 0.05) == [None, None]
    assert answers([question], 0.05) == [None]
    stuck.set()

    assert answers([question], 20) == [1]
    assert answers([question], 20) == [2]


def test_a_tier_that_is_stuck_keeps_nobody_from_the_figures(store, stuck, monkeypatch):
    cold = store._places[2]
    status = cold.status
    monkeypatch.setattr("kvstate.store.ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(store._asked[2], "_ask", lambda: (stuck.wait(60), status())[1])

    found = store.stats()["places"]["cold"]

    assert (found["available"], found["free_bytes"]) == (False, None)
    assert "did not answer" in found["reason"]
    health = health_of(store)
    assert health.status == "degraded"
    assert any("cold" in trouble.why for trouble in health.troubles)
    stuck.set()
    wait_for(lambda: store.stats()["places"]["cold"]["available"], what="the tier to answer")
