"""The command line, as processes on a real store and on a real daemon."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from kvstate.codec import SEAL_BYTES, seal
from kvstate.keyspace import journal_key
from kvstate.store import open_store
from tests.harness import wait_for

LARGE = random.Random(8).randbytes(3_000_000)


class Shell:
    """Runs `kvstate` as a shell would."""

    def __init__(self, *door):
        self.door = door
        kept = {k: v for k, v in os.environ.items() if not k.startswith("KVSTATE_")}
        self.environ = kept | {"KVSTATE_REQUIRE_FUSE": "1"}

    def command(self, *arguments):
        return [sys.executable, "-m", "kvstate.cli", *map(str, self.door), *map(str, arguments)]

    def run(self, *arguments, given=b"", **environ):
        return subprocess.run(
            self.command(*arguments),
            check=False,
            input=given,
            capture_output=True,
            timeout=60,
            env=self.environ | environ,
        )

    def __call__(self, *arguments, given=b"", code=0):
        done = self.run(*arguments, given=given)
        assert done.returncode == code, done
        return done.stdout.decode()

    def error(self, *arguments, code):
        done = self.run(*arguments)
        assert done.returncode == code, done
        assert done.stdout == b""
        return done.stderr.decode()


@pytest.fixture(params=["store", "daemon"])
def kvstate(request, tmp_path):
    store, socket = tmp_path / "store", tmp_path / "socket"
    if request.param == "store":
        yield Shell("--store", store)
        return
    log = (tmp_path / "log").open("wb")
    command = [sys.executable, "-m", "kvstated", "--store", store, "--socket", socket]
    daemon = subprocess.Popen(command, stderr=log)
    try:
        wait_for(lambda: b"ready" in (tmp_path / "log").read_bytes(), what="the daemon")
        yield Shell("--socket", socket)
    finally:
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(20) == 0
        log.close()


def test_keys_from_set_to_del(kvstate):
    kvstate("set", "prs", "9fceb02", "1287", "--ttl", "1h")
    kvstate("set", "prs", "4b825dc", '{"n": [1]}', "--type", "json")
    kvstate("set", "prs", "count", "7", "--type", "int")
    kvstate("set", "prs", "piped", "-", given=b"from\nstdin")

    assert kvstate("get", "prs", "9fceb02") == "1287\n"
    assert kvstate("get", "prs", "4b825dc") == '{"n": [1]}\n'
    assert kvstate("get", "prs", "piped") == "from\nstdin\n"
    assert json.loads(kvstate("--json", "get", "prs", "count"))["value"] == 7
    assert json.loads(kvstate("--json", "get", "prs", "9fceb02"))["expires_at"] is not None
    assert kvstate("keys", "prs") == "4b825dc\n9fceb02\ncount\npiped\n"
    assert kvstate("keys", "prs", "4") == "4b825dc\n"
    assert kvstate("keys") == "prs\n"
    kvstate("del", "prs", "count", "piped")
    assert "no key 'count'" in kvstate.error("get", "prs", "count", code=3)
    assert "no key 'count'" in kvstate.error("del", "prs", "count", code=3)
    assert "exists already" in kvstate.error("set", "prs", "4b825dc", "x", "--if-absent", code=4)


def test_artifacts_from_put_to_rm(kvstate, tmp_path):
    (tmp_path / "large").write_bytes(LARGE)
    (tmp_path / "small").write_bytes(b"small")
    kvstate("put", tmp_path / "large", "acme/weekly/large", "--meta", "author=Alice")
    kvstate("put", tmp_path / "large", tmp_path / "small", "acme/both")
    kvstate("put", "-", "acme/weekly/piped", given=b"piped")

    done = kvstate.run("cat", "acme/weekly/large")
    assert done.stdout == LARGE
    assert kvstate("cat", "acme/weekly/piped") == "piped"
    names = [json.loads(line)["name"] for line in kvstate("--json", "ls").splitlines()]
    assert names == ["acme/both/large", "acme/both/small", "acme/weekly/large", "acme/weekly/piped"]
    facts = json.loads(kvstate("--json", "stat", "acme/weekly/large"))
    assert (facts["size"], facts["metadata"]) == (len(LARGE), {"author": "Alice"})
    kvstate("tier", "acme/weekly/large", "cold")
    assert kvstate("ls", "acme", "--tier", "cold").split()[-1] == "acme/weekly/large"
    kvstate("restore", "acme/weekly/large")
    assert kvstate("ls", "--tier", "cold") == ""
    kvstate("mv", "acme/both", "acme/all")
    assert "exists already" in kvstate.error("mv", "acme/all/small", "acme/all/large", code=4)
    kvstate("mv", "acme/all/small", "acme/all/large", "--replace")
    assert kvstate("cat", "acme/all/large") == "small"
    kvstate("rm", "acme/all/large", "acme/weekly/large", "acme/weekly/piped")
    assert kvstate("ls") == ""
    for command in (["cat"], ["stat"], ["rm"], ["restore"]):
        assert "acme/none/x" in kvstate.error(*command, "acme/none/x", code=3)


def test_looking_at_the_store(kvstate):
    kvstate("set", "ns", "k", "v")

    assert "set ns/k = v" in kvstate("journal")
    assert json.loads(kvstate("--json", "journal", "--since", "1"))["name"] == "k"
    assert json.loads(kvstate("--json", "stats"))["revision"] == 2
    assert json.loads(kvstate("--json", "lifecycle", "summary"))["last_run"] is None
    assert kvstate("lifecycle", "plan") == ""
    assert "expired: 0" in kvstate("lifecycle", "run")
    assert json.loads(kvstate("--json", "lifecycle", "run", "--dry-run"))["dry_run"] is True
    assert kvstate("check", "--verify").startswith("clean: ")
    assert json.loads(kvstate("--json", "check"))["clean"] is True


def test_the_journal_is_verified_against_a_tip_that_was_noted(kvstate):
    kvstate("set", "ns", "k", "v")
    said = kvstate("journal", "--verify").splitlines()
    tip = json.loads(kvstate("--json", "journal", "--verify"))["tip"]
    kvstate("set", "ns", "k", "w")

    assert said == ["2 records, revisions 1 to 2", f"tip: {tip}"]
    assert "revisions 1 to 3" in kvstate("journal", "--verify", "--expect", tip)
    assert "altered" in kvstate("journal", "--verify", "--expect", "00" * 31 + "01", code=5)


def test_an_altered_journal_is_exit_5(tmp_path):
    with open_store(tmp_path) as store:
        store.namespace("ns").set("k", "v")
        store.namespace("ns").set("k", "w")
        key = journal_key(2)
        body = store.engine.get(key)[SEAL_BYTES:].replace(b"v", b"x")
        store.engine.txn(lambda tx: tx.put(key, seal(key, body)))
    kvstate = Shell("--store", tmp_path)

    assert "altered: revision 2: link:" in kvstate("journal", "--verify", code=5)
    assert json.loads(kvstate("--json", "journal", "--verify", code=5))["altered"] == 2
    assert "journal: revision 2:" in kvstate("check", code=5)


def test_the_newest_of_the_journal_and_its_audit_trail(kvstate):
    for name in ("acme/w/a", "acme/w/b", "zeta/w/a"):
        kvstate("put", "-", name, given=b"content")
    kvstate("set", "ns", "k", "v")
    kvstate("tier", "acme/w/a", "cold")

    newest = kvstate("journal", "--newest", "2").splitlines()
    audit = [json.loads(line) for line in kvstate("journal", "--audit").splitlines()]
    of_one = kvstate("journal", "--audit", "--artifact", "acme/w/a", "--newest", "1")

    assert ["set ns/k = v" in newest[0], "move acme/w/a" in newest[1]] == [True, True]
    assert [record["event_type"] for record in audit] == ["written"] * 3 + ["promoted_to_cold"]
    assert json.loads(of_one) == audit[-1]
    assert len(kvstate("journal", "--audit", "--tenant", "acme", "--limit", "2").splitlines()) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["--verify", "--audit"],
        ["--verify", "--limit", "1"],
        ["--expect", "00" * 32],
        ["--verify", "--expect", "00"],
        ["--tenant", "acme"],
        ["--newest", "1", "--limit", "1"],
        ["--newest", "-1"],
    ],
)
def test_what_the_journal_cannot_do_at_once_is_refused(kvstate, arguments):
    kvstate("set", "ns", "k", "v")

    assert kvstate.error("journal", *arguments, code=2).startswith("kvstate: ")


def test_a_watch_prints_each_change_at_once_and_ends_quietly(kvstate):
    kvstate("set", "ns", "a", "1")
    command = kvstate.command("--json", "watch", "ns", "--since", "0")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=kvstate.environ
    ) as watch:
        assert json.loads(watch.stdout.readline())["name"] == "a"
        kvstate("set", "ns", "b", "2")
        assert json.loads(watch.stdout.readline())["value"] == "2"
        watch.send_signal(signal.SIGINT)
        assert watch.wait(20) == 130
        assert watch.stderr.read() == b""


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["bogus"],
        ["get", "ns"],
        ["set", "ns", "k", "v", "--ttl", "soon"],
        ["set", "ns", "k", "v", "--ttl", "0"],
        ["set", "ns", "k", "{", "--type", "json"],
        ["set", "ns", "k", "1.5", "--type", "int"],
        ["set", "a/b", "k", "v"],
        ["set", "ns", "k\n", "v"],
        ["set", "ns", b"\xff", "v"],
        ["put", "-", "a/b"],
        ["put", "-", "a/../c"],
        ["tier", "a/b/c", "frozen"],
        ["put", "/", "a/b/c"],
        ["--store", "x", "--socket", "y", "keys"],
    ],
)
def test_what_cannot_be_meant_is_a_usage_error_in_one_message(tmp_path, arguments):
    shell = Shell("--store", tmp_path / "store")
    done = subprocess.run(
        [*shell.command(), *arguments], check=False, input=b"x", capture_output=True, timeout=60
    )

    assert done.returncode == 2
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr
    assert done.stderr.strip()


def test_a_closed_pipe_ends_it_quietly(tmp_path):
    with open_store(tmp_path / "store") as store:
        store.namespace("ns").set_many({f"k{n:06}": n for n in range(20_000)})
    shell = Shell("--store", tmp_path / "store")

    with subprocess.Popen(
        shell.command("keys", "ns"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout.readline() == b"k000000\n"
        child.stdout.close()
        assert child.wait(20) == 141
        assert child.stderr.read() == b""


def test_a_store_that_is_not_there_is_not_made_by_looking(tmp_path):
    shell = Shell("--store", tmp_path / "none")

    assert "no store" in shell.error("keys", code=3)
    assert list(tmp_path.iterdir()) == []


def test_without_a_daemon_it_says_what_to_give(tmp_path):
    shell = Shell()
    done = shell.run("keys", XDG_RUNTIME_DIR=str(tmp_path))

    assert done.returncode == 6
    assert b"--store DIR" in done.stderr


def test_a_damaged_store_is_found_and_said(tmp_path):
    with open_store(tmp_path / "store") as store:
        store.artifacts.put("t/w/a", LARGE)
    (file,) = (tmp_path / "store/tiers/hot").glob("??/*")
    file.write_bytes(LARGE[:-1] + b"\0")
    shell = Shell("--store", tmp_path / "store")

    assert "file: blob" in shell("check", "--verify", code=5)
    done = shell.run("cat", "t/w/a")
    assert done.returncode == 5
    assert LARGE.startswith(done.stdout)
    assert b"damaged" in done.stderr


def test_settings_are_shown_with_their_origin_and_checked(tmp_path):
    with open_store(tmp_path / "store"):
        (tmp_path / "store/kvstate.toml").write_text("[lifecycle]\nhot_days = 3\n")
    shell = Shell("--store", tmp_path / "store")

    assert f"hot_days = 3  # {tmp_path}/store/kvstate.toml:2" in shell("config", "show")
    assert json.loads(shell("--json", "config", "show"))["lifecycle"]["hot_days"] == 3
    assert shell("config", "validate") == ""
    (tmp_path / "store/kvstate.toml").write_text("[lifecycle]\nhot_dais = 3\n")
    assert "kvstate.toml:2: unknown key" in shell.error("config", "validate", code=2)
    assert "did you mean hot_days" in shell.error("keys", code=2)


@pytest.mark.parametrize(("shell", "sign"), [("bash", "complete -o"), ("zsh", "#compdef kvstate")])
def test_completion_scripts_are_printed(shell, sign):
    assert sign in Shell()("completion", shell)


def test_help_loads_nothing_heavy():
    program = """
import sys
from kvstate.cli import main
try:
    main(["--help"])
except SystemExit:
    print(*sys.modules, file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60
    )

    loaded = set(done.stderr.split())
    assert "usage: kvstate" in done.stdout
    assert not loaded & {"lmdb", "cbor2", "msgspec", "tqdm", "json", "typing", "pathlib", "socket"}


def test_progress_is_for_terminals_only(tmp_path):
    (tmp_path / "large").write_bytes(LARGE)

    done = Shell("--store", tmp_path / "store").run("put", tmp_path / "large", "a/b/c")

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_slow_upload_shows_a_bar_on_a_terminal(tmp_path):
    """A pipe that gives its bytes slowly; standard error is a terminal."""
    leader, follower = os.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    shell = Shell("--store", tmp_path / "store")
    with subprocess.Popen(
        shell.command("put", "-", "a/b/c"), stdin=subprocess.PIPE, stderr=follower
    ) as child:
        os.close(follower)
        os.set_blocking(leader, False)
        deadline = time.monotonic() + 30
        shown = b""
        while b"a/b/c" not in shown and time.monotonic() < deadline:
            child.stdin.write(bytes(1 << 20))
            child.stdin.flush()
            try:
                shown += os.read(leader, 4096)
            except BlockingIOError:
                wait_for(lambda: True)
                time.sleep(0.05)
        child.stdin.close()
        assert child.wait(30) == 0
    os.close(leader)

    assert b"a/b/c" in shown
