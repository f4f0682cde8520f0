"""What a step costs: planvirt's saga under Prefect, beside bare Prefect tasks in the same shape, and without Prefect.

Every step waits for a state that its instance is in already, on a simulated host in memory: what is measured is all
that planvirt and Prefect do around a step. The steps stand in rows, one row an instance, each step after the one before
it; eight are on their way at a time. The journal is SQLite on disk.

The baseline is bare Prefect, measured in the same run and against the same server, which has digested one round before
the next begins. Goal: the journal costs at most 1 ms a step.

    python benchmarks/per_step.py [--rows 20] [--length 10] [--rounds 3] [--profile]
"""

import argparse
import cProfile
import json
import os
import pstats
import queue
import statistics
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drivers.compute import Compute
from drivers.simulated import SimulatedCompute
from drivers.simulated.world import Machine
from flows.call import RunFacts
from flows.context import Event, RunContext
from flows.executor import Executor, ThreadExecutor
from flows.records import step_records
from flows.saga import carry_out
from flows.server import ensure_server, server_environment, stop_server
from flows.world import World
from planvirt.config import Config
from planvirt.graph import Step
from planvirt.journal.journal import Journal
from planvirt.journal.records import RunRecord
from planvirt.journal.transitions import RunState, StepState
from planvirt.mark import instance_uuid
from planvirt.plan import Instance, OnFailure, Retry
from planvirt.states import State

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture

PLAN = "benchmark"
WORKERS = 8
GOAL_JOURNAL = 1.0  # ms


@dataclass(frozen=True)
class Shape:
    """How many rows of steps there are, and how long each is."""

    rows: int
    length: int

    @property
    def count(self) -> int:
        """All steps."""
        return self.rows * self.length

    def steps(self) -> list[Step]:
        """The steps of a plan of this shape."""
        return [self._step(row, place) for place in range(self.length) for row in range(self.rows)]

    def _step(self, row: int, place: int) -> Step:
        name = f"vm-{row}"
        return Step(
            id=f"wait-{place}.{name}",
            action="wait",
            instance=Instance(name, "vm", "memory", 1, 64 << 20),
            operation=f"wait-{place}",
            arguments={"for": "running"},
            needs=(f"wait-{place - 1}.{name}",) if place else (),
            when=True,
            retry=Retry(3),
            timeout=60.0,
        )


class MemoryWorld(World):
    """One host, on which everything runs already."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(Config(home=Path()))
        self._compute = SimulatedCompute.in_memory("memory")
        with self._compute.world() as world:
            for name in (f"vm-{row}" for row in range(shape.rows)):
                world.instances[name] = Machine(name, instance_uuid(PLAN, name), state=State.RUNNING)

    def host(self, name: str) -> Compute:  # noqa: ARG002 - there is only one
        """The host."""
        return self._compute


def begin(journal: Journal, steps: list[Step]) -> str:
    """Enter a run with these steps in the journal."""
    run = f"run-{uuid.uuid4()}"
    journal.begin(
        RunRecord(run, "run", PLAN, "benchmark.yaml", "", "hash", None, {}, "rollback"), step_records(PLAN, steps)
    )
    return run


def saga(shape: Shape, journal: Journal, executor: Executor, notify: Callable[[Event], None]) -> float:
    """The seconds that planvirt's saga takes with an executor."""
    steps = shape.steps()
    run = begin(journal, steps)
    with MemoryWorld(shape) as world:
        context = RunContext(RunFacts(run, PLAN, "", "2026-01-01T00:00:00Z"), journal, world, notify)
        began = time.perf_counter()
        state, error = carry_out(context, steps, {}, OnFailure.ROLLBACK, executor)
        took = time.perf_counter() - began
    if state is not RunState.SUCCEEDED:
        raise SystemExit(f"the run ended {state}: {error}")
    return took


def under_threads(shape: Shape, journal: Journal) -> float:
    """The saga without Prefect."""
    executor = ThreadExecutor(WORKERS)
    took = saga(shape, journal, executor, lambda _event: None)
    executor.close()
    return took


def under_prefect(shape: Shape, journal: Journal) -> float:
    """The saga as `planvirt run` carries it out; the flow's own start and end are not counted."""
    from flows.prefect_flow import log_event, run_as_flow

    took: list[float] = []
    flow_runs: list[str] = []

    def body(executor: Executor, flow_run_id: str) -> tuple[RunState, None]:
        flow_runs.append(flow_run_id)
        took.append(saga(shape, journal, executor, log_event))
        return RunState.SUCCEEDED, None

    run_as_flow(
        body,
        name=PLAN,
        run_name=f"{PLAN} {uuid.uuid4()}",
        tags=[f"plan:{PLAN}", "commit:none"],
        workers=WORKERS,
        parameters={"plan": PLAN, "run": "", "commit": "", "inputs": {}},
        glance=lambda: None,
    )
    settle(flow_runs[0], shape.count)
    return took[0]


def bare_prefect(shape: Shape) -> float:
    """The same rows of tasks that do nothing, submitted to Prefect as their predecessors end."""
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE
    from prefect.runtime import flow_run
    from prefect.task_runners import ThreadPoolTaskRunner

    @task(name="nothing", cache_policy=NO_CACHE, persist_result=False)
    def nothing() -> None:
        pass

    took: list[float] = []
    flow_runs: list[str] = []

    def rows() -> None:
        flow_runs.append(str(flow_run.id))
        ended: queue.SimpleQueue[tuple[int, int, PrefectFuture[None]]] = queue.SimpleQueue()

        def submit(row: int, place: int, after: "list[PrefectFuture[None]]") -> None:
            future = nothing.submit(wait_for=after, return_state=False)
            future.add_done_callback(lambda done: ended.put((row, place, done)))

        began = time.perf_counter()
        for row in range(shape.rows):
            submit(row, 0, [])
        for _ in range(shape.count):
            row, place, done = ended.get()
            done.wait()
            if place + 1 < shape.length:
                submit(row, place + 1, [done])
        took.append(time.perf_counter() - began)

    runner: Any = ThreadPoolTaskRunner(max_workers=WORKERS)
    flow(name="bare", task_runner=runner, persist_result=False)(rows)()
    settle(flow_runs[0], shape.count)
    return took[0]


def journal_alone(shape: Shape, journal: Journal) -> float:
    """What the steps write, one after the other: into `doing`, one phase, and into `done`."""
    steps = shape.steps()
    run = begin(journal, steps)
    journal.move_run(run, RunState.RUNNING, "begun")
    began = time.perf_counter()
    for step in steps:
        journal.move_step(run, step.id, StepState.DOING, "attempt 1", arguments=step.arguments)
        journal.phase(run, step.id, "wait for state running", {})
        journal.move_step(run, step.id, StepState.DONE, "done", outputs={})
    took = time.perf_counter() - began
    for state in (RunState.COMMITTING, RunState.SUCCEEDED):
        journal.move_run(run, state, "")
    return took


def settle(flow_run_id: str, count: int) -> None:
    """Wait until the server has digested all that it was sent about a flow run."""
    question = {
        "flow_runs": {"id": {"any_": [flow_run_id]}},
        "task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}},
    }
    request = urllib.request.Request(  # noqa: S310 - loopback
        f"{os.environ['PREFECT_API_URL']}/task_runs/count",
        json.dumps(question).encode(),
        {"Content-Type": "application/json"},
    )
    for _ in range(600):
        with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
            if json.load(reply) >= count:
                return
        time.sleep(0.2)
    raise SystemExit("the Prefect server does not come to rest")


@contextmanager
def server(home: Path) -> Iterator[None]:
    """A Prefect server for the time of the measurement."""
    os.environ.update(server_environment(home) | {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"})
    os.environ["PREFECT_API_URL"] = ensure_server(home)[0].url
    try:
        yield
    finally:
        stop_server(home)


@contextmanager
def profiled(wanted: bool, title: str) -> Iterator[None]:
    """Print in which functions the threads that begin in this block spend their time."""
    if not wanted:
        yield
        return
    profiles: list[cProfile.Profile] = []

    def follow(*_: object) -> None:
        profiles.append(cProfile.Profile())
        profiles[-1].enable()

    threading.setprofile(follow)
    try:
        yield
    finally:
        threading.setprofile(None)
    print(f"\n{title}: own time in all threads")
    stats = pstats.Stats(profiles[0])
    for profile in profiles[1:]:
        stats.add(profile)
    stats.sort_stats("tottime").print_stats(25)


def report(milliseconds: Mapping[str, float]) -> None:
    """Print what a step costs in each way, and how that compares."""
    bare = milliseconds["bare Prefect"]
    for name, value in milliseconds.items():
        print(f"{name:32} {value:8.2f} ms/step   {value / bare:6.2f} x bare Prefect")
    ratio = milliseconds["saga under Prefect"] / bare
    print(f"saga to bare Prefect: {ratio:.2f}")
    print(f"journal: {milliseconds['journal alone']:.2f} ms a step (goal: at most {GOAL_JOURNAL})")


def main() -> None:
    """Measure in rounds, so that a busy moment of the machine hits all ways alike; the medians count."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--length", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    shape = Shape(options.rows, options.length)
    with (
        tempfile.TemporaryDirectory() as folder,
        server(Path(folder)),
        Journal(f"sqlite:///{folder}/benchmark.sqlite") as journal,
    ):
        ways: dict[str, Callable[[Shape], float]] = {
            "bare Prefect": bare_prefect,
            "saga under Prefect": lambda shape: under_prefect(shape, journal),
            "saga with threads": lambda shape: under_threads(shape, journal),
            "journal alone": lambda shape: journal_alone(shape, journal),
        }
        for measure in ways.values():
            measure(Shape(2, 2))  # imports and first connections
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, measure in ways.items():
                found[name].append(measure(shape) / shape.count * 1000)
        print(f"{shape.count} steps in {shape.rows} rows, {WORKERS} at a time, median of {options.rounds}")
        report({name: statistics.median(values) for name, values in found.items()})
        with profiled(options.profile, "saga under Prefect"):
            if options.profile:
                under_prefect(shape, journal)


if __name__ == "__main__":
    main()
