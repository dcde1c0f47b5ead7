"""kill -9 at random points under mixed load: nothing acknowledged is lost, torn or invented."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

KILLS = 12
LOAD = Path(__file__).with_name("load.py")


def _run_until_killed(store, seed, lines_wanted):
    """Start the load, kill it after so many acknowledgements; give what it acknowledged."""
    command = [sys.executable, LOAD, store, str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        acknowledged = []
        for line in child.stdout:
            acknowledged.append(json.loads(line))
            if len(acknowledged) == lines_wanted:
                break
        time.sleep(random.Random(seed).random() * 0.004)  # somewhere within the next operation
        os.kill(child.pid, signal.SIGKILL)
        acknowledged += [json.loads(line) for line in child.stdout if line.endswith("\n")]
    assert child.returncode == -signal.SIGKILL
    return acknowledged


def _differences(store, expected, last):
    """Compare with the model; the operation under way when the kill came may or may not show."""
    found = {f"key:{key}": value for key, value in store.namespace("ns").items()}
    for artifact in store.artifacts.list():
        content = store.artifacts.get(artifact.name)
        found[artifact.name] = f"{artifact.tier} {len(content)} {content[:20].hex()}"
    return {
        name: (expected.get(name), found.get(name))
        for name in expected.keys() | found.keys()
        if expected.get(name) != found.get(name) and name not in last
    }


@pytest.mark.parametrize("seed", range(KILLS))
def test_nothing_acknowledged_is_lost_when_a_writer_is_killed(tmp_path, open_checked, seed):
    path = tmp_path / "store"
    acknowledged = _run_until_killed(path, seed, 20 + 13 * seed)

    began = time.monotonic()
    store = open_checked(path, create=False)
    ready = time.monotonic() - began

    expected, last = {}, set()
    for line in acknowledged:
        if "begin" in line:
            last = set(line["begin"])
        else:
            expected.update(line["done"])
            expected = {name: value for name, value in expected.items() if value is not None}
            last = set()
    assert _differences(store, expected, last) == {}
    assert store.check(verify=True).problems == ()
    assert list(path.glob("tiers/*/staging/*")) == []
    assert ready < 2
