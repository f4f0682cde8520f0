"""What becomes of a run whose process dies: killed at every word of its journal, and finished in both directions."""

import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import pytest

from drivers.simulated import SimulatedCompute
from flows.actions.action import Finding
from flows.call import RunFacts
from flows.context import RunContext
from flows.executor import ThreadExecutor
from flows.records import run_record, step_records
from flows.recovery import Rule, plan_of, recover, rule_for
from flows.saga import carry_out
from flows.world import World
from planvirt.config import Config, HostConfig, StoreConfig
from planvirt.graph import Step, build_graph
from planvirt.journal.journal import LEASE, Journal
from planvirt.journal.transitions import ENDED, RunState, StepState
from planvirt.load import load_plan
from planvirt.plan import OnFailure, Plan
from tests.flows.dying import Dying, in_child

PLAN = """\
planvirt: 1
name: crash
instances:
  one: {memory: 64 MiB, disks: [1 MiB]}
  two: {memory: 64 MiB, disks: [1 MiB], image: "{{ steps.keep.outputs.image }}"}
  old: {memory: 64 MiB, disks: [1 MiB]}
operations:
  - {id: keep, action: snapshot, instances: [one], with: {upload: {store: local, name: kept}}}
  - {id: halt, action: stop, instances: [one]}
  - {id: wake, action: start, instances: [one]}
  - {id: again, action: reboot, instances: [one], with: {kind: hard}}
  - {id: still, action: pause, instances: [one]}
  - {id: moving, action: unpause, instances: [one]}
  - {id: saved, action: suspend, instances: [one]}
  - {id: restored, action: resume, instances: [one]}
  - {id: shut, action: lock, instances: [one]}
  - {id: open, action: unlock, instances: [one]}
  - {id: gone, action: terminate, instances: [old]}
  - {id: look, action: wait, instances: [one, two], with: {for: running}}
"""
FAILING = PLAN + "  - {id: never, action: stop, instances: [two], with: {grace: 100ms}}\n"


class Lab:
    """A simulated host with one instance on it from before, and a plan for it."""

    def __init__(self, folder: Path, text: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.config = Config(
            home=folder,
            hosts={"sim": HostConfig("sim", driver="simulated", path=folder / "world.json")},
            stores={"local": StoreConfig("local", path=folder / "store")},
            default_host="sim",
            journal_url=f"sqlite:///{folder}/journal.sqlite",
        )
        path = folder / "crash.yaml"
        path.write_text(text)
        self.plan: Plan = load_plan(path, config=self.config, commit="")
        self.compute = SimulatedCompute.in_file("sim", folder / "world.json")
        self.now = 1000.0

    def steps(self) -> list[Step]:
        """The plan's steps; `old` is there already."""
        steps = [step for step in build_graph(self.plan).steps if step.id != "launch.old"]
        kept = {step.id for step in steps}
        return [replace(step, needs=tuple(need for need in step.needs if need in kept)) for step in steps]

    def run(self, journal: Journal, run: str, steps: list[Step]) -> RunState:
        journal.begin(run_record(run, "run", self.plan, {}), step_records("crash", steps))
        with World(self.config) as world:
            context = self._context(journal, run, world, self.plan)
            executor = ThreadExecutor(1)
            state, _ = carry_out(context, steps, {}, OnFailure.ROLLBACK, executor)
            executor.close()
        return state

    def go(self, steps: list[Step], journal: Journal) -> None:
        self.run(journal, "second", steps)

    def back(self, journal: Journal) -> None:
        self.finish(journal, "second", forward=False)

    def finish(self, journal: Journal, run: str, *, forward: bool) -> RunState:
        record = journal.take_over(run, "test", forward=forward)
        with World(self.config) as world:
            context = self._context(journal, run, world, self.plan if forward else None)
            executor = ThreadExecutor(1)
            state, _ = recover(context, record, executor)
            executor.close()
        return state

    def journal(self, kind: type[Journal] = Journal) -> Journal:
        self.now += LEASE + 1  # whoever comes now finds the lease of the one before lapsed
        return kind(self.config.journal_url, clock=lambda: self.now)

    def left(self) -> list[str]:
        with self.compute.world() as world:
            return sorted([*world.instances, *(name for name in world.volumes if not name.startswith("planvirt-"))])

    def images(self) -> list[str]:
        return sorted(
            path.name
            for path in (self.config.home / "store").rglob("*")
            if path.is_file() and path.stat().st_size > 0 and path.suffix != ".lock" and path.name != "lock"
        )

    def _context(self, journal: Journal, run: str, world: World, plan: Plan | None) -> RunContext:
        facts = RunFacts(run, "crash", "", "2026-01-01T00:00:00Z", plan.images if plan else {})
        return RunContext(facts, journal, world, lambda _: None, plan=plan, workers=1, undo_pause=0.0)


def dying(lab: Lab, number: int, before: bool, body: Callable[[Journal], object]) -> bool:
    """Whether the body was killed at that word of its journal."""

    def child() -> None:
        Dying.left, Dying.before = number, before
        with lab.journal(Dying) as journal:
            body(journal)

    killed = in_child(child) == signal.SIGKILL
    lab.now += LEASE + 1
    return killed


@pytest.fixture
def lab(tmp_path: Path) -> Callable[[str, str], Lab]:
    def make(name: str, text: str) -> Lab:
        lab = Lab(tmp_path / name, text)
        with lab.journal() as journal:
            lab.run(journal, "first", [step for step in build_graph(lab.plan).steps if step.id == "launch.old"])
        return lab

    return make


@pytest.mark.parametrize(("state", "finding"), list(product(StepState, Finding)))
def test_there_is_a_rule_for_every_step_that_can_be_caught(state: StepState, finding: Finding) -> None:
    rule = rule_for(state, finding)
    ended = state in (StepState.DONE, StepState.SKIPPED, StepState.COMMITTED)
    assert (rule == Rule.LEAVE) == ended
    assert (rule == Rule.TAKE) == (state == StepState.DOING and finding == Finding.DONE)


def test_a_run_is_resumed_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Lab(tmp_path / "plans", PLAN)
    monkeypatch.chdir(tmp_path / "plans")
    record = run_record("run", "run", load_plan(Path("crash.yaml"), config=place.config, commit=""), {})
    monkeypatch.chdir("/")
    assert plan_of(record, place.config, as_recorded=False).name == "crash"


@pytest.mark.sweep
@pytest.mark.parametrize("forward", [False, True], ids=["back", "forward"])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_killed_at_every_word_of_a_run(
    lab: Callable[[str, str], Lab], before: bool, forward: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    number, wrong, leaks = 0, 0, 0
    while True:
        number += 1
        place = lab(f"{number}", PLAN)
        untouched = place.left()
        steps = place.steps()
        if not dying(place, number, before, partial(place.go, steps)):
            break
        with place.journal() as journal:
            if not journal.runs() or journal.runs()[0].id != "second":
                assert place.left() == untouched
                continue
            if journal.run("second").state not in ENDED:
                place.finish(journal, "second", forward=forward)
            state = journal.run("second").state
            assert journal.claims() == ()
        there = {name for name in place.left() if not name.endswith(".planvirt")}
        if state == RunState.SUCCEEDED:
            wrong += there != {"one", "two"}
            leaks += len([name for name in place.left() if name.endswith(".planvirt")]) != 2
        else:
            assert state in (RunState.ROLLED_BACK, RunState.CANCELLED)
            wrong += there != {"old"}
            leaks += place.left() != untouched
            leaks += bool([name for name in place.images() if name.endswith(".json")])
        found = place.compute.instance("one" if state == RunState.SUCCEEDED else "old")
        wrong += found is None or found.state != "running"
    with capsys.disabled():
        print(f" [{number - 1} kills, {leaks} leaks, {wrong} wrong states]", end="")
    assert number > 40
    assert (leaks, wrong) == (0, 0)


@pytest.mark.sweep
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_killed_at_every_word_of_a_rollback(
    lab: Callable[[str, str], Lab], before: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    number = 0
    while True:
        number += 1
        place = lab(f"{number}", FAILING)
        untouched = place.left()
        with place.compute.world() as world:
            world.guests["two"] = {"ignores_shutdown": True}
        steps = place.steps()
        if not dying(place, number, before, partial(place.go, steps)):
            break
        with place.journal() as journal:
            if journal.runs()[0].id != "second":
                continue
            if journal.run("second").state not in ENDED:
                place.finish(journal, "second", forward=False)
            assert journal.run("second").state in (RunState.ROLLED_BACK, RunState.CANCELLED)
            assert journal.claims() == ()
        assert place.left() == untouched, number
        assert not [name for name in place.images() if name.endswith(".json")]
    with capsys.disabled():
        print(f" [{number - 1} kills]", end="")
    assert number > 60


@pytest.mark.sweep
def test_killed_at_every_word_of_a_recovery(lab: Callable[[str, str], Lab]) -> None:
    number = 0
    while True:
        number += 1
        place = lab(f"{number}", PLAN)
        untouched = place.left()
        steps = place.steps()
        assert dying(place, 35, True, partial(place.go, steps))
        if not dying(place, number, False, place.back):
            break
        with place.journal() as journal:
            if journal.run("second").state not in ENDED:
                place.finish(journal, "second", forward=False)
            assert journal.run("second").state == RunState.ROLLED_BACK
            assert journal.claims() == ()
        assert place.left() == untouched, number
    assert number > 20


def test_a_run_that_committed_only_goes_forward(lab: Callable[[str, str], Lab]) -> None:
    place = lab("commit", PLAN)
    place.compute.fail("delete_set_aside", name="old", times=3, error="error")
    with place.journal() as journal:
        assert place.run(journal, "second", place.steps()) == RunState.COMMITTING
        journal.let_go("second")
    with place.journal() as journal:
        assert place.finish(journal, "second", forward=False) == RunState.SUCCEEDED
    assert not [name for name in place.left() if "old" in name]
