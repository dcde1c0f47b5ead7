"""SQLite on a mount: rollback journal and write-ahead log, two processes, the command's dump."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys

import pytest

from tests.integration.mounts import run
from tests.suites.demands import LONG, needs

pytestmark = pytest.mark.fuse

ROWS = 1000 if LONG else 60

# Inserts so many rows, each in a transaction of its own, beside whoever else does.
INSERTING = """
import sqlite3, sys
path, mode, name, rows = sys.argv[1:]
database = sqlite3.connect(path, timeout=120, isolation_level=None)
database.execute(f"pragma journal_mode={mode}")
for number in range(int(rows)):
    database.execute("begin immediate")
    database.execute("insert into t values (?, ?, ?)", (name, number, "x" * (number % 900)))
    database.execute("commit")
"""


@contextlib.contextmanager
def opened(path, *pragmas):
    with contextlib.closing(sqlite3.connect(path, timeout=120, isolation_level=None)) as database:
        for pragma in pragmas:
            database.execute(f"pragma {pragma}")
        yield database


def made(folder, *pragmas):
    """Make a database with an empty table; give its file."""
    with opened(folder / "db", *pragmas) as database:
        database.execute("create table t (name, number, text)")
    return folder / "db"


def insert_from_two_processes(path, mode):
    processes = [
        subprocess.Popen([sys.executable, "-c", INSERTING, path, mode, name, str(ROWS)])
        for name in ("one", "other")
    ]
    return [process.wait(150) for process in processes]


def rows(path):
    with opened(path) as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        return database.execute("select name, number from t order by name, number").fetchall()


EXPECTED = [(name, number) for name in ("one", "other") for number in range(ROWS)]


@pytest.mark.parametrize("mode", ["delete", "truncate", "persist"])
def test_two_processes_insert_with_a_rollback_journal(workflow, mode):
    path = made(workflow, f"journal_mode={mode}")

    assert insert_from_two_processes(path, mode) == [0, 0]

    assert rows(path) == EXPECTED


def test_two_processes_insert_with_a_write_ahead_log(workflow, adapter):
    if adapter == "fusepy":
        pytest.skip("no shared writable mappings on this adapter (docs/posix.md)")
    path = made(workflow, "journal_mode=wal")

    assert insert_from_two_processes(path, "wal") == [0, 0]

    assert rows(path) == EXPECTED
    assert not (workflow / "db-wal").exists()


def test_one_process_alone_keeps_a_write_ahead_log_anywhere(workflow):
    pragmas = ("locking_mode=exclusive", "journal_mode=wal")
    path = made(workflow, *pragmas)
    with opened(path, *pragmas) as database:
        database.executemany("insert into t values (?, ?, '')", EXPECTED)
        assert (workflow / "db-wal").exists()
        database.execute("pragma wal_checkpoint(truncate)")
        database.execute("update t set text = 'later'")

    with opened(path, *pragmas) as database:
        found = database.execute("select name, number from t order by name, number").fetchall()
        assert found == EXPECTED
        assert database.execute("select distinct text from t").fetchall() == [("later",)]


def test_a_transaction_that_is_rolled_back_leaves_nothing(workflow):
    path = made(workflow)
    with opened(path, "cache_size=10") as database:
        database.execute("insert into t values ('kept', 1, '')")
        database.execute("begin")
        database.executemany("insert into t values (?, ?, randomblob(3000))", EXPECTED)
        assert (workflow / "db-journal").exists()
        database.execute("rollback")

    assert rows(path) == [("kept", 1)]
    assert [each.name for each in workflow.iterdir()] == ["db"]


def test_a_process_that_is_killed_in_a_transaction_is_rolled_back(workflow):
    path = made(workflow)
    with opened(path) as database:
        database.execute("insert into t values ('kept', 1, '')")
    script = (
        "import sqlite3, sys, os, signal\n"
        "database = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "database.execute('pragma cache_size=10')\n"
        "database.execute('begin')\n"
        "for n in range(300):\n"
        "    database.execute('insert into t values (1, 1, randomblob(3000))')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    run(sys.executable, "-c", script, path, code=-9)

    assert rows(path) == [("kept", 1)]


@needs("sqlite3")
def test_a_dump_made_by_the_command_is_read_back_by_it(workflow):
    path = made(workflow)
    with opened(path) as database:
        database.executemany("insert into t values (?, ?, 'it''s')", EXPECTED)

    dump = run("sqlite3", path, ".dump")
    (workflow / "dump.sql").write_bytes(dump)
    run("sqlite3", workflow / "again", f".read {workflow}/dump.sql", "vacuum;")

    assert run("sqlite3", workflow / "again", ".dump") == dump
