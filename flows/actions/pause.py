"""pause and unpause: stop a guest in its tracks, and let it go on. Its memory stays where it is."""

from collections.abc import Mapping
from typing import Any

from flows.actions.action import Action, Finding
from flows.call import Call
from planvirt.states import State


def do_pause(call: Call) -> Mapping[str, Any]:
    """Pause the guest."""
    call.phase("pause", was=call.state())
    call.compute.pause(call.instance)
    return {}


def undo_pause(call: Call) -> None:
    """Let a guest go on that ran before."""
    if call.undo.get("was") == State.RUNNING and call.state() == State.PAUSED:
        call.phase("unpause")
        call.compute.unpause(call.instance)


def probe_pause(call: Call) -> Finding:
    """Done when it was meant to and is paused."""
    return Finding.DONE if "was" in call.undo and call.state() == State.PAUSED else Finding.NOTHING


def do_unpause(call: Call) -> Mapping[str, Any]:
    """Let the guest go on."""
    call.phase("unpause", was=call.state())
    call.compute.unpause(call.instance)
    return {}


def undo_unpause(call: Call) -> None:
    """Pause a guest that was paused before."""
    if call.undo.get("was") == State.PAUSED and call.state() == State.RUNNING:
        call.phase("pause")
        call.compute.pause(call.instance)


def probe_unpause(call: Call) -> Finding:
    """Done when it was meant to and runs."""
    return Finding.DONE if "was" in call.undo and call.state() == State.RUNNING else Finding.NOTHING


PAUSE = Action(do=do_pause, probe=probe_pause, undo=undo_pause)
UNPAUSE = Action(do=do_unpause, probe=probe_unpause, undo=undo_unpause)
