"""Power cuts at any write: nothing acknowledged is lost, torn or invented, and the store works on.

    KVSTATE_POWER_CUTS=500 KVSTATE_POWER_SEED=7 python -m pytest tests/crash/test_power_cut.py

cuts 500 times (about half a second each) into a longer run of another load; the defaults are a
few cuts and one seed.
"""

from __future__ import annotations

import os
import random

import pytest

from tests.crash import power_load
from tests.crash.power import Record, Replay, power_cuts_or_skip, record

CUTS = int(os.environ.get("KVSTATE_POWER_CUTS", "25"))
SEED = int(os.environ.get("KVSTATE_POWER_SEED", "1"))
STEPS = min(400, max(150, CUTS))
TIERED_CUTS = max(10, CUTS * 2 // 5)
SECTORS = 8
OLD, NEW = b"old!" * 128, b"new!" * 128


@pytest.fixture
def disks():
    power_cuts_or_skip()


@pytest.mark.timeout(120 + 3 * CUTS)
def test_what_was_acknowledged_survives_a_power_cut(disks, tmp_path):
    recording = record(tmp_path, power_load.mixed, power_load.look, SEED, STEPS)

    places = recording.places(CUTS, random.Random(SEED))

    assert len(places) == CUTS
    assert recording.lost(places, SEED) == []


@pytest.mark.timeout(120 + 3 * TIERED_CUTS)
def test_what_was_acknowledged_survives_with_the_tiers_on_two_disks(disks, tmp_path):
    load, look = power_load.tiered, power_load.look_tiered
    recording = record(tmp_path, load, look, SEED, max(100, TIERED_CUTS), disks=2)

    places = recording.places(TIERED_CUTS, random.Random(SEED))

    assert recording.lost(places, SEED) == []


def test_a_file_that_was_removed_and_forgotten_stays_away(disks, tmp_path):
    recording = record(tmp_path, power_load.removals, power_load.look, SEED, 5)

    assert recording.lost(recording.acknowledgements[4::3], SEED) == []


@pytest.mark.parametrize(
    "load",
    [
        power_load.mixed_without_syncs_of_files,
        power_load.mixed_without_syncs_of_folders,
        power_load.mixed_without_syncs_of_records,
    ],
)
def test_a_sync_that_is_left_out_shows(disks, tmp_path, load):
    recording = record(tmp_path, load, power_load.look, SEED, 80)

    lost = recording.lost(recording.acknowledgements[10::14], SEED)

    assert any("told, found" in what for what in lost), lost


def test_only_what_was_synced_survives_and_each_disk_has_its_own_barriers(disks, tmp_path):
    load, look = power_load.files_synced_and_not, power_load.look_at_files
    recording = record(tmp_path, load, look, disks=2, megabytes=16)

    (lost,) = recording.lost(recording.acknowledgements[-1:], SEED)

    assert "told, found: {'disk1': ('content', None)}" in lost


def _outcomes_of(records):
    """Give what each of a hundred cuts after these records leaves of the first disk."""
    outcomes = set()
    for seed in range(100):
        replay = Replay([OLD * SECTORS, b""], records)
        replay.advance(len(records))
        outcomes.add(bytes(replay.cut(random.Random(seed))[0]))
    return outcomes


def test_a_cut_keeps_what_came_before_the_last_barrier():
    records = [Record(0, 0, NEW * SECTORS, 1), Record(0, 0, None, 2)]

    assert _outcomes_of(records) == {NEW * SECTORS}


def test_a_cut_keeps_all_nothing_or_some_sectors_of_what_came_after_it():
    records = [Record(0, 0, NEW * SECTORS, 1), Record(1, 0, None, 2)]

    outcomes = _outcomes_of(records)

    assert {OLD * SECTORS, NEW * SECTORS} < outcomes
    sectors = {each[at : at + 512] for each in outcomes for at in range(0, len(each), 512)}
    assert sectors == {OLD, NEW}


def test_a_later_write_may_survive_an_earlier_one():
    records = [Record(0, 0, NEW, 1), Record(0, 512, NEW, 2)]

    assert OLD + NEW + OLD * (SECTORS - 2) in _outcomes_of(records)
