"""The states an instance can be in, as every driver reports them."""

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
