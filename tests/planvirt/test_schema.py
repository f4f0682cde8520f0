"""The schemas and the code say the same, and editors that only know JSON Schema agree with both."""

from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import jsonschema
import pytest

from planvirt.arguments import ARGUMENTS, DEFAULTS
from planvirt.config import HostConfig, SecretConfig, StoreConfig
from planvirt.document import parse
from planvirt.plan import Disk, OnFailure, Ready, Retry
from planvirt.schemas import config_schema, plan_schema, schema_text
from planvirt.verbs import ACTIONS
from tests.planvirt.plan_files import PLANS, plan_names

PLAN = plan_schema()
DEFS = PLAN["$defs"]


@pytest.mark.parametrize("schema", [PLAN, config_schema()])
def test_the_schema_is_one(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("name", plan_names("good"))
def test_good_plans_fit_the_schema_as_editors_read_it(name: str) -> None:
    data = parse((PLANS / "good" / f"{name}.yaml").read_text()).data
    jsonschema.Draft202012Validator(PLAN).validate(data)


def test_actions() -> None:
    assert DEFS["operation_base"]["properties"]["action"]["enum"] == list(ACTIONS)
    assert set(ARGUMENTS) == set(ACTIONS)


@pytest.mark.parametrize("action", ACTIONS)
def test_arguments(action: str) -> None:
    keys = set(DEFS[f"with_{action}"].get("properties", {}))
    assert set(ARGUMENTS[action]) == keys
    assert set(DEFAULTS.get(action, {})) <= keys
    assert {
        "if": {"properties": {"action": {"const": action}}, "required": ["action"]},
        "then": {"properties": {"with": {"$ref": f"#/$defs/with_{action}"}}},
    }["if"] in [branch["if"] for branch in DEFS["operation_base"]["allOf"]]


def test_values() -> None:
    assert set(PLAN["properties"]["on_failure"]["enum"]) == set(OnFailure) - {OnFailure.ASK}
    assert set(DEFS["retry"]["properties"]) == set(get_type_hints(Retry))
    assert set(DEFS["ready"]["properties"]) == set(get_type_hints(Ready))
    disk = DEFS["disk"]["anyOf"][1]["properties"]
    assert set(disk) == set(get_type_hints(Disk))
    assert set(disk["format"]["enum"]) == set(get_args(get_type_hints(Disk)["format"]))


@pytest.mark.parametrize(("name", "kind"), [("host", HostConfig), ("store", StoreConfig), ("secret", SecretConfig)])
def test_configuration(name: str, kind: type) -> None:
    definitions = config_schema()["$defs"]
    described = definitions[f"directory_{name}" if name == "store" else name]
    assert set(described["properties"]) == set(get_type_hints(kind)) - {"name", "settings"}


def _undescribed(schema: Any, path: str, root: dict[str, Any]) -> Iterator[str]:
    if isinstance(schema, dict):
        for name, inner in schema.get("properties", {}).items() if isinstance(schema.get("properties"), dict) else ():
            target = root["$defs"][inner["$ref"].rpartition("/")[2]] if "$ref" in inner else {}
            if (
                "/if/" not in f"{path}/"
                and "/then/" not in f"{path}/"
                and not inner.get("description", target.get("description"))
            ):
                yield f"{path}/{name}"
        for key, inner in schema.items():
            yield from _undescribed(inner, f"{path}/{key}", root)
    elif isinstance(schema, list):
        for index, inner in enumerate(schema):
            yield from _undescribed(inner, f"{path}/{index}", root)


@pytest.mark.parametrize("which", ["plan", "config"])
def test_every_key_is_described(which: str) -> None:
    schema = {"plan": plan_schema, "config": config_schema}[which]()
    assert list(_undescribed(schema, "", schema)) == []
    assert schema_text(which).startswith("{")
