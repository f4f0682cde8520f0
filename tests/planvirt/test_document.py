"""YAML to data: the words that YAML 1.1 would turn into something else, the places, and any text at all."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planvirt.document import parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"), ("no", "no"), ("on", "on"), ("off", "off"), ("y", "y"), ("true", True), ("False", False),
        ("null", None), ("~", None), ("", None), ("0777", 777), ("0o17", 15), ("0x1F", 31), ("1_000", "1_000"),
        ("1:30", "1:30"), ("2026-01-01", "2026-01-01"), ("1e3", 1000.0), (".5", 0.5), ("1.", 1.0), (".inf", ".inf"),
        (".nan", ".nan"), ("-7", -7), ("+7", 7), ("'7'", "7"), ("!!str 7", "7"), ("! 7", "7"), ("!!int '7'", 7),
        ("!!float 7", 7.0), ("=", "="), ("0b1", "0b1"),
    ],
)  # fmt: skip
def test_scalars(text: str, value: Any) -> None:
    data = parse(f"key: {text}").data
    assert data == {"key": value}
    assert type(data["key"]) is type(value)


def test_places_of_keys_and_values() -> None:
    document = parse("a: 1\nb/c:\n  - x\n  - {d: ~}\n")
    assert document.value_at("/a") == (1, 4)
    assert document.key_at("/b~1c") == (2, 1)
    assert document.value_at("/b~1c/1/d") == (4, 9)
    assert document.key_at("/b~1c/1/d") == (4, 6)
    assert document.value_at("/b~1c/1/missing") == (4, 5)


def test_columns_count_characters() -> None:
    assert parse("é: {ü: x}").value_at("/é/ü") == (1, 8)


def test_an_alias_stands_where_it_is_defined() -> None:
    document = parse("a: &x {k: 1}\nb: *x\n")
    assert document.data == {"a": {"k": 1}, "b": {"k": 1}}
    assert document.value_at("/b/k") == (1, 11)


@pytest.mark.parametrize("text", ["[" * 200_000, "{a: " * 200_000, "- " * 200_000, "? " * 200_000, "!" * 200_000])
def test_deep_nesting_ends_early(text: str) -> None:
    assert parse(text).problems


@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!|>'\"#%@,? \n\t~0.<\\"), max_size=60) | st.text(max_size=60))
def test_any_text_gives_data_or_problems(text: str) -> None:
    document = parse(text)
    assert document.problems or document.data is not None
    for problem in document.problems:
        assert problem.line >= 1
        assert problem.column >= 1
        assert problem.message
