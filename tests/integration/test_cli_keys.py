"""The commands on what keys were, what expires, what is found, and what is run for each change."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.harness import wait_for
from tests.integration.daemons import DaemonProcess
from tests.integration.test_cli import Shell


@pytest.fixture(params=["store", "daemon"])
def kvstate(request, tmp_path):
    if request.param == "store":
        yield Shell("--store", tmp_path / "store")
        return
    daemon = DaemonProcess(tmp_path).start()
    yield Shell("--socket", daemon.socket)
    daemon.end()


def test_history_and_rollback(kvstate):
    kvstate("configure", "prs", "history=10", "history_age=7d")
    first = json.loads(kvstate("--json", "set", "prs", "a", "1", "--type", "int"))["revision"]
    kvstate("set", "prs", "a", "two")
    kvstate("del", "prs", "a")

    lines = kvstate("history", "prs", "a").splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["set = 1", "set = two", "delete"]
    assert lines[0].startswith(f"{first} ")
    newest = json.loads(kvstate("--json", "history", "prs", "a", "--limit", "1"))
    assert (newest["kind"], newest["value"]) == ("delete", None)
    assert kvstate("get", "prs", "a", "--revision", first) == "1\n"
    assert "no key" in kvstate.error("get", "prs", "a", code=3)
    kvstate("rollback", "prs", "a", first)
    assert kvstate("get", "prs", "a") == "1\n"
    assert "not known" in kvstate.error("get", "prs", "a", "--revision", "1", code=3)


def test_configure_shows_changes_and_takes_back(kvstate, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object"}')

    facts = json.loads(
        kvstate(
            "--json",
            "configure",
            "prs",
            "ttl=1h30m",
            "sliding=true",
            "index=stage,meta.owner",
            "bytes_max=1MiB",
            "keys_max=3",
            "on_expire=archive",
            f"schema=@{schema}",
        )
    )
    assert facts["ttl"] == 5400
    assert facts["index"] == ["stage", "meta.owner"]
    assert (facts["bytes_max"], facts["keys_max"], facts["sliding"]) == (1 << 20, 3, True)
    assert facts["schema"] == {"type": "object"}
    assert 'is not of type "object"' in kvstate.error("set", "prs", "a", "text", code=2)
    kvstate("configure", "prs", "schema=", "sliding=false", "ttl=")
    shown = json.loads(kvstate("--json", "configure", "prs"))
    assert (shown["ttl"], shown["schema"], shown["used"]) == (None, None, {"keys": 0, "bytes": 0})
    for setting in ("nonsense=1", "ttl=-1", "ttl", "schema=@/nowhere", "on_expire=explode"):
        assert kvstate.error("configure", "prs", setting, code=2)


def test_find(kvstate):
    kvstate("configure", "jobs", "index=stage")
    for number, stage in enumerate(["new", "failed", "failed"]):
        kvstate("set", "jobs", f"j{number}", json.dumps({"stage": stage}), "--type", "json")

    found = kvstate("find", "jobs", "stage=failed").splitlines()

    assert [line.split("\t")[0] for line in found] == ["j1", "j2"]
    limited = kvstate("--json", "find", "jobs", "stage=failed", "--limit", "1")
    assert json.loads(limited)["key"] == "j1"
    assert "no index" in kvstate.error("find", "jobs", "owner=ada", code=2)


def test_incr_and_expire(kvstate):
    assert kvstate("incr", "n", "count") == "1\n"
    assert kvstate("incr", "n", "count", "41") == "42\n"
    assert kvstate.error("incr", "n", "count", "many", code=2)
    kvstate("expire", "n", "count", "1h")
    kvstate("expire", "n", "count", "2h", "--only-if", "longer")
    assert kvstate.error("expire", "n", "count", "1h", "--only-if", "longer", code=4)
    kvstate("expire", "n", "count", "never")
    assert json.loads(kvstate("--json", "get", "n", "count"))["expires_at"] is None
    assert kvstate.error("expire", "n", "nope", "1h", code=3)


def test_set_on_conditions(kvstate):
    revision = json.loads(kvstate("--json", "set", "n", "a", "1", "--ttl", "1h"))["revision"]
    kvstate("set", "n", "a", "2", "--if-revision", revision, "--keep-ttl")
    assert kvstate.error("set", "n", "a", "3", "--if-revision", revision, code=4)
    assert json.loads(kvstate("--json", "get", "n", "a"))["expires_at"] is not None
    kvstate("set", "n", "a", "3", "--ttl", "never")
    assert json.loads(kvstate("--json", "get", "n", "a"))["expires_at"] is None


def test_watch_runs_a_command_for_each_change(kvstate, tmp_path):
    kvstate("set", "prs", "before", "1")
    out = tmp_path / "out"
    command = f'printf "%s %s " "$KVSTATE_EVENT_KIND" "$KVSTATE_EVENT_NAME" >>{out}; cat >>{out}'
    watching = subprocess.Popen(
        kvstate.command("watch", "prs", "--since", "0", "--prefix", "be", "--exec", command),
        env=kvstate.environ,
    )
    try:
        wait_for(lambda: out.exists() and out.read_text().endswith("\n"), what="the first event")
        kvstate("set", "prs", "other", "1")
        kvstate("del", "prs", "before")
        wait_for(lambda: len(out.read_text().splitlines()) == 2, what="the second event")
    finally:
        watching.terminate()
        watching.wait(30)

    first, second = out.read_text().splitlines()
    assert first.startswith("set before {")
    assert json.loads(first.split(" ", 2)[2])["value"] == "1"
    assert second.startswith("delete before {")


def test_a_command_that_fails_is_said_and_the_next_still_runs(kvstate):
    kvstate("set", "prs", "a", "1")
    kvstate("set", "prs", "b", "1")

    done = kvstate.run("watch", "prs", "--since", "0", "--timeout", "0.1", "--exec", "exit 7")

    assert done.returncode == 1
    assert done.stderr.decode().count("the command ended with 7") == 2
