"""Artifacts, through every door."""

from __future__ import annotations

import hashlib
import io
import random
from datetime import timedelta

import pytest

from kvstate.errors import Conflict, Exists, InvalidName, InvalidValue, NotFound

SMALL = b"# Weekly report\n"
LARGE = random.Random(1).randbytes(300_000)
SIZES = [0, 1, 65535, 65536, 65537, 131072, 300_001, 5_000_000]


@pytest.fixture
def artifacts(store):
    return store.artifacts


@pytest.mark.parametrize("size", SIZES)
def test_content_of_every_size_comes_back(artifacts, size):
    content = random.Random(size).randbytes(size)

    stored = artifacts.put("acme/weekly/report.md", content)

    assert artifacts.get("acme/weekly/report.md") == content
    assert stored.size == size
    assert artifacts.verify("acme/weekly/report.md") == stored


def test_put_takes_bytes_a_path_and_a_file(artifacts, tmp_path):
    path = tmp_path / "source"
    path.write_bytes(LARGE)

    artifacts.put("a/b/bytes", LARGE)
    artifacts.put("a/b/path", path)
    artifacts.put("a/b/file", io.BytesIO(LARGE))

    assert [a.digest for a in artifacts.list("a/b")] == [artifacts.stat("a/b/bytes").digest] * 3
    assert artifacts.get("a/b/file") == artifacts.get("a/b/path") == LARGE


@pytest.mark.parametrize("content", [lambda: 7, lambda: None, lambda: io.StringIO("text")])
def test_put_refuses_what_has_no_bytes(artifacts, content):
    with pytest.raises(InvalidValue):
        artifacts.put("a/b/c", content())

    assert list(artifacts.list()) == []


def test_a_missing_source_file_is_named(artifacts, tmp_path):
    with pytest.raises(NotFound, match="no-such"):
        artifacts.put("a/b/c", tmp_path / "no-such")


def test_stat_says_what_it_is(artifacts, clock):
    artifacts.put("acme/weekly/2026/report.md", SMALL, metadata={"author": "Alice", "n": 1})
    clock.advance(5)

    found = artifacts.stat("acme/weekly/2026/report.md")

    assert (found.tenant, found.workflow, found.artifact) == ("acme", "weekly", "2026/report.md")
    assert (found.tier, found.size) == ("hot", len(SMALL))
    assert found.digest.startswith("xxh3:")
    assert found.metadata == {"author": "Alice", "n": 1}
    assert found.created_at == found.modified_at
    assert found.due_at - found.created_at == timedelta(days=7)
    assert found.holds == {}


def test_an_absent_artifact_is_not_found_by_every_call(artifacts):
    for call in (
        lambda: artifacts.get("a/b/c"),
        lambda: artifacts.stat("a/b/c"),
        lambda: artifacts.open("a/b/c"),
        lambda: artifacts.move("a/b/c", "cold"),
        lambda: artifacts.restore("a/b/c"),
        lambda: artifacts.rename("a/b/c", "a/b/d"),
        lambda: artifacts.verify("a/b/c"),
    ):
        with pytest.raises(NotFound):
            call()
    assert artifacts.delete("a/b/c") is False
    assert artifacts.exists("a/b/c") is False


def test_a_reader_is_a_seekable_binary_file(artifacts):
    artifacts.put("a/b/c", LARGE)

    with artifacts.open("a/b/c") as reader:
        assert reader.read(10) == LARGE[:10]
        assert reader.seek(-5, io.SEEK_END) == len(LARGE) - 5
        assert reader.read() == LARGE[-5:]
        assert reader.seek(65530) == 65530
        assert reader.read(20) == LARGE[65530:65550]
        assert reader.tell() == 65550
        assert reader.seek(10**9) == 10**9
        assert reader.read(1) == b""


def test_a_reader_keeps_what_it_opened(artifacts):
    artifacts.put("a/b/c", LARGE)

    with artifacts.open("a/b/c") as reader:
        first = reader.read(100)
        artifacts.put("a/b/c", b"new")
        artifacts.move("a/b/c", "cold")
        artifacts.delete("a/b/c")
        rest = reader.read()

    assert first + rest == LARGE


def test_a_writer_stores_on_close(artifacts):
    artifacts.put("a/b/c", b"old")

    with artifacts.open("a/b/c", "w") as writer:
        writer.write(LARGE[:100_000])
        writer.write(LARGE[100_000:])
        assert artifacts.get("a/b/c") == b"old"

    assert artifacts.get("a/b/c") == LARGE


def test_a_writer_stores_nothing_after_an_exception(artifacts):
    def fail_halfway():
        with artifacts.open("a/b/c", "w") as writer:
            writer.write(LARGE)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail_halfway()

    assert list(artifacts.list()) == []


def test_a_writer_that_wrote_nothing_stores_an_empty_artifact(artifacts):
    with artifacts.open("a/b/c", "w"):
        pass

    assert artifacts.get("a/b/c") == b""


def test_put_replaces_but_keeps_identity_and_metadata(artifacts, clock):
    first = artifacts.put("a/b/c", SMALL, metadata={"author": "Alice"})
    clock.advance(60)

    second = artifacts.put("a/b/c", LARGE)

    assert second.created_at == first.created_at
    assert second.modified_at - first.modified_at == timedelta(seconds=60)
    assert second.metadata == {"author": "Alice"}
    with pytest.raises(Exists):
        artifacts.put("a/b/c", SMALL, replace=False)
    assert artifacts.get("a/b/c") == LARGE


def test_update_replaces_the_metadata_alone(artifacts):
    artifacts.put("a/b/c", SMALL, metadata={"a": 1})

    assert artifacts.update("a/b/c", {"b": [2]}).metadata == {"b": [2]}
    assert artifacts.get("a/b/c") == SMALL


def test_list_walks_in_the_order_of_names(artifacts):
    names = ["a/b/c", "a/b/d/e", "a/b/d/f", "a/b2/x", "b/w/y"]
    for name in reversed(names):
        artifacts.put(name, name.encode())
    artifacts.move("a/b/d/f", "cold")

    assert [a.name for a in artifacts.list()] == names
    assert [a.name for a in artifacts.list("a/b")] == names[:3]
    assert [a.name for a in artifacts.list("a/b/")] == names[:3]
    assert [a.name for a in artifacts.list("a/b/c")] == ["a/b/c"]
    assert [a.name for a in artifacts.list("nope")] == []
    assert [a.name for a in artifacts.list(tier="cold")] == ["a/b/d/f"]
    assert [a.name for a in artifacts.list("a", tier="hot")] == ["a/b/c", "a/b/d/e", "a/b2/x"]


def test_list_goes_over_many_pages(artifacts):
    for number in range(600):
        artifacts.put(f"a/b/{number:05}", b"")

    assert [a.artifact for a in artifacts.list()] == [f"{number:05}" for number in range(600)]


def test_delete_takes_the_folders_that_were_made_for_it(artifacts, store):
    artifacts.put("a/b/c/d/e", SMALL)
    artifacts.put("a/x/y", SMALL)

    assert artifacts.delete("a/b/c/d/e") is True

    assert [a.name for a in artifacts.list()] == ["a/x/y"]
    assert artifacts.delete("a/b/c/d/e") is False


@pytest.mark.parametrize("content", [b"", SMALL, LARGE])
def test_a_name_lives_in_exactly_one_tier(artifacts, content):
    artifacts.put("a/b/c", content)

    for tier in ("cold", "warm", "hot", "hot"):
        assert artifacts.move("a/b/c", tier).tier == tier
        assert artifacts.get("a/b/c") == content
        shown = [t for t in ("hot", "warm", "cold") if list(artifacts.list(tier=t))]
        assert shown == [tier]


def test_who_wants_to_know_is_told_how_far_a_move_is(artifacts, request):
    large = b"x" * 5_000_000
    artifacts.put("a/b/c", large)
    told = []

    artifacts.move("a/b/c", "cold", progress=lambda *step: told.append(step))
    artifacts.restore("a/b/c", progress=lambda *step: told.append(step))

    assert {(total, name) for _, total, name in told} <= {(2 * len(large), "a/b/c")}
    if "client" not in request.node.name:  # it is told ten times a second, so perhaps never
        assert [done for done, total, _ in told if done == total] == [2 * len(large)] * 2


def test_a_move_down_keeps_the_age_and_a_restoration_begins_anew(artifacts, clock):
    stored = artifacts.put("a/b/c", LARGE)
    clock.advance(days=3)

    moved = artifacts.move("a/b/c", "cold")
    assert moved.due_at - stored.created_at == timedelta(days=90)

    restored = artifacts.restore("a/b/c")
    assert restored.tier == "hot"
    assert restored.due_at - stored.created_at == timedelta(days=10)
    with pytest.raises(InvalidValue):
        artifacts.restore("a/b/c", "cold")


@pytest.mark.parametrize("tier", ["", "HOT", "frozen", 1, None])
def test_another_word_is_no_tier(artifacts, tier):
    artifacts.put("a/b/c", SMALL)

    with pytest.raises(InvalidValue):
        artifacts.move("a/b/c", tier)


def test_equal_content_is_stored_once_over_all_tenants_and_tiers(artifacts, store):
    for number in range(5):
        artifacts.put(f"tenant{number}/w/small", SMALL)
        artifacts.put(f"tenant{number}/w/large", LARGE)
    artifacts.move("tenant0/w/large", "cold")

    assert store.check().counts["blobs"] == 2
    assert store.check().counts["files"] == 1

    for number in range(1, 5):
        artifacts.delete(f"tenant{number}/w/large")
    assert artifacts.get("tenant0/w/large") == LARGE
    assert artifacts.delete("tenant0/w/large") is True
    assert store.check().counts["files"] == 0


def test_rename_moves_an_artifact_and_refuses_a_taken_name(artifacts):
    artifacts.put("a/b/c", SMALL, metadata={"n": 1})
    artifacts.put("a/b/taken", LARGE)

    moved = artifacts.rename("a/b/c", "x/y/deep/er/c")

    assert moved.metadata == {"n": 1}
    assert artifacts.get("x/y/deep/er/c") == SMALL
    assert artifacts.exists("a/b/c") is False
    with pytest.raises(Exists):
        artifacts.rename("x/y/deep/er/c", "a/b/taken")
    artifacts.rename("x/y/deep/er/c", "a/b/taken", replace=True)
    assert [a.name for a in artifacts.list()] == ["a/b/taken"]
    assert artifacts.get("a/b/taken") == SMALL


def test_rename_moves_a_whole_folder(artifacts):
    artifacts.put("a/b/c", SMALL)
    artifacts.put("a/b/d/e", LARGE)
    artifacts.move("a/b/d/e", "cold")

    artifacts.rename("a/b", "new/place")

    assert [a.name for a in artifacts.list()] == ["new/place/c", "new/place/d/e"]
    assert artifacts.get("new/place/d/e") == LARGE
    assert [a.name for a in artifacts.list(tier="cold")] == ["new/place/d/e"]
    with pytest.raises(InvalidValue):
        artifacts.rename("new/place", "new/place/below/itself")
    with pytest.raises(InvalidName):
        artifacts.rename("new/place", "tenant-alone")


def test_an_artifact_is_no_folder_and_a_folder_no_artifact(artifacts):
    artifacts.put("a/b/c", SMALL)

    with pytest.raises(Conflict):
        artifacts.put("a/b/c/d", SMALL)
    artifacts.put("a/b/d/e", SMALL)
    with pytest.raises(Conflict):
        artifacts.put("a/b/d", SMALL)
    with pytest.raises(Conflict):
        artifacts.get("a/b/d")


BAD_NAMES = [
    "",
    "a",
    "a/b",
    "a/b/",
    "/a/b/c",
    "a//c",
    "a/b/..",
    "../b/c",
    "a/./c",
    "a:x/b/c",
    "a/b/c?",
    "a/b/c\n",
    "a/b/\0",
    "a\\b/c/d",
    'a/b/"',
    "a/b/" + "n" * 256,
    "a/b/\ud800",
    "a/" * 2100 + "c",
    7,
    None,
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_what_is_no_name_is_refused_by_every_call(artifacts, name):
    for call in (
        lambda: artifacts.put(name, SMALL),
        lambda: artifacts.get(name),
        lambda: artifacts.open(name, "w"),
        lambda: artifacts.stat(name),
        lambda: artifacts.delete(name),
        lambda: artifacts.move(name, "cold"),
    ):
        with pytest.raises(InvalidName):
            call()
    assert list(artifacts.list()) == []


GOOD_NAMES = [
    "-rf/--help/-",
    "世界/ ü/...",
    "CON/aux/.git",
    "a/b/" + "n" * 255,
    "a/b/con taining spaces",
]


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_names_are_kept_byte_for_byte(artifacts, name):
    artifacts.put(name, SMALL)

    assert [a.name for a in artifacts.list()] == [name]
    assert artifacts.get(name) == SMALL


def test_digests_tell_contents_apart(artifacts):
    artifacts.put("a/b/c", LARGE)
    artifacts.put("a/b/d", LARGE[:-1] + b"\0")

    assert artifacts.stat("a/b/c").digest != artifacts.stat("a/b/d").digest
    assert hashlib.sha256(artifacts.get("a/b/c")).digest() == hashlib.sha256(LARGE).digest()
