"""wait: until the guest has written a text to its console, has an address, answers on a port, or is in a state."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from drivers.errors import NotFound, Transient
from flows.actions.action import Action, Finding, nothing_to_undo
from flows.call import Call
from planvirt.deadline import DeadlinePassed
from planvirt.plan import Ready
from planvirt.secret import revealed
from planvirt.states import State

_LOOK_EVERY = 0.25  # seconds between two looks at what sends no events: consoles, addresses and ports


class NotReady(Transient):
    """What was waited for did not come in time."""


def do(call: Call) -> Mapping[str, Any]:
    """Wait for everything that `with` names. The step's time-out is the limit."""
    wanted = {key: revealed(value) for key, value in call.arguments.items()}
    outputs: dict[str, Any] = {}
    call.phase("wait for " + ", ".join(_words(wanted)))
    if state := wanted.get("for"):
        call.compute.wait_state(call.instance, frozenset({State(state)}), call.deadline)
    if text := wanted.get("console"):
        _until(call, lambda: str(text) in call.compute.console(call.instance), f"console text {str(text)!r}")
    if wanted.get("address") or wanted.get("port"):
        _until(call, lambda: bool(call.compute.addresses(call.instance)), "an address")
        outputs["addresses"] = list(call.compute.addresses(call.instance))
    if port := wanted.get("port"):
        _until(call, lambda: _answers(call, int(port)), f"port {port}")
    return outputs


def wait_ready(call: Call, ready: Ready) -> None:
    """Wait until a launched instance counts as up; raises NotReady after `ready.within` seconds."""
    wanted = {"console": ready.console, "port": ready.port, "address": ready.address}
    limited = replace(call.within(ready.within), arguments=wanted)
    try:
        do(limited)
    except DeadlinePassed as error:
        call.deadline.check()
        raise NotReady(
            f"cannot see {call.instance} ready: no {', '.join(_words(wanted))} within {ready.within:g} s",
            details=_last_line(call),
            resolution="look at the instance's console, or give it longer with 'ready: {within: …}'",
        ) from error


def probe(_: Call) -> Finding:
    """Waiting leaves nothing: it is simply done again."""
    return Finding.NOTHING


def _words(wanted: Mapping[str, Any]) -> list[str]:
    words = []
    if wanted.get("for"):
        words.append(f"state {wanted['for']}")
    if wanted.get("console"):
        words.append(f"console text {str(wanted['console'])!r}")
    if wanted.get("address"):
        words.append("an address")
    if wanted.get("port"):
        words.append(f"port {wanted['port']}")
    return words


def _until(call: Call, holds: Callable[[], bool], what: str) -> None:
    while not holds():
        try:
            call.deadline.sleep(_LOOK_EVERY)
        except DeadlinePassed as error:
            raise DeadlinePassed(f"no {what} on {call.instance}; {_last_line(call)}") from error
        found = call.facts()
        if found is None or found.power not in (State.RUNNING, State.PAUSED):
            raise NotFound(
                f"cannot wait for {what}: {call.instance} is {found.power if found else State.ABSENT}",
                details=_last_line(call),
                resolution="look at the instance's console for why it went down",
            )


def _answers(call: Call, port: int) -> bool:
    return any(call.world.answers(address, port) for address in call.compute.addresses(call.instance))


def _last_line(call: Call) -> str:
    """What the guest said last: often the reason."""
    lines = [line.strip() for line in call.compute.console(call.instance).splitlines() if line.strip()]
    return f"the console's last line is {lines[-1][:200]!r}" if lines else "the console is empty"


ACTION = Action(do=do, probe=probe, undo=nothing_to_undo)
