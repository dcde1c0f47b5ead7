"""The client and the server in one process, where frames can be made small and clocks be set."""

from __future__ import annotations

import io
import os
import random
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvstate.errors import (
    Denied,
    Exists,
    Full,
    InvalidName,
    InvalidValue,
    NotFound,
    Unavailable,
)
from kvstate.remote import connect
from kvstated.server import serving
from kvstated.session import HANDLES_MAX
from tests.harness import wait_for

FRAME = 16 << 10
NAME = "acme/weekly/report.bin"


@pytest.fixture
def served(store, tmp_path):
    """A store behind a socket whose frames are small."""
    with serving(store, tmp_path / "s", frame_bytes_max=FRAME, connections_max=16):
        yield store


@pytest.fixture
def remote(served, tmp_path):
    with connect(tmp_path / "s") as client:
        yield client


@contextmanager
def connect_to(store, path):
    with serving(store, path) as server, connect(path) as client:
        client.server = server
        yield client


class TestSmallFrames:
    def test_a_value_that_does_not_fit_is_refused_and_the_connection_goes_on(self, remote):
        space = remote.namespace("ns")

        with pytest.raises(InvalidValue, match="frame_bytes_max"):
            space.set("key", "x" * FRAME)

        assert space.get("key") is None

    def test_a_value_that_does_not_fit_back_is_refused_with_what_to_do(self, served, remote):
        served.namespace("ns").set("key", "x" * FRAME)
        space = remote.namespace("ns")

        with pytest.raises(InvalidValue, match="in-process"):
            space.get("key")
        with pytest.raises(InvalidValue, match="in-process"):
            list(space.scan())

        assert space.get("other") is None

    def test_many_values_come_in_as_many_frames_as_it_takes(self, served, remote):
        values = {f"{number:03}": "x" * 1000 for number in range(200)}
        served.namespace("ns").set_many(values)
        space = remote.namespace("ns")

        assert space.get_many([*values, "absent"]) == values
        assert dict(space) == values
        assert dict(space.items()) == values
        assert list(space.values()) == list(values.values())
        assert len(list(remote.journal())) == len(list(served.journal()))

    @pytest.mark.parametrize("size", [0, 1, FRAME - 2000, FRAME, 10 * FRAME + 7])
    def test_content_of_any_size_goes_in_and_out(self, remote, size):
        content = random.Random(size).randbytes(size)

        stored = remote.artifacts.put(NAME, content)

        assert stored == remote.artifacts.stat(NAME)
        assert stored.size == size
        assert remote.artifacts.get(NAME) == content

    def test_content_goes_in_as_bytes_a_path_or_a_file(self, remote, tmp_path):
        content = bytes(5 * FRAME)
        path = tmp_path / "content"
        path.write_bytes(content)

        for content_given in (bytearray(content), memoryview(content), path, str(path)):
            assert remote.artifacts.put(NAME, content_given).size == len(content)
        with subprocess.Popen(["cat", path], stdout=subprocess.PIPE, bufsize=0) as cat:
            assert remote.artifacts.put(NAME, cat.stdout).size == len(content)

    def test_a_reader_is_a_seekable_file(self, remote):
        content = random.Random(1).randbytes(10 * FRAME)
        remote.artifacts.put(NAME, content)
        plain = io.BytesIO(content)
        dice = random.Random(2)

        with remote.artifacts.open(NAME) as reader:
            for _ in range(200):
                size = dice.choice([0, 1, 100, FRAME, 3 * FRAME])
                if dice.random() < 0.5:
                    at = dice.randrange(12 * FRAME)
                    assert reader.seek(at) == plain.seek(at)
                assert reader.read(size) == plain.read(size)
                assert reader.tell() == plain.tell()
            assert reader.seek(-5, io.SEEK_END) == len(content) - 5
            assert reader.read() == content[-5:]

    def test_a_reader_serves_what_wraps_binary_files(self, remote):
        remote.artifacts.put(NAME, b"first line\nsecond line\n" * 1000)

        with io.TextIOWrapper(io.BufferedReader(remote.artifacts.open(NAME))) as lines:
            assert sum(1 for _ in lines) == 2000


class TestWriters:
    def test_what_was_written_in_pieces_is_whole_after_close(self, remote):
        with remote.artifacts.open(NAME, "w") as writer:
            for number in range(2000):
                writer.write(b"%06d" % number)
            assert not remote.artifacts.exists(NAME)

        assert remote.artifacts.get(NAME) == b"".join(b"%06d" % n for n in range(2000))
        assert writer.artifact == remote.artifacts.stat(NAME)

    def test_an_exception_stores_nothing(self, remote):
        def write_half():
            with remote.artifacts.open(NAME, "w") as writer:
                writer.write(bytes(5 * FRAME))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            write_half()

        assert not remote.artifacts.exists(NAME)

    def test_a_writer_that_is_forgotten_stores_nothing(self, served, remote):
        remote.artifacts.open(NAME, "w").write(bytes(5 * FRAME))

        assert not remote.artifacts.exists(NAME)
        assert remote.revision() == served.revision()

    def test_a_name_that_was_taken_meanwhile_is_said_at_close(self, served, remote):
        writer = remote.artifacts.writer(NAME, replace=False)
        writer.write(bytes(5 * FRAME))
        served.artifacts.put(NAME, b"first")

        with pytest.raises(Exists):
            writer.close()

        assert remote.artifacts.get(NAME) == b"first"

    def test_a_daemon_that_fails_says_so_before_all_is_sent(self, served, remote):
        writer = remote.artifacts.writer(NAME)
        served.blobs.staging = None  # what comes next fails in the daemon alone
        served.close()

        with pytest.raises(Unavailable):
            writer.write(bytes(10_000 * FRAME))

    def test_metadata_and_tier_come_along(self, remote):
        stored = remote.artifacts.put(NAME, bytes(5 * FRAME), metadata={"by": "me"}, tier="warm")

        assert (stored.tier, stored.metadata) == ("warm", {"by": "me"})


class TestConnections:
    def test_idle_connections_are_used_again(self, served, remote):
        for _ in range(100):
            remote.revision()

        assert len(remote._client._open) == 1

    def test_iterators_that_interleave_do_not_mix(self, served, remote):
        served.namespace("a").set_many({f"{n:04}": "a" * 100 for n in range(1500)})
        served.namespace("b").set_many({f"{n:04}": "b" * 100 for n in range(1500)})

        pairs = list(
            zip(remote.namespace("a").values(), remote.namespace("b").values(), strict=True)
        )

        assert set(pairs) == {("a" * 100, "b" * 100)}

    def test_handles_are_limited_for_each_connection(self, served, remote):
        served.artifacts.put(NAME, bytes(5 * FRAME))
        connection, _ = remote._client.ask("artifact_open", (NAME,))
        for _ in range(HANDLES_MAX - 1):
            connection.call("artifact_open", (NAME,))

        with pytest.raises(Full):
            connection.call("artifact_open", (NAME,))

    def test_many_threads_share_one_store(self, remote):
        space = remote.namespace("ns")

        def work(number):
            for count in range(50):
                space.set(f"{number}", count)
                assert space.get(f"{number}") == count
            return count

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(work, range(8))) == [49] * 8

    def test_after_close_everything_is_unavailable(self, remote):
        remote.close()

        with pytest.raises(Unavailable, match="closed"):
            remote.revision()

    def test_a_fork_does_not_share_connections(self, remote):
        remote.namespace("ns").set("key", 1)
        child = os.fork()
        if child == 0:
            found = remote.namespace("ns").get("key")
            os._exit(found)

        _, status = os.waitpid(child, 0)

        assert os.waitstatus_to_exitcode(status) == 1
        assert remote.namespace("ns").get("key") == 1

    def test_a_server_that_stops_ends_a_wait(self, store, tmp_path):
        with ThreadPoolExecutor(1) as pool, connect_to(store, tmp_path / "s") as client:
            waiting = pool.submit(client.wait, 99, 60)
            wait_for(lambda: len(client._client._idle) == 0)
            client.server.stop(5)

            with pytest.raises(Unavailable):
                waiting.result(10)

    def test_nobody_acts_as_somebody_else(self, remote):
        with pytest.raises(Denied):
            remote.acting("root")


class TestNames:
    @pytest.mark.parametrize("key", ["\udcff", "", "a\0b", 7, None, b"bytes", "x" * 300])
    def test_what_is_no_key_is_refused_as_the_store_refuses_it(self, served, remote, key):
        for space in (served.namespace("ns"), remote.namespace("ns")):
            for act in (
                lambda space=space: space.get(key),
                lambda space=space: space.set(key, 1),
                lambda space=space: space.delete(key),
                lambda space=space: space.set_many({key: 1}),
            ):
                with pytest.raises(InvalidName):
                    act()
            assert key not in space

    @pytest.mark.parametrize("name", ["\udcff/b/c", "a/b", "../b/c", "a//c", 7, "a/b/c\n"])
    def test_what_is_no_artifact_is_refused_as_the_store_refuses_it(self, served, remote, name):
        for artifacts in (served.artifacts, remote.artifacts):
            with pytest.raises(InvalidName):
                artifacts.put(name, b"")
            with pytest.raises(InvalidName):
                artifacts.get(name)

    @given(key=st.text(min_size=1, max_size=20), value=st.integers())
    @settings(
        deadline=None,
        max_examples=100,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    def test_both_doors_agree_on_every_text(self, served, remote, key, value):
        def outcome(space):
            try:
                space.set(key, value)
            except InvalidName as error:
                return str(error)
            return space.get(key)

        assert outcome(remote.namespace("ns")) == outcome(served.namespace("ns"))
        assert dict(remote.namespace("ns")) == dict(served.namespace("ns"))

    def test_an_absent_key_is_a_key_error(self, remote):
        with pytest.raises(KeyError) as caught:
            remote.namespace("ns")["nope"]

        assert isinstance(caught.value, NotFound)

    def test_a_value_that_is_not_of_the_model_is_not_sent(self, remote):
        with pytest.raises(InvalidValue):
            remote.namespace("ns").set("key", object())
