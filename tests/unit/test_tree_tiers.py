"""`hot/`, `warm/`, `cold/` and `all/`: what shows where, and what moving between them does."""

from __future__ import annotations

import errno
import os

import pytest

from kvstate.errors import Exists
from tests.unit.walker import Walker, refused

LARGE = os.urandom(200_000)


@pytest.fixture
def walker(store):
    walker = Walker(store)
    walker.folders("hot/acme/weekly")
    return walker


class TestWhatShows:
    def test_the_root_shows_its_parts(self, walker):
        assert walker.names("") == [
            ".kvstate",
            "all",
            "cold",
            "hot",
            "pipelines",
            "state",
            "warm",
        ]

    def test_a_file_shows_in_its_tier_and_in_all(self, walker):
        walker.write("hot/acme/weekly/a", b"text")

        assert walker.exists("hot/acme/weekly/a")
        assert walker.exists("all/acme/weekly/a")
        assert not walker.exists("warm/acme/weekly/a")

    def test_it_is_the_same_file_in_both(self, walker):
        walker.write("hot/acme/weekly/a", b"text")

        assert walker.stat("hot/acme/weekly/a").inode == walker.stat("all/acme/weekly/a").inode

    def test_a_folder_is_another_in_each_view(self, walker):
        inodes = {walker.stat(f"{view}/acme").inode for view in ("hot", "warm", "cold", "all")}

        assert len(inodes) == 4

    def test_a_folder_is_listed_where_something_below_it_is(self, walker):
        walker.write("warm/acme/weekly/a", b"text")

        assert walker.names("warm") == ["acme"]
        assert walker.names("warm/acme") == ["weekly"]
        assert walker.names("cold") == []

    def test_an_empty_folder_is_listed_where_it_was_made(self, walker):
        walker.mkdir("cold/acme/daily")

        assert walker.names("cold/acme") == ["daily"]
        assert walker.names("hot/acme") == ["weekly"]
        assert walker.names("all/acme") == ["daily", "weekly"]

    def test_a_folder_is_found_by_name_in_every_tier(self, walker):
        assert walker.exists("cold/acme/weekly")

    def test_a_new_file_in_all_is_hot(self, walker, store):
        walker.write("all/acme/weekly/a", b"text")

        assert store.artifacts.stat("acme/weekly/a").tier == "hot"

    def test_a_new_file_is_made_in_the_tier_of_its_view(self, walker, store):
        walker.write("cold/acme/weekly/a", LARGE)

        assert store.artifacts.stat("acme/weekly/a").tier == "cold"

    def test_writing_through_all_leaves_a_file_in_its_tier(self, walker, store):
        walker.write("warm/acme/weekly/a", b"old")

        walker.write("all/acme/weekly/a", b"new")

        assert store.artifacts.stat("acme/weekly/a").tier == "warm"

    def test_a_move_by_another_process_shows(self, walker, store):
        walker.write("hot/acme/weekly/a", LARGE)

        store.artifacts.move("acme/weekly/a", "cold")

        assert walker.names("hot/acme/weekly") == []
        assert walker.read("cold/acme/weekly/a") == LARGE


class TestListing:
    def test_names_come_in_byte_order_whatever_was_stored_first(self, walker):
        for name in ("b", "ä", "a", "Z"):
            walker.write(f"hot/acme/weekly/{name}", b"")
        walker.create("hot/acme/weekly/aa")

        assert walker.names("hot/acme/weekly") == ["Z", "a", "aa", "b", "ä"]

    def test_every_name_of_a_large_folder_is_listed_once(self, walker):
        names = [f"{number:04}" for number in range(700)]
        for name in names:
            walker.create(f"hot/acme/weekly/{name}")

        assert walker.names("hot/acme/weekly") == names

    def test_stored_and_unstored_names_are_listed_together_over_many_pages(self, walker, store):
        names = [f"{number:04}" for number in range(600)]
        for name in names[::2]:
            walker.write(f"hot/acme/weekly/{name}", b"")
        for name in names[1::2]:
            walker.create(f"hot/acme/weekly/{name}")

        assert walker.names("hot/acme/weekly") == names

    def test_names_that_stay_are_listed_once_while_others_come_and_go(self, walker):
        names = [f"{number:03}" for number in range(300)]
        for name in names:
            walker.write(f"hot/acme/weekly/{name}", b"")
        entries = walker.tree.listing(walker.node("hot/acme/weekly")).entries()
        given = [next(entries)[1].name for _ in range(100)]

        for name in names[:50] + names[200:250]:
            walker.unlink(f"hot/acme/weekly/{name}")
        walker.write("hot/acme/weekly/zzz", b"")
        given += [listed.name for _, listed in entries]

        stayed = names[50:200] + names[250:]
        assert len(given) == len(set(given))
        assert set(stayed) <= set(given)
        assert given == sorted(given)

    def test_a_listing_goes_on_from_any_offset_that_it_gave(self, walker):
        for name in "abcdef":
            walker.write(f"hot/acme/weekly/{name}", b"")
        listing = walker.tree.listing(walker.node("hot/acme/weekly"))
        offsets = {listed.name: after for after, listed in listing.entries()}

        again = [listed.name for _, listed in listing.entries(offsets["c"])]

        assert again == ["d", "e", "f"]

    def test_a_listing_that_goes_on_gives_no_attributes_that_it_read_before(self, walker):
        for name in "abc":
            walker.write(f"hot/acme/weekly/{name}", b"")
        listing = walker.tree.listing(walker.node("hot/acme/weekly"))
        first = next(listing.entries())

        rest = list(listing.entries(first[0]))

        assert first[1].attributes is not None
        assert [listed.attributes for _, listed in rest] == [None, None]

    def test_a_listing_that_begins_anew_looks_again(self, walker):
        listing = walker.tree.listing(walker.node("hot/acme/weekly"))
        before = list(listing.entries())

        walker.write("hot/acme/weekly/a", b"")

        assert before == []
        assert [listed.name for _, listed in listing.entries()] == ["a"]


class TestMoving:
    def test_renaming_into_another_tier_moves_the_file_there(self, walker, store):
        walker.write("cold/acme/weekly/a", LARGE)

        walker.rename("cold/acme/weekly/a", "hot/acme/weekly/a")

        assert store.artifacts.stat("acme/weekly/a").tier == "hot"
        assert walker.read("hot/acme/weekly/a") == LARGE
        assert walker.names("cold") == []

    def test_a_file_can_get_another_name_and_tier_in_one_step(self, walker, store):
        walker.write("hot/acme/weekly/a", b"text")
        walker.folders("hot/acme/daily")

        walker.rename("hot/acme/weekly/a", "warm/acme/daily/b")

        assert store.artifacts.stat("acme/daily/b").tier == "warm"
        assert not store.artifacts.exists("acme/weekly/a")

    def test_renaming_into_all_leaves_the_tier(self, walker, store):
        walker.write("cold/acme/weekly/a", b"text")

        walker.rename("cold/acme/weekly/a", "all/acme/weekly/b")

        assert store.artifacts.stat("acme/weekly/b").tier == "cold"

    def test_a_reader_is_not_disturbed_by_a_move(self, walker):
        walker.write("hot/acme/weekly/a", LARGE)
        handle = walker.open("hot/acme/weekly/a")

        walker.rename("hot/acme/weekly/a", "cold/acme/weekly/a")

        assert handle.read(0, 1 << 20) == LARGE

    def test_what_is_being_written_to_a_file_that_moves_is_stored_where_it_is_now(
        self, walker, store
    ):
        walker.write("hot/acme/weekly/a", b"old")
        handle = walker.writer("hot/acme/weekly/a")
        handle.write(0, b"new")
        walker.rename("hot/acme/weekly/a", "warm/acme/weekly/a")

        handle.flush()

        assert store.artifacts.stat("acme/weekly/a").tier == "warm"
        assert walker.read("warm/acme/weekly/a") == b"new"

    def test_a_name_that_lives_in_another_tier_is_replaced_when_it_is_written(self, walker, store):
        walker.write("cold/acme/weekly/a", b"old")
        handle = walker.create("hot/acme/weekly/a")
        handle.write(0, b"new")
        before = walker.read("cold/acme/weekly/a")

        handle.flush()

        assert before == b"old"
        assert store.artifacts.stat("acme/weekly/a").tier == "hot"
        assert walker.read("hot/acme/weekly/a") == b"new"
        assert walker.names("cold") == []

    def test_a_folder_is_renamed_in_one_step_in_all(self, walker, store):
        walker.write("hot/acme/weekly/a", b"a")
        walker.write("cold/acme/weekly/b", b"b")

        walker.rename("all/acme/weekly", "all/acme/monthly")

        assert [found.name for found in store.artifacts.list()] == [
            "acme/monthly/a",
            "acme/monthly/b",
        ]

    def test_what_is_being_made_in_a_folder_that_is_renamed_is_stored_in_it(self, walker, store):
        handle = walker.create("hot/acme/weekly/a")
        handle.write(0, b"text")
        walker.rename("all/acme/weekly", "all/acme/monthly")

        handle.flush()

        assert store.artifacts.get("acme/monthly/a") == b"text"

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("hot/acme/weekly", "hot/acme/monthly"),
            ("hot/acme/weekly", "cold/acme/weekly"),
            ("all/acme/weekly", "hot/acme/monthly"),
            ("hot/acme/weekly/a", "state/acme"),
        ],
    )
    def test_other_renames_say_that_it_must_be_copied(self, walker, old, new):
        walker.write("hot/acme/weekly/a", b"a")

        with refused(errno.EXDEV):
            walker.rename(old, new)

    def test_renaming_a_folder_into_itself_in_another_tier_moves_what_is_in_it(self, walker, store):
        walker.folders("hot/acme/weekly/logs/build")
        walker.write("hot/acme/weekly/logs/1.txt", b"1")
        walker.write("hot/acme/weekly/logs/build/2.txt", b"2")
        walker.write("warm/acme/weekly/logs/3.txt", b"3")

        walker.rename("hot/acme/weekly/logs", "cold/acme/weekly/logs/logs")

        tiers = {found.artifact: found.tier for found in store.artifacts.list()}
        assert tiers == {"logs/1.txt": "cold", "logs/3.txt": "warm", "logs/build/2.txt": "cold"}
        assert not walker.exists("hot/acme/weekly/logs")

    def test_a_folder_is_not_renamed_over_one_with_a_file_that_is_being_made(self, walker):
        walker.mkdir("hot/acme/monthly")
        walker.create("hot/acme/monthly/a")

        with refused(errno.ENOTEMPTY):
            walker.rename("all/acme/weekly", "all/acme/monthly")


class TestRemoving:
    def test_removing_a_folder_from_a_tier_leaves_what_other_tiers_have(self, walker, store):
        walker.write("hot/acme/weekly/a", b"a")
        walker.write("cold/acme/weekly/b", b"b")
        walker.unlink("hot/acme/weekly/a")

        walker.rmdir("hot/acme/weekly")

        assert not walker.exists("hot/acme/weekly")
        assert walker.read("cold/acme/weekly/b") == b"b"

    def test_a_folder_that_was_removed_from_a_tier_can_be_made_there_again(self, walker):
        walker.write("cold/acme/weekly/b", b"b")
        walker.rmdir("hot/acme/weekly")

        walker.mkdir("hot/acme/weekly")

        assert walker.exists("hot/acme/weekly")

    def test_a_folder_with_something_in_it_is_not_removed(self, walker):
        walker.write("hot/acme/weekly/a", b"a")

        with refused(errno.ENOTEMPTY):
            walker.rmdir("hot/acme/weekly")

    def test_an_empty_folder_is_removed_for_good(self, walker, store):
        walker.rmdir("hot/acme/weekly")

        assert walker.names("all/acme") == []

    def test_an_emptied_folder_stays(self, walker):
        walker.write("hot/acme/weekly/a", b"a")

        walker.unlink("hot/acme/weekly/a")

        assert walker.names("hot/acme") == ["weekly"]

    def test_a_folder_is_not_made_twice(self, walker):
        with pytest.raises(Exists):
            walker.mkdir("hot/acme/weekly")

    def test_a_file_of_another_tier_is_not_removed_by_its_name_here(self, walker):
        walker.write("cold/acme/weekly/a", b"a")

        with pytest.raises(FileNotFoundError):
            walker.unlink("hot/acme/weekly/a")

    @pytest.mark.parametrize("path", ["hot", "all", "state", ".kvstate/stats.json"])
    def test_the_fixed_parts_stay(self, walker, path):
        with pytest.raises(PermissionError):
            walker.rmdir(path)
        with pytest.raises(PermissionError):
            walker.unlink(path)
