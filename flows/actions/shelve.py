"""shelve and unshelve: move an instance's disks into an image store, so that the host has room, and bring them back.

The instance stays defined. Its note says which image each of its disks has become; the disks come back under the names
that they had, so that nothing else of it changes.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, Literal, cast

from drivers.compute import InstanceFacts
from drivers.errors import DriverError, NotFound
from flows.actions.action import Action, Finding
from flows.actions.power import bring_down, bring_down_for_undo, run_again
from flows.call import Call
from flows.disk_image import delete_image, properties, upload_disk
from flows.disks import disks_of
from flows.images import base_of
from flows.notes import read_note
from planvirt.journal.records import StepRecord
from planvirt.mark import image_id
from planvirt.states import Note, State

_KIND = "shelve"


def do_shelve(call: Call) -> Mapping[str, Any]:
    """Shut the instance down, copy each of its disks into an image, and note that. A saved or paused guest is given up.

    The disks on the host stay until the run commits.
    """
    found = call.found("shelve")
    if Note.SHELVED not in found.notes:  # else an earlier attempt came that far
        store = call.world.store(str(call.arguments["store"]))
        call.phase("look at its state", was=found.power, disks=_becoming(call, found, store.name))
        bring_down(call)
        for name, disk in call.undo["disks"].items():
            image, target = disk["image"].partition("/")[2], _target(call, name)
            call.phase(f"create the image record of disk {name}")
            marked = properties(call, _KIND, found.mark.spec if found.mark else "", name)
            store.create(image, name=f"{call.instance}-{name}-shelved", format="qcow2", properties=marked)
            export = partial(call.compute.export_disks, call.instance, {disk["volume"]: target}, deadline=call.deadline)
            upload_disk(call, store, image, target, export)
        call.phase("note that it is shelved")
        note = {"images": _images(call.undo), "disks": call.undo["disks"], "was": call.undo["was"]}
        call.compute.note(call.instance, Note.SHELVED, json.dumps(note))
    return outputs_of_shelve(call)


def outputs_of_shelve(call: Call) -> Mapping[str, Any]:
    """The image of each disk, by the disk's name."""
    return {"images": {name: disk["image"] for name, disk in call.undo["disks"].items()}}


def probe_shelve(call: Call) -> Finding:
    """Done when this step's images are noted: that is its last act."""
    if "disks" not in call.undo:
        return Finding.NOTHING
    return Finding.DONE if _is_noted(call) else Finding.PARTIAL


def undo_shelve(call: Call) -> None:
    """Be shelved no more, run if it ran, and delete the images. The disks have not left the host yet."""
    if "disks" not in call.undo:
        return
    if _is_noted(call):
        call.phase("note that it is not shelved")
        call.compute.note(call.instance, Note.SHELVED, None)
    run_again(call)
    for name, disk in call.undo["disks"].items():
        store, _, image = disk["image"].partition("/")
        call.phase(f"delete the image of disk {name}")
        call.world.store(store).delete(image)
        call.phase(f"delete the copy of disk {name} on the host")
        call.compute.delete_volume(_target(call, name))


def commit_shelve(call: Call) -> None:
    """Delete the disks on the host, unless a later step of the run has put them into use again."""
    if "disks" in call.undo and _is_noted(call):
        for name, disk in call.undo["disks"].items():
            call.phase(f"delete disk {name} on the host")
            call.compute.delete_volume(disk["volume"])


def leftovers_of_shelve(record: StepRecord) -> list[str]:
    """The images, by id."""
    images = [image.partition("/") for image in _images(record.undo)]
    return [f"image {image} in store {store}" for store, _, image in images]


def do_unshelve(call: Call) -> Mapping[str, Any]:
    """Bring back what has left the host, and start the instance if it ran when it was shelved."""
    found = call.found("unshelve")
    if Note.SHELVED in found.notes:
        disks = _shelved(call, found)
        there = {volume.name for volume in call.compute.volumes()}
        # A run that was kept has left them: what it meant to delete at its end is still the newest there is.
        made = [disk["volume"] for disk in disks.values() if disk["volume"] not in there]
        call.phase("look at its disks", note=found.notes[Note.SHELVED], made=made)
        for name, disk in disks.items():
            if disk["volume"] in call.undo["made"]:
                _bring_back(call, name, disk)
        call.phase("note that it is not shelved")
        call.compute.note(call.instance, Note.SHELVED, None)
    if _ran(call):
        call.phase("start")
        call.compute.start(call.instance)
    return {}


def probe_unshelve(call: Call) -> Finding:
    """Done when it is shelved no more, and runs if it is to."""
    if "note" not in call.undo:
        return Finding.NOTHING
    found = call.facts()
    if found is None or Note.SHELVED in found.notes:
        return Finding.PARTIAL
    return Finding.DONE if found.power == State.RUNNING or not _ran(call) else Finding.PARTIAL


def undo_unshelve(call: Call) -> None:
    """Be shelved again, and delete the disks that were brought back. Their images are still there."""
    if "note" not in call.undo:
        return
    found = call.facts()
    if found is not None and Note.SHELVED not in found.notes:
        bring_down_for_undo(call)
        call.phase("note that it is shelved")
        call.compute.note(call.instance, Note.SHELVED, call.undo["note"])
    for volume in call.undo["made"]:
        call.phase(f"delete volume {volume}")
        call.compute.delete_volume(volume)


def commit_unshelve(call: Call) -> None:
    """Delete the images."""
    for image in json.loads(call.undo["note"])["images"] if "note" in call.undo else ():
        delete_image(call, image, _KIND)


def leftovers_of_unshelve(record: StepRecord) -> list[str]:
    """The disks that were brought back, by name."""
    return [f"volume {volume} on {record.host}" for volume in record.undo.get("made", [])]


def _becoming(call: Call, found: InstanceFacts, store: str) -> dict[str, dict[str, Any]]:
    """The instance's own disks by name, as the note will have them: each with the image that it becomes."""
    sizes = {volume.name: volume.capacity for volume in call.compute.volumes()}
    disks = {}
    for name, disk in disks_of(found).items():
        if disk.volume not in sizes:
            raise NotFound(f"cannot shelve {call.instance}: its disk {name} is not there", details=disk.volume)
        image = image_id(call.run.id, f"{call.step}/{name}")
        disks[name] = {"image": f"{store}/{image}", **asdict(disk), "size": sizes[disk.volume]}
    return disks


def _target(call: Call, name: str) -> str:
    """The volume through which a disk goes into its image."""
    return call.volume(f"shelve-{name}")


def _images(undo: Mapping[str, Any]) -> list[str]:
    return [disk["image"] for disk in undo.get("disks", {}).values()]


def _is_noted(call: Call) -> bool:
    """Whether the instance is shelved by this very step."""
    found = call.facts()
    return found is not None and read_note(found, Note.SHELVED).get("images") == _images(call.undo)


def _shelved(call: Call, found: InstanceFacts) -> Mapping[str, Any]:
    """The disks as the note has them, by name."""
    disks = read_note(found, Note.SHELVED).get("disks")
    if not isinstance(disks, dict):
        raise DriverError(
            f"cannot unshelve {call.instance}: its note does not say where its disks are",
            details=found.notes[Note.SHELVED][:200],
            resolution="the store may have them, as images of the type 'shelve': launch it anew from these",
        )
    return disks


def _ran(call: Call) -> bool:
    return bool(json.loads(call.undo["note"])["was"] == State.RUNNING)


def _bring_back(call: Call, name: str, disk: Mapping[str, Any]) -> None:
    """Make a disk anew from its image, under the name that it had."""
    base = base_of(call, disk["image"])
    call.phase(f"create disk {name}")
    call.compute.create_volume(
        disk["volume"],
        size=max(disk["size"], base.capacity),
        format=cast(Literal["qcow2", "raw"], disk["format"]),
        base=base.name,
        deadline=call.deadline,
    )


SHELVE = Action(
    do=do_shelve,
    probe=probe_shelve,
    undo=undo_shelve,
    commit=commit_shelve,
    leftovers=leftovers_of_shelve,
    outputs=outputs_of_shelve,
)
UNSHELVE = Action(
    do=do_unshelve,
    probe=probe_unshelve,
    undo=undo_unshelve,
    commit=commit_unshelve,
    leftovers=leftovers_of_unshelve,
)
