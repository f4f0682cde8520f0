"""start, stop and reboot."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, cast

from drivers.errors import DriverError
from flows.actions.action import Action, Finding, nothing_to_undo
from flows.call import Call
from planvirt.deadline import Deadline, DeadlinePassed
from planvirt.states import State

_OFF = frozenset({State.STOPPED})
_GRACE = 60.0  # seconds
_ASK_EVERY = 10.0
_WATCH = 15.0  # how long an undo watches a guest that was asked to shut down


class GuestIgnoredShutdown(DriverError):
    """The guest did not shut down within its grace time, and the plan does not allow force."""


def do_start(call: Call) -> Mapping[str, Any]:
    """Start the instance."""
    call.phase("start", was=call.state())
    call.compute.start(call.instance)
    return {}


def undo_start(call: Call) -> None:
    """Power off what was off before."""
    if call.undo.get("was") == State.STOPPED and call.facts() is not None:
        call.phase("power off")
        call.compute.power_off(call.instance)


def probe_start(call: Call) -> Finding:
    """Done when it was meant to and runs."""
    return Finding.DONE if "was" in call.undo and call.state() == State.RUNNING else Finding.NOTHING


def do_stop(call: Call) -> Mapping[str, Any]:
    """Ask the guest to shut down; after the grace time pull the plug if the plan says `force: true`, else fail."""
    call.phase("look at its state", was=call.state())
    return {"forced": bring_down(call)}


def bring_down(call: Call) -> bool:
    """Have the instance off, as the step's `grace` and `force` say. Returns whether the plug was pulled.

    A guest that stands still cannot hear, so the plug is pulled. Raises GuestIgnoredShutdown.
    """
    found = call.facts()
    power = State.STOPPED if found is None else found.power
    if power == State.STOPPED:
        return False
    if power != State.RUNNING:
        call.phase("power off")
        call.compute.power_off(call.instance)
        return True
    call.phase("ask the guest to shut down")
    grace = float(call.arguments.get("grace", _GRACE))
    try:
        _shut_down(call, call.within(grace).deadline)
    except DeadlinePassed as error:
        call.deadline.check()
        if not call.arguments.get("force", False):
            raise GuestIgnoredShutdown(
                f"cannot stop {call.instance}: the guest did not shut down within {grace:g} s",
                resolution="give it longer with 'grace', or allow 'force: true' in the step's 'with'",
            ) from error
    else:
        return False
    call.phase("power off")
    call.compute.power_off(call.instance)
    return True


def _shut_down(call: Call, deadline: Deadline) -> None:
    """Ask until the guest is off: one that is still booting does not hear the first time."""
    call.compute.request_shutdown(call.instance)
    call.phase("wait until it is off", asked=True)
    while True:
        try:
            call.compute.wait_state(call.instance, _OFF, deadline.within(_ASK_EVERY))
        except DeadlinePassed:
            deadline.check()
            call.compute.request_shutdown(call.instance)
        else:
            return


def bring_down_for_undo(call: Call) -> None:
    """Have the instance off, by force in the end. Its guest gets a moment to shut down, as other disks of it stay."""
    grace = min(float(call.arguments.get("grace", _WATCH)), _WATCH)
    bring_down(replace(call, arguments={"grace": grace, "force": True}))


def run_again(call: Call) -> None:
    """For an undo: start what ran before.

    A guest that still runs may yet follow the request to shut down, so it is watched.
    """
    if call.undo.get("was") != State.RUNNING:
        return
    if power_of(call) == State.RUNNING and call.undo.get("asked") and "started" not in call.undo:
        grace = float(call.arguments.get("grace", _GRACE))
        try:
            call.compute.wait_state(call.instance, _OFF, call.deadline.within(min(grace, _WATCH)))
        except DeadlinePassed:
            call.deadline.check()
            return
    if power_of(call) == State.STOPPED:
        call.phase("start", started=True)
        call.compute.start(call.instance)


def power_of(call: Call) -> State:
    """The hypervisor's own word for the instance's state, which no note hides."""
    found = call.facts()
    return State.ABSENT if found is None else found.power


def probe_stop(call: Call) -> Finding:
    """Done when it was meant to and is off; a guest that was asked may still be on its way."""
    if "was" not in call.undo:
        return Finding.NOTHING
    return Finding.DONE if call.state() == State.STOPPED else Finding.PARTIAL


def do_reboot(call: Call) -> Mapping[str, Any]:
    """Restart the instance and return when it has begun anew."""
    kind = cast(Literal["soft", "hard"], call.arguments.get("kind", "soft"))
    call.phase(f"{kind} reboot", was=call.state())
    call.compute.reboot(call.instance, kind, call.deadline)
    return {"kind": kind}


def probe_reboot(_: Call) -> Finding:
    """Nobody can tell whether a running guest was restarted; it is done again."""
    return Finding.NOTHING


START = Action(do=do_start, probe=probe_start, undo=undo_start)
STOP = Action(do=do_stop, probe=probe_stop, undo=run_again)
REBOOT = Action(do=do_reboot, probe=probe_reboot, undo=nothing_to_undo)
