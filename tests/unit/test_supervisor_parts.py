"""When a next worker begins, and what the options of a mount mean for whom."""

from __future__ import annotations

import os

import pytest

from kvstate.errors import InvalidConfig
from kvstatefs.kernel import packets
from kvstatefs.kernel.packets import Packet
from kvstatefs.kernel.restarts import FAILURES_MAX, STEADY_SECONDS, Restarts
from kvstatefs.kernel.supervisor import Supervisor
from kvstatefs.options import parse_options


class TestRestarts:
    def test_after_a_kill_the_next_begins_at_once(self):
        restarts = Restarts()

        assert [restarts.died(5.0, killed=True) for _ in range(500)] == [0.0] * 500

    def test_kills_one_after_the_other_are_slowed_down_and_never_given_up(self):
        restarts = Restarts()

        pauses = [restarts.died(0.1, killed=True) for _ in range(100)]

        assert pauses[:3] == [0.0] * 3
        assert pauses == sorted(pauses)
        assert pauses[-1] == 1.0

    def test_workers_that_end_by_themselves_are_given_up_after_too_many_in_a_row(self):
        restarts = Restarts()

        pauses = [restarts.died(0.0, killed=False) for _ in range(FAILURES_MAX + 1)]

        assert None not in pauses[:-1]
        assert pauses[-1] is None

    def test_one_that_served_for_long_makes_good_for_those_before_it(self):
        restarts = Restarts()
        for _ in range(FAILURES_MAX):
            restarts.died(0.0, killed=False)

        assert restarts.died(STEADY_SECONDS, killed=False) == 0.0
        assert restarts.failures == 1


class TestHolding:
    def test_a_supervisor_keeps_room_for_its_own_descriptors(self, tmp_path):
        supervisor = Supervisor(tmp_path / "store", tmp_path / "mnt", parse_options([], "s"), [])
        supervisor._held_max = 1
        reading, writing = os.pipe()

        with supervisor._events:
            supervisor._hold(b"first", reading)
            supervisor._hold(b"second", writing)

        os.fstat(reading)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(writing)
        supervisor._drop(b"first")


class TestPackets:
    def test_a_packet_arrives_with_its_descriptors(self):
        ours, theirs = packets.socket_pair()
        reading, writing = os.pipe()
        with ours, theirs:
            packets.send(ours, Packet(packets.HELD, b"name", (reading,)))
            letter, text, (received,) = packets.receive(theirs)

        os.write(writing, b"x")

        assert (letter, text, os.read(received, 1)) == (packets.HELD, b"name", b"x")
        assert not os.get_inheritable(received)
        for descriptor in (reading, writing, received):
            os.close(descriptor)

    def test_the_other_end_may_be_gone(self):
        ours, theirs = packets.socket_pair()
        theirs.close()

        with ours:
            assert packets.receive(ours) is None
            with pytest.raises(BrokenPipeError):
                packets.send(ours, Packet(packets.OPENED, b""))


class TestOptions:
    def test_of_opposites_the_last_one_holds(self):
        words = parse_options(["ro,dev", "rw,noexec,exec,noatime"], "/s").words

        assert {"rw", "dev", "exec", "noatime", "nosuid"} <= words
        assert not {"ro", "nodev", "noexec"} & words

    def test_devices_and_set_user_id_are_off_unless_asked_for(self):
        assert {"nosuid", "nodev", "default_permissions"} <= parse_options([], "/s").words
        assert not {"nosuid", "nodev"} & parse_options(["suid,dev"], "/s").words

    def test_which_adapter(self):
        assert parse_options([], "/s").adapter == "auto"
        assert parse_options(["adapter=kernel,passthrough=off"], "/s")[2:4] == ("kernel", False)
        assert "adapter=fusepy" not in parse_options(["adapter=fusepy"], "/s").for_libfuse

    @pytest.mark.parametrize(
        "text", ["adapter=fast", "adapter", "passthrough=on", "max_readahead=x"]
    )
    def test_a_value_that_there_is_not(self, text):
        with pytest.raises(InvalidConfig, match=f"-o {text}"):
            parse_options([text], "/s")

    @pytest.mark.parametrize("text", ["allow_root", "umask=022", "uid=5", "gid=5"])
    def test_what_only_libfuse_does_is_named(self, text):
        assert parse_options([text], "/s").only_fusepy == text.partition("=")[0]

    def test_a_source_with_a_comma_reaches_the_helper_whole(self):
        options = parse_options([], "/a,b\\c")

        assert options.source == "/a,b\\c"
        assert r"fsname=/a\,b\\c" in options.for_helper

    def test_a_name_that_was_given_with_a_comma(self):
        assert parse_options([r"fsname=a\,b,ro"], "/s").source == "a,b"
        assert parse_options([r"fsname=a\,b,ro"], "/s").read_only
