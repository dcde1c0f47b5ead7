"""Durations as people write them."""

from __future__ import annotations

import pytest

from kvstate.durations import parse_duration
from kvstate.errors import InvalidValue


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("0.5", 0.5),
        ("250ms", 0.25),
        ("1h", 3600),
        ("1h30m", 5400),
        ("7d", 604800),
        ("2w", 1209600),
        ("1d12h", 129600),
    ],
)
def test_durations_are_read(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "-1", "1 h", "h", "1y", "1h30", "1e3", "٣s", "nan"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(InvalidValue):
        parse_duration(text)
