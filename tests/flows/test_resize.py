"""A resize: live or by a reboot, with copies of grown disks, undone, confirmed and reverted."""

import json
from pathlib import Path
from typing import Any

import pytest

from drivers.compute import InstanceFacts, Sizes
from flows.preview import Refused
from planvirt.journal.transitions import RunState
from planvirt.states import Note, State
from tests.flows.whole_world import Seen, die, finish, seen
from tests.flows.yard import Yard

MIB = 1 << 20
PLAN = """\
instances:
  web:
    vcpus: 2
    memory: 64 MiB
    max_vcpus: 4
    max_memory: 128 MiB
    disks: [1 MiB, {name: data, size: 1 MiB, bus: scsi}, {name: plain, size: 1 MiB, format: raw}]
  other: {memory: 64 MiB}
"""
# What comes after the resize, and can be told to fail.
LAST = "  - {action: pause, instances: [other]}\n"
START = Sizes(2, 64 * MIB, 4, 128 * MIB)

LIVE = "vcpus: 4, memory: 96 MiB"
REBOOT = "vcpus: 1, memory: 256 MiB, reboot: true"
DISKS = "disks: {data: 2 MiB}"
RAW = "disks: {plain: 2 MiB}"
ALL = "vcpus: 1, memory: 256 MiB, disks: {root: 2 MiB, data: 2 MiB, plain: 2 MiB}, reboot: true"
KINDS = {"live": LIVE, "reboot": REBOOT, "disk": DISKS, "raw": RAW, "all": ALL}


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return launched(Yard(tmp_path))


def launched(yard: Yard, state: str = "running") -> Yard:
    """A yard with the instance, whose disks hold their names."""
    text = PLAN.replace("  web:\n", f"  web:\n    state: {state}\n")
    assert yard.run(text) == RunState.SUCCEEDED
    for disk in ("root", "data", "plain"):
        yard.kvm1.write_disk(yard.volume("web", disk), disk.encode())
    return yard


def resize(sizes: str, confirm: str = "auto", state: str = "running") -> str:
    given = f"{sizes}, confirm: {confirm}" if sizes else f"confirm: {confirm}"
    declared = PLAN.replace("  web:\n", f"  web:\n    state: {state}\n")
    return f"{declared}operations:\n  - {{id: grow, action: resize, instances: [web], with: {{{given}}}}}\n"


def then(action: str, more: str = "") -> str:
    return f"  - {{id: {action.replace('_', '-')}, action: {action}, instances: [web]{more}}}\n"


CONFIRM, REVERT = then("confirm_resize"), then("revert_resize")


def web(yard: Yard) -> InstanceFacts:
    found = yard.kvm1.instance("web")
    assert found is not None
    return found


def disk(yard: Yard, name: str) -> tuple[int, str, bytes]:
    """Size, format and content of the disk that the instance has by that name."""
    with yard.kvm1.world() as world:
        (volume,) = [item for item in world.instances["web"].volumes if item.split(".")[2] == name]
        return world.volumes[volume].capacity, world.volumes[volume].format, world.content(volume)


def outputs(yard: Yard, step: str = "grow.web") -> dict[str, Any]:
    return dict(yard.journal.step(f"r{yard.runs}", step).outputs or {})


# What it does


def test_it_grows_while_the_guest_runs(yard: Yard) -> None:
    with yard.kvm1.world() as world:
        before = world.instances["web"].starts
    assert yard.run(resize(f"{LIVE}, disks: {{data: 2 MiB, plain: 2 MiB}}")) == RunState.SUCCEEDED
    with yard.kvm1.world() as world:
        assert world.instances["web"].starts == before
    assert (web(yard).sizes, web(yard).power) == (Sizes(4, 96 * MIB, 4, 128 * MIB), State.RUNNING)
    assert disk(yard, "data") == (2 * MIB, "qcow2", b"data")
    assert disk(yard, "plain") == (2 * MIB, "raw", b"plain")
    grown = {"data": 2 * MIB, "plain": 2 * MIB}
    assert outputs(yard) == {"vcpus": 4, "memory": 96 * MIB, "disks": grown, "rebooted": False}


def test_copies_are_gone_when_the_run_has_succeeded(yard: Yard) -> None:
    volumes = len(yard.kvm1.volumes())
    assert yard.run(resize(ALL)) == RunState.SUCCEEDED
    assert len(yard.kvm1.volumes()) == volumes
    assert web(yard).notes == {}


def test_what_a_guest_cannot_do_while_it_runs_is_done_by_a_reboot(yard: Yard) -> None:
    assert yard.run(resize(ALL)) == RunState.SUCCEEDED
    assert (web(yard).sizes, web(yard).power) == (Sizes(1, 256 * MIB, 4, 256 * MIB), State.RUNNING)
    assert disk(yard, "root") == (2 * MIB, "qcow2", b"root")
    assert outputs(yard)["rebooted"] is True


def test_what_is_off_stays_off(tmp_path: Path) -> None:
    yard = launched(Yard(tmp_path), "stopped")
    text = resize("vcpus: 1, memory: 256 MiB, disks: {data: 2 MiB, plain: 2 MiB}", state="stopped")
    assert yard.run(text) == RunState.SUCCEEDED
    assert (web(yard).sizes, web(yard).power) == (Sizes(1, 256 * MIB, 4, 256 * MIB), State.STOPPED)
    assert disk(yard, "plain") == (2 * MIB, "raw", b"plain")


def test_without_a_reboot_it_is_refused_before_anything_is_touched(yard: Yard) -> None:
    events = yard.kvm1.events()
    with pytest.raises(Refused):
        yard.run(resize("vcpus: 1, disks: {data: 2 MiB}"))
    prepared = yard.prepare(resize("vcpus: 4"))
    with yard.kvm1.world() as world:
        world.instances["web"].max_vcpus = 2  # since the preview
    assert yard.carry_out(prepared) == RunState.ROLLED_BACK
    assert yard.kvm1.events() == events
    error = yard.journal.step(f"r{yard.runs}", "grow.web").error
    assert error is not None
    assert error["brief"] == "cannot resize web: to have 4 vcpus and 64 MiB needs a reboot"
    assert error["details"] == "it is running with 2 of at most 2 vcpus and 64 MiB of at most 128 MiB"
    assert "reboot: true" in error["resolution"]


def test_a_guest_that_does_not_shut_down_is_left_as_it_was(yard: Yard) -> None:
    before = seen(yard)
    with yard.kvm1.world() as world:
        world.guests["web"] = {"ignores_shutdown": True}
    assert yard.run(resize(f"{ALL}, grace: 50ms")) == RunState.ROLLED_BACK
    assert seen(yard) == before
    assert yard.run(resize(f"{ALL}, grace: 50ms, force: true")) == RunState.SUCCEEDED
    assert web(yard).vcpus == 1


def test_what_is_so_already_is_left_alone(yard: Yard) -> None:
    assert yard.run(resize(ALL)) == RunState.SUCCEEDED
    events = yard.kvm1.events()
    assert yard.run(resize(ALL)) == RunState.SUCCEEDED
    assert yard.kvm1.events() == events
    assert yard.journal.step(f"r{yard.runs}", "grow.web").undo == {}
    assert outputs(yard) == {"vcpus": 1, "memory": 256 * MIB, "disks": {}, "rebooted": False}


def test_without_sizes_it_becomes_as_large_as_it_is_declared(yard: Yard) -> None:
    text = resize("reboot: true").replace("vcpus: 2\n    memory: 64 MiB", "vcpus: 3\n    memory: 80 MiB")
    assert yard.run(text.replace("{name: data, size: 1 MiB", "{name: data, size: 3 MiB")) == RunState.SUCCEEDED
    assert web(yard).sizes == Sizes(3, 80 * MIB, 4, 128 * MIB)
    assert disk(yard, "data") == (3 * MIB, "qcow2", b"data")


def test_a_new_declared_size_is_carried_out_without_an_operation(yard: Yard) -> None:
    text = PLAN.replace("vcpus: 2\n", "vcpus: 3\n").replace("{name: plain, size: 1 MiB", "{name: plain, size: 2 MiB")
    assert [change.action for change in yard.preview(text).changes] == ["resize"]
    assert yard.run(text) == RunState.SUCCEEDED
    assert web(yard).vcpus == 3
    assert disk(yard, "plain") == (2 * MIB, "raw", b"plain")
    assert yard.preview(text).changes == ()


# Undo


@pytest.mark.parametrize("confirm", ["auto", "manual"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", ["running", "stopped"])
def test_a_rollback_brings_all_of_it_back(tmp_path: Path, state: str, kind: str, confirm: str) -> None:
    yard = launched(Yard(tmp_path), state)
    before = seen(yard)
    yard.kvm1.fail("pause", error="error")
    assert yard.run(resize(KINDS[kind], confirm, state) + LAST) == RunState.ROLLED_BACK
    assert seen(yard) == before
    assert "resize web" in yard.kvm1.events() or "grow_disk web" in yard.kvm1.events()


def test_what_was_written_to_a_disk_since_it_grew_goes_with_its_undo(yard: Yard) -> None:
    before = seen(yard)
    kept(yard, resize("disks: {data: 2 MiB, plain: 2 MiB}"))
    for volume in web(yard).volumes[1:]:
        yard.kvm1.write_disk(volume, b"written since")
    assert yard.roll_back(f"r{yard.runs}") == RunState.ROLLED_BACK
    assert seen(yard) == before


def test_two_resizes_in_one_run_are_undone_one_after_the_other(yard: Yard) -> None:
    before = seen(yard)
    text = resize("vcpus: 3, disks: {data: 2 MiB}")
    text += "  - {action: resize, instances: [web], with: {vcpus: 1, disks: {data: 3 MiB}, reboot: true}}\n"
    yard.kvm1.fail("pause", error="error")
    assert yard.run(text + LAST) == RunState.ROLLED_BACK
    assert "grow_disk web" in yard.kvm1.events()
    assert seen(yard) == before


CALLS = (
    "export_disks", "create_volume", "delete_volume", "resize", "grow_disk", "request_shutdown", "wait_state", "start",
    "note", "volumes",
)  # fmt: skip


@pytest.mark.parametrize(("call", "at"), [
    *((call, "before") for call in CALLS), *((call, "after") for call in CALLS[1:]), ("export_disks", "during"),
])  # fmt: skip
def test_whatever_call_fails_the_world_is_as_before(yard: Yard, call: str, at: Any) -> None:
    before = seen(yard)
    prepared = yard.prepare(resize(ALL, "manual"))
    yard.kvm1.fail(call, error="error", at=at)
    assert yard.carry_out(prepared) == RunState.ROLLED_BACK
    assert seen(yard) == before


@pytest.mark.parametrize("call", ["power_off", "replace_disk", "resize", "start", "note", "delete_volume", "volumes"])
@pytest.mark.parametrize("at", ["before", "after"])
@pytest.mark.parametrize("confirm", ["auto", "manual"])
def test_an_undo_that_fails_twice_ends_well(yard: Yard, confirm: str, at: Any, call: str) -> None:
    before = seen(yard)
    kept(yard, resize(f"{ALL}, grace: 1s", confirm))
    with yard.kvm1.world() as world:
        world.guests["web"] = {"ignores_shutdown": call == "power_off"}
    yard.kvm1.fail(call, times=2, at=at)
    assert yard.roll_back(f"r{yard.runs}") == RunState.ROLLED_BACK
    assert seen(yard) == before
    with yard.kvm1.world() as world:
        assert world.faults[0].times == 0 or (call, confirm) == ("note", "auto")


def kept(yard: Yard, text: str) -> None:
    """Carry the operations out, and let a later one fail, so that all stays as it is then."""
    yard.kvm1.fail("pause", error="error")
    assert yard.run(f"on_failure: keep\n{text}{LAST}") == RunState.KEPT


def test_an_undo_without_a_copy_says_so_before_it_touches_anything(yard: Yard) -> None:
    kept(yard, resize(ALL))
    (copy,) = [v.name for v in yard.kvm1.volumes() if ".data." in v.name and v.name not in web(yard).volumes]
    yard.kvm1.delete_volume(copy)
    before = seen(yard)
    assert yard.roll_back(f"r{yard.runs}") == RunState.ROLLBACK_INCOMPLETE
    assert seen(yard) == before
    error = yard.journal.step(f"r{yard.runs}", "grow.web").undo_error
    assert error is not None
    assert error["brief"] == "cannot give web its earlier size: the copy of disk data is gone"


# Confirm and revert


def test_a_resize_that_is_to_be_confirmed_keeps_what_was(yard: Yard) -> None:
    assert yard.run(resize(ALL, "manual")) == RunState.SUCCEEDED
    assert (web(yard).state, web(yard).power) == (State.RESIZED, State.RUNNING)
    note = json.loads(web(yard).notes[Note.RESIZED])
    assert note["was"] == "running"
    assert note["sizes"] == {"vcpus": 2, "memory": 64 * MIB, "max_vcpus": 4, "max_memory": 128 * MIB}
    there = {volume.name: volume.format for volume in yard.kvm1.volumes()}
    assert [there[copy] for copy in note["volumes"]] == ["qcow2", "qcow2", "raw"]


def test_a_confirmed_resize_leaves_nothing_behind(yard: Yard) -> None:
    volumes = len(yard.kvm1.volumes())
    for _ in range(2):
        assert yard.run(resize(ALL, "manual") + CONFIRM) == RunState.SUCCEEDED
        assert (web(yard).state, web(yard).vcpus, web(yard).notes) == (State.RUNNING, 1, {})
        assert len(yard.kvm1.volumes()) == volumes


@pytest.mark.parametrize("sizes", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("state", ["running", "stopped"])
def test_a_reverted_resize_is_as_if_it_had_never_been(tmp_path: Path, state: str, sizes: str) -> None:
    yard = launched(Yard(tmp_path), state)
    before = seen(yard)
    assert yard.run(resize(sizes, "manual", state)) == RunState.SUCCEEDED
    for name in ("root", "data", "plain"):
        volume = next(item for item in web(yard).volumes if f".{name}." in item)
        if f"{name}:" in sizes:
            yard.kvm1.write_disk(volume, b"written since")
    assert yard.run(later(REVERT, state)) == RunState.SUCCEEDED
    assert seen(yard) == before


def later(operations: str, state: str = "running") -> str:
    return PLAN.replace("  web:\n", f"  web:\n    state: {state}\n") + "operations:\n" + operations


@pytest.mark.parametrize("operations", [CONFIRM, REVERT], ids=["confirm", "revert"])
@pytest.mark.parametrize("sizes", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("state", ["running", "stopped"])
def test_a_rollback_makes_it_resized_again(tmp_path: Path, state: str, sizes: str, operations: str) -> None:
    yard = launched(Yard(tmp_path), state)
    assert yard.run(resize(sizes, "manual", state)) == RunState.SUCCEEDED
    before = seen(yard)
    yard.kvm1.fail("pause", error="error")
    assert yard.run(later(operations, state) + LAST) == RunState.ROLLED_BACK
    assert seen(yard) == before
    assert yard.run(later(REVERT, state)) == RunState.SUCCEEDED
    assert web(yard).sizes == START


@pytest.mark.parametrize("last", [CONFIRM, REVERT], ids=["confirm", "revert"])
def test_both_steps_of_one_run_are_undone(yard: Yard, last: str) -> None:
    before = seen(yard)
    yard.kvm1.fail("pause", error="error")
    assert yard.run(resize(ALL, "manual") + last + LAST) == RunState.ROLLED_BACK
    assert seen(yard) == before


@pytest.mark.parametrize("at", ["before", "after"])
@pytest.mark.parametrize("call", [
    "request_shutdown", "wait_state", "replace_disk", "resize", "start", "note", "volumes",
])  # fmt: skip
def test_whatever_call_of_a_revert_fails_it_is_resized_still(yard: Yard, call: str, at: Any) -> None:
    assert yard.run(resize(ALL, "manual")) == RunState.SUCCEEDED
    before = seen(yard)
    prepared = yard.prepare(later(REVERT))
    yard.kvm1.fail(call, error="error", at=at)
    assert yard.carry_out(prepared) == RunState.ROLLED_BACK
    assert seen(yard) == before


@pytest.mark.parametrize("at", ["before", "after"])
@pytest.mark.parametrize("call", ["replace_disk", "resize", "start", "note"])
def test_an_undo_of_a_revert_that_fails_twice_ends_well(yard: Yard, call: str, at: Any) -> None:
    assert yard.run(resize(ALL, "manual")) == RunState.SUCCEEDED
    before = seen(yard)
    kept(yard, later(REVERT))
    yard.kvm1.fail(call, times=2, at=at)
    assert yard.roll_back(f"r{yard.runs}") == RunState.ROLLED_BACK
    assert seen(yard) == before


def test_a_guest_that_the_new_size_has_stopped_runs_again_when_it_is_reverted(yard: Yard) -> None:
    assert yard.run(resize(REBOOT, "manual")) == RunState.SUCCEEDED
    yard.kvm1.power_off("web")  # as a kernel does that cannot go on
    before = seen(yard)
    yard.kvm1.fail("pause", error="error")
    assert yard.run(later(REVERT) + LAST) == RunState.ROLLED_BACK
    assert seen(yard) == before
    assert yard.run(later(REVERT)) == RunState.SUCCEEDED
    assert (web(yard).state, web(yard).sizes) == (State.RUNNING, START)


def test_only_what_is_resized_is_confirmed_or_reverted(yard: Yard) -> None:
    for operation in (CONFIRM, REVERT):
        with pytest.raises(Refused):
            yard.run(later(operation))


def test_a_resized_instance_is_terminated_with_its_copies(yard: Yard) -> None:
    assert yard.run(resize(ALL, "manual")) == RunState.SUCCEEDED
    assert yard.destroy(PLAN) == RunState.SUCCEEDED
    assert yard.left() == {}


# Killed


def compare(yard: Yard, state: RunState, before: Seen, after: Seen) -> None:
    assert state in (RunState.SUCCEEDED, RunState.ROLLED_BACK, RunState.CANCELLED)
    assert seen(yard) == (after if state == RunState.SUCCEEDED else before)


@pytest.mark.sweep
@pytest.mark.parametrize("forward", [False, True], ids=["back", "forward"])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("text", [
    resize(ALL), resize(ALL, "manual") + CONFIRM, resize(ALL, "manual") + REVERT,
], ids=["auto", "confirmed", "reverted"])  # fmt: skip
def test_killed_at_every_word(tmp_path: Path, text: str, before: bool, forward: bool) -> None:
    good = launched(Yard(tmp_path / "good"))
    assert good.run(text) == RunState.SUCCEEDED
    for number in range(1, 1000):
        yard = launched(Yard(tmp_path / f"{number}"))
        untouched, prepared = seen(yard), yard.prepare(text)
        run = die(yard, prepared, number, before=before)
        if run is None:
            break
        compare(yard, finish(yard, prepared, run, forward=forward), untouched, seen(good))
    assert number > 20


@pytest.mark.sweep
@pytest.mark.parametrize("forward", [False, True], ids=["back", "forward"])
@pytest.mark.parametrize(("call", "at"), [
    *((call, "before") for call in CALLS), *((call, "after") for call in CALLS[1:]), ("export_disks", "during"),
])  # fmt: skip
def test_killed_in_any_call(tmp_path: Path, call: str, at: Any, forward: bool) -> None:
    text, good, yard = resize(ALL), launched(Yard(tmp_path / "good")), launched(Yard(tmp_path / "bad"))
    assert good.run(text) == RunState.SUCCEEDED
    untouched, prepared = seen(yard), yard.prepare(text)
    yard.kvm1.fail(call, kill=True, at=at)
    run = die(yard, prepared, 0, before=True)
    assert run is not None or call == "note"
    if run is not None:
        compare(yard, finish(yard, prepared, run, forward=forward), untouched, seen(good))


def test_a_copy_that_took_a_disks_place_goes_with_the_launch_that_is_undone(tmp_path: Path) -> None:
    yard = Yard(tmp_path)
    text = "on_failure: keep\ninstances:\n  web: {memory: 64 MiB, disks: [1 MiB]}\n"
    fails = "operations: [{action: suspend, instances: [web]}]\n"
    yard.kvm1.fail("suspend", name="web", error="error", times=None)
    assert yard.run(text + fails) == RunState.KEPT
    grown = text.replace("on_failure: keep\n", "").replace("1 MiB", "2 MiB")
    assert yard.run(grown + fails) == RunState.ROLLED_BACK
    assert yard.roll_back("r1") == RunState.ROLLED_BACK
    assert yard.left() == {}
