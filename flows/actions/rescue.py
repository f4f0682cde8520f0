"""rescue and unrescue: boot an instance from another image, with its own disks behind that, and from its own again."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from drivers.compute import AttachedDisk
from drivers.errors import NotFound
from flows.actions.action import Action, Finding
from flows.actions.power import bring_down, bring_down_for_undo, run_again
from flows.call import Call
from flows.disks import disks_of
from flows.images import base_of
from planvirt.errors import Conflict
from planvirt.journal.records import StepRecord
from planvirt.states import Note, State

_DISK = "rescue"  # the name of the disk that a rescued instance boots from


def do_rescue(call: Call) -> Mapping[str, Any]:
    """Boot the instance from a fresh disk of the image, made first, so that the guest is off for a shorter time."""
    found = call.found("rescue")
    if Note.RESCUED not in found.notes:
        if _DISK in disks_of(found):
            raise Conflict(
                f"cannot rescue {call.instance}: it has a disk named {_DISK}",
                details="that is the name of the disk that a rescued instance boots from",
                resolution="detach that disk first, or give it another name in the plan",
            )
        call.phase("look at its state", was=found.power)
        base = base_of(call, str(call.arguments["image"]))
        volume = call.volume(_DISK)
        call.phase("create the rescue disk", volume=volume)
        call.compute.create_volume(volume, size=base.capacity, format="qcow2", base=base.name, deadline=call.deadline)
        bring_down(call)
        call.phase("boot from the rescue disk")
        call.compute.rescue(call.instance, AttachedDisk(volume))
    call.phase("start")
    call.compute.start(call.instance)
    return {}


def probe_rescue(call: Call) -> Finding:
    """Done when it was meant to and runs from the rescue disk."""
    if "was" not in call.undo:
        return Finding.NOTHING
    found = call.facts()
    rescued = found is not None and Note.RESCUED in found.notes and found.power == State.RUNNING
    return Finding.DONE if rescued else Finding.PARTIAL


def undo_rescue(call: Call) -> None:
    """Boot from its own disk again, running if it ran, and delete the rescue disk."""
    if "was" not in call.undo:
        return
    found = call.facts()
    if found is not None and Note.RESCUED in found.notes:
        bring_down_for_undo(call)
        call.phase("boot from its own disk again")
        call.compute.unrescue(call.instance)
    run_again(call)
    if "volume" in call.undo:
        call.phase("delete the rescue disk")
        call.compute.delete_volume(call.undo["volume"])


def leftovers_of_rescue(record: StepRecord) -> list[str]:
    """The rescue disk, by name."""
    return [f"volume {record.undo['volume']} on {record.host}"] if "volume" in record.undo else []


def do_unrescue(call: Call) -> Mapping[str, Any]:
    """Boot the instance from its own disk again. The rescue disk stays until the run commits."""
    found = call.found("unrescue")
    if Note.RESCUED in found.notes:
        disk = disks_of(found).get(_DISK)
        call.phase("look at its state", was=found.power, disk=None if disk is None else asdict(disk))
        bring_down(call)
        call.phase("boot from its own disk again")
        call.compute.unrescue(call.instance)
    call.phase("start")
    call.compute.start(call.instance)
    return {}


def probe_unrescue(call: Call) -> Finding:
    """Done when it was meant to and runs, rescued no more."""
    if "was" not in call.undo:
        return Finding.NOTHING
    return Finding.DONE if call.state() == State.RUNNING else Finding.PARTIAL


def undo_unrescue(call: Call) -> None:
    """Boot from the rescue disk again, running if it ran."""
    if "was" not in call.undo:
        return
    found = call.facts()
    if found is not None and Note.RESCUED not in found.notes:
        if call.undo["disk"] is None:
            raise NotFound(
                f"cannot rescue {call.instance} again: its rescue disk was gone before the run",
                resolution="rescue it anew in a run of its own",
            )
        bring_down_for_undo(call)
        call.phase("boot from the rescue disk again")
        call.compute.rescue(call.instance, AttachedDisk(**call.undo["disk"]))
    run_again(call)


def commit_unrescue(call: Call) -> None:
    """Delete the rescue disk."""
    if call.undo.get("disk") is not None:
        call.phase("delete the rescue disk")
        call.compute.delete_volume(call.undo["disk"]["volume"])


RESCUE = Action(do=do_rescue, probe=probe_rescue, undo=undo_rescue, leftovers=leftovers_of_rescue)
UNRESCUE = Action(do=do_unrescue, probe=probe_unrescue, undo=undo_unrescue, commit=commit_unrescue)
