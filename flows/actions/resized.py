"""confirm_resize and revert_resize: keep the new size of an instance that is `resized` for good, or go back from it."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from drivers.compute import AttachedDisk, InstanceFacts, Sizes
from drivers.errors import NotFound
from flows.actions.action import Action, Finding
from flows.actions.power import bring_down, bring_down_for_undo, power_of, run_again
from flows.call import Call
from flows.disks import disks_of
from flows.earlier_size import EarlierSize, exchange
from planvirt.journal.records import StepRecord
from planvirt.states import Note, State


def do_confirm(call: Call) -> Mapping[str, Any]:
    """Strike out the note. The copies of disks that have grown stay until the run commits."""
    call.phase("strike out the note", note=_note(call, call.found()))
    call.compute.note(call.instance, Note.RESIZED, None)
    return {}


def probe_confirm(call: Call) -> Finding:
    """Done when it was meant to and the note is struck out."""
    return Finding.DONE if "note" in call.undo and not _noted(call) else Finding.NOTHING


def undo_confirm(call: Call) -> None:
    """Write the note again."""
    if "note" in call.undo and not _noted(call) and call.facts() is not None:
        call.phase("note the earlier size")
        call.compute.note(call.instance, Note.RESIZED, call.undo["note"])


def commit_confirm(call: Call) -> None:
    """Delete the copies."""
    if "note" not in call.undo:
        return
    for disk in _earlier(call).disks:
        call.phase(f"delete the copy of disk {disk.name}")
        call.compute.delete_volume(disk.copy)


def do_revert(call: Call) -> Mapping[str, Any]:
    """Go back to the earlier size, and put the copies in the place of grown disks, which stay until the run commits.

    What was written to these disks since the resize is gone then. A guest that must be off for it is asked to shut
    down, as the step's `grace` and `force` say; what ran before the resize runs again.
    """
    found = call.found()
    earlier = EarlierSize.noted(_note(call, found))
    grown = earlier.grown(call, found)
    disks = disks_of(found)
    call.phase(
        "look at its size",
        was=found.power,
        note=earlier.note(),
        sizes=asdict(found.sizes),
        grown={name: asdict(disks[name]) for name in grown},
    )
    out = {name: disk["volume"] for name, disk in call.undo["grown"].items()}
    exchange(call, earlier.sizes, out, earlier.copies(out), bring_down)
    if State.RUNNING in (earlier.was, call.undo["was"]):
        call.phase("start", started=True)
        call.compute.start(call.instance)
    call.phase("strike out the note")
    call.compute.note(call.instance, Note.RESIZED, None)
    return outputs_revert(call)


def outputs_revert(call: Call) -> Mapping[str, Any]:
    """The earlier size, and the names of the disks that are as they were."""
    earlier = _earlier(call)
    return {"vcpus": earlier.sizes.vcpus, "memory": earlier.sizes.memory, "disks": list(call.undo["grown"])}


def probe_revert(call: Call) -> Finding:
    """Done when the note, which is struck out last, is gone."""
    if "note" not in call.undo:
        return Finding.NOTHING
    return Finding.PARTIAL if _noted(call) else Finding.DONE


def undo_revert(call: Call) -> None:
    """Take the new size and the grown disks again, and write the note."""
    found = call.facts()
    if "note" not in call.undo or found is None:
        return
    disks, grown = disks_of(found), {name: AttachedDisk(**disk) for name, disk in call.undo["grown"].items()}
    out = {name: disks[name].volume for name in grown if name in disks}
    exchange(call, Sizes(**call.undo["sizes"]), out, grown, bring_down_for_undo)
    if Note.RESIZED not in found.notes:
        call.phase("note the earlier size")
        call.compute.note(call.instance, Note.RESIZED, call.undo["note"])
    if call.undo["was"] == State.STOPPED and power_of(call) == State.RUNNING:
        call.phase("power off")
        call.compute.power_off(call.instance)
    run_again(call)


def commit_revert(call: Call) -> None:
    """Delete the grown disks, and the copies of those that were as they had been."""
    if "note" not in call.undo:
        return
    grown = call.undo["grown"]
    for disk in _earlier(call).disks:
        volume = grown[disk.name]["volume"] if disk.name in grown else disk.copy
        call.phase(f"delete volume {volume}")
        call.compute.delete_volume(volume)


def leftovers_revert(record: StepRecord) -> list[str]:
    """The earlier size, and the grown disks by name."""
    if "note" not in record.undo:
        return []
    grown = [f"volume {disk['volume']} on {record.host}" for disk in record.undo["grown"].values()]
    return [f"the earlier size of instance {record.instance} on {record.host}", *grown]


def _note(call: Call, found: InstanceFacts) -> str:
    """What was noted when the step began."""
    text = call.undo.get("note", found.notes.get(Note.RESIZED))
    if text is None:
        raise NotFound(f"cannot find an earlier size of {call.instance}: it is not resized")
    return str(text)


def _noted(call: Call) -> bool:
    found = call.facts()
    return found is not None and Note.RESIZED in found.notes


def _earlier(call: Call) -> EarlierSize:
    return EarlierSize.noted(call.undo["note"])


CONFIRM = Action(do=do_confirm, probe=probe_confirm, undo=undo_confirm, commit=commit_confirm)
REVERT = Action(
    do=do_revert,
    probe=probe_revert,
    undo=undo_revert,
    commit=commit_revert,
    leftovers=leftovers_revert,
    outputs=outputs_revert,
)
