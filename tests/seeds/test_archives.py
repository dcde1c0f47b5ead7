"""An archive in tiers with retention, restoration, audit and drills: what its guide promises.

Each section of the guide runs here; `docs/coming-from-tiered-folders.md` says which call became
which, and names the test that runs it.
"""

from __future__ import annotations

import json
import re
import shlex
import time
from datetime import timedelta
from pathlib import Path

import pytest

import kvstate
from kvstate.cli.arguments import parser
from kvstate.store import open_store
from kvstated.server import serving
from tests.harness import ManualClock
from tests.integration.lines import Line
from tests.integration.test_cli import Shell

GUIDE = Path(__file__).parents[2] / "docs/coming-from-tiered-folders.md"
NAME = "acme_corp/weekly_report/report_2024_01.md"
DAY = timedelta(days=1)


@pytest.fixture
def run(request, store, tmp_path, capsys):
    """Give the command line, through the socket of a server of the same store."""
    if isinstance(store, kvstate.RemoteStore):
        yield Line(["--socket", tmp_path / "socket"], capsys)
        return
    with serving(store, tmp_path / "socket"):
        yield Line(["--socket", tmp_path / "socket"], capsys)


@pytest.fixture
def archive(store, clock):
    """Give a store in which artifacts have aged through all tiers."""
    for days, name in (
        (100, "acme/wf1/gone.txt"),
        (50, "acme/wf1/old.txt"),
        (30, "acme/wf1/document.txt"),
        (25, "acme/important_project/a.pdf"),
        (20, "acme/important_project/b.pdf"),
        (15, "globex/wf1/c.txt"),
        (0, "acme/wf1/new.txt"),
    ):
        clock.advance(days=-days)
        store.artifacts.put(name, name.encode() * 10_000, metadata={"days": days})
        clock.advance(days=days)
    store.lifecycle.run()
    return store


def tiers(store):
    return {
        tier: [each.name for each in store.artifacts.list(tier=tier)]
        for tier in ("hot", "warm", "cold")
    }


# Quick start


def test_the_rotation_demo_ages_artifacts_and_restores_one(run):
    said = run("demo", "rotation", "--count", "50", "--force-age")
    (dry,) = run.lines("demo", "rotation", "--count", "25", "--dry-run", "--tenant", "acme_corp")

    assert "Stored 50 artifacts" in said
    assert re.search(r"promoted_to_warm: [1-9]", said)
    assert re.search(r"promoted_to_cold: [1-9]", said)
    assert re.search(r"purged: [1-9]", said)
    assert "Brought back:\n  hot " in said
    assert said.endswith("artifacts: none damaged\n")
    assert (dry["outcome"]["dry_run"], dry["after"]["hot"]["artifacts"]) == (True, 25)


def test_a_lifecycle_job_is_tried_out_and_then_run(archive, clock, run):
    clock.advance(days=10)
    before = tiers(archive)

    assert "promoted_to_warm: 1\n" in run("lifecycle", "run", "--dry-run")
    assert tiers(archive) == before
    said = run("lifecycle", "run", "--live", "--verbose")
    assert "promoted_to_warm: acme/wf1/new.txt (older than 7 days)\n" in said
    assert "promoted_to_warm: 1\n" in said
    assert tiers(archive)["hot"] == []
    assert "promoted_to_warm: 0\n" in run("lifecycle", "run")


def test_the_state_is_summarized(archive, run):
    summary = json.loads(run("--json", "lifecycle", "summary"))

    assert summary["tiers"]["warm"]["artifacts"] == 3
    assert summary["last_run"]["purged"] == 1
    assert summary["next_due"] is not None
    assert re.search(r"^warm +3 ", run("stats"), re.MULTILINE)


def test_an_artifact_is_listed_tried_and_restored(archive, run):
    listed = run.names("restore", "--workflow", "acme", "--from-tier", "warm", "--list")
    assert listed == ["acme/important_project/a.pdf", "acme/important_project/b.pdf"]
    one = "acme/wf1/document.txt"
    assert run.names("restore", one, "--from-tier", "cold", "--dry-run") == [one]
    assert archive.artifacts.stat(one).tier == "cold"

    run("restore", one, "--from-tier", "cold", "--tier", "hot", "--reason", "asked for")

    assert archive.artifacts.stat(one).tier == "hot"
    assert archive.artifacts.get(one) == one.encode() * 10_000
    run.error("restore", one, "--from-tier", "cold", code=3)


def test_the_first_that_is_found_is_restored(archive, run):
    restored = run.names("restore", "--workflow", "acme", "--from-tier", "warm", "--auto-select")

    assert restored == ["acme/important_project/a.pdf"]
    assert archive.artifacts.stat(restored[0]).tier == "hot"


def test_a_job_without_a_daemon_works_on_the_folder(tmp_path, capsys, monkeypatch):
    path = tmp_path / "artifacts"
    clock = ManualClock(time.time_ns())
    clock.advance(days=-10)
    with open_store(path, clock=clock) as store:
        store.artifacts.put("acme/wf1/a.txt", b"a")
    monkeypatch.setenv("KVSTATE_STORE", str(path))
    here = Line([], capsys)

    assert "promoted_to_warm: 1\n" in here("lifecycle", "run")
    assert here("check", "--verify").startswith("clean: ")
    assert run_names(here) == [("acme/wf1/a.txt", "warm")]


def run_names(line):
    return [(each["name"], each["tier"]) for each in line.lines("ls")]


# Python API


def test_an_artifact_is_written_and_read_with_its_metadata(store, clock):
    metadata = {"report_date": "2024-01-15", "author": "Alice", "version": "1.0"}

    store.artifacts.put(NAME, b"# Weekly Report\n...", metadata=metadata)
    clock.advance(days=40)
    store.lifecycle.run()

    found = store.artifacts.stat(NAME)
    assert store.artifacts.get(NAME).startswith(b"# Weekly Report")
    assert (found.tier, found.metadata["author"]) == ("cold", "Alice")
    assert found.created_at_ns == found.modified_at_ns == clock.at_ns - 40 * 86400 * 10**9
    assert (found.tenant, found.workflow, found.artifact) == tuple(NAME.split("/"))


def test_artifacts_of_a_tier_are_listed_for_all_or_for_one_tenant(archive):
    warm = list(archive.artifacts.list(tier="warm"))
    of_one = list(archive.artifacts.list("globex", tier="warm"))

    assert [each.tenant for each in warm] == ["acme", "acme", "globex"]
    assert [(each.workflow, each.artifact, each.size) for each in of_one] == [
        ("wf1", "c.txt", 160_000)
    ]


def test_an_artifact_is_moved_and_restored_or_only_tried(archive, clock):
    name = "acme/wf1/new.txt"
    archive.artifacts.move(name, "warm")

    assert [each.name for each in archive.artifacts.restore_all(name, dry_run=True)] == [name]
    assert archive.artifacts.stat(name).tier == "warm"
    assert archive.artifacts.restore(name).tier == "hot"
    archive.artifacts.restore("acme/wf1/old.txt", for_seconds=2 * DAY)
    clock.advance(days=3)
    archive.lifecycle.run()
    assert archive.artifacts.stat("acme/wf1/old.txt").tier == "cold"
    assert archive.artifacts.stat(name).tier == "hot"


def test_a_lifecycle_job_gives_its_counters(store, clock):
    for days in (100, 50, 10, 0):
        clock.advance(days=-days)
        store.artifacts.put(f"acme/wf1/{days}", b"content")
        clock.advance(days=days)

    dry = store.lifecycle.run(dry_run=True)
    live = store.lifecycle.run(dry_run=False)

    for result in (dry, live):
        assert (result.promoted_to_warm, result.promoted_to_cold, result.purged) == (1, 1, 1)
        assert result.errors == 0
        assert result.seconds >= 0


# Recovery


def test_a_whole_workflow_is_restored(archive, clock):
    restored = archive.artifacts.restore_all("acme/important_project", from_tier="warm")

    assert [each.artifact for each in restored] == ["a.pdf", "b.pdf"]
    assert {each.tier for each in archive.artifacts.list("acme/important_project")} == {"hot"}
    clock.advance(days=6)
    archive.lifecycle.run()
    assert len(list(archive.artifacts.list("acme/important_project", tier="hot"))) == 2


def test_what_was_purged_by_accident_comes_back(store, clock, run):
    run("lifecycle", "configure", "trash_days=7")
    store.artifacts.put("acme/contracts/a.pdf", b"contract")
    clock.advance(days=91)

    assert store.lifecycle.run().purged == 1
    assert run.names("trash") == ["acme/contracts/a.pdf"]
    run("undelete", "acme/contracts/a.pdf")
    assert store.lifecycle.run().purged == 0
    assert store.artifacts.get("acme/contracts/a.pdf") == b"contract"


def test_what_is_important_is_never_purged(store, clock, run):
    run("lifecycle", "configure", "--tenant", "acme", "cold_days=never")
    for name in ("acme/contracts/a.pdf", "globex/contracts/a.pdf", "globex/contracts/b.pdf"):
        store.artifacts.put(name, b"contract")
    run("hold", "globex/contracts/a.pdf", "case-17", "--reason", "audit")

    clock.advance(days=500)
    store.lifecycle.run()

    assert tiers(store)["cold"] == ["acme/contracts/a.pdf", "globex/contracts/a.pdf"]


def test_a_reviewed_plan_is_carried_out_as_it_was(archive, clock, run, tmp_path):
    clock.advance(days=10)
    (tmp_path / "plan").write_text(run("--json", "lifecycle", "plan"))
    archive.artifacts.put("acme/wf1/new.txt", b"written since")

    (outcome,) = run.lines("lifecycle", "run", "--plan", tmp_path / "plan", code=4)

    assert (outcome["refused"], outcome["promoted_to_cold"]) == (1, 2)
    assert archive.artifacts.stat("acme/wf1/new.txt").tier == "hot"


# Isolation and audit


@pytest.mark.parametrize(
    "name",
    [
        "../../../etc/weekly_report/report.md",
        "acme_corp//tmp/exploit/report.md",
        "acme_corp/weekly_report/../../passwd",
        "acme:corp/weekly_report/report.md",
        "acme_corp/weekly*/report.md",
        'acme_corp/weekly_report/"report"?.md',
        "acme_corp/<weekly>/report|.md",
        "acme_corp\\weekly_report\\report.md",
        "/acme_corp/weekly_report/report.md",
    ],
)
def test_names_that_lead_out_of_a_tenant_are_refused(store, name):
    with pytest.raises(kvstate.InvalidName):
        store.artifacts.put(name, b"content")

    assert list(store.artifacts.list()) == []


def test_the_audit_trail_has_the_fields_of_the_log(archive, run):
    events = list(archive.audit(newest=20))
    trail = [json.loads(line) for line in run("journal", "--audit").splitlines()]
    of_one = [
        json.loads(line)
        for line in run("journal", "--audit", "--newest", "20", "--tenant", "globex").splitlines()
    ]

    (moved,) = [
        each
        for each in trail
        if (each["event_type"], each["artifact_id"]) == ("promoted_to_warm", "a.pdf")
    ]
    assert moved == moved | {
        "tenant_id": "acme",
        "workflow_id": "important_project",
        "age_days": 25,
        "dry_run": False,
    }
    assert moved["timestamp"].startswith("2023-11-14T")
    assert [each["event_type"] for each in of_one] == ["written", "promoted_to_warm"]
    assert len(events) == len(trail) == 7 + 6
    assert {each["event_type"] for each in events} >= {"purged", "promoted_to_cold"}


# Monitoring


def test_each_tier_has_its_figures(archive, run):
    usage = archive.artifacts.usage()
    stats = archive.stats()

    assert [tier.artifacts for tier in usage.tiers] == [1, 3, 2]
    assert stats["tiers"]["warm"] == {"artifacts": 3, "bytes": usage.warm.bytes}
    assert dict(archive.artifacts.usages())["globex"].warm.artifacts == 1
    assert json.loads(run("--json", "stats"))["tiers"]["hot"]["artifacts"] == 1
    assert sum(each.size for each in archive.artifacts.list(tier="cold")) == usage.cold.bytes


# Troubleshooting


def test_why_nothing_is_moved_is_explained(archive, clock, run):
    found = archive.lifecycle.explain("acme/wf1/new.txt")

    assert (found.tier, found.rule, found.action) == ("hot", "default", None)
    assert found.steps[0] == ("warm", clock.at_ns + 7 * 86400 * 10**9)
    assert archive.lifecycle.policy()["hot_days"] == 7
    assert "warm is not due yet" in run("lifecycle", "explain", "acme/wf1/new.txt")
    run("hold", "acme/wf1/old.txt", "case-17")
    clock.advance(days=60)
    assert "held for 'case-17'" in run("lifecycle", "explain", "acme/wf1/old.txt")


def test_a_tier_that_grows_too_large_is_emptied_sooner(archive, clock, run):
    clock.advance(days=5)
    too_old = archive.artifacts.list(tier="hot", older_than=4 * DAY)
    assert [each.name for each in too_old] == ["acme/wf1/new.txt"]
    assert list(archive.lifecycle.plan()) == archive_moves(archive, "warm", "cold")

    run("lifecycle", "configure", "hot_days=3")

    assert [each.name for each in archive.lifecycle.plan() if each.source == "hot"] == [
        "acme/wf1/new.txt"
    ]
    assert "promoted_to_warm: 1\n" in run("lifecycle", "run")
    run("restore", "acme/wf1/new.txt")
    run("tier", "acme/wf1/new.txt", "warm")
    assert tiers(archive)["hot"] == []


def archive_moves(archive, source, target):
    return [
        each for each in archive.lifecycle.plan() if (each.source, each.target) == (source, target)
    ]


def test_what_was_lost_is_found_in_whatever_tier(archive, run):
    assert archive.artifacts.stat("acme/wf1/old.txt").tier == "cold"
    assert run.lines("stat", "acme/wf1/document.txt")[0]["tier"] == "cold"
    with pytest.raises(kvstate.NotFound):
        archive.artifacts.get("acme/wf1/gone.txt")

    trail = run("journal", "--audit", "--artifact", "acme/wf1/gone.txt").splitlines()

    assert [json.loads(line)["event_type"] for line in trail] == ["written", "purged"]


def test_damaged_content_is_named_and_healed(archive, run, tmp_path):
    name = "globex/wf1/c.txt"
    content = archive.artifacts.get(name)
    (file,) = [
        each
        for each in (tmp_path / "store/tiers/warm").glob("??/*")
        if b"globex" in each.read_bytes()
    ]
    file.write_bytes(content[:-1] + b"?")

    said = run("verify", "--all", code=5)

    assert said.startswith(f"{name}: ")
    assert said.endswith(": 1 damaged\n")
    with pytest.raises(kvstate.Damaged):
        archive.artifacts.get(name)
    archive.artifacts.put(name, content)
    assert run("verify", "globex").endswith(": none damaged\n")


# Best practices


def test_a_tenant_that_takes_too_much_is_seen_and_stopped(store, run):
    run("lifecycle", "configure", "--tenant", "acme", "bytes_max=1MiB")
    store.artifacts.put("acme/wf1/a", bytes(1_000_000))

    assert json.loads(run("--json", "stats"))["tenants"]["acme"]["bytes"] > 900_000
    with pytest.raises(kvstate.Full):
        store.artifacts.put("acme/wf1/b", bytes(100_000))
    store.artifacts.put("globex/wf1/b", bytes(100_000))


def test_a_critical_artifact_is_copied_out(archive, run):
    name = "acme/important_project/a.pdf"

    done = Shell(*run.door).run("cat", name)

    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == archive.artifacts.get(name) == name.encode() * 10_000


def test_a_contract_is_kept_for_7_years(store, clock, run, tmp_path):
    (tmp_path / "contract.pdf").write_bytes(b"signed")
    name = "acme/contracts/contract_2024.pdf"
    run("put", tmp_path / "contract.pdf", name, "--meta", "retention_override=7_years")
    store.artifacts.put("acme/contracts/draft.pdf", b"draft")

    clock.advance(days=7 * 365)
    store.lifecycle.run()
    assert tiers(store) == {"hot": [], "warm": [], "cold": [name]}
    clock.advance(days=3)
    store.lifecycle.run()
    assert not store.artifacts.exists(name)


def test_metadata_are_searched(store, run):
    contract = {"document_type": "contract", "customer": "Acme Corp", "value": 50000}
    store.artifacts.put("acme/contracts/contract_2024.pdf", b"pdf", metadata=contract)
    store.artifacts.put("acme/contracts/other.pdf", b"pdf", metadata=contract | {"value": 1})

    found = run.names(
        "ls", "acme/contracts", "--meta", "customer=Acme Corp", "--meta", "value:=50000"
    )

    assert found == ["acme/contracts/contract_2024.pdf"]
    listed = store.artifacts.list("acme", metadata={"document_type": "contract"})
    assert len(list(listed)) == 2


def test_the_monthly_drill_compares_what_it_restores(archive, run, tmp_path):
    before = archive.revision()

    said = run("drill", "acme", "--from-tier", "cold", "--count", "20")
    drill = archive.artifacts.drill(tmp_path / "drill", prefix="acme", count=1, seed=1)

    assert "2 of 2 restored and compared" in said
    assert drill.ok
    (restored,) = drill.restored
    assert (tmp_path / "drill" / restored.name).read_bytes() == restored.name.encode() * 10_000
    assert archive.revision() == before


# Advanced


def test_vip_tenants_stay_hot_for_14_days(store, clock, run):
    for tenant in ("acme_corp", "globex_inc", "other"):
        store.artifacts.put(f"{tenant}/wf1/a", b"content")
    for tenant in ("acme_corp", "globex_inc"):
        run("lifecycle", "configure", "--tenant", tenant, "hot_days=14")

    clock.advance(days=8)
    store.lifecycle.run()
    assert tiers(store)["hot"] == ["acme_corp/wf1/a", "globex_inc/wf1/a"]
    clock.advance(days=7)
    store.lifecycle.run()
    assert tiers(store)["hot"] == []


def test_the_retention_variables_mean_the_same(tmp_path, capsys, monkeypatch):
    clock = ManualClock(time.time_ns())
    clock.advance(days=-4)
    with open_store(tmp_path / "store", clock=clock) as store:
        store.artifacts.put("acme/wf1/a", b"content")
    here = Line(["--store", tmp_path / "store"], capsys)
    assert "promoted_to_warm: 0\n" in here("lifecycle", "run")

    for variable, days, counter in (
        ("HOT_RETENTION_DAYS", "3", "promoted_to_warm: 1\n"),
        ("WARM_RETENTION_DAYS", "3.5", "promoted_to_cold: 1\n"),
        ("COLD_RETENTION_DAYS", "3.6", "purged: 1\n"),
    ):
        monkeypatch.setenv(variable, days)
        assert counter in here("lifecycle", "run")

    assert here("ls") == ""


def test_the_cold_tier_is_copied_elsewhere_with_its_metadata(archive):
    bucket = {}

    for artifact in archive.artifacts.list("acme", tier="cold"):
        with archive.artifacts.open(artifact.name) as body:
            bucket[artifact.name] = (body.read(), artifact.metadata)

    assert {name: metadata for name, (_, metadata) in bucket.items()} == {
        "acme/wf1/document.txt": {"days": 30},
        "acme/wf1/old.txt": {"days": 50},
    }
    assert all(body == name.encode() * 10_000 for name, (body, _) in bucket.items())


def test_thousands_are_stored_at_once(store):
    before = store.revision()

    stored = store.artifacts.put_many({f"acme/wf1/{n:05}": b"%d" % n for n in range(3000)})

    assert stored.new == 3000
    assert store.revision() - before <= 10
    assert store.artifacts.usage("acme/wf1").hot.artifacts == 3000


def test_what_is_read_stays_hot(store, clock, run, tmp_path):
    (tmp_path / "rules.toml").write_text('[[rules]]\nname = "read"\nbasis = "access"\n')
    run("lifecycle", "configure", "--rules", tmp_path / "rules.toml")
    for name in ("acme/wf1/read", "acme/wf1/unread"):
        store.artifacts.put(name, b"content")

    clock.advance(days=6)
    store.artifacts.get("acme/wf1/read")
    store.lifecycle.run()
    clock.advance(days=2)
    store.lifecycle.run()

    assert tiers(store)["hot"] == ["acme/wf1/read"]
    assert tiers(store)["warm"] == ["acme/wf1/unread"]


# The guide itself


def rows():
    """Give the rows of the guide's tables: theirs, ours, the test."""
    lines = GUIDE.read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return [row for row in cells if row[0] not in {"theirs", "---"}]


def test_every_row_of_the_guide_is_run_by_a_test():
    named = [row[2] for row in rows()]

    assert len(named) > 40
    assert [name for name in named if name not in globals()] == []


def commands():
    """Give the arguments of every command that the guide shows."""
    for _, ours, _ in rows():
        for code in re.findall(r"`([^`]+)`", ours):
            command = re.search(r"\bkvstate (?:--|[a-z]).*", code)
            if command and not code.startswith("kvstate."):
                yield shlex.split(command[0].split(" > ")[0])[1:]


def test_every_command_of_the_guide_can_be_typed():
    typed = [parser().parse_args(arguments) for arguments in commands()]

    assert len(typed) > 25
    assert all(options.run for options in typed)
