"""suspend and resume: save a guest's memory to the host's disk, and go on from there."""

from collections.abc import Mapping
from typing import Any

from flows.actions.action import Action, Finding
from flows.call import Call
from planvirt.states import State

_AWAKE = (State.RUNNING, State.PAUSED)


def do_suspend(call: Call) -> Mapping[str, Any]:
    """Save the guest's memory; the guest is off then."""
    call.phase("suspend", was=call.state())
    call.compute.suspend(call.instance, call.deadline)
    return {}


def undo_suspend(call: Call) -> None:
    """Resume what ran before. The driver lets a saving end that a process has begun which is dead now."""
    if call.undo.get("was") in _AWAKE and call.state() == State.SUSPENDED:
        call.phase("resume")
        call.compute.resume(call.instance, call.deadline)


def probe_suspend(call: Call) -> Finding:
    """Done when it was meant to and is suspended. To do it again is to wait until all of the memory is saved."""
    return Finding.PARTIAL if "was" in call.undo and call.state() == State.SUSPENDED else Finding.NOTHING


def do_resume(call: Call) -> Mapping[str, Any]:
    """Let the guest go on, or be paused again if it was paused when it was saved."""
    call.phase("resume", was=call.state())
    call.compute.resume(call.instance, call.deadline)
    return {}


def undo_resume(call: Call) -> None:
    """Suspend what was suspended before; also what only seems to be, as its memory is still being read."""
    if call.undo.get("was") == State.SUSPENDED and call.state() in (*_AWAKE, State.SUSPENDED):
        call.phase("suspend")
        call.compute.suspend(call.instance, call.deadline)


def probe_resume(call: Call) -> Finding:
    """Done when it was meant to and is awake."""
    return Finding.DONE if "was" in call.undo and call.state() in _AWAKE else Finding.NOTHING


SUSPEND = Action(do=do_suspend, probe=probe_suspend, undo=undo_suspend)
RESUME = Action(do=do_resume, probe=probe_resume, undo=undo_resume)
