"""terminate: set an instance aside; only the end of a successful run deletes it and its disks, shelved ones too."""

from collections.abc import Mapping
from typing import Any

from drivers.compute import InstanceFacts
from flows.actions.action import Action, Finding
from flows.call import Call
from flows.disk_image import delete_image
from flows.kept_disks import doomed, doomed_images
from planvirt.journal.records import StepRecord
from planvirt.states import State


def do(call: Call) -> Mapping[str, Any]:
    """Power the instance off and put it out of the way. Its disks stay until the run commits.

    With the argument `aside` it is about what that earlier run has set aside, and nothing is done before the commit.
    """
    if "aside" in call.arguments:
        left = _left_aside(call, call.arguments["aside"])
        if left is not None:
            call.phase("delete at the end", **_belongings(call, left), left_by=left.set_aside)
        return {}
    found = call.facts()
    if found is None:
        return {}
    call.phase(
        "set aside",
        was=found.power,
        **_belongings(call, found),
        preempted=call.arguments.get("preempts", []),
        aside=call.instance,
        run=call.run.id,
    )
    call.compute.set_aside(call.instance, call.run.id)
    return {}


def probe(call: Call) -> Finding:
    """Done when the instance is where this run meant to put it, or gone from where it was meant to be taken."""
    if "left_by" in call.undo:
        return Finding.DONE
    if "aside" not in call.undo:
        return Finding.NOTHING
    return Finding.NOTHING if call.facts() is not None else Finding.DONE


def undo(call: Call) -> None:
    """Bring the instance back, with its disks, running if it ran. What an earlier run left is as it was."""
    if "aside" not in call.undo:
        return
    if call.facts() is None:
        call.phase("bring back")
        call.compute.bring_back(call.instance, call.run.id)
    if call.undo.get("was") == State.RUNNING:
        call.phase("start")
        call.compute.start(call.instance)


def commit(call: Call) -> None:
    """Delete for good what was set aside."""
    run = call.undo.get("left_by") or call.undo.get("run")
    if run is None:
        return
    call.phase(f"delete {call.instance}")
    call.compute.delete_set_aside(call.instance, run)
    for volume in dict.fromkeys([*call.undo.get("volumes", []), *_half_made(call)]):
        call.phase(f"delete volume {volume}")
        call.compute.delete_volume(volume)
    for image in call.undo.get("images", []):
        delete_image(call, image, "shelve")


def leftovers(record: StepRecord) -> list[str]:
    """The instance that is still set aside."""
    return (
        [f"instance {record.instance} on {record.host}, set aside by run {record.undo['run']}"]
        if "aside" in record.undo
        else []
    )


def _left_aside(call: Call, run: str) -> InstanceFacts | None:
    """The instance as `run` has left it; None when it is gone or back."""
    found = (item for item in call.compute.instances() if (item.uuid, item.set_aside) == (call.uuid, run))
    return next(found, None)


def _half_made(call: Call) -> list[str]:
    """Volumes for the instance of a run that this one has pre-empted: it stopped where it was, and left them."""
    losers = call.undo.get("preempted", ())
    if not losers:
        return []
    attached = {volume for found in call.compute.instances() for volume in found.volumes}
    return [
        volume.name
        for volume in call.compute.volumes()
        if volume.mark is not None
        and (volume.mark.plan, volume.mark.instance) == (call.run.plan, call.instance)
        and volume.mark.run in losers
        and volume.name not in attached
    ]


def _belongings(call: Call, found: InstanceFacts) -> dict[str, list[str]]:
    """What goes with the instance at the commit."""
    keep = call.arguments.get("keep", ())
    return {"volumes": doomed(call.run.plan, call.instance, found, keep), "images": doomed_images(found, keep)}


ACTION = Action(do=do, probe=probe, undo=undo, commit=commit, leftovers=leftovers)
