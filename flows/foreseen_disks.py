"""What a run does to disks and sizes, gone through in thought: what would be refused half-way is refused before."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from flows import sizing
from flows.disks import disks_of
from flows.facts import Facts
from planvirt.errors import PlanvirtError
from planvirt.graph import Step
from planvirt.plan import Deferred
from planvirt.states import State
from planvirt.units import format_size


@dataclass(slots=True)
class ForeseenDisks:
    """What the steps so far have attached and deleted, by the names of instance and disk."""

    attached: set[tuple[str, str]] = field(default_factory=set)
    deleted: set[tuple[str, str]] = field(default_factory=set)

    def refusals(self, step: Step, before: frozenset[State], facts: Facts) -> Iterator[str]:
        """Why a step cannot be carried out after those before it."""
        if step.action == "resize":
            yield from self._of_resize(step, before, facts)
        elif step.action == "detach":
            yield from _of_detach(step, facts)
        elif step.action == "attach" and (step.instance.name, _attaches(step)) in self.deleted:
            # Its volume is still there when the run comes to the attach, and would be taken for the one to attach.
            yield (
                f"disk {_attaches(step)} of {step.instance.name} is deleted earlier in this run; "
                "attach it in a run of its own"
            )

    def note(self, step: Step) -> None:
        """Remember what the step does."""
        name = step.instance.name
        if step.action == "attach" and (disk := _attaches(step)):
            self.attached.add((name, disk))
        if step.action == "detach" and step.arguments.get("delete"):
            self.deleted.add((name, str(step.arguments.get("disk"))))

    def _of_resize(self, step: Step, before: frozenset[State], facts: Facts) -> Iterator[str]:
        found = facts.of(step)
        if found is None:
            return
        arguments = self._without_attached(step)
        try:
            sizes = sizing.wanted(step.arguments, step.instance, found)
            if arguments is not None:
                sizing.growing(arguments, step.instance, found, facts.capacities(found.host))
        except PlanvirtError as error:
            yield str(error)
            return
        refused = step.arguments.get("reboot") is False and sizing.needs_reboot(found, sizes)
        if refused and before == {State.RUNNING}:
            how = "'reboot: true' in the operation" if step.operation else "'resize: {reboot: true}' in the instance"
            yield (
                f"{found.name} cannot change to {sizes.vcpus} vcpus and {format_size(sizes.memory)} while it runs; "
                f"allow a reboot with {how}"
            )

    def _without_attached(self, step: Step) -> Mapping[str, Any] | None:
        """The arguments without disks that are not there yet; None when they name no others."""
        given = step.arguments.get("disks")
        if not given:
            return step.arguments
        disks = {name: size for name, size in given.items() if (step.instance.name, name) not in self.attached}
        return {**step.arguments, "disks": disks} if disks else None


def _attaches(step: Step) -> str:
    """The name of the disk that the step attaches, if it does."""
    disk = step.arguments.get("disk")
    return str(disk["name"]) if isinstance(disk, Mapping) else ""


def _of_detach(step: Step, facts: Facts) -> Iterator[str]:
    name, found = step.arguments.get("disk"), facts.of(step)
    if name is None or isinstance(name, Deferred):
        return
    if found is not None and next(iter(disks_of(found)), None) == name:
        yield f"{step.instance.name} boots from disk {name}, which cannot be detached"
    if step.arguments.get("delete") and any(disk.name == name and disk.keep for disk in step.instance.disks):
        yield f"disk {name} of {step.instance.name} is declared with 'keep: true'; take that away to have it deleted"
