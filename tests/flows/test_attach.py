"""Disks and network interfaces that come to an instance and go from it, once and for all or for the time of a run."""

from pathlib import Path
from typing import Any

import pytest

from drivers.compute import InstanceFacts
from flows.actions import ACTIONS
from flows.actions.detach import GuestKeepsDevice, let_go
from flows.call import Call, RunFacts
from flows.world import World
from planvirt.deadline import Deadline, DeadlinePassed
from planvirt.journal.transitions import RunState
from planvirt.mark import instance_uuid, nic_mac
from planvirt.plan import Nic
from planvirt.states import State
from tests.flows.whole_world import die, finish, seen
from tests.flows.yard import Yard

MIB = 1 << 20
MAC = "52:54:00:12:34:56"
PLAN = """\
instances:
  web:
    memory: 64 MiB
    disks: [1 MiB]
    networks: [default]
  other: {memory: 64 MiB}
"""
# The same machine, with more on it.
LARGE = PLAN.replace(
    "disks: [1 MiB]", "disks: [1 MiB, {name: data, size: 1 MiB, bus: scsi}, {name: plain, size: 1 MiB, format: raw}]"
)
LARGE = LARGE.replace("networks: [default]", f"networks: [default, {{bridge: br0, mac: '{MAC}', model: e1000}}]")
LAST = "  - {action: pause, instances: [other]}\n"

DATA = "disk: {name: data, size: 1 MiB, bus: scsi}"
KEPT = "disk: {name: data, size: 1 MiB, keep: true}"
RAW = "disk: {name: logs, size: 3 MiB, format: raw}"
NIC = "network: lan"
NIC_WITH_MAC = f"network: {{bridge: br0, mac: '{MAC.upper()}', model: e1000}}"
USER = "network: {user: true}"
ATTACHED = {"disk": DATA, "kept": KEPT, "raw": RAW, "nic": NIC, "mac": NIC_WITH_MAC, "user": USER}
DETACHED = {
    "disk": "disk: data", "deleted": "disk: plain, delete: true", "nic": "network: br0", "mac": f"mac: '{MAC.upper()}'",
}  # fmt: skip


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return launched(tmp_path)


def launched(folder: Path, plan: str = PLAN) -> Yard:
    yard = Yard(folder)
    assert yard.run(plan) == RunState.SUCCEEDED
    for volume in web(yard).volumes:
        yard.kvm1.write_disk(volume, volume.split(".")[2].encode())
    return yard


def attach(what: str, plan: str = PLAN) -> str:
    return f"{plan}operations:\n{step('attach', what)}"


def detach(what: str, plan: str = PLAN) -> str:
    return f"{plan}operations:\n{step('detach', what)}"


def step(action: str, what: str, id: str = "change") -> str:
    return f"  - {{id: {id}, action: {action}, instances: [web], with: {{{what}}}}}\n"


def web(yard: Yard) -> InstanceFacts:
    found = yard.kvm1.instance("web")
    assert found is not None
    return found


def disks(yard: Yard) -> dict[str, tuple[str, str]]:
    return {disk.volume.split(".")[2]: (disk.format, disk.bus) for disk in web(yard).disks}


def content(yard: Yard, disk: str) -> bytes:
    with yard.kvm1.world() as world:
        return world.content(next(volume for volume in world.instances["web"].volumes if f".{disk}." in volume))


def outputs(yard: Yard) -> dict[str, Any]:
    return dict(yard.journal.step(f"r{yard.runs}", "change.web").outputs or {})


def error(yard: Yard) -> str:
    found = yard.journal.step(f"r{yard.runs}", "change.web").error
    assert found is not None
    return f"{found['brief']}: {found['details']}"


def call(yard: Yard, world: World, deadline: Deadline, undo: dict[str, Any]) -> Call:
    return Call(
        RunFacts("r9", "shop", "", ""), "change.web", "web", instance_uuid("shop", "web"), "kvm1", {}, world, deadline,
        undo, record=lambda _phase, _undo: None, log=lambda _: None,
    )  # fmt: skip


# What they do


@pytest.mark.parametrize("state", ["running", "stopped", "paused"])
def test_a_disk_is_made_and_attached(yard: Yard, state: str) -> None:
    plan = PLAN if state == "paused" else PLAN.replace("  web:\n", f"  web:\n    state: {state}\n")
    pause = "  - {id: still, action: pause, instances: [web]}\n" if state == "paused" else ""
    text = f"{plan}operations:\n{pause}{step('attach', DATA)}{step('attach', RAW, 'more')}"
    assert yard.run(text) == RunState.SUCCEEDED
    assert disks(yard) == {"root": ("qcow2", "virtio"), "data": ("qcow2", "scsi"), "logs": ("raw", "virtio")}
    sizes = {volume.name: (volume.capacity, volume.format, volume.base) for volume in yard.kvm1.volumes()}
    assert [sizes[volume] for volume in web(yard).volumes[1:]] == [(MIB, "qcow2", None), (3 * MIB, "raw", None)]
    assert outputs(yard) == {"disk": "data", "volume": web(yard).volumes[1]}
    assert (web(yard).state, web(yard).keep) == (State(state), ())


def test_a_network_interface_is_attached(yard: Yard) -> None:
    assert yard.run(attach(NIC)) == RunState.SUCCEEDED
    mac = nic_mac(web(yard).uuid, "change")
    assert web(yard).nics[1:] == (Nic("network", "lan", mac),)
    assert outputs(yard) == {"mac": mac}
    assert yard.run(attach(NIC_WITH_MAC)) == RunState.SUCCEEDED
    assert web(yard).nics[2:] == (Nic("bridge", "br0", MAC, "e1000"),)


@pytest.mark.parametrize("what", ATTACHED.values(), ids=ATTACHED)
def test_what_is_attached_already_is_left_alone(yard: Yard, what: str) -> None:
    assert yard.run(attach(what)) == RunState.SUCCEEDED
    before, events, told = web(yard), yard.kvm1.events(), outputs(yard)
    assert yard.run(attach(what)) == RunState.SUCCEEDED
    assert (web(yard), yard.kvm1.events(), outputs(yard)) == (before, events, told)
    assert yard.journal.step(f"r{yard.runs}", "change.web").undo == {}


@pytest.mark.parametrize(("what", "why"), [
    ("disk: {name: data, size: 2 MiB, bus: scsi}",
     "cannot attach disk data to web: it has one of that name: that has 1 MiB, 2 MiB is wanted"),
    ("disk: {name: data, size: 1 MiB}",
     "cannot attach disk data to web: it has one of that name: that is qcow2 on scsi, qcow2 on virtio is wanted"),
    ("disk: {name: plain, size: 1 MiB}",
     "cannot attach disk plain to web: it has one of that name: that is raw on virtio, qcow2 on virtio is wanted"),
    (f"network: {{network: lan, mac: '{MAC}'}}",
     f"cannot attach network interface {MAC} to web: it has one of that address: "
     "that is on bridge br0 (e1000), network lan (virtio) is wanted"),
])  # fmt: skip
def test_another_one_in_its_place_is_a_conflict(tmp_path: Path, what: str, why: str) -> None:
    yard = launched(tmp_path, LARGE)
    before = seen(yard)
    assert yard.run(attach(what)) == RunState.ROLLED_BACK
    assert seen(yard) == before
    assert error(yard) == why


@pytest.mark.parametrize("state", ["running", "stopped"])
@pytest.mark.parametrize("what", DETACHED.values(), ids=DETACHED)
def test_what_is_detached_is_gone(tmp_path: Path, what: str, state: str) -> None:
    yard = launched(tmp_path, LARGE)
    plan = PLAN.replace("  web:\n", f"  web:\n    state: {state}\n")
    assert yard.run(plan) == RunState.SUCCEEDED
    volumes = set(web(yard).volumes)
    assert yard.run(detach(what, plan)) == RunState.SUCCEEDED
    left = [volume.name for volume in yard.kvm1.volumes()]
    if "disk" in what:
        name = what.split()[1].strip(",")
        (gone,) = volumes - set(web(yard).volumes)
        assert outputs(yard) == {"disk": name, "volume": gone}
        assert (gone in left) is (name == "data")
    else:
        assert [nic.mac for nic in web(yard).nics] == [nic_mac(web(yard).uuid, 0)]
        assert outputs(yard) == {"mac": MAC}
    events = yard.kvm1.events()
    assert yard.run(detach(what, plan)) == RunState.SUCCEEDED
    assert (yard.kvm1.events(), outputs(yard)) == (events, {})


def test_a_detached_disk_comes_back_with_what_is_on_it(tmp_path: Path) -> None:
    yard = launched(tmp_path, LARGE)
    assert yard.run(detach("disk: data")) == RunState.SUCCEEDED
    assert yard.run(attach(DATA)) == RunState.SUCCEEDED
    assert (disks(yard)["data"], content(yard, "data")) == (("qcow2", "scsi"), b"data")
    assert len(yard.kvm1.volumes()) == 3
    assert yard.run(detach("disk: data") + step("attach", DATA, "again")) == RunState.SUCCEEDED
    assert content(yard, "data") == b"data"


def test_a_disk_that_lies_there_and_is_another_one_is_refused(tmp_path: Path) -> None:
    yard = launched(tmp_path, LARGE)
    assert yard.run(detach("disk: data")) == RunState.SUCCEEDED
    before = seen(yard)
    assert yard.run(attach("disk: {name: data, size: 2 MiB}")) == RunState.ROLLED_BACK
    assert seen(yard) == before
    assert "cannot attach the kept disk data of web: it has 1 MiB, the plan says 2 MiB" in error(yard)


# A name that only the run knows, so that no preview can refuse it.
LATE = "\"{{ '%s' if run.id }}\""


def test_a_boot_disk_is_not_detached(yard: Yard) -> None:
    before = seen(yard)
    assert yard.run(detach(f"disk: {LATE % 'root'}, delete: true")) == RunState.ROLLED_BACK
    assert seen(yard) == before
    assert error(yard).startswith("cannot detach disk root of web: it is the boot disk")


def test_a_network_with_several_interfaces_does_not_say_which(yard: Yard) -> None:
    assert yard.run(attach("network: default")) == RunState.SUCCEEDED
    first, second = [nic.mac for nic in web(yard).nics]
    assert yard.run(detach("network: default")) == RunState.ROLLED_BACK
    assert error(yard) == f"cannot detach web from default: it has 2 network interfaces there: {first}, {second}"
    assert yard.run(detach(f"mac: '{second}'")) == RunState.SUCCEEDED
    assert [nic.mac for nic in web(yard).nics] == [first]


# Disks that are kept


def test_the_host_remembers_that_an_attached_disk_is_kept(yard: Yard) -> None:
    assert yard.run(attach(KEPT)) == RunState.SUCCEEDED
    assert web(yard).keep == ("data",)
    assert yard.destroy(PLAN) == RunState.SUCCEEDED
    assert yard.left()["kvm1"] == ["shop.web.data"]
    assert yard.run(attach(KEPT)) == RunState.SUCCEEDED
    assert len(yard.kvm1.volumes()) == 2


def test_a_disk_that_is_there_can_be_kept_from_now_on(yard: Yard) -> None:
    assert yard.run(attach(KEPT.replace(", keep: true", ""))) == RunState.SUCCEEDED
    before = seen(yard)
    yard.kvm1.fail("pause", error="error")
    assert yard.run(attach(KEPT) + LAST) == RunState.ROLLED_BACK
    assert seen(yard) == before
    assert yard.run(attach(KEPT)) == RunState.SUCCEEDED
    assert web(yard).keep == ("data",)
    assert yard.run(attach(KEPT.replace(", keep: true", ""))) == RunState.SUCCEEDED
    assert web(yard).keep == ("data",)


def test_a_kept_disk_that_came_back_stays_when_its_attach_is_undone(yard: Yard) -> None:
    assert yard.run(attach(KEPT)) == RunState.SUCCEEDED
    yard.kvm1.write_disk(yard.volume("web", "data"), b"precious")
    assert yard.run(detach("disk: data")) == RunState.SUCCEEDED
    before = seen(yard)
    yard.kvm1.fail("pause", error="error")
    assert yard.run(attach(KEPT) + LAST) == RunState.ROLLED_BACK
    assert seen(yard) == before
    assert yard.run(attach(KEPT)) == RunState.SUCCEEDED
    assert content(yard, "data") == b"precious"


def test_a_kept_disk_is_deleted_when_it_is_named_for_that(yard: Yard) -> None:
    assert yard.run(attach(KEPT)) == RunState.SUCCEEDED
    before = seen(yard)
    yard.kvm1.fail("pause", error="error")
    assert yard.run(detach("disk: data, delete: true") + LAST) == RunState.ROLLED_BACK
    assert seen(yard) == before
    assert yard.run(detach("disk: data, delete: true")) == RunState.SUCCEEDED
    assert (web(yard).keep, len(yard.kvm1.volumes())) == ((), 1)


def test_a_plan_that_keeps_and_deletes_a_disk_contradicts_itself(tmp_path: Path) -> None:
    keeping = LARGE.replace("name: data,", "name: data, keep: true,")
    yard = launched(tmp_path, keeping)
    before = seen(yard)
    assert yard.run(detach(f"disk: {LATE % 'data'}, delete: true", keeping)) == RunState.ROLLED_BACK
    assert seen(yard) == before
    assert error(yard).startswith("cannot delete disk data of web: the plan declares it with 'keep: true'")
    assert yard.run(detach("disk: data", keeping)) == RunState.SUCCEEDED


# Undo


@pytest.mark.parametrize("state", ["running", "stopped"])
@pytest.mark.parametrize("what", ATTACHED.values(), ids=ATTACHED)
def test_a_rollback_takes_what_was_attached(yard: Yard, what: str, state: str) -> None:
    plan = PLAN.replace("  web:\n", f"  web:\n    state: {state}\n")
    yard.run(plan)
    before, changes = seen(yard), len(yard.kvm1.events())
    yard.kvm1.fail("pause", error="error")
    assert yard.run(attach(what, plan) + LAST) == RunState.ROLLED_BACK
    assert seen(yard) == before
    assert len(yard.kvm1.events()) > changes


@pytest.mark.parametrize("state", ["running", "stopped"])
@pytest.mark.parametrize("what", DETACHED.values(), ids=DETACHED)
def test_a_rollback_attaches_what_was_detached(tmp_path: Path, what: str, state: str) -> None:
    yard = launched(tmp_path, LARGE)
    plan = PLAN.replace("  web:\n", f"  web:\n    state: {state}\n")
    yard.run(plan)
    before, changes = in_any_order(seen(yard)), len(yard.kvm1.events())
    yard.kvm1.fail("pause", error="error")
    assert yard.run(detach(what, plan) + LAST) == RunState.ROLLED_BACK
    assert in_any_order(seen(yard)) == before
    assert len(yard.kvm1.events()) > changes


def in_any_order(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """A disk that is attached again becomes the last one."""
    for host in found.values():
        for machine in host["instances"].values():
            machine["disks"].sort()
    return found


def test_an_attached_disk_that_has_grown_in_the_same_run_goes_with_it(yard: Yard) -> None:
    before = seen(yard)
    declared = PLAN.replace("disks: [1 MiB]", "disks: [1 MiB, {name: data, size: 2 MiB, bus: scsi}]")
    yard.kvm1.fail("pause", error="error")
    assert yard.run(attach(DATA, declared) + step("resize", "reboot: false", "grow") + LAST) == RunState.ROLLED_BACK
    assert "grow_disk web" in yard.kvm1.events()
    assert seen(yard) == before


def test_all_of_a_run_is_undone_on_a_disk(tmp_path: Path) -> None:
    yard = launched(tmp_path, LARGE)
    before = in_any_order(seen(yard))
    text = detach("disk: data") + step("attach", DATA, "again") + step("resize", "disks: {data: 2 MiB}", "grow")
    yard.kvm1.fail("pause", error="error")
    assert yard.run(text + step("detach", "disk: data, delete: true", "gone") + LAST) == RunState.ROLLED_BACK
    assert in_any_order(seen(yard)) == before


@pytest.mark.parametrize("at", ["before", "after"])
@pytest.mark.parametrize(("what", "calls"), [
    (KEPT, ("volumes", "create_volume", "set_keep", "attach_disk")),
    (NIC, ("attach_nic",)),
], ids=["disk", "nic"])  # fmt: skip
def test_whatever_call_of_an_attach_fails_the_world_is_as_before(yard: Yard, what: str, calls: Any, at: Any) -> None:
    before = seen(yard)
    for call in calls:
        prepared = yard.prepare(attach(what))
        yard.kvm1.fail(call, error="error", at=at)
        assert yard.carry_out(prepared) == RunState.ROLLED_BACK
        assert seen(yard) == before


@pytest.mark.parametrize("at", ["before", "after"])
@pytest.mark.parametrize(("what", "calls"), [
    ("disk: data, delete: true", ("detach_disk", "set_keep")),
    ("network: default", ("detach_nic",)),
], ids=["disk", "nic"])  # fmt: skip
def test_whatever_call_of_a_detach_fails_the_world_is_as_before(yard: Yard, what: str, calls: Any, at: Any) -> None:
    assert yard.run(attach(KEPT)) == RunState.SUCCEEDED
    before = seen(yard)
    for call in calls:
        prepared = yard.prepare(detach(what, PLAN.replace("    networks: [default]\n", "")))
        yard.kvm1.fail(call, error="error", at=at)
        assert yard.carry_out(prepared) == RunState.ROLLED_BACK
        assert seen(yard) == before


@pytest.mark.parametrize("at", ["before", "after"])
@pytest.mark.parametrize(("operation", "call"), [
    (step("attach", "disk: {name: logs, size: 1 MiB, keep: true}"), "detach_disk"),
    (step("attach", "disk: {name: logs, size: 1 MiB, keep: true}"), "set_keep"),
    (step("attach", "disk: {name: logs, size: 1 MiB, keep: true}"), "delete_volume"),
    (step("attach", NIC), "detach_nic"),
    (step("detach", "disk: data, delete: true"), "attach_disk"),
    (step("detach", "disk: data, delete: true"), "set_keep"),
    (step("detach", f"mac: '{MAC}'"), "attach_nic"),
])  # fmt: skip
def test_an_undo_that_fails_twice_ends_well(yard: Yard, operation: str, call: str, at: Any) -> None:
    first = step("attach", KEPT, "first") + step("attach", NIC_WITH_MAC, "second")
    assert yard.run(f"{PLAN}operations:\n{first}") == RunState.SUCCEEDED
    before = seen(yard)
    yard.kvm1.fail("pause", error="error")
    assert yard.run(f"on_failure: keep\n{PLAN}operations:\n{operation}{LAST}") == RunState.KEPT
    yard.kvm1.fail(call, times=2, at=at)
    assert yard.roll_back(f"r{yard.runs}") == RunState.ROLLED_BACK
    assert seen(yard) == before
    with yard.kvm1.world() as world:
        assert world.faults[0].times == 0


# Guests that do not let go


@pytest.mark.parametrize("what", ["disk: data", "network: br0"])
def test_a_guest_that_keeps_a_device_fails_the_step_and_loses_nothing(tmp_path: Path, what: str) -> None:
    yard = launched(tmp_path, LARGE)
    with yard.kvm1.world() as world:
        world.guests["web"] = {"keeps_devices": True}
    before = seen(yard)
    text = detach(what).replace("action: detach,", "action: detach, timeout: 200ms,")
    assert yard.run(text) == RunState.ROLLED_BACK
    assert seen(yard) == before


def test_a_guest_that_keeps_a_device_may_let_go_later(yard: Yard) -> None:
    def keep(limit: Deadline) -> None:
        limit.sleep(10.0)

    with World(yard.config) as world:
        with pytest.raises(GuestKeepsDevice, match="the guest did not let go of it"):
            let_go(call(yard, world, Deadline(), {}), "disk data", keep, patience=0.05)
        with pytest.raises(DeadlinePassed):
            let_go(call(yard, world, Deadline(0.05), {}), "disk data", keep)


def test_an_undo_waits_for_the_guest_and_can_be_repeated(yard: Yard) -> None:
    before = seen(yard)
    yard.kvm1.fail("pause", error="error")
    assert yard.run(f"on_failure: keep\n{attach(DATA)}{LAST}") == RunState.KEPT
    undo = yard.journal.step(f"r{yard.runs}", "change.web").undo
    with yard.kvm1.world() as world:
        world.guests["web"] = {"keeps_devices": True}
    with World(yard.config) as world, pytest.raises(DeadlinePassed):
        ACTIONS["attach"].undo(call(yard, world, Deadline(0.2), dict(undo)))
    assert "data" in disks(yard)
    with yard.kvm1.world() as paper:
        paper.guests.clear()
    assert yard.roll_back(f"r{yard.runs}") == RunState.ROLLED_BACK
    assert seen(yard) == before


# Killed

ROUND = (
    step("attach", KEPT, "first") + step("attach", NIC, "second") + step("detach", "disk: data, delete: true", "third")
    + step("detach", "network: lan", "fourth") + step("detach", "disk: logs", "fifth")
)  # fmt: skip


@pytest.mark.sweep
@pytest.mark.parametrize("forward", [False, True], ids=["back", "forward"])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_killed_at_every_word(tmp_path: Path, before: bool, forward: bool) -> None:
    def ready(name: str) -> Yard:
        yard = launched(tmp_path / name)
        assert yard.run(attach(RAW)) == RunState.SUCCEEDED
        return yard

    text, good = f"{PLAN}operations:\n{ROUND}", ready("good")
    assert good.run(text) == RunState.SUCCEEDED
    for number in range(1, 1000):
        yard = ready(f"{number}")
        untouched, prepared = seen(yard), yard.prepare(text)
        run = die(yard, prepared, number, before=before)
        if run is None:
            break
        state = finish(yard, prepared, run, forward=forward)
        assert state in (RunState.SUCCEEDED, RunState.ROLLED_BACK, RunState.CANCELLED)
        assert seen(yard) == (seen(good) if state == RunState.SUCCEEDED else untouched)
    assert number > 20
