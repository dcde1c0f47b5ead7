"""Who may mount, who may enter, who may read: root, an ordinary user, and mount(8) from fstab.

Each test runs a script in a mount namespace of its own, where /dev/fuse is open to everybody and a
`mount.kvstatefs` lies where mount(8) looks for it; nothing outside is changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile

import pytest

from tests.harness import fuse_or_skip

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it becomes another user"),
    pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv"),
]

# The user's Python may lie where the user may not look (in a home folder): the mount's processes,
# and only those, may read all. It takes more to mount.
BEGIN = """
set -e
cd "$FOLDER"
chmod 755 .
mknod fuse c 10 229; chmod 666 fuse; mount --bind fuse /dev/fuse
mkdir -p home/mnt mnt; chown -R 65534:65534 home
user="setpriv --reuid 65534 --regid 65534 --clear-groups"
reads="--inh-caps +dac_read_search --ambient-caps +dac_read_search"
as_user() { $user $reads "$PYTHON" -m kvstatefs "$@" -o "adapter=$ADAPTER"; }
kvstatefs() { "$PYTHON" -m kvstatefs "$@" -o "adapter=$ADAPTER"; }
leave() { umount -l mnt home/mnt 2>/dev/null || true; }
trap leave EXIT
"""


@pytest.fixture
def script(adapter):
    fuse_or_skip()
    folder = tempfile.mkdtemp(prefix="kvstate-rights-")  # pytest's own are closed to other users

    def run(text, code=0):
        environ = {"FOLDER": folder, "PYTHON": sys.executable, "ADAPTER": adapter}
        done = subprocess.run(
            ["unshare", "--mount", "bash", "-c", BEGIN + text],
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, (done.stdout, done.stderr)
        return done

    yield run
    shutil.rmtree(folder)


class TestUser:
    def test_a_user_mounts_and_uses_the_mount(self, script):
        done = script("""
            as_user home/store home/mnt
            weekly=home/mnt/hot/acme/weekly
            $user bash -ec "mkdir -p $weekly; echo text > $weekly/report.md"
            $user cat $weekly/report.md
            $user stat -c "%u %g" $weekly/report.md
            grep " $PWD/home/mnt " /proc/self/mountinfo
        """)

        text, owner, line = done.stdout.splitlines()
        assert (text, owner) == ("text", "65534 65534")
        assert " - fuse.kvstatefs " in line
        assert {"nosuid", "nodev"} <= {*line.split(" ")[5].split(",")}
        assert "user_id=65534" in line

    def test_nobody_else_may_enter_a_users_mount_not_even_root(self, script):
        done = script("as_user home/store home/mnt; ls home/mnt", code=2)

        assert "Permission denied" in done.stderr

    def test_a_user_unmounts(self, script):
        script("""
            as_user home/store home/mnt
            $user fusermount3 -u home/mnt
            ! grep " $PWD/home/mnt " /proc/self/mountinfo
        """)

    def test_letting_others_in_is_for_the_administrator_to_allow(self, script):
        done = script(
            """
            touch fuse.conf; mount --bind fuse.conf /etc/fuse.conf
            as_user home/store home/mnt -o allow_other
            """,
            code=1,
        )

        assert "user_allow_other" in done.stderr

    def test_a_folder_of_another_user_is_refused(self, script):
        done = script("mkdir theirs; chmod 755 theirs; as_user home/store theirs", code=1)

        assert "Traceback" not in done.stderr


class TestOthers:
    def test_without_allow_other_nobody_else_enters_roots_mount(self, script):
        done = script("kvstatefs store mnt; $user ls mnt", code=2)

        assert "Permission denied" in done.stderr

    def test_with_allow_other_the_kernel_enforces_owner_and_mode(self, script):
        done = script("""
            kvstatefs store mnt -o allow_other
            cd mnt
            mkdir -p hot/acme/weekly
            echo open > hot/acme/weekly/open; echo secret > hot/acme/weekly/secret
            chmod 600 hot/acme/weekly/secret
            mkdir hot/acme/shared; chmod 777 hot/acme/shared
            $user cat hot/acme/weekly/open
            ! $user cat hot/acme/weekly/secret 2>/dev/null
            ! $user bash -c 'echo x >> hot/acme/weekly/open' 2>/dev/null
            ! $user touch hot/acme/weekly/new 2>/dev/null
            $user bash -c 'echo mine > hot/acme/shared/mine'
            stat -c "%u" hot/acme/shared/mine
            chmod 700 hot/acme/weekly
            ! $user cat hot/acme/weekly/open 2>/dev/null
        """)

        assert done.stdout == "open\n65534\n"


# An overlay of two folders shows mount(8) a helper in /sbin; it is read-only, and gone with the
# namespace.
FSTAB = """
mkdir sbin
cat > sbin/mount.kvstatefs <<'END'
#!/bin/sh
export PYTHONPATH="$SOURCES"
exec "$PYTHON" -c "import sys; from kvstatefs.main import main_fstab; sys.exit(main_fstab())" "$@"
END
chmod 755 sbin/mount.kvstatefs
mount -t overlay -o "lowerdir=$PWD/sbin:$(realpath /sbin)" overlay "$(realpath /sbin)"
export PYTHON ADAPTER
line() { echo "$PWD/store $PWD/mnt kvstatefs $1,adapter=$ADAPTER 0 0" > fstab; }
"""


class TestFstab:
    def test_a_line_of_fstab_mounts_and_unmounts(self, script):
        script(
            FSTAB
            + """
            line defaults,nofail,noatime,x-systemd.automount,x-systemd.idle-timeout=60
            mount -T fstab "$PWD/mnt"
            mkdir -p mnt/hot/acme/weekly; echo text > mnt/hot/acme/weekly/f
            grep -q text mnt/hot/acme/weekly/f
            grep " $PWD/mnt " /proc/self/mountinfo | grep -q noatime
            umount mnt
        """
        )

    def test_a_read_only_line(self, script):
        done = script(
            FSTAB
            + """
            line defaults; mount -T fstab "$PWD/mnt"; mkdir mnt/hot/acme; umount mnt
            line ro; mount -T fstab "$PWD/mnt"; ls mnt/hot
            ! mkdir mnt/hot/other 2>/dev/null
            umount mnt
        """
        )

        assert done.stdout == "acme\n"

    def test_a_line_that_cannot_be_mounted_says_why(self, script):
        done = script(FSTAB + 'line "defaults,fast"; mount -T fstab "$PWD/mnt"', code=2)

        assert "-o fast: there is no such option" in done.stderr
