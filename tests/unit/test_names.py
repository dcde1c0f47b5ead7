"""What may be a name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstate.errors import InvalidName
from kvstate.names import (
    artifact_path,
    check_key,
    check_namespace,
    check_segment,
    file_name_of_key,
    key_of_file_name,
)


@given(st.text())
def test_a_key_has_one_file_name_and_a_file_name_one_key(key):
    try:
        data = check_key(key)
    except InvalidName:
        return

    name = file_name_of_key(key)
    assert data == key.encode()
    assert key_of_file_name(name) == key
    assert "/" not in name
    assert name not in {".", ".."}
    assert len(name.encode()) <= 255


@given(st.text(alphabet="%2FE5.ab/"), st.text(alphabet="%2FE5.ab/"))
def test_two_keys_never_share_a_file_name(one, other):
    assert (file_name_of_key(one) == file_name_of_key(other)) == (one == other)


@pytest.mark.parametrize("name", ["%", "%2", "%2f", "%41", "a%", ".", "..", "%2E%2E%2E", "a%2Eb"])
def test_a_file_name_that_no_key_has_is_refused(name):
    with pytest.raises(InvalidName):
        key_of_file_name(name)


@given(st.text())
def test_a_segment_that_is_taken_can_be_a_file_below_a_folder(name):
    try:
        data = check_segment(name)
    except InvalidName:
        return

    assert 1 <= len(data) <= 255
    assert not set(name) & set('/\\:*?"<>|\0\n')
    assert name not in {".", ".."}


@pytest.mark.parametrize(
    ("check", "name", "why"),
    [
        (check_segment, "", "empty"),
        (check_segment, "..", "leave its folder"),
        (check_segment, "a/b", "not allowed"),
        (check_segment, "é" * 128, "256 bytes"),
        (check_segment, b"bytes", "not text"),
        (check_segment, "\udcff", "UTF-8"),
        (check_namespace, "a|b", "not allowed"),
        (check_key, "a\x00", "control"),
        (check_key, "%" * 86, "258 bytes"),
        (artifact_path, "a/b", "tenant/workflow/artifact"),
        (artifact_path, "a/../c", "leave its folder"),
    ],
)
def test_the_error_says_which_rule_is_broken(check, name, why):
    with pytest.raises(InvalidName, match=why):
        check(name)


def test_a_namespace_may_hold_a_colon_and_a_segment_may_not():
    assert check_namespace("polly:pr") == b"polly:pr"
    with pytest.raises(InvalidName):
        check_segment("polly:pr")
