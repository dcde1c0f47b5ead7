"""Artifacts as files: reading, writing, replacing, appending; without a mount."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from kvstate.errors import Exists, NotFound
from tests.unit.walker import Walker, refused

LARGE = os.urandom(200_000)


@pytest.fixture
def walker(store):
    walker = Walker(store)
    walker.folders("hot/acme/weekly")
    return walker


class TestWriting:
    def test_a_file_is_stored_when_it_is_flushed_and_not_before(self, walker, store):
        handle = walker.create("hot/acme/weekly/report.md")
        handle.write(0, b"# Weekly")
        before = store.artifacts.exists("acme/weekly/report.md")

        handle.flush()

        assert not before
        assert store.artifacts.get("acme/weekly/report.md") == b"# Weekly"

    def test_a_file_that_is_never_flushed_leaves_nothing(self, walker, store):
        handle = walker.create("hot/acme/weekly/report.md")
        handle.write(0, LARGE)

        handle.release()

        assert not walker.exists("hot/acme/weekly/report.md")
        assert list(store.artifacts.list()) == []

    def test_an_empty_file_is_stored_by_its_first_flush(self, walker, store):
        walker.create("hot/acme/weekly/empty").flush()

        assert store.artifacts.get("acme/weekly/empty") == b""

    def test_an_empty_file_is_not_stored_while_the_caller_still_has_it_open(self, walker, store):
        handle = walker.create("hot/acme/weekly/report.md")

        handle.flush(lambda: True)

        assert not store.artifacts.exists("acme/weekly/report.md")

    def test_emptying_a_file_and_writing_it_anew_shows_nothing_in_between(self, walker):
        walker.write("hot/acme/weekly/report.md", b"old")
        handle = walker.writer("hot/acme/weekly/report.md")
        handle.flush(lambda: True)
        between = walker.read("hot/acme/weekly/report.md")

        handle.write(0, b"new")
        handle.flush()

        assert between == b"old"
        assert walker.read("hot/acme/weekly/report.md") == b"new"

    def test_readers_see_the_old_content_until_the_new_one_is_stored(self, walker):
        walker.write("hot/acme/weekly/report.md", b"old")
        handle = walker.writer("hot/acme/weekly/report.md")
        handle.write(0, b"new and longer")

        assert walker.read("hot/acme/weekly/report.md") == b"old"

    def test_a_file_that_is_being_made_is_listed_and_has_the_size_so_far(self, walker):
        handle = walker.create("hot/acme/weekly/report.md")
        handle.write(0, b"12345")

        assert walker.names("hot/acme/weekly") == ["report.md"]
        assert walker.stat("hot/acme/weekly/report.md").size == 5

    def test_a_file_that_is_being_made_reads_as_empty(self, walker):
        walker.create("hot/acme/weekly/report.md").write(0, b"12345")

        assert walker.read("hot/acme/weekly/report.md") == b""

    def test_who_reads_a_file_before_it_is_stored_goes_on_reading_once_it_is(self, walker):
        writer = walker.create("hot/acme/weekly/report.md")
        reader = walker.open("hot/acme/weekly/report.md")
        before = reader.read(0, 100)

        writer.write(0, b"12345")
        writer.flush()

        assert before == b""
        assert reader.read(0, 100) == b"12345"

    def test_a_folder_with_a_file_that_is_being_made_cannot_be_removed(self, walker):
        walker.mkdir("hot/acme/weekly/logs")
        walker.create("hot/acme/weekly/logs/1.txt")

        with refused(errno.ENOTEMPTY):
            walker.rmdir("hot/acme/weekly/logs")

    def test_all_writers_of_a_file_share_one_working_copy(self, walker):
        walker.write("hot/acme/weekly/report.md", b"......")
        first = walker.open("hot/acme/weekly/report.md", os.O_RDWR)
        second = walker.open("hot/acme/weekly/report.md", os.O_RDWR)
        first.write(0, b"ab")
        second.write(2, b"cd")

        second.flush()

        assert first.read(0, 100) == b"abcd.."
        assert walker.read("hot/acme/weekly/report.md") == b"abcd.."

    def test_writing_goes_on_after_a_flush_and_is_stored_by_the_next(self, walker):
        handle = walker.create("hot/acme/weekly/report.md")
        handle.write(0, b"one ")
        handle.flush()
        handle.write(4, b"two")

        handle.flush()

        assert walker.read("hot/acme/weekly/report.md") == b"one two"

    def test_a_large_file_can_be_stored_changed_and_stored_again(self, walker):
        handle = walker.create("hot/acme/weekly/blob")
        handle.write(0, LARGE)
        handle.flush()
        handle.write(100_000, b"changed")

        handle.flush()

        assert walker.read("hot/acme/weekly/blob") == (
            LARGE[:100_000] + b"changed" + LARGE[100_007:]
        )

    def test_a_hole_reads_as_zeros(self, walker):
        handle = walker.create("hot/acme/weekly/sparse")
        handle.write(5, b"x")
        handle.flush()

        assert walker.read("hot/acme/weekly/sparse") == b"\0\0\0\0\0x"

    def test_a_closed_file_can_be_truncated_both_ways(self, walker):
        walker.write("hot/acme/weekly/report.md", b"123456")

        walker.set("hot/acme/weekly/report.md", size=3)
        walker.set("hot/acme/weekly/report.md", size=5)

        assert walker.read("hot/acme/weekly/report.md") == b"123\0\0"

    def test_appending_writes_at_the_end_wherever_the_caller_thinks_it_is(self, walker):
        walker.write("hot/acme/weekly/log", b"one\n")
        handle = walker.open("hot/acme/weekly/log", os.O_WRONLY | os.O_APPEND)
        handle.write(0, b"two\n")
        handle.write(0, b"three\n")

        handle.flush()

        assert walker.read("hot/acme/weekly/log") == b"one\ntwo\nthree\n"

    def test_a_write_takes_up_what_another_process_stored_meanwhile(self, walker, store):
        walker.write("hot/acme/weekly/log", b"one\n")
        handle = walker.open("hot/acme/weekly/log", os.O_WRONLY | os.O_APPEND)
        handle.write(0, b"two\n")
        handle.flush()
        store.artifacts.put("acme/weekly/log", b"one\ntwo\nthree\n")

        handle.write(0, b"four\n")
        handle.flush()

        assert walker.read("hot/acme/weekly/log") == b"one\ntwo\nthree\nfour\n"

    def test_what_was_written_to_a_file_that_another_process_removed_is_not_lost(
        self, walker, store
    ):
        walker.write("hot/acme/weekly/report.md", b"old")
        handle = walker.writer("hot/acme/weekly/report.md")
        handle.write(0, b"new")
        store.catalog.remove_file(store.catalog.walk_path(("acme", "weekly")).id, "report.md")

        handle.flush()

        assert walker.read("hot/acme/weekly/report.md") == b"new"

    def test_an_exclusive_create_of_what_is_there_is_refused(self, walker):
        walker.write("hot/acme/weekly/report.md", b"old")

        with pytest.raises(FileExistsError):
            walker.create("hot/acme/weekly/report.md")

    def test_an_exclusive_create_of_what_is_being_made_is_refused(self, walker):
        walker.create("hot/acme/weekly/report.md")

        with pytest.raises(FileExistsError):
            walker.create("hot/acme/weekly/report.md")


class TestReading:
    def test_a_reader_keeps_its_bytes_when_the_file_is_overwritten(self, walker):
        walker.write("hot/acme/weekly/report.md", LARGE)
        handle = walker.open("hot/acme/weekly/report.md")

        walker.write("hot/acme/weekly/report.md", b"new")

        assert handle.read(0, 1 << 20) == LARGE

    def test_a_reader_keeps_its_bytes_when_the_file_is_removed(self, walker):
        walker.write("hot/acme/weekly/report.md", LARGE)
        handle = walker.open("hot/acme/weekly/report.md")

        walker.unlink("hot/acme/weekly/report.md")

        assert handle.read(150_000, 100) == LARGE[150_000:150_100]

    def test_a_reader_keeps_its_bytes_when_another_file_is_renamed_over_it(self, walker):
        walker.write("hot/acme/weekly/report.md", b"old")
        walker.write("hot/acme/weekly/other.md", b"new")
        handle = walker.open("hot/acme/weekly/report.md")

        walker.rename("hot/acme/weekly/other.md", "hot/acme/weekly/report.md")

        assert handle.read(0, 100) == b"old"
        assert walker.read("hot/acme/weekly/report.md") == b"new"

    def test_a_reader_at_the_end_goes_on_in_what_was_appended(self, walker):
        walker.write("hot/acme/weekly/log", b"one\n")
        handle = walker.open("hot/acme/weekly/log")
        handle.read(0, 100)

        walker.append("hot/acme/weekly/log", b"two\n")

        assert handle.read(4, 100) == b"two\n"
        assert handle.attributes().size == 8

    def test_a_reader_at_the_end_does_not_go_on_in_other_content(self, walker):
        walker.write("hot/acme/weekly/log", b"one\n")
        handle = walker.open("hot/acme/weekly/log")

        walker.write("hot/acme/weekly/log", b"another and longer\n")

        assert handle.read(4, 100) == b""


class TestRemovingAndRenaming:
    def test_who_writes_to_a_removed_file_goes_on_and_nothing_is_stored(self, walker, store):
        handle = walker.create("hot/acme/weekly/report.md", os.O_RDWR | os.O_CREAT)
        handle.write(0, b"one")
        walker.unlink("hot/acme/weekly/report.md")
        handle.write(3, b"two")
        handle.flush()

        assert handle.read(0, 100) == b"onetwo"
        assert list(store.artifacts.list()) == []

    def test_a_removed_name_can_be_made_anew_while_the_old_file_is_open(self, walker):
        old = walker.create("hot/acme/weekly/report.md", os.O_RDWR | os.O_CREAT)
        old.write(0, b"old")
        walker.unlink("hot/acme/weekly/report.md")
        walker.write("hot/acme/weekly/report.md", b"new")

        old.flush()

        assert walker.read("hot/acme/weekly/report.md") == b"new"

    def test_a_file_that_is_renamed_while_it_is_made_is_stored_under_its_new_name(self, walker):
        handle = walker.create("hot/acme/weekly/draft")
        handle.write(0, b"text")
        walker.rename("hot/acme/weekly/draft", "hot/acme/weekly/report.md")

        handle.flush()

        assert walker.names("hot/acme/weekly") == ["report.md"]
        assert walker.read("hot/acme/weekly/report.md") == b"text"

    def test_a_file_renamed_over_another_while_it_is_made_replaces_it_when_it_is_stored(
        self, walker
    ):
        walker.write("hot/acme/weekly/report.md", b"old")
        handle = walker.create("hot/acme/weekly/draft", mode=0o600)
        handle.write(0, b"new")
        walker.rename("hot/acme/weekly/draft", "hot/acme/weekly/report.md")
        before = walker.read("hot/acme/weekly/report.md")

        handle.flush()

        assert before == b"old"
        assert walker.names("hot/acme/weekly") == ["report.md"]
        assert walker.read("hot/acme/weekly/report.md") == b"new"
        assert stat.S_IMODE(walker.stat("hot/acme/weekly/report.md").mode) == 0o600

    def test_a_file_renamed_while_it_is_written_to_is_stored_under_its_new_name(self, walker):
        walker.write("hot/acme/weekly/a", b"old")
        handle = walker.writer("hot/acme/weekly/a")
        handle.write(0, b"new")
        walker.rename("hot/acme/weekly/a", "hot/acme/weekly/b")

        handle.flush()

        assert walker.names("hot/acme/weekly") == ["b"]
        assert walker.read("hot/acme/weekly/b") == b"new"

    def test_what_was_being_written_to_a_file_that_was_renamed_over_is_not_stored(self, walker):
        walker.write("hot/acme/weekly/a", b"a")
        walker.write("hot/acme/weekly/b", b"b")
        handle = walker.writer("hot/acme/weekly/b")
        handle.write(0, b"lost")
        walker.rename("hot/acme/weekly/a", "hot/acme/weekly/b")

        handle.flush()

        assert walker.read("hot/acme/weekly/b") == b"a"

    def test_a_file_keeps_its_inode_number_when_it_is_stored_and_renamed(self, walker):
        handle = walker.create("hot/acme/weekly/a")
        made = walker.stat("hot/acme/weekly/a").inode
        handle.write(0, b"text")
        handle.flush()

        walker.rename("hot/acme/weekly/a", "hot/acme/weekly/b")

        assert walker.stat("hot/acme/weekly/b").inode == made

    def test_a_file_cannot_be_renamed_over_a_folder(self, walker):
        walker.write("hot/acme/weekly/a", b"a")
        walker.mkdir("hot/acme/weekly/b")

        with pytest.raises(IsADirectoryError):
            walker.rename("hot/acme/weekly/a", "hot/acme/weekly/b")

    def test_a_file_cannot_be_renamed_to_above_a_workflow(self, walker):
        walker.write("hot/acme/weekly/a", b"a")

        with pytest.raises(PermissionError):
            walker.rename("hot/acme/weekly/a", "hot/acme/a")


class TestAttributes:
    def test_what_is_set_on_a_file_that_is_being_made_holds_when_it_is_stored(self, walker):
        handle = walker.create("hot/acme/weekly/a")
        handle.write(0, b"text")
        walker.set("hot/acme/weekly/a", mode=0o600, uid=5, gid=6, modified_ns=10**18)

        handle.flush()

        found = walker.stat("hot/acme/weekly/a")
        assert (stat.S_IMODE(found.mode), found.uid, found.gid) == (0o600, 5, 6)
        assert found.modified_ns == 10**18

    def test_attributes_of_a_stored_file_change_at_once(self, walker, store):
        walker.write("hot/acme/weekly/a", b"text")

        walker.set("hot/acme/weekly/a", mode=0o640, accessed_ns=3, modified_ns=4)

        found = walker.stat("all/acme/weekly/a")
        assert (stat.S_IMODE(found.mode), found.accessed_ns, found.modified_ns) == (0o640, 3, 4)

    def test_the_store_is_asked_what_user_kvstate_attributes_say(self, walker, store):
        walker.write("hot/acme/weekly/a", b"text")

        found = walker.tree.xattrs(walker.node("hot/acme/weekly/a"))

        artifact = store.artifacts.stat("acme/weekly/a")
        assert found["user.kvstate.tier"] == b"hot"
        assert found["user.kvstate.digest"] == artifact.digest.encode()
        assert found["user.kvstate.revision"] == str(artifact.revision).encode()
        assert found["user.kvstate.due"] == artifact.due_at.isoformat().encode()

    def test_own_attributes_are_kept_with_the_file(self, walker):
        walker.write("hot/acme/weekly/a", b"text")
        node = walker.node("hot/acme/weekly/a")
        walker.tree.setxattr(node, "user.colour", b"blue")

        walker.rename("hot/acme/weekly/a", "hot/acme/weekly/b")

        assert walker.tree.xattrs(walker.node("hot/acme/weekly/b"))["user.colour"] == b"blue"

    def test_own_attributes_set_before_the_file_is_stored_are_kept(self, walker):
        handle = walker.create("hot/acme/weekly/a")
        walker.tree.setxattr(walker.node("hot/acme/weekly/a"), "user.colour", b"blue")

        handle.flush()

        assert walker.tree.xattrs(walker.node("hot/acme/weekly/a"))["user.colour"] == b"blue"

    @pytest.mark.parametrize(
        "name", ["user.kvstate.digest", "user.kvstate.new", "trusted.x", "user."]
    )
    def test_computed_and_foreign_attributes_cannot_be_set(self, walker, name):
        walker.write("hot/acme/weekly/a", b"text")

        with refused(errno.ENOTSUP):
            walker.tree.setxattr(walker.node("hot/acme/weekly/a"), name, b"x")

    def test_removing_an_attribute_that_is_not_there_is_refused(self, walker):
        walker.write("hot/acme/weekly/a", b"text")

        with refused(errno.ENODATA):
            walker.tree.setxattr(walker.node("hot/acme/weekly/a"), "user.colour", None)

    def test_a_symbolic_link_says_what_it_was_told(self, walker, store):
        walker.symlink("../daily/report.md", "hot/acme/weekly/link")

        found = walker.stat("hot/acme/weekly/link")
        assert stat.S_ISLNK(found.mode)
        assert walker.tree.readlink(found.node) == "../daily/report.md"
        assert found.size == len("../daily/report.md")

    def test_a_link_is_not_made_over_what_is_there(self, walker):
        walker.write("hot/acme/weekly/a", b"text")

        with pytest.raises(Exists):
            walker.symlink("b", "hot/acme/weekly/a")

    def test_a_file_that_is_no_link_says_nothing(self, walker):
        walker.write("hot/acme/weekly/a", b"text")

        with refused(errno.EINVAL):
            walker.tree.readlink(walker.node("hot/acme/weekly/a"))


class TestRefusals:
    @pytest.mark.parametrize("folder", ["hot", "hot/acme", "all", ""])
    def test_files_are_made_below_a_workflow_only(self, walker, folder):
        with pytest.raises(PermissionError):
            walker.create(f"{folder}/file".lstrip("/"))

    @pytest.mark.parametrize("name", ["a:b", "a*b", "a\\b", 'a"b', "a\nb", "a|b"])
    def test_reserved_characters_make_no_file(self, walker, name):
        with refused(errno.EINVAL):
            walker.create(f"hot/acme/weekly/{name}")

    def test_a_name_that_is_too_long_makes_no_file(self, walker):
        with refused(errno.ENAMETOOLONG):
            walker.create(f"hot/acme/weekly/{'é' * 128}")

    def test_a_name_that_is_too_long_is_not_looked_for(self, walker):
        with refused(errno.ENAMETOOLONG):
            walker.stat(f"hot/acme/weekly/{'x' * 256}")

    def test_a_name_that_is_not_utf8_makes_no_file(self, walker):
        with refused(errno.EILSEQ):
            walker.create("hot/acme/weekly/\udcff")

    def test_a_file_is_no_folder(self, walker):
        walker.write("hot/acme/weekly/a", b"text")

        with pytest.raises(NotADirectoryError):
            walker.stat("hot/acme/weekly/a/b")

    def test_a_file_in_a_folder_that_was_removed_cannot_be_stored(self, walker, store):
        walker.mkdir("hot/acme/weekly/logs")
        handle = walker.create("hot/acme/weekly/logs/1.txt")
        store.catalog.remove_folder(store.catalog.walk_path(("acme", "weekly")).id, "logs")

        with pytest.raises(NotFound):
            handle.flush()

    def test_nothing_changes_through_a_read_only_tree(self, walker, store):
        walker.write("hot/acme/weekly/a", b"text")
        frozen = Walker(store, read_only=True)

        for change in (
            lambda: frozen.unlink("hot/acme/weekly/a"),
            lambda: frozen.create("hot/acme/weekly/b"),
            lambda: frozen.mkdir("hot/acme/daily"),
            lambda: frozen.open("hot/acme/weekly/a", os.O_WRONLY),
            lambda: frozen.set("hot/acme/weekly/a", mode=0o600),
            lambda: frozen.rename("hot/acme/weekly/a", "hot/acme/weekly/b"),
        ):
            with refused(errno.EROFS):
                change()
        assert frozen.read("hot/acme/weekly/a") == b"text"
