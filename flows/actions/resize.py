"""resize: other numbers of processors, other memory, larger disks; while the guest runs if that can be.

Before a disk grows, a copy of it is made: a flat one in the disk's own format. Undoing the resize puts the copies in
the place of the grown disks, so that what was written to these since is gone with them. Copies are deleted when the run
succeeds, or with `confirm: manual` by a later `confirm_resize`.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal, cast

from drivers.compute import InstanceFacts, Sizes
from flows.actions.action import Action, Finding
from flows.actions.power import bring_down, bring_down_for_undo, run_again
from flows.call import Call
from flows.disks import disks_of
from flows.earlier_size import EarlierSize, GrownDisk, capacities_of, exchange
from flows.sizing import growing, needs_reboot, wanted
from planvirt.errors import Conflict
from planvirt.journal.records import StepRecord
from planvirt.states import Note
from planvirt.units import format_size


def do(call: Call) -> Mapping[str, Any]:
    """Change the sizes. What is so already is left alone, and then there is nothing to undo.

    With `confirm: manual` the instance is `resized` afterwards in any case: a plan that goes on with `confirm_resize`
    runs a second time, too.
    """
    found = call.found("resize")
    if "to" not in call.undo:
        sizes, grow = wanted(call.arguments, call.spec, found), _growing(call, found)
        _check_reboot(call, found, sizes)
        if (sizes, grow) == (found.sizes, {}) and not _manual(call):
            return _outputs(sizes)
        call.phase(
            "look at its size",
            was=found.state,
            earlier=_earlier(call, found, grow).as_dict(),
            to=asdict(sizes),
            grow=grow,
            reboot=needs_reboot(found, sizes),
        )
    sizes, grow, earlier = Sizes(**call.undo["to"]), call.undo["grow"], _kept(call)
    if needs_reboot(found, sizes):
        bring_down(call)
    if "copied" not in call.undo:  # a copy that is made again later would be one of the grown disk
        for disk in earlier.disks:
            _copy(call, found, disk)
    if found.sizes != sizes:
        call.phase(f"change to {_text(sizes)}", copied=True)
        call.compute.resize(call.instance, sizes)
    for disk, size in grow.items():
        call.phase(f"grow disk {disk} to {format_size(size)}", copied=True)
        call.compute.grow_disk(call.instance, disks_of(found)[disk].volume, size)
    if call.undo["reboot"]:
        call.phase("start", started=True)
        call.compute.start(call.instance)
    if _manual(call):
        call.phase("note the earlier size")
        call.compute.note(call.instance, Note.RESIZED, earlier.note())
    return outputs(call)


def outputs(call: Call) -> Mapping[str, Any]:
    """The sizes as they are now, of disks those that have grown, and whether the guest was restarted for it."""
    return _outputs(Sizes(**call.undo["to"]), call.undo["grow"], rebooted=call.undo["reboot"])


def probe(call: Call) -> Finding:
    """Done when everything is as large as it was meant to be, the guest runs if it ran, and the note is written."""
    if "to" not in call.undo:
        return Finding.NOTHING
    found = call.facts()
    if found is None or found.sizes != Sizes(**call.undo["to"]) or found.power != call.undo["was"]:
        return Finding.PARTIAL
    disks, capacities = disks_of(found), capacities_of(call)
    grown = all(
        name in disks and capacities.get(disks[name].volume, 0) >= size for name, size in call.undo["grow"].items()
    )
    noted = not _manual(call) or Note.RESIZED in found.notes
    return Finding.DONE if grown and noted else Finding.PARTIAL


def undo(call: Call) -> None:
    """Go back to the earlier sizes, live if that can be, and to the copies of disks that have grown."""
    if "earlier" not in call.undo:
        return
    earlier, found = _kept(call), call.facts()
    if found is not None:
        call.phase("go back to the earlier size", replaced=earlier.grown(call, found))
        replaced = call.undo["replaced"]
        exchange(call, earlier.sizes, replaced, earlier.copies(replaced), bring_down_for_undo)
        if found.notes.get(Note.RESIZED) == earlier.note():
            call.phase("strike out the note")
            call.compute.note(call.instance, Note.RESIZED, None)
        run_again(call)
    for volume in _useless(call, earlier):
        call.phase(f"delete volume {volume}")
        call.compute.delete_volume(volume)


def commit(call: Call) -> None:
    """Delete the copies, unless somebody is to confirm the new size first."""
    if "earlier" not in call.undo or _manual(call):
        return
    for disk in _kept(call).disks:
        call.phase(f"delete the copy of disk {disk.name}")
        call.compute.delete_volume(disk.copy)


def leftovers(record: StepRecord) -> list[str]:
    """The size, and the copies by name."""
    if "earlier" not in record.undo:
        return []
    copies = [f"volume {disk.copy} on {record.host}" for disk in EarlierSize.read(record.undo["earlier"]).disks]
    return [f"the new size of instance {record.instance} on {record.host}", *copies]


def _manual(call: Call) -> bool:
    return call.arguments.get("confirm") == "manual"


def _kept(call: Call) -> EarlierSize:
    return EarlierSize.read(call.undo["earlier"])


def _growing(call: Call, found: InstanceFacts) -> dict[str, int]:
    """The disks that must grow, by name."""
    volumes = growing(call.arguments, call.spec, found, capacities_of(call))
    return {name: volumes[disk.volume] for name, disk in disks_of(found).items() if disk.volume in volumes}


def _earlier(call: Call, found: InstanceFacts, grow: Mapping[str, int]) -> EarlierSize:
    capacities, disks = capacities_of(call) if grow else {}, disks_of(found)
    copied = [
        GrownDisk(
            name=name,
            size=capacities[disks[name].volume],
            copy=call.volume(name),
            format=cast(Literal["qcow2", "raw"], disks[name].format),
            bus=disks[name].bus,
        )
        for name in grow
    ]
    return EarlierSize(found.state, found.sizes, tuple(copied))


def _check_reboot(call: Call, found: InstanceFacts, sizes: Sizes) -> None:
    if call.arguments.get("reboot") or not needs_reboot(found, sizes):
        return
    now = found.sizes
    raise Conflict(
        f"cannot resize {found.name}: to have {_text(sizes)} needs a reboot",
        details=f"it is {found.power} with {now.vcpus} of at most {now.max_vcpus} vcpus "
        f"and {format_size(now.memory)} of at most {format_size(now.max_memory)}",
        resolution="allow it with 'reboot: true' in the step's 'with', or in the instance's 'resize'",
    )


def _text(sizes: Sizes) -> str:
    return f"{sizes.vcpus} vcpus and {format_size(sizes.memory)}"


def _copy(call: Call, found: InstanceFacts, disk: GrownDisk) -> None:
    """Copy a disk as it is at one moment. What a guest has written to a raw one is never taken for a format."""
    call.phase(f"keep a copy of disk {disk.name}")
    target = disk.copy if disk.format == "qcow2" else _flat(call, disk)
    source = disks_of(found)[disk.name].volume
    call.compute.export_disks(call.instance, {source: target}, deadline=call.deadline)
    if disk.format == "raw":
        call.compute.delete_volume(disk.copy)  # an earlier attempt's may be of another moment
        call.compute.create_volume(disk.copy, size=disk.size, format="raw", base=target, deadline=call.deadline)
        call.compute.delete_volume(target)


def _flat(call: Call, disk: GrownDisk) -> str:
    """What the copy of a raw disk is made from. No disk of a plan has a name that ends like this."""
    return call.volume(f"{disk.name}-")


def _useless(call: Call, earlier: EarlierSize) -> list[str]:
    """What nobody needs after an undo: the disks that were replaced by their copies, otherwise the copies."""
    attached = {volume for found in call.compute.instances() for volume in found.volumes}
    replaced = call.undo.get("replaced", {})
    volumes = [_flat(call, disk) for disk in earlier.disks if disk.format == "raw"]
    for disk in earlier.disks:
        if disk.copy not in attached:
            volumes.append(disk.copy)
        elif disk.name in replaced:
            volumes.append(replaced[disk.name])
    return volumes


def _outputs(sizes: Sizes, grown: Mapping[str, int] | None = None, *, rebooted: bool = False) -> dict[str, Any]:
    return {"vcpus": sizes.vcpus, "memory": sizes.memory, "disks": dict(grown or {}), "rebooted": rebooted}


ACTION = Action(do=do, probe=probe, undo=undo, commit=commit, leftovers=leftovers, outputs=outputs)
