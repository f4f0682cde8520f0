"""The `with` of each action: which arguments it has, their defaults, and what their values become."""

from collections.abc import Callable, Mapping
from typing import Any

from planvirt.errors import PlanvirtError
from planvirt.plan import Deferred
from planvirt.secret import Secret
from planvirt.units import UnitError, parse_duration

Parse = Callable[[str, Any], Any]


def _duration(key: str, value: Any) -> float:
    if isinstance(value, float) and not isinstance(value, bool):
        return value  # read already
    if not isinstance(value, str):
        raise UnitError(f"{key} must be a duration such as '90s', not {value}")
    try:
        return parse_duration(value)
    except UnitError as error:
        raise UnitError(f"{key} {error}", error.hint) from error


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UnitError(f"{key} must be true or false, not '{value}'")
    return value


def _port(key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65535:
        raise UnitError(f"{key} must be a port number from 1 to 65535, not '{value}'")
    return value


def _text(key: str, value: Any) -> str | Secret:
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str | int | float) or isinstance(value, bool) or value == "":
        raise UnitError(f"{key} must be text")
    return str(value)


def _upload(key: str, value: Any) -> dict[str, Any]:
    return {name: item if isinstance(item, Deferred) else _text(f"{key}.{name}", item) for name, item in value.items()}


# How the value of each argument is read. What an argument can be is the schema's matter.
ARGUMENTS: dict[str, dict[str, Parse]] = {
    "launch": {},
    "start": {},
    "stop": {"grace": _duration, "force": _flag},
    "reboot": {"kind": _text},
    "pause": {},
    "unpause": {},
    "suspend": {},
    "resume": {},
    "snapshot": {"disk": _text, "quiesce": _text, "upload": _upload},
    "terminate": {},
    "lock": {},
    "unlock": {},
    "wait": {"console": _text, "address": _flag, "port": _port, "for": _text},
    "sleep": {"for": _duration},
}

DEFAULTS: dict[str, dict[str, Any]] = {
    "stop": {"grace": 60.0, "force": False},
    "reboot": {"kind": "soft"},
    "snapshot": {"quiesce": "never"},
}


def read_argument(action: str, key: str, value: Any) -> Any:
    """The value as the action takes it: seconds for a duration. A Deferred stays one. Raises UnitError."""
    return value if isinstance(value, Deferred) else ARGUMENTS[action][key](key, value)


def checked_arguments(action: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments whose expressions were evaluated at run time, as the action takes them. Raises PlanvirtError."""
    result = {}
    for key, value in values.items():
        try:
            result[key] = read_argument(action, key, value) if key in ARGUMENTS.get(action, {}) else value
        except UnitError as error:
            raise PlanvirtError(
                f"cannot {action}: {error}", resolution=error.hint or f"correct the expression in '{key}'"
            ) from error
    return result
