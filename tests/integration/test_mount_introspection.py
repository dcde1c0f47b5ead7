"""What is below `.kvstate/`, looked at with ordinary tools on a real mount."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from tests.harness import wait_for
from tests.integration.mounts import MountProcess, run, shell

pytestmark = pytest.mark.fuse

LARGE = os.urandom(300_000)


@pytest.fixture(scope="module")
def process(tmp_path_factory, adapter):
    process = MountProcess(tmp_path_factory.mktemp("introspection"), adapter)
    try:
        process.start()
        yield process
    finally:
        process.end()
    assert process.problems() == []


@pytest.fixture(scope="module")
def store(process):
    """The same store in this process: what it does is another process' doing to the mount."""
    with process.opened_store() as store:
        store.lifecycle.configure(trash_days=5)
        store.configure("prs", history=10)
        yield store


@pytest.fixture(scope="module")
def own(process, store):
    return process.path / ".kvstate"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def in_trash(own, folder):
    return [own / "trash" / folder / name for name in names(own / "trash" / folder)]


class TestComputedFiles:
    def test_cat_shows_each_whole_and_ls_says_its_size(self, own):
        for name in ("config.toml", "health", "metrics", "stats.json"):
            size = int(run("stat", "-c", "%s", own / name))
            content = run("cat", own / name)
            assert size == len(content) > 0, name
        assert json.loads(run("cat", own / "health"))["status"] == "ok"

    def test_find_and_ls_find_their_way(self, own):
        assert names(own) == [
            *("config.toml", "health", "history", "journal.jsonl", "meta", "metrics"),
            *("stats.json", "trash"),
        ]
        listing = run("ls", "-l", own).decode()
        assert "-r--r--r--" in listing
        assert str(own / "health") in run("find", own, "-name", "health").decode()

    def test_cp_and_tar_take_them_along(self, own, tmp_path):
        run("cp", "-r", own / "health", own / "metrics", own / "stats.json", tmp_path)
        run("tar", "-cf", tmp_path / "all.tar", "-C", own, "config.toml")
        run("tar", "-xf", tmp_path / "all.tar", "-C", tmp_path)

        assert json.loads((tmp_path / "health").read_bytes())["problems"] == []
        assert (tmp_path / "metrics").read_bytes().startswith(b"# HELP kvstate_")
        assert (tmp_path / "config.toml").read_bytes() == (own / "config.toml").read_bytes()
        assert json.loads((tmp_path / "stats.json").read_bytes())["page_bytes"] > 0

    def test_the_metrics_count_what_this_mount_does(self, own, process):
        def counted(what):
            lines = (own / "metrics").read_text().splitlines()
            found = [line for line in lines if line.startswith(f"kvstate_mount_{what}")]
            return float(found[0].rpartition(" ")[2]) if found else 0

        opens = counted('operations_total{operation="open"}')
        shell("cat none", cwd=process.path / "all", code=1)
        shell("cat health health health", cwd=own)

        wait_for(
            lambda: counted('operations_total{operation="open"}') >= opens + 3, what="the opens"
        )
        assert counted('errors_total{errno="ENOENT"') >= 1

    def test_they_cannot_be_changed(self, own):
        for line in ("echo x > health", "echo x >> metrics", "truncate -s 0 config.toml"):
            assert shell(line, cwd=own, code=1) == b""
        for line in ("rm -f health", "mkdir new", "mv health h", "touch new", "rm -rf history/prs"):
            assert shell(line, cwd=own, code=1) == b""

        assert json.loads((own / "health").read_bytes())["status"] == "ok"


def test_tail_follows_the_journal(own, store, tmp_path):
    out = tmp_path / "out"
    with out.open("wb") as target:
        tail = subprocess.Popen(["tail", "-n", "1", "-f", own / "journal.jsonl"], stdout=target)
    try:
        wait_for(out.read_bytes, what="the last line")
        for key in ("one", "two", "three"):
            store.namespace("journal").set(key, 1)
            wait_for(lambda key=key: f'"{key}"' in out.read_text(), what=f"the line of {key}")
    finally:
        tail.kill()
        tail.wait(20)

    assert all(json.loads(line) for line in out.read_text().splitlines())


class TestHistory:
    def test_cat_and_diff_show_what_a_key_was(self, own, process, store):
        first = store.namespace("prs").set("9fceb02", {"state": "open"})
        second = store.namespace("prs").set("9fceb02", {"state": "merged"})
        folder = own / "history/prs/9fceb02"

        assert names(folder) == [str(first), str(second)]
        assert json.loads(run("cat", folder / str(first))) == {"state": "open"}
        difference = run("diff", folder / str(first), folder / str(second), code=1).decode()
        assert '<   "state": "open"' in difference
        run("cmp", folder / str(second), process.path / "state/prs/9fceb02")

    def test_a_version_can_be_copied_back(self, own, process, store):
        revision = store.namespace("prs").set("back", "as it was\n")
        store.namespace("prs").set("back", "as it is\n")

        run("cp", own / f"history/prs/back/{revision}", process.path / "state/prs/back")

        assert store.namespace("prs").get("back") == "as it was\n"


class TestTrash:
    @pytest.mark.parametrize("content", [b"small\n", LARGE], ids=["small", "large"])
    def test_mv_brings_an_artifact_back(self, own, process, content, request):
        workflow = process.path / "all/acme" / request.node.callspec.id
        workflow.mkdir(parents=True)
        (workflow / "report.md").write_bytes(content)
        run("rm", workflow / "report.md")
        folder = f"acme/{request.node.callspec.id}"

        (path,) = in_trash(own, folder)
        assert path.name.startswith("report.md~")
        assert path.read_bytes() == content
        run("mv", path, workflow / "report.md")

        assert (workflow / "report.md").read_bytes() == content
        wait_for(lambda: not (own / "trash" / folder).exists(), what="the folder to be gone")

    def test_mv_into_another_tier_copies_it_there(self, own, process, store):
        store.artifacts.put("acme/tiers/a", LARGE, tier="cold")
        store.artifacts.delete("acme/tiers/a")
        (process.path / "warm/acme/tiers").mkdir(parents=True)
        (path,) = in_trash(own, "acme/tiers")

        run("mv", path, process.path / "warm/acme/tiers/a")

        assert store.artifacts.get("acme/tiers/a") == LARGE
        assert store.artifacts.stat("acme/tiers/a").tier == "warm"
        assert not path.exists()

    def test_rm_lets_it_go_for_good(self, own, process, store):
        workflow = process.path / "all/gone/w/deep"
        workflow.mkdir(parents=True)
        for name in ("a", "b", "c"):
            (workflow / name).write_bytes(LARGE)
        run("rm", "-r", process.path / "all/gone")
        assert len(run("find", own / "trash/gone", "-type", "f").splitlines()) == 3

        run("rm", "-r", own / "trash/gone")

        assert not [each for each in store.artifacts.trash() if each.name.startswith("gone/")]
        assert "gone" not in names(own / "trash")

    def test_attributes_say_why(self, own, store):
        store.artifacts.put("acme/why/a", b"x")
        store.artifacts.delete("acme/why/a", reason="tidying")
        (path,) = in_trash(own, "acme/why")

        assert os.getxattr(path, "user.kvstate.why") == b"tidying"
        assert os.getxattr(path, "user.kvstate.name") == b"acme/why/a"


class TestMeta:
    def test_every_file_has_a_twin_of_its_path(self, own, process, store):
        store.artifacts.put("meta/flow/logs/build.txt", LARGE, metadata={"by": "me"})
        store.namespace("metans").set("a/b", 1, ttl=3600)
        artifact = json.loads(run("cat", own / "meta/all/meta/flow/logs/build.txt"))
        key = json.loads(run("cat", own / "meta/state/metans/a%2Fb"))

        assert artifact["digest"] == store.artifacts.stat("meta/flow/logs/build.txt").digest
        assert artifact["metadata"] == {"by": "me"}
        assert (key["key"], key["type"]) == ("a/b", "int")
        for tree in ("all/meta", "hot/meta", "state/metans"):
            found = run("find", ".", cwd=process.path / tree).splitlines()
            assert sorted(run("find", ".", cwd=own / "meta" / tree).splitlines()) == sorted(found)

    def test_cp_takes_a_whole_tree_of_it(self, own, store, tmp_path):
        store.artifacts.put_many([(f"many/flow/{number:03}", b"x") for number in range(300)])

        run("cp", "-r", own / "meta/all/many", tmp_path)

        copied = sorted((tmp_path / "many/flow").iterdir())
        assert len(copied) == 300
        assert all(json.loads(path.read_bytes())["size"] == 1 for path in copied)


def test_nothing_computed_is_in_the_ordinary_trees(process, store):
    found = run("find", process.path / "all", process.path / "hot", process.path / "state")

    assert not [line for line in found.decode().splitlines() if "~" in line or ".json" in line]
