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
    Verb("resize", _states(State.RUNNING, State.STOPPED), None, Impact.REBOOT,
         "put back processors, memory and the kept copies of grown disks",
         "change processors, memory and disks: while the guest runs if it can, by a reboot if the plan allows that"),
    Verb("confirm_resize", _states(State.RESIZED), None, Impact.NONE,
         "leave it unconfirmed", "keep the new size for good; only the run's end deletes the copies of grown disks"),
    Verb("revert_resize", _states(State.RESIZED), None, Impact.DATA_LOSS,
         "take the new size again", "go back to the earlier size, and to the copies of grown disks as they were then"),
    Verb("attach", _states(State.RUNNING, State.PAUSED, State.STOPPED), None, Impact.LIVE,
         "detach, and delete a disk that was made for it", "give the instance a disk or a network interface"),
    Verb("detach", _states(State.RUNNING, State.PAUSED, State.STOPPED), None, Impact.LIVE,
         "attach", "take a disk or a network interface away; the disk stays on the host"),
    Verb("detach delete", _states(State.RUNNING, State.PAUSED, State.STOPPED), None, Impact.DATA_LOSS,
         "attach", "take a disk away; only the run's end deletes it"),
    Verb("rescue", _states(State.RUNNING, State.STOPPED, State.ERROR), State.RESCUED, Impact.REBOOT,
         "unrescue", "boot the instance from another image, with its own disks behind that"),
    Verb("unrescue", _states(State.RESCUED), State.RUNNING, Impact.REBOOT,
         "rescue", "boot the instance from its own disk again"),
    Verb("shelve", _states(State.RUNNING, State.STOPPED, State.PAUSED, State.SUSPENDED), State.SHELVED, Impact.REBOOT,
         "unshelve", "shut it down and move its disks into an image store; only the run's end deletes them here"),
    Verb("unshelve", _states(State.SHELVED), State.RUNNING, Impact.LIVE,
         "shelve", "bring its disks back from the image store and start it; the run's end deletes those images"),
    Verb("rebuild", _states(State.RUNNING, State.STOPPED, State.ERROR), None, Impact.DATA_LOSS,
         "put its earlier boot disk back", "make its boot disk anew from an image; only the run's end deletes the old"),
    Verb("restore", _states(State.RUNNING, State.STOPPED, State.ERROR), None, Impact.DATA_LOSS,
         "put its earlier disk back", "make a disk anew from a snapshot; only the run's end deletes the old one"),
    Verb("exec", _states(State.RUNNING, State.RESIZED, State.RESCUED), None, Impact.LIVE,
         "the command that the plan gives for it, if it does", "run a program in the guest, through its agent"),
    Verb("snapshot", _states(State.RUNNING, State.STOPPED, State.PAUSED, State.SUSPENDED), None, Impact.LIVE,
         "delete the image", "copy disks of the instance, as of one moment, into verified images", changing=False),
    Verb("backup", _states(State.RUNNING, State.STOPPED, State.PAUSED, State.SUSPENDED), None, Impact.LIVE,
         "delete the image", "take a snapshot of a class; only the run's end deletes the surplus ones of that class",
         changing=False),
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
    if action == "detach" and arguments.get("delete"):
        return VERBS["detach delete"]
    if action == "terminate" and "aside" in arguments:
        return _TERMINATE_ASIDE
    return VERBS[action]
