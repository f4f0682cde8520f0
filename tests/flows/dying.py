"""A journal that kills its process at its n-th word, and a program that runs a plan with it.

    python -m tests.flows.dying CONFIG PLAN RUN NUMBER

carries the plan out without Prefect, one step at a time, and dies just after that word.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.call import RunFacts
from flows.context import RunContext
from flows.executor import ThreadExecutor
from flows.prepare import prepare_run
from flows.records import run_record, step_records
from flows.saga import carry_out
from flows.world import World
from planvirt.config import load_config
from planvirt.journal.journal import Journal
from planvirt.journal.records import RunRecord, StepRecord
from planvirt.journal.transitions import RunState, StepState
from planvirt.load import load_plan

_NOBODY: Mapping[str, str] = {}


class Dying(Journal):
    """Its process is killed at its n-th write: just before it, or just after."""

    left = 0
    before = True

    def _word(self, write: Callable[[], Any]) -> Any:
        Dying.left -= 1
        if Dying.left == 0 and Dying.before:
            os.kill(os.getpid(), signal.SIGKILL)
        result = write()
        if Dying.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    def begin(self, run: RunRecord, steps: Sequence[StepRecord], preempts: Mapping[str, str] = _NOBODY) -> None:
        self._word(lambda: Journal.begin(self, run, steps, preempts))

    def move_run(self, run: str, to: RunState, why: str, **changes: Any) -> None:
        self._word(lambda: Journal.move_run(self, run, to, why, **changes))

    def move_step(self, run: str, step: str, to: StepState, why: str, **changes: Any) -> None:
        self._word(lambda: Journal.move_step(self, run, step, to, why, **changes))

    def phase(self, run: str, step: str, phase: str, undo: Mapping[str, Any]) -> None:
        self._word(lambda: Journal.phase(self, run, step, phase, undo))

    def take_over(self, run: str, why: str, *, forward: bool = False) -> RunRecord:
        taken: RunRecord = self._word(lambda: Journal.take_over(self, run, why, forward=forward))
        return taken


def in_child(body: Callable[[], object]) -> int:
    """Run in a process of its own; returns the signal that ended it, 0 for none."""
    child = os.fork()
    if child == 0:
        try:
            body()
        except BaseException:  # noqa: BLE001 - the child must end here, whatever happens
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def main(config: str, plan: str, run: str, number: str) -> None:
    """Carry the plan out, to the end or to death."""
    settings = load_config(Path(config), Path(config).parent, os.environ)
    checked = load_plan(Path(plan), config=settings, commit="")
    Dying.left, Dying.before = int(number), False
    with Dying(settings.journal_url) as journal, World(settings) as world:
        found = prepare_run(checked, world, journal).preview
        assert not found.conflicts, found.conflicts
        journal.begin(run_record(run, "run", checked, found.parallel), step_records(checked.name, found.steps))
        facts = RunFacts(run, checked.name, "", "2026-01-01T00:00:00Z", checked.images)
        context = RunContext(facts, journal, world, lambda _: None, plan=checked, workers=1)
        executor = ThreadExecutor(1)
        carry_out(context, found.steps, found.parallel, checked.on_failure, executor)
        executor.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
