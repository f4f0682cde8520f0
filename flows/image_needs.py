"""Who still needs an image of a store, so that nobody deletes what a shelved instance or a run comes back for."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from drivers.image_store import StoredImage
from flows.notes import belongings
from flows.stored_images import texts
from flows.world import World
from planvirt.document import parse
from planvirt.errors import PlanvirtError
from planvirt.journal.journal import Journal
from planvirt.journal.records import RunRecord
from planvirt.journal.transitions import UNDOABLE, RunState

_LATEST = 1000  # runs that are looked at; those that have not ended are always among them
_GO_ON = frozenset({RunState.PENDING, RunState.RUNNING, RunState.KEPT})


class NeedsUnknown(PlanvirtError):
    """A host does not answer, so nobody knows what its instances need."""


@dataclass(frozen=True, slots=True)
class Need:
    """Somebody who names images. `names` may be ids, or STORE/IMAGE."""

    who: str
    names: frozenset[str]

    def concerns(self, image: StoredImage) -> bool:
        """Whether the image is among them."""
        return not self.names.isdisjoint({image.id, f"{image.store}/{image.id}", f"{image.store}/{image.name}"})


def needs(world: World, journal: Journal) -> list[Need]:
    """All who need images: instances on every host, and runs that may go on or be undone. Raises NeedsUnknown."""
    return [*_of_instances(world), *_of_runs(journal)]


def _of_instances(world: World) -> Iterator[Need]:
    for host in world.config.hosts:
        try:
            found = world.host(host).instances()
        except PlanvirtError as error:
            raise NeedsUnknown(
                f"cannot tell which images are needed: host {host} does not answer",
                details=str(error),
                resolution="mend that, or say --force if you know that no shelved instance needs the image",
            ) from error
        for instance in found:
            images = belongings(instance, "images")
            if images:
                yield Need(f"instance {instance.name} on {host} is {instance.state}", frozenset(images))


def _of_runs(journal: Journal) -> Iterator[Need]:
    for run, _ in journal.open():
        yield _need_of(journal, run, f"run {run.id} of plan {run.plan} has not ended")
    for run in journal.runs(limit=_LATEST):
        if run.state in (RunState.KEPT, RunState.ROLLBACK_INCOMPLETE):
            with suppress(PlanvirtError):  # it cannot be rolled back any more
                journal.check_recoverable(run.id)
                yield _need_of(journal, run, f"run {run.id} of plan {run.plan} can still be rolled back")


def _need_of(journal: Journal, run: RunRecord, who: str) -> Need:
    named: set[str] = set()
    for step in journal.steps(run.id):
        if run.state in _GO_ON:
            named.update(texts([step.arguments, step.decided, step.outputs, step.undo]))
        elif run.state == RunState.COMMITTING or step.state in UNDOABLE:
            named.update(texts(step.undo))
    if run.state in _GO_ON:
        named.update(texts([parse(run.text).data, run.inputs]))
    return Need(who, frozenset(named))
