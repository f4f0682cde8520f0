"""The saga: what is done, what is undone and in which order, and what is left afterwards."""

import threading
import time
from pathlib import Path

import pytest

from drivers.simulated import Fault
from flows.actions import ACTIONS
from flows.call import Call, RunFacts
from flows.context import Event
from flows.executor import ThreadExecutor, Work
from flows.step import Locked
from flows.walk import walk
from flows.world import World
from planvirt.deadline import Deadline, DeadlinePassed
from planvirt.journal.transitions import RunState, StepState
from planvirt.plan import Deferred, OnFailure
from planvirt.states import Note, State
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
    ("launch:a pause:a(launch:a) launch:b(pause:a)!", _BACK,
     "launch:a:done pause:a:done launch:b:failed launch:b:undone pause:a:undone launch:a:undone"),
    ("launch:a suspend:a(launch:a)!2 resume:a(suspend:a)", _GOOD,
     "launch:a:done suspend:a:failed suspend:a:failed suspend:a:done resume:a:done"),
    ("launch:a suspend:a(launch:a)~ launch:b(suspend:a)!", _STUCK,
     "launch:a:done suspend:a:done launch:b:failed launch:b:undone "
     "suspend:a:undo-failed suspend:a:undo-failed suspend:a:undo-failed launch:a:undone"),
    ("launch:a sleep:a(launch:a)", _GOOD, "launch:a:done sleep:a:done"),
    # a lock made in the run is undone before what it would forbid
    ("launch:a lock:a(launch:a) stop:a(lock:a)", _BACK,
     "launch:a:done lock:a:done stop:a:failed stop:a:undone lock:a:undone launch:a:undone"),
    ("launch:a lock:a(launch:a) unlock:a(lock:a) stop:a(unlock:a)", _GOOD,
     "launch:a:done lock:a:done unlock:a:done stop:a:done"),
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


def test_nothing_begins_after_an_error(saga: Saga) -> None:
    assert saga.run("launch:a! launch:b launch:c launch:d") == (_BACK, "launch:a:failed launch:a:undone")


def test_what_runs_beside_a_failing_step_finishes_and_is_undone(saga: Saga) -> None:
    saga.compute.fail("define", name="a", error="error", hang=0.5)
    state, events = saga.run("launch:a launch:b launch:c", workers=2)
    assert state == _BACK
    assert {"launch:b:done", "launch:b:undone", "launch:a:undone"} <= set(events.split())
    assert saga.left() == []


def test_an_undo_restores_what_was_before_the_first_attempt(saga: Saga) -> None:
    saga.run("launch:a launch:b stop:b(launch:b)")
    saga.compute.fail("request_shutdown", name="a", times=1, at="after")
    saga.compute.fail("start", name="b", times=1, at="after")
    state, events = saga.run("stop:a start:b launch:c(stop:a,start:b)!")
    assert state == _BACK
    assert "stop:a:failed" in events
    assert "start:b:failed" in events
    states = [found.state for name in ("a", "b") if (found := saga.compute.instance(name))]
    assert states == [State.RUNNING, State.STOPPED]


@pytest.mark.parametrize("steps", [
    "pause:a", "pause:a unpause:a(pause:a)", "suspend:a", "suspend:a resume:a(suspend:a)", "lock:a",
    "lock:a unlock:a(lock:a)", "lock:a unlock:a(lock:a) suspend:a(unlock:a) lock:b", "sleep:a",
])  # fmt: skip
def test_what_was_running_and_open_is_so_again(saga: Saga, steps: str) -> None:
    saga.run("launch:a launch:b")
    before = saga.compute.instance("a"), saga.compute.instance("b")
    last = steps.split()[-1].partition("(")[0]
    assert saga.run(f"{steps} launch:c({last})!")[0] == _BACK
    assert (saga.compute.instance("a"), saga.compute.instance("b")) == before


@pytest.mark.parametrize(("before", "steps"), [
    ("pause:a", "unpause:a"), ("suspend:a", "resume:a"), ("lock:a", "unlock:a"), ("lock:a", "lock:a"),
    ("lock:a", "unlock:a stop:a(unlock:a)"), ("pause:a", "lock:a"),
])  # fmt: skip
def test_what_was_not_running_or_locked_is_so_again(saga: Saga, before: str, steps: str) -> None:
    saga.run(f"launch:a {before}(launch:a)")
    found = saga.compute.instance("a")
    last = steps.split()[-1].partition("(")[0]
    assert saga.run(f"{steps} launch:c({last})!")[0] == _BACK
    assert saga.compute.instance("a") == found


@pytest.mark.parametrize("verb", ["pause", "suspend", "lock"])
def test_an_undo_reverts_an_effect_that_was_never_told(saga: Saga, verb: str) -> None:
    saga.run("launch:a")
    before = saga.compute.instance("a")
    call, times = ("note", 3) if verb == "lock" else (verb, None)
    saga.compute.fail(call, name="a", times=times, error="transient", at="after")
    assert saga.run(f"{verb}:a")[0] == _BACK
    assert saga.compute.instance("a") == before


def test_a_paused_guest_that_was_resumed_is_suspended_as_it_was(saga: Saga) -> None:
    saga.run("launch:a")
    saga.compute.pause("a")
    saga.compute.suspend("a", Deadline())
    saga.run("resume:a launch:c(resume:a)!")
    found = saga.compute.instance("a")
    assert found is not None and found.state == State.SUSPENDED
    assert saga.run("resume:a")[0] == _GOOD
    found = saga.compute.instance("a")
    assert found is not None and found.state == State.PAUSED


def test_a_lock_that_came_after_the_preview_is_respected(saga: Saga) -> None:
    saga.run("launch:a")
    saga.compute.note("a", Note.LOCKED, "")
    before = saga.compute.events()
    assert saga.run("terminate:a") == (_BACK, "terminate:a:failed terminate:a:undone")
    assert saga.compute.events() == before
    assert isinstance(saga.error, Locked)


def test_an_interruption_ends_a_sleep(saga: Saga) -> None:
    saga.run("launch:a")
    interrupted = threading.Event()
    deadline = Deadline(60.0, interrupted=interrupted)
    threading.Timer(0.1, interrupted.set).start()
    with World(saga.config) as world:
        call = Call(
            RunFacts("r", "saga", "", ""), "sleep.a", "a", "", "sim", {"for": 60.0}, world, deadline, {},
            record=lambda _phase, _undo: None, log=lambda _: None,
        )  # fmt: skip
        with pytest.raises(DeadlinePassed):
            ACTIONS["sleep"].do(call)


def test_a_listener_that_breaks_does_not_end_the_run(saga: Saga) -> None:
    def breaks(_: Event) -> None:
        raise BrokenPipeError

    saga.listen = breaks
    assert saga.run("launch:a launch:b(launch:a)")[0] == _GOOD


def test_a_condition_that_does_not_hold_is_not_forgotten_after_a_failure(saga: Saga) -> None:
    saga.run("launch:a")
    saga.compute.fail("addresses", name="a", times=1)
    never = Deferred("{{ instances.a.address == 'never' }}", ("instances.a",), 1, 1)
    state, events = saga.run("terminate:a", when=never)
    assert (state, events) == (_GOOD, "terminate:a:failed terminate:a:skipped")
    assert saga.compute.instance("a") is not None


def test_an_error_does_not_repeat_a_secret(saga: Saga) -> None:
    saga.redact.learn("hunter2-swordfish")
    with saga.compute.world() as world:
        world.faults.append(Fault("define", "a", None, "error", details="the call had token=hunter2-swordfish in it"))
    saga.run("launch:a")
    assert saga.error is not None
    assert "token=***" in saga.error.details
    journal = [path for path in saga.config.home.iterdir() if path.name.startswith("journal")]
    assert journal
    assert not [path for path in journal if b"hunter2" in path.read_bytes()]


def test_a_commit_that_fails_keeps_its_error_and_can_be_finished(saga: Saga) -> None:
    saga.run("launch:a")
    saga.compute.fail("delete_set_aside", name="a", times=None, error="error")
    state, _ = saga.run("terminate:a")
    assert state == RunState.COMMITTING
    assert saga.error is not None
    assert "planvirt rollback run-2" in saga.error.resolution
    record = saga.journal.run("run-2")
    assert record.error is not None
    assert record.error["brief"] == saga.error.brief


def test_an_abandoned_rollback_names_what_is_left(saga: Saga) -> None:
    from flows.rollback import leftovers

    saga.abandon = True
    state, _ = saga.run("launch:a launch:b(launch:a)!")
    assert state == _STUCK
    assert "instance a on sim" in leftovers(state, saga.journal.steps("run-1"))


def test_a_lock_holds_against_an_undo(saga: Saga) -> None:
    saga.run("launch:a launch:b(launch:a)!", on_failure=OnFailure.KEEP)
    saga.compute.note("a", Note.LOCKED, "")
    assert saga.roll_back("run-1") == _STUCK
    assert saga.compute.instance("a") is not None
    saga.compute.note("a", Note.LOCKED, None)
    assert saga.roll_back("run-1") == _BACK
    assert saga.left() == []


@pytest.mark.real
def test_what_took_effect_after_its_time_is_not_done_again(saga: Saga) -> None:
    saga.run("launch:a stop:a(launch:a)")
    saga.compute.fail("start", name="a", hang=6.5, at="after")
    assert saga.run("start:a", timeout=0.5) == (_GOOD, "start:a:failed start:a:done")
    assert [line.why for line in saga.journal.transitions("run-2")].count("start") == 1


def test_a_large_graph_is_walked_quickly() -> None:
    layer = 400
    order = [f"{row}.{column}" for row in range(3) for column in range(layer)]
    needs = {key: [f"{int(key[0]) - 1}.{column}" for column in range(layer)] if key[0] != "0" else [] for key in order}
    executor = ThreadExecutor(1)
    began = time.process_time()
    ended = walk(order, needs, lambda key: Work(key, key, lambda _: None), executor, on_error="stop", workers=8)
    executor.close()
    assert list(ended) and set(ended) == set(order)
    assert time.process_time() - began < 5  # it was forty times as much when every look went through all edges


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
    names = leftovers(_STUCK, saga.journal.steps("run-1"))
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
