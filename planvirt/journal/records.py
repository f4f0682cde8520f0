"""What the journal remembers of a run, of a step and of a transition. Times are seconds since the epoch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from planvirt.journal.transitions import RunState, StepState


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run of a plan. `text` and `inputs` are the plan as it was, so that recovery does not need the file.

    `parallel` is how many steps of an operation may run at a time. `owner` is for people; `token` says whose run it is.
    """

    id: str
    kind: Literal["run", "destroy"]
    plan: str
    path: str
    text: str
    hash: str
    commit: str | None
    inputs: Mapping[str, Any]
    on_failure: str
    parallel: Mapping[str, int] = field(default_factory=dict)
    state: RunState = RunState.PENDING
    error: Mapping[str, str] | None = None
    flow_run_id: str | None = None
    owner: str = ""
    token: str = ""
    lease_until: float = 0.0
    created: float = 0.0
    started: float | None = None
    ended: float | None = None


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step of a run: what was intended (`arguments`), how far it came (`phase`), and what its undo needs.

    `decided` is what was settled beforehand, from facts of that time, and is needed to carry the step out again.
    """

    id: str
    position: int
    action: str
    instance: str
    uuid: str
    host: str
    operation: str | None = None
    needs: tuple[str, ...] = ()
    final: bool = False
    decided: Mapping[str, Any] = field(default_factory=dict)
    state: StepState = StepState.PENDING
    phase: str = ""
    attempts: int = 0
    arguments: Mapping[str, Any] = field(default_factory=dict)
    undo: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, str] | None = None
    undo_error: Mapping[str, str] | None = None
    started: float | None = None
    ended: float | None = None


@dataclass(frozen=True, slots=True)
class Transition:
    """One line of the audit trail. `step` is None for the run itself; `before` is `after` where no state changed."""

    step: str | None
    before: str
    after: str
    at: float
    who: str
    why: str


@dataclass(frozen=True, slots=True)
class Claim:
    """An instance that a run owns. `alive` tells whether that run still renews its lease.

    A run whose rollback stayed incomplete goes on owning what it could not undo.
    """

    uuid: str
    instance: str
    host: str
    run: str
    plan: str
    state: RunState
    alive: bool
    lease_left: float = 0.0  # seconds until a run that shows no sign of life counts as dead

    def __str__(self) -> str:
        if self.state == RunState.ROLLBACK_INCOMPLETE:
            return f"{self.instance}: run {self.run} of plan {self.plan} could not be undone; {self.remedy}"
        if self.alive:
            return f"{self.instance}: run {self.run} of plan {self.plan} is working on it; {self.remedy}"
        return f"{self.instance}: run {self.run} of plan {self.plan} died while it owned it; {self.remedy}"

    @property
    def remedy(self) -> str:
        """What to do to get the instance free."""
        if self.alive and self.state != RunState.ROLLBACK_INCOMPLETE:
            return (
                f"wait until it has ended: 'planvirt show {self.run}'; if its process was killed, "
                f"'planvirt recover' can finish it in {self.lease_left:.0f} s"
            )
        return f"undo it with 'planvirt rollback {self.run}', then try again"
