"""`.kvstate/meta/`: what is known of each file, at the file's own path."""

from __future__ import annotations

import errno
import json
import os
import stat

import pytest

from tests.unit.walker import Walker, refused

META = ".kvstate/meta"


@pytest.fixture
def walker(store):
    return Walker(store)


def told(walker, path):
    return json.loads(walker.read(f"{META}/{path}"))


def test_an_artifact_is_told_of_in_all_and_in_its_tier(walker, store):
    store.artifacts.put("acme/weekly/report.md", b"text", metadata={"by": "me"}, tier="warm")
    store.artifacts.hold("acme/weekly/report.md", "case-17", reason="audit")
    artifact = store.artifacts.stat("acme/weekly/report.md")

    found = told(walker, "all/acme/weekly/report.md")

    assert found["path"] == "all/acme/weekly/report.md"
    assert (found["kind"], found["stored"]) == ("artifact", True)
    assert (found["digest"], found["tier"], found["size"]) == (artifact.digest, "warm", 4)
    assert found["metadata"] == {"by": "me"}
    assert list(found["holds"]) == ["case-17"]
    assert found["revision"] == artifact.revision
    assert found["due_at"] == artifact.due_at.isoformat()
    assert found["inode"] == walker.stat("all/acme/weekly/report.md").inode
    warm = told(walker, "warm/acme/weekly/report.md")
    assert {**warm, "path": found["path"]} == found
    assert not walker.exists(f"{META}/hot/acme/weekly/report.md")


def test_own_attributes_are_told_computed_ones_are_not_told_twice(walker, store):
    store.artifacts.put("acme/weekly/a", b"text")
    walker.tree.setxattr(walker.node("all/acme/weekly/a"), "user.text", b"kept")
    walker.tree.setxattr(walker.node("all/acme/weekly/a"), "user.bytes", b"\xff")

    found = told(walker, "all/acme/weekly/a")

    assert found["xattrs"] == {"user.bytes": {"$bytes": "/w=="}, "user.text": "kept"}


def test_a_key_is_told_of_without_its_value(walker, store, clock):
    revision = store.namespace("prs").set("a/b", {"secret": 1}, ttl=60)

    found = told(walker, "state/prs/a%2Fb")

    assert (found["kind"], found["namespace"], found["key"]) == ("key", "prs", "a/b")
    assert (found["revision"], found["type"]) == (revision, "dict")
    assert found["expires_at"] == store.namespace("prs").entry("a/b").expires_at.isoformat()
    assert found["size"] == len(walker.read("state/prs/a%2Fb"))
    assert "secret" not in json.dumps(found)
    clock.advance(61)
    with refused(errno.ENOENT):
        walker.stat(f"{META}/state/prs/a%2Fb")


def test_its_folders_and_names_are_those_of_the_trees(walker, store):
    store.artifacts.put("acme/weekly/logs/build.txt", b"text")
    store.artifacts.put("acme/weekly/a.json", b"{}")
    store.namespace("prs").set("a", 1)
    walker.folders("hot/acme/empty")

    assert walker.names(META) == ["all", "cold", "hot", "state", "warm"]
    for folder in ("all", "all/acme", "all/acme/weekly", "all/acme/weekly/logs", "hot/acme/weekly"):
        assert walker.names(f"{META}/{folder}") == walker.names(folder)
    assert walker.names(f"{META}/cold") == []
    assert walker.names(f"{META}/state/prs") == ["a"]
    for _, listed in walker.tree.listing(walker.node(f"{META}/all/acme/weekly")).entries():
        found = walker.stat(f"{META}/all/acme/weekly/{listed.name}")
        assert (listed.inode, stat.S_IFMT(listed.mode)) == (found.inode, stat.S_IFMT(found.mode))


def test_thousands_are_listed(walker, store):
    names = [f"{number:04}" for number in range(1000)]
    store.artifacts.put_many([(f"acme/weekly/{name}", b"x") for name in names])

    assert walker.names(f"{META}/all/acme/weekly") == names


def test_the_size_is_what_a_read_gives_and_the_time_is_the_files(walker, store, clock):
    store.artifacts.put("acme/weekly/a", b"text")
    clock.advance(60)

    found = walker.stat(f"{META}/all/acme/weekly/a")

    assert found.size == len(walker.read(f"{META}/all/acme/weekly/a"))
    assert found.modified_ns == walker.stat("all/acme/weekly/a").modified_ns
    assert (found.content, found.lasting) == (None, False)


def test_who_may_not_read_a_file_may_not_read_its_twin(walker, store):
    store.artifacts.put("acme/weekly/a", b"text")
    walker.set("all/acme", mode=0o700, uid=1234)
    walker.set("all/acme/weekly/a", mode=0o640, gid=77)

    folder, file = walker.stat(f"{META}/all/acme"), walker.stat(f"{META}/all/acme/weekly/a")

    assert (folder.mode, folder.uid) == (stat.S_IFDIR | 0o500, 1234)
    assert (file.mode, file.gid) == (stat.S_IFREG | 0o440, 77)


def test_a_file_that_is_not_stored_yet_is_told_of_as_that(walker, store):
    walker.folders("hot/acme/weekly")
    writer = walker.create("hot/acme/weekly/new")
    writer.write(0, b"12345")

    assert told(walker, "hot/acme/weekly/new")["stored"] is False
    writer.flush()
    writer.write(5, b"678")

    found = told(walker, "hot/acme/weekly/new")
    assert (found["stored"], found["size"]) == (True, 5)
    writer.release()


def test_a_link_is_told_of_and_not_followed(walker):
    walker.folders("hot/acme/weekly")
    walker.symlink("/etc/passwd", "hot/acme/weekly/link")

    assert told(walker, "hot/acme/weekly/link")["kind"] == "link"
    assert stat.S_ISREG(walker.stat(f"{META}/hot/acme/weekly/link").mode)


def test_only_the_trees_have_a_twin(walker):
    for name in (".kvstate", "pipelines", "none", "meta"):
        with refused(errno.ENOENT):
            walker.stat(f"{META}/{name}")


def test_it_cannot_be_changed(walker, store):
    store.artifacts.put("acme/weekly/a", b"text")
    path = f"{META}/all/acme/weekly/a"

    with refused(errno.EACCES):
        walker.open(path, os.O_WRONLY)
    with refused(errno.EACCES):
        walker.set(path, size=1)
    with refused(errno.EPERM):
        walker.unlink(path)
    with refused(errno.EPERM):
        walker.rmdir(f"{META}/all/acme")
    with refused(errno.EPERM):
        walker.rename(path, f"{META}/all/acme/weekly/b")
    with refused(errno.EXDEV):
        walker.rename(path, "all/acme/weekly/b")
    with refused(errno.ENOTDIR):
        walker.stat(path + "/below")
    with refused(errno.EISDIR):
        walker.open(f"{META}/all/acme")
    with refused(errno.ENAMETOOLONG):
        walker.stat(f"{META}/all/acme/weekly/" + "x" * 256)
    with refused(errno.ENOENT):
        walker.stat(f"{META}/all/acme/weekly/\udcff")


def test_nothing_computed_is_in_the_trees(walker, store):
    store.configure("prs", history=3)
    store.namespace("prs").set("a", 1)
    store.artifacts.put("acme/weekly/a", b"text")

    for tree in ("hot", "all"):
        assert walker.names(tree) == ["acme"]
        assert walker.names(f"{tree}/acme/weekly") == ["a"]
    assert walker.names("state") == ["prs"]
    assert walker.names("state/prs") == ["a"]
