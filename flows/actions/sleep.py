"""sleep: let some time pass between two operations. It touches nothing."""

from collections.abc import Mapping
from typing import Any

from flows.actions.action import Action, Finding, nothing_to_undo
from flows.call import Call


def do(call: Call) -> Mapping[str, Any]:
    """Sleep as long as the plan says, or until the run is interrupted. After a crash it begins anew."""
    seconds = float(call.arguments["for"])
    call.phase(f"sleep for {seconds:g} s")
    call.deadline.sleep(seconds)
    return {}


def probe(_: Call) -> Finding:
    """Nobody can tell how long it has slept."""
    return Finding.NOTHING


ACTION = Action(do=do, probe=probe, undo=nothing_to_undo)
