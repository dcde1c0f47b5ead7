"""Albums that are posted photo by photo: posts, failed positions and metadata per account."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

import kvstate

ALBUM = "72177720320123456"


class Albums:
    """One namespace per account; a key per document, as the files on the branch were."""

    def __init__(self, store, account):
        self.store = store
        self.name = f"{account}-account"
        store.configure(self.name, history=50)
        self.space = store.namespace(self.name)

    def post(self, position, clock):
        """Record a post, take it off the failed ones, and count: all of it, or nothing."""
        with self.store.transaction() as t:
            mine = t.namespace(self.name)
            mine.append(
                f"album-{ALBUM}/posts",
                {
                    "position": position,
                    "photo_id": f"5397{position:04}",
                    "posted_at": datetime.fromtimestamp(clock.at_ns / 1e9, UTC),
                    "status": "posted",
                    "retry_history": [],
                },
            )
            failed = mine.get(f"album-{ALBUM}/failed", [])
            mine[f"album-{ALBUM}/failed"] = [p for p in failed if p != position]
            metadata = mine.get(f"album-{ALBUM}/metadata", {"posted_count": 0, "total_photos": 45})
            count = metadata["posted_count"] + 1
            mine[f"album-{ALBUM}/metadata"] = {
                **metadata,
                "posted_count": count,
                "last_posted_position": position,
                "completion_percentage": round(100 * count / metadata["total_photos"], 1),
            }
        return t.revision

    def fail(self, position):
        def mark(failed):
            return sorted({*(failed or []), position})

        return self.space.update(f"album-{ALBUM}/failed", mark)

    def read(self, document):
        return self.space.get(f"album-{ALBUM}/{document}")


@pytest.fixture
def albums(store):
    return Albums(store, "primary")


def test_a_post_changes_posts_failed_positions_and_metadata_together(albums, clock):
    albums.fail(1)
    albums.fail(2)
    albums.post(1, clock)

    assert [post["position"] for post in albums.read("posts")] == [1]
    assert albums.read("failed") == [2]
    assert albums.read("metadata")["completion_percentage"] == 2.2


def test_a_run_that_dies_half_way_leaves_no_half_post(albums, clock):
    albums.post(1, clock)

    with pytest.raises(ZeroDivisionError), albums.store.transaction() as t:
        t.namespace(albums.name).append(f"album-{ALBUM}/posts", {"position": 2})
        raise ZeroDivisionError

    assert [post["position"] for post in albums.read("posts")] == [1]
    assert albums.read("metadata")["posted_count"] == 1


def test_two_runs_at_once_post_a_photo_once(albums, clock):
    with pytest.raises(kvstate.Conflict), albums.store.transaction() as t:
        posts = t.namespace(albums.name).get(f"album-{ALBUM}/posts", [])
        albums.post(1, clock)  # the other run is faster
        t.namespace(albums.name)[f"album-{ALBUM}/posts"] = [*posts, {"position": 1}]

    assert [post["position"] for post in albums.read("posts")] == [1]


def test_the_history_is_that_of_the_branch(albums, clock):
    for position in (1, 2, 3):
        albums.post(position, clock)
        clock.advance(3600)

    history = albums.space.history(f"album-{ALBUM}/metadata")

    assert [version.value["posted_count"] for version in history] == [1, 2, 3]
    assert [(v.at - history[0].at).total_seconds() for v in history] == [0, 3600, 7200]


def test_a_wrong_edit_is_rolled_back(albums, clock):
    good = albums.post(1, clock)
    albums.space[f"album-{ALBUM}/metadata"] = {"posted_count": -1}

    albums.space.rollback(f"album-{ALBUM}/metadata", good)

    assert albums.read("metadata")["posted_count"] == 1
    assert len(albums.space.history(f"album-{ALBUM}/metadata")) == 3


def test_the_whole_account_as_it_was_before_a_run(albums, clock):
    before = albums.post(1, clock)
    albums.fail(7)
    albums.post(2, clock)

    then = {
        entry.key.rpartition("/")[2]: entry.value for entry in albums.space.scan(revision=before)
    }

    assert then["failed"] == []
    assert then["metadata"]["posted_count"] == 1
    assert len(then["posts"]) == 1


def test_accounts_are_apart(store, clock):
    primary, secondary = Albums(store, "primary"), Albums(store, "secondary")
    primary.post(1, clock)

    assert secondary.read("posts") is None
    assert list(store.namespaces()) == ["primary-account", "secondary-account"]


def test_there_is_no_limit_of_256_characters(albums):
    posts = [{"position": n, "caption": "x" * 500} for n in range(300)]

    albums.space[f"album-{ALBUM}/posts"] = posts

    assert albums.read("posts") == posts


def test_a_failed_position_is_tried_again_and_its_retries_are_in_the_history(albums, clock):
    for attempt in (1, 2):
        albums.space.update(
            f"album-{ALBUM}/metadata",
            lambda metadata, n=attempt: {**(metadata or {}), "error_count": n},
        )
        albums.fail(7)
        clock.advance(3600)

    errors = albums.space.history(f"album-{ALBUM}/metadata")
    assert [version.value["error_count"] for version in errors] == [1, 2]
    assert albums.read("failed") == [7]


def test_a_migration_may_run_twice(albums):
    legacy = {f"album-{n}/posts": [{"position": 1, "photo_id": str(n)}] for n in range(3)}

    assert albums.space.upsert_many(legacy) == (3, 3, 0, 0)
    assert albums.space.upsert_many(legacy) == (3, 0, 0, 3)
    assert len(albums.space.history("album-0/posts")) == 1


def test_an_album_of_an_account_is_listed_and_removed_by_its_prefix(albums, clock):
    albums.post(1, clock)
    albums.fail(2)
    albums.space["global/config"] = {"posts_per_day": 1}

    assert albums.space.delete_prefix(f"album-{ALBUM}/") == 3
    assert dict(albums.space) == {"global/config": {"posts_per_day": 1}}
    assert albums.space.history(f"album-{ALBUM}/failed")[-1].kind == "delete"
