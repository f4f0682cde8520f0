"""The `with` of each action: which arguments it has, their defaults, and what their values become."""

from collections.abc import Callable, Mapping
from typing import Any

from planvirt.errors import PlanvirtError
from planvirt.plan import Deferred
from planvirt.secret import Secret
from planvirt.units import UnitError, parse_duration, parse_size

Parse = Callable[[str, Any], Any]


def _quantity(read: type, parse: Callable[[str], Any], expected: str) -> Parse:
    """How a text with a unit is read; a value of the type `read` was read already."""

    def quantity(key: str, value: Any) -> Any:
        if isinstance(value, read) and not isinstance(value, bool):
            return value
        if not isinstance(value, str):
            raise UnitError(f"{key} must be {expected}, not {value}")
        try:
            return parse(value)
        except UnitError as error:
            raise UnitError(f"{key} {error}", error.hint) from error

    return quantity


_duration = _quantity(float, parse_duration, "a duration such as '90s'")
_size = _quantity(int, parse_size, "a size such as '4 GiB'")


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


def _count(key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnitError(f"{key} must be a whole number from 1, not '{value}'")
    return value


def _sizes(key: str, value: Any) -> dict[str, Any]:
    return {name: item if isinstance(item, Deferred) else _size(f"{key}.{name}", item) for name, item in value.items()}


def _disk(key: str, value: Any) -> dict[str, Any]:
    """A disk to attach, with the size in bytes."""
    if not isinstance(value, Mapping):
        raise UnitError(f"{key} must be a mapping with 'name' and 'size'")
    given = {"keep": False, "format": "qcow2", "bus": "virtio"} | dict(value)
    if "size" in given and not isinstance(given["size"], Deferred):
        given["size"] = _size(f"{key}.size", given["size"])
    return given


def _interface(key: str, value: Any) -> dict[str, Any]:
    """A network interface to attach, as the fields of a Nic."""
    if not isinstance(value, Mapping):
        return {"kind": "network", "source": _text(key, value), "mac": None, "model": "virtio"}
    if "kind" in value:
        return dict(value)  # read already
    kind = next((kind for kind in ("network", "bridge", "user") if kind in value), "network")
    source = "" if kind == "user" else value.get(kind, "")
    mac = value.get("mac")
    return {
        "kind": kind,
        "source": source,
        "mac": mac.lower() if isinstance(mac, str) else mac,
        "model": value.get("model", "virtio"),
    }


def _words(key: str, value: Any) -> list[Any]:
    """A command: a program and its arguments."""
    if not isinstance(value, list | tuple):
        raise UnitError(f"{key} must be a list: a program and its arguments", "no shell reads it")
    return [item if isinstance(item, Deferred) else _text(key, item) for item in value if item is not None]


def _codes(key: str, value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise UnitError(f"{key} must be a list of numbers, such as [0, 100]")
    return list(value)


def _upload(key: str, value: Any) -> dict[str, Any]:
    return {name: item if isinstance(item, Deferred) else _text(f"{key}.{name}", item) for name, item in value.items()}


def _disks(key: str, value: Any) -> Any:
    """All disks, or the names of some."""
    if value == "all":
        return value
    if not isinstance(value, list | tuple) or not value:
        raise UnitError(f"{key} must be 'all' or a list of names")
    return [item if isinstance(item, Deferred) else _text(key, item) for item in value if item is not None]


_SNAPSHOT: dict[str, Parse] = {
    "disk": _text,
    "disks": _disks,
    "quiesce": _text,
    "format": _text,
    "compress": _text,
    "upload": _upload,
}

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
    "snapshot": _SNAPSHOT,
    "backup": {**_SNAPSHOT, "keep": _count, "class": _text},
    "resize": {
        "vcpus": _count,
        "memory": _size,
        "disks": _sizes,
        "reboot": _flag,
        "confirm": _text,
        "grace": _duration,
        "force": _flag,
    },
    "confirm_resize": {},
    "revert_resize": {"grace": _duration, "force": _flag},
    "attach": {"disk": _disk, "network": _interface},
    "detach": {"disk": _text, "network": _text, "mac": _text, "delete": _flag},
    "rescue": {"image": _text, "grace": _duration, "force": _flag},
    "unrescue": {"grace": _duration, "force": _flag},
    "shelve": {"store": _text, "grace": _duration, "force": _flag},
    "unshelve": {},
    "rebuild": {"image": _text, "grace": _duration, "force": _flag},
    "restore": {"image": _text, "disk": _text, "grace": _duration, "force": _flag},
    "exec": {"command": _words, "stdin": _text, "exit_codes": _codes, "within": _duration, "undo": _words},
    "terminate": {},
    "lock": {},
    "unlock": {},
    "wait": {"console": _text, "address": _flag, "port": _port, "for": _text},
    "sleep": {"for": _duration},
}

# How a guest is shut down whose data matter.
_GENTLE = {"grace": 60.0, "force": False}

DEFAULTS: dict[str, dict[str, Any]] = {
    "stop": _GENTLE,
    "reboot": {"kind": "soft"},
    "resize": {"reboot": False, "confirm": "auto", **_GENTLE},
    "revert_resize": _GENTLE,
    "detach": {"delete": False},
    # What the guest has in mind is of no use any more: it may be broken, or its disk is about to be another one.
    "rescue": {"grace": 20.0, "force": True},
    "unrescue": {"grace": 20.0, "force": True},
    "shelve": _GENTLE,
    "rebuild": {"grace": 20.0, "force": True},
    "restore": {"grace": 20.0, "force": True},
    "exec": {"exit_codes": [0], "within": 60.0},
    "snapshot": {"quiesce": "never", "format": "qcow2"},
    "backup": {"quiesce": "never", "format": "qcow2"},
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
