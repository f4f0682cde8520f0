"""rebuild and restore: make a disk anew from an image. What was on it goes only when the run commits."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, Literal, cast

from drivers.compute import AttachedDisk, InstanceFacts
from drivers.errors import NotFound
from flows.actions.action import Action, Finding
from flows.actions.power import bring_down, bring_down_for_undo, run_again
from flows.call import Call
from flows.disks import disks_of, standing_for
from flows.images import base_of
from planvirt.errors import Conflict
from planvirt.journal.records import StepRecord
from planvirt.states import State


def do_rebuild(call: Call) -> Mapping[str, Any]:
    """Make the boot disk anew from the image, as large as a launch would make it.

    With the image that the plan declares, the instance is what the plan says afterwards, and is marked so.
    """
    found, declared = call.found(), call.arguments.get("declared")
    image = call.arguments.get("image", declared)
    if image is None:
        raise Conflict(
            f"cannot rebuild {call.instance}: the plan gives it no image",
            resolution="name one in the step's 'with', or give the instance an image",
        )
    name = _boot_disk(call, found)
    own = {disk.name: disk for disk in call.spec.disks} if call.spec else {}
    if name in found.keep or (name in own and own[name].keep):
        raise Conflict(
            f"cannot rebuild {call.instance}: its boot disk {name} is to be kept",
            resolution="take 'keep: true' away from the disk, or restore the disk from an image: 'action: restore'",
        )
    size = own[name].size if name in own else _size(call, found, name)
    _replace(call, found, name, str(image), size or 0)
    if call.spec is not None and image == declared and found.mark is not None:
        spec = call.spec.spec_after_rebuild(found.mark.spec)
        call.phase("mark it as what the plan says", spec=found.mark.spec, new_spec=spec)
        call.compute.set_spec(call.instance, spec)
    _start(call)
    return {}


def do_restore(call: Call) -> Mapping[str, Any]:
    """Make a disk anew from the image, not smaller than it is."""
    found = call.found()
    name = str(call.arguments.get("disk") or _boot_disk(call, found))
    _replace(call, found, name, str(call.arguments["image"]), _size(call, found, name))
    _start(call)
    return {}


def probe(call: Call) -> Finding:
    """Done when the new disk is in its place, the instance runs if it ran, and a rebuilt one is marked anew."""
    if "was" not in call.undo:
        return Finding.NOTHING
    found = call.facts()
    if found is None or found.mark is None or call.undo.get("new") not in found.volumes:
        return Finding.PARTIAL
    runs = call.undo["was"] != State.RUNNING or found.power == State.RUNNING
    marked = "declared" not in call.arguments or call.undo.get("new_spec") == found.mark.spec
    return Finding.DONE if runs and marked else Finding.PARTIAL


def undo(call: Call) -> None:
    """Put the earlier disk back, running if it ran, and delete the new one."""
    if "was" not in call.undo:
        return
    found, new = call.facts(), call.undo.get("new")
    made = [] if new is None else [new]
    if found is not None:
        now = None if new is None else standing_for(found, new, call.run.id)
        if now is not None and now.volume != call.undo["old"]["volume"]:
            made.append(now.volume)  # another one than the new disk when that has grown, and gone back to a copy
            bring_down_for_undo(call)
            call.phase("put the earlier disk back", made=made)
            call.compute.replace_disk(call.instance, now.volume, AttachedDisk(**call.undo["old"]))
        if "spec" in call.undo:
            call.phase("mark it as what it was")
            call.compute.set_spec(call.instance, call.undo["spec"])
    run_again(call)
    for volume in dict.fromkeys([*made, *call.undo.get("made", ())]):
        call.phase("delete the new disk")
        call.compute.delete_volume(volume)


def commit(call: Call) -> None:
    """Delete the earlier disk."""
    if "old" in call.undo:
        call.phase("delete the earlier disk")
        call.compute.delete_volume(call.undo["old"]["volume"])


def leftovers(record: StepRecord) -> list[str]:
    """The new disk, by name."""
    return [f"volume {record.undo['new']} on {record.host}"] if "new" in record.undo else []


def _boot_disk(call: Call, found: InstanceFacts) -> str:
    """The name of the disk that the instance boots from."""
    for name, disk in disks_of(found).items():
        if disk == found.disks[0]:
            return name
    raise Conflict(
        f"cannot make the boot disk of {call.instance} anew: "
        + (f"{found.volumes[0]} was not made for it" if found.disks else "it has no disk"),
        resolution="declare the instance with a disk or an image, and launch it anew",
    )


def _size(call: Call, found: InstanceFacts, name: str) -> int:
    """How large the disk is now."""
    disk = disks_of(found).get(name)
    volumes = {volume.name: volume.capacity for volume in call.compute.volumes()}
    return 0 if disk is None else volumes.get(disk.volume, 0)


def _replace(call: Call, found: InstanceFacts, name: str, image: str, size: int) -> None:
    """Have the instance use a new disk of the image in place of one of its own.

    The new disk is made first, so that the guest is off for a shorter time.
    """
    present = disks_of(found).get(name)
    if present is None:
        raise NotFound(
            f"cannot make disk {name} of {call.instance} anew: it has {', '.join(disks_of(found)) or 'none'}",
            resolution="name one of its disks in the step's 'with', or leave 'disk' out for the boot disk",
        )
    call.phase("look at its state", was=found.power, old=asdict(present))
    old = AttachedDisk(**call.undo["old"])
    new = replace(old, volume=call.volume(name))
    if new.volume in found.volumes:
        return  # an earlier attempt came that far
    base = base_of(call, image)
    call.phase("create the new disk", new=new.volume)
    call.compute.create_volume(
        new.volume,
        size=max(size, base.capacity),
        format=cast(Literal["qcow2", "raw"], old.format),
        base=base.name,
        deadline=call.deadline,
    )
    bring_down(call)
    call.phase("put the new disk in its place")
    call.compute.replace_disk(call.instance, old.volume, new)


def _start(call: Call) -> None:
    if call.undo["was"] == State.RUNNING:
        call.phase("start")
        call.compute.start(call.instance)


REBUILD = Action(do=do_rebuild, probe=probe, undo=undo, commit=commit, leftovers=leftovers)
RESTORE = Action(do=do_restore, probe=probe, undo=undo, commit=commit, leftovers=leftovers)
