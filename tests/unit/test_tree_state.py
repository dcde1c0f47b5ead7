"""`state/`: keys as files; without a mount."""

from __future__ import annotations

import errno
import json
import os
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from kvstate.errors import InvalidName, InvalidValue
from kvstatefs.nodes import Caller
from tests.unit.walker import Walker, refused


@pytest.fixture
def walker(store):
    return Walker(store)


@pytest.fixture
def prs(store):
    namespace = store.namespace("prs")
    namespace.set("9fceb02", 1287)
    return namespace


class TestReading:
    @pytest.mark.parametrize(
        ("value", "content"),
        [
            ("text", b"text"),
            ("", b""),
            (b"\xff\x00", b"\xff\x00"),
            (1287, b"1287\n"),
            (None, b"null\n"),
            ({"a": [1, 2.5]}, b'{\n  "a": [\n    1,\n    2.5\n  ]\n}\n'),
        ],
    )
    def test_a_key_reads_as_text_bytes_or_json(self, walker, prs, value, content):
        prs.set("key", value)

        assert walker.read("state/prs/key") == content
        assert walker.stat("state/prs/key").size == len(content)

    def test_namespaces_and_keys_are_listed(self, walker, prs, store):
        prs.set("a/b%c", "x")
        store.make_namespace("empty")

        assert walker.names("state") == ["empty", "prs"]
        assert walker.names("state/prs") == ["9fceb02", "a%2Fb%25c"]

    def test_every_key_of_a_large_namespace_is_listed_once(self, walker, store):
        names = [f"{number:04}" for number in range(1000)]
        store.namespace("many").set_many(dict.fromkeys(names, 1))

        assert walker.names("state/many") == names

    def test_a_key_whose_name_has_a_slash_is_read_under_its_file_name(self, walker, prs):
        prs.set("a/b", "x")

        assert walker.read("state/prs/a%2Fb") == b"x"

    def test_an_expired_key_is_absent_at_once(self, walker, prs, clock):
        prs.set("short", "x", ttl=60)
        walker.read("state/prs/short")

        clock.advance(60)

        assert not walker.exists("state/prs/short")
        assert "short" not in walker.names("state/prs")

    def test_a_reader_keeps_the_value_that_it_opened(self, walker, prs):
        handle = walker.open("state/prs/9fceb02")

        prs.set("9fceb02", 1288)

        assert handle.read(0, 100) == b"1287\n"

    def test_what_is_known_of_a_key_is_in_its_attributes(self, walker, prs):
        revision = prs.set("short", {"a": 1}, ttl=60)

        found = walker.tree.xattrs(walker.node("state/prs/short"))

        assert found == {
            "user.kvstate.revision": str(revision).encode(),
            "user.kvstate.type": b"dict",
            "user.kvstate.expires": b"2023-11-14T22:14:20+00:00",
            "user.kvstate.ttl": b"60.000",
        }


class TestWriting:
    def test_a_new_file_is_text(self, walker, prs):
        walker.write("state/prs/new", "grün\n".encode())

        assert prs["new"] == "grün\n"

    def test_a_new_file_that_is_not_utf8_is_bytes(self, walker, prs):
        walker.write("state/prs/new", b"\xff\x00")

        assert prs["new"] == b"\xff\x00"

    def test_a_structured_key_takes_json(self, walker, prs):
        walker.write("state/prs/9fceb02", b'{"pr": 1288}')

        assert prs["9fceb02"] == {"pr": 1288}

    def test_a_structured_key_takes_nothing_else(self, walker, prs):
        with refused(errno.EINVAL):
            walker.write("state/prs/9fceb02", b"{")
        assert prs["9fceb02"] == 1287

    def test_what_json_has_not_comes_back_the_same(self, walker, prs):
        value = {"at": datetime(2024, 1, 2, tzinfo=UTC), "sum": Decimal("1.10"), "raw": b"\xff"}
        prs.set("key", value)
        content = json.loads(walker.read("state/prs/key")) | {"new": 1}

        walker.write("state/prs/key", json.dumps(content).encode())

        assert prs["key"] == value | {"new": 1}

    def test_text_stays_text_and_bytes_stay_bytes(self, walker, prs):
        prs.set_many({"text": "old", "bytes": b"old"})

        walker.write("state/prs/text", b"1")
        walker.write("state/prs/bytes", b"1")

        assert prs.get_many(["text", "bytes"]) == {"text": "1", "bytes": b"1"}

    def test_a_ttl_outlives_a_write(self, walker, prs):
        prs.set("short", "old", ttl=60)

        walker.write("state/prs/short", b"new")

        assert prs.ttl("short") == 60

    def test_a_value_can_be_appended_to(self, walker, prs):
        prs.set("log", "one\n")

        walker.append("state/prs/log", b"two\n")

        assert prs["log"] == "one\ntwo\n"

    def test_a_value_is_set_when_the_file_is_flushed_and_not_before(self, walker, prs):
        handle = walker.create("state/prs/new")
        handle.write(0, b"text")
        before = prs.get("new")

        handle.flush()

        assert before is None
        assert prs["new"] == "text"

    def test_a_key_that_is_being_made_is_listed(self, walker, prs):
        walker.create("state/prs/new").write(0, b"text")

        assert walker.names("state/prs") == ["9fceb02", "new"]
        assert walker.stat("state/prs/new").size == 4

    def test_a_large_value_is_set_and_read(self, walker, prs):
        text = "x" * 300_000

        walker.write("state/prs/large", text.encode())

        assert prs["large"] == text
        assert walker.read("state/prs/large") == text.encode()

    def test_a_value_that_is_an_artifact_by_size_is_refused(self, walker, prs):
        handle = walker.create("state/prs/huge")

        with refused(errno.EFBIG):
            handle.write(64 << 20, b"x")

    def test_attributes_that_keys_do_not_have_are_taken_and_forgotten(self, walker, prs):
        walker.set("state/prs/9fceb02", mode=0o600, uid=5, modified_ns=1)

        assert walker.read("state/prs/9fceb02") == b"1287\n"


class TestEditors:
    def test_a_new_version_renamed_over_a_key_becomes_what_it_replaces(self, walker, prs):
        prs.set("conf", {"level": 1}, ttl=60)
        walker.write("state/prs/.conf.tmp", b'{"level": 2}')

        walker.rename("state/prs/.conf.tmp", "state/prs/conf")

        assert prs["conf"] == {"level": 2}
        assert prs.ttl("conf") == 60
        assert list(prs) == ["9fceb02", "conf"]

    def test_a_new_version_that_does_not_parse_replaces_nothing(self, walker, prs):
        prs.set("conf", {"level": 1})
        walker.write("state/prs/.conf.tmp", b"{")

        with pytest.raises(InvalidValue):
            walker.rename("state/prs/.conf.tmp", "state/prs/conf")

        assert prs["conf"] == {"level": 1}

    def test_a_key_that_was_renamed_away_keeps_its_kind_and_ttl_when_it_is_written_anew(
        self, walker, prs
    ):
        prs.set("conf", {"level": 1}, ttl=60)
        walker.rename("state/prs/conf", "state/prs/conf~")

        walker.write("state/prs/conf", b'{"level": 2}')
        walker.unlink("state/prs/conf~")

        assert prs["conf"] == {"level": 2}
        assert prs.ttl("conf") == 60

    def test_a_version_renamed_over_a_key_before_it_is_closed_is_stored_there(self, walker, prs):
        prs.set("conf", {"level": 1})
        handle = walker.create("state/prs/.conf.tmp")
        handle.write(0, b'{"level": 2}')
        walker.rename("state/prs/.conf.tmp", "state/prs/conf")
        before = prs["conf"]

        handle.flush()

        assert before == {"level": 1}
        assert prs["conf"] == {"level": 2}
        assert ".conf.tmp" not in prs

    def test_a_key_that_was_there_long_is_moved_as_it_is(self, walker, prs):
        prs.set("old", "1", ttl=30)
        prs.set("conf", {"level": 1}, ttl=60)

        walker.rename("state/prs/old", "state/prs/conf")

        assert prs["conf"] == "1"
        assert prs.ttl("conf") == 30


class TestMakingAndRemoving:
    def test_a_folder_makes_a_namespace(self, walker, store):
        walker.mkdir("state/polly:pr_number")

        assert list(store.namespaces()) == ["polly:pr_number"]

    def test_an_empty_namespace_is_removed(self, walker, store):
        walker.mkdir("state/prs")

        walker.rmdir("state/prs")

        assert list(store.namespaces()) == []

    def test_a_namespace_with_keys_stays(self, walker, prs):
        with refused(errno.ENOTEMPTY):
            walker.rmdir("state/prs")

    def test_removing_a_file_deletes_the_key(self, walker, prs):
        walker.unlink("state/prs/9fceb02")

        assert "9fceb02" not in prs

    def test_a_removed_key_is_not_set_by_who_still_writes_it(self, walker, prs):
        handle = walker.writer("state/prs/9fceb02")
        handle.write(0, b"1")
        walker.unlink("state/prs/9fceb02")

        handle.flush()

        assert "9fceb02" not in prs

    def test_namespaces_do_not_nest(self, walker, prs):
        with pytest.raises(PermissionError):
            walker.mkdir("state/prs/inner")

    def test_keys_live_in_namespaces(self, walker):
        with pytest.raises(PermissionError):
            walker.create("state/key")

    def test_a_namespace_keeps_its_name(self, walker, prs):
        with pytest.raises(PermissionError):
            walker.rename("state/prs", "state/others")

    def test_a_key_moves_to_another_namespace_by_copying(self, walker, prs, store):
        store.make_namespace("others")

        with refused(errno.EXDEV):
            walker.rename("state/prs/9fceb02", "state/others/9fceb02")

    @pytest.mark.parametrize("name", ["100%", "a%2fb", "%41"])
    def test_a_file_name_that_no_key_has_makes_none(self, walker, prs, name):
        with pytest.raises(InvalidName):
            walker.create(f"state/prs/{name}")

        assert not walker.exists(f"state/prs/{name}")

    def test_an_exclusive_create_of_a_key_is_refused(self, walker, prs):
        with pytest.raises(FileExistsError):
            walker.create("state/prs/9fceb02", os.O_WRONLY | os.O_CREAT | os.O_EXCL)


class TestOwners:
    def test_who_makes_a_namespace_owns_it(self, walker):
        walker.tree.mkdir(walker.node("state"), "mine", 0o40750, Caller(7, 8))

        found = walker.stat("state/mine")

        assert (found.mode, found.uid, found.gid) == (0o40750, 7, 8)

    def test_its_keys_have_its_owner_and_its_mode_without_execution(self, walker, store):
        walker.tree.mkdir(walker.node("state"), "mine", 0o1770, Caller(7, 8))
        store.namespace("mine").set("one", 1)

        found = walker.stat("state/mine/one")

        assert (found.mode, found.uid, found.gid) == (0o100660, 7, 8)

    def test_mode_and_owner_of_a_namespace_can_be_changed_and_are_kept(self, walker, store):
        store.namespace("prs").set("one", 1)
        walker.set("state/prs", mode=0o40700)
        walker.set("state/prs", uid=5)
        walker.set("state/prs", gid=6)

        store.configure("prs", history=3)

        for found in (walker.stat("state/prs"), Walker(store).stat("state/prs")):
            assert (found.mode, found.uid, found.gid) == (0o40700, 5, 6)
        assert walker.stat("state/prs/one").mode == 0o100600

    def test_a_change_of_owner_is_one_that_everybody_hears_of(self, walker, store):
        store.namespace("prs").set("one", 1)
        before = store.revision()
        walker.set("state/prs", mode=0o700)
        walker.set("state/prs", mode=0o700)

        events = list(store.journal(before))

        assert [(event.kind, event.scope, event.why) for event in events] == [
            ("configure", "prs", "owner and mode")
        ]

    def test_a_namespace_that_nobody_owns_is_the_mounts(self, walker, store):
        store.namespace("prs").set("one", 1)

        found = walker.stat("state/prs")

        assert (found.mode, found.uid, found.gid) == (0o40755, os.getuid(), os.getgid())

    def test_the_folder_of_the_namespaces_stays_as_it_is(self, walker):
        with refused(errno.EPERM):
            walker.set("state", mode=0o700)
        with refused(errno.EISDIR):
            walker.set("state", size=0)

    def test_a_keys_own_mode_and_owner_are_forgotten(self, walker, store):
        store.namespace("prs").set("one", 1)
        walker.set("state/prs/one", mode=0o600, uid=9)

        assert walker.stat("state/prs/one").mode == 0o100644


def test_a_key_that_expires_says_when(walker, store, clock):
    store.namespace("prs").set("short", 1, ttl=60)
    store.namespace("prs").set("long", 1)

    short, long = walker.stat("state/prs/short"), walker.stat("state/prs/long")

    assert (short.until_ns, short.lasting) == (clock.now_ns() + 60 * 10**9, True)
    assert (long.until_ns, long.lasting) == (0, True)
