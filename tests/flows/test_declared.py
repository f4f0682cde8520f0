"""What a declaration that has changed asks for: an instance grows, gets disks and interfaces, or is refused."""

from pathlib import Path

import pytest

from drivers.compute import Sizes
from planvirt.journal.transitions import RunState
from planvirt.states import State
from planvirt.verbs import Impact
from tests.flows.yard import Yard

MIB = 1 << 20
SMALL = "instances:\n  web: {vcpus: 1, memory: 64 MiB, disks: [1 MiB]}\n"


def declared(**changes: object) -> str:
    """The instance with other values."""
    values: dict[str, object] = {"vcpus": 1, "memory": "64 MiB", "disks": "[1 MiB]"} | changes
    return "instances:\n  web: {" + ", ".join(f"{key}: {value}" for key, value in values.items()) + "}\n"


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return Yard(tmp_path)


def steps(yard: Yard, text: str) -> list[tuple[str, str, Impact]]:
    found = yard.preview(text)
    assert found.conflicts == ()
    return [(change.action, change.reason, change.impact) for change in found.changes]


def test_what_is_as_declared_needs_nothing(yard: Yard) -> None:
    text = declared(
        max_vcpus=4, networks="[default, {user: true}]", disks="[1 MiB, {name: data, size: 2 MiB, format: raw}]"
    )
    yard.run(text)
    assert steps(yard, text) == []


def test_an_instance_grows_while_it_runs_as_far_as_it_can(yard: Yard) -> None:
    yard.run(declared(max_vcpus=4, max_memory="256 MiB"))
    edited = declared(vcpus=3, memory="128 MiB", max_vcpus=4, max_memory="256 MiB")
    assert steps(yard, edited) == [("resize", "vcpus 1 to 3, memory 64 MiB to 128 MiB", Impact.LIVE)]
    assert yard.run(edited) == RunState.SUCCEEDED
    found = yard.kvm1.instance("web")
    assert found is not None and found.sizes == Sizes(3, 128 * MIB, 4, 256 * MIB)
    assert steps(yard, edited) == []
    assert "power_off web" not in yard.kvm1.events() and "request_shutdown web" not in yard.kvm1.events()


def test_what_needs_a_reboot_needs_the_plans_consent(yard: Yard) -> None:
    yard.run(SMALL)
    (conflict,) = yard.preview(declared(vcpus=2)).conflicts
    assert "web cannot change to 2 vcpus and 64 MiB while it runs" in conflict
    assert "'resize: {reboot: true}' in the instance" in conflict
    consenting = declared(vcpus=2, resize="{reboot: true}")
    assert steps(yard, consenting) == [("resize", "vcpus 1 to 2", Impact.REBOOT)]
    assert yard.run(consenting) == RunState.SUCCEEDED
    found = yard.kvm1.instance("web")
    assert found is not None and (found.vcpus, found.state) == (2, State.RUNNING)


def test_a_disk_grows_and_its_copy_goes_at_the_end(yard: Yard) -> None:
    yard.run(SMALL)
    grown = declared(disks="[2 MiB]")
    assert steps(yard, grown) == [("resize", "disk root 1 MiB to 2 MiB", Impact.LIVE)]
    assert yard.run(grown) == RunState.SUCCEEDED
    assert yard.left() == {"kvm1": ["shop.web.root", "web"]}
    assert [volume.capacity for volume in yard.kvm1.volumes()] == [2 * MIB]


def test_a_disk_does_not_shrink(yard: Yard) -> None:
    yard.run(declared(disks="[2 MiB]"))
    (conflict,) = yard.preview(SMALL).conflicts
    assert "cannot make disk root of web smaller: it has 2 MiB, 1 MiB is wanted" in conflict


def test_a_stopped_instance_is_resized_before_it_starts(yard: Yard) -> None:
    yard.run(declared(state="stopped"))
    assert [step[0] for step in steps(yard, declared(vcpus=2))] == ["resize", "start"]
    assert yard.run(declared(vcpus=2)) == RunState.SUCCEEDED
    assert [event for event in yard.kvm1.events() if event.split()[0] in ("resize", "start")] == [
        "resize web",
        "start web",
    ]


def test_disks_and_interfaces_that_are_new_are_attached(yard: Yard) -> None:
    yard.run(declared(networks="[default]"))
    edited = declared(
        networks="[default, {bridge: br0}]", disks="[1 MiB, {name: data, size: 2 MiB}, {name: log, size: 1 MiB}]"
    )
    assert [step[:2] for step in steps(yard, edited)] == [
        ("attach", "disk data is declared"),
        ("attach", "disk log is declared"),
        ("attach", "a network interface on bridge br0 is declared"),
    ]
    assert yard.run(edited) == RunState.SUCCEEDED
    found = yard.kvm1.instance("web")
    assert found is not None
    assert [volume.split(".")[2] for volume in found.volumes] == ["root", "data", "log"]
    assert [(nic.kind, nic.source) for nic in found.nics] == [("network", "default"), ("bridge", "br0")]
    assert steps(yard, edited) == []


def test_disks_that_are_declared_no_more_stay(yard: Yard) -> None:
    yard.run(declared(disks="[1 MiB, {name: data, size: 2 MiB}]"))
    assert steps(yard, SMALL) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"disks": "[{format: raw, size: 1 MiB}]"}, "its disk root is qcow2 on virtio, the plan says raw on virtio"),
        ({"disks": "[{bus: sata, size: 1 MiB}]"}, "its disk root is qcow2 on virtio, the plan says qcow2 on sata"),
        ({"disks": "[{name: other, size: 1 MiB}]"}, "its first disk is not other"),
        ({"networks": "[{network: other}]"}, "is on network default, the plan says network other"),
        ({"networks": "[{network: default, model: e1000}]"}, "the plan says network default (e1000)"),
        ({"image": "local/x"}, "made from another definition (its image differs)"),
    ],
)
def test_what_cannot_change_is_refused(yard: Yard, changes: dict[str, object], words: str) -> None:
    yard.run(declared(networks="[default]"))
    (conflict,) = yard.preview(declared(**{"networks": "[default]"} | changes)).conflicts
    assert words in conflict


def test_what_the_plans_operations_are_about_is_left_to_them(yard: Yard) -> None:
    text = (
        f"{SMALL}operations:\n"
        "  - {action: resize, instances: [web], with: {vcpus: 2, reboot: true}}\n"
        "  - {action: attach, instances: [web], with: {disk: {name: data, size: 1 MiB}}}\n"
        "  - {id: net, action: attach, instances: [web], with: {network: default}}\n"
    )
    for _ in range(2):
        assert yard.run(text) == RunState.SUCCEEDED
        found = yard.kvm1.instance("web")
        assert found is not None and (found.vcpus, len(found.disks), len(found.nics)) == (2, 2, 1)
    assert [action for action, _, _ in steps(yard, text)] == ["resize", "attach", "attach"]


def test_a_failure_later_takes_it_all_back(yard: Yard) -> None:
    yard.run(SMALL)
    before = yard.kvm1.instance("web")
    yard.kvm1.fail("suspend", name="web", error="error", times=None)
    edited = declared(
        vcpus=2, disks="[2 MiB, {name: data, size: 1 MiB}]", networks="[default]", resize="{reboot: true}"
    )
    assert yard.run(f"{edited}operations: [{{action: suspend, instances: [web]}}]\n") == RunState.ROLLED_BACK
    after = yard.kvm1.instance("web")
    assert before is not None and after is not None
    assert (after.sizes, after.nics, after.power, after.notes) == (before.sizes, before.nics, before.power, {})
    assert yard.left() == {"kvm1": ["shop.web.root", "web"]}
    assert [volume.capacity for volume in yard.kvm1.volumes()] == [1 * MIB]


@pytest.mark.parametrize("state", ["resized", "rescued", "shelved"])
def test_a_state_that_an_operation_has_to_end_is_not_overlooked(yard: Yard, state: str) -> None:
    yard.run(SMALL)
    with yard.kvm1.world() as world:
        world.instances["web"].notes[state] = "{}"
    (conflict,) = yard.preview(SMALL).conflicts
    assert f"web: it is {state}, declared running; end that by an operation" in conflict
    first = {"resized": "confirm_resize", "rescued": "unrescue", "shelved": "unshelve"}[state]
    assert yard.preview(f"{SMALL}operations: [{{action: {first}, instances: [web]}}]\n").conflicts == ()


@pytest.mark.parametrize(
    ("operations", "words"),
    [
        (
            "[{action: detach, instances: [web], with: {disk: data, delete: true}},"
            " {action: attach, instances: [web], with: {disk: {name: data, size: 1 MiB}}}]",
            "attach.web: disk data of web is deleted earlier in this run",
        ),
        ("[{action: detach, instances: [web], with: {disk: root}}]", "web boots from disk root"),
        ("[{action: detach, instances: [web], with: {disk: kept, delete: true}}]", "declared with 'keep: true'"),
        ("[{action: resize, instances: [web], with: {disks: {other: 2 MiB}}}]", "cannot resize disk other of web"),
        ("[{action: resize, instances: [web], with: {disks: {data: 1 KiB}}}]", "cannot make disk data of web smaller"),
        ("[{action: resize, instances: [web], with: {vcpus: 4}}]", "'reboot: true' in the operation"),
    ],
)
def test_what_would_be_refused_half_way_is_refused_before(yard: Yard, operations: str, words: str) -> None:
    disks = "[1 MiB, {name: data, size: 1 MiB}, {name: kept, size: 1 MiB, keep: true}]"
    yard.run(declared(disks=disks))
    (conflict,) = yard.preview(f"{declared(disks=disks)}operations: {operations}\n").conflicts
    assert words in conflict


def test_a_disk_that_the_run_attaches_can_grow_in_it(yard: Yard) -> None:
    yard.run(SMALL)
    text = (
        f"{SMALL}operations:\n"
        "  - {action: attach, instances: [web], with: {disk: {name: data, size: 1 MiB}}}\n"
        "  - {action: resize, instances: [web], with: {disks: {data: 2 MiB}}}\n"
    )
    assert yard.run(text) == RunState.SUCCEEDED
    assert sorted(volume.capacity for volume in yard.kvm1.volumes()) == [MIB, 2 * MIB]
