"""What an action gets to work with: a step, the outside world, and the journal before every outside call."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from drivers.compute import Compute, InstanceFacts
from drivers.errors import NotFound
from flows.world import World
from planvirt.deadline import Deadline
from planvirt.mark import Mark
from planvirt.plan import Image, Instance
from planvirt.states import State


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a step may know of its run. `started` is ISO 8601 in UTC."""

    id: str
    plan: str
    commit: str
    started: str
    images: Mapping[str, Image] = field(default_factory=dict)


@dataclass(slots=True)
class Call:
    """One attempt to do, probe, undo or commit a step.

    For an undo only what the journal holds is there: `spec` is None then, as the plan may be gone. `undo` is what the
    step has recorded so far for its own undo.
    """

    run: RunFacts
    step: str
    instance: str
    uuid: str
    host: str
    arguments: Mapping[str, Any]
    world: World
    deadline: Deadline
    undo: dict[str, Any]
    record: Callable[[str, Mapping[str, Any]], None]
    log: Callable[[str], None]
    spec: Instance | None = None
    operation: str | None = None

    @property
    def compute(self) -> Compute:
        """The driver of the step's host."""
        return self.world.host(self.host)

    def facts(self) -> InstanceFacts | None:
        """The instance as it is now, if it is planvirt's and this plan's own; None when it is absent."""
        found = self.compute.instance(self.instance)
        return found if found is not None and found.uuid == self.uuid else None

    def found(self, verb: str = "") -> InstanceFacts:
        """The instance as it is now. Raises NotFound when it is absent; `verb` is what cannot be done to it then."""
        found = self.facts()
        if found is None:
            cannot = f"{verb} {self.instance}: it is not there" if verb else f"find instance {self.instance}"
            raise NotFound(f"cannot {cannot}")
        return found

    def state(self) -> State:
        """The state of the instance now."""
        found = self.facts()
        return State.ABSENT if found is None else found.state

    def phase(self, name: str, **undo: Any) -> None:
        """Tell the journal what comes next, and what undoing it will need, before it is done.

        Raises DeadlinePassed when nobody waits for the step any more, LostClaim when somebody else owns the instance.
        """
        self.deadline.check()
        # What an earlier attempt found before it began is how things were; what this attempt finds may be its work.
        news = {key: value for key, value in undo.items() if key not in self.undo}
        self.record(name, news)
        self.undo.update(news)
        self.log(name)

    def within(self, seconds: float) -> "Call":
        """The same call with less time."""
        return replace(self, deadline=self.deadline.within(seconds))

    def mark(self, spec: str) -> Mark:
        """The mark for what this step makes."""
        return Mark(plan=self.run.plan, instance=self.instance, run=self.run.id, spec=spec, commit=self.run.commit)

    def volume(self, disk: str) -> str:
        """The name of the volume that this step makes for a disk: the same one every time, and no other step's."""
        return self.mark(hashlib.sha256(self.step.encode()).hexdigest()).volume(disk)
