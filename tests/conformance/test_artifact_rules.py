"""What docs/artifacts.md promises of rules, holds, trash, quotas and restorations; every door."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import threading
from datetime import UTC, datetime

import pytest

import kvstate
from kvstate.errors import (
    Conflict,
    Damaged,
    Exists,
    Held,
    InvalidName,
    InvalidValue,
    NotFound,
    QuotaExceeded,
)
from kvstate.settings import StoreSettings
from kvstated.server import serving
from tests.harness import SECOND
from tests.integration.daemons import ROOTS

DAY = 86400 * SECOND
LARGE = random.Random(3).randbytes(100_000)


def _plan(store, **options):
    return {move.name: move.target for move in store.lifecycle.plan(**options)}


def _names(store, *arguments, **options):
    return [each.name for each in store.artifacts.list(*arguments, **options)]


def _put(store, *names, content=b"x", **options):
    for name in names:
        store.artifacts.put(name, content, **options)


class TestRules:
    def test_a_change_holds_at_once_and_for_what_is_there_already(self, store, clock):
        _put(store, "t/w/a", "t/w/b")
        clock.advance(days=2)
        assert _plan(store) == {}

        store.lifecycle.configure(hot_days=1)

        assert _plan(store) == {"t/w/a": "warm", "t/w/b": "warm"}
        assert store.lifecycle.next_due_ns() <= clock.at_ns
        assert store.lifecycle.run().promoted_to_warm == 2

    def test_a_change_is_taken_back_by_none(self, store, clock):
        _put(store, "t/w/a")
        clock.advance(days=2)
        store.lifecycle.configure(hot_days=1, rules=[{"cold_days": 1}])

        settings = store.lifecycle.configure(hot_days=None, rules=None)

        assert (settings["hot_days"], settings.get("rules")) == (7.0, None)
        assert _plan(store) == {}

    def test_what_makes_no_sense_is_refused_by_name_and_changes_nothing(self, store):
        before = store.lifecycle.policy()

        for options, word in (
            ({"hot_days": -1}, "hot_days"),
            ({"hot_days": float("nan")}, "hot_days"),
            ({"hot_days": 10**30}, "hot_days"),
            ({"hot_days": "soon"}, "hot_days"),
            ({"floor_days": "never"}, "floor_days"),
            ({"hot_days": 50}, "increase"),
            ({"nonsense": 1}, "nonsense"),
            ({"bytes_max": 1}, "bytes_max"),
            ({"rules": "all"}, "rules"),
            ({"rules": [{"glob": "[z-a]"}]}, "glob"),
            ({"rules": [{"size_min": 2**63}]}, "size_min"),
            ({"rules": [{"size_min": "1 furlong"}]}, "size_min"),
            ({"rules": [{"size_min": 2, "size_max": 1}]}, "size_max"),
            ({"rules": [{"keep_newest": 10**9}]}, "keep_newest"),
            ({"rules": [{"basis": "mood"}]}, "basis"),
            ({"rules": [{"warm_days": 3, "cold_days": 2}]}, "increase"),
            ({"tenants": {"t": {"hot_day": 1}}}, "hot_day"),
            ({"tenants": {"t": {"artifacts_max": -1}}}, "artifacts_max"),
            ({"tenants": {"t": 7}}, "tenants"),
            ({"tenants": ["t"]}, "tenants"),
        ):
            with pytest.raises(InvalidValue, match=word):
                store.lifecycle.configure(**options)

        assert store.lifecycle.policy() == before

    def test_the_first_rule_that_matches_decides(self, store, clock):
        _put(store, "t/w/a.log", "t/w/big", content=b"x" * 2000)
        _put(store, "t/w/small", metadata={"kind": "log"})
        store.lifecycle.configure(
            rules=[
                {"name": "large", "size_min": "2KB", "glob": "**/big", "cold_days": "never"},
                {"name": "logs", "glob": "**/*.log", "hot_days": 1},
                {"name": "tagged", "tags": {"kind": "log"}, "hot_days": 2},
                {"name": "rest", "prefix": "t/w/", "hot_days": 3},
            ]
        )

        rules = {name: store.lifecycle.explain(name).rule for name in _names(store)}

        assert rules == {
            "t/w/a.log": "rule logs",
            "t/w/big": "rule large",
            "t/w/small": "rule tagged",
        }
        clock.advance(days=1)
        assert _plan(store) == {"t/w/a.log": "warm"}

    def test_what_a_rule_leaves_out_gives_way_to_what_it_sets(self, store, clock):
        _put(store, "t/w/a")
        store.lifecycle.configure(rules=[{"warm_days": 3}])
        clock.advance(days=3)

        assert _plan(store) == {"t/w/a": "cold"}
        assert store.lifecycle.run().promoted_to_cold == 1

    def test_a_tenants_section_stands_before_the_common_one(self, store, clock):
        _put(store, "acme/w/a", "acme/w/b.log", "other/w/a")
        store.lifecycle.configure(
            hot_days=5,
            rules=[{"name": "common", "glob": "**/*.log", "hot_days": 4}],
            tenants={"acme": {"hot_days": 2, "rules": [{"name": "own", "glob": "**/b.*"}]}},
        )
        clock.advance(days=2)

        assert _plan(store) == {"acme/w/a": "warm", "acme/w/b.log": "warm"}
        assert store.lifecycle.explain("acme/w/a").rule == "tenant acme"
        assert store.lifecycle.explain("acme/w/b.log").rule == "rule own"
        assert store.lifecycle.explain("other/w/a").rule == "default"

    def test_a_tag_that_is_changed_changes_the_rule(self, store, clock):
        _put(store, "t/w/a")
        store.lifecycle.configure(rules=[{"tags": {"kind": "log"}, "hot_days": 1}])
        clock.advance(days=1)
        assert _plan(store) == {}

        store.artifacts.update("t/w/a", {"kind": "log"})

        assert _plan(store) == {"t/w/a": "warm"}

    @pytest.mark.parametrize(("old", "new"), [("t/w", "t/keep"), ("t", "keep"), ("t/w/d", "t/k/d")])
    def test_a_renamed_folder_comes_under_other_rules(self, store, clock, old, new):
        _put(store, "t/w/d/a", "t/w/d/e/b", "u/w/a")
        store.lifecycle.configure(
            rules=[{"prefix": "t/w/", "hot_days": 1}, {"prefix": "u/", "cold_days": "never"}]
        )
        store.lifecycle.run()
        clock.advance(days=2)
        assert set(_plan(store)) == {"t/w/d/a", "t/w/d/e/b"}

        store.artifacts.rename(old, new)

        assert _plan(store) == {}
        assert store.lifecycle.run().promoted_to_warm == 0
        store.artifacts.rename(new, old)
        assert store.lifecycle.run().promoted_to_warm == 2

    def test_the_floor_stands_above_every_rule(self, store, clock):
        _put(store, "t/w/a", metadata={"retention_override": "1d"})
        _put(store, "t/w/b")
        store.lifecycle.configure(
            floor_days=10, rules=[{"hot_days": 0, "warm_days": 0, "cold_days": 0}]
        )
        clock.advance(days=9.9)

        assert store.lifecycle.run().purged == 0
        clock.advance(days=0.1)
        assert store.lifecycle.run().purged == 2

    def test_names_with_odd_characters_match_as_they_are(self, store):
        odd = "t/w/a+(b)[c]{d}^$.ä\U0001f600 x&&y~~z|q-1".replace("|", "!")
        _put(store, odd, "t/w/plain")

        for number, match in enumerate(
            (
                {"prefix": odd},
                {"glob": odd.replace("[", "[[]")},
                {"glob": "t/w/a+(b)[[]c]*1"},
                {"glob": "**/*[\U0001f600]*"},
                {"glob": "t/*/*[&~^][&~^$.]*"},
                {"glob": "t/w/*[!-a-z]*q-?"},
                {"glob": "**" + "*" * 40 + "1"},
            )
        ):
            store.lifecycle.configure(rules=[{"name": f"odd {number}", **match}])

            assert store.lifecycle.explain(odd).rule == f"rule odd {number}", match
            assert store.lifecycle.explain("t/w/plain").rule == "default", match

    def test_a_glob_with_many_stars_takes_no_time(self, store):
        store.lifecycle.configure(rules=[{"glob": "t/w/" + "*a" * 12 + "*b"}])

        _put(store, "t/w/" + "a" * 250)

        assert store.lifecycle.explain("t/w/" + "a" * 250).rule == "default"

    def test_rules_with_the_largest_numbers(self, store, clock):
        _put(store, "t/w/a")
        store.lifecycle.configure(
            rules=[
                {
                    "hot_days": 36500,
                    "warm_days": 36500,
                    "cold_days": 36500,
                    "size_max": 2**62,
                    "keep_newest": 10_000,
                }
            ]
        )

        steps = store.lifecycle.explain("t/w/a").steps

        assert steps == (("purge", clock.at_ns + 36500 * DAY),)
        clock.at_ns = 2**63 - 1 - DAY
        assert _plan(store) == {}


class TestOverrides:
    @pytest.mark.parametrize(
        ("text", "day"),
        [
            ("2d", "2023-11-16T22:13:20"),
            ("36h", "2023-11-16T10:13:20"),
            ("3 weeks", "2023-12-05T22:13:20"),
            ("3_months", "2024-02-14T22:13:20"),
            ("7_years", "2030-11-14T22:13:20"),
            ("2031-05-01", "2031-05-01T00:00:00"),
            ("2031-05-01T12:00:00+02:00", "2031-05-01T10:00:00"),
        ],
    )
    def test_it_says_when_an_artifact_is_purged(self, store, text, day):
        _put(store, "t/w/a", metadata={"retention_override": text})

        explained = store.lifecycle.explain("t/w/a")

        due_ns = int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) * SECOND
        assert explained.steps[-1] == ("purge", due_ns)
        assert explained.rule == f"retention_override = {text}"

    def test_never_is_never(self, store, clock):
        _put(store, "t/w/a", metadata={"retention_override": "never"})
        clock.advance(days=36500)

        store.lifecycle.run()

        assert store.artifacts.stat("t/w/a").tier == "cold"
        assert "nothing is ever due" in " ".join(store.lifecycle.explain("t/w/a").why)

    @pytest.mark.parametrize(
        "text", ["", "soon", "14", "-1d", "7_eons", "2031-13-01", "99999999 years", 14, None, [1]]
    )
    def test_what_says_no_time_is_refused_when_it_is_written(self, store, text):
        _put(store, "t/w/a")

        with pytest.raises(InvalidValue, match="retention_override"):
            store.artifacts.put("t/w/b", b"x", metadata={"retention_override": text})
        with pytest.raises(InvalidValue, match="retention_override"):
            store.artifacts.update("t/w/a", {"retention_override": text})

        assert _names(store) == ["t/w/a"]
        assert store.artifacts.stat("t/w/a").metadata == {}


IDLE = {"name": "idle", "basis": "access", "hot_days": 3}


class TestAccess:
    def test_a_read_postpones_what_is_due(self, store, clock):
        _put(store, "t/w/read", "t/w/idle")
        store.lifecycle.configure(rules=[IDLE])
        clock.advance(days=2)
        assert store.artifacts.get("t/w/read") == b"x"
        clock.advance(days=1)

        assert store.lifecycle.run().promoted_to_warm == 1

        assert store.artifacts.stat("t/w/read").accessed_at_ns == clock.at_ns - DAY
        assert (store.artifacts.stat("t/w/idle").tier, store.artifacts.stat("t/w/read").tier) == (
            "warm",
            "hot",
        )
        clock.advance(days=2)
        assert store.lifecycle.run().promoted_to_warm == 1

    def test_it_is_recorded_at_most_once_a_day_and_is_no_change(self, store, clock):
        _put(store, "t/w/a")
        written = clock.at_ns
        clock.advance(days=0.9)
        store.artifacts.get("t/w/a")
        store.lifecycle.run()
        assert store.artifacts.stat("t/w/a").accessed_at_ns == written
        clock.advance(days=0.2)
        revision = store.revision()

        with store.artifacts.open("t/w/a") as reader:
            reader.read()
        first = clock.at_ns
        clock.advance(30)
        store.artifacts.get("t/w/a")
        store.lifecycle.run()

        assert store.artifacts.stat("t/w/a").accessed_at_ns == first
        assert store.revision() == revision


class TestKeepNewest:
    def test_the_newest_of_each_workflow_stay(self, store, clock):
        for number in range(5):
            _put(store, f"t/w/{number}.log", f"t/v/sub/{number}.log")
            clock.advance(60)
        _put(store, "t/w/other")
        store.lifecycle.configure(
            rules=[{"glob": "**/*.log", "cold_days": 1, "keep_newest": 2}], cold_days="never"
        )
        clock.advance(days=2)

        assert store.lifecycle.run().purged == 6

        assert _names(store) == [
            "t/v/sub/3.log",
            "t/v/sub/4.log",
            "t/w/3.log",
            "t/w/4.log",
            "t/w/other",
        ]
        assert "among the newest 2" in " ".join(store.lifecycle.explain("t/w/3.log").why)

    def test_a_new_one_lets_the_oldest_of_them_go(self, store, clock):
        store.lifecycle.configure(rules=[{"prefix": "t/w/", "cold_days": 1, "keep_newest": 2}])
        _put(store, "t/w/a")
        clock.advance(1)
        _put(store, "t/w/b")
        clock.advance(days=2)
        assert store.lifecycle.run().purged == 0

        _put(store, "t/w/c")

        assert _plan(store) == {"t/w/a": "purge"}
        assert store.lifecycle.run().purged == 1

    def test_what_stays_still_goes_to_the_colder_tiers(self, store, clock):
        _put(store, "t/w/a")
        store.lifecycle.configure(rules=[{"cold_days": 90, "keep_newest": 1}])
        clock.advance(days=100)

        store.lifecycle.run()

        assert store.artifacts.stat("t/w/a").tier == "cold"
        assert store.lifecycle.explain("t/w/a").action is None


def _refused(store, *acts):
    for act in acts:
        with pytest.raises(Held, match="smith"):
            act(store.artifacts)


class TestHolds:
    def test_who_when_and_why(self, store, clock):
        _put(store, "t/w/a")

        held = store.artifacts.hold("t/w/a", "smith", reason="litigation")
        store.artifacts.hold("t/w/a", "audit")

        assert held.holds["smith"]["reason"] == "litigation"
        assert held.holds["smith"]["at_ns"] == clock.at_ns
        assert held.holds["smith"]["by"]
        assert set(store.artifacts.stat("t/w/a").holds) == {"smith", "audit"}
        assert _names(store, held=True) == ["t/w/a"]
        assert store.artifacts.usage("t").held == 1
        why = " ".join(store.lifecycle.explain("t/w/a").why)
        assert "smith" in why
        assert "litigation" in why

    def test_a_second_hold_for_a_case_changes_only_the_why(self, store, clock):
        _put(store, "t/w/a")
        first = store.artifacts.hold("t/w/a", "smith", reason="one").holds["smith"]
        clock.advance(60)

        second = store.artifacts.hold("t/w/a", "smith", reason="two").holds["smith"]

        assert (second["at_ns"], second["reason"]) == (first["at_ns"], "two")

    def test_nothing_overwrites_renames_or_deletes_what_is_held(self, store):
        _put(store, "t/w/a", "t/w/b", "t/w/d/x", content=b"kept")
        store.artifacts.hold("t/w/a", "smith")
        before = store.artifacts.stat("t/w/a")

        def write(artifacts):
            with artifacts.open("t/w/a", "w") as writer:
                writer.write(b"new")

        _refused(
            store,
            lambda artifacts: artifacts.put("t/w/a", b"new"),
            lambda artifacts: artifacts.put("t/w/a", LARGE),
            lambda artifacts: artifacts.put_many({"t/w/new": b"1", "t/w/a": b"new"}),
            write,
            lambda artifacts: artifacts.delete("t/w/a"),
            lambda artifacts: artifacts.delete("t/w/a", trash=False),
            lambda artifacts: artifacts.rename("t/w/a", "t/w/c"),
            lambda artifacts: artifacts.rename("t/w/a", "u/w/a"),
            lambda artifacts: artifacts.rename("t/w/b", "t/w/a", replace=True),
        )

        assert store.artifacts.stat("t/w/a") == before
        assert store.artifacts.get("t/w/a") == b"kept"
        assert _names(store) == ["t/w/a", "t/w/b", "t/w/d/x"]

    @pytest.mark.parametrize("folder", ["t", "t/w", "t/w/d", "t/w/d/e"])
    def test_no_folder_above_it_is_renamed(self, store, folder):
        _put(store, "t/w/d/e/a", "t/w/other/b", "t/v/c")
        store.artifacts.hold("t/w/d/e/a", "smith")

        with pytest.raises(Held):
            store.artifacts.rename(folder, "u/w/elsewhere")

        store.artifacts.rename("t/w/other", "t/w/beside")
        store.artifacts.rename("t/v", "u/v")
        assert _names(store) == ["t/w/beside/b", "t/w/d/e/a", "u/v/c"]
        store.artifacts.release("t/w/d/e/a", "smith")
        store.artifacts.rename("t/w/d", "t/x/d")
        assert _names(store, "t/x") == ["t/x/d/e/a"]

    def test_moves_and_metadata_go_on(self, store, clock):
        _put(store, "t/w/a", content=LARGE)
        store.artifacts.hold("t/w/a", "smith")

        store.artifacts.move("t/w/a", "warm")
        store.artifacts.restore("t/w/a")
        store.artifacts.update("t/w/a", {"k": 1})
        clock.advance(days=95)
        store.lifecycle.run()

        found = store.artifacts.stat("t/w/a")
        assert (found.tier, found.metadata, set(found.holds)) == ("cold", {"k": 1}, {"smith"})
        assert store.artifacts.get("t/w/a") == LARGE

    def test_a_purge_waits_for_the_last_release(self, store, clock):
        _put(store, "t/w/a")
        store.artifacts.hold("t/w/a", "smith")
        store.artifacts.hold("t/w/a", "audit")
        clock.advance(days=200)
        store.lifecycle.run()
        store.artifacts.release("t/w/a", "smith")
        assert (store.lifecycle.run().purged, _plan(store)) == (0, {})

        store.artifacts.release("t/w/a", "audit")

        assert _plan(store) == {"t/w/a": "purge"}
        assert store.lifecycle.run().purged == 1
        assert _names(store) == []

    def test_what_is_held_while_its_purge_is_planned_is_refused(self, store, clock):
        _put(store, "t/w/a", "t/w/b")
        clock.advance(days=91)
        plan = list(store.lifecycle.plan())
        store.artifacts.hold("t/w/a", "smith")

        outcome = store.lifecycle.run(plan=plan)

        assert (outcome.purged, outcome.refused) == (1, 1)
        assert _names(store) == ["t/w/a"]

    def test_a_hold_that_is_released_while_a_purge_is_planned_is_no_hindrance(self, store, clock):
        _put(store, "t/w/a")
        clock.advance(days=91)
        store.artifacts.hold("t/w/a", "smith")
        assert _plan(store) == {"t/w/a": "cold"}
        held = list(store.lifecycle.plan())
        store.artifacts.release("t/w/a", "smith")

        assert store.lifecycle.run(plan=held).refused == 1

        assert store.lifecycle.run(plan=store.lifecycle.plan()).purged == 1

    def test_a_case_is_released_once_and_has_a_name(self, store):
        _put(store, "t/w/a")

        with pytest.raises(NotFound):
            store.artifacts.release("t/w/a", "smith")
        for case in ("", "a\nb", "x" * 256):
            with pytest.raises(InvalidValue):
                store.artifacts.hold("t/w/a", case)
        with pytest.raises(NotFound):
            store.artifacts.hold("t/w/nothing", "smith")


class TestTrash:
    @pytest.fixture
    def store(self, store):
        store.lifecycle.configure(trash_days=10)
        return store

    def test_what_was_deleted_comes_back_whole(self, store, clock):
        _put(store, "t/w/d/a", content=LARGE, metadata={"k": 1}, tier="cold")
        before = store.artifacts.stat("t/w/d/a")
        store.artifacts.delete("t/w/d/a", reason="a mistake")
        assert (_names(store), store.artifacts.usage().artifacts) == ([], 0)
        (gone,) = store.artifacts.trash()
        assert (gone.name, gone.tier, gone.size, gone.why) == (
            "t/w/d/a",
            "cold",
            len(LARGE),
            "a mistake",
        )
        assert (gone.trashed_at_ns, gone.gone_at_ns) == (clock.at_ns, clock.at_ns + 10 * DAY)

        back = store.artifacts.undelete("t/w/d/a")

        assert (back.tier, back.metadata, back.digest) == ("cold", {"k": 1}, before.digest)
        assert store.artifacts.get("t/w/d/a") == LARGE
        assert list(store.artifacts.trash()) == []
        assert store.artifacts.usage().artifacts == 1

    def test_the_newest_of_several_comes_back_and_then_the_next(self, store, clock):
        for content in (b"one", b"two", b"three"):
            _put(store, "t/w/a", content=content)
            clock.advance(60)
            store.artifacts.delete("t/w/a")
        store.artifacts.undelete("t/w/a")
        assert store.artifacts.get("t/w/a") == b"three"

        with pytest.raises(Exists):
            store.artifacts.undelete("t/w/a")
        store.artifacts.rename("t/w/a", "t/w/b")

        store.artifacts.undelete("t/w/a")
        assert store.artifacts.get("t/w/a") == b"two"

    def test_what_is_not_there_is_not_found(self, store):
        _put(store, "t/w/a")

        for name in ("t/w/a", "t/w/never"):
            with pytest.raises(NotFound):
                store.artifacts.undelete(name)
        with pytest.raises(InvalidName):
            store.artifacts.undelete("t/w")

    def test_a_purge_goes_there_and_what_comes_back_is_spared_for_a_week(self, store, clock):
        _put(store, "t/w/a", metadata={"retention_override": "1d"})
        clock.advance(days=2)
        assert store.lifecycle.run().purged == 1
        (gone,) = store.artifacts.trash()
        assert gone.why

        store.artifacts.undelete("t/w/a")

        clock.advance(days=6.9)
        assert store.lifecycle.run().purged == 0
        clock.advance(days=0.1)
        assert store.lifecycle.run().purged == 1

    def test_it_goes_for_good_when_its_time_is_up(self, store, clock):
        _put(store, "t/w/a", content=LARGE)
        store.artifacts.delete("t/w/a")
        store.lifecycle.run()
        assert store.lifecycle.next_due_ns() == clock.at_ns + 10 * DAY
        clock.advance(days=9.9)
        assert store.lifecycle.run().emptied == 0
        clock.advance(days=0.1)

        assert store.lifecycle.run().emptied == 1

        with pytest.raises(NotFound):
            store.artifacts.undelete("t/w/a")
        assert store.check(verify=True).counts["files"] == 0

    def test_it_is_emptied_below_a_prefix(self, store):
        _put(store, "t/w/a", "t/w/b", "u/w/a", content=LARGE)
        for name in _names(store):
            store.artifacts.delete(name)

        assert store.artifacts.empty_trash("t/w/") == 2

        assert [gone.name for gone in store.artifacts.trash()] == ["u/w/a"]
        assert [gone.name for gone in store.artifacts.trash("t/")] == []
        assert store.artifacts.empty_trash() == 1
        assert store.artifacts.empty_trash() == 0

    def test_trash_can_be_declined_and_overwriting_is_not_deleting(self, store):
        _put(store, "t/w/a", content=b"old")
        _put(store, "t/w/a", content=b"new")
        _put(store, "t/w/b", content=b"replaced")
        store.artifacts.rename("t/w/a", "t/w/b", replace=True)
        store.artifacts.delete("t/w/b", trash=False)

        assert list(store.artifacts.trash()) == []

    def test_quotas_and_usage_do_not_count_it(self, store):
        store.lifecycle.configure(tenants={"t": {"artifacts_max": 1}})
        _put(store, "t/w/a")
        store.artifacts.delete("t/w/a")
        _put(store, "t/w/b")

        with pytest.raises(QuotaExceeded):
            store.artifacts.undelete("t/w/a")

        assert [gone.name for gone in store.artifacts.trash()] == ["t/w/a"]

    def test_a_clock_that_jumps_back_loses_nothing(self, store, clock):
        _put(store, "t/w/a")
        clock.advance(days=20)
        store.artifacts.delete("t/w/a")
        clock.advance(days=-20)

        assert store.lifecycle.run().emptied == 0
        store.artifacts.undelete("t/w/a")
        assert store.lifecycle.run().purged == 0
        assert store.artifacts.get("t/w/a") == b"x"


class TestPlans:
    def _aged(self, store, clock, count=5):
        for number in range(count):
            _put(store, f"t/w/{number}")
            clock.advance(60)
        clock.advance(days=8)

    def test_it_is_given_in_pages(self, store, clock):
        self._aged(store, clock)
        whole = list(store.lifecycle.plan())
        paged, after = [], None

        while page := list(store.lifecycle.plan(2, after=after)):
            paged += page
            after = (page[-1].due_at_ns, page[-1].id)

        assert paged == whole
        assert [move.name for move in whole] == [f"t/w/{number}" for number in range(5)]

    def test_it_looks_ahead(self, store, clock):
        _put(store, "t/w/a")

        assert _plan(store) == {}
        assert _plan(store, until_ns=clock.at_ns + 7 * DAY) == {"t/w/a": "warm"}
        assert _plan(store, until_ns=clock.at_ns + 7 * DAY - 1) == {}
        assert _plan(store, until_ns=clock.at_ns + 90 * DAY) == {"t/w/a": "purge"}
        assert store.lifecycle.run().promoted_to_warm == 0

    def test_a_saved_one_does_just_what_it_says(self, store, clock):
        self._aged(store, clock)
        plan = list(store.lifecycle.plan(2))

        outcome = store.lifecycle.run(plan=plan)

        assert (outcome.promoted_to_warm, outcome.refused) == (2, 0)
        assert _names(store, tier="warm") == ["t/w/0", "t/w/1"]
        assert store.lifecycle.run(plan=plan).refused == 2

    def test_a_saved_one_is_refused_where_something_has_changed(self, store, clock):
        self._aged(store, clock, 7)
        plan = list(store.lifecycle.plan())
        store.artifacts.put("t/w/0", b"y")
        store.artifacts.move("t/w/1", "cold")
        store.artifacts.rename("t/w/2", "t/w/renamed")
        store.artifacts.delete("t/w/3")
        store.artifacts.delete("t/w/4")
        _put(store, "t/w/4")
        store.lifecycle.configure(tenants={"t": {"hot_days": 1, "warm_days": 2}})

        outcome = store.lifecycle.run(plan=plan)

        assert (outcome.promoted_to_warm, outcome.promoted_to_cold, outcome.refused) == (0, 0, 7)
        assert _names(store, tier="cold") == ["t/w/1"]

    def test_one_that_names_an_artifact_twice_moves_it_once(self, store, clock):
        _put(store, "t/w/a", content=LARGE)
        clock.advance(days=8)
        (move,) = store.lifecycle.plan()

        outcome = store.lifecycle.run(plan=[move, move, move._replace(id=12345)])

        assert (outcome.promoted_to_warm, outcome.errors) == (1, 0)
        assert store.artifacts.stat("t/w/a").tier == "warm"

    def test_what_explain_says(self, store, clock):
        _put(store, "t/w/a")
        start = clock.at_ns

        young = store.lifecycle.explain("t/w/a")
        clock.advance(days=8)
        old = store.lifecycle.explain("t/w/a")

        days = {"warm": 7, "cold": 30, "purge": 90}
        assert young.steps == tuple((step, start + age * DAY) for step, age in days.items())
        assert (young.name, young.tier, young.rule) == ("t/w/a", "hot", "default")
        assert (young.action, young.why) == (None, ("warm is not due yet",))
        assert (old.action, old.why) == ("warm", ("warm is due: there was no run yet",))
        with pytest.raises(NotFound):
            store.lifecycle.explain("t/w/nothing")
        with pytest.raises(NotFound):
            store.lifecycle.explain("t/w/a/b")


class TestQuotas:
    def test_bytes_are_exact_at_the_limit(self, store):
        store.lifecycle.configure(tenants={"t": {"bytes_max": 100}})
        _put(store, "t/w/a", content=b"x" * 60)
        _put(store, "t/v/b", content=b"x" * 40)

        for act in (
            lambda a: a.put("t/w/c", b"x"),
            lambda a: a.put("t/w/a", b"x" * 61),
            lambda a: a.put("t/w/a", LARGE),
        ):
            with pytest.raises(QuotaExceeded):
                act(store.artifacts)

        _put(store, "t/w/empty", content=b"")
        _put(store, "u/w/c", content=LARGE)
        assert store.artifacts.usage("t").bytes == 100
        assert store.check(verify=True).counts["files"] == 1

    def test_the_number_is_exact_at_the_limit(self, store):
        store.lifecycle.configure(tenants={"t": {"artifacts_max": 2}})
        _put(store, "t/w/a", "t/w/b")

        with pytest.raises(QuotaExceeded):
            _put(store, "t/w/c")

        _put(store, "t/w/a", content=LARGE)
        store.artifacts.delete("t/w/b")
        _put(store, "t/w/c")

    def test_who_has_more_than_he_may_can_still_shrink(self, store):
        _put(store, "t/w/a", content=b"x" * 60)
        _put(store, "t/w/b", content=b"x" * 60)
        store.lifecycle.configure(tenants={"t": {"bytes_max": 100, "artifacts_max": 1}})

        _put(store, "t/w/a", content=b"x" * 50)
        store.artifacts.update("t/w/b", {"k": 1})
        store.artifacts.move("t/w/b", "cold")
        store.artifacts.rename("t/w/b", "t/v/b")
        store.artifacts.rename("t/v", "t/u")

        with pytest.raises(QuotaExceeded):
            _put(store, "t/w/a", content=b"x" * 51)

    @pytest.mark.parametrize(
        ("old", "new"), [("u/w/b", "t/w/b"), ("u/w", "t/v"), ("u", "t"), ("u/w/b", "t/w/a")]
    )
    def test_what_comes_from_another_tenant_counts(self, store, old, new):
        _put(store, "u/w/b", content=b"x" * 51)
        if new != "t":
            _put(store, "t/w/a", content=b"x" * 50)
        store.lifecycle.configure(tenants={"t": {"bytes_max": 50}})
        before = _names(store)

        with pytest.raises(QuotaExceeded):
            store.artifacts.rename(old, new, replace=True)

        assert _names(store) == before
        store.lifecycle.configure(tenants={"t": {"bytes_max": 101}})
        store.artifacts.rename(old, new, replace=True)

    def test_put_many_stores_all_of_a_commit_or_nothing(self, store):
        store.lifecycle.configure(tenants={"t": {"artifacts_max": 5}})

        with pytest.raises(QuotaExceeded):
            store.artifacts.put_many({f"t/w/{number}": b"x" for number in range(6)})

        assert _names(store) == []
        assert store.artifacts.put_many({f"t/w/{number}": b"x" for number in range(5)}).new == 5


class TestCounts:
    def test_put_many_says_what_was_new_changed_and_the_same(self, store):
        a = store.artifacts
        first = a.put_many([("t/w/a", b"1"), ("t/w/b", b"2"), ("t/w/large", LARGE)])
        again = a.put_many({"t/w/a": b"1", "t/w/b": b"other", "t/w/large": LARGE, "t/w/c": b""})
        tagged = a.put_many({"t/w/a": b"1", "t/w/c": b""}, metadata={"k": 1})
        nothing = a.put_many({})

        assert first == (3, 3, 0, 0)
        assert again == (4, 1, 1, 2)
        assert tagged == (2, 0, 2, 0)
        assert nothing == (0, 0, 0, 0)
        assert a.stat("t/w/a").metadata == {"k": 1}

    def test_equal_content_of_one_put_many_is_stored_once(self, store):
        counts = store.artifacts.put_many({f"t/w/{number}": LARGE for number in range(5)})

        assert counts == (5, 5, 0, 0)
        assert store.check(verify=True).counts["files"] == 1
        for number in range(4):
            store.artifacts.delete(f"t/w/{number}")
        assert store.artifacts.get("t/w/4") == LARGE

    def test_the_parts_of_a_folder_come_in_their_order(self, store):
        stored = store.artifacts.put_parts("t/w/album", [bytes([n]) for n in range(11)])
        _put(store, "t/w/album/2b.jpg", "t/w/album/sub/3")

        parts = store.artifacts.parts("t/w/album")

        names = [part.artifact.rpartition("/")[2] for part in parts]
        assert [part.name for part in stored] == [f"t/w/album/{n}" for n in range(1, 12)]
        assert names == ["1", "2", "2b.jpg", *map(str, range(3, 12))]
        with pytest.raises(Exists):
            store.artifacts.put_parts("t/w/album", [b"x"])
        with pytest.raises(NotFound):
            store.artifacts.parts("t/w/nothing")

    def test_usage_is_exact_wherever_things_go(self, store, clock):
        a = store.artifacts
        _put(store, "t/w/a", "t/w/d/b", "u/v/c", content=b"xyz")
        a.move("t/w/a", "cold")
        a.hold("u/v/c", "smith")
        a.rename("t/w/d", "u/n")
        clock.advance(days=8)
        store.lifecycle.run()

        def numbers(path):
            totals = a.usage(path)
            return (*map(tuple, totals.tiers), totals.held)

        assert numbers("") == ((0, 0), (2, 6), (1, 3), 1)
        assert numbers("t") == numbers("t/w") == ((0, 0), (0, 0), (1, 3), 0)
        assert numbers("u") == ((0, 0), (2, 6), (0, 0), 1)
        assert [(name, totals.artifacts) for name, totals in a.usages()] == [("t", 1), ("u", 2)]
        assert [(name, totals.held) for name, totals in a.usages("u")] == [("n", 0), ("v", 1)]
        assert (a.usage().artifacts, a.usage().bytes) == (3, 9)
        with pytest.raises(NotFound):
            a.usage("nobody")
        with pytest.raises(InvalidValue):
            a.usage("t/w/a")


class TestListing:
    def test_the_newest_of_a_workflow_in_pages(self, store, clock):
        for number in (3, 1, 4, 0, 2):
            _put(store, f"t/w/{number % 2}/{number}")
            clock.advance(1)

        first = _names(store, "t/w", newest=True, limit=2)
        rest = _names(store, "t/w", newest=True, after=first[-1])

        assert first == ["t/w/0/2", "t/w/0/0"]
        assert rest == ["t/w/0/4", "t/w/1/1", "t/w/1/3"]
        assert _names(store, "t/w/1", newest=True) == ["t/w/1/1", "t/w/1/3"]
        assert _names(store, "t/nothing", newest=True) == []

    def test_the_newest_of_all(self, store, clock):
        names = ["t/w/a", "u/v/b", "t/v/c", "t/w/d/e"]
        for name in names:
            _put(store, name)
            clock.advance(1)

        assert _names(store, newest=True) == names[::-1]
        assert _names(store, "t", newest=True) == ["t/w/d/e", "t/v/c", "t/w/a"]
        assert _names(store, newest=True, after="t/v/c") == ["u/v/b", "t/w/a"]
        assert _names(store, newest=True, newer_than=2, limit=5) == names[:1:-1]

    def test_pages_go_on_after_a_name_even_if_it_is_gone(self, store):
        _put(store, "t/w/a", "t/w/a-", "t/w/a0/x", "t/w/a/b".replace("a/", "d/"), "u/w/z")
        whole = _names(store)
        store.artifacts.delete(whole[1])

        paged = [whole[0]]
        while page := _names(store, after=paged[-1] if len(paged) > 1 else whole[1], limit=1):
            paged += page

        assert [paged[0], whole[1], *paged[1:]] == whole


class TestRestorations:
    def test_one_for_a_time_goes_back_by_itself(self, store, clock):
        _put(store, "t/w/a", content=LARGE)
        store.artifacts.move("t/w/a", "cold")

        back = store.artifacts.restore("t/w/a", for_seconds=3600)

        assert (back.tier, back.returns_at_ns) == ("hot", clock.at_ns + 3600 * SECOND)
        assert store.lifecycle.explain("t/w/a").steps[0] == ("cold", back.returns_at_ns)
        clock.advance(3599)
        assert store.lifecycle.run().promoted_to_cold == 0
        clock.advance(1)
        assert store.lifecycle.run().promoted_to_cold == 1
        found = store.artifacts.stat("t/w/a")
        assert (found.tier, found.returns_at_ns) == ("cold", 0)
        assert store.artifacts.get("t/w/a") == LARGE

    def test_it_can_be_made_longer(self, store, clock):
        _put(store, "t/w/a")
        store.artifacts.move("t/w/a", "cold")
        store.artifacts.restore("t/w/a", for_seconds=3600)

        again = store.artifacts.restore("t/w/a", for_seconds=7200)

        assert again.returns_at_ns == clock.at_ns + 7200 * SECOND
        clock.advance(7200)
        assert store.lifecycle.run().promoted_to_cold == 1

    def test_without_a_time_it_stays(self, store, clock):
        _put(store, "t/w/a")
        store.artifacts.move("t/w/a", "cold")
        store.artifacts.restore("t/w/a", for_seconds=3600)

        assert store.artifacts.restore("t/w/a").returns_at_ns == 0
        clock.advance(days=1)
        assert store.lifecycle.run().promoted_to_cold == 0

    def test_what_would_be_purged_is_not_while_it_is_restored(self, store, clock):
        _put(store, "t/w/a", metadata={"retention_override": "10d"})
        store.artifacts.move("t/w/a", "cold")
        store.artifacts.restore("t/w/a", for_seconds=20 * 86400)
        clock.advance(days=15)
        assert store.lifecycle.run().purged == 0
        clock.advance(days=5)

        assert _plan(store) == {"t/w/a": "purge"}
        assert store.lifecycle.run().purged == 1

    def test_all_of_a_workflow(self, store, clock):
        _put(store, "t/w/a", "t/w/d/b", "t/v/c", tier="cold")
        _put(store, "t/w/warm", tier="warm")
        _put(store, "t/w/hot")

        dry = store.artifacts.restore_all("t/w", dry_run=True)
        assert store.artifacts.stat("t/w/a").tier == "cold"
        one = store.artifacts.restore_all("t/w", from_tier="cold", limit=1, for_seconds=60)
        rest = store.artifacts.restore_all("t/w", "warm")

        assert [each.name for each in dry] == ["t/w/warm", "t/w/a", "t/w/d/b"]
        assert [(each.name, each.tier) for each in one] == [("t/w/a", "hot")]
        assert one[0].returns_at_ns == clock.at_ns + 60 * SECOND
        assert [(each.name, each.tier) for each in rest] == [("t/w/d/b", "warm")]
        assert store.artifacts.stat("t/v/c").tier == "cold"

    def test_to_a_colder_tier_is_refused(self, store):
        _put(store, "t/w/a")

        with pytest.raises(InvalidValue, match="hotter"):
            store.artifacts.restore("t/w/a", "cold")
        with pytest.raises(InvalidValue):
            store.artifacts.restore("t/w/a", for_seconds=-1)

    def test_several_of_equal_content_at_once_all_come_whole(self, store):
        # They share a file: whoever moves it second finds that the first one was there.
        names = [f"t/w/{number}" for number in range(6)]
        errors = []

        def move(name, tier, barrier):
            barrier.wait(20)
            try:
                store.artifacts.move(name, tier)
            except Exception as error:  # noqa: BLE001  (told by the test)
                errors.append(error)

        for turn in range(6):
            content = random.Random(turn).randbytes(2_000_000)
            _put(store, *names, content=content, tier="cold")
            for tier in ("hot", "cold", "warm"):
                barrier = threading.Barrier(len(names))
                threads = [
                    threading.Thread(target=move, args=(name, tier, barrier)) for name in names
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            assert errors == []
            assert {store.artifacts.get(name) for name in names} == {content}
        assert store.check(verify=True).clean


class TestDigests:
    def test_a_tenant_may_have_sha256(self, store):
        store.lifecycle.configure(tenants={"t": {"sha256": True}})
        for content in (b"", b"small", LARGE):
            _put(store, "t/w/a", content=content)
            assert store.artifacts.stat("t/w/a").sha256 == hashlib.sha256(content).hexdigest()
        _put(store, "u/w/a")
        assert store.artifacts.stat("u/w/a").sha256 == ""
        store.artifacts.put_many({"t/w/b": LARGE, "t/w/c": b"c"})
        assert store.artifacts.stat("t/w/b").sha256 == hashlib.sha256(LARGE).hexdigest()
        store.artifacts.rename("t/w/b", "u/w/b")
        store.artifacts.move("u/w/b", "cold")
        assert store.artifacts.verify("u/w/b").sha256 == hashlib.sha256(LARGE).hexdigest()


def _other_process(path, text):
    code = f"import sys, kvstate\nwith kvstate.open(sys.argv[1]) as store:\n    {text}\n"
    done = subprocess.run(
        [sys.executable, "-c", code, path],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(map(str, ROOTS)), "PATH": ""},
        timeout=60,
    )
    return done.stdout.strip()


class TestOtherProcesses:
    @pytest.fixture
    def embedded(self, tmp_path, open_checked, clock):
        return open_checked(tmp_path / "store", clock=clock)

    def test_what_one_configures_the_others_see(self, embedded, tmp_path):
        _put(embedded, "t/w/a")
        _other_process(embedded.path, "store.lifecycle.configure(hot_days=0.5, trash_days=3)")

        assert embedded.lifecycle.policy()["hot_days"] == 0.5
        with serving(embedded, tmp_path / "s"), kvstate.connect(tmp_path / "s") as client:
            assert client.lifecycle.policy()["trash_days"] == 3
            client.lifecycle.configure(hot_days=0.25)
            assert embedded.lifecycle.policy()["hot_days"] == 0.25
        said = _other_process(embedded.path, "print(store.lifecycle.explain('t/w/a').steps[0][1])")
        assert int(said) == embedded.artifacts.stat("t/w/a").written_at_ns + DAY // 4

    def test_two_with_other_settings_each_go_by_their_own(self, tmp_path, clock, open_checked):
        loose = open_checked(tmp_path / "store", clock=clock)
        _put(loose, "t/w/a")
        loose.lifecycle.run()
        loose.close()

        strict = open_checked(tmp_path / "store", clock=clock, settings=StoreSettings(hot_days=1))
        clock.advance(days=2)
        assert _plan(strict) == {"t/w/a": "warm"}
        strict.lifecycle.run()
        _put(strict, "t/w/b")
        strict.close()

        loose = open_checked(tmp_path / "store", clock=clock)
        clock.advance(days=6)
        assert _plan(loose) == {}
        clock.advance(days=1)
        assert _plan(loose) == {"t/w/b": "warm"}

    def test_settings_that_do_not_fit_what_was_configured_give_way(
        self, tmp_path, clock, open_checked
    ):
        first = open_checked(tmp_path / "store", clock=clock)
        first.lifecycle.configure(warm_days=20, tenants={"acme": {"warm_days": 10}})
        _put(first, "t/w/a", "acme/w/a")
        first.close()

        other = open_checked(tmp_path / "store", clock=clock, settings=StoreSettings(hot_days=25))

        def days_of(name):
            steps = other.lifecycle.explain(name).steps
            return [(step, (at - clock.at_ns) // DAY) for step, at in steps]

        assert days_of("t/w/a") == [("warm", 20), ("cold", 20), ("purge", 90)]
        assert days_of("acme/w/a") == [("warm", 10), ("cold", 10), ("purge", 90)]
        _put(other, "t/w/b")
        assert other.lifecycle.run().errors == 0
        assert _names(other) == ["acme/w/a", "t/w/a", "t/w/b"]

    def test_a_read_is_recorded_in_batches(self, embedded, clock):
        names = [f"t/w/{number:03}" for number in range(300)]
        embedded.artifacts.put_many(dict.fromkeys(names, b"x"))
        written = clock.at_ns
        clock.advance(days=2)

        for name in names[:255]:
            embedded.artifacts.get(name)
        assert embedded.artifacts.stat(names[0]).accessed_at_ns == written
        embedded.artifacts.get(names[255])
        assert embedded.artifacts.stat(names[0]).accessed_at_ns == clock.at_ns
        embedded.artifacts.get(names[299])
        assert embedded.artifacts.stat(names[299]).accessed_at_ns == written
        embedded.reads.flush()
        assert embedded.artifacts.stat(names[299]).accessed_at_ns == clock.at_ns

    def test_verify_finds_a_sha256_that_is_wrong(self, embedded):
        embedded.lifecycle.configure(sha256=True)
        _put(embedded, "t/w/a", content=LARGE)
        catalog = embedded.catalog
        node = catalog.walk_path(("t", "w", "a"))
        right = node.sha256
        catalog.edit(node.id, lambda file, _: file._replace(sha256=bytes(32)), "broken")

        with pytest.raises(Damaged, match="SHA-256"):
            embedded.artifacts.verify("t/w/a")
        (found,) = embedded.artifacts.verify_all("t")
        assert found.problem

        catalog.edit(node.id, lambda file, _: file._replace(sha256=right), "mended")
        assert embedded.artifacts.verify("t/w/a").sha256 == right.hex()

    def test_a_configuration_while_a_run_goes_on(self, embedded, clock):
        names = [f"t/w/{number:04}" for number in range(3000)]
        embedded.artifacts.put_many(dict.fromkeys(names, b"x"))
        clock.advance(days=8)
        changed = []

        def tell(done, _total, _name):
            if done == 700 and not changed:
                changed.append(done)
                embedded.lifecycle.configure(hot_days=20, rules=[{"prefix": "x"}])

        embedded.lifecycle.run(progress=tell)

        warm = sum(1 for _ in embedded.artifacts.list(tier="warm"))
        assert changed
        assert 0 < warm < 3000
        assert _plan(embedded) == {}
        assert embedded.lifecycle.run().promoted_to_warm == 0
        clock.advance(days=12)
        assert embedded.lifecycle.run().promoted_to_warm == 3000 - warm

    def test_a_renamed_workflow_of_ten_thousand_comes_under_its_rules(self, embedded, clock):
        names = [f"t/w/{number:05}" for number in range(10_000)]
        embedded.artifacts.put_many(dict.fromkeys(names, b"x"))
        embedded.lifecycle.configure(
            rules=[{"prefix": "u/fast", "hot_days": 1}], tenants={"v": {"artifacts_max": 9_999}}
        )
        embedded.lifecycle.run()
        clock.advance(days=2)
        assert _plan(embedded) == {}

        embedded.artifacts.rename("t/w", "u/fast")
        assert len(_plan(embedded)) == 10_000
        embedded.artifacts.rename("u/fast", "t/w/below")
        assert _plan(embedded) == {}
        embedded.artifacts.rename("t/w/below", "u/fast")
        with pytest.raises(QuotaExceeded):
            embedded.artifacts.rename("u", "v")

        assert embedded.lifecycle.run().promoted_to_warm == 10_000
        assert embedded.artifacts.usage("u/fast").warm.artifacts == 10_000

    def test_a_folder_that_is_renamed_while_all_is_looked_at_again_is_not_forgotten(
        self, embedded, clock
    ):
        # Without a rule that asks for names; the pass over all has gone past the new name.
        for name in ("m", "z"):
            embedded.artifacts.put_many({f"t/{name}/{n:04}": b"x" for n in range(1200)})
        embedded.lifecycle.run()
        embedded.lifecycle.configure(hot_days=1)

        def stop(done, _total, _name):
            if done == 1:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            embedded.lifecycle.run(progress=stop)
        embedded.artifacts.rename("t/z", "t/a")
        embedded.lifecycle.run()
        clock.advance(days=1)

        assert embedded.lifecycle.run().promoted_to_warm == 2400

    def test_a_clock_that_jumps_back_moves_nothing_and_forgets_nothing(self, embedded, clock):
        _put(embedded, "t/w/a")
        clock.advance(days=8)
        embedded.lifecycle.run()
        clock.advance(days=-100)

        assert embedded.lifecycle.run().errors == 0
        assert embedded.artifacts.get("t/w/a") == b"x"
        _put(embedded, "t/w/b")
        clock.advance(days=7)
        assert _plan(embedded) == {"t/w/b": "warm"}
        clock.advance(days=115)
        assert _plan(embedded) == {"t/w/a": "cold", "t/w/b": "purge"}


def test_conflicts_are_named(store):
    _put(store, "t/w/a")

    with pytest.raises(Conflict):
        store.artifacts.put("t/w/a/b", b"x")
    _put(store, "t/w/d/b")
    with pytest.raises(Conflict):
        store.artifacts.hold("t/w/d", "smith")
