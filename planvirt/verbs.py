"""The verb table: in which states a verb is allowed, what it leaves behind, what it costs and how it is undone.

It exists once. Preview, guards and the reference page all read it here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from planvirt.states import EXISTING, State


class Impact(StrEnum):
    """What a change means for whoever uses the instance."""

    NONE = "none"
    LIVE = "live"
    NEXT_BOOT = "next-boot"
    REBOOT = "reboot"
    REPLACE = "replace"
    DATA_LOSS = "data-loss"


@dataclass(frozen=True, slots=True)
class Verb:
    """One row of the table. `leaves` is None where the state stays as it is; `undo` is what rollback does, in words.

    A locked instance refuses what is `changing`. A snapshot takes something and changes nothing, so it is not.
    """

    name: str
    allowed: frozenset[State]
    leaves: State | None
    impact: Impact
    undo: str
    summary: str
    changing: bool = True


def _states(*states: State) -> frozenset[State]:
    return frozenset(states)


# fmt: off
_ROWS = (
    Verb("launch", _states(State.ABSENT), State.RUNNING, Impact.LIVE,
         "terminate what this run created", "create the instance with its disks and start it"),
    Verb("start", _states(State.STOPPED), State.RUNNING, Impact.LIVE,
         "stop", "start a stopped instance"),
    Verb("stop", _states(State.RUNNING, State.ERROR, State.STOPPED), State.STOPPED, Impact.REBOOT,
         "start", "ask the guest to shut down; by force after a grace time only if the plan allows it"),
    Verb("reboot soft", _states(State.RUNNING), State.RUNNING, Impact.REBOOT,
         "none needed", "ask the guest to restart"),
    Verb("reboot hard", _states(State.RUNNING, State.STOPPED, State.PAUSED, State.SUSPENDED, State.ERROR),
         State.RUNNING, Impact.REBOOT,
         "none needed", "power the instance off and start it again"),
    Verb("pause", _states(State.RUNNING), State.PAUSED, Impact.LIVE,
         "unpause", "stop the guest in its tracks; its memory stays where it is"),
    Verb("unpause", _states(State.PAUSED), State.RUNNING, Impact.LIVE,
         "pause", "let a paused guest go on"),
    Verb("suspend", _states(State.RUNNING), State.SUSPENDED, Impact.LIVE,
         "resume", "save the guest's memory to the host's disk, and be off"),
    Verb("resume", _states(State.SUSPENDED), State.RUNNING, Impact.LIVE,
         "suspend", "let a suspended guest go on from its saved memory, paused if it was paused"),
    Verb("snapshot", _states(State.RUNNING, State.STOPPED, State.PAUSED, State.SUSPENDED), None, Impact.LIVE,
         "delete the image", "copy a disk of the instance into a verified image", changing=False),
    Verb("terminate", EXISTING, State.ABSENT, Impact.DATA_LOSS,
         "bring it back with its disks", "remove the instance and its disks; only the run's end deletes them"),
    Verb("lock", EXISTING, None, Impact.NONE,
         "unlock", "refuse every verb that changes the instance, until it is unlocked", changing=False),
    Verb("unlock", EXISTING, None, Impact.NONE,
         "lock", "allow changes again", changing=False),
    Verb("wait", EXISTING, None, Impact.NONE,
         "none needed", "wait for a console text, an address, an open port or a state", changing=False),
    Verb("sleep", frozenset(State), None, Impact.NONE,
         "none needed", "let some time pass", changing=False),
)
# fmt: on

VERBS: dict[str, Verb] = {verb.name: verb for verb in _ROWS}

# What only `planvirt destroy` does: the instance has been terminated by a run that was kept, its name is free already.
_TERMINATE_ASIDE = replace(VERBS["terminate"], allowed=_states(State.ABSENT), leaves=None, undo="none needed")

ACTIONS: tuple[str, ...] = tuple(dict.fromkeys(name.partition(" ")[0] for name in VERBS))


def verb_for(action: str, arguments: Mapping[str, object]) -> Verb:
    """The row that governs an action; a reboot has one row per kind (soft unless the plan says hard)."""
    if action == "reboot":
        return VERBS[f"reboot {arguments.get('kind', 'soft')}"]
    if action == "terminate" and "aside" in arguments:
        return _TERMINATE_ASIDE
    return VERBS[action]
