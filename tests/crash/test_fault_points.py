"""kill -9 at every fault point of every operation: the old content or the new, and nothing left."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import kvstate
from kvstate.faults import POINTS
from tests.crash.fault_operations import OPERATIONS

REPOSITORY = Path(__file__).parents[2]


def _run(*words):
    """Run the operations' process; give what it says."""
    command = [sys.executable, "-m", "tests.crash.fault_operations", *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_kill_at_any_point_leaves_the_old_or_the_new_and_nothing_else(tmp_path, name):
    (met, wrong), said = _run("kill", tmp_path, name)

    assert wrong == [], said
    assert met != []


def test_every_point_is_met_by_some_operation(tmp_path):
    met, _ = _run("record", tmp_path)

    assert {point for points in met.values() for point in points} == set(POINTS)


def test_every_point_in_the_code_has_a_name_that_is_listed():
    names = set()
    for path in Path(kvstate.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "point":
                (name,) = node.args
                assert isinstance(name, ast.Constant), f"{path}:{node.lineno}"
                names.add(name.value)

    assert names == set(POINTS)
    assert len(POINTS) == len(names)
