"""Pre-emption: a run that does nothing to an instance but terminate it takes it from a run that is at work on it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from flows.facts import Facts
from planvirt.graph import Step
from planvirt.journal.journal import Journal
from planvirt.journal.transitions import RunState
from planvirt.mark import instance_uuid

_GLANCE = 0.1  # seconds between two looks at a run that was pre-empted
_COURTESY = 150  # looks, before its instance is terminated all the same

# A run that is committing has nothing to do to an instance any more but to delete what was set aside.
_PREEMPTIBLE = frozenset({RunState.PENDING, RunState.RUNNING, RunState.ROLLING_BACK})


def preempted(steps: Sequence[Step], facts: Facts) -> dict[str, str]:
    """The runs that are to lose an instance to these steps, by the instance's name."""
    own: dict[str, list[Step]] = {}
    for step in steps:
        own.setdefault(step.instance.name, []).append(step)
    return {
        name: claim.run
        for name, claim in facts.claims.items()
        if claim.alive
        and claim.state in _PREEMPTIBLE
        and [(step.action, step.when) for step in own.get(name, ())] == [("terminate", True)]
    }


def preempting(step: Step, losers: Mapping[str, str]) -> Step:
    """The step, with the run that it takes its instance from."""
    run = losers.get(step.instance.name)
    return step if run is None else replace(step, arguments={**step.arguments, "preempts": [run]})


def preemptions(plan: str, steps: Iterable[Step]) -> dict[str, str]:
    """Which run loses which instance to these steps, by the instance's UUID, as the journal is told."""
    return {
        instance_uuid(plan, step.instance.name): run for step in steps for run in step.arguments.get("preempts", ())
    }


def let_notice(journal: Journal, loser: str, uuid: str, sleep: Callable[[float], object]) -> None:
    """Wait until a run that was pre-empted has noticed; one whose call to the host takes long is not waited for."""
    for _ in range(_COURTESY):
        if not journal.at_work(loser, uuid):
            return
        sleep(_GLANCE)
