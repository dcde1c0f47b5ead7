"""Rules, decided without a store."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstate.errors import InvalidValue
from kvstate.policy import DAY, Facts, Policy, override_ns

NOW = 1_700_000_000 * 10**9


def facts(path="t/w/a", *, tier=0, size=10, age_days=0.0, accessed_days=None, **more):
    written = NOW - round(age_days * DAY)
    accessed = written if accessed_days is None else NOW - round(accessed_days * DAY)
    plain = Facts(path, tier, size, {}, written, written, accessed, {}, None, None)
    return plain._replace(**more)


def steps_of(verdict):
    return [(step.action, (step.due_ns - NOW) / DAY) for step in verdict.steps]


def action(policy, *arguments, **options):
    return policy.verdict(facts(*arguments, **options), NOW).action


class TestAges:
    @pytest.mark.parametrize(
        ("tier", "age", "expected"),
        [
            (0, 6.9, None),
            (0, 7, "warm"),
            (0, 31, "cold"),
            (0, 90, "purge"),
            (1, 29, None),
            (1, 30, "cold"),
            (2, 89, None),
            (2, 90, "purge"),
        ],
    )
    def test_the_defaults(self, tier, age, expected):
        assert action(Policy(), tier=tier, age_days=age) == expected

    def test_the_steps_to_come(self):
        verdict = Policy().verdict(facts(), NOW)

        assert verdict.rule == "default"
        assert steps_of(verdict) == [("warm", 7), ("cold", 30), ("purge", 90)]
        assert verdict.look_ns == verdict.due_ns == NOW + 7 * DAY

    def test_the_reason(self):
        rules = [{"name": "idle", "prefix": "t/x", "basis": "access"}]
        policy = Policy.of({"rules": rules})

        assert policy.verdict(facts(age_days=8), NOW).why == "older than 7 days"
        idle = policy.verdict(facts("t/x/a", age_days=80, accessed_days=31), NOW)
        assert idle.why == "rule idle: not read for 30 days"

    def test_never(self):
        policy = Policy.of({"cold_days": "never"})

        assert action(policy, tier=2, age_days=36000) is None
        assert policy.verdict(facts(tier=2), NOW).look_ns is None

    def test_straight_to_cold(self):
        policy = Policy.of({"hot_days": 1, "warm_days": 1})

        assert action(policy, age_days=1) == "cold"

    def test_a_floor_that_no_rule_undercuts(self):
        rules = [{"prefix": "t/", "hot_days": 0, "warm_days": 0, "cold_days": 0}]
        policy = Policy.of({"floor_days": 5, "rules": rules})

        assert action(policy, age_days=4.9) == "cold"
        assert action(policy, age_days=4.9, metadata={"retention_override": "1d"}) == "cold"
        assert action(policy, tier=2, age_days=4.9) is None
        assert action(policy, tier=2, age_days=5) == "purge"


class TestRules:
    @pytest.mark.parametrize(
        ("match", "path", "size", "metadata", "expected"),
        [
            ({"prefix": "t/w/"}, "t/w/a", 1, {}, True),
            ({"prefix": "t/w/"}, "t/www/a", 1, {}, False),
            ({"glob": "t/*/a"}, "t/w/a", 1, {}, True),
            ({"glob": "t/*"}, "t/w/a", 1, {}, False),
            ({"glob": "**/*.log"}, "t/w/x/y/a.log", 1, {}, True),
            ({"glob": "**/*.log"}, "t/w/a.log.gz", 1, {}, False),
            ({"glob": "t/**"}, "t/w/a", 1, {}, True),
            ({"glob": "t/w/[ab]"}, "t/w/a", 1, {}, True),
            ({"glob": "t/w/[!ab]"}, "t/w/a", 1, {}, False),
            ({"glob": "t/w/?"}, "t/w/ab", 1, {}, False),
            ({"glob": "t/w/a.c"}, "t/w/abc", 1, {}, False),
            ({"tags": {"kind": "log"}}, "t/w/a", 1, {"kind": "log", "x": 1}, True),
            ({"tags": {"kind": None}}, "t/w/a", 1, {}, False),
            ({"size_min": 5}, "t/w/a", 5, {}, True),
            ({"size_min": 5}, "t/w/a", 4, {}, False),
            ({"size_max": "1KiB"}, "t/w/a", 1024, {}, True),
            ({"size_max": "1KiB"}, "t/w/a", 1025, {}, False),
            ({"prefix": "t/", "size_min": 5}, "t/w/a", 4, {}, False),
        ],
    )
    def test_what_they_match(self, match, path, size, metadata, expected):
        policy = Policy.of({"rules": [{"name": "it", **match}]})

        verdict = policy.verdict(facts(path, size=size, metadata=metadata), NOW)

        assert verdict.rule == ("rule it" if expected else "default")

    def test_the_first_that_matches_decides(self):
        rules = [{"name": "a", "prefix": "t/x"}, {"name": "b"}, {"name": "c"}]

        assert Policy.of({"rules": rules}).verdict(facts(), NOW).rule == "rule b"

    def test_a_tenants_section_stands_before_the_common_one(self):
        policy = Policy.of(
            {
                "hot_days": 1,
                "rules": [{"name": "common"}],
                "tenants": {"vip": {"hot_days": 14, "rules": [{"name": "own", "prefix": "vip/w"}]}},
            }
        )

        assert policy.verdict(facts("vip/w/a"), NOW).rule == "rule own"
        assert policy.verdict(facts("vip/x/a"), NOW).rule == "rule common"
        assert policy.verdict(facts("vip/x/a"), NOW).due_ns == NOW + 14 * DAY
        assert policy.verdict(facts("t/x/a"), NOW).due_ns == NOW + 1 * DAY

    def test_what_a_rule_leaves_out_is_inherited(self):
        policy = Policy.of({"rules": [{"warm_days": 100}]})

        verdict = policy.verdict(facts(), NOW)

        assert steps_of(verdict) == [("warm", 7), ("purge", 100)]

    def test_ages_since_the_last_read(self):
        policy = Policy.of({"rules": [{"basis": "access"}]})

        assert action(policy, age_days=100, accessed_days=6) is None
        assert action(policy, age_days=100, accessed_days=8) == "warm"


class TestOverride:
    @pytest.mark.parametrize(
        ("text", "days"),
        [
            ("14d", 14),
            ("36h", 1.5),
            ("1w", 7),
            ("3_weeks", 21),
            ("1 day", 1),
            ("2030-01-01", (datetime(2030, 1, 1, tzinfo=UTC).timestamp() * 1e9 - NOW) / DAY),
            (date(2030, 1, 1), (datetime(2030, 1, 1, tzinfo=UTC).timestamp() * 1e9 - NOW) / DAY),
        ],
    )
    def test_what_it_may_say(self, text, days):
        assert abs(override_ns(text, NOW) - NOW - days * DAY) < 1000

    def test_calendar_years(self):
        leap = round(datetime(2024, 2, 29, tzinfo=UTC).timestamp()) * 10**9

        assert datetime.fromtimestamp(override_ns("7_years", leap) // 10**9, UTC) == datetime(
            2031, 2, 28, tzinfo=UTC
        )
        assert datetime.fromtimestamp(override_ns("1_month", leap) // 10**9, UTC).month == 3

    def test_never(self):
        assert (
            action(Policy(), tier=2, age_days=9000, metadata={"retention_override": "never"})
            is None
        )

    @pytest.mark.parametrize("text", ["", "soon", "7", "-3d", "7_eons", 7, None, [], "2030-13-01"])
    def test_what_it_may_not(self, text):
        with pytest.raises(InvalidValue, match="retention_override"):
            override_ns(text, NOW)

    def test_a_short_one_purges_from_any_tier(self):
        assert action(Policy(), age_days=2, metadata={"retention_override": "2d"}) == "purge"

    def test_a_long_one_does_not_keep_it_hot(self):
        verdict = Policy().verdict(facts(metadata={"retention_override": "7_years"}), NOW)

        assert [step.action for step in verdict.steps] == ["warm", "cold", "purge"]
        assert verdict.rule == "retention_override = 7_years"


class TestBlocks:
    def test_a_hold_blocks_a_purge_only(self):
        held = {"holds": {"case-17": {}}}

        verdict = Policy().verdict(facts(tier=2, age_days=100, **held), NOW)
        assert (verdict.action, verdict.look_ns) == (None, None)
        assert verdict.blocks == ("held: case-17",)
        assert action(Policy(), tier=0, age_days=8, **held) == "warm"
        assert action(Policy(), tier=0, age_days=100, **held) == "cold"

    def test_what_failed_to_move_is_not_purged(self):
        failed = facts(tier=0, age_days=1000, failure=(1, NOW + 60))

        verdict = Policy().verdict(failed, NOW)
        assert (verdict.action, verdict.look_ns) == (None, NOW + 60)
        assert Policy().verdict(failed, NOW + 60).action == "warm"

    def test_a_restoration_for_a_time(self):
        verdict = Policy().verdict(facts(age_days=3, back=(2, NOW + 5)), NOW)

        assert (verdict.action, verdict.due_ns) == (None, NOW + 5)
        assert action(Policy(), age_days=3, back=(2, NOW)) == "cold"
        assert action(Policy(), age_days=8, tier=2, back=(2, NOW)) is None


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"hot_day": 1}, "lifecycle.hot_day"),
        ({"hot_days": -1}, "lifecycle.hot_days"),
        ({"hot_days": True}, "lifecycle.hot_days"),
        ({"hot_days": math.nan}, "lifecycle.hot_days"),
        ({"hot_days": 50}, "increase"),
        ({"floor_days": "never"}, "lifecycle.floor_days"),
        ({"rules": {}}, "lifecycle.rules"),
        ({"rules": [1]}, r"lifecycle.rules\[0\]"),
        ({"rules": [{}, {"globb": ""}]}, r"lifecycle.rules\[1\].globb"),
        ({"rules": [{"basis": "created"}]}, "basis"),
        ({"rules": [{"size_min": "many"}]}, "size_min"),
        ({"rules": [{"size_min": 2, "size_max": 1}]}, "size_max"),
        ({"rules": [{"keep_newest": -1}]}, "keep_newest"),
        ({"rules": [{"hot_days": 5, "cold_days": 1}]}, "increase"),
        ({"rules": [{"prefix": 5}]}, "prefix"),
        ({"tenants": {"a": 5}}, "tenants.a"),
        ({"tenants": {"a": {"sha256": 1}}}, "sha256"),
        ({"bytes_max": 1}, "lifecycle.bytes_max"),
    ],
)
def test_settings_that_cannot_be(settings, where):
    with pytest.raises(InvalidValue, match=where):
        Policy.of(settings)


@given(
    settings=st.sampled_from(
        [
            {},
            {"hot_days": 0, "warm_days": 0, "cold_days": 0},
            {"floor_days": 40},
            {"cold_days": "never"},
            {"rules": [{"prefix": "t/"}]},
            {"tenants": {"t": {"hot_days": 20, "floor_days": 100}}},
        ]
    ),
    tier=st.integers(0, 2),
    age=st.floats(0, 200),
    since=st.floats(0, 200),
    override=st.sampled_from([{}, {"retention_override": "10d"}]),
)
def test_the_short_way_agrees_with_the_verdict(settings, tier, age, since, override):
    policy = Policy.of(settings)
    written = NOW - round(age * DAY)
    seen = facts(tier=tier, age_days=age, metadata=override)
    seen = seen._replace(aged_from_ns=max(written, NOW - round(since * DAY)))

    verdict = policy.verdict(seen, NOW)

    assert policy.look_ns(seen, NOW) == (verdict.look_ns or 0, verdict.keep_newest)
