"""Ordinary tools on real data: Python's standard library and Debian's package list, mounted.

Every result is compared with the same tool's result on the original files.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import py_compile
import shutil
import subprocess
import sys
import sysconfig
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import wait_for
from tests.integration.mounts import run, shell

pytestmark = pytest.mark.fuse

STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib"))
LEFT_OUT = {"__pycache__", "site-packages", "dist-packages", "test", "tests"}
VIM = shutil.which("vim.tiny") or shutil.which("vim")
PACKAGES = Path("/var/lib/dpkg/status")
TAR = "tar c --sort=name --format=gnu --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=0755 ."


def left_out(_folder, names):
    return [name for name in names if name in LEFT_OUT or name.startswith("config-")]


def digest_of_tar(folder):
    return hashlib.sha256(shell(TAR, cwd=folder)).hexdigest()


def relative_files(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


@contextmanager
def following(out, *arguments):
    """Run `tail -f` meanwhile; give a function that gives what it has said."""
    with out.open("wb") as target:
        tail = subprocess.Popen(["tail", "-s", "0.1", "-f", *arguments], stdout=target)
    try:
        yield out.read_text
    finally:
        tail.kill()
        tail.wait(30)


@pytest.fixture(scope="module")
def mount(mounted):
    return mounted.path


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The running Python's standard library, with what real trees have, too."""
    folder = tmp_path_factory.mktemp("original") / "stdlib"
    shutil.copytree(STANDARD_LIBRARY, folder, ignore=left_out, symlinks=True)
    extra = folder / "extra"
    extra.mkdir()
    for size in (0, 1, 4095, 4096, 4097, 65_535, 65_536, 65_537, 131_073, 1_000_003):
        (extra / f"odd-{size}").write_bytes(os.urandom(size))
    (extra / "with space and ünïcode").write_text("text", encoding="utf-8")
    (extra / "link").symlink_to("odd-4096")
    (extra / "empty folder").mkdir()
    return folder


@pytest.fixture(scope="module")
def part(original, tmp_path_factory):
    """Some hundred files of it, for what copies more than once."""
    folder = tmp_path_factory.mktemp("part") / "stdlib"
    for name in ("asyncio", "encodings", "extra", "json"):
        shutil.copytree(original / name, folder / name, symlinks=True)
    return folder


@pytest.fixture(scope="module")
def copied(mount, original):
    """The library, copied into the mount by `cp -r`."""
    workflow = mount / "hot/python"
    workflow.mkdir()
    run("cp", "-r", original, workflow / "stdlib")
    return workflow / "stdlib"


@pytest.fixture
def workflow(mount, request):
    """A fresh workflow for one test."""
    folder = mount / "hot/tests" / request.node.name[:200]
    folder.mkdir(parents=True)
    return folder


class TestTheStandardLibrary:
    def test_there_are_hundreds_of_files_in_nested_folders(self, original):
        files = relative_files(original)

        assert len(files) > 500
        assert max(len(path.parts) for path in files) >= 4

    def test_diff_finds_no_difference(self, original, copied):
        assert run("diff", "-r", "--no-dereference", original, copied) == b""

    def test_all_shows_the_same(self, original, copied, mount):
        assert run("diff", "-r", "--no-dereference", original, mount / "all/python/stdlib") == b""

    def test_a_tar_has_the_same_bytes(self, original, copied):
        assert digest_of_tar(copied) == digest_of_tar(original)

    def test_find_finds_the_same(self, original, copied):
        listing = "find . -printf '%y %s %p\\n' | sed 's/^d [0-9]*/d/' | sort"

        assert shell(listing, cwd=copied) == shell(listing, cwd=original)

    def test_grep_finds_the_same(self, original, copied):
        count = "grep -rc import . | sort"

        assert shell(count, cwd=copied) == shell(count, cwd=original)

    def test_cp_a_gives_back_the_same(self, original, copied, tmp_path):
        run("cp", "-a", copied, tmp_path / "out")

        assert run("diff", "-r", "--no-dereference", original, tmp_path / "out") == b""

    def test_rsync_in_and_out_gives_back_the_same(self, part, mount, tmp_path):
        (mount / "hot/python/rsync").mkdir(parents=True)

        run("rsync", "-a", "--checksum", f"{part}/", f"{mount}/hot/python/rsync/")
        again = run("rsync", "-ai", "--checksum", f"{part}/", f"{mount}/hot/python/rsync/")
        run("rsync", "-a", "--checksum", f"{mount}/hot/python/rsync/", f"{tmp_path}/out/")

        assert again == b""
        assert run("diff", "-r", "--no-dereference", part, tmp_path / "out") == b""
        assert run("rsync", "-ain", "--checksum", f"{part}/", f"{tmp_path}/out/") == b""

    def test_tar_x_gives_the_same(self, original, workflow):
        shell(f"{TAR} | tar x -C {workflow}", cwd=original)

        assert run("diff", "-r", "--no-dereference", original, workflow) == b""

    def test_python_compiles_it_and_imports_from_it(self, original, workflow):
        run("cp", "-r", original / "json", original / "asyncio", workflow)

        run(sys.executable, "-m", "compileall", "-q", workflow)

        compiled = list(workflow.rglob("*.pyc"))
        assert len(compiled) == len(list(workflow.rglob("*.py")))
        loads = (
            f"import sys; sys.path.insert(0, {str(workflow)!r}); import json; print(json.__file__)"
        )
        assert run(sys.executable, "-S", "-c", loads).decode().strip().startswith(str(workflow))
        again = py_compile.compile(str(workflow / "json/decoder.py"), doraise=True)
        assert Path(again).read_bytes()[:4] == compiled[0].read_bytes()[:4]

    def test_rm_r_leaves_nothing(self, original, workflow):
        run("cp", "-r", original / "email", workflow / "email")

        run("rm", "-r", workflow / "email")

        assert list(workflow.iterdir()) == []

    def test_mv_moves_a_whole_tree_in_all(self, original, workflow, mount):
        run("cp", "-r", original / "json", workflow / "json")
        there = mount / "all" / workflow.relative_to(mount / "hot")

        run("mv", there / "json", there / "moved")

        assert run("diff", "-r", original / "json", workflow / "moved") == b""
        assert not (workflow / "json").exists()

    def test_mv_moves_a_whole_tree_between_tiers_by_copying(self, original, workflow, mount):
        run("cp", "-r", original / "email", workflow / "email")
        cold = mount / "cold" / workflow.relative_to(mount / "hot")

        run("mv", workflow / "email", cold / "email")

        assert run("diff", "-r", original / "email", cold / "email") == b""
        assert not (workflow / "email").exists()
        assert {path.name for path in workflow.iterdir()} == set()

    def test_mv_restores_one_file_from_a_tier(self, original, workflow, mount):
        cold = mount / "cold" / workflow.relative_to(mount / "hot")
        shutil.copyfile(original / "ast.py", cold / "ast.py")

        run("mv", cold / "ast.py", workflow / "ast.py")

        assert filecmp.cmp(original / "ast.py", workflow / "ast.py", shallow=False)
        assert os.getxattr(workflow / "ast.py", "user.kvstate.tier") == b"hot"
        assert not (cold / "ast.py").exists()


class TestEditing:
    def test_sed_i_changes_a_file_in_place(self, original, workflow):
        shutil.copyfile(original / "os.py", workflow / "os.py")

        run("sed", "-i", "s/import/IMPORT/", workflow / "os.py")

        expected = run("sed", "s/import/IMPORT/", original / "os.py")
        assert (workflow / "os.py").read_bytes() == expected
        assert [path.name for path in workflow.iterdir()] == ["os.py"]

    def test_writing_a_new_file_and_renaming_it_over_the_old_replaces_it(self, workflow):
        (workflow / "conf").write_text("old")
        (workflow / ".conf.tmp").write_text("new")

        (workflow / ".conf.tmp").replace(workflow / "conf")

        assert (workflow / "conf").read_text() == "new"
        assert [path.name for path in workflow.iterdir()] == ["conf"]

    @pytest.mark.skipif(VIM is None, reason="needs vim or vim.tiny")
    def test_vim_saves_a_file(self, workflow):
        (workflow / "notes.txt").write_text("one\ntwo\n")

        run(VIM, "-Nu", "NONE", "-n", "-es", "+%s/two/2/", "+wq", workflow / "notes.txt")

        assert (workflow / "notes.txt").read_text() == "one\n2\n"
        assert [path.name for path in workflow.iterdir()] == ["notes.txt"]

    def test_the_shell_appends(self, workflow):
        shell("for n in 1 2 3; do echo line $n >> log; done", cwd=workflow)

        assert (workflow / "log").read_text() == "line 1\nline 2\nline 3\n"

    def test_the_shell_never_stores_an_empty_file_on_its_way(self, workflow, mount):
        shell("echo old > file; echo new > file", cwd=workflow)

        lines = (mount / ".kvstate/journal.jsonl").read_text().splitlines()
        puts = [line for line in map(json.loads, lines) if line["name"].endswith("/file")]
        assert [put["value"]["size"] for put in puts if workflow.name in put["name"]] == [4, 4]

    def test_tail_f_follows_a_file_that_grows(self, workflow, tmp_path):
        (workflow / "log").write_text("first\n")
        with following(tmp_path / "out", "-n", "+1", workflow / "log") as said:
            wait_for(lambda: said() == "first\n", what="tail to begin")
            shell("echo second >> log", cwd=workflow)

            wait_for(lambda: said() == "first\nsecond\n", what="tail to follow")

    def test_tail_f_follows_the_journal(self, workflow, mount, tmp_path):
        with following(tmp_path / "out", "-n", "1", mount / ".kvstate/journal.jsonl") as said:
            wait_for(said, what="tail to begin")
            (workflow / "told").write_text("x")

            wait_for(lambda: f"{workflow.name}/told" in said(), what="tail to follow")
            assert all(json.loads(line) for line in said().splitlines())


@pytest.fixture(scope="module")
def packages():
    """The fields of each installed package."""
    stanzas = PACKAGES.read_text(encoding="utf-8").strip().split("\n\n")
    found = {}
    for stanza in stanzas:
        unfolded = stanza.replace("\n ", "\v")
        fields = dict(line.split(": ", 1) for line in unfolded.splitlines() if ": " in line)
        found[f"{fields['Package']}:{fields.get('Architecture', 'all')}"] = {
            name: value.replace("\v", "\n ") for name, value in fields.items()
        }
    return found


@pytest.fixture(scope="module")
def namespace(mount, packages):
    """One key per package, set by another process than the one that shows them."""
    store_path = mount.parent / "store"
    script = (
        "import json, sys, kvstate\n"
        "with kvstate.open(sys.argv[1]) as store:\n"
        "    store.namespace('dpkg').set_many(json.load(open(sys.argv[2])))\n"
    )
    (mount.parent / "packages.json").write_text(json.dumps(packages))
    run(sys.executable, "-c", script, store_path, mount.parent / "packages.json")
    return mount / "state/dpkg"


@pytest.mark.skipif(not PACKAGES.exists(), reason="needs Debian's package list")
class TestThePackageList:
    def test_every_package_is_a_file_of_its_fields(self, namespace, packages):
        found = {path.name: json.loads(path.read_text()) for path in namespace.iterdir()}

        assert len(found) > 50
        assert found == packages

    def test_grep_finds_what_is_installed(self, namespace, packages):
        found = run("grep", "-rl", '"Status": "install ok installed"', ".", cwd=namespace)

        installed = [
            name for name, fields in packages.items() if fields["Status"] == "install ok installed"
        ]
        assert sorted(found.decode().replace("./", "").split()) == sorted(installed)

    def test_they_are_copied_out_whole(self, namespace, packages, tmp_path):
        run("cp", "-r", namespace, tmp_path / "dpkg")

        assert run("diff", "-r", namespace, tmp_path / "dpkg") == b""
        assert len(list((tmp_path / "dpkg").iterdir())) == len(packages)

    def test_sed_i_changes_a_value_and_leaves_it_structured(self, mount, namespace, packages):
        name = min(packages)

        run("sed", "-i", "s/install ok installed/on hold/", namespace / name)

        found = json.loads((namespace / name).read_text())
        assert found == {**packages[name], "Status": "on hold"}
        assert os.getxattr(namespace / name, "user.kvstate.type") == b"dict"
        assert len(list(namespace.iterdir())) == len(packages)

    @pytest.mark.skipif(VIM is None, reason="needs vim or vim.tiny")
    def test_vim_changes_a_value_and_leaves_it_structured(self, namespace, packages):
        name = max(packages)

        run(VIM, "-Nu", "NONE", "-n", "-es", "+%s/ok installed/ok/", "+wq", namespace / name)

        found = json.loads((namespace / name).read_text())
        assert found["Status"] == packages[name]["Status"].replace("ok installed", "ok")
        assert os.getxattr(namespace / name, "user.kvstate.type") == b"dict"
        assert len(list(namespace.iterdir())) == len(packages)
