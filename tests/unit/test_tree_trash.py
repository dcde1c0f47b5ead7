"""`.kvstate/trash/`: what was deleted, to be read, brought back or let go."""

from __future__ import annotations

import errno
import os
import random
import stat

import pytest

from kvstate.clock import datetime_of
from kvstate.errors import Damaged
from kvstate.settings import StoreSettings
from kvstatefs.nodes import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.unit.walker import Walker, refused

TRASH = ".kvstate/trash"


@pytest.fixture
def store(tmp_path, clock, open_checked):
    settings = StoreSettings(rules={"trash_days": 5})
    return open_checked(tmp_path / "store", clock=clock, settings=settings)


@pytest.fixture
def artifacts(store):
    return store.artifacts


@pytest.fixture
def walker(store):
    return Walker(store)


def deleted(artifacts, name, content=b"text", **options):
    artifacts.put(name, content, **options)
    artifacts.delete(name, reason="tidying")


def in_trash(walker, folder="acme/weekly"):
    return [f"{TRASH}/{folder}/{name}" for name in walker.names(f"{TRASH}/{folder}")]


def test_it_is_empty_at_first(walker):
    assert walker.names(TRASH) == []


def test_what_was_deleted_lies_there_with_when_and_can_be_read(walker, artifacts, clock):
    deleted(artifacts, "acme/weekly/logs/build.txt", b"content")

    (path,) = in_trash(walker, "acme/weekly/logs")
    name = path.rpartition("/")[2]

    assert walker.names(TRASH) == ["acme"]
    assert walker.names(f"{TRASH}/acme/weekly") == ["logs"]
    when = datetime_of(clock.now_ns()).strftime("%Y%m%dT%H%M%SZ")
    assert name.startswith(f"build.txt~{when}-")
    assert walker.read(path) == b"content"
    found = walker.stat(path)
    assert (found.size, found.mode, found.content) == (7, stat.S_IFREG | 0o444, None)


def test_several_of_one_name_are_told_apart(walker, artifacts):
    for content in (b"one", b"two", b"three"):
        deleted(artifacts, "acme/weekly/a", content)

    assert {walker.read(path) for path in in_trash(walker)} == {b"one", b"two", b"three"}


def test_attributes_say_why_when_and_until(walker, artifacts, store):
    artifacts.put("acme/weekly/a", b"text")
    walker.tree.setxattr(walker.node("all/acme/weekly/a"), "user.own", b"kept")
    artifacts.delete("acme/weekly/a", reason="tidying")
    trashed = next(iter(artifacts.trash()))

    found = walker.tree.xattrs(walker.node(in_trash(walker)[0]))

    assert found["user.kvstate.why"] == b"tidying"
    assert found["user.kvstate.name"] == b"acme/weekly/a"
    assert found["user.kvstate.deleted"] < found["user.kvstate.until"]
    assert found["user.kvstate.actor"].decode() == trashed.actor
    assert found["user.own"] == b"kept"


class TestBringingBack:
    def test_a_rename_into_all_brings_it_back(self, walker, artifacts, store):
        deleted(artifacts, "acme/weekly/a", metadata={"by": "me"})
        walker.folders("all/acme/weekly")
        (path,) = in_trash(walker)

        walker.rename(path, "all/acme/weekly/a")

        assert walker.read("all/acme/weekly/a") == b"text"
        assert artifacts.stat("acme/weekly/a").metadata == {"by": "me"}
        assert [event.kind for event in store.journal()][-1] == "undelete"
        assert walker.names(TRASH) == []

    def test_it_comes_back_under_any_name_in_its_tier(self, walker, artifacts):
        deleted(artifacts, "acme/weekly/a", tier="cold")
        walker.folders("cold/other/flow/deep")
        (path,) = in_trash(walker)

        walker.rename(path, "cold/other/flow/deep/b")

        assert artifacts.stat("other/flow/deep/b").tier == "cold"

    def test_another_tiers_view_makes_mv_copy_it(self, walker, artifacts):
        deleted(artifacts, "acme/weekly/a", tier="cold")
        walker.folders("hot/acme/weekly")
        (path,) = in_trash(walker)

        with refused(errno.EXDEV):
            walker.rename(path, "hot/acme/weekly/a")
        walker.folders("state/prs")
        with refused(errno.EXDEV):
            walker.rename(path, "state/prs/a")

    def test_what_is_in_the_way_goes_into_the_trash(self, walker, artifacts):
        deleted(artifacts, "acme/weekly/a", b"old")
        artifacts.put("acme/weekly/a", b"new")
        (path,) = in_trash(walker)

        walker.rename(path, "all/acme/weekly/a")

        assert walker.read("all/acme/weekly/a") == b"old"
        assert [walker.read(path) for path in in_trash(walker)] == [b"new"]

    def test_what_is_in_the_way_stays_if_that_is_asked_for_or_it_is_held(self, walker, artifacts):
        deleted(artifacts, "acme/weekly/a", b"old")
        artifacts.put("acme/weekly/a", b"new")
        (path,) = in_trash(walker)
        source, target = walker.place(path), walker.place("all/acme/weekly/a")

        with refused(errno.EEXIST):
            walker.tree.rename(*source, *target, RENAME_NOREPLACE)
        with refused(errno.EINVAL):
            walker.tree.rename(*source, *target, RENAME_EXCHANGE)
        artifacts.hold("acme/weekly/a", "case-17")
        with refused(errno.EPERM):
            walker.rename(path, "all/acme/weekly/a")

        assert walker.read("all/acme/weekly/a") == b"new"
        artifacts.release("acme/weekly/a", "case-17")

    def test_who_writes_what_is_in_the_way_writes_on_and_stores_nothing(self, walker, artifacts):
        deleted(artifacts, "acme/weekly/a", b"old")
        walker.folders("all/acme/weekly")
        writer = walker.create("all/acme/weekly/a")
        writer.write(0, b"never stored")

        walker.rename(in_trash(walker)[0], "all/acme/weekly/a")
        writer.flush()
        writer.release()

        assert walker.read("all/acme/weekly/a") == b"old"

    @pytest.mark.parametrize(
        ("target", "number"),
        [
            ("all/file", errno.EPERM),
            ("all/acme/file", errno.EPERM),
            ("all/acme/weekly/folder", errno.EISDIR),
            ("all/acme/weekly/a:b", errno.EINVAL),
            ("all/acme/weekly/a\udcff", errno.EILSEQ),
            ("all/acme/weekly/" + "x" * 256, errno.ENAMETOOLONG),
            (f"{TRASH}/acme/other", errno.EPERM),
            (f"{TRASH}/file", errno.EPERM),
        ],
    )
    def test_where_it_cannot_be_it_does_not_go(self, walker, artifacts, target, number):
        deleted(artifacts, "acme/weekly/a")
        walker.folders("all/acme/weekly/folder")

        with refused(number):
            walker.rename(in_trash(walker)[0], target)

        assert len(in_trash(walker)) == 1

    def test_a_folder_of_the_trash_and_what_is_not_there_stay(self, walker, artifacts):
        deleted(artifacts, "acme/weekly/a")
        walker.folders("all/acme/weekly")

        with refused(errno.EPERM):
            walker.rename(f"{TRASH}/acme/weekly", "all/acme/weekly/b")
        with refused(errno.ENOENT):
            walker.rename(f"{TRASH}/acme/weekly/none", "all/acme/weekly/b")
        with refused(errno.EXDEV):
            walker.rename("all/acme/weekly", f"{TRASH}/acme/b")


class TestLettingGo:
    def test_rm_lets_it_go_for_good(self, walker, artifacts, store):
        deleted(artifacts, "acme/weekly/a", b"x" * 200_000)
        (path,) = in_trash(walker)
        handle = walker.open(path)

        walker.unlink(path)

        assert list(artifacts.trash()) == []
        assert handle.read(0, 10) == b"x" * 10
        last = list(store.journal())[-1]
        assert (last.kind, last.why) == ("purge", "removed from the trash")
        with refused(errno.ENOENT):
            walker.unlink(path)

    def test_the_folders_that_become_empty_can_be_removed_next(self, walker, artifacts):
        deleted(artifacts, "acme/weekly/deep/a")
        deleted(artifacts, "acme/weekly/deep/b")
        one, two = in_trash(walker, "acme/weekly/deep")
        walker.unlink(one)
        with refused(errno.ENOTEMPTY):
            walker.rmdir(f"{TRASH}/acme/weekly/deep")
        walker.unlink(two)

        assert walker.names(TRASH) == []
        assert walker.names(f"{TRASH}/acme/weekly") == []
        for folder in ("acme/weekly/deep", "acme/weekly", "acme"):
            walker.rmdir(f"{TRASH}/{folder}")
        with refused(errno.ENOENT):
            walker.stat(f"{TRASH}/acme")

    def test_a_file_is_no_folder_and_a_folder_no_file(self, walker, artifacts):
        deleted(artifacts, "acme/weekly/a")
        (path,) = in_trash(walker)

        with refused(errno.ENOTDIR):
            walker.rmdir(path)
        with refused(errno.EISDIR):
            walker.unlink(f"{TRASH}/acme")
        with refused(errno.EISDIR):
            walker.open(f"{TRASH}/acme")
        with refused(errno.ENOTDIR):
            walker.names(path)


def test_nothing_is_let_go_of_a_store_that_is_only_read(walker, artifacts, store):
    deleted(artifacts, "acme/weekly/a")
    reader = Walker(store, read_only=True)
    walker.folders("all/acme/weekly")
    (path,) = in_trash(reader)

    with refused(errno.EROFS):
        reader.unlink(path)
    with refused(errno.EROFS):
        reader.rename(path, "all/acme/weekly/a")
    assert reader.read(path) == b"text"


def test_it_cannot_be_written(walker, artifacts):
    deleted(artifacts, "acme/weekly/a")
    (path,) = in_trash(walker)

    with refused(errno.EACCES):
        walker.open(path, os.O_WRONLY)
    with refused(errno.EACCES):
        walker.set(path, size=0)
    with refused(errno.EPERM):
        walker.set(path, mode=0o777)
    with refused(errno.ENOTSUP):
        walker.tree.setxattr(walker.node(path), "user.kvstate.until", b"x")


def test_changes_by_others_show_at_once(walker, artifacts, clock, store):
    deleted(artifacts, "acme/weekly/a")
    assert len(in_trash(walker)) == 1
    deleted(artifacts, "acme/weekly/b")
    store.namespace("prs").set("unrelated", 1)
    assert len(in_trash(walker)) == 2

    artifacts.undelete("acme/weekly/a")
    assert [path.partition("~")[0] for path in in_trash(walker)] == [f"{TRASH}/acme/weekly/b"]

    clock.advance(days=6)
    store.lifecycle.run()
    assert walker.names(TRASH) == []


def test_a_very_long_name_is_cut_before_what_tells_it_apart(walker, artifacts):
    long = "ä" * 127
    deleted(artifacts, f"acme/weekly/{long}", b"1")
    deleted(artifacts, f"acme/weekly/{long}", b"2")

    paths = in_trash(walker)

    assert {walker.read(path) for path in paths} == {b"1", b"2"}
    assert all(len(path.rpartition("/")[2].encode()) <= 255 for path in paths)
    full = walker.tree.xattrs(walker.node(paths[0]))["user.kvstate.name"]
    assert full.decode() == f"acme/weekly/{long}"


def test_thousands_are_listed_page_by_page(walker, artifacts):
    names = [f"acme/weekly/{number:04}" for number in range(2500)]
    artifacts.put_many([(name, b"x") for name in names])
    for name in names:
        artifacts.delete(name)

    shown = walker.names(f"{TRASH}/acme/weekly")

    assert [name.partition("~")[0] for name in shown] == [f"{number:04}" for number in range(2500)]


def test_a_link_says_what_it_said(walker, artifacts):
    walker.folders("hot/acme/weekly")
    walker.symlink("../target", "hot/acme/weekly/link")
    walker.unlink("hot/acme/weekly/link")
    (path,) = in_trash(walker)

    assert walker.tree.readlink(walker.node(path)) == "../target"
    assert stat.S_ISLNK(walker.stat(path).mode)


def test_a_folders_mode_is_that_of_the_folder_of_this_name(walker, artifacts):
    walker.folders("all/acme/weekly")
    walker.set("all/acme", mode=0o750, uid=1234)
    deleted(artifacts, "acme/weekly/a")
    assert walker.stat(f"{TRASH}/acme").mode == stat.S_IFDIR | 0o750
    assert walker.stat(f"{TRASH}/acme").uid == 1234

    walker.rmdir("all/acme/weekly")
    walker.rmdir("all/acme")

    assert walker.stat(f"{TRASH}/acme").mode == stat.S_IFDIR | 0o700
    assert walker.stat(f"{TRASH}/acme").uid == os.getuid()


def test_damage_is_named_and_not_served(walker, artifacts, store):
    deleted(artifacts, "acme/weekly/a", b"x" * 200_000)
    files = (store.path / "tiers/hot").rglob("*")
    (file,) = [path for path in files if path.is_file() and path.stat().st_size > 1000]
    good = file.read_bytes()
    file.chmod(0o600)
    file.write_bytes(good[:-1] + b"y")
    (path,) = in_trash(walker)

    with pytest.raises(Damaged):
        walker.read(path)

    file.write_bytes(good)
    store.check(repair=True, verify=True)


def test_its_tree_is_that_of_who_looks_for_the_first_time_whatever_happened(
    walker, artifacts, store
):
    chance = random.Random(17)
    names = [f"t{number % 3}/w/{folder}a" for number in range(3) for folder in ("", "x/", "x/y/")]
    for _ in range(150):
        name = chance.choice(names)
        act = chance.choice(["delete", "delete", "undelete", "purge", "look", "other"])
        if act == "delete":
            deleted(artifacts, name)
        elif act == "undelete" and name in {each.name for each in artifacts.trash()}:
            artifacts.undelete(name)
            if chance.random() < 0.5:
                artifacts.delete(name)
            else:
                artifacts.rename(name, f"{name}-{store.revision()}")
        elif act == "purge":
            artifacts.empty_trash(name)
        elif act == "other":
            store.namespace("prs").set("a", 1)
        else:
            assert tree_of(walker) == tree_of(Walker(store))

    assert tree_of(walker) == tree_of(Walker(store))


def tree_of(walker, folder=TRASH):
    found = {}
    for name in walker.names(folder):
        path = f"{folder}/{name}"
        found[path] = walker.stat(path)._replace(accessed_ns=0, modified_ns=0, changed_ns=0)
        if stat.S_ISDIR(found[path].mode):
            found |= tree_of(walker, path)
    return found
