"""rescue and unrescue: an instance boots from another image for a time, and all is as before when that fails."""

from pathlib import Path

import pytest

from drivers.simulated import Fault
from flows.preview import Refused
from planvirt.journal.transitions import RunState
from planvirt.states import Note, State
from tests.flows.aftermath import contents, killed_everywhere, made, picture, with_faults
from tests.flows.yard import Yard

PLAN = """\
images:
  base: {source: ./base.raw, format: raw}
  other: {source: ./other.raw, format: raw}
instances:
  web: {image: base, memory: 64 MiB, disks: [1 MiB, {name: data, size: 1 MiB}]}
  bad: {memory: 64 MiB, disks: [1 MiB]}
"""
RESCUE = PLAN + "operations:\n  - {id: help, action: rescue, instances: [web], with: {image: other}}\n"
UNRESCUE = PLAN + "operations:\n  - {id: well, action: unrescue, instances: [web]}\n"
BOTH = RESCUE + "  - {id: well, action: unrescue, instances: [web]}\n"
FAIL = "  - {id: fail, action: exec, instances: [bad], with: {command: [broken]}}\n"


def broken(yard: Yard) -> None:
    """Have every run fail that ends with FAIL."""
    with yard.kvm1.world() as world:
        world.guests["bad"] = {"programs": {"broken": {"exit_code": 1}}}


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return made(tmp_path / "yard", PLAN, broken)


@pytest.fixture
def rescued(yard: Yard) -> Yard:
    assert yard.run(RESCUE) == RunState.SUCCEEDED
    return yard


def test_a_rescued_instance_runs_from_a_disk_of_the_image(yard: Yard) -> None:
    assert yard.run(RESCUE) == RunState.SUCCEEDED
    found = yard.kvm1.instance("web")
    assert found is not None
    assert (found.state, found.power) == (State.RESCUED, State.RUNNING)
    assert contents(yard, "web") == {"root": b"base", "data": b"", "rescue": b"other"}
    assert picture(yard)[f"volume {yard.volume('web', 'rescue')} on kvm1"]["capacity"] == 2 << 20


def test_a_stopped_instance_is_rescued_running(yard: Yard) -> None:
    yard.kvm1.power_off("web")
    assert yard.run(RESCUE.replace("image: base", "state: stopped, image: base")) == RunState.SUCCEEDED
    found = yard.kvm1.instance("web")
    assert found is not None and (found.state, found.power) == (State.RESCUED, State.RUNNING)


def test_a_console_is_waited_for_that_a_rescued_instance_writes_late(yard: Yard) -> None:
    with yard.kvm1.world() as world:
        world.guests["web"] = {"boot_seconds": 0.5, "console": "rescued"}
    wait = "  - {id: up, action: wait, instances: [web], with: {console: rescued}}\n"
    assert yard.run(RESCUE + wait) == RunState.SUCCEEDED


def test_what_is_rescued_is_not_rescued_again(rescued: Yard) -> None:
    with pytest.raises(Refused) as refused:
        rescued.run(RESCUE)
    assert "web will be rescued" in refused.value.details


def test_an_unrescued_instance_runs_from_its_own_disk_and_the_other_one_is_gone(rescued: Yard) -> None:
    assert rescued.run(UNRESCUE) == RunState.SUCCEEDED
    found = rescued.kvm1.instance("web")
    assert found is not None and (found.state, found.notes) == (State.RUNNING, {})
    assert rescued.left()["kvm1"].count("shop.web.rescue") == 0
    assert contents(rescued, "web") == {"root": b"base", "data": b""}


def test_both_in_one_run_leave_nothing(yard: Yard) -> None:
    before = picture(yard)
    assert yard.run(BOTH) == RunState.SUCCEEDED
    assert picture(yard) == before


def test_an_instance_that_has_a_disk_of_that_name_is_refused(tmp_path: Path) -> None:
    plan = PLAN.replace("name: data", "name: rescue")
    yard = made(tmp_path / "yard", plan)
    before = picture(yard)
    assert yard.run(RESCUE.replace("name: data", "name: rescue")) == RunState.ROLLED_BACK
    assert picture(yard) == before
    error = yard.journal.step("r2", "help.web").error
    assert error is not None and error["brief"] == "cannot rescue web: it has a disk named rescue"


def test_a_guest_that_does_not_shut_down_is_left_alone_where_force_is_not_allowed(yard: Yard) -> None:
    with yard.kvm1.world() as world:
        world.guests["web"] = {"ignores_shutdown": True}
    before, starts = picture(yard), yard.kvm1.events().count("start web")
    gentle = RESCUE.replace("image: other}", "image: other, grace: 100ms, force: false}")
    assert yard.run(gentle) == RunState.ROLLED_BACK
    assert picture(yard) == before
    assert yard.kvm1.events().count("start web") == starts
    assert "power_off web" not in yard.kvm1.events()


def test_a_terminated_instance_takes_its_rescue_disk_along(rescued: Yard) -> None:
    assert rescued.destroy(PLAN) == RunState.SUCCEEDED
    assert picture(rescued) == {}


def test_a_terminated_instance_comes_back_rescued_and_running(rescued: Yard) -> None:
    before = picture(rescued)
    text = PLAN + "operations:\n  - {id: gone, action: terminate, instances: [web]}\n" + FAIL
    assert rescued.run(text) == RunState.ROLLED_BACK
    assert picture(rescued) == before


@pytest.mark.parametrize("text", [RESCUE + FAIL, BOTH + FAIL], ids=["rescue", "both"])
@pytest.mark.parametrize("state", [State.RUNNING, State.STOPPED])
def test_a_later_failure_brings_all_back(yard: Yard, text: str, state: State) -> None:
    if state == State.STOPPED:
        yard.kvm1.power_off("web")
        text = text.replace("image: base", "state: stopped, image: base")
    before = picture(yard)
    assert yard.run(text) == RunState.ROLLED_BACK
    assert picture(yard) == before


@pytest.mark.parametrize("power", [State.RUNNING, State.STOPPED])
def test_a_later_failure_brings_the_rescue_back(rescued: Yard, power: State) -> None:
    if power == State.STOPPED:
        rescued.kvm1.power_off("web")
    before = picture(rescued)
    assert rescued.run(UNRESCUE + FAIL) == RunState.ROLLED_BACK
    assert picture(rescued) == before


@pytest.mark.sweep
@pytest.mark.parametrize("at", ["before", "after"])
def test_a_fault_at_any_call_of_a_rescue_leaves_all_as_before(yard: Yard, at: str) -> None:
    before, good = picture(yard), 0
    for trial in with_faults(yard, RESCUE, at=at):  # type: ignore[arg-type] # one of two words
        found = trial.yard.kvm1.instance("web")
        if trial.state == RunState.SUCCEEDED:
            good += 1
            assert found is not None and found.state == State.RESCUED
        else:
            assert (trial.state, picture(trial.yard)) == (RunState.ROLLED_BACK, before), trial.where
    assert good == 1


@pytest.mark.sweep
@pytest.mark.parametrize("at", ["before", "after"])
def test_a_fault_at_any_call_of_an_unrescue_leaves_all_as_before(rescued: Yard, at: str) -> None:
    before = picture(rescued)
    for trial in with_faults(rescued, UNRESCUE, at=at):  # type: ignore[arg-type] # one of two words
        if trial.state == RunState.SUCCEEDED:
            assert "shop.web.rescue" not in trial.yard.left()["kvm1"]
        else:
            assert (trial.state, picture(trial.yard)) == (RunState.ROLLED_BACK, before), trial.where


@pytest.mark.sweep
def test_an_undo_that_fails_twice_succeeds_in_the_end(yard: Yard) -> None:
    before = picture(yard)
    for trial in with_faults(yard, BOTH + FAIL, times=2):
        assert (trial.state, picture(trial.yard)) == (RunState.ROLLED_BACK, before), trial.where


@pytest.mark.sweep
def test_a_passing_fault_is_passed(yard: Yard) -> None:
    text = BOTH.replace("instances: [web]", "instances: [web], retry: {attempts: 2, delay: 1ms}")
    before = picture(yard)
    for trial in with_faults(yard, text, error="transient", at="after"):
        assert (trial.state, picture(trial.yard)) == (RunState.SUCCEEDED, before), trial.where


def test_what_an_undo_cannot_undo_is_named(yard: Yard) -> None:
    from flows.rollback import leftovers

    with yard.kvm1.world() as world:
        world.faults.append(Fault("unrescue", "web", None, "error"))
    assert yard.run(RESCUE + FAIL) == RunState.ROLLBACK_INCOMPLETE
    volume = yard.volume("web", "rescue")
    assert leftovers(RunState.ROLLBACK_INCOMPLETE, yard.journal.steps("r2")) == [f"volume {volume} on kvm1"]


@pytest.mark.sweep
@pytest.mark.parametrize("forward", [False, True], ids=["back", "forward"])
@pytest.mark.parametrize("before_it", [True, False], ids=["before", "after"])
def test_killed_at_every_word(rescued: Yard, before_it: bool, forward: bool) -> None:
    text = UNRESCUE + "  - {id: help, action: rescue, instances: [web], with: {image: other}}\n"
    before = picture(rescued)
    for trial in killed_everywhere(rescued, text, before=before_it, forward=forward):
        found = trial.yard.kvm1.instance("web")
        assert found is not None and Note.RESCUED in found.notes and found.power == State.RUNNING, trial.where
        if trial.state == RunState.SUCCEEDED:
            assert trial.yard.left()["kvm1"].count("shop.web.rescue") == 1, trial.where
        else:
            assert picture(trial.yard) == before, trial.where
