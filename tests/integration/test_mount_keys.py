"""Keys as files in a real mount, with the tools that people use on them."""

from __future__ import annotations

import errno
import json
import os
import subprocess

import pytest

import kvstate
from tests.harness import wait_for
from tests.integration.mounts import MountProcess, run

pytestmark = pytest.mark.fuse


@pytest.fixture
def mount(tmp_path, adapter):
    process = MountProcess(tmp_path, adapter)
    process.start()
    yield process
    process.end()


@pytest.fixture
def store(mount):
    with kvstate.open(mount.store_path) as store:
        yield store


def test_the_ttl_is_an_attribute_that_can_be_set_and_removed(mount, store):
    store.namespace("prs").set("9fceb02", 1287)
    file = mount.path / "state/prs/9fceb02"

    run("setfattr", "-n", "user.kvstate.ttl", "-v", "3600", file)
    assert 3590 < store.namespace("prs").ttl("9fceb02") <= 3600
    shown = run("getfattr", "--only-values", "-n", "user.kvstate.ttl", file)
    assert 3590 < float(shown) <= 3600
    os.setxattr(file, "user.kvstate.ttl", b"1h30m")
    assert 5390 < store.namespace("prs").ttl("9fceb02") <= 5400
    os.removexattr(file, "user.kvstate.ttl")
    assert store.namespace("prs").ttl("9fceb02") is None

    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        os.setxattr(file, "user.kvstate.ttl", b"-5")
    with pytest.raises(OSError, match=os.strerror(errno.ENOTSUP)):
        os.setxattr(file, "user.kvstate.revision", b"5")


def test_a_file_is_gone_when_its_key_expires(mount, store):
    store.namespace("prs").set("short", "x", ttl=0.4)
    file = mount.path / "state/prs/short"
    assert file.read_text() == "x"

    wait_for(lambda: not file.exists())

    with pytest.raises(FileNotFoundError):
        file.read_text()


def test_touch_lets_a_key_live_again(mount, store):
    store.configure("prs", ttl=3600)
    store.namespace("prs").set("a", 1, ttl=60)

    run("touch", mount.path / "state/prs/a")

    assert store.namespace("prs").ttl("a") > 3000
    run("touch", mount.path / "state/prs/new")
    assert store.namespace("prs")["new"] == ""
    assert store.namespace("prs").ttl("new") > 3000


def test_mv_takes_the_ttl_and_the_history_along(mount, store):
    store.configure("prs", history=10)
    ns = store.namespace("prs")
    ns["a"] = 1
    ns.set("a", 2, ttl=600)

    run("mv", mount.path / "state/prs/a", mount.path / "state/prs/b")

    assert [version.value for version in ns.history("b")] == [1, 2, 2]
    assert ns.ttl("b") > 500


def test_a_quota_is_edquot(mount, store):
    store.configure("prs", bytes_max=1000, keys_max=2)
    folder = mount.path / "state/prs"
    (folder / "a").write_text("a")
    (folder / "b").write_text("b")

    with pytest.raises(OSError) as caught:  # noqa: PT011  (its number is asserted)
        (folder / "c").write_text("c")
    assert caught.value.errno == errno.EDQUOT
    with pytest.raises(OSError) as caught:  # noqa: PT011
        (folder / "a").write_bytes(b"x" * 2000)
    assert caught.value.errno == errno.EDQUOT
    assert (folder / "a").read_text() == "a"
    (folder / "b").unlink()
    (folder / "c").write_text("c")


def test_a_schema_and_broken_json_are_einval(mount, store):
    store.namespace("prs")["a"] = {"stage": "new"}
    store.configure("prs", schema={"type": "object", "required": ["stage"]})
    file = mount.path / "state/prs/a"

    for text in ('{"stage": ', '{"other": 1}', "[]"):
        with pytest.raises(OSError) as caught:  # noqa: PT011  (its number is asserted)
            file.write_text(text)
        assert caught.value.errno == errno.EINVAL
    file.write_text('{"stage": "done"}')

    assert store.namespace("prs")["a"] == {"stage": "done"}
    assert json.loads(file.read_text()) == {"stage": "done"}


def test_the_time_of_a_file_is_that_of_the_last_set(mount, store):
    store.namespace("prs")["a"] = 1
    entry = store.namespace("prs").entry("a")

    shown = run("ls", "-l", "--time-style=full-iso", mount.path / "state/prs").decode()

    local = subprocess.run(
        ["date", "-d", f"@{entry.updated_at_ns // 10**9}", "+%F %T"],
        capture_output=True,
        check=True,
        text=True,
    ).stdout.strip()
    assert f"{local}.{entry.updated_at_ns % 10**9:09}" in shown


def test_reading_a_file_renews_a_sliding_ttl_and_listing_does_not(mount, store):
    store.configure("prs", ttl=3600, sliding=True)
    ns = store.namespace("prs")
    ns.set("a", "x", ttl=60)
    ns.set("b", "x", ttl=60)

    run("ls", "-l", mount.path / "state/prs")
    run("stat", mount.path / "state/prs/b")
    assert run("cat", mount.path / "state/prs/a") == b"x"

    assert ns.ttl("a") > 3000
    assert ns.ttl("b") <= 60
