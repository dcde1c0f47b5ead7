"""The daemon as a process: what it does for one client whatever another does, and how it ends."""

from __future__ import annotations

import hashlib
import io
import os
import resource
import socket
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

import kvstate
from kvstate.codec import decode, encode
from kvstate.store import open_store
from tests.harness import wait_for
from tests.integration.daemons import DaemonProcess

MEBIBYTE = 1 << 20
SPARE = 3
"""Descriptors that a daemon may come to need while it starts or checks: each test opens more."""


@pytest.fixture
def daemon(tmp_path):
    process = DaemonProcess(tmp_path).start()
    yield process
    process.end()


@pytest.fixture
def remote(daemon):
    with daemon.connect() as store:
        yield store


class Zeros(io.RawIOBase):
    """A binary file that has so many bytes, none of which is kept."""

    def __init__(self, size):
        super().__init__()
        self.left = size

    def readable(self):
        return True

    def readinto(self, buffer):
        size = min(len(buffer), self.left)
        buffer[:size] = bytes(size)
        self.left -= size
        return size


def framed(body):
    return len(body).to_bytes(4, "big") + body


def answer_of(plain):
    """Read one frame; None when the daemon closes instead."""
    data = b""
    while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
        more = plain.recv(65536)
        if not more:
            assert data == b""
            return None
        data += more
    return decode(data[4:])


class TestOneDaemonForEachStore:
    def test_a_second_daemon_refuses_to_start_and_names_the_pid(self, daemon, tmp_path):
        second = DaemonProcess(tmp_path)
        second.socket = tmp_path / "other.sock"
        second.begin()

        status = second.process.wait(30)

        assert status == 4
        assert f"pid {daemon.process.pid}" in second.said()
        assert not second.socket.exists()
        assert (daemon.store / "kvstated.pid").read_text() == f"{daemon.process.pid}\n"

    def test_a_daemon_of_another_store_does_not_take_a_socket_that_is_in_use(
        self, daemon, remote, tmp_path
    ):
        (tmp_path / "b").mkdir()
        second = DaemonProcess(tmp_path / "b")
        second.socket = daemon.socket
        second.begin()

        assert second.process.wait(30) == 4
        assert "socket" in second.said()
        assert remote.revision() > 0
        assert not (second.store / "kvstated.pid").exists()

    def test_what_is_no_socket_is_not_replaced(self, tmp_path):
        daemon = DaemonProcess(tmp_path)
        daemon.socket.write_text("precious")
        daemon.begin()

        assert daemon.process.wait(30) == 4
        assert daemon.socket.read_text() == "precious"

    def test_a_killed_daemon_is_followed_by_the_next(self, daemon):
        with daemon.connect() as store:
            store.namespace("ns").set("key", "kept")
        daemon.kill()

        daemon.start()

        with daemon.connect() as store:
            assert store.namespace("ns").get("key") == "kept"


class TestTheSocket:
    def test_its_mode_is_0600(self, daemon):
        assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o600

    def test_nothing_else_is_left_beside_it(self, daemon, tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {"store", "k.sock", "kvstated.log"}

    def test_nobody_there_is_unavailable_and_says_what_to_do(self, tmp_path):
        with pytest.raises(kvstate.Unavailable, match="start it"):
            kvstate.connect(tmp_path / "nobody.sock")

    def test_the_actor_of_a_change_is_the_user_of_the_client(self, remote):
        remote.namespace("ns").set("key", 1)

        assert list(remote.journal())[-1].actor == f"uid:{os.getuid()}"

    def test_a_client_goes_on_after_the_daemon_was_restarted(self, daemon, remote):
        space = remote.namespace("ns")
        space.set("key", 1)
        daemon.stop()
        daemon.start()

        space.set("key", 2)

        assert space.get("key") == 2


class TestBadFrames:
    @pytest.mark.parametrize(
        ("body", "why"),
        [
            (b"", "not the CBOR"),
            (b"\xff\xfe\x00garbage", "not the CBOR"),
            (b"\x9f" * 500, "not the CBOR"),
            (encode({"get": 1}), "form"),
            (encode([]), "form"),
            (encode([["get"], "a", "b"]), "form"),
            (encode(["frobnicate", 1]), "none of protocol"),
            (encode(["_listing", 1]), "none of protocol"),
            (encode(["get"]), "0 given"),
            (encode(["get", "a", "b", 1, 2, 3]), "5 given"),
            (encode(["wait", "a", "b"]), "kind"),
            (encode(["more", 99]), "no listing"),
            (encode(["artifact_read", 99, 0, 1]), "no open artifact"),
        ],
    )
    def test_a_frame_that_makes_no_sense_is_answered_and_the_connection_goes_on(
        self, daemon, body, why
    ):
        with daemon.raw() as plain:
            plain.sendall(framed(body))
            refused = answer_of(plain)
            plain.sendall(framed(encode(["revision"])))
            answered = answer_of(plain)

        assert refused[0] in {"invalid_value", "not_found"}
        assert why in refused[1]
        assert answered == [1]

    def test_a_client_of_another_protocol_is_told(self, daemon):
        with daemon.raw() as plain:
            plain.sendall(framed(encode(["hello", 99])))

            assert answer_of(plain)[0] == "incompatible"

    def test_an_oversized_frame_is_answered_and_closed(self, daemon):
        with daemon.raw() as plain:
            plain.sendall(b"\x7f\xff\xff\xff")

            assert answer_of(plain)[0] == "invalid_value"
            assert plain.recv(1) == b""

    def test_good_clients_are_answered_at_once_whatever_others_send(self, daemon, remote):
        space = remote.namespace("ns")
        space.set("key", 1)
        before = daemon.descriptors()
        bad = [daemon.raw() for _ in range(40)]
        for number, plain in enumerate(bad):
            plain.sendall(
                [
                    b"\0",  # slow: and nothing more
                    b"\0\x40\0\0" + bytes(100_000),  # slow: most of it is missing
                    os.urandom(1000),
                    framed(b"\x9a\0\x02\0\0" + b"\x80" * 0x20000),  # no request, large
                ][number % 4]
            )

        slowest = 0.0
        for _ in range(200):
            began = time.monotonic()
            assert space.get("key") == 1
            slowest = max(slowest, time.monotonic() - began)
        for plain in bad:
            plain.close()

        assert slowest < 0.5
        wait_for(lambda: daemon.descriptors() <= before + SPARE, what="the descriptors back")
        assert remote.check(verify=True).clean

    def test_a_client_that_does_not_read_its_answers_is_in_nobodys_way(self, daemon, remote):
        remote.artifacts.put("acme/weekly/large", bytes(MEBIBYTE))
        with daemon.raw() as plain:
            plain.setblocking(False)
            request = framed(encode(["artifact_open", "acme/weekly/large"]))
            read = framed(encode(["artifact_read", 1, 0, MEBIBYTE]))
            plain.send(request + read * 50)

            assert remote.namespace("ns").get("key") is None

    def test_a_connection_too_many_is_told_so_and_the_others_go_on(self, tmp_path):
        config = tmp_path / "few.toml"
        config.write_text("[daemon]\nconnections_max = 3\n")
        daemon = DaemonProcess(tmp_path, "--config", config).start()
        try:
            kept = [daemon.connect() for _ in range(3)]

            with pytest.raises(kvstate.Unavailable, match="connections"):
                daemon.connect()

            assert all(store.revision() == 1 for store in kept)
            kept.pop().close()
            wait_for(lambda: _connects(daemon), what="room for one more")
            for store in kept:
                store.close()
        finally:
            daemon.end()


def _connects(daemon):
    try:
        daemon.connect().close()
    except kvstate.Unavailable:
        return False
    return True


class TestStreams:
    def test_fifty_megabytes_go_in_and_out_at_bounded_memory(self, daemon, remote):
        size = 50 * MEBIBYTE
        remote.artifacts.put("acme/weekly/warm-up", bytes(MEBIBYTE))
        remote.artifacts.get("acme/weekly/warm-up")
        before_kb = daemon.status("VmHWM")
        tracemalloc.start()
        digest = hashlib.sha256()

        remote.artifacts.put("acme/weekly/large", Zeros(size))
        with remote.artifacts.open("acme/weekly/large") as reader:
            while chunk := reader.read(300_000):
                digest.update(chunk)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

        assert digest.hexdigest() == hashlib.sha256(bytes(size)).hexdigest()
        assert peak < 8 * MEBIBYTE
        assert daemon.status("VmHWM") - before_kb < 24 * 1024

    def test_an_upload_whose_client_dies_stores_nothing(self, daemon, remote):
        before = daemon.descriptors()
        for _ in range(20):
            with daemon.raw() as plain:
                plain.sendall(framed(encode(["artifact_upload", "acme/weekly/half"])))
                assert answer_of(plain) == [None]
                plain.sendall(framed(encode(b"half of it")))

        wait_for(lambda: daemon.descriptors() <= before + SPARE, what="the upload to end")
        assert not remote.artifacts.exists("acme/weekly/half")
        assert remote.check(verify=True).clean

    def test_an_upload_that_is_discarded_stores_nothing_and_the_connection_goes_on(self, remote):
        writer = remote.artifacts.open("acme/weekly/report", "w")
        writer.write(bytes(2 * MEBIBYTE))

        writer.discard()

        assert not remote.artifacts.exists("acme/weekly/report")

    def test_an_upload_under_a_bad_name_is_refused_before_its_content_is_sent(self, remote):
        with pytest.raises(kvstate.InvalidName):
            remote.artifacts.open("../escape", "w")
        with pytest.raises(kvstate.InvalidName):
            remote.artifacts.put("acme/we:ekly/x", Zeros(5 * MEBIBYTE))

    def test_who_reads_keeps_the_content_that_was_opened(self, remote):
        remote.artifacts.put("acme/weekly/x", b"a" * 3 * MEBIBYTE)
        with remote.artifacts.open("acme/weekly/x") as reader:
            remote.artifacts.put("acme/weekly/x", b"b" * 3 * MEBIBYTE)
            reader.seek(2 * MEBIBYTE)

            assert set(reader.read(1000)) == {ord("a")}

    def test_handles_end_with_their_connection(self, daemon, remote):
        remote.artifacts.put("acme/weekly/x", bytes(3 * MEBIBYTE))
        before = daemon.descriptors()
        with daemon.raw() as plain:
            for _ in range(50):
                plain.sendall(framed(encode(["artifact_open", "acme/weekly/x"])))
                assert answer_of(plain)[0][1] == 3 * MEBIBYTE

        wait_for(lambda: daemon.descriptors() <= before + SPARE, what="the handles to be closed")

    def test_a_listing_of_many_pages_is_whole_and_may_be_left_early(self, remote):
        space = remote.namespace("ns")
        space.set_many({f"{number:05}": "x" * 100 for number in range(5000)})

        rows = iter(space.scan())
        first = next(rows)
        rows.close()

        assert first.key == "00000"
        assert list(space) == [f"{number:05}" for number in range(5000)]
        assert len(space.get_many(space)) == 5000


class TestManyClients:
    def test_what_thirty_two_clients_were_told_is_stored_is_there(self, daemon):
        acknowledged = [[] for _ in range(32)]

        def write(number):
            with daemon.connect() as store:
                space = store.namespace(f"client-{number % 4}")
                for count in range(25):
                    key = f"{number}-{count}"
                    space.set(key, [number, count])
                    acknowledged[number].append(key)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        daemon.kill()

        with open_store(daemon.store) as store:
            spaces = [store.namespace(f"client-{number}") for number in range(4)]
            found = {key: value for space in spaces for key, value in space.items()}
            assert store.check(verify=True).clean
        assert sum(map(len, acknowledged)) == 32 * 25
        assert found == {
            key: list(map(int, key.split("-"))) for keys in acknowledged for key in keys
        }

    def test_four_hundred_clients_at_once_are_all_answered(self, daemon):
        def ask(number):
            with daemon.connect() as store:
                space = store.namespace("ns")
                space.set(str(number), number)
                return space.get(str(number))

        with ThreadPoolExecutor(400) as pool:
            assert list(pool.map(ask, range(400))) == list(range(400))
        wait_for(lambda: daemon.status("Threads") < 10, what="the threads to end")

    def test_used_up_descriptors_hold_up_new_clients_only_and_spin_nothing(self, daemon, remote):
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (64, 64))
        space = remote.namespace("ns")
        space.set("key", 0)
        with ThreadPoolExecutor(1) as pool, ExitStack() as many:
            a_second = pool.submit(remote.wait, 10_000, 1.0)
            wait_for(lambda: not remote._client._idle, what="the wait to begin")
            space.get("key")
            for _ in range(80):
                many.enter_context(daemon.raw())
            wait_for(lambda: daemon.descriptors() >= 64, what="no descriptor to be left")
            before = daemon.ticks()

            for number in range(100):
                space.set("key", number)
                assert space.get("key") == number
            with pytest.raises(kvstate.Unavailable, match="open files"):
                remote.artifacts.put("acme/weekly/large", bytes(MEBIBYTE))
            a_second.result()
            spent = daemon.ticks() - before

        began = time.monotonic()
        with daemon.connect() as store:
            assert store.namespace("ns").get("key") == 99

        assert time.monotonic() - began < 20
        assert spent < 50  # of 100 in a second
        assert daemon.stop() == 0

    def test_a_watch_sees_what_others_commit(self, daemon, remote):
        events = remote.watch("prs", timeout=30)
        with open_store(daemon.store) as other:
            other.namespace("elsewhere").set("key", 1)
            other.namespace("prs").set("9fceb02", 1287)

        event = next(events)

        assert (event.kind, event.scope, event.name, event.value) == (
            "set",
            "prs",
            "9fceb02",
            1287,
        )


class TestJobs:
    def test_a_key_expires_at_its_time(self, remote):
        space = remote.namespace("ns")
        events = remote.watch("ns", timeout=30)
        space.set("far", 1, ttl=3600)
        space.set("near", 1, ttl=0.3)
        due_ns = space.entry("near").expires_at_ns

        expired = next(event for event in events if event.kind == "expire")

        assert expired.name == "near"
        assert 0 <= expired.at_ns - due_ns < 500_000_000
        assert remote.lifecycle.last().expired == 1

    def test_what_another_process_lets_expire_is_seen(self, daemon, remote):
        events = remote.watch("ns", timeout=30)
        with open_store(daemon.store) as other:
            other.namespace("ns").set("near", 1, ttl=0.2)

        assert [next(events).kind, next(events).kind] == ["set", "expire"]

    def test_what_became_due_while_no_daemon_ran_is_done_at_the_start(self, tmp_path):
        with open_store(tmp_path / "store") as store:
            store.namespace("ns").set("near", 1, ttl=0.001)
        daemon = DaemonProcess(tmp_path).start()
        try:
            with daemon.connect() as remote:
                last = wait_for(remote.lifecycle.last)
        finally:
            daemon.end()

        assert last.expired == 1

    def test_nothing_runs_while_nothing_is_due(self, daemon, remote):
        remote.namespace("ns").set("far", 1, ttl=3600)
        before = daemon.ticks()
        assert remote.wait(remote.revision(), 2.0) == remote.revision()

        assert daemon.ticks() - before <= 5  # 50 ms of 2 s
        assert remote.lifecycle.last() is None


class TestTheEnd:
    def test_sigterm_under_load_ends_with_status_0_and_loses_nothing(self, daemon):
        acknowledged = []
        stopping = threading.Event()

        def write(number):
            try:
                with daemon.connect() as store:
                    for count in range(100_000):
                        key = f"{number}-{count}"
                        store.namespace("ns").set(key, count)
                        acknowledged.append(key)
            except kvstate.Unavailable:
                assert stopping.is_set()

        def upload():
            try:
                with daemon.connect() as store:
                    for _ in range(1000):
                        store.artifacts.put("acme/weekly/x", Zeros(20 * MEBIBYTE))
            except kvstate.Unavailable:
                assert stopping.is_set()

        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        threads.append(threading.Thread(target=upload))
        for thread in threads:
            thread.start()
        wait_for(lambda: len(acknowledged) > 200, what="some writes")
        stopping.set()

        began = time.monotonic()
        status = daemon.stop()
        took = time.monotonic() - began
        for thread in threads:
            thread.join()

        assert status == 0, daemon.said()
        assert took < 20
        assert not daemon.socket.exists()
        assert not (daemon.store / "kvstated.pid").exists()
        with open_store(daemon.store) as store:
            assert set(acknowledged) <= set(store.namespace("ns"))
            assert store.check(verify=True).clean

    def test_sigterm_ends_watches_and_idle_clients(self, daemon, remote):
        ended = threading.Event()

        def watch():
            with pytest.raises(kvstate.Unavailable):
                list(remote.watch(timeout=60))
            ended.set()

        thread = threading.Thread(target=watch)
        thread.start()
        wait_for(lambda: daemon.status("Threads") > 3)

        assert daemon.stop() == 0
        remote.close()  # without it, the watch waits for the daemon to come back
        assert ended.wait(20)
        thread.join()

    def test_a_watch_outlives_its_daemon_without_gaps_or_repeats(self, daemon, remote):
        ns = remote.namespace("ns")
        since = ns.set("n", 0)
        seen = []

        def watch():
            for event in remote.watch("ns", since):
                seen.append(event.value)
                if event.value == 40:
                    return

        thread = threading.Thread(target=watch)
        thread.start()
        for n in range(1, 21):
            ns.set("n", n)
        wait_for(lambda: 5 in seen)
        daemon.stop()
        with kvstate.open(daemon.store) as store:
            store.namespace("ns").set("n", 21)
        daemon.start()
        for n in range(22, 41):
            ns.set("n", n)
        thread.join(30)

        assert seen == list(range(1, 41))

    def test_the_service_manager_is_told(self, tmp_path):
        address = tmp_path / "notify.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(address))
            manager.settimeout(10)
            daemon = DaemonProcess(tmp_path).begin(NOTIFY_SOCKET=str(address))
            try:
                ready = manager.recv(4096).decode()
                daemon.stop()
                stopping = manager.recv(4096).decode()
            finally:
                daemon.end()

        assert ready.splitlines()[0] == "READY=1"
        assert stopping == "STOPPING=1"


class TestTheConfiguration:
    def test_the_socket_has_the_mode_that_is_set(self, tmp_path):
        daemon = DaemonProcess(tmp_path).start(KVSTATE_DAEMON_SOCKET_MODE="0660")
        try:
            assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o660
        finally:
            daemon.end()

    def test_the_stores_own_file_is_read(self, tmp_path):
        daemon = DaemonProcess(tmp_path)
        daemon.store.mkdir()
        (daemon.store / "kvstate.toml").write_text('[daemon]\nframe_bytes_max = "64KiB"\n')
        daemon.start()
        try:
            with daemon.connect() as remote, pytest.raises(kvstate.InvalidValue, match="65536"):
                remote.namespace("ns").set("key", bytes(65536))
        finally:
            daemon.end()

    @pytest.mark.parametrize(
        "text", ["[daemon]\nsokcet = 'x'\n", "[daemon]\nconnections_max = 'many'\n", "[dae"]
    )
    def test_a_wrong_setting_is_refused_by_file_and_line_and_nothing_is_made(self, tmp_path, text):
        config = tmp_path / "wrong.toml"
        config.write_text(text)
        daemon = DaemonProcess(tmp_path, "--config", config).begin()

        assert daemon.process.wait(30) == 2
        assert "wrong.toml" in daemon.said()
        assert "Traceback" not in daemon.said()
        assert not daemon.store.exists()


class TestTheCommandLine:
    def test_help_needs_no_store(self):
        done = subprocess.run(
            [sys.executable, "-m", "kvstated", "--help"], capture_output=True, text=True, check=True
        )

        assert "--store" in done.stdout

    def test_a_missing_store_is_wrong_usage(self):
        done = subprocess.run([sys.executable, "-m", "kvstated"], capture_output=True, check=False)

        assert done.returncode == 2

    def test_a_socket_path_that_is_too_long_is_refused(self, tmp_path):
        daemon = DaemonProcess(tmp_path)
        daemon.socket = tmp_path / ("s" * 120)
        daemon.begin()

        assert daemon.process.wait(30) == 2
        assert "too long" in daemon.said()
