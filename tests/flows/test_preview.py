"""What a run would do, decided from the plan and from what is there."""

from pathlib import Path

import pytest

from flows.preview import Refused
from planvirt.deadline import Deadline
from planvirt.journal.records import RunRecord, StepRecord
from planvirt.journal.transitions import RunState
from planvirt.mark import instance_uuid
from planvirt.states import Note, State
from tests.flows.yard import Yard

INSTANCE = "instances:\n  w: {memory: 64 MiB, disks: [1 MiB]}\n"


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return Yard(tmp_path)


@pytest.mark.parametrize(("operations", "steps"), [
    ("[{action: stop, instances: [w]}, {action: start, instances: [w]}]", ["declared-start.w", "stop.w", "start.w"]),
    ("[{action: stop, instances: [w]}]", ["start.w", "stop.w"]),
    ("[{action: stop, instances: [w]}, {id: declared-start, action: start, instances: [w]}]",
     ["start.w", "stop.w", "declared-start.w"]),
    ("[{action: launch, instances: [w]}, {action: stop, instances: [w]}, {action: start, instances: [w]}]",
     ["declared-start.w", "stop.w", "start.w"]),
    ("[{action: stop, instances: [w]}, {action: start, instances: [w]},"
     " {id: declared-start, action: wait, instances: [w], with: {for: running}}]",
     ["declared-declared-start.w", "stop.w", "start.w", "declared-start.w"]),
])  # fmt: skip
def test_a_step_that_is_decided_anew_gets_an_id_of_its_own(yard: Yard, operations: str, steps: list[str]) -> None:
    yard.run(INSTANCE)
    yard.kvm1.power_off("w")
    text = f"{INSTANCE}operations: {operations}\n"
    preview = yard.preview(text)
    assert preview.conflicts == ()
    assert [step.id for step in preview.steps] == steps
    assert preview.steps[1].needs == (steps[0],)
    assert yard.run(text) == RunState.SUCCEEDED


def test_a_run_makes_what_is_declared_so_and_then_finds_it(yard: Yard) -> None:
    assert [change.step for change in yard.preview(INSTANCE).changes] == ["launch.w"]
    assert yard.run(INSTANCE) == RunState.SUCCEEDED
    found = yard.kvm1.instance("w")
    assert found is not None and found.state == State.RUNNING
    assert yard.preview(INSTANCE).changes == ()


def test_an_instance_that_somebody_renamed_is_not_made_a_second_time(yard: Yard) -> None:
    yard.run(INSTANCE)
    with yard.kvm1.world() as world:
        world.instances["other"] = world.instances.pop("w")
    told = ("w: on host kvm1 it bears the name other; rename it back",)
    assert yard.preview(INSTANCE).conflicts == told
    assert yard.preview(INSTANCE, destroy=True).conflicts[0] == told[0]


def _put(yard: Yard, state: State) -> None:
    """Bring the instance w into a state, as somebody else may have done."""
    if state == State.PAUSED:
        yard.kvm1.pause("w")
    if state == State.SUSPENDED:
        yard.kvm1.suspend("w", Deadline())
    if state == State.STOPPED:
        yard.kvm1.power_off("w")


def _state(yard: Yard) -> State:
    found = yard.kvm1.instance("w")
    return State.ABSENT if found is None else found.state


@pytest.mark.parametrize(("state", "verb"), [
    (State.STOPPED, "start"), (State.PAUSED, "unpause"), (State.SUSPENDED, "resume"),
])  # fmt: skip
def test_what_is_declared_running_is_brought_there_once(yard: Yard, state: State, verb: str) -> None:
    yard.run(INSTANCE)
    for operations, steps in (
        ("", [f"{verb}.w"]),
        (f"operations: [{{action: {verb}, instances: [w]}}]\n", [f"{verb}.w"]),
        ("operations: [{action: pause, instances: [w]}, {action: unpause, instances: [w]}]\n",
         [f"{'declared-' if verb == 'unpause' else ''}{verb}.w", "pause.w", "unpause.w"]),
    ):  # fmt: skip
        _put(yard, state)
        assert [change.step for change in yard.preview(INSTANCE + operations).changes] == steps
        assert yard.run(INSTANCE + operations) == RunState.SUCCEEDED
        assert _state(yard) == State.RUNNING


@pytest.mark.parametrize("state", [State.PAUSED, State.SUSPENDED])
def test_the_memory_of_what_is_declared_stopped_is_not_given_up(yard: Yard, state: State) -> None:
    yard.run(INSTANCE)
    _put(yard, state)
    conflicts = yard.preview(INSTANCE.replace("memory", "state: stopped, memory")).conflicts
    assert conflicts == (f"w: it is {state}, declared stopped; bring it there by hand",)


def test_nobody_knows_before_whether_a_resumed_guest_was_paused(yard: Yard) -> None:
    yard.run(INSTANCE)
    yard.kvm1.pause("w")
    yard.kvm1.suspend("w", Deadline())
    text = INSTANCE + "operations: [{action: resume, instances: [w]}, {action: unpause, instances: [w]}]\n"
    assert yard.run(text) == RunState.SUCCEEDED
    assert _state(yard) == State.RUNNING
    text = INSTANCE + "operations: [{action: suspend, instances: [w]}, {action: resume, instances: [w]}, %s]\n"
    assert yard.preview(text % "{action: unpause, instances: [w]}").conflicts == (
        "unpause.w: w will be running; unpause is allowed in: paused",
    )


@pytest.mark.parametrize(("verb", "state"), [
    ("start", State.STOPPED), ("stop", State.RUNNING), ("reboot", State.RUNNING), ("pause", State.RUNNING),
    ("unpause", State.PAUSED), ("suspend", State.RUNNING), ("resume", State.SUSPENDED), ("terminate", State.RUNNING),
])  # fmt: skip
def test_a_locked_instance_refuses_what_changes_it_until_it_is_unlocked(yard: Yard, verb: str, state: State) -> None:
    yard.run(INSTANCE)
    _put(yard, state)
    yard.kvm1.note("w", Note.LOCKED, "")
    before = yard.kvm1.instance("w")
    text = INSTANCE + f"operations: [{{action: {verb}, instances: [w]}}]\n"
    locked = (f"{verb}.w: w is locked; unlock it first, by an operation 'unlock'",)
    assert yard.preview(text).conflicts == locked
    with pytest.raises(Refused, match="w is locked"):
        yard.run(text)
    assert yard.kvm1.instance("w") == before
    opened = text.replace("[{", "[{action: unlock, instances: [w]}, {", 1)
    if state == State.RUNNING:
        assert yard.preview(opened).conflicts == ()
        assert yard.run(opened) == RunState.SUCCEEDED


def test_what_is_declared_does_not_open_a_lock(yard: Yard) -> None:
    yard.run(INSTANCE)
    yard.kvm1.note("w", Note.LOCKED, "")
    for text, step in (("state: stopped, memory", "stop.w"), ("state: absent, memory", "terminate.w")):
        declared = INSTANCE.replace("memory", text)
        assert yard.preview(declared).conflicts == (f"{step}: w is locked; unlock it first, by an operation 'unlock'",)
    assert yard.preview(INSTANCE).changes == ()


def test_a_locked_instance_is_not_destroyed(yard: Yard) -> None:
    yard.run(INSTANCE + "operations: [{action: lock, instances: [w]}]\n")
    before = yard.left()
    with pytest.raises(Refused, match=r"terminate\.w: w is locked"):
        yard.destroy(INSTANCE)
    assert yard.left() == before
    assert yard.run(INSTANCE + "operations: [{action: unlock, instances: [w]}]\n") == RunState.SUCCEEDED
    assert yard.destroy(INSTANCE) == RunState.SUCCEEDED


def test_some_verbs_pass_a_lock_on_purpose(yard: Yard) -> None:
    yard.run(INSTANCE)
    text = INSTANCE + (
        "operations:\n"
        "  - {action: lock, instances: [w]}\n"
        "  - {id: again, action: lock, instances: [w]}\n"
        "  - {action: snapshot, instances: [w]}\n"
        "  - {action: wait, instances: [w], with: {for: running}}\n"
        "  - {action: sleep, instances: [w], with: {for: 0s}}\n"
    )
    for _ in range(2):
        assert yard.run(text) == RunState.SUCCEEDED
        found = yard.kvm1.instance("w")
        assert found is not None and found.locked


def test_a_lock_behind_a_condition_is_left_to_the_guard(yard: Yard) -> None:
    yard.run(INSTANCE)
    text = INSTANCE + (
        "operations:\n"
        "  - {action: lock, instances: [w], when: \"{{ instance.name == 'w' }}\"}\n"
        "  - {action: stop, instances: [w]}\n"
    )
    assert yard.preview(text).conflicts == ()
    assert yard.run(text) == RunState.ROLLED_BACK
    found = yard.kvm1.instance("w")
    assert found is not None and (found.state, found.locked) == (State.RUNNING, False)


def test_the_lock_comes_first_and_the_claim_last(yard: Yard) -> None:
    yard.run(INSTANCE)
    yard.kvm1.note("w", Note.LOCKED, "")
    journal = yard.journal
    journal.begin(
        RunRecord("other", "run", "shop", "", "", "", None, {}, "rollback"),
        [StepRecord("stop.w", 0, "stop", "w", instance_uuid("shop", "w"), "kvm1", None, ())],
    )
    conflicts = yard.preview(INSTANCE + "operations: [{action: unpause, instances: [w]}]\n").conflicts
    assert [conflict.split(": ", 1)[1].split(";")[0] for conflict in conflicts[:2]] == [
        "w is locked", "w will be running",
    ]  # fmt: skip
    assert "other" in conflicts[2]
    assert len(conflicts) == 3
