"""What `rollback`, `resume` and `recover` share: finishing one run, in one direction."""

import os
from typing import TYPE_CHECKING

from planvirt.config import Config
from planvirt.errors import Exit
from planvirt.secret import Redactor

if TYPE_CHECKING:
    from flows.world import World
    from planvirt.journal.journal import Journal
    from planvirt.journal.records import RunRecord
    from planvirt.plan import Plan


def finish_run(
    record: "RunRecord",
    settings: Config,
    world: "World",
    journal: "Journal",
    output: str,
    *,
    plan: "Plan | None",
    to: str | None = None,
) -> int:
    """Finish a run: forward with its plan, back without one. 0 when it ended as was asked for."""
    from flows.cli.running import connected, finish, reporter
    from flows.run import recover_run
    from flows.secret_sources import ConfiguredSecrets
    from planvirt.journal.transitions import RunState

    redact = Redactor()
    steps = [(step.id, step.action, step.instance) for step in journal.steps(record.id)]
    with connected(settings, os.environ) as pages:
        with reporter(output, steps) as view:
            result = recover_run(
                record.id,
                world,
                journal,
                plan=plan,
                to=to,
                secret_values=ConfiguredSecrets(settings, os.environ, redact),
                redact=redact,
                notify=view,
                say=view.say,
            )
        code = finish(journal, result, output, pages)
    back = plan is None and result.state in (RunState.ROLLED_BACK, RunState.CANCELLED, RunState.KEPT)
    return Exit.OK if back else code
