"""Values as bytes."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstate.codec import decode, encode, seal, unseal
from kvstate.errors import Damaged, InvalidValue
from kvstate.jsonview import from_json, to_json
from kvstate.records import open_envelope, seal_envelope

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary()
    | st.dates()
    | st.datetimes()
    | st.datetimes(timezones=st.just(UTC))
    | st.uuids()
    | st.decimals(allow_nan=False)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(VALUES)
def test_every_value_of_the_model_comes_back(value):
    assert decode(encode(value)) == value


@given(VALUES)
def test_every_value_of_the_model_has_a_json_that_means_it(value):
    assert from_json(to_json(value)) == value


@given(st.binary())
def test_bytes_of_any_kind_are_decoded_or_refused(data):
    try:
        decode(data)
    except InvalidValue as error:
        assert str(error)  # noqa: PT017  (either way is right)


def test_large_values_come_back_and_large_garbage_is_refused():
    value = {"rows": [{"id": number, "text": "x" * 20} for number in range(20_000)]}

    assert decode(encode(value)) == value
    assert decode(encode("x" * 300_000)) == "x" * 300_000
    with pytest.raises(InvalidValue):
        decode(encode(value)[:-1])


def test_a_named_zone_and_its_fold_come_back():
    moment = datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1)

    back = decode(encode(moment))

    assert (back, back.fold, back.tzinfo) == (moment, 1, ZoneInfo("Europe/Berlin"))


@pytest.mark.parametrize("text", ["", "{", "[1,]", "nul", '{"$uuid": "x"}', "[" * 100_000])
def test_json_that_does_not_parse_is_refused(text):
    with pytest.raises(InvalidValue):
        from_json(text)


@given(st.binary(min_size=1, max_size=64), st.binary(max_size=200), st.data())
def test_no_flipped_bit_of_a_record_goes_unseen(key, body, data):
    sealed = bytearray(seal(key, body))
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[bit // 8] ^= 1 << bit % 8

    with pytest.raises(Damaged):
        unseal(key, bytes(sealed))


def test_a_record_under_another_key_is_damaged():
    data = seal_envelope(b"Sone", b"\x01", revision=1, created_ns=1, updated_ns=1)

    assert open_envelope(b"Sone", data).payload == b"\x01"
    with pytest.raises(Damaged):
        open_envelope(b"Stwo", data)
