"""A tier's place: whose folder it is, when it may be used, and room in it."""

from __future__ import annotations

import os
import threading
import uuid
from pathlib import Path

import pytest

from kvstate import tier_folders
from kvstate.errors import Damaged, Denied, Exists, Full, NotFound, Unavailable
from kvstate.places import Place
from kvstate.settings import TierSettings
from kvstate.tier_folders import Owner
from tests.harness import wait_for

NAME = "ab" * 16 + "0000"
DESCRIPTORS = Path("/proc/self/fd")
STORE = str(uuid.uuid4())


class Records:
    """What a store remembers of one tier, and how often it was asked."""

    def __init__(self, store=STORE):
        self.store = store
        self.place = None
        self.asked = 0

    def owner(self):
        def known():
            self.asked += 1
            return self.place

        def remember(place):
            self.place = self.place or place

        return Owner(lambda: self.store, known, remember)


@pytest.fixture
def records():
    return Records()


@pytest.fixture
def place_at(records):
    """Make places of the cold tier; closed when the test is over."""
    made = []

    def make(path, *, tier="cold", of=records, read_only=False, **settings):
        found = Place(
            path,
            tier=tier,
            owner=of.owner(),
            settings=TierSettings(path=str(path), **{"free_bytes_min": 0, **settings}),
            read_only=read_only,
        )
        made.append(found)
        return found

    yield make
    for place in made:
        place.close()


def _store(place, data=b"content", name=NAME):
    fd = place.create(name)
    try:
        os.write(fd, data)
        place.publish(name, fd)
        place.settle(name)
    finally:
        os.close(fd)


def _read(place, name=NAME):
    fd = place.open(name)
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


def _listing(path):
    return sorted(str(found.relative_to(path)) for found in path.rglob("*"))


def test_nothing_is_made_before_the_first_use(place_at, tmp_path):
    place = place_at(tmp_path / "cold")
    place.prepare()

    assert list(place.files()) == []
    assert list(place.leftovers()) == []
    assert place.remove(NAME) is False
    with pytest.raises(NotFound):
        place.open(NAME)

    assert _listing(tmp_path) == []


def test_the_first_file_signs_the_folder_and_the_store_remembers_it(place_at, records, tmp_path):
    _store(place_at(tmp_path / "cold"))

    text = (tmp_path / "cold/kvstate-tier").read_text()
    assert f'store = "{STORE}"\ntier = "cold"\nplace = "{records.place}"\n' in text
    assert (tmp_path / "cold/kvstate-tier").stat().st_mode & 0o777 == 0o600
    assert len(records.place) == 32
    assert list((tmp_path / "cold/staging").iterdir()) == []


def test_a_signature_that_is_cleared_up_on_its_way_is_written_again(
    place_at, records, tmp_path, monkeypatch
):
    path = tmp_path / "cold"
    place = place_at(path)
    cleared = []

    def clear_up(name):
        if name == "synced" and not cleared:
            (left,) = (path / "staging").glob("kvstate-tier.*")
            left.unlink()
            cleared.append(left)

    monkeypatch.setattr(tier_folders, "point", clear_up)

    os.close(place.create(NAME))

    assert cleared
    assert records.place is not None
    assert records.place in (path / "kvstate-tier").read_text()


def test_the_identity_is_no_file_of_the_tier_and_foreign_files_are(place_at, tmp_path):
    place = place_at(tmp_path / "cold")
    _store(place)
    (tmp_path / "cold/lost+found").mkdir()
    (tmp_path / "cold/ab/foreign").write_bytes(b"123")
    (tmp_path / "cold/other").write_bytes(b"123")

    assert sorted(place.files()) == [(NAME, 7), ("foreign", 3), ("other", -1)]


def test_a_signed_folder_that_the_store_does_not_know_yet_is_taken(place_at, records, tmp_path):
    _store(place_at(tmp_path / "cold"))
    place, records.place = records.place, None

    _store(place_at(tmp_path / "cold"), name="cd" * 18)

    assert records.place == place


def test_a_moved_folder_just_works(place_at, tmp_path):
    _store(place_at(tmp_path / "cold"))
    (tmp_path / "cold").rename(tmp_path / "elsewhere")

    place = place_at(tmp_path / "elsewhere")

    assert _read(place) == b"content"
    _store(place, name="cd" * 18)


def _uses(place):
    """Give every use of a tier's files."""
    return (
        lambda: place.create("cd" * 18),
        lambda: place.open(NAME),
        lambda: place.remove(NAME),
        lambda: list(place.files()),
        lambda: place.claim(1),
    )


def _refused(place, kind, why):
    for use in _uses(place):
        with pytest.raises(kind, match=why):
            use()
    status = place.status()
    assert (status["available"], status["free_bytes"], status["total_bytes"]) == (False, None, None)
    assert list(place.leftovers()) == []
    assert place.is_staged(NAME) is False


def _gone(path, tmp_path):
    path.rename(tmp_path / "away")


def _empty(path, tmp_path):
    _gone(path, tmp_path)
    path.mkdir()


def _unsigned(path, tmp_path):
    (path / "kvstate-tier").unlink()


def _file(path, tmp_path):
    _gone(path, tmp_path)
    path.write_text("no folder")


def _link(path, tmp_path):
    _gone(path, tmp_path)
    path.symlink_to(tmp_path / "away")


def _garbled(path, tmp_path):
    (path / "kvstate-tier").write_bytes(b"\xff\0nonsense = ")


def _fifo(path, tmp_path):
    (path / "kvstate-tier").unlink()
    os.mkfifo(path / "kvstate-tier")


def _identity_link(path, tmp_path):
    (path / "kvstate-tier").rename(tmp_path / "identity")
    (path / "kvstate-tier").symlink_to(tmp_path / "identity")


def _newer(path, tmp_path):
    file = path / "kvstate-tier"
    file.write_text(file.read_text().replace("format = 1", "format = 2"))


def _copy_of_another(path, tmp_path):
    file = path / "kvstate-tier"
    file.write_text(file.read_text().replace('place = "', 'place = "0'))


FAULTS = [
    (_gone, Unavailable, r"its folder is not there: mount its disk.*tiers\.cold\.path"),
    (_empty, Unavailable, "has no kvstate-tier file"),
    (_unsigned, Unavailable, "has no kvstate-tier file"),
    (_file, Unavailable, "no folder lies there"),
    (_link, Unavailable, "a link lies where its folder should be"),
    (_garbled, Damaged, "does not say whose folder"),
    (_fifo, Damaged, "does not say whose folder"),
    (_identity_link, Damaged, "a link lies"),
    (_newer, Unavailable, "has format 2"),
    (_copy_of_another, Unavailable, "another than the one in use"),
]


@pytest.mark.parametrize(("fault", "kind", "why"), FAULTS)
def test_a_folder_that_is_not_the_stores_is_not_used(place_at, tmp_path, fault, kind, why):
    path = tmp_path / "cold"
    _store(place_at(path))
    fault(path, tmp_path)
    before = _listing(tmp_path)

    _refused(place_at(path), kind, why)

    assert _listing(tmp_path) == before


def test_the_folder_of_another_store_or_tier_is_not_used(place_at, tmp_path):
    _store(place_at(tmp_path / "cold"))
    _store(place_at(tmp_path / "warm", tier="warm", of=Records()))
    before = _listing(tmp_path)

    _refused(place_at(tmp_path / "cold", of=Records("other")), Unavailable, "another store")
    _refused(place_at(tmp_path / "warm"), Unavailable, "that of the warm tier")

    assert _listing(tmp_path) == before


def test_a_folder_with_other_files_is_not_taken(place_at, records, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter").write_text("dear")

    _refused(place_at(tmp_path / "home"), Unavailable, "other files lie in its folder")

    assert _listing(tmp_path / "home") == ["letter"]
    assert records.place is None


def test_without_a_folder_above_it_nothing_is_made(place_at, tmp_path):
    place = place_at(tmp_path / "none/cold")

    with pytest.raises(Unavailable, match="the folder above it is not there") as caught:
        place.create(NAME)

    assert caught.value.retry
    assert place.status()["available"] is False
    assert _listing(tmp_path) == []


@pytest.mark.parametrize("fault", [_gone, _empty, _file, _link])
def test_a_folder_that_goes_while_in_use_is_left_alone_and_used_again_when_back(
    place_at, tmp_path, fault
):
    path = tmp_path / "cold"
    place = place_at(path)
    _store(place)
    reader = place.open(NAME)
    writer = place.create("cd" * 18)
    fault(path, tmp_path)
    before = _listing(tmp_path)

    for use in (*_uses(place), lambda: place.publish("cd" * 18, writer)):
        with pytest.raises(Unavailable):
            use()
    assert _listing(tmp_path) == before
    assert os.read(reader, 100) == b"content"

    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    elif os.path.lexists(path):
        path.unlink()
    (tmp_path / "away").rename(path)
    wait_for(lambda: place.status()["available"])
    place.publish("cd" * 18, writer)
    assert _read(place) == b"content"
    os.close(reader)
    os.close(writer)


def test_a_copy_of_the_folder_has_no_half_files_of_this_process(place_at, tmp_path):
    path = tmp_path / "cold"
    place = place_at(path)
    _store(place)
    fd = place.create("cd" * 18)
    path.rename(tmp_path / "away")
    (path / "staging").mkdir(parents=True)
    (path / "kvstate-tier").write_bytes((tmp_path / "away/kvstate-tier").read_bytes())
    (path / "staging" / ("cd" * 18)).write_bytes(b"ha")

    with pytest.raises(Unavailable, match="replaced while this was written"):
        place.publish("cd" * 18, fd)

    assert list(place.files()) == []
    os.close(fd)


def test_what_is_lost_is_looked_at_at_most_once_a_second(place_at, records, tmp_path):
    _store(place_at(tmp_path / "cold"))
    (tmp_path / "cold").rename(tmp_path / "away")
    place = place_at(tmp_path / "cold")
    records.asked = 0

    for _ in range(200):
        with pytest.raises(Unavailable) as caught:
            place.open(NAME)
        assert caught.value.retry

    assert records.asked <= 2


def test_a_place_for_reading_only_is_never_written_to(place_at, tmp_path):
    place = place_at(tmp_path / "cold", read_only=True)
    with pytest.raises(Denied):
        place.create(NAME)
    assert _listing(tmp_path) == []
    _store(place_at(tmp_path / "cold"))
    before = _listing(tmp_path)

    with pytest.raises(Denied):
        place.create("cd" * 18)

    assert _read(place) == b"content"
    assert _listing(tmp_path) == before


def test_a_closed_place_says_so_and_holds_nothing(place_at, tmp_path):
    place = place_at(tmp_path / "cold")
    before = len(list(DESCRIPTORS.iterdir()))
    _store(place)

    place.close()

    assert len(list(DESCRIPTORS.iterdir())) == before
    with pytest.raises(Unavailable, match="closed"):
        place.open(NAME)


def test_of_many_that_begin_at_once_all_use_one_place(place_at, records, tmp_path):
    places = [place_at(tmp_path / "cold") for _ in range(8)]
    threads = [
        threading.Thread(target=_store, args=(place, b"x", f"{number:036x}"))
        for number, place in enumerate(places)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(list(places[0].files())) == 8
    assert f'"{records.place}"' in (tmp_path / "cold/kvstate-tier").read_text()


def test_below_the_floor_nothing_is_written_and_deleting_goes_on(place_at, tmp_path):
    _store(place_at(tmp_path / "cold"))
    place = place_at(tmp_path / "cold", free_bytes_min=1 << 60)

    for use in (lambda: place.create("cd" * 18), lambda: place.claim(0), place.free_floor_check):
        with pytest.raises(Full, match=r"cold.*are free, 1\.02e\+03 PiB stay so.*cold\.free_min"):
            use()

    assert place.remove(NAME) is True
    assert list(place.files()) == []


def test_a_claim_gives_the_room_that_is_left(place_at, tmp_path):
    place = place_at(tmp_path / "cold")
    place.free_floor_check()

    assert place.claim(1000) > 0
    with pytest.raises(Full, match="more are wanted"):
        place.claim(1 << 60)


def test_the_floor_check_says_nothing_of_a_tier_that_is_away(place_at, tmp_path):
    _store(place_at(tmp_path / "cold"))
    place = place_at(tmp_path / "cold", free_bytes_min=1 << 60)
    (tmp_path / "cold").rename(tmp_path / "away")
    assert place.status()["available"] is False

    place.free_floor_check()


def test_the_status_tells_what_is_known(place_at, tmp_path):
    place = place_at(tmp_path / "cold", compression_level=9, free_bytes_min=5)
    _store(place)

    status = place.status()

    assert 0 < status.pop("free_bytes") <= status.pop("total_bytes")
    assert status == {
        "path": str(tmp_path / "cold"),
        "available": True,
        "reason": "",
        "compression": "zstd:9",
        "free_min": 5,
    }


class TestTwoWritersOfOneName:
    def test_the_second_is_refused_and_waits_for_the_first(self, place_at, tmp_path):
        place = place_at(tmp_path / "cold")
        fd = place.create(NAME)
        waiting = threading.Thread(target=place.wait, args=(NAME,))

        with pytest.raises(Exists):
            place.create(NAME)
        waiting.start()
        waiting.join(0.05)
        assert waiting.is_alive()
        place.settle(NAME)
        os.close(fd)

        waiting.join(20)
        assert not waiting.is_alive()
        place.wait(NAME)

    def test_one_that_is_late_leaves_the_others_file_alone(self, place_at, tmp_path):
        place = place_at(tmp_path / "cold")
        _store(place, b"published by another")
        fd = place.create(NAME)

        with pytest.raises(Exists):
            place.publish(NAME, fd)
        assert not place.remove(NAME, fd)
        place.settle(NAME)
        os.close(fd)

        found = place.open(NAME)
        assert os.read(found, 100) == b"published by another"
        assert place.remove(NAME, found)
        os.close(found)
