"""git in a workflow: a repository of thousands of objects, made, packed, cloned and checked."""

from __future__ import annotations

import os
import random

import pytest

from tests.integration.mounts import run, shell
from tests.suites.demands import LONG, needs

pytestmark = [pytest.mark.fuse, needs("git")]

COMMITS = 1500 if LONG else 300
LOOSE = 1000 if LONG else 60
PER_COMMIT = 8
IDENTITY = "A U Thor <author@example.org>"
QUIET = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    **{
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "A U Thor"), ("EMAIL", "author@example.org"))
    },
}


def git(folder, *words, code=0):
    return run("git", "-C", folder, *words, code=code, environ=QUIET).decode()


def history(chance):
    """Give what `git fast-import` reads: many commits, each of which changes some of 96 files."""
    lines = []
    for number in range(COMMITS):
        lines += ["commit refs/heads/main", f"committer {IDENTITY} {1_700_000_000 + number} +0000"]
        message = f"Change number {number}"
        lines += [f"data {len(message)}", message]
        for name in chance.sample(range(96), PER_COMMIT):
            text = f"{name} as of {number}\n" * chance.randrange(1, 40)
            lines += [f"M 100644 inline d{name % 12}/f{name}", f"data {len(text)}", text]
    return "\n".join([*lines, "done", ""]).encode()


@pytest.fixture(scope="module")
def repository(mounted, tmp_path_factory):
    """A repository in the mount, its history in one pack, its files checked out."""
    folder = mounted.path / "hot/git/main"
    folder.mkdir(parents=True)
    stream = tmp_path_factory.mktemp("git") / "stream"
    stream.write_bytes(history(random.Random(1)))
    git(folder, "init", "--quiet", "--initial-branch=main")
    shell(f"git fast-import --quiet --done < {stream}", cwd=folder, environ=QUIET)
    git(folder, "checkout", "--quiet", "main")
    return folder


def packed(folder):
    facts = dict(line.split(": ") for line in git(folder, "count-objects", "-v").splitlines())
    return int(facts["in-pack"]), int(facts["count"])


def test_thousands_of_objects_are_there_and_whole(repository):
    objects, _ = packed(repository)

    assert objects > 2500
    assert git(repository, "fsck", "--full", "--strict") == ""
    assert git(repository, "status", "--porcelain") == ""
    assert git(repository, "rev-list", "--count", "HEAD") == f"{COMMITS}\n"


def test_loose_objects_are_added_and_committed(repository):
    folder = repository / "loose"
    folder.mkdir()
    for number in range(LOOSE):
        (folder / f"{number}.txt").write_text(f"loose {number}\n")

    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "Many small files")

    assert packed(repository)[1] >= LOOSE
    assert git(repository, "status", "--porcelain") == ""
    assert git(repository, "show", f"HEAD:loose/{LOOSE - 1}.txt") == f"loose {LOOSE - 1}\n"


def test_gc_packs_all_of_it_and_loses_nothing(repository):
    before = git(repository, "rev-list", "--objects", "--all")

    git(repository, "gc", "--quiet", "--prune=now")

    assert packed(repository)[1] == 0
    assert len(list((repository / ".git/objects/pack").glob("*.pack"))) == 1
    assert sorted(git(repository, "rev-list", "--objects", "--all").split()) == sorted(
        before.split()
    )
    assert git(repository, "fsck", "--full", "--strict") == ""


def test_a_clone_within_the_mount_is_the_same(repository, workflow):
    git(workflow, "clone", "--quiet", repository, "clone")

    assert git(workflow / "clone", "rev-parse", "HEAD") == git(repository, "rev-parse", "HEAD")
    assert git(workflow / "clone", "status", "--porcelain") == ""
    assert git(workflow / "clone", "fsck", "--full") == ""


def test_a_clone_out_of_the_mount_is_the_same(repository, tmp_path):
    git(tmp_path, "clone", "--quiet", "--bare", f"file://{repository}", "bare")

    assert git(tmp_path / "bare", "rev-parse", "HEAD") == git(repository, "rev-parse", "HEAD")
    assert git(tmp_path / "bare", "fsck", "--full") == ""


def test_branches_are_merged_rebased_stashed_and_moved(workflow):
    git(workflow, "init", "--quiet", "--initial-branch=main")
    (workflow / "a").write_text("one\ntwo\nthree\n")
    git(workflow, "add", ".")
    git(workflow, "commit", "--quiet", "-m", "First")
    git(workflow, "switch", "--quiet", "-c", "side")
    (workflow / "a").write_text("one\ntwo\nthree\nfour\n")
    git(workflow, "commit", "--quiet", "-am", "Side")
    git(workflow, "switch", "--quiet", "main")
    assert (workflow / "a").read_text() == "one\ntwo\nthree\n"
    (workflow / "b").write_text("new\n")
    git(workflow, "add", ".")
    git(workflow, "commit", "--quiet", "-m", "Second")

    git(workflow, "merge", "--quiet", "-m", "Merge", "side")
    git(workflow, "mv", "a", "moved")
    git(workflow, "stash", "push", "--quiet")
    assert (workflow / "a").exists()
    git(workflow, "stash", "pop", "--quiet", "--index")

    assert git(workflow, "status", "--porcelain") == "R  a -> moved\n"
    assert (workflow / "moved").read_text() == "one\ntwo\nthree\nfour\n"
    git(workflow, "reset", "--quiet", "--hard", "HEAD~1")
    git(workflow, "rebase", "--quiet", "side")
    assert git(workflow, "log", "--format=%s").split() == ["Second", "Side", "First"]
    assert sorted(path.name for path in workflow.iterdir()) == [".git", "a", "b"]
