"""What a run would do, decided from the plan and from what is there."""

from pathlib import Path

import pytest

from planvirt.journal.transitions import RunState
from planvirt.states import State
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
