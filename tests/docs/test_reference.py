"""The generated pages of the reference say what the program says now; those written by hand leave nothing out."""

import re

import pytest

from docs.generate import PAGES, REFERENCE
from planvirt.expressions import ROOTS, _environment
from planvirt.scope import INSTANCES_KEYS, RUNTIME_KEYS


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_fresh(name: str) -> None:
    assert (REFERENCE / name).read_text() == PAGES[name](), "run '.venv/bin/python docs/generate.py'"


def _code(heading: str) -> set[str]:
    """What stands in backticks in a section of the page about expressions."""
    text = (REFERENCE / "expressions.md").read_text()
    section = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section is not None
    return set(re.findall(r"`([^`]+)`", section[1]))


def test_every_name_that_an_expression_can_read_is_explained() -> None:
    words = {word.split(".")[0] for word in _code("Names")}
    keys = {f"{root}.{key}" for root, keys in RUNTIME_KEYS.items() for key in keys}
    assert set(ROOTS) <= words
    assert keys | {f"instances.NAME.{key}" for key in INSTANCES_KEYS} <= _code("Names")


def test_every_filter_and_test_is_listed() -> None:
    environment = _environment()
    assert set(environment.filters) <= _code("Filters and tests")
    assert {name for name in environment.tests if name.isidentifier()} <= _code("Filters and tests")
