"""Sagas in one line: a setup string goes in, the string of events comes out.

A setup is words such as `launch:a`, `launch:b(launch:a)` and `stop:b`, in the order of a plan. In brackets stands what
a step needs. Signs behind a step say what goes wrong on the simulated host:

    !       its call fails for good
    !2      its call fails twice, for a passing reason
    ~       its undo fails for good
    ~2      its undo fails twice
    ?       its condition is false
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from drivers.simulated import SimulatedCompute
from flows.call import RunFacts
from flows.context import Event, RunContext
from flows.executor import ThreadExecutor
from flows.records import step_records
from flows.recovery import recover
from flows.saga import carry_out
from flows.world import World
from planvirt.config import Config, HostConfig, StoreConfig
from planvirt.errors import PlanvirtError
from planvirt.graph import Step
from planvirt.journal.journal import Journal
from planvirt.journal.records import RunRecord
from planvirt.journal.transitions import RunState
from planvirt.plan import Deferred, Disk, Instance, OnFailure, Plan, Retry
from planvirt.secret import Redactor

_WORD = re.compile(
    r"(?P<action>[a-z]+):(?P<name>[a-z]+)(\((?P<needs>[^)]*)\))?(?P<fails>!\d*)?(?P<undo_fails>~\d*)?(?P<off>\?)?"
)
_DO_CALL = {
    "launch": "define",
    "start": "start",
    "stop": "request_shutdown",
    "terminate": "set_aside",
    "snapshot": "export_disks",
    "lock": "note",
    "unlock": "note",
}
_UNDO_CALL = {
    "launch": "undefine",
    "stop": "start",
    "start": "power_off",
    "terminate": "bring_back",
    "pause": "unpause",
    "unpause": "pause",
    "suspend": "resume",
    "resume": "suspend",
    "lock": "note",
    "unlock": "note",
}
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "snapshot": {"upload": {"store": "local", "name": "an image"}},
    "sleep": {"for": 0.0},
}
_SHOWN = frozenset({"done", "failed", "skipped", "undone", "undo-failed", "committed"})

PLAN = "saga"


class Saga:
    """A saga on a simulated host, with what it left behind."""

    def __init__(self, folder: Path) -> None:
        self.config = Config(
            home=folder,
            hosts={"sim": HostConfig("sim", driver="simulated", path=folder / "world.json")},
            stores={"local": StoreConfig("local", path=folder / "store")},
            journal_url=f"sqlite:///{folder}/journal.sqlite",
        )
        self.compute = SimulatedCompute.in_file("sim", folder / "world.json")
        self.journal = Journal(self.config.journal_url)
        self.events: list[str] = []
        self.runs = 0
        self.redact = Redactor()
        self.listen: Callable[[Event], None] = self._hear
        self.abandon = False  # give up the rollback before it begins
        self.error: PlanvirtError | None = None

    def run(
        self,
        setup: str,
        *,
        on_failure: OnFailure = OnFailure.ROLLBACK,
        attempts: int = 3,
        workers: int = 1,
        when: bool | Deferred = True,
        timeout: float = 20.0,
    ) -> tuple[RunState, str]:
        """Carry the saga out; `when` is the condition of every step. Returns how it ended, and its events in order."""
        self.runs += 1
        self.events.clear()
        steps = [replace(self._step(match, attempts, when), timeout=timeout) for match in _WORD.finditer(setup)]
        run = f"run-{self.runs}"
        self.journal.begin(
            RunRecord(run, "run", PLAN, "saga.yaml", "", "hash", None, {}, on_failure.value),
            step_records(PLAN, steps),
        )
        with World(self.config) as world:
            facts = RunFacts(run, PLAN, "", "2026-01-01T00:00:00Z")
            context = RunContext(
                facts, self.journal, world, self.listen, redact=self.redact, workers=workers, undo_pause=0.0
            )
            context.plan = Plan(PLAN, Path("saga.yaml"), "", instances=tuple(step.instance for step in steps))
            if self.abandon:
                context.abandoned.set()
            executor = ThreadExecutor(workers)
            state, self.error = carry_out(context, steps, {}, on_failure, executor)
            executor.close()
        return state, " ".join(self.events)

    def roll_back(self, run: str) -> RunState:
        """Roll an ended run back, as somebody would by hand."""
        record = self.journal.take_over(run, "test")
        with World(self.config) as world:
            facts = RunFacts(run, PLAN, "", "2026-01-01T00:00:00Z")
            context = RunContext(facts, self.journal, world, self.listen, workers=1, undo_pause=0.0)
            executor = ThreadExecutor(1)
            state, _ = recover(context, record, executor)
            executor.close()
        return state

    def left(self) -> list[str]:
        """The instances and volumes on the host, set-aside ones too; cached images do not count."""
        with self.compute.world() as world:
            return sorted([*world.instances, *(name for name in world.volumes if not name.startswith("planvirt-"))])

    def _hear(self, event: Event) -> None:
        if event.kind in _SHOWN:
            self.events.append(f"{event.action}:{event.instance}:{event.kind}")

    def _step(self, match: re.Match[str], attempts: int, when: bool | Deferred) -> Step:
        action, name = match["action"], match["name"]
        for sign, calls in (("fails", _DO_CALL), ("undo_fails", _UNDO_CALL)):
            if match[sign]:
                count = match[sign][1:]
                self.compute.fail(
                    calls.get(action, action),
                    name=name,
                    times=int(count) if count else None,
                    error="transient" if count else "error",
                )
        return Step(
            id=f"{action}:{name}",
            action=action,
            instance=Instance(name, name, "sim", 1, 64 << 20, disks=(Disk("root", 1 << 20),)),
            operation=f"{action}-{name}" if action == "snapshot" else None,
            arguments=_ARGUMENTS.get(action, {}),
            needs=tuple(match["needs"].split(",")) if match["needs"] else (),
            when=when if not match["off"] else False,
            retry=Retry(attempts, delay=0.0),
            timeout=20.0,
            final=False,
        )
