#!/usr/bin/env bash
# From nothing to a mounted store and a passed test run, in a bare Debian of its own.
#
#     tests/fresh/chroot.sh [demo] [tests] [user]      (default: demo tests)
#
#     demo    ./run demo as root, until its tree is there; then Ctrl-C, status 0, unmounted; again
#     tests   ./run tests as root
#     user    ./run demo as a user with sudo
#
# Opt-in: needs root, debootstrap, git, the network and some minutes. The Debian has only Python in
# it (SUITE=bookworm, PYTHON=python3.11, MIRROR=http://deb.debian.org/debian). It lives in mount and
# PID namespaces of its own: when this script ends, however it ends, nothing is left mounted or
# running. KEEP=1 keeps the folder.
set -euo pipefail

suite=${SUITE:-bookworm}
mirror=${MIRROR:-http://deb.debian.org/debian}
package=${PYTHON:-python3.11}
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)

note() { printf '\n=== %s\n' "$*"; }
fail() { printf 'chroot.sh: %s\n' "$*" >&2; exit 1; }

outside() { # makes the machine, then goes on inside of the namespaces
    [ "$(id -u)" -eq 0 ] || fail "needs root"
    for command in debootstrap git unshare; do
        command -v "$command" >/dev/null || fail "needs $command"
    done
    [ -c /dev/fuse ] || fail "needs /dev/fuse (modprobe fuse)"
    machine=$(mktemp -d "${TMPDIR:-/tmp}/kvstate-fresh-XXXXXX")
    trap 'clean_up' EXIT
    chmod 755 "$machine" # it becomes the root folder of everyone in there
    note "making a bare $suite with $package in $machine"
    debootstrap --variant=minbase --include="$package" "$suite" "$machine" "$mirror" \
        >"$machine.log" 2>&1 || { tail -n 20 "$machine.log"; fail "debootstrap failed"; }
    bring_network
    git clone --quiet "file://$repository" "$machine/root/kvstate"
    MACHINE=$machine unshare --mount --pid --fork --kill-child \
        "$repository/tests/fresh/chroot.sh" --inside "$@"
    note "everything asked for passed: $*"
}

clean_up() {
    rm -f "$machine.log"
    if [ -n "${KEEP:-}" ]; then
        echo "kept: $machine"
    else
        rm -rf --one-file-system "$machine"
    fi
}

bring_network() { # what this machine needs to reach the network, that one needs as well
    cp /etc/resolv.conf "$machine/etc/resolv.conf"
    if [ -e /etc/pip.conf ]; then cp /etc/pip.conf "$machine/etc/pip.conf"; fi
    local authorities=${PIP_CERT:-${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}}
    if [ -e "$authorities" ]; then cp "$authorities" "$machine/etc/authorities.crt"; fi
}

inside() {
    mount --make-rprivate /
    mount -t proc proc "$MACHINE/proc"
    mount --rbind /sys "$MACHINE/sys"
    mount -t tmpfs -o mode=755 dev "$MACHINE/dev"
    mkdir "$MACHINE/dev/shm" "$MACHINE/dev/pts"
    mount -t tmpfs shm "$MACHINE/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=666 pts "$MACHINE/dev/pts"
    ln -s pts/ptmx "$MACHINE/dev/ptmx"
    ln -s /proc/self/fd "$MACHINE/dev/fd"
    ln -s /proc/self/fd/1 "$MACHINE/dev/stdout"
    ln -s /proc/self/fd/2 "$MACHINE/dev/stderr"
    node null 1 3
    node zero 1 5
    node full 1 7
    node random 1 8
    node urandom 1 9
    node tty 5 0
    node fuse 10 229
    if [ "$#" -eq 0 ]; then set -- demo tests; fi
    for each in "$@"; do
        case $each in
        demo | tests | user) "check_$each" ;;
        *) fail "unknown: $each (demo, tests or user)" ;;
        esac
    done
}

node() { mknod -m 666 "$MACHINE/dev/$1" c "$2" "$3"; }

in_machine() { # nothing of this machine's environment but the way to the network
    local pass=()
    for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY \
        PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST PIP_PROXY PIP_DEFAULT_TIMEOUT; do
        if [ -n "${!name:-}" ]; then pass+=("$name=${!name}"); fi
    done
    if [ -e "$MACHINE/etc/authorities.crt" ]; then pass+=(PIP_CERT=/etc/authorities.crt); fi
    chroot "$MACHINE" env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin "${pass[@]}" "$@"
}

DEMO='
cd ~/kvstate
for round in first second; do
    echo "--- the $round time"
    started=$(date +%s)
    ./run demo >demo.log 2>&1 &
    demo=$!
    until grep -q "Ctrl-C stops" demo.log; do
        kill -0 "$demo" 2>/dev/null || { cat demo.log; echo "demo ended too early"; exit 1; }
        sleep 0.2
    done
    cat demo.log
    echo "--- shown after $(($(date +%s) - started)) seconds"
    mountpoint -q demo/mount || exit 1
    library=$(.venv/bin/python -c "import sysconfig; print(sysconfig.get_path(\"stdlib\"))")
    diff -r -x dist-packages -x __pycache__ "$library" demo/mount/hot/python/stdlib || exit 1
    kill -INT "$demo"
    wait "$demo" || { echo "status $?"; tail demo.log; exit 1; }
    tail -n 2 demo.log
    ! mountpoint -q demo/mount || { echo "still mounted"; exit 1; }
done
rm -rf demo demo.log'

check_demo() {
    note "./run demo as root"
    in_machine bash -c "$DEMO"
}

check_tests() {
    note "./run tests as root"
    in_machine bash -c 'cd ~/kvstate && time KVSTATE_REQUIRE_FUSE=1 ./run tests'
}

check_user() {
    note "./run demo as a user with sudo"
    in_machine sh -c 'apt-get -qq update && apt-get -qq install -y sudo >/dev/null 2>&1 &&
        useradd -m ada && echo "ada ALL=(ALL) NOPASSWD: ALL" >/etc/sudoers.d/ada &&
        cp -r /root/kvstate /home/ada/kvstate && rm -rf /home/ada/kvstate/.venv &&
        chown -R ada: /home/ada' || fail "the user could not be made"
    in_machine setpriv --reuid ada --regid ada --init-groups env HOME=/home/ada bash -c "$DEMO"
}

case ${1:-} in
--inside)
    shift
    inside "$@"
    ;;
*) outside "$@" ;;
esac
