"""The JSON Schema documents: the contract with whoever writes a plan or a configuration."""

import json
from functools import cache
from importlib import resources
from typing import Any


def plan_schema_text() -> str:
    """The schema of a plan file, as it is printed for editors."""
    return _text("plan.schema.json")


def config_schema_text() -> str:
    """The schema of planvirt.toml."""
    return _text("config.schema.json")


@cache
def plan_schema() -> dict[str, Any]:
    """The schema of a plan file; shared, so not to be changed."""
    schema: dict[str, Any] = json.loads(plan_schema_text())
    return schema


@cache
def config_schema() -> dict[str, Any]:
    """The schema of planvirt.toml; shared, so not to be changed."""
    schema: dict[str, Any] = json.loads(config_schema_text())
    return schema


def _text(name: str) -> str:
    return (resources.files(__name__) / name).read_text(encoding="utf-8")
