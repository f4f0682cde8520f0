"""Everything the parts of one run share."""

import copy
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from flows.attempt import Attempts
from flows.call import Call, RunFacts
from flows.world import World
from planvirt.deadline import Deadline
from planvirt.errors import PlanvirtError
from planvirt.graph import Step
from planvirt.journal.journal import Journal
from planvirt.journal.records import StepRecord
from planvirt.plan import Instance, Plan
from planvirt.secret import Redactor, Secret


@dataclass(frozen=True, slots=True)
class Event:
    """Something that whoever watches the run may want to show. `done` and `total` are bytes of a long copy."""

    kind: str  # a key of _WORDS, "phase", "undo-phase" or "progress"
    step: str
    action: str
    instance: str
    text: str = ""
    done: int = 0
    total: int = 0

    def __str__(self) -> str:
        words = ": ".join(part for part in (_WORDS.get(self.kind, ""), self.text) if part)
        return f"{'undo ' if self.kind.startswith('undo') else ''}{self.action} {self.instance}: {words}"


_WORDS = {
    "begin": "begins",
    "done": "done",
    "failed": "failed",
    "again": "",
    "skipped": "skipped",
    "undo": "begins",
    "undone": "done",
    "undo-failed": "failed",
    "commit": "final deletion begins",
    "committed": "deleted for good",
}


@dataclass(slots=True)
class RunContext:
    """One run on its way: its facts, the journal, the world, and who wants to hear of it.

    `interrupted` stops steps; `abandoned` stops even the rollback. `redact` takes known secrets out of whatever is
    kept, shown or sent.
    """

    run: RunFacts
    journal: Journal
    world: World
    notify: Callable[[Event], None]
    plan: Plan | None = None
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    redact: Redactor = field(default_factory=Redactor)
    interrupted: threading.Event = field(default_factory=threading.Event)
    abandoned: threading.Event = field(default_factory=threading.Event)
    workers: int = 8  # steps that run side by side at the most
    undo_pause: float = 1.0  # seconds before an undo or a commit is tried a second time; doubled before the third
    attempts: dict[str, Attempts] = field(default_factory=dict)

    def attempts_on(self, uuid: str) -> Attempts:
        """The attempts on an instance. Its steps and undos share them: while one has not come back, no other begins."""
        return self.attempts.setdefault(uuid, Attempts())

    def told(self, error: BaseException) -> PlanvirtError:
        """The error in three parts, without secrets; a fault of the program says that it is one."""
        known = error if isinstance(error, PlanvirtError) else _fault(error)
        if self.redact.idle:
            return known
        clean = copy.copy(known)
        clean.args = (self.redact(known.brief),)
        clean.brief, clean.details = self.redact(known.brief), self.redact(known.details)
        clean.resolution = self.redact(known.resolution)
        clean.__cause__ = clean.__context__ = None  # they hold the texts that were just erased
        return clean

    def call(
        self,
        record: StepRecord,
        deadline: Deadline,
        arguments: Mapping[str, Any],
        spec: Instance | None,
        kind: str = "phase",
    ) -> Call:
        """What an action gets for one attempt at the step of that record; its phases are told as events of `kind`."""
        return Call(
            run=self.run,
            step=record.id,
            instance=record.instance,
            uuid=record.uuid,
            host=record.host,
            arguments=arguments,
            world=self.world,
            deadline=deadline,
            undo=dict(record.undo),
            record=lambda phase, undo: self.journal.phase(self.run.id, record.id, phase, undo),
            log=lambda text: self.tell(kind, record, text),
            spec=spec,
            operation=record.operation,
        )

    def deadline(self, seconds: float | None, step: StepRecord | Step) -> Deadline:
        """A deadline for doing a step; it ends early when the run is interrupted, and tells progress."""
        return Deadline(
            seconds,
            interrupted=self.interrupted,
            on_progress=lambda done, total: self.tell("progress", step, done=done, total=total),
        )

    def tell(self, kind: str, step: StepRecord | Step, text: str = "", done: int = 0, total: int = 0) -> None:
        """Let whoever watches know. One who cannot listen any more, as his pipe is closed, must not end the run."""
        name = step.instance if isinstance(step, StepRecord) else step.instance.name
        try:
            self.notify(Event(kind, step.id, step.action, name, self.redact(text), done, total))
        except Exception:  # noqa: BLE001 - whatever is wrong with the listener, the run goes on
            self.notify = _nobody


def _nobody(_: Event) -> None:
    """Listens to nothing."""


def _fault(error: BaseException) -> PlanvirtError:
    return PlanvirtError(
        f"cannot go on: {type(error).__name__}",
        details=str(error),
        resolution="this is a fault in planvirt: please report it with the run's log",
    )


def timestamp(seconds: float) -> str:
    """A time as plans and images show it: ISO 8601, UTC, whole seconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
