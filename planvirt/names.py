"""Every name that a plan gives: its instances, groups, operations, images and profiles, before anything is built.

Names are taken from entries that have faults as well, so that one fault does not make every mention of it another.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from planvirt.document import pointer_join
from planvirt.expressions import ExpressionError, is_template, read_template, render
from planvirt.inputs import Inputs
from planvirt.problems import Problems
from planvirt.schema import describe

MAX_INSTANCES = 2_000


@dataclass(frozen=True, slots=True)
class Copy:
    """One instance of an entry: alone, the n-th of a count, or the one of a key of `for_each`."""

    name: str
    index: int | None = None
    each: Mapping[str, Any] | None = None


@dataclass(slots=True)
class Names:
    """`groups` maps each entry of `instances` to its copies. `open_groups` are entries whose number is not known."""

    groups: dict[str, tuple[Copy, ...]] = field(default_factory=dict)
    open_groups: set[str] = field(default_factory=set)
    operations: dict[str, str] = field(default_factory=dict)  # id -> pointer
    final_operations: dict[str, str] = field(default_factory=dict)
    images: frozenset[str] = frozenset()
    profiles: frozenset[str] = frozenset()

    @property
    def instances(self) -> dict[str, str]:
        """The group of each instance."""
        return {copy.name: group for group, copies in self.groups.items() for copy in copies}

    def expand(self, name: str) -> tuple[str, ...] | None:
        """The instances that a name stands for; None when nothing has that name. A member that may exist is none."""
        if name in self.groups:
            return tuple(copy.name for copy in self.groups[name])
        if name in self.instances:
            return (name,)
        if any(name.startswith(group + "-") for group in self.open_groups):
            return ()
        return None

    def all(self) -> Iterable[str]:
        """Whatever `needs` may name."""
        return {*self.groups, *self.instances, *self.operations}


def collect_names(data: Mapping[str, Any], inputs: Inputs, env: Mapping[str, str], problems: Problems) -> Names:
    """The names in the raw data of a plan. Names that clash are problems."""
    names = Names(
        images=frozenset(_mapping(data, "images")),
        profiles=frozenset(_mapping(data, "profiles")),
    )
    total = 0
    for group, entry in _mapping(data, "instances").items():
        pointer = pointer_join("/instances", group)
        copies = _copies(group, entry, pointer, inputs, env, problems, names)
        total += len(copies)
        if total > MAX_INSTANCES:
            problems.add(pointer, f"the plan has more than {MAX_INSTANCES} instances", on_key=True)
            copies = ()
        names.groups[group] = copies
    _check_instances(names, problems)
    _name_operations(data, names, problems)
    return names


def operation_id(entry: Any, taken: Iterable[str]) -> str | None:
    """The operation's own id, or its action made unique; None when it has neither."""
    if not isinstance(entry, dict):
        return None
    if isinstance(entry.get("id"), str):
        return str(entry["id"])
    action = entry.get("action")
    if not isinstance(action, str):
        return None
    number, candidate = 1, action
    while candidate in taken:
        number += 1
        candidate = f"{action}-{number}"
    return candidate


def _mapping(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data.get(key)
    return value if isinstance(value, dict) else {}


def _copies(
    group: str,
    entry: Any,
    pointer: str,
    inputs: Inputs,
    env: Mapping[str, str],
    problems: Problems,
    names: Names,
) -> tuple[Copy, ...]:
    entry = entry if isinstance(entry, dict) else {}
    if "for_each" in entry:
        items = entry["for_each"]
        if not isinstance(items, dict):
            names.open_groups.add(group)
            return ()
        return tuple(Copy(f"{group}-{key}", None, {"key": key, "value": value}) for key, value in items.items())
    if "count" not in entry:
        return (Copy(group),)
    at = pointer_join(pointer, "count")
    count = _count(entry["count"], at, inputs, env, problems)
    if count is None or problems.is_broken(at) or problems.is_tainted(at):
        names.open_groups.add(group)
    return tuple(Copy(f"{group}-{number}", number) for number in range(1, (count or 0) + 1))


def _count(value: Any, pointer: str, inputs: Inputs, env: Mapping[str, str], problems: Problems) -> int | None:
    if is_template(value):
        try:
            template = read_template(value)
            if not all(reference.root in ("inputs", "env") for reference in template.references):
                message = "count can only use inputs and env"
                problems.add(pointer, message, "the number of instances must be known before anything runs")
                return None
            read = {reference.path for reference in template.references if reference.root == "inputs"}
            if any(path[1:2] == () or path[1] not in inputs.values for path in read):
                return None  # reported where all references are checked
            if any(path[1] in inputs.unknown for path in read):
                problems.tainted.add(pointer)
            value = render(template, {"inputs": inputs.values, "env": env})
        except ExpressionError as error:
            problems.add(pointer, str(error), error.resolution)
            return None
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1000:
        return value
    if not problems.is_broken(pointer):
        problems.add(pointer, f"count must be a whole number from 0 to 1000, not {describe(value)}")
    return None


def _check_instances(names: Names, problems: Problems) -> None:
    owner: dict[str, str] = {}
    for group, copies in names.groups.items():
        at = pointer_join("/instances", group)
        for copy in copies:
            if len(copy.name) > 63 and not problems.is_broken(at):
                message = f"the name '{copy.name}' is longer than 63 characters"
                problems.add(at, message, "shorten it", on_key=True)
            other = owner.setdefault(copy.name, group)
            if copy.name in names.groups and copy.name != group:
                other = copy.name
            if other != group:
                message = f"'{group}' makes an instance '{copy.name}', and '{other}' is one of that name"
                problems.add(at, message, "rename one of the two", on_key=True)


def _name_operations(data: Mapping[str, Any], names: Names, problems: Problems) -> None:
    taken = names.instances.keys() | names.groups.keys()
    lists = [(key, data.get(key)) for key in ("operations", "finally")]
    given = {
        entry["id"]
        for _, entries in lists
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, dict) and isinstance(entry.get("id"), str)
    }
    for key, entries in lists:
        target = names.operations if key == "operations" else names.final_operations
        for index, entry in enumerate(entries if isinstance(entries, list) else ()):
            pointer = f"/{key}/{index}"
            used = {**names.operations, **names.final_operations}
            own = operation_id(entry, {*used, *given})
            if own is None:
                continue
            at = pointer_join(pointer, "id")
            if own in used:
                problems.add(at, f"duplicate operation id '{own}'", "give each operation an id of its own")
                continue
            if own in taken:
                message = f"the operation is called '{own}', and so is an instance or group"
                problems.add(at, message, "give the operation another id")
            target[own] = pointer
