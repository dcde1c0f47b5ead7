from __future__ import annotations

import socket
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstate.codec import decode, encode
from kvstate.errors import (
    Compacted,
    Conflict,
    Damaged,
    Denied,
    Exists,
    Full,
    Incompatible,
    InvalidConfig,
    InvalidName,
    InvalidValue,
    NotFound,
    StateError,
    Unavailable,
)
from kvstate.wire import (
    Channel,
    default_socket,
    encode_error,
    encode_request,
    encode_rows,
    error_of,
)

LIMIT = 1 << 20


@pytest.fixture
def pair():
    """A plain socket, and a channel at its other end."""
    plain, other = socket.socketpair()
    channel = Channel(other, LIMIT)
    yield plain, channel
    plain.close()
    channel.close()


def framed(body):
    return len(body).to_bytes(4, "big") + body


@pytest.mark.parametrize("size", [0, 1, 65531, 65532, 65533, 300_000, LIMIT])
def test_a_frame_of_any_size_arrives_as_it_was_sent(pair, size):
    plain, channel = pair
    body = bytes(size)
    sender = threading.Thread(target=Channel(plain).send, args=(body,))
    sender.start()

    received = channel.receive()
    sender.join()

    assert received == body


@given(bodies=st.lists(st.binary(max_size=200), max_size=8), cut=st.integers(1, 50))
@settings(deadline=None, max_examples=50)
def test_frames_arrive_however_the_stream_is_cut(bodies, cut):
    plain, other = socket.socketpair()
    stream = b"".join(map(framed, bodies))
    with plain, other:
        for start in range(0, len(stream), cut):
            plain.sendall(stream[start : start + cut])
        plain.shutdown(socket.SHUT_WR)
        channel = Channel(other, LIMIT)

        received = list(iter(channel.receive, None))

    assert received == bodies


def test_a_connection_that_ends_between_frames_ends_cleanly(pair):
    plain, channel = pair
    plain.close()

    assert channel.receive() is None
    assert not channel.broken


@pytest.mark.parametrize("piece", [b"\0", b"\0\0\0", framed(b"12345")[:-1]])
def test_a_connection_that_ends_within_a_frame_is_broken(pair, piece):
    plain, channel = pair
    plain.sendall(piece)
    plain.close()

    with pytest.raises(Unavailable, match="within a frame"):
        channel.receive()
    assert channel.broken


def test_a_frame_over_the_limit_is_refused_before_it_is_read(pair):
    plain, channel = pair
    plain.sendall(b"\xff\xff\xff\xff")

    with pytest.raises(InvalidValue, match="frame_bytes_max"):
        channel.receive()
    assert channel.broken


def test_sending_to_who_is_gone_is_unavailable(pair):
    plain, channel = pair
    plain.close()

    with pytest.raises(Unavailable):
        channel.send(b"hello")


def test_a_request_is_an_array_of_the_operation_and_its_arguments():
    body = encode_request("set", ("ns", "key", {"a": [1, None]}, None, True))

    assert decode(body) == ["set", "ns", "key", {"a": [1, None]}, None, True]


@pytest.mark.parametrize("count", [0, 1, 23, 24, 1000])
def test_rows_that_are_encoded_already_become_one_page(count):
    body = encode_rows([encode([number, "x"]) for number in range(count)], 7)

    assert decode(body) == [[[[number, "x"] for number in range(count)], 7]]


@pytest.mark.parametrize(
    "error",
    [
        StateError("anything"),
        InvalidName("key", "a\0b", "control characters are not allowed"),
        InvalidValue("ttl", "it is negative"),
        InvalidConfig("kvstate.toml, line 3", "unknown"),
        NotFound("key", "k"),
        Conflict("k", "expected revision 1"),
        Exists("artifact", "a/b/c"),
        Compacted(3, 17),
        Full("disk", "no space"),
        Damaged("record", "its checksum does not match"),
        Incompatible("store", "format 9"),
        Denied("writing", "read-only"),
        Unavailable("store", "it was closed"),
        Unavailable("store", "all slots are taken", retry=True),
    ],
    ids=lambda error: error.code,
)
def test_an_error_arrives_as_it_was_raised(error):
    arrived = error_of(decode(encode_error(error)))

    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert arrived.facts == error.facts
    assert getattr(arrived, "retry", None) == getattr(error, "retry", None)
    assert getattr(arrived, "oldest", None) == getattr(error, "oldest", None)


def test_an_error_about_text_that_no_utf8_can_hold_arrives_all_the_same():
    arrived = error_of(decode(encode_error(NotFound("key", "\udcff"))))

    assert isinstance(arrived, NotFound)


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({}, "/run/kvstate/kvstate.sock"),
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, "/run/user/7/kvstate.sock"),
        ({"XDG_RUNTIME_DIR": "/run/user/7", "KVSTATE_SOCKET": "/tmp/k"}, "/tmp/k"),
    ],
)
def test_the_socket_that_nobody_named_is_found_in_the_environment(environ, path):
    assert default_socket(environ) == path
