"""The JSON Schema documents: the contract with whoever writes a plan or a configuration."""

import json
from functools import cache
from pathlib import Path
from typing import Any


def schema_text(which: str) -> str:
    """The schema of a "plan" or of the "config", as it is printed for editors."""
    return Path(__file__).with_name(f"{which}.schema.json").read_text(encoding="utf-8")


@cache
def plan_schema() -> dict[str, Any]:
    """The schema of a plan file; shared, so not to be changed."""
    schema: dict[str, Any] = json.loads(schema_text("plan"))
    return schema


@cache
def config_schema() -> dict[str, Any]:
    """The schema of planvirt.toml; shared, so not to be changed."""
    schema: dict[str, Any] = json.loads(schema_text("config"))
    return schema
