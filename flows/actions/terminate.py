"""terminate: set an instance aside; only the end of a successful run deletes it and its disks."""

from collections.abc import Mapping
from typing import Any

from flows.actions.action import Action, Finding
from flows.call import Call
from planvirt.journal.records import StepRecord
from planvirt.mark import read_volume_name
from planvirt.states import State


def do(call: Call) -> Mapping[str, Any]:
    """Power the instance off and put it out of the way. Its disks stay until the run commits."""
    found = call.facts()
    if found is None:
        return {}
    call.phase("set aside", was=found.state, volumes=_doomed(call, found.volumes), aside=call.instance, run=call.run.id)
    call.compute.set_aside(call.instance, call.run.id)
    return {}


def probe(call: Call) -> Finding:
    """Done when the name is free again."""
    return Finding.DONE if call.facts() is None and "aside" in call.undo else Finding.NOTHING


def undo(call: Call) -> None:
    """Bring the instance back, with its disks, running if it ran."""
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
    if "aside" not in call.undo:
        return
    call.phase(f"delete {call.instance}")
    call.compute.delete_set_aside(call.instance, call.run.id)
    for volume in call.undo.get("volumes", []):
        call.phase(f"delete volume {volume}")
        call.compute.delete_volume(volume)


def leftovers(record: StepRecord) -> list[str]:
    """The instance that is still set aside."""
    return (
        [f"instance {record.instance} on {record.host}, set aside by run {record.undo['run']}"]
        if "aside" in record.undo
        else []
    )


def _doomed(call: Call, volumes: tuple[str, ...]) -> list[str]:
    """The volumes that go with the instance: all but those that the plan keeps."""
    kept = set(call.arguments.get("keep", ()))
    doomed = []
    for volume in volumes:
        named = read_volume_name(volume)
        if named is not None and named[1] not in kept:
            doomed.append(volume)
    return doomed


ACTION = Action(do=do, probe=probe, undo=undo, commit=commit, leftovers=leftovers)
