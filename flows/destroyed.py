"""What a step destroys for good, by name: nothing goes that a preview has not listed."""

from collections.abc import Iterator

from drivers.compute import InstanceFacts
from flows.facts import Facts, name_of
from flows.kept_disks import doomed, doomed_images, outliving
from planvirt.graph import Step
from planvirt.mark import read_volume_name
from planvirt.plan import Deferred


def destroyed(plan: str, step: Step, facts: Facts) -> Iterator[str]:
    """What is gone when the run has succeeded with this step."""
    about = f"of {step.instance.name} on {step.instance.host}"
    if step.action == "terminate":
        yield _terminated(plan, step, facts)
    elif step.action == "rebuild":
        yield f"the content of disk {_boot_disk(step, facts)} {about}"
    elif step.action == "restore":
        yield f"the content of disk {step.arguments.get('disk') or _boot_disk(step, facts)} {about}"
    elif step.action == "detach" and step.arguments.get("delete"):
        yield f"disk {step.arguments.get('disk')} {about}"
    elif step.action == "shelve":
        yield f"the disks {about} (they become images in store {step.arguments.get('store')})"
    elif step.action == "unshelve":
        yield f"the images of the shelved disks {about} (they become disks)"
    elif step.action == "backup":
        yield f"{_surplus(step)} of {step.instance.name} in {_store(step)}"
    elif step.action == "revert_resize":
        yield f"what was written since the resize to disks {about} that it has grown"


def place_of(found: InstanceFacts) -> str:
    """Where an instance is, in words."""
    aside = f" (set aside by run {found.set_aside})" if found.set_aside is not None else ""
    return f"{name_of(found)} on {found.host}{aside}"


def _surplus(step: Step) -> str:
    """Which backups go, as far as it is known before the run."""
    keep, kind = step.arguments["keep"], step.arguments["class"]
    if isinstance(keep, Deferred):
        return f"the backups of class {kind} that are more than 'keep' says"
    newest = "newest backup" if keep == 1 else f"newest {keep} backups"
    return f"all but the {newest} of class {kind}{' of each disk' if 'disks' in step.arguments else ''}"


def _store(step: Step) -> str:
    store = step.arguments["upload"]["store"]
    return "its store" if isinstance(store, Deferred) else f"store {store}"


def _boot_disk(step: Step, facts: Facts) -> str:
    found = facts.of(step)
    named = read_volume_name(found.volumes[0]) if found is not None and found.volumes else None
    return named[1] if named else step.instance.disks[0].name if step.instance.disks else "root"


def _terminated(plan: str, step: Step, facts: Facts) -> str:
    """The instance, and the disks that go with it."""
    found, name = facts.of(step), step.instance.name
    if found is None:
        return f"instance {name} on {step.instance.host}"
    keep = [disk.name for disk in step.instance.disks if disk.keep]
    count = len(doomed(plan, name, found, keep))
    stays = outliving(plan, name, found, keep)
    kept = f" (keeps {', '.join(stays)})" if stays else ""
    disks = "1 disk" if count == 1 else f"{count} disks"
    images = len(doomed_images(found, keep))
    shelved = f", shelved as {images} {'image' if images == 1 else 'images'}" if images else ""
    return f"instance {place_of(found)} with {disks}{shelved}{kept}"
