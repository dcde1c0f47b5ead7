"""A scraper that stores media: once each, carousels in order, with a fallback when it fails."""

from __future__ import annotations

import io
import random
from typing import NamedTuple

import pytest

from kvstate.errors import Exists


class Saved(NamedTuple):
    total: int
    new: int
    existing: int


class Lost(OSError):
    """The network went away."""


class Network:
    """Where media come from: a file for each address, some of which break off in the middle."""

    def __init__(self):
        self.media = {}
        self.broken = set()
        self.fetched = []

    def open(self, url):
        self.fetched.append(url)
        content = self.media[url]
        return _Torn(content) if url in self.broken else io.BytesIO(content)


class _Torn(io.RawIOBase):
    """Gives half of the content, and then fails."""

    def __init__(self, content):
        super().__init__()
        self._half = io.BytesIO(content[: len(content) // 2])

    def readable(self):
        return True

    def readinto(self, buffer):
        count = self._half.readinto(buffer)
        if count == 0:
            raise Lost("connection reset")
        return count


class Storage:
    """What the scraper calls: `store_reels` and `store_posts`."""

    def __init__(self, store, network):
        self.artifacts = store.artifacts
        self.reels = store.namespace("reels")
        self.posts = store.namespace("posts")
        self.network = network

    def store_reels(self, creator, reels):
        """Store each reel's video once, and what is known of all of them."""
        rows = {}
        for reel in reels:
            name = f"instagram/{creator}/reels/{reel['pk']}.mp4"
            media = self._stored(name, reel["video_url"])
            rows[reel["pk"]] = {**reel, "media": media}
        return self._saved(self.reels, rows)

    def store_posts(self, creator, posts):
        """Store the pictures of each post in their order, and what is known of all of them."""
        rows = {}
        for post in posts:
            name = f"instagram/{creator}/posts/{post['pk']}"
            rows[post["pk"]] = {**post, "media": self._carousel(name, post["urls"])}
        return self._saved(self.posts, rows)

    def _stored(self, name, url):
        if self.artifacts.exists(name):
            return name
        try:
            with self.network.open(url) as source:
                return self.artifacts.put(name, source).name
        except Lost:
            return url

    def _carousel(self, name, urls):
        try:
            sources = [_Fetched(self.network, url) for url in urls]
            return [part.name for part in self.artifacts.put_parts(name, sources)]
        except Exists:
            return [part.name for part in self.artifacts.parts(name)]
        except Lost:
            return list(urls)

    @staticmethod
    def _saved(namespace, rows):
        done = namespace.upsert_many(rows)
        return Saved(done.total, done.new, done.changed + done.unchanged)


class _Fetched:
    """Opens its address when it is read, not before."""

    def __init__(self, network, url):
        self._network = network
        self._url = url
        self._source = None

    def read(self, size):
        if self._source is None:
            self._source = self._network.open(self._url)
        return self._source.read(size)


@pytest.fixture
def network():
    return Network()


@pytest.fixture
def storage(store, network):
    return Storage(store, network)


def reels_of(network, count, size=200_000):
    """Give so many reels, whose videos the network has."""
    reels = []
    for number in range(count):
        url = f"https://cdn/{number}.mp4"
        network.media[url] = random.Random(number).randbytes(size)
        reels.append({"pk": f"reel{number}", "video_url": url, "likes": 10 * number})
    return reels


def test_reels_are_stored_and_counted(store, storage, network):
    reels = reels_of(network, 6)

    assert storage.store_reels("ada", reels) == (6, 6, 0)
    assert store.namespace("reels")["reel3"]["media"] == "instagram/ada/reels/reel3.mp4"
    stored = store.artifacts.get("instagram/ada/reels/reel3.mp4")
    assert stored == network.media["https://cdn/3.mp4"]


def test_a_second_run_stores_and_fetches_nothing_again(store, storage, network):
    reels = reels_of(network, 6)
    storage.store_reels("ada", reels)
    before = store.revision()
    network.fetched.clear()

    assert storage.store_reels("ada", reels) == (6, 0, 6)
    assert network.fetched == []
    assert store.revision() == before


def test_only_what_is_new_is_fetched_and_what_changed_is_updated(store, storage, network):
    reels = reels_of(network, 6)
    storage.store_reels("ada", reels[:5])
    network.fetched.clear()
    again = [{**reel, "likes": 999} for reel in reels]

    assert storage.store_reels("ada", again) == (6, 1, 5)
    assert network.fetched == ["https://cdn/5.mp4"]
    assert store.namespace("reels")["reel0"]["likes"] == 999


def test_an_upload_that_fails_keeps_its_address_and_stores_nothing(store, storage, network):
    reels = reels_of(network, 3, size=3_000_000)
    network.broken.add("https://cdn/1.mp4")

    assert storage.store_reels("ada", reels) == (3, 3, 0)
    assert store.namespace("reels")["reel1"]["media"] == "https://cdn/1.mp4"
    assert [each.artifact for each in store.artifacts.list("instagram/ada/reels")] == [
        "reels/reel0.mp4",
        "reels/reel2.mp4",
    ]
    assert store.check(verify=True).counts["blobs"] == 2


def test_what_failed_is_stored_by_the_next_run(store, storage, network):
    reels = reels_of(network, 3)
    network.broken.add("https://cdn/1.mp4")
    storage.store_reels("ada", reels)
    network.broken.clear()
    network.fetched.clear()

    assert storage.store_reels("ada", reels) == (3, 0, 3)
    assert network.fetched == ["https://cdn/1.mp4"]
    assert store.namespace("reels")["reel1"]["media"] == "instagram/ada/reels/reel1.mp4"


def carousel(network, pk, count):
    """Give a post of so many pictures, small and large ones."""
    urls = []
    for number in range(count):
        urls.append(f"https://cdn/{pk}/{number}")
        network.media[urls[-1]] = random.Random(number).randbytes(1000 + number * 30_000)
    return {"pk": pk, "urls": urls, "caption": f"#{pk}"}


def test_a_carousel_is_stored_as_parts_in_order(store, storage, network):
    posts = [carousel(network, "post1", 12), carousel(network, "post2", 1)]

    assert storage.store_posts("ada", posts) == (2, 2, 0)
    parts = store.artifacts.parts("instagram/ada/posts/post1")
    assert [part.name.rsplit("/", 1)[1] for part in parts] == [str(n) for n in range(1, 13)]
    contents = [store.artifacts.get(part.name) for part in parts]
    assert contents == [network.media[url] for url in posts[0]["urls"]]
    assert store.namespace("posts")["post1"]["media"] == [part.name for part in parts]


def test_a_second_run_stores_no_carousel_again(store, storage, network):
    posts = [carousel(network, "post1", 12)]
    storage.store_posts("ada", posts)
    before = store.revision()
    network.fetched.clear()

    assert storage.store_posts("ada", posts) == (1, 0, 1)
    assert network.fetched == []
    assert store.revision() == before


@pytest.mark.parametrize("broken", [0, 7, 29])
def test_a_carousel_of_which_one_picture_fails_is_not_stored_at_all(
    store, storage, network, broken
):
    post = carousel(network, "post1", 30)
    network.broken.add(post["urls"][broken])

    assert storage.store_posts("ada", [post]) == (1, 1, 0)
    assert store.namespace("posts")["post1"]["media"] == post["urls"]
    assert list(store.artifacts.list("instagram/ada")) == []
    assert store.check(verify=True).counts["blobs"] == 0
    network.broken.clear()
    assert storage.store_posts("ada", [post]) == (1, 0, 1)
    assert len(store.artifacts.parts("instagram/ada/posts/post1")) == 30


@pytest.mark.parametrize("size", [500, 200_000])
def test_equal_media_under_two_names_are_stored_once(store, storage, network, size):
    reels = reels_of(network, 2, size)
    network.media["https://cdn/1.mp4"] = network.media["https://cdn/0.mp4"]

    storage.store_reels("ada", reels)
    storage.store_reels("bob", reels)

    assert len(list(store.artifacts.list("instagram"))) == 4
    assert store.check(verify=True).counts["blobs"] == 1
    assert store.artifacts.usage("instagram").bytes == 4 * size


@pytest.mark.parametrize("size", [500, 200_000])
@pytest.mark.parametrize("given", ["bytes", "file"])
def test_media_that_are_given_again_are_left_as_they_are(store, network, clock, size, given):
    reels = reels_of(network, 20, size)
    media = {f"instagram/ada/{each['pk']}": network.media[each["video_url"]] for each in reels}

    def contents():
        as_given = {"bytes": bytes, "file": io.BytesIO}[given]
        return {name: as_given(content) for name, content in media.items()}

    first = store.artifacts.put_many(contents())
    before = list(store.artifacts.list("instagram"))
    clock.advance(days=1)
    media["instagram/ada/reel19"] = b"changed"
    again = store.artifacts.put_many(contents())

    assert first == (20, 20, 0, 0)
    assert again == (20, 0, 1, 19)
    after = {each.name: each for each in store.artifacts.list("instagram")}
    changed = [each.name for each in before if after[each.name] != each]
    assert changed == ["instagram/ada/reel19"]
    assert store.artifacts.get("instagram/ada/reel19") == b"changed"
