"""The states an instance can be in, as every driver reports them."""

from collections.abc import Container
from enum import StrEnum


class State(StrEnum):
    """What is true of an instance now. The hypervisor is the authority for it."""

    ABSENT = "absent"
    RUNNING = "running"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    STOPPED = "stopped"
    RESCUED = "rescued"
    RESIZED = "resized"
    SHELVED = "shelved"
    ERROR = "error"


EXISTING = frozenset(State) - {State.ABSENT}


class Note(StrEnum):
    """What can be written down about an instance, with the instance, for later runs of whatever plan."""

    LOCKED = "locked"
    SHELVED = "shelved"
    RESCUED = "rescued"
    RESIZED = "resized"


# A note that is a state of its own, whatever the hypervisor says; an earlier one hides a later one.
_NOTED = {Note.SHELVED: State.SHELVED, Note.RESCUED: State.RESCUED, Note.RESIZED: State.RESIZED}


def noted_state(power: State, notes: Container[str]) -> State:
    """The state of an instance from what its hypervisor and its notes say."""
    return next((state for note, state in _NOTED.items() if note in notes), power)
