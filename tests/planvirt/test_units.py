"""Sizes and durations: what is read, what is refused, and that writing and reading agree."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planvirt.units import (
    UnitError,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
    suggest_duration,
    suggest_size,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4 GiB", 4 * 2**30),
        ("512MiB", 512 * 2**20),
        ("10 GB", 10**10),
        ("1.5 GiB", 3 * 2**29),
        ("0.5 kB", 500),
        ("0 B", 0),
        ("2 TiB", 2**41),
    ],
)
def test_sizes(text: str, value: int) -> None:
    assert parse_size(text) == value


@pytest.mark.parametrize(
    "text", ["4", "4 gib", "-1 GiB", "4  GiB", "GiB", "1.5 B", "1e3 B", "4 GiB\n", "", "٤ GiB", "9999999 TiB"]
)
def test_no_sizes(text: str) -> None:
    with pytest.raises(UnitError):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("90s", 90), ("5m", 300), ("1h30m", 5400), ("1h 30m", 5400), ("500ms", 0.5), ("2d", 172800), ("1.5h", 5400)],
)
def test_durations(text: str, value: float) -> None:
    assert parse_duration(text) == value


@pytest.mark.parametrize("text", ["5", "5 min", "1m1h", "1m1m", "-5s", " 5s", "s", "", "5s ", "1h,5m", "4000d"])
def test_no_durations(text: str) -> None:
    with pytest.raises(UnitError):
        parse_duration(text)


@given(st.integers(min_value=0, max_value=2**60))
def test_a_size_is_read_as_it_is_written(value: int) -> None:
    if value < 10**15:
        assert parse_size(format_size(value)) == value


@given(st.integers(min_value=0, max_value=10**11))
def test_a_duration_is_read_as_it_is_written(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds / 1000)) == pytest.approx(milliseconds / 1000)


@given(st.text(max_size=20))
def test_nothing_breaks_the_readers(text: str) -> None:
    for parse, suggest in ((parse_size, suggest_size), (parse_duration, suggest_duration)):
        try:
            assert parse(text) >= 0
        except UnitError:
            assert isinstance(suggest(text), str)


@pytest.mark.parametrize("number", [1, 4, 127, 128, 2048, 2**20, 10**12])
def test_the_suggestion_for_a_bare_number_can_be_read(number: int) -> None:
    suggestion = suggest_size(number).removeprefix("did you mean '").removesuffix("'?")
    assert parse_size(suggestion) > 0
