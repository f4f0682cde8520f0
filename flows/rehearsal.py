"""A run on a simulated copy of the world: with the faults that are asked for, without pauses, without Prefect."""

import multiprocessing
import queue
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

from drivers.simulated import Fault, SimulatedCompute
from flows.call import RunFacts
from flows.context import Event, RunContext, timestamp
from flows.executor import Finished, ThreadExecutor, Work
from flows.facts import gather, name_of
from flows.prepare import Prepared
from flows.preview import preview
from flows.records import run_record, step_records
from flows.replica import Replica
from flows.rollback import roll_back
from flows.run import new_run_id
from flows.saga import carry_out
from planvirt.graph import Step, build_graph
from planvirt.journal.journal import LEASE, Journal
from planvirt.journal.transitions import RunState
from planvirt.mark import is_cached
from planvirt.plan import Deferred, Plan
from planvirt.secret import Redactor, Secret
from planvirt.states import State

# The driver's call that has the effect of a verb, where it bears another name. Sleeping only looks at the instance.
_MAIN_CALL = {
    "launch": "define",
    "stop": "request_shutdown",
    "snapshot": "export_disks",
    "backup": "export_disks",
    "confirm_resize": "note",
    "revert_resize": "note",
    "shelve": "note",
    "unshelve": "note",
    "rebuild": "replace_disk",
    "restore": "replace_disk",
    "exec": "execute",
    "terminate": "set_aside",
    "lock": "note",
    "unlock": "note",
    "sleep": "instance",
}

# Nothing takes time here, so what has not come after so many seconds does not come.
_PATIENCE = 5.0
_LONGEST = 60.0
_SHORTER: dict[str, dict[str, float]] = {
    "stop": {"grace": 1.5},  # the undo of a stop that failed waits for all of it
    "sleep": {"for": 0.0},
}


@dataclass(frozen=True, slots=True)
class Failure:
    """A step that is to fail: so many times for a passing reason, or for good."""

    step: str
    times: int | None = None


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of an instance."""

    name: str
    host: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """How a rehearsal ended. `killed` is what the killed process left; `unmet` are steps that did not fail as told."""

    state: RunState
    error: Mapping[str, str] | None
    instances: tuple[Fate, ...]
    leftovers: tuple[str, ...]
    killed: tuple[str, ...] | None = None
    unmet: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What is to be rehearsed, in a form that another process can be given."""

    prepared: Prepared
    replica: Replica
    failures: tuple[Failure, ...] = ()
    kill: str | None = None
    run: str = ""

    @property
    def facts(self) -> RunFacts:
        """What steps may know of the run."""
        plan = self.prepared.plan
        return RunFacts(self.run, plan.name, plan.commit or "", timestamp(time.time()), plan.images)


def prepare(plan: Plan, replica: Replica, journal: Journal) -> Prepared:
    """Decide what a run would do: from the copy, from what the real hosts can do, from the real journal's claims."""
    with replica.open() as world:
        facts = gather(world, journal, plan)
    facts = replace(facts, capabilities={**facts.capabilities, **replica.capabilities})
    return Prepared("run", plan, preview(plan.name, build_graph(plan), facts))


def rehearse(wanted: Rehearsal, tell: Callable[[Event], None]) -> Rehearsed:
    """Carry the run out on the copy; with `kill`, in a process that is killed there, and roll it back from the journal.

    One step goes after the other, so that two rehearsals of the same thing tell it in the same order.
    """
    wanted = replace(wanted, run=new_run_id())
    steps, config = wanted.prepared.preview.steps, wanted.replica.config
    _let_guests_speak(wanted.replica, steps)
    states, things = _states(wanted.replica), _things(wanted.replica)
    failed: set[str] = set()
    heard = _Listener({step.id: step for step in steps}, failed, tell)
    killed: tuple[str, ...] | None = None
    if wanted.kill is None:
        go_forward(wanted, heard)
    elif _go_until_killed(wanted, heard):
        step = next(step for step in steps if step.id == wanted.kill)
        killed = _new(wanted.replica, things)
        tell(Event("killed", step.id, step.action, step.instance.name, "planvirt is killed here"))
        _roll_back(wanted, heard)
    with Journal(config.journal_url) as journal:
        record = journal.run(wanted.run)
    left = () if record.state == RunState.SUCCEEDED else _new(wanted.replica, things)
    unmet = [failure.step for failure in wanted.failures if killed is None and failure.step not in failed]
    if wanted.kill is not None and killed is None:
        unmet.append(wanted.kill)
    fates = _fates(wanted.prepared, states, _states(wanted.replica))
    return Rehearsed(record.state, record.error, fates, left, killed, tuple(unmet))


def go_forward(wanted: Rehearsal, tell: Callable[[Event], None]) -> None:
    """Carry the run out to its end, whichever that is; the journal knows it."""
    plan, found = wanted.prepared.plan, wanted.prepared.preview
    secrets = {name: Secret(f"stands-in-for-{name}") for name in wanted.replica.config.secrets}
    with Journal(wanted.replica.config.journal_url) as journal, wanted.replica.open() as world:
        journal.begin(run_record(wanted.run, "run", plan, found.parallel), step_records(plan.name, found.steps))
        context = RunContext(
            wanted.facts, journal, world, tell, plan=plan, secrets=secrets, redact=Redactor(), workers=1, undo_pause=0.0
        )
        with _executor(wanted) as executor:
            carry_out(context, [_quick(step) for step in found.steps], found.parallel, plan.on_failure, executor)


def _go_until_killed(wanted: Rehearsal, tell: Callable[[Event], None]) -> bool:
    """Carry the run out in a process of its own, which dies by SIGKILL in the step. Returns whether it did."""
    processes = multiprocessing.get_context("spawn")
    here, there = processes.Pipe(duplex=False)
    child = processes.Process(target=_in_child, args=(wanted, there), daemon=True)
    child.start()
    there.close()
    with here:
        while True:
            try:
                tell(here.recv())
            except EOFError:
                break
    child.join()
    if child.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the process that rehearses ended with {child.exitcode}")
    return child.exitcode != 0


def _in_child(wanted: Rehearsal, out: Connection) -> None:
    go_forward(wanted, out.send)


def _roll_back(wanted: Rehearsal, tell: Callable[[Event], None]) -> None:
    """What `planvirt rollback` does once the dead process's lease has lapsed, which is now by this journal's clock."""
    url = wanted.replica.config.journal_url
    with Journal(url, clock=lambda: time.time() + 2 * LEASE) as journal, wanted.replica.open() as world:
        journal.take_over(wanted.run, "rollback asked for")
        context = RunContext(wanted.facts, journal, world, tell, workers=1, undo_pause=0.0)
        executor = ThreadExecutor(1)
        try:
            roll_back(context, executor, "rollback asked for")
        finally:
            executor.close()


class _Executor:
    """One thread, and the faults that were asked for, each only while its step is on its way."""

    def __init__(self, wanted: Rehearsal) -> None:
        self.finished: queue.SimpleQueue[Finished] = queue.SimpleQueue()
        self.threads = ThreadExecutor(1, self.finished)
        self._replica = wanted.replica
        self._steps = {step.id: step for step in wanted.prepared.preview.steps}
        self._failures = {failure.step: failure for failure in wanted.failures}
        self._kill = wanted.kill

    def submit(self, work: Work, after: Sequence[str]) -> None:
        """Begin the work; undos and commits go as they are."""
        if not {"undo", "commit"} & set(work.tags):
            step, attempt = self._steps[work.key], work.attempt
            work = replace(work, attempt=lambda number: self._attempt(step, number, attempt))
        self.threads.submit(work, after)

    def _attempt(self, step: Step, number: int, attempt: Callable[[int], None]) -> None:
        host = self._replica.host(step.instance.host)
        fault = self._fault(step, number)
        if fault is None and step.action == "wait" and "for" in step.arguments:
            _bring(host, step.instance.name, State(str(step.arguments["for"])))
        if fault is None:
            attempt(number)
            return
        with host.world() as world:
            world.faults.append(fault)
        try:
            attempt(number)
        finally:
            with host.world() as world:
                world.faults.clear()

    def _fault(self, step: Step, number: int) -> Fault | None:
        call = _main_call(step)
        if step.id == self._kill:
            return Fault(call, kill=True, at="after")
        failure = self._failures.get(step.id)
        if failure is None or (failure.times is not None and number > failure.times):
            return None
        error = "error" if failure.times is None else "transient"
        return Fault(call, error=error, details="the rehearsal was told to let it fail")


@contextmanager
def _executor(wanted: Rehearsal) -> Iterator[_Executor]:
    executor = _Executor(wanted)
    try:
        yield executor
    finally:
        executor.threads.close()


def _main_call(step: Step) -> str:
    if step.action == "wait":
        return next((call for key, call in (("for", "wait_state"), ("console", "console")) if key in step.arguments),
                    "addresses")  # fmt: skip
    if step.action in ("attach", "detach"):
        return f"{step.action}_disk" if "disk" in step.arguments else f"{step.action}_nic"
    if step.action == "resize" and "disks" in step.arguments and not {"vcpus", "memory"} & set(step.arguments):
        return "grow_disk"
    return "instances" if "aside" in step.arguments else _MAIN_CALL.get(step.action, step.action)


class _Listener:
    """Passes events on; where a run would pause, it tells for how long."""

    def __init__(self, steps: Mapping[str, Step], failed: set[str], tell: Callable[[Event], None]) -> None:
        self._steps = steps
        self._failed = failed
        self._tell = tell
        self._repeats: Counter[str] = Counter()

    def __call__(self, event: Event) -> None:
        if event.kind == "progress":
            return
        if event.kind == "failed":
            self._failed.add(event.step)
        if event.kind == "again":
            event = replace(event, text=self._repeat(event.step))
        if event.kind == "phase" and event.action == "sleep":
            event = replace(event, text=f"sleep, for {_seconds(self._steps[event.step].arguments['for'])} in a run")
        self._tell(event)

    def _repeat(self, step: str) -> str:
        retry = self._steps[step].retry
        pauses = list(replace(retry, jitter=0.0).delays(random.Random()))  # noqa: S311 - there is no chance in it
        self._repeats[step] += 1
        number = self._repeats[step]
        return f"attempt {number + 1} of {retry.attempts}, after {pauses[number - 1]:.1f} s in a run"


def _seconds(value: object) -> str:
    return (
        value.text if isinstance(value, Deferred) else f"{value:g} s" if isinstance(value, int | float) else "a while"
    )


def _quick(step: Step) -> Step:
    """The step without its pauses. A text that is known only when it begins is waited for as the plan spells it."""
    ready = step.instance.ready
    if ready is not None:
        ready = replace(ready, within=min(ready.within, _PATIENCE))
    arguments = {key: _spelled(key, value) for key, value in step.arguments.items()}
    return replace(
        step,
        instance=replace(step.instance, ready=ready),
        arguments=arguments | _SHORTER.get(step.action, {}),
        retry=replace(step.retry, delay=0.0),
        timeout=min(step.timeout, _PATIENCE if step.action == "wait" else _LONGEST),
    )


def _spelled(key: str, value: object) -> object:
    return value.text if key == "console" and isinstance(value, Deferred) else value


def _let_guests_speak(replica: Replica, steps: Sequence[Step]) -> None:
    """Have every guest say, on its console, what the plan waits for, and its programs end as the plan hopes."""
    for step in steps:
        texts = [_spelled("console", step.arguments.get("console"))]
        if step.action == "launch" and step.instance.ready is not None:
            texts.append(step.instance.ready.console)
        with replica.host(step.instance.host).world() as world:
            name = step.instance.name
            said = [world.guest(name).console, *(f"{text}\n" for text in texts if text)]
            world.guests[name] = {"console": "".join(said), "programs": world.guest(name).programs | _programs(step)}


def _programs(step: Step) -> dict[str, dict[str, object]]:
    """How a program ends that the plan expects to end with something else than 0."""
    if step.action != "exec" or 0 in step.arguments["exit_codes"]:
        return {}
    program, code = step.arguments["command"][0], step.arguments["exit_codes"][0]
    return {program: {"exit_code": code}} if isinstance(program, str) and isinstance(code, int) else {}


def _bring(host: SimulatedCompute, name: str, state: State) -> None:
    """Let a guest come into the state that the plan waits for, as it is expected to do by itself."""
    with host.world() as world:
        machine = world.instances.get(name)
        if machine is None or state == State.ABSENT:
            return
        if state == State.RUNNING and machine.state != State.RUNNING:
            machine.start(time.time())
        machine.state = state


# What there is


def _states(replica: Replica) -> dict[tuple[str, str], str]:
    found = {}
    for host in replica.config.hosts:
        for item in sorted(replica.host(host).instances(), key=lambda item: item.set_aside is None):
            found[host, name_of(item)] = item.state.value if item.set_aside is None else "set aside"
    return found


def _fates(
    prepared: Prepared, before: Mapping[tuple[str, str], str], after: Mapping[tuple[str, str], str]
) -> tuple[Fate, ...]:
    """The plan's instances, and those that the run was about."""
    declared = [(instance.host, instance.name) for instance in prepared.plan.instances]
    touched = [(step.instance.host, step.instance.name) for step in prepared.preview.steps]
    absent = State.ABSENT.value
    return tuple(
        Fate(name, host, before.get((host, name), absent), after.get((host, name), absent))
        for host, name in dict.fromkeys([*declared, *touched])
    )


def _things(replica: Replica) -> tuple[str, ...]:
    """Instances, disks and images by name; what a host keeps of an image is of no plan and does not count."""
    found: list[str] = []
    for host in replica.config.hosts:
        for item in replica.host(host).instances():
            aside = "" if item.set_aside is None else f", set aside by run {item.set_aside}"
            found.append(f"instance {name_of(item)} on {host}{aside}")
        with replica.host(host).world() as world:
            found += [f"volume {name} on {host}" for name in sorted(world.volumes) if not is_cached(name)]
    with replica.open() as copies:
        for store in replica.config.stores:
            found += [f"image {image.id} in store {store}" for image in copies.store(store).list()]
    return tuple(found)


def _new(replica: Replica, before: Sequence[str]) -> tuple[str, ...]:
    return tuple(thing for thing in _things(replica) if thing not in set(before))
