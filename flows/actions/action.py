"""What every verb is made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from flows.call import Call
from planvirt.journal.records import StepRecord


class Finding(StrEnum):
    """What a probe found of a step that was interrupted."""

    NOTHING = "nothing"  # it has not begun to have an effect
    PARTIAL = "partial"  # some of it is there
    DONE = "done"  # all of it is there


@dataclass(frozen=True, slots=True)
class Action:
    """The pair of do and undo, with the probe between them; `commit` where a deletion was put off.

    Each is idempotent. `do` returns the step's outputs, which later steps may use and the journal keeps. `probe` looks
    at the world and changes nothing. `undo` copes with a `do` that stopped anywhere. `leftovers` names what an undo
    that failed has left, from the step's record. `outputs` finds what a `do` that is done would have returned.
    """

    do: Callable[[Call], Mapping[str, Any]]
    probe: Callable[[Call], Finding]
    undo: Callable[[Call], None]
    commit: Callable[[Call], None] | None = None
    outputs: Callable[[Call], Mapping[str, Any]] = lambda _: {}
    leftovers: Callable[[StepRecord], list[str]] = lambda _: []


def nothing_to_undo(_: Call) -> None:
    """For verbs that change nothing, or nothing that can be taken back."""
