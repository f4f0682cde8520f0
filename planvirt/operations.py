"""Builds the operations of a plan: which instances each one means, its arguments and its conditions."""

from collections.abc import Mapping
from typing import Any

from planvirt.arguments import DEFAULTS, read_argument
from planvirt.build import Build, Defaults
from planvirt.images import checked_image
from planvirt.names import Names
from planvirt.plan import Deferred, Instance, Operation
from planvirt.problems import did_you_mean
from planvirt.schema import describe
from planvirt.section import Section
from planvirt.states import State
from planvirt.units import UnitError

# What is about a disk that the instance declares, the first one unless it is named.
_ON_DISKS = frozenset({"snapshot", "backup", "restore", "rebuild", "shelve"})

_DECLARATIONS = ("/instances/", "/profiles/")

_IMAGE_NAME = "{{ instance.name }}-{{ run.date }}"


def build_operations(
    key: str, build: Build, defaults: Defaults, instances: Mapping[str, Instance]
) -> tuple[Operation, ...]:
    """The operations of `operations` or `finally`, in the order of the file."""
    names = build.names.operations if key == "operations" else build.names.final_operations
    ids = {pointer: own for own, pointer in names.items()}
    found = []
    for index, entry in enumerate(build.data.get(key) or ()):
        pointer = f"/{key}/{index}"
        if entry is None or pointer not in ids or "action" not in entry:
            continue
        definition = "operation" if key == "operations" else "final_operation"
        section = build.renderer.section(Section(entry, pointer, build.problems), definition)
        if "action" in section.data:
            found.append(_operation(section, ids[pointer], build, defaults, instances))
    return tuple(found)


def _operation(
    section: Section, id: str, build: Build, defaults: Defaults, instances: Mapping[str, Instance]
) -> Operation:
    line, column = build.problems.document.value_at(section.base)
    action = section.get("action")
    chosen = _chosen(section, build.names, instances)
    arguments = _arguments(section, action, build)
    operation = Operation(
        id=id,
        action=action,
        instances=chosen,
        arguments=arguments,
        needs=_needs(section, build),
        when=_when(section),
        parallel=section.get("parallel"),
        retry=section.retry(defaults.retry),
        timeout=_timeout(section, action, arguments, defaults),
        line=line,
        column=column,
    )
    _check_instances(operation, section, instances, build)
    return operation


def _chosen(section: Section, names: Names, instances: Mapping[str, Instance]) -> tuple[str, ...]:
    choice = section.get("instances")
    if choice == "all":
        return tuple(name for name, instance in instances.items() if instance.state is not State.ABSENT)
    if isinstance(choice, dict):
        return _with_labels(choice.get("labels") or {}, section, names, instances)
    found: dict[str, None] = {}
    for index, name in enumerate(choice or ()):
        members = names.expand(name) if name is not None else ()
        if members is None:
            hint = did_you_mean(name, {*names.groups, *names.instances}) or "the plan has no instances"
            section.problems.add(section.at("instances", index), f"unknown instance '{name}'", hint)
        else:
            found.update(dict.fromkeys(members))
    return tuple(found)


def _with_labels(
    labels: Mapping[str, Any], section: Section, names: Names, instances: Mapping[str, Instance]
) -> tuple[str, ...]:
    wanted = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in labels.items()}
    found = tuple(name for name, one in instances.items() if wanted.items() <= one.labels.items())
    unsure = section.problems.broken | section.problems.tainted
    doubtful = names.open_groups or any("/labels" in pointer for pointer in unsure)
    if not found and not doubtful:
        text = ", ".join(f"{name}={value}" for name, value in wanted.items())
        known = {f"{name}={value}" for one in instances.values() for name, value in one.labels.items()}
        message = f"no instance has the labels {text}"
        section.problems.add(section.at("instances", "labels"), message, did_you_mean(text, known))
    return found


def _needs(section: Section, build: Build) -> tuple[str, ...] | None:
    if section.get("needs") is None:
        return None
    found: dict[str, None] = {}
    for index, name in enumerate(section.get("needs")):
        if name is None:
            continue
        members = build.names.expand(name)
        if name in build.names.operations:
            found[name] = None
        elif members is not None:
            found.update(dict.fromkeys(members))
        else:
            hint = did_you_mean(name, build.names.all())
            build.problems.add(section.at("needs", index), f"unknown operation or instance '{name}'", hint)
    return tuple(found)


def _when(section: Section) -> bool | Deferred:
    value = section.get("when", True)
    if isinstance(value, bool | Deferred):
        return value
    section.problems.add(section.at("when"), f"when must be true or false, not {describe(value)}")
    return True


def _timeout(section: Section, action: str, arguments: Mapping[str, Any], defaults: Defaults) -> float:
    """The limit of a step. That of a sleep begins to count when it should have ended, unless the plan gives one."""
    limit = section.positive_duration("timeout", defaults.timeout)
    asleep = arguments.get("for") if action == "sleep" else None
    if not isinstance(asleep, float):
        return limit
    if "timeout" not in section.data:
        return asleep + limit
    if limit <= asleep:
        section.problems.add(section.at("timeout"), "timeout must be longer than the sleep", "leave it out")
    return limit


def _arguments(section: Section, action: str, build: Build) -> dict[str, Any]:
    inner = section.inner("with")
    arguments = dict(DEFAULTS.get(action, {}))
    for key, value in inner.data.items():
        try:
            arguments[key] = read_argument(action, key, value)
        except UnitError as error:
            section.problems.add(inner.at(key), str(error), error.hint)
    if action in ("snapshot", "backup"):
        arguments["upload"] = _upload(arguments.get("upload", {}), inner, build)
        if "compress" in inner.data and arguments["format"] == "raw":
            section.problems.add(inner.at("compress"), "a raw image cannot be compressed", "write 'format: qcow2'")
    if action == "shelve":
        arguments.setdefault("store", build.config.default_store)
        if "store" in inner.data and isinstance(arguments["store"], str):
            build.check_store(arguments["store"], inner.at("store"))
    if "image" in inner.data:
        arguments["image"] = checked_image(inner.get("image"), inner.at("image"), build)
    return arguments


def _upload(given: Mapping[str, Any], inner: Section, build: Build) -> dict[str, Any]:
    store = given.get("store", build.config.default_store)
    if isinstance(store, str) and "store" in given:
        build.check_store(store, inner.at("upload", "store"))
    line, column = build.problems.document.value_at(inner.base)
    name = given.get("name") or Deferred(_IMAGE_NAME, ("instance.name", "run.date"), line, column)
    return {"store": store, "name": name}


def _check_instances(operation: Operation, section: Section, instances: Mapping[str, Instance], build: Build) -> None:
    """What can be told of the chosen instances: they are meant to exist, and have the disk of a snapshot."""
    disks = _named_disks(operation.arguments)
    for name in operation.instances:
        instance = instances.get(name)
        if instance is None:
            continue
        if instance.state is State.ABSENT:
            message = f"cannot {operation.action} '{name}': its state in this plan is absent"
            section.problems.add(section.at("instances"), message)
            return
        if operation.action == "terminate" and instance.protect:
            message = f"cannot terminate '{name}': it is protected"
            section.problems.add(section.at("instances"), message, "remove 'protect: true' from it first")
            return
        if operation.action in _ON_DISKS and not _broken_disks(section):
            _check_disks(operation.action, instance, disks, section, _attached(build))
        if operation.action == "rebuild" and "image" not in operation.arguments and instance.image is None:
            message = f"cannot rebuild '{name}': it has no image"
            section.problems.add(section.at("instances"), message, "name one in the operation: with: {image: NAME}")
            return


def _broken_disks(section: Section) -> bool:
    return any("/disks" in pointer and pointer.startswith(_DECLARATIONS) for pointer in section.problems.broken)


def _attached(build: Build) -> list[str]:
    """The names of disks that operations attach."""
    entries = [*(build.data.get("operations") or ()), *(build.data.get("finally") or ())]
    given = [entry.get("with") for entry in entries if isinstance(entry, dict) and entry.get("action") == "attach"]
    disks = [arguments.get("disk") for arguments in given if isinstance(arguments, dict)]
    return [disk["name"] for disk in disks if isinstance(disk, dict) and isinstance(disk.get("name"), str)]


def _named_disks(arguments: Mapping[str, Any]) -> dict[tuple[str | int, ...], Any]:
    """The disks that the arguments name, by their places in `with`."""
    if isinstance(arguments.get("disks"), list):
        return {("disks", index): name for index, name in enumerate(arguments["disks"])}
    return {("disk",): arguments.get("disk")}


def _check_disks(
    action: str,
    instance: Instance,
    disks: Mapping[tuple[str | int, ...], Any],
    section: Section,
    attached: list[str],
) -> None:
    names = [one.name for one in instance.disks] + attached
    if not instance.disks:
        message = f"cannot {action} '{instance.name}': it has no disk"
        section.problems.add(section.at("instances"), message, "give the instance a disk or an image")
        return
    for place, disk in disks.items():
        if isinstance(disk, str) and disk not in names:
            message = f"instance '{instance.name}' has no disk '{disk}'"
            section.problems.add(section.at("with", *place), message, did_you_mean(disk, names))
