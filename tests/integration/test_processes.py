"""Several processes that write one store at once, each of which remembers what it wrote last."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice

import pytest

import kvstate
from tests.integration.daemons import ROOTS

WRITER = """
import sys, kvstate
with kvstate.open(sys.argv[1]) as store:
    ns = store.namespace("ns")
    for n in range(60):
        ns.increment("total")
        ns.set(f"{sys.argv[2]}-{n}", {"stage": sys.argv[2]})
"""


@pytest.fixture
def store(tmp_path):
    with kvstate.open(tmp_path / "store") as store:
        yield store
        assert store.check(verify=True).problems == ()


def test_counts_indexes_and_the_journal_stay_right(store):
    store.configure("ns", index=["stage"], history=2)
    before = store.revision()
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, store.path, name],
            env={"PYTHONPATH": ":".join(map(str, ROOTS)), "PATH": ""},
        )
        for name in ("a", "b")
    ]
    ns = store.namespace("ns")
    for n in range(60):
        ns.increment("total")
        ns.set(f"c-{n}", {"stage": "c"})
    assert [writer.wait(60) for writer in writers] == [0, 0]

    assert ns["total"] == 180
    assert len(ns) == ns.used().keys == 181
    assert [sum(1 for _ in ns.find(stage=name)) for name in "abc"] == [60, 60, 60]
    assert store.revision() == before + 360
    assert [event.revision for event in store.journal(before)] == list(
        range(before + 1, before + 361)
    )


def test_a_watch_sees_what_another_process_does(store):
    since = store.revision()
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, store.path, "a"],
        env={"PYTHONPATH": ":".join(map(str, ROOTS)), "PATH": ""},
    )
    events = [event.name for event in islice(store.watch("ns", since), 120)]

    assert writer.wait(60) == 0
    assert events[::2] == ["total"] * 60
    assert events[1::2] == [f"a-{n}" for n in range(60)]
