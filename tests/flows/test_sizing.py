"""How large an instance is to become, whether it must be off for that, and which disks grow."""

from collections.abc import Mapping
from typing import Any

import pytest

from drivers.compute import AttachedDisk, InstanceFacts, Sizes
from drivers.errors import NotFound
from flows.sizing import growing, needs_reboot, wanted
from planvirt.errors import Conflict
from planvirt.mark import Mark
from planvirt.plan import Deferred, Disk, Instance
from planvirt.states import State

MIB, GIB = 1 << 20, 1 << 30
OWN = Mark("shop", "web", "r1", "0" * 64)
ROOT, DATA = OWN.volume("root"), OWN.volume("data")
FOREIGN = Mark("shop", "db", "r1", "0" * 64).volume("data")


def found(sizes: Sizes, power: State = State.RUNNING) -> InstanceFacts:
    disks = (AttachedDisk(ROOT), AttachedDisk(FOREIGN), AttachedDisk(DATA))
    return InstanceFacts("web", "", "kvm1", power, OWN, sizes, disks=disks)


def spec(vcpus: int = 2, memory: int = 2 * GIB, max_vcpus: int = 0, max_memory: int = 0) -> Instance:
    return Instance("web", "web", "kvm1", vcpus, memory, max_vcpus, max_memory)


SMALL = Sizes(2, 2 * GIB, 4, 4 * GIB)


@pytest.mark.parametrize(("arguments", "declared", "now", "power", "sizes", "reboot"), [
    # what is not given stays
    ({"vcpus": 2}, None, SMALL, "running", SMALL, False),
    ({"disks": {"data": GIB}}, spec(8), SMALL, "running", SMALL, False),
    # a live change keeps the maxima
    ({"vcpus": 4}, spec(), SMALL, "running", Sizes(4, 2 * GIB, 4, 4 * GIB), False),
    ({"memory": GIB}, spec(), SMALL, "running", Sizes(2, GIB, 4, 4 * GIB), False),
    ({"memory": 3 * GIB}, spec(max_vcpus=8), SMALL, "paused", Sizes(2, 3 * GIB, 4, 4 * GIB), False),
    # fewer processors, or more than the maxima, need a reboot; what is changed gets the declared maximum
    ({"vcpus": 1}, None, SMALL, "running", Sizes(1, 2 * GIB, 1, 4 * GIB), True),
    ({"vcpus": 1}, spec(max_vcpus=6), SMALL, "running", Sizes(1, 2 * GIB, 6, 4 * GIB), True),
    ({"memory": 8 * GIB}, spec(), SMALL, "running", Sizes(2, 8 * GIB, 4, 8 * GIB), True),
    ({"vcpus": 6, "memory": GIB}, spec(), SMALL, "running", Sizes(6, GIB, 6, GIB), True),
    # what is off needs none
    ({"vcpus": 1}, spec(max_vcpus=6), SMALL, "stopped", Sizes(1, 2 * GIB, 6, 4 * GIB), False),
    ({"memory": GIB}, spec(), SMALL, "error", Sizes(2, GIB, 4, GIB), False),
    # without sizes the declared ones are meant
    ({}, spec(4, 3 * GIB), SMALL, "running", Sizes(4, 3 * GIB, 4, 4 * GIB), False),
    ({"reboot": True}, spec(4, 3 * GIB), SMALL, "stopped", Sizes(4, 3 * GIB, 4, 3 * GIB), False),
    ({}, spec(max_vcpus=4, max_memory=4 * GIB), SMALL, "stopped", SMALL, False),
    # a higher declared maximum is a size, too; a lower one can wait
    ({}, spec(max_memory=8 * GIB), SMALL, "running", Sizes(2, 2 * GIB, 2, 8 * GIB), True),
    ({}, spec(), SMALL, "running", SMALL, False),
    # a host gives whole MiB
    ({"memory": 2 * GIB - 512}, None, SMALL, "running", SMALL, False),
    ({}, spec(max_vcpus=4, max_memory=4 * GIB - 512), SMALL, "stopped", SMALL, False),
    # what is not known yet is taken to stay
    ({"vcpus": Deferred("{{ steps.a.outputs.n }}", (), 1, 1)}, spec(8), SMALL, "running", SMALL, False),
])  # fmt: skip
def test_sizes(
    arguments: Mapping[str, Any], declared: Instance | None, now: Sizes, power: str, sizes: Sizes, reboot: bool
) -> None:
    facts = found(now, State(power))
    result = wanted(arguments, declared, facts)
    assert result == sizes
    assert needs_reboot(facts, result) is reboot


@pytest.mark.parametrize(("arguments", "disks", "grown"), [
    ({"disks": {"data": 2 * MIB}}, (), {DATA: 2 * MIB}),
    ({"disks": {"data": MIB, "root": MIB + 1}}, (), {ROOT: MIB + 1}),
    ({"disks": {"data": MIB - 4095}}, (), {}),
    ({"vcpus": 2}, (Disk("data", 2 * MIB),), {}),
    ({}, (Disk("root"), Disk("data", 2 * MIB), Disk("more", MIB)), {DATA: 2 * MIB}),
    ({"disks": {"data": Deferred("{{ steps.a.outputs.n }}", (), 1, 1)}}, (), {}),
])  # fmt: skip
def test_growing_disks(arguments: Mapping[str, Any], disks: tuple[Disk, ...], grown: dict[str, int]) -> None:
    declared = Instance("web", "web", "kvm1", 1, GIB, disks=disks)
    assert growing(arguments, declared, found(SMALL), {ROOT: MIB, DATA: MIB, FOREIGN: MIB}) == grown


def test_a_disk_cannot_become_smaller() -> None:
    with pytest.raises(Conflict, match="cannot make disk data of web smaller: it has 1 MiB, 512 KiB is wanted"):
        growing({"disks": {"data": MIB // 2}}, None, found(SMALL), {DATA: MIB})


def test_an_unknown_disk_is_not_found() -> None:
    with pytest.raises(NotFound, match="cannot resize disk logs of web: it has root, data"):
        growing({"disks": {"logs": MIB}}, None, found(SMALL), {DATA: MIB})
    with pytest.raises(NotFound, match="its volume shop"):
        growing({"disks": {"data": MIB}}, None, found(SMALL), {})
