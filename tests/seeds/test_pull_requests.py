"""A bot for pull requests: numbers by commit, check runs, workflow runs, each for a day."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

import kvstate
from kvstated.server import serving

KINDS = ("pr_number", "vuln_check_run_id", "license_check_run_id", "workflow_run_id")
SHA = "9fceb02d0ae598e95dc970b74767f19372d61af8"


@dataclass
class CheckRun:
    id: int
    conclusion: str = ""


class StateService:
    """The bot's own layer: absent is the zero value, everything lives for a day."""

    def __init__(self, store):
        self.spaces = {kind: store.namespace(f"polly:{kind}") for kind in KINDS}
        for kind in KINDS:
            store.configure(f"polly:{kind}", ttl=24 * 3600)

    def put(self, kind, sha, number):
        self.spaces[kind][sha] = number

    def get(self, kind, sha):
        return self.spaces[kind].get(sha, 0)

    def forget(self, sha):
        return [kind for kind in KINDS if self.spaces[kind].delete(sha)]


@pytest.fixture
def state(store):
    return StateService(store)


def test_a_commit_leads_to_its_pull_request(state):
    state.put("pr_number", SHA, 1287)

    assert state.get("pr_number", SHA) == 1287
    assert state.get("pr_number", "unknown") == 0
    assert state.get("workflow_run_id", SHA) == 0


def test_context_lasts_a_day_and_then_reads_as_zero(state, clock):
    state.put("pr_number", SHA, 1287)
    clock.advance(24 * 3600 - 1)
    assert state.get("pr_number", SHA) == 1287

    clock.advance(1)

    assert state.get("pr_number", SHA) == 0


def test_a_new_event_begins_the_day_anew(state, clock):
    state.put("workflow_run_id", SHA, 1)
    clock.advance(23 * 3600)
    state.put("workflow_run_id", SHA, 2)
    clock.advance(23 * 3600)

    assert state.get("workflow_run_id", SHA) == 2


def test_nothing_accumulates(state, store, clock):
    for number in range(500):
        state.put("pr_number", f"{number:040x}", number)
    clock.advance(24 * 3600)

    assert store.lifecycle.run().expired == 500
    assert state.spaces["pr_number"].used() == (0, 0)


def test_all_state_of_a_commit_is_forgotten(state):
    state.put("pr_number", SHA, 1)
    state.put("license_check_run_id", SHA, 2)

    assert state.forget(SHA) == ["pr_number", "license_check_run_id"]
    assert state.forget(SHA) == []


def test_one_webhook_of_two_makes_the_check_run(state, store):
    runs = store.namespace("polly:vuln_check_run_id")
    runs.set(SHA, CheckRun(77), if_absent=True)

    with pytest.raises(kvstate.Conflict):
        runs.set(SHA, CheckRun(78), if_absent=True)

    assert runs.get(SHA, as_type=CheckRun) == CheckRun(77)
    runs.update(SHA, lambda run: {**run, "conclusion": "success"})
    assert runs.get(SHA, as_type=CheckRun) == CheckRun(77, "success")


def test_a_re_run_replaces_the_workflow_only_if_nobody_else_did(state, store):
    runs = store.namespace("polly:workflow_run_id")
    seen = runs.set(SHA, 1)
    runs.set(SHA, 2, if_revision=seen)

    with pytest.raises(kvstate.Conflict):
        runs.set(SHA, 3, if_revision=seen)

    assert runs[SHA] == 2


def test_an_event_handler_can_await_it(tmp_path, clock, open_checked):
    async def handle():
        async with kvstate.aio.connect(tmp_path / "socket") as store:
            await store.configure("polly:pr_number", ttl=24 * 3600)
            prs = store.namespace("polly:pr_number")
            await asyncio.gather(*(prs.set(f"sha{n}", n) for n in range(50)))
            return await prs.get("sha7", 0), await prs.get("sha99", 0), await prs.ttl("sha7")

    with serving(open_checked(tmp_path / "store", clock=clock), tmp_path / "socket"):
        assert asyncio.run(handle()) == (7, 0, 24 * 3600)


def test_one_context_may_live_shorter_and_the_number_0_is_not_absence(state, store, clock):
    prs = store.namespace("polly:pr_number")
    prs.set(SHA, 0, ttl=60)
    assert (SHA in prs, state.get("pr_number", SHA)) == (True, 0)

    clock.advance(60)

    assert (SHA in prs, state.get("pr_number", SHA)) == (False, 0)


def test_what_is_no_check_run_is_refused_with_the_path(state, store):
    runs = store.namespace("polly:vuln_check_run_id")
    runs[SHA] = {"id": "seventy-seven"}

    with pytest.raises(kvstate.InvalidValue, match=r"\$\.id"):
        runs.get(SHA, as_type=CheckRun)


def test_context_survives_a_restart(tmp_path):
    with kvstate.open(tmp_path / "store") as store:
        StateService(store).put("pr_number", SHA, 1287)

    with kvstate.open(tmp_path / "store", create=False) as store:
        prs = store.namespace("polly:pr_number")
        assert (prs[SHA], prs.settings().ttl) == (1287, 24 * 3600)
