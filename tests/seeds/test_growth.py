"""A scraper of profiles: upserts with counts, media once, follower counts over time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest


@pytest.fixture
def creator(store):
    return store.namespace("creators")


def now(clock):
    return datetime.fromtimestamp(clock.at_ns / 1e9, UTC)


def test_posts_are_saved_with_what_was_new_and_what_was_there(store):
    posts = store.namespace("posts")
    first = {f"post{n}": {"likes": n, "media": f"r2/{n}"} for n in range(9)}
    assert posts.upsert_many(first) == (9, 9, 0, 0)

    again = {**first, "post3": {"likes": 99, "media": "r2/3"}, "post9": {"likes": 1, "media": ""}}
    saved = posts.upsert_many(again)

    assert saved == (10, 1, 1, 8)
    assert saved.total - saved.new == 9
    assert posts["post3"]["likes"] == 99


def test_scraping_the_same_again_writes_nothing(store):
    posts = store.namespace("posts")
    found = {f"post{n}": {"likes": n} for n in range(100)}
    posts.upsert_many(found)
    before = store.revision()

    assert posts.upsert_many(found).unchanged == 100
    assert store.revision() == before


def test_media_that_are_there_are_not_stored_again(store):
    video = b"video" * 50_000
    first = store.artifacts.put("instagram/reels/1.mp4", video)
    second = store.artifacts.put("instagram/reels/2.mp4", video)

    assert first.digest == second.digest
    assert store.check().counts["blobs"] == 1


def test_what_is_stored_already_is_known_before_work_is_done(store):
    posts = store.namespace("posts")
    posts.set_many({"a": {"media": "r2/a"}, "b": {"media": None}})

    there = posts.get_many(["a", "b", "c"])

    assert {key for key, value in there.items() if value["media"]} == {"a"}


def test_growth_by_day_and_by_week(creator, clock):
    followers = creator.series("7/followers", max_age=timedelta(days=365))
    for day in range(15):
        followers.append(8_500_000 + 1_000 * day, now(clock))
        clock.advance(days=1)

    latest = followers.latest().value
    assert latest == 8_514_000
    assert followers.change(timedelta(days=1)) == 1_000
    assert followers.change(timedelta(days=7)) == 7_000
    assert round(100 * followers.change(timedelta(days=7)) / latest, 2) == 0.08


def test_a_day_that_was_missed_takes_the_count_before_it(creator, clock):
    followers = creator.series("7/followers")
    followers.append(100, now(clock))
    followers.append(150, now(clock) + timedelta(days=9))

    assert followers.change(timedelta(days=7)) == 50


def test_a_second_scrape_of_the_same_moment_replaces_the_first(creator, clock):
    followers = creator.series("7/followers")
    followers.append(100, now(clock))
    followers.append(101, now(clock))

    assert [point.value for point in followers.range()] == [101]


def test_old_points_go(creator, clock):
    followers = creator.series("7/followers", max_age=timedelta(days=30), max_count=10)
    for day in range(60):
        followers.append(day, now(clock))
        clock.advance(days=1)

    assert [point.value for point in followers.range()] == list(range(50, 60))


def test_api_calls_are_counted(creator):
    for success in (True, True, False, True):
        creator.increment("7/api_calls")
        creator.increment(f"7/api_{'ok' if success else 'failed'}")

    assert creator.get_many(["7/api_calls", "7/api_ok", "7/api_failed"]) == {
        "7/api_calls": 4,
        "7/api_ok": 3,
        "7/api_failed": 1,
    }


def test_of_one_scrape_there_is_no_growth_yet(creator, clock):
    followers = creator.series("7/followers")
    assert (followers.latest(), followers.change(timedelta(days=1))) == (None, None)

    followers.append(8_511_673, now(clock))

    assert followers.latest() == (now(clock), 8_511_673)
    assert followers.change(timedelta(days=1)) is None


def test_followers_that_are_lost_are_a_negative_change(creator, clock):
    followers = creator.series("7/followers")
    for count in (500, 450, 470):
        followers.append(count, now(clock))
        clock.advance(days=1)

    assert followers.change(timedelta(days=1)) == 20
    assert followers.change(timedelta(days=2)) == -30


def test_an_older_count_that_comes_late_has_its_place(creator, clock):
    followers = creator.series("7/followers")
    followers.append(200, now(clock))
    followers.append(100, now(clock) - timedelta(days=7))

    assert followers.latest().value == 200
    assert followers.change(timedelta(days=7)) == 100
    assert followers.at(now(clock) - timedelta(days=3)).value == 100
