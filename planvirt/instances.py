"""Builds the instances of a plan: profiles merged in, counts unfolded, every reference checked."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from planvirt.arguments import read_argument
from planvirt.build import Build, Defaults
from planvirt.document import pointer_join
from planvirt.images import image_of
from planvirt.names import Copy
from planvirt.paths import PathRefused
from planvirt.plan import Boot, Deferred, Disk, Instance, Nic, Ready
from planvirt.problems import did_you_mean
from planvirt.profiles import with_profiles
from planvirt.section import Section
from planvirt.states import State
from planvirt.units import UnitError


def build_instances(build: Build, defaults: Defaults) -> tuple[Instance, ...]:
    """All instances whose entry can be read; what is wrong with them is in the problems."""
    return tuple(_instances(build, defaults))


def _instances(build: Build, defaults: Defaults) -> Iterator[Instance]:
    for group, entry in build.mapping("instances").items():
        pointer = pointer_join("/instances", group)
        own = {key: value for key, value in entry.items() if key not in ("count", "for_each")}
        raw = with_profiles(own, pointer, build.mapping("profiles"), build.names.profiles, build.problems)
        needs = _needs(raw, build)
        for copy in build.names.groups.get(group, ()):
            scope: dict[str, Any] = {}
            if copy.index is not None:
                scope["index"] = copy.index
            if copy.each is not None:
                scope["each"] = _each(copy, group, build)
            section = build.renderer.section(raw, "instance", scope)
            yield _instance(section, copy, group, needs, scope.get("each"), build, defaults)


def _each(copy: Copy, group: str, build: Build) -> dict[str, Any]:
    """`each` with the expressions in its value rendered."""
    each = dict(copy.each or {})
    base = pointer_join(pointer_join("/instances", group), "for_each")
    raw = Section({each["key"]: each["value"]}, base, build.problems)
    return {"key": each["key"], "value": build.renderer.section(raw, "").get(each["key"])}


def _instance(
    section: Section,
    copy: Copy,
    group: str,
    needs: tuple[str, ...],
    each: dict[str, Any] | None,
    build: Build,
    defaults: Defaults,
) -> Instance:
    state = State(section.get("state", "running"))
    host = section.get("host")
    if host is not None:
        build.check_host(host, section.at("host"))
    line, column = build.problems.document.key_at(section.base)
    image = image_of(section, build)
    return Instance(
        name=copy.name,
        group=group,
        host=host or defaults.host,
        vcpus=section.get("vcpus", 1),
        memory=_memory(section, group, state),
        max_vcpus=section.get("max_vcpus", 0),
        max_memory=section.size("max_memory") or 0,
        disks=_disks(section, has_image="image" in section.data),
        nics=_nics(section),
        image=image,
        boot=_boot(section, build),
        labels={name: _label(value) for name, value in section.get("labels", {}).items()},
        needs=needs,
        state=state,
        ready=_ready(section),
        protect=section.get("protect", False),
        resize=_resize(section),
        retry=section.retry(defaults.retry),
        timeout=section.positive_duration("timeout", defaults.timeout),
        index=copy.index,
        each=each,
        line=line,
        column=column,
    )


def _resize(section: Section) -> dict[str, Any]:
    inner, found = section.inner("resize"), {}
    for key, value in inner.data.items():
        try:
            found[key] = read_argument("resize", key, value)
        except UnitError as error:
            section.problems.add(inner.at(key), str(error), error.hint)
    return found


def _label(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _needs(section: Section, build: Build) -> tuple[str, ...]:
    """The names of instances and operations; a group stands for its members."""
    found: dict[str, None] = {}
    for index, name in enumerate(section.get("needs", ())):
        if name is None:
            continue
        members = build.names.expand(name)
        if members is not None:
            found.update(dict.fromkeys(members))
        elif name in build.names.operations:
            found[name] = None
        else:
            hint = did_you_mean(name, build.names.all())
            build.problems.add(section.at("needs", index), f"unknown instance or operation '{name}'", hint)
    return tuple(found)


def _memory(section: Section, group: str, state: State) -> int:
    memory = section.size("memory")
    if memory is not None and memory < 1024 * 1024:
        section.problems.add(section.at("memory"), "memory must be at least 1 MiB")
    elif memory is None and state is not State.ABSENT and not _may_have(section, "memory"):
        hint = "give it here or in a profile, such as 'memory: 1 GiB'"
        section.problems.add(section.base, f"instance '{group}' needs 'memory'", hint, on_key=True)
    return memory or 0


def _may_have(section: Section, key: str) -> bool:
    """Whether the key was given but is wrong, or may come from a profile that is wrong or hides behind a wrong key."""
    broken = section.problems.broken
    suspects = {section.base + "/" + key, section.at(key), section.base + "/use", section.base}
    return (
        any(pointer in suspects or pointer.startswith(section.base + "/use/") for pointer in broken)
        or any(pointer.startswith("/profiles/") and pointer.endswith("/" + key) for pointer in broken)
        or any(pointer.startswith("/profiles/") and "/use" in pointer for pointer in broken)
        or any(problem.hint == f"did you mean '{key}'?" for problem in section.problems.found)
        or key in section.data
    )


def _disks(section: Section, *, has_image: bool) -> tuple[Disk, ...]:
    items = section.get("disks", [])
    if not items and has_image:
        return (Disk("root"),)
    disks: list[Disk] = []
    for index, item in enumerate(items):
        if item is None:
            continue
        plain = Section({"size": item}, section.at("disks"), section.problems, {"/size": section.at("disks", index)})
        inner = section.inner("disks", index) if isinstance(item, dict) else plain
        name = inner.get("name") or ("root" if index == 0 else f"disk-{index + 1}")
        size = inner.size("size")
        if "size" in inner.data and size is not None and size < 1024:
            section.problems.add(inner.at("size"), "a disk must have at least 1 KiB")
        if "size" not in inner.data and not (index == 0 and has_image) and not section.problems.is_broken(inner.base):
            hint = "only the first disk of an instance with an image may leave it out"
            section.problems.add(inner.base, f"disk '{name}' needs a size", hint)
        if any(disk.name == name for disk in disks):
            at = inner.at("name") if "name" in inner.data else section.at("disks", index)
            section.problems.add(at, f"two disks are called '{name}'", "give each disk a name of its own")
        disks.append(
            Disk(name, size, inner.get("keep", False), inner.get("format", "qcow2"), inner.get("bus", "virtio"))
        )
    return tuple(disks)


def _nics(section: Section) -> tuple[Nic, ...]:
    nics: list[Nic] = []
    for index, item in enumerate(section.get("networks", [])):
        if isinstance(item, str):
            nics.append(Nic("network", item))
        elif isinstance(item, dict):
            mac, model = item.get("mac"), item.get("model", "virtio")
            mac = mac.lower() if mac else None
            if mac and any(nic.mac == mac for nic in nics):
                at = section.at("networks", index, "mac")
                section.problems.add(at, f"two network interfaces have the address '{mac}'")
            if "user" in item:
                nics.append(Nic("user", "", mac, model))
            elif "bridge" in item:
                nics.append(Nic("bridge", item["bridge"], mac, model))
            else:
                nics.append(Nic("network", item.get("network", ""), mac, model))
    return tuple(nics)


def _boot(section: Section, build: Build) -> Boot | None:
    inner = section.inner("boot")
    paths: dict[str, Path] = {}
    for key in ("kernel", "initrd"):
        if key in inner.data:
            try:
                paths[key] = build.bounds.resolve(inner.data[key])
            except PathRefused as refused:
                section.problems.add(inner.at(key), str(refused), refused.hint)
    if "kernel" not in paths:
        return None
    cmdline: str | Deferred = inner.get("cmdline", "")
    return Boot(paths["kernel"], paths.get("initrd"), cmdline)


def _ready(section: Section) -> Ready | None:
    inner = section.inner("ready")
    if not inner.data:
        return None
    return Ready(
        console=inner.get("console"),
        port=inner.get("port"),
        address=inner.get("address", False),
        within=inner.positive_duration("within", 300.0),
    )
