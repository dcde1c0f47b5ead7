"""The newcomer's command: what it says before it installs anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def run(*arguments, **environ):
    return subprocess.run(
        [REPOSITORY / "run", *arguments],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_without_a_word_it_says_what_there_is_and_ends_with_status_2():
    done = run()

    assert done.returncode == 2
    assert "./run demo" in done.stderr
    assert "./run tests" in done.stderr


def test_an_unknown_word_is_a_usage_error():
    assert run("dmeo").returncode == 2


def test_help_is_no_error():
    done = run("help")

    assert done.returncode == 0
    assert "./run tests" in done.stdout


def test_it_works_from_any_folder_and_through_a_link(tmp_path):
    link = tmp_path / "kvstate-run"
    link.symlink_to(REPOSITORY / "run")

    done = subprocess.run([link, "help"], cwd=tmp_path, capture_output=True, check=False)

    assert done.returncode == 0


def test_a_python_that_is_too_old_is_named(tmp_path):
    old = tmp_path / "python3.10"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)

    done = run("tests", KVSTATE_PYTHON=str(old))

    assert done.returncode == 1
    assert f"{old} is not a Python 3.11 or newer" in done.stderr


def test_missing_packages_are_named_where_nobody_can_install_them(tmp_path):
    for name in ("dirname", "readlink", "tr", "flock"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    (tmp_path / "python3").symlink_to(sys.executable)
    environ = {"PATH": str(tmp_path), "KVSTATE_PYTHON": "python3"}

    done = run("tests", KVSTATE_VENV=str(tmp_path / "venv"), **environ)

    assert done.returncode == 1
    assert "missing: " in done.stderr
    assert "rsync" in done.stderr
    assert not (tmp_path / "venv").exists()
