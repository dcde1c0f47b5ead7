"""The mount process: how it starts, refuses, ends, dies, and what is left then."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import kvstate
from tests.harness import wait_for
from tests.integration.mounts import MountProcess, choice_of, mount_lines, parts_of, run

pytestmark = pytest.mark.fuse


# Writes files for ever, half of them by a rename; says of each, once its close has returned, which
# content it must have from then on.
COPYING = """
import hashlib, json, os, random, sys
target, said, seed = sys.argv[1], open(sys.argv[2], "w"), int(sys.argv[3])
chance = random.Random(seed)
for number in range(1_000_000):
    name = f"{target}/{number % 7}/{number % 3}/{number}"
    os.makedirs(os.path.dirname(name), exist_ok=True)
    data = os.urandom(chance.choice([0, 1, 900, 65_536, 70_000, 300_000]))
    written = name if number % 2 else name + ".new"
    with open(written, "wb") as file:
        file.write(data)
    os.rename(written, name)
    print(json.dumps([name, hashlib.sha256(data).hexdigest()]), file=said, flush=True)
"""


@pytest.fixture
def mount(tmp_path, adapter):
    process = MountProcess(tmp_path, adapter)
    yield process
    process.end()
    if (process.store_path / "records").exists():
        assert process.problems() == []


def kvstatefs(mount, *arguments, function="main"):
    """Run the command to its end, for a mount of the kind that is tested."""
    code = f"import sys; from kvstatefs.main import {function}; sys.exit({function}())"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments), *choice_of(mount.adapter)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class TestStarting:
    def test_in_the_background_it_returns_when_the_mount_answers(self, mount):
        done = kvstatefs(mount, mount.store_path, mount.path)

        assert (done.returncode, done.stderr) == (0, "")
        assert "hot" in parts_of(mount.path)

    def test_it_shows_as_what_it_is(self, mount):
        mount.start()

        (line,) = mount_lines(mount.path)

        assert " - fuse.kvstatefs " in line
        assert str(mount.store_path) in line

    def test_relative_paths_are_those_of_where_it_was_started(self, mount, tmp_path):
        code = "import sys; from kvstatefs.main import main; sys.exit(main())"
        run(sys.executable, "-c", code, "store", "mnt", *choice_of(mount.adapter), cwd=tmp_path)

        assert "hot" in parts_of(mount.path)

    def test_mount_calls_it_with_its_own_words(self, mount):
        done = kvstatefs(
            mount,
            mount.store_path,
            mount.path,
            *("-s", "-o", "rw,nofail,noatime"),
            function="main_fstab",
        )

        assert (done.returncode, done.stderr) == (0, "")
        assert "hot" in parts_of(mount.path)

    def test_a_read_only_mount_changes_nothing(self, mount):
        with mount.opened_store() as store:
            store.artifacts.put("acme/weekly/report.md", b"text")
        mount.start("-o", "ro")

        with pytest.raises(OSError) as caught:  # noqa: PT011  (the number is what counts)
            (mount.path / "hot/acme/weekly/report.md").write_bytes(b"other")

        assert caught.value.errno == errno.EROFS
        assert (mount.path / "hot/acme/weekly/report.md").read_bytes() == b"text"


class TestRefusing:
    def test_a_mount_point_that_does_not_exist(self, mount, tmp_path):
        done = kvstatefs(mount, mount.store_path, tmp_path / "nowhere")

        assert done.returncode == 2
        assert "there is no such folder" in done.stderr
        assert not mount.store_path.exists()

    def test_a_mount_point_that_is_a_file(self, mount, tmp_path):
        (tmp_path / "file").touch()

        done = kvstatefs(mount, mount.store_path, tmp_path / "file")

        assert done.returncode == 2
        assert "it is not a folder" in done.stderr

    def test_a_mount_point_that_is_not_empty(self, mount):
        (mount.path / "file").touch()

        done = kvstatefs(mount, mount.store_path, mount.path)

        assert done.returncode == 2
        assert "it is not empty" in done.stderr
        assert [path.name for path in mount.path.iterdir()] == ["file"]

    def test_a_mount_point_that_is_taken(self, mount, tmp_path):
        mount.start()

        done = kvstatefs(mount, tmp_path / "other", mount.path)

        assert done.returncode == 2
        assert "a store is mounted there already" in done.stderr
        assert len(mount_lines(mount.path)) == 1

    def test_a_store_that_is_none(self, mount):
        mount.store_path.write_text("a file")

        done = kvstatefs(mount, mount.store_path, mount.path)

        assert done.returncode == 1
        assert str(mount.store_path) in done.stderr
        assert "Traceback" not in done.stderr
        assert mount_lines(mount.path) == []
        mount.store_path.unlink()

    def test_a_store_that_is_not_there_is_not_made_by_a_read_only_mount(self, mount):
        done = kvstatefs(mount, mount.store_path, mount.path, "-o", "ro")

        assert done.returncode == 1
        assert not mount.store_path.exists()

    def test_an_option_that_is_not_known(self, mount):
        done = kvstatefs(mount, mount.store_path, mount.path, "-o", "ro,fast")

        assert done.returncode == 2
        assert "-o fast: there is no such option" in done.stderr


class TestEnding:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_a_signal_unmounts_and_ends_it_with_status_0(self, mount, number):
        mount.start()

        mount.process.send_signal(number)

        assert mount.process.wait(30) == 0
        assert mount_lines(mount.path) == []

    def test_unmounting_ends_it_with_status_0(self, mount):
        mount.start()

        run("fusermount", "-u", mount.path)

        assert mount.process.wait(30) == 0

    def test_a_signal_under_load_loses_nothing_that_was_closed(self, mount):
        mount.start()
        closed = {}
        folder = mount.path / "hot/acme/weekly"
        folder.mkdir(parents=True)

        def write():
            with contextlib.suppress(OSError):
                for number in range(100_000):
                    data = os.urandom(random.Random(number).choice([10, 5000, 100_000]))
                    (folder / str(number)).write_bytes(data)
                    closed[number] = data

        writer = threading.Thread(target=write)
        writer.start()
        wait_for(lambda: len(closed) > 50, what="some files")

        status = mount.terminate()
        writer.join(30)

        assert status == 0
        with mount.opened_store() as store:
            for number, data in closed.items():
                assert store.artifacts.get(f"acme/weekly/{number}") == data


class TestDying:
    def test_the_next_start_heals_the_mount_point_by_itself(self, mount):
        mount.start()
        mount.kill()
        assert len(mount_lines(mount.path)) == 1

        mount.start()

        assert len(mount_lines(mount.path)) == 1

    def test_nobody_hangs_when_it_is_killed(self, mount):
        mount.start()
        (mount.path / "hot/acme/weekly").mkdir(parents=True)
        reader = (mount.path / "hot/acme/weekly/f").open("wb")
        reader.write(b"x")
        began = time.monotonic()
        mount.kill()

        with pytest.raises(OSError) as caught:  # noqa: PT011  (the number is what counts)
            reader.close()

        assert caught.value.errno in {errno.ENOTCONN, errno.ECONNABORTED}
        assert time.monotonic() - began < 20

    def test_what_was_not_closed_leaves_nothing(self, mount):
        mount.start()
        (mount.path / "hot/acme/weekly").mkdir(parents=True)
        with contextlib.suppress(OSError), (mount.path / "hot/acme/weekly/f").open("wb") as file:
            file.write(os.urandom(1 << 20))
            file.flush()
            mount.kill()

        with kvstate.open(mount.store_path) as store:
            assert list(store.artifacts.list()) == []
            assert store.check(verify=True).clean
        tiers = mount.store_path / "tiers"
        files = [p for p in tiers.rglob("*") if p.is_file() and p.name != "kvstate-tier"]
        assert files == []

    @pytest.mark.parametrize("seed", range(6))
    def test_every_file_that_was_closed_is_there_whole(self, mount, seed, tmp_path):
        mount.start()
        workflow = mount.path / "hot/acme/weekly"
        workflow.mkdir(parents=True)
        said = tmp_path / "said"
        copier = subprocess.Popen(
            [sys.executable, "-c", COPYING, workflow, said, str(seed)], stderr=subprocess.DEVNULL
        )
        wait_for(lambda: said.exists() and said.stat().st_size > 500, what="the copy to begin")
        threading.Event().wait(random.Random(seed).uniform(0, 0.7))
        mount.kill()
        assert copier.wait(30) != 0

        mount.start()

        closed = dict(map(json.loads, said.read_text().splitlines()))
        found = {name: hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in closed}
        assert found == closed
        with mount.opened_store() as store:
            assert store.check(verify=True).clean
