"""The saga: what is done, what is undone and in which order, and what is left afterwards."""

from pathlib import Path

import pytest

from planvirt.journal.transitions import RunState, StepState
from planvirt.plan import OnFailure
from tests.flows.saga_words import Saga

_GOOD = RunState.SUCCEEDED
_BACK = RunState.ROLLED_BACK
_STUCK = RunState.ROLLBACK_INCOMPLETE


@pytest.fixture
def saga(tmp_path: Path) -> Saga:
    return Saga(tmp_path)


@pytest.mark.parametrize(("setup", "state", "events"), [
    ("launch:a", _GOOD, "launch:a:done"),
    ("launch:a stop:a(launch:a)", _GOOD, "launch:a:done stop:a:done"),
    ("launch:a stop:a(launch:a)?", _GOOD, "launch:a:done stop:a:skipped"),
    # the failed step is undone too, and first
    ("launch:a launch:b(launch:a)!", _BACK, "launch:a:done launch:b:failed launch:b:undone launch:a:undone"),
    # nothing after the failed step begins
    ("launch:a! launch:b(launch:a)", _BACK, "launch:a:failed launch:a:undone"),
    # a passing fault is tried again as often as the plan says
    ("launch:a!2", _GOOD, "launch:a:failed launch:a:failed launch:a:done"),
    ("launch:a!3", _BACK, "launch:a:failed launch:a:failed launch:a:failed launch:a:undone"),
    # a failing undo is tried again
    ("launch:a~2 launch:b(launch:a)!", _BACK,
     "launch:a:done launch:b:failed launch:b:undone launch:a:undo-failed launch:a:undo-failed launch:a:undone"),
    # one that fails for good does not stop the others
    ("launch:a launch:b(launch:a)~ launch:c(launch:b)!", _STUCK,
     "launch:a:done launch:b:done launch:c:failed launch:c:undone "
     "launch:b:undo-failed launch:b:undo-failed launch:b:undo-failed launch:a:undone"),
    # a skipped step has nothing to undo, and its order still holds for those around it
    ("launch:a stop:a(launch:a)? launch:b(stop:a)!", _BACK,
     "launch:a:done stop:a:skipped launch:b:failed launch:b:undone launch:a:undone"),
    # what was set aside is deleted at the end, and only then
    ("launch:a terminate:a(launch:a)", _GOOD, "launch:a:done terminate:a:done terminate:a:committed"),
    ("launch:a terminate:a(launch:a) launch:b(terminate:a)!", _BACK,
     "launch:a:done terminate:a:done launch:b:failed launch:b:undone terminate:a:undone launch:a:undone"),
    ("launch:a snapshot:a(launch:a)", _GOOD, "launch:a:done snapshot:a:done"),
    ("launch:a snapshot:a(launch:a)!", _BACK, "launch:a:done snapshot:a:failed snapshot:a:undone launch:a:undone"),
])  # fmt: skip
def test_events(saga: Saga, setup: str, state: RunState, events: str) -> None:
    assert saga.run(setup) == (state, events)


@pytest.mark.parametrize("workers", [1, 8])
def test_a_rollback_leaves_nothing(saga: Saga, workers: int) -> None:
    setup = (
        "launch:a launch:b launch:c(launch:a,launch:b) "
        "snapshot:c(launch:c) stop:a(launch:a) launch:d(snapshot:c,stop:a)!"
    )
    assert saga.run(setup, workers=workers)[0] == _BACK
    assert saga.left() == []
    assert not list((saga.config.home / "store").rglob("*.json"))


def test_independent_branches_both_finish_before_the_rollback(saga: Saga) -> None:
    state, events = saga.run("launch:a! launch:b", workers=2)
    assert state == _BACK
    assert sorted(events.split()) in (
        ["launch:a:failed", "launch:a:undone", "launch:b:done", "launch:b:undone"],
        ["launch:a:failed", "launch:a:undone"],
    )
    assert saga.left() == []


def test_keep_leaves_what_was_done(saga: Saga) -> None:
    state, events = saga.run("launch:a launch:b(launch:a)!", on_failure=OnFailure.KEEP)
    assert (state, events) == (RunState.KEPT, "launch:a:done launch:b:failed")
    assert "a" in saga.left()


def test_the_first_error_is_the_one_reported(saga: Saga) -> None:
    saga.run("launch:a~ launch:b(launch:a)!")
    assert saga.error is not None
    assert "b" in saga.error.brief
    assert saga.journal.run("run-1").error == saga.error.as_dict()


def test_what_could_not_be_undone_is_named(saga: Saga) -> None:
    from flows.rollback import leftovers

    saga.run("launch:a~ launch:b(launch:a)!")
    names = leftovers(saga.journal.steps("run-1"))
    assert names[0] == "instance a on sim"
    assert names[1].startswith("volume saga.a.root.run-1.")


def test_terminate_undone_brings_the_same_instance_back(saga: Saga) -> None:
    saga.run("launch:a")
    before = saga.compute.instance("a")
    saga.run("terminate:a launch:b(terminate:a)!")
    assert saga.compute.instance("a") == before


def test_a_launch_never_removes_what_another_run_made(saga: Saga) -> None:
    saga.run("launch:a")
    state, events = saga.run("launch:a launch:b(launch:a)")
    assert (state, events) == (_BACK, "launch:a:failed launch:a:undone")
    assert saga.compute.instance("a") is not None


def test_a_wrong_state_is_refused_before_anything_is_touched(saga: Saga) -> None:
    saga.run("launch:a")
    before = saga.compute.events()
    saga.run("start:a")
    assert saga.compute.events() == before


def test_every_step_ends_in_a_state_that_says_what_is_true(saga: Saga) -> None:
    saga.run("launch:a launch:b(launch:a)! launch:c(launch:b)")
    states = {step.id: step.state for step in saga.journal.steps("run-1")}
    assert states == {
        "launch:a": StepState.UNDONE,
        "launch:b": StepState.UNDONE,
        "launch:c": StepState.SKIPPED,
    }
    assert saga.journal.claims() == ()
