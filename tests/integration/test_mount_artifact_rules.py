"""What docs/artifacts.md promises of holds, quotas, the trash and last reads, on a real mount."""

from __future__ import annotations

import errno
import itertools
import os
from datetime import datetime
from pathlib import Path

import pytest

from kvstate.errors import Held
from tests.integration.mounts import MountProcess, run, shell

pytestmark = pytest.mark.fuse

LARGE = os.urandom(200_000)
DAY_SECONDS = 86400


@pytest.fixture(scope="module")
def process(mounted):
    return mounted


@pytest.fixture(scope="module")
def store(process):
    """The same store in this process: what it does is another process' doing to the mount."""
    with process.opened_store() as store:
        yield store


@pytest.fixture(scope="module")
def numbers():
    return itertools.count(1)


@pytest.fixture
def tenant(numbers):
    return f"tenant-{next(numbers)}"


@pytest.fixture
def workflow(process, tenant):
    folder = process.path / "all" / tenant / "w"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(params=[b"kept\n", LARGE], ids=["small", "large"])
def held(request, store, tenant, workflow):
    """A held file; whatever is tried, it is the same afterwards."""
    name = f"{tenant}/w/held"
    store.artifacts.put(name, request.param)
    before = store.artifacts.hold(name, "smith")

    yield workflow / "held"

    assert (workflow / "held").read_bytes() == request.param
    assert store.artifacts.get(name) == request.param
    after = store.artifacts.stat(name)
    assert (after.digest, after.revision) == (before.digest, before.revision)


class Answered:
    """Expect one errno of what is done within."""

    def __init__(self, number) -> None:
        self.number = number

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _trace):
        assert isinstance(error, OSError), f"nothing was refused ({error!r})"
        assert errno.errorcode[error.errno] == errno.errorcode[self.number]
        return True


class TestHolds:
    def test_rm_is_refused(self, held):
        with Answered(errno.EPERM):
            held.unlink()

        run("rm", "-f", held, code=1)

    def test_mv_is_refused(self, held, process, tenant, workflow):
        for target in (workflow / "other", workflow.parent / "v"):
            with Answered(errno.EPERM):
                held.rename(target)
        with Answered(errno.EPERM):
            (process.path / "hot" / tenant / "w/held").rename(
                process.path / "cold" / tenant / "w/other"
            )
        assert sorted(path.name for path in workflow.iterdir()) == ["held"]

    def test_mv_over_it_is_refused_and_what_was_to_come_stays(self, held, workflow):
        (workflow / "new").write_bytes(b"new")

        with Answered(errno.EPERM):
            (workflow / "new").replace(held)

        assert (workflow / "new").read_bytes() == b"new"

    def test_mv_of_a_folder_above_it_is_refused(self, held, workflow):
        for folder in (workflow, workflow.parent):
            with Answered(errno.EPERM):
                folder.rename(folder.with_name("renamed"))
        assert held.exists()

    @pytest.mark.parametrize(
        "flags", [os.O_WRONLY, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND, os.O_RDWR]
    )
    def test_opening_it_for_writing_is_refused(self, held, flags):
        with Answered(errno.EPERM):
            os.open(held, flags)

    def test_truncating_it_is_refused(self, held):
        with Answered(errno.EPERM):
            os.truncate(held, 3)

    def test_writing_its_name_in_another_tier_is_refused(self, held, process, tenant):
        assert held.exists()

        with Answered(errno.EPERM):
            (process.path / "cold" / tenant / "w/held").write_bytes(b"new")

    def test_tools_say_so(self, held, workflow):
        (workflow / "new").write_bytes(b"new")

        for line in (
            "echo x > held",
            "echo x >> held",
            "truncate -s 0 held",
            "cp new held",
            "mv new held",
            "sed -i s/k/l/ held",
            "rm -rf ../w",
        ):
            said = run("bash", "-c", f"{{ ! {line}; }} 2>&1", cwd=workflow)
            assert b"not permitted" in said, line
            (workflow / "new").write_bytes(b"new")


class TestHeldMeanwhile:
    def test_what_is_held_after_it_was_opened_is_refused_at_close(self, store, tenant, workflow):
        (workflow / "f").write_bytes(b"old")
        fd = os.open(workflow / "f", os.O_WRONLY | os.O_TRUNC)
        os.write(fd, b"new")
        store.artifacts.hold(f"{tenant}/w/f", "smith")

        with Answered(errno.EPERM):
            os.close(fd)

        assert (workflow / "f").read_bytes() == b"old"
        with pytest.raises(Held):
            store.artifacts.delete(f"{tenant}/w/f")
        store.artifacts.release(f"{tenant}/w/f", "smith")
        (workflow / "f").write_bytes(b"newer")
        assert store.artifacts.get(f"{tenant}/w/f") == b"newer"

    def test_attributes_go_on(self, store, tenant, workflow):
        (workflow / "f").write_bytes(b"old")
        store.artifacts.hold(f"{tenant}/w/f", "smith")

        (workflow / "f").chmod(0o600)
        os.utime(workflow / "f", ns=(1, 10**18))
        os.setxattr(workflow / "f", "user.mine", b"x")
        shell("touch f", cwd=workflow)

        assert os.getxattr(workflow / "f", "user.mine") == b"x"
        assert store.artifacts.get(f"{tenant}/w/f") == b"old"

    def test_moving_to_another_tier_goes_on(self, store, process, tenant, workflow):
        (workflow / "f").write_bytes(LARGE)
        store.artifacts.hold(f"{tenant}/w/f", "smith")
        hot, cold = (process.path / tier / tenant / "w/f" for tier in ("hot", "cold"))

        hot.rename(cold)

        assert store.artifacts.stat(f"{tenant}/w/f").tier == "cold"
        assert cold.read_bytes() == (workflow / "f").read_bytes() == LARGE


class TestQuotas:
    def test_bytes_past_it_are_refused_at_close(self, store, tenant, workflow):
        store.lifecycle.configure(tenants={tenant: {"bytes_max": 1000}})
        (workflow / "a").write_bytes(b"x" * 900)

        for name in ("a", "b"):
            fd = os.open(workflow / name, os.O_WRONLY | os.O_CREAT)
            os.write(fd, b"y" * 1001)
            with Answered(errno.EDQUOT):
                os.close(fd)
        with Answered(errno.EDQUOT):
            os.truncate(workflow / "a", 1001)

        assert (workflow / "a").read_bytes() == b"x" * 900
        assert [path.name for path in workflow.iterdir()] == ["a"]
        (workflow / "a").write_bytes(b"x" * 1000)
        assert store.artifacts.usage(tenant).bytes == 1000

    def test_files_past_it_are_refused(self, store, tenant, workflow):
        store.lifecycle.configure(tenants={tenant: {"artifacts_max": 1}})
        (workflow / "a").write_bytes(b"x")

        with Answered(errno.EDQUOT):
            (workflow / "b").write_bytes(b"x")
        with Answered(errno.EDQUOT):
            (workflow / "link").symlink_to("a")

        assert [path.name for path in workflow.iterdir()] == ["a"]
        (workflow / "a").unlink()
        (workflow / "b").write_bytes(b"x")

    def test_a_folder_from_another_tenant_does_not_get_past_it(self, store, tenant, workflow):
        (workflow / "a").write_bytes(b"x" * 100)
        other = workflow.parents[1] / f"{tenant}-small"
        other.mkdir()
        store.lifecycle.configure(tenants={other.name: {"bytes_max": 99}})

        with Answered(errno.EDQUOT):
            workflow.rename(other / "w")

        assert (workflow / "a").read_bytes() == b"x" * 100


class TestTrash:
    def test_what_rm_took_away_comes_back(self, store, tenant, workflow):
        store.lifecycle.configure(tenants={tenant: {"trash_days": 1}})
        (workflow / "d").mkdir()
        (workflow / "d/f").write_bytes(LARGE)
        os.setxattr(workflow / "d/f", "user.mine", b"x")
        run("rm", "-r", workflow / "d")
        assert list(workflow.iterdir()) == []

        store.artifacts.undelete(f"{tenant}/w/d/f")

        assert (workflow / "d/f").read_bytes() == LARGE
        assert os.getxattr(workflow / "d/f", "user.mine") == b"x"

    def test_what_was_written_over_does_not(self, store, tenant, workflow):
        store.lifecycle.configure(tenants={tenant: {"trash_days": 1}})
        (workflow / "f").write_bytes(b"old")
        (workflow / "f").write_bytes(b"new")
        (workflow / "g").write_bytes(b"newer")
        (workflow / "g").replace(workflow / "f")

        assert list(store.artifacts.trash(f"{tenant}/")) == []

    def test_who_has_it_open_reads_on_after_rm(self, store, tenant, workflow):
        store.lifecycle.configure(tenants={tenant: {"trash_days": 1}})
        (workflow / "f").write_bytes(LARGE)
        with (workflow / "f").open("rb") as reader:
            (workflow / "f").unlink()
            store.artifacts.empty_trash(f"{tenant}/")

            assert reader.read() == LARGE


class TestAttributes:
    def test_hold_due_and_sha256_are_shown(self, store, tenant, workflow):
        store.lifecycle.configure(tenants={tenant: {"sha256": True, "hot_days": 3}})
        for name, data in (("small", b"small"), ("large", LARGE)):
            (workflow / name).write_bytes(data)
            store.artifacts.hold(f"{tenant}/w/{name}", "smith")
            store.artifacts.hold(f"{tenant}/w/{name}", "audit")

            shown = {
                each: os.getxattr(workflow / name, f"user.kvstate.{each}").decode()
                for each in ("hold", "due", "sha256")
            }

            found = store.artifacts.stat(f"{tenant}/w/{name}")
            assert shown["hold"] == "audit, smith"
            assert datetime.fromisoformat(shown["due"]) == found.due_at
            assert found.due_at_ns - found.written_at_ns == 3 * DAY_SECONDS * 10**9
            line = run("sha256sum", workflow / name).split()[0]
            assert shown["sha256"] == line.decode() == found.sha256

    def test_what_is_computed_cannot_be_set(self, workflow):
        (workflow / "f").write_bytes(b"x")

        for name in ("digest", "due", "sha256"):
            with Answered(errno.ENOTSUP):
                os.setxattr(workflow / "f", f"user.kvstate.{name}", b"x")

    def test_tier_and_holds_can_be_set(self, workflow):
        (workflow / "f").write_bytes(b"x")

        os.setxattr(workflow / "f", "user.kvstate.hold", b"audit: by hand")
        with Answered(errno.EPERM):
            (workflow / "f").unlink()
        os.removexattr(workflow / "f", "user.kvstate.hold")
        os.setxattr(workflow / "f", "user.kvstate.tier", b"warm")

        assert os.getxattr(workflow / "f", "user.kvstate.tier") == b"warm"


def test_reading_counts_as_an_access_and_looking_does_not(tmp_path, adapter):
    process = MountProcess(tmp_path, adapter)
    names = ("read", "copied", "looked-at", "listed")
    with process.opened_store() as store:
        for name in names:
            store.artifacts.put(f"t/w/{name}", LARGE)
    try:
        process.start()
        folder = Path(process.path) / "hot/t/w"
        for name in names:
            os.utime(folder / name, ns=(10**18, 10**18))

        (folder / "read").read_bytes()
        run("cp", folder / "copied", tmp_path / "copy")
        (folder / "looked-at").stat()
        os.listxattr(folder / "looked-at")
        run("ls", "-l", folder)
        assert process.terminate() == 0
    finally:
        process.end()

    with process.opened_store() as store:
        read_at = {name: store.artifacts.stat(f"t/w/{name}").accessed_at_ns for name in names}
    assert {name for name, at_ns in read_at.items() if at_ns > 10**18} == {"read", "copied"}
    assert process.problems() == []
