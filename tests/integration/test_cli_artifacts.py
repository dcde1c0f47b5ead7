"""The commands on artifacts and their lifecycle, on a store and through a daemon's socket."""

from __future__ import annotations

import json
import re
import time
import tomllib
from contextlib import contextmanager

import pytest

from kvstate.demo import rotate
from kvstate.keyspace import ROOT_ID
from kvstate.store import open_store
from kvstate.tally import totals_record
from kvstate.toml import as_toml
from kvstated.server import serving
from tests.harness import ManualClock
from tests.integration.lines import Line
from tests.integration.test_cli import Shell

LARGE = bytes(range(256)) * 1200


@pytest.fixture(params=["store", "daemon"])
def kvstate(request, tmp_path, capsys):
    """Give the command line; `planted` gives the store itself, so many days ago."""
    path = tmp_path / "store"
    if request.param == "store":

        @contextmanager
        def planted(days_ago=0):
            clock = ManualClock(time.time_ns())
            clock.advance(days=-days_ago)
            with open_store(path, clock=clock) as store:
                yield store

        with planted():
            pass
        yield Line(["--store", path], capsys, planted)
        with planted() as store:
            assert store.check(verify=True).problems == ()
        return
    clock = ManualClock(time.time_ns())

    @contextmanager
    def planted(days_ago=0):
        clock.advance(days=-days_ago)
        yield store
        clock.advance(days=days_ago)

    store = open_store(path, clock=clock)
    with store, serving(store, tmp_path / "socket"):
        yield Line(["--socket", tmp_path / "socket"], capsys, planted)
        assert store.check(verify=True).problems == ()


@pytest.fixture
def files(tmp_path):
    """Give a folder of files that are small, large and empty."""
    folder = tmp_path / "files"
    folder.mkdir()
    for name, content in (("small", b"small"), ("large", LARGE), ("empty", b"")):
        (folder / name).write_bytes(content)
    return folder


def aged(kvstate):
    """Store an artifact in each tier and one that is to be purged, written so long ago."""
    for days, name in ((100, "gone"), (40, "cold"), (10, "warm"), (0, "hot")):
        with kvstate.planted(days) as store:
            store.artifacts.put(f"acme/w/{name}", name.encode() * 50_000)


def damage(kvstate, name):
    """Change a byte of an artifact's file."""
    with kvstate.planted() as store:
        digest = store.artifacts.stat(name).digest
        path = store.path
    (file,) = [each for each in path.glob("tiers/*/??/*") if each.stat().st_size]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return digest


# Putting and listing


def test_several_files_are_stored_in_one_go_and_not_again(kvstate, files):
    arguments = ["put", files / "small", files / "large", files / "empty", "acme/w/f"]

    assert kvstate(*arguments) == "3 total, 3 new, 0 changed, 0 unchanged\n"
    assert kvstate(*arguments) == "3 total, 0 new, 0 changed, 3 unchanged\n"
    assert kvstate.names(*arguments) == ["acme/w/f/small", "acme/w/f/large", "acme/w/f/empty"]
    with kvstate.planted() as store:
        assert store.artifacts.get("acme/w/f/large") == LARGE


def test_two_files_of_one_name_are_refused_before_anything_is_stored(kvstate, files):
    (files / "more").mkdir()
    (files / "more/small").write_bytes(b"other")

    error = kvstate.error("put", files / "small", files / "more/small", "acme/w/f", code=2)

    assert "several would be acme/w/f/small" in error
    assert kvstate("ls") == ""


def test_a_file_that_cannot_be_read_stores_none_of_its_batch(kvstate, files):
    kvstate.error("put", files / "small", files / "none", "acme/w/f", code=1)

    assert kvstate("ls") == ""


def test_parts_are_stored_and_listed_in_order(kvstate, files):
    pictures = [files / f"{letter}.jpg" for letter in "klmnopqrstuv"]
    for picture in pictures:
        picture.write_bytes(picture.name.encode())

    put = kvstate.names("put", *pictures, "acme/w/album", "--parts")

    assert put == [f"acme/w/album/{number}.jpg" for number in range(1, 13)]
    assert kvstate.names("ls", "--parts", "acme/w/album") == put
    assert kvstate.names("ls", "acme/w/album")[1] == "acme/w/album/10.jpg"
    kvstate.error("put", pictures[0], "acme/w/album", "--parts", code=4)
    kvstate.error("ls", "--parts", "acme/w/album", "--held", code=2)
    kvstate.error("ls", "--parts", "acme/w/none", code=3)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--tier", "cold"], ["b"]),
        (["--older-than", "7d"], ["a"]),
        (["--newer-than", "7d"], ["b", "c"]),
        (["--newer-than", "2000-01-31", "--older-than", "8d12h"], ["a"]),
        (["--older-than", "2000-01-31T10:00:00+02:00"], []),
        (["--min-size", "2KiB"], ["c"]),
        (["--max-size", "1.5kB".replace("kB", "KB")], ["a", "b"]),
        (["--meta", "kind=log"], ["a"]),
        (["--meta", "n:=3"], ["b"]),
        (["--meta", "n=3"], []),
        (["--meta", "kind=log", "--meta", "n:=3"], []),
        (["--held"], ["c"]),
        (["--limit", "2"], ["a", "b"]),
        (["--after", "acme/w/a"], ["b", "c"]),
        (["--newest"], ["c", "b", "a"]),
        (["--newest", "--limit", "1"], ["c"]),
    ],
)
def test_a_listing_gives_what_its_options_say(kvstate, files, arguments, names):
    with kvstate.planted(9) as store:
        store.artifacts.put("acme/w/a", b"a", metadata={"kind": "log"})
    with kvstate.planted(2) as store:
        store.artifacts.put("acme/w/b", b"b", metadata={"n": 3}, tier="cold")
    kvstate("put", files / "large", "acme/w/c")
    kvstate("hold", "acme/w/c", "case")

    found = kvstate.names("ls", "acme/w", *arguments)

    assert found == [f"acme/w/{name}" for name in names]


def test_metadata_is_text_or_json(kvstate, files):
    kvstate("put", files / "small", "acme/w/a", "--meta", "n=3", "--meta", 'm:={"k": [1]}')

    assert kvstate.lines("stat", "acme/w/a")[0]["metadata"] == {"n": "3", "m": {"k": [1]}}
    for wrong in ("n", "=3", ":=3", "n:={"):
        kvstate.error("put", files / "small", "acme/w/b", "--meta", wrong, code=2)
    assert kvstate.names("ls") == ["acme/w/a"]


def test_the_reason_of_each_act_is_in_the_journal(kvstate, files):
    small = files / "small"
    kvstate("put", small, "acme/w/a", "--reason", "r1")
    kvstate("put", small, small.with_name("large"), "acme/w/many", "--reason", "r2")
    kvstate("put", small, "acme/w/parts", "--parts", "--reason", "r3")
    kvstate("hold", "acme/w/a", "case", "--reason", "r4")
    kvstate("release", "acme/w/a", "case", "--reason", "r5")
    kvstate("tier", "acme/w/a", "cold", "--reason", "r6")
    kvstate("restore", "acme/w/a", "--reason", "r7")
    kvstate("mv", "acme/w/a", "acme/w/b", "--reason", "r8")
    kvstate("rm", "acme/w/b", "--reason", "r9")

    whys = [event["why"] for event in kvstate.lines("journal") if event["kind"] != "mkdir"]

    assert whys[1:5] == ["r1", "r2", "r2", "r3"]
    assert whys[5:] == ["case: r4", "case: r5", "r6", "r7", "r8", "r9"]


# Holds and the trash


def test_what_is_held_stays_until_its_release(kvstate, files):
    kvstate("put", files / "small", "acme/w/a")
    (held,) = kvstate.lines("hold", "acme/w/a", "case-17", "--reason", "audit")

    assert held["holds"]["case-17"]["reason"] == "audit"
    for act in (["rm", "acme/w/a"], ["mv", "acme/w/a", "acme/w/b"]):
        assert "held by 'case-17'" in kvstate.error(*act, code=1)
    assert "held by 'case-17'" in kvstate.error("put", files / "large", "acme/w/a", code=1)
    kvstate("release", "acme/w/a", "case-17")
    kvstate.error("release", "acme/w/a", "case-17", code=3)
    kvstate("rm", "acme/w/a")


def test_what_was_deleted_comes_back_from_the_trash(kvstate, files):
    kvstate("lifecycle", "configure", "trash_days=7")
    for name in ("a", "b", "c"):
        kvstate("put", files / "small", f"acme/w/{name}")
    kvstate("rm", "acme/w/a", "acme/w/b", "--reason", "tidying")
    kvstate("rm", "acme/w/c", "--no-trash")

    assert kvstate.names("trash") == ["acme/w/a", "acme/w/b"]
    assert kvstate.names("trash", "acme/w/b") == ["acme/w/b"]
    assert re.fullmatch(
        r"hot +5 until \S+ \S+ acme/w/a \(tidying\)\n", kvstate("trash", "acme/w/a")
    )
    kvstate("undelete", "acme/w/a")
    kvstate.error("undelete", "acme/w/c", code=3)
    assert kvstate("trash", "--empty") == "emptied: 1\n"
    assert kvstate("trash") == ""
    assert kvstate.names("ls") == ["acme/w/a"]


def test_rm_says_of_each_whether_it_was_there(kvstate, files):
    kvstate("put", files / "small", "acme/w/a")

    gone = kvstate.lines("rm", "acme/w/none", "acme/w/a", code=3)

    assert [each["deleted"] for each in gone] == [False, True]


# Restoring


@pytest.fixture
def archived(kvstate):
    """Give the command line of a store with things in all tiers."""
    with kvstate.planted() as store:
        for tier, name in (("cold", "a"), ("warm", "b"), ("warm", "c"), ("hot", "d")):
            store.artifacts.put(f"acme/w/{name}", name.encode(), tier=tier)
        store.artifacts.put("zeta/w/e", b"e", tier="warm")
    return kvstate


@pytest.mark.parametrize("flag", ["--list", "--dry-run"])
@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--workflow", "acme"], ["acme/w/b", "acme/w/c", "acme/w/a"]),
        (["--workflow", "acme", "--from-tier", "cold"], ["acme/w/a"]),
        (["--workflow", "acme/w", "--from-tier", "warm"], ["acme/w/b", "acme/w/c"]),
        (["--workflow", "acme", "--tier", "warm"], ["acme/w/a"]),
        (["--from-tier", "warm", "--auto-select"], ["acme/w/b"]),
        (["acme/w/a", "zeta/w/e"], ["acme/w/a", "zeta/w/e"]),
    ],
)
def test_what_would_be_restored_is_listed_and_stays(archived, flag, arguments, names):
    before = archived("ls")

    assert archived.names("restore", *arguments, flag) == names
    assert archived("ls") == before


def test_a_workflow_is_restored_from_one_tier(archived):
    said = archived("restore", "--workflow", "acme/w", "--from-tier", "warm")

    assert [line.split()[0] for line in said.splitlines()] == ["hot", "hot"]
    assert archived.names("ls", "--tier", "hot") == ["acme/w/b", "acme/w/c", "acme/w/d"]


def test_the_first_that_is_found_is_restored_for_a_time(archived):
    (restored,) = archived.lines(
        "restore", "--workflow", "acme", "--from-tier", "cold", "--auto-select", "--for", "7d"
    )

    assert (restored["name"], restored["tier"]) == ("acme/w/a", "hot")
    assert restored["returns_at"] is not None
    assert "restored for a time" in archived("lifecycle", "explain", "acme/w/a")


def test_one_that_cannot_be_restored_does_not_keep_back_the_others(archived):
    names = ["acme/w/none", "acme/w/a", "acme/w/b"]

    error = archived.error("restore", *names, "--from-tier", "warm", code=3)

    assert error.splitlines() == [
        "kvstate: no artifact 'acme/w/none'",
        "kvstate: no artifact in the warm tier 'acme/w/a'",
    ]
    assert archived.names("ls", "acme", "--tier", "hot") == ["acme/w/b", "acme/w/d"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["--from-tier", "cold"], 2),
        (["acme/w/a", "--workflow", "acme"], 2),
        (["acme/w/a", "--auto-select"], 2),
        (["acme/w/a", "--for", "soon"], 2),
        (["acme/w/d", "--tier", "warm"], 2),
        (["--workflow", "acme/none"], 3),
    ],
)
def test_a_restoration_that_may_mean_anything_is_refused(archived, arguments, code):
    before = archived("ls")

    assert archived.error("restore", *arguments, code=code).startswith("kvstate: ")
    assert archived("ls") == before


def test_a_drill_restores_a_sample_and_leaves_the_store_alone(archived, tmp_path):
    target = tmp_path / "drill"
    (before,) = archived.lines("stats")

    said = archived("drill", "acme", "--from-tier", "warm", "--target", target, "--count", "9")

    assert re.search(r"^ok: acme/w/b \(1 B\)$", said, re.MULTILINE)
    assert "2 of 2 restored and compared" in said
    assert (target / "acme/w/c").read_bytes() == b"c"
    assert archived.lines("drill")[0]["ok"] is True
    (after,) = archived.lines("stats")
    assert (after["revision"], after["tiers"]) == (before["revision"], before["tiers"])
    archived.error("drill", "acme/none", code=3)
    archived.error("drill", "--count", "0", code=2)


# What is damaged


def test_what_is_damaged_is_named_and_the_rest_verified(kvstate, files):
    kvstate("put", files / "small", files / "large", files / "empty", "acme/w/f")
    assert kvstate("verify", "--all") == "3 artifacts, 300 KiB: none damaged\n"
    damage(kvstate, "acme/w/f/large")

    said = kvstate("verify", "--all", code=5).splitlines()

    assert said[0].startswith("acme/w/f/large: ")
    assert said[1:] == ["3 artifacts, 300 KiB: 1 damaged"]
    verified = kvstate.lines("verify", "acme/w/f", code=5)
    assert [bool(each["problem"]) for each in verified] == [False, True, False]
    kvstate("verify", "acme/w/f/small")
    kvstate("verify", "acme/w/f/small", "acme/none", "none", code=3)
    kvstate("verify", "none", "acme/w/f/large", code=5)
    kvstate("put", files / "large", "acme/w/f/large")


@pytest.mark.parametrize("arguments", [[], ["--all", "acme"]])
def test_verify_wants_to_know_what(kvstate, arguments):
    kvstate.error("verify", *arguments, code=2)


def test_a_scrub_finds_what_is_damaged(kvstate, files):
    kvstate("put", files / "small", files / "large", "acme/w/f")
    assert kvstate("scrub", "--rate", "500MiB/s").startswith("clean: ")
    damage(kvstate, "acme/w/f/large")

    said = kvstate("scrub", "--all", code=5).splitlines()

    assert said[0].startswith("blob ")
    assert said[1].startswith("1 damaged, 0 healed: ")
    (facts,) = kvstate.lines("scrub", code=5)
    assert (facts["complete"], facts["healed"], len(facts["damaged"])) == (True, 0, 1)
    kvstate.error("scrub", "--rate", "fast", code=2)
    kvstate("put", files / "large", "acme/w/f/large")
    kvstate("scrub")


def test_a_scrub_goes_on_where_the_last_one_ended_unless_told(kvstate, files):
    kvstate("put", files / "large", "acme/w/f")
    with kvstate.planted() as store:
        store.scrub(bytes_max=len(LARGE) // 2)

    (rest,) = kvstate.lines("scrub")
    with kvstate.planted() as store:
        store.scrub(bytes_max=len(LARGE) // 2)
    (whole,) = kvstate.lines("scrub", "--all")

    assert (rest["complete"], rest["blobs"]) == (True, 0)
    assert (whole["complete"], whole["blobs"]) == (True, 1)


def test_a_drill_of_what_is_damaged_says_so(kvstate, files):
    kvstate("put", files / "large", "acme/w/f")
    damage(kvstate, "acme/w/f")

    said = kvstate("drill", "--from-tier", "hot", code=5)

    assert "0 of 1 restored and compared" in said
    kvstate("put", files / "large", "acme/w/f")


def test_a_wrong_count_is_found_and_repaired(kvstate, files):
    kvstate("put", files / "large", "acme/w/f")
    with kvstate.planted() as store:
        store.engine.txn(lambda tx: tx.put(*totals_record(ROOT_ID, [9] * 8)))

    assert "usage: " in kvstate("check", code=5)
    (facts,) = kvstate.lines("check", "--repair")
    assert [problem["kind"] for problem in facts["repaired"]] == ["usage"]
    assert facts["clean"] is True
    assert kvstate("check").startswith("clean: ")
    assert kvstate.lines("usage")[-1]["hot"]["artifacts"] == 1


# Figures


def test_usage_counts_tenants_and_workflows(kvstate, files):
    kvstate("put", files / "small", "acme/w/a")
    kvstate("put", files / "small", "acme/v/a", "--tier", "cold")
    kvstate("put", files / "large", "zeta/w/a")
    kvstate("hold", "zeta/w/a", "case")

    table = [line.split() for line in kvstate("usage").splitlines()[1:]]
    rows = {each["name"]: each for each in kvstate.lines("usage", "acme")}

    assert [line[0] for line in table] == ["acme", "zeta", "together"]
    assert table[2][1:] == ["2", "300", "KiB", "0", "0", "B", "1", "5", "B", "3", "300", "KiB", "1"]
    assert list(rows) == ["acme/v", "acme/w", "acme"]
    assert rows["acme/v"]["cold"] == {"artifacts": 1, "bytes": 5}
    assert rows["acme"]["artifacts"] == 2
    assert kvstate.lines("usage", "zeta/w/")[0]["held"] == 1
    kvstate.error("usage", "none", code=3)
    kvstate.error("usage", "a/b/c", code=2)


def test_stats_are_a_table_for_people(kvstate, files):
    kvstate("put", files / "small", "acme/w/a")
    kvstate("put", files / "large", "zeta/w/a", "--tier", "cold")

    said = kvstate("stats")

    assert re.search(r"^tier +artifacts +size +free$", said, re.MULTILINE)
    assert re.search(r"^cold +1 +300 KiB ", said, re.MULTILINE)
    assert re.search(r"^acme +1 +5 B$", said, re.MULTILINE)
    assert "damaged:\n  blobs: 0\n" in said
    assert "last_run: -\n" in said
    (facts,) = kvstate.lines("stats")
    assert facts["tenants"]["zeta"] == {"artifacts": 1, "bytes": 307200}
    assert facts["tiers"]["hot"] == {"artifacts": 1, "bytes": 5}


def test_stats_show_the_largest_tenants_alone(kvstate):
    with kvstate.planted() as store:
        store.artifacts.put_many({f"tenant{n:02}/w/a": b"x" * n for n in range(12)})

    said = kvstate("stats")

    assert "tenant11" in said
    assert "tenant01" not in said
    assert "and 2 more: kvstate usage" in said


# The lifecycle


def test_a_saved_plan_is_carried_out_as_far_as_nothing_has_changed(kvstate, files, tmp_path):
    aged(kvstate)
    saved = kvstate("--json", "lifecycle", "plan")
    (tmp_path / "plan").write_text(saved + "\n")
    kvstate("put", files / "small", "acme/w/warm")
    (dry,) = kvstate.lines("lifecycle", "run", "--plan", tmp_path / "plan", "--dry-run", code=4)

    (outcome,) = kvstate.lines("lifecycle", "run", "--plan", tmp_path / "plan", code=4)

    assert [json.loads(line)["name"][7:] for line in saved.splitlines()] == ["gone", "cold", "warm"]
    for each in (dry, outcome):
        assert [each[key] for key in ("purged", "promoted_to_cold", "refused")] == [1, 1, 1]
    assert kvstate.names("ls", "--tier", "hot") == ["acme/w/hot", "acme/w/warm"]
    assert kvstate("lifecycle", "plan") == ""


def test_a_plan_comes_in_pages_and_looks_ahead(kvstate):
    aged(kvstate)
    pages, after = [], []
    for _ in range(3):
        pages.append(kvstate.lines("lifecycle", "plan", "--limit", "2", *after))
        if pages[-1]:
            after = ["--after", f"{pages[-1][-1]['due_at_ns']},{pages[-1][-1]['id']}"]

    assert [[each["name"][7:] for each in page] for page in pages] == [
        ["gone", "cold"],
        ["warm"],
        [],
    ]
    later = kvstate.lines("lifecycle", "plan", "--until", "8d")
    assert (later[-1]["name"], later[-1]["target"]) == ("acme/w/hot", "warm")
    assert " hot -> warm 150000 acme/w/hot\n" in kvstate("lifecycle", "plan", "--until", "8d")
    assert kvstate.lines("lifecycle", "plan", "--until", "2100-01-01")[-1]["target"] == "purge"


@pytest.mark.parametrize(
    "line",
    ["x", "[]", "{}", '{"name": "acme/w/a"}', '{"a": 1}', "5"],
)
def test_a_plan_that_is_none_is_refused_with_its_line(kvstate, tmp_path, line):
    aged(kvstate)
    saved = kvstate("--json", "lifecycle", "plan")
    (tmp_path / "plan").write_text(saved + line)

    error = kvstate.error("lifecycle", "run", "--plan", tmp_path / "plan", code=2)

    assert f"{tmp_path}/plan:4" in error
    assert len(kvstate.names("ls")) == 4


@pytest.mark.parametrize("change", [{"id": -1}, {"id": 2**70}, {"target": "x"}, {"name": "/"}])
def test_a_plan_of_what_is_not_there_is_refused(kvstate, tmp_path, change):
    aged(kvstate)
    moves = kvstate.lines("lifecycle", "plan", "--limit", "1")
    (tmp_path / "plan").write_text(json.dumps({**moves[0], **change}))

    for flag in ("--dry-run", "--live"):
        (outcome,) = kvstate.lines("lifecycle", "run", flag, "--plan", tmp_path / "plan", code=4)
        assert (outcome["refused"], outcome["purged"]) == (1, 0)
    assert len(kvstate.names("ls")) == 4


def test_a_run_says_each_step_if_asked(kvstate):
    aged(kvstate)

    dry = kvstate("lifecycle", "run", "--dry-run", "--verbose")
    assert "hot -> purge 200000 acme/w/gone\n" in dry
    assert "purged: 1\n" in dry
    assert len(kvstate.names("ls")) == 4
    live = kvstate("lifecycle", "run", "--live", "--verbose")
    assert sorted(live.splitlines()[:3]) == [
        "promoted_to_cold: acme/w/cold (older than 30 days)",
        "promoted_to_warm: acme/w/warm (older than 7 days)",
        "purged: acme/w/gone (older than 90 days)",
    ]
    assert "promoted_to_cold: 1\n" in live
    assert len(kvstate.names("ls")) == 3


def test_explain_says_what_is_due_when_and_what_is_in_the_way(kvstate):
    aged(kvstate)
    kvstate("hold", "acme/w/gone", "case-17", "--reason", "audit")

    said = kvstate("lifecycle", "explain", "acme/w/gone")
    (facts,) = kvstate.lines("lifecycle", "explain", "acme/w/hot")

    assert said.startswith("acme/w/gone: hot, decided by: default\n")
    assert "held for 'case-17'" in said
    assert [step["action"] for step in facts["steps"]] == ["warm", "cold", "purge"]
    assert facts["steps"][0]["due_at"].startswith("20")
    kvstate.error("lifecycle", "explain", "acme/w/none", code=3)


def test_rules_are_changed_and_taken_back(kvstate, tmp_path):
    (tmp_path / "rules.toml").write_text(
        '[[rules]]\nname = "logs"\nglob = "**/*.log"\ntags = {kind = "a \\"log\\""}\n'
        'cold_days = "never"\n\n[[rules]]\nprefix = "acme/"\nhot_days = 1\n'
    )
    kvstate("lifecycle", "configure", "hot_days=36h", "cold_days=never", "sha256=true")
    kvstate("lifecycle", "configure", "--rules", tmp_path / "rules.toml")
    said = kvstate("lifecycle", "configure", "--tenant", "vip", "hot_days=14", "bytes_max=10GiB")

    policy = tomllib.loads(said)
    assert policy["lifecycle"]["hot_days"] == 1.5
    assert policy["lifecycle"]["cold_days"] == "never"
    assert policy["lifecycle"]["sha256"] is True
    assert policy["lifecycle"]["rules"] == [
        {
            "name": "logs",
            "glob": "**/*.log",
            "tags": {"kind": 'a "log"'},
            "cold_days": "never",
        },
        {"prefix": "acme/", "hot_days": 1},
    ]
    assert policy["tenants"] == {"vip": {"hot_days": 14, "bytes_max": "10GiB"}}
    assert kvstate.lines("lifecycle", "policy")[0]["tenants"] == policy["tenants"]
    kvstate("lifecycle", "configure", "hot_days=", "cold_days=", "sha256=", "rules=")
    kvstate("lifecycle", "configure", "--tenant", "vip", "hot_days=", "bytes_max=")
    kvstate("lifecycle", "configure", "--tenant", "vip", "rules=")
    assert tomllib.loads(kvstate("lifecycle", "policy")) == {
        "lifecycle": {"hot_days": 7, "warm_days": 30, "cold_days": 90}
    }


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["hot_days"],
        ["hot_dais=3"],
        ["hot_days=often"],
        ["hot_days=40"],
        ["bytes_max=1GiB"],
        ["--tenant", "vip", "bytes_max=much"],
        ["--tenant", "vip", "sha256=perhaps"],
        ["--rules", "none.toml"],
        ["--rules", "broken.toml"],
        ["--rules", "more.toml"],
    ],
)
def test_a_rule_that_cannot_be_is_refused_and_changes_nothing(
    kvstate, tmp_path, monkeypatch, arguments
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.toml").write_text("[[rules]\n")
    (tmp_path / "more.toml").write_text('[[rules]]\nprefix = "a/"\n[tenants.b]\nhot_days = 1\n')
    before = kvstate("lifecycle", "policy")

    code = 1 if "none.toml" in arguments else 2

    assert kvstate.error("lifecycle", "configure", *arguments, code=code).startswith("kvstate: ")
    assert kvstate("lifecycle", "policy") == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["ls", "--older-than", "yesterday"],
        ["ls", "--min-size", "1 KB."],
        ["ls", "--max-size", "-5"],
        ["ls", "--meta", "x"],
        ["ls", "--limit", "many"],
        ["ls", "acme/w", "--after", "zeta/w/a"],
        ["lifecycle", "plan", "--until", "never"],
        ["lifecycle", "plan", "--after", "5"],
        ["lifecycle", "plan", "--after", "x,y"],
        ["lifecycle", "run", "--dry-run", "--live", "--plan"],
        ["demo", "rotation", "--count", "0"],
        ["demo", "rotation", "--tenant", "a/b"],
    ],
)
def test_what_cannot_be_meant_is_refused(kvstate, arguments):
    code, out, err = kvstate.run(*arguments)

    assert (code, out) == (2, "")
    assert err


# The demonstration


def test_the_rotation_moves_what_is_old_and_verifies_all(tmp_path):
    clock = ManualClock()

    shown = rotate(tmp_path / "store", clock, count=49, tenant="acme", force_age=True)

    # 2.5 days lie between two of the 49.
    assert shown.before["hot"]["artifacts"] == 49
    assert len(shown.plan) == 46
    assert shown.outcome.promoted_to_warm == 9
    assert shown.outcome.promoted_to_cold == 24
    assert shown.outcome.purged == 13
    assert [tier["artifacts"] for tier in shown.after.values()] == [3, 9, 24]
    assert {event["tenant_id"] for event in shown.events} == {"acme"}
    assert shown.restored.tier == "hot"
    assert len(shown.verified) == 36
    assert not any(each.problem for each in shown.verified)


def test_a_dry_rotation_and_a_new_one_move_nothing(tmp_path):
    dry = rotate(tmp_path / "a", ManualClock(), count=10, force_age=True, dry_run=True)
    new = rotate(tmp_path / "b", ManualClock(), count=10)

    assert dry.outcome.dry_run
    assert dry.outcome.purged > 0
    assert dry.after == dry.before
    assert (new.plan, new.outcome.purged, new.restored) == ((), 0, None)


def test_the_demonstration_leaves_nothing_behind(tmp_path):
    shell = Shell()
    arguments = ["demo", "rotation", "--count", "12", "--force-age", "--tenant", "globex_inc"]

    done = shell.run(*arguments, TMPDIR=str(tmp_path))
    facts = json.loads(shell("--json", *arguments, "--dry-run"))

    assert (done.returncode, done.stderr) == (0, b"")
    assert "promoted_to_warm: " in done.stdout.decode()
    assert "globex_inc/" in done.stdout.decode()
    assert list(tmp_path.iterdir()) == []
    assert facts["outcome"]["dry_run"] is True
    assert facts["after"]["hot"]["artifacts"] == 12


def test_rules_of_the_settings_file_are_shown_as_they_are_read(kvstate, tmp_path):
    settings = (
        '[lifecycle]\ncold_days = "never"\n[[lifecycle.rules]]\nglob = "**/*.log"\n'
        'cold_days = "never"\n[tenants.vip]\nhot_days = 14\nrules = [{prefix = "vip/a"}]\n'
    )
    (tmp_path / "k.toml").write_text(settings)

    shown = tomllib.loads(kvstate("config", "show", "--file", tmp_path / "k.toml"))
    (facts,) = kvstate.lines("config", "show", "--file", tmp_path / "k.toml")

    written = tomllib.loads(settings)
    assert shown["lifecycle"]["cold_days"] == facts["lifecycle"]["cold_days"] == "never"
    assert shown["lifecycle"]["rules"] == facts["rules"] == written["lifecycle"]["rules"]
    assert shown["tenants"] == facts["tenants"] == written["tenants"]


def test_settings_as_toml_are_read_back_as_they_were():
    tables = {
        "lifecycle": {
            "hot_days": 1.5,
            "cold_days": 1e-7,
            "warm_days": 30.0,
            "big": 1e15,
            "sha256": False,
            "rules": [
                {"name": 'a "b"\\\n\x7f é', "tags": {"k.x": "v", "n": 3}, "size_min": 5},
                {"prefix": "x/"},
            ],
        },
        "tenants": {"a.b": {"rules": [{"glob": "*"}]}, "c": {}, "d": {"names": ["x", "y"]}},
    }

    assert tomllib.loads(as_toml(tables)) == tables
