"""planvirt rollback RUN"""

import os

import click

from flows.cli.common import configuration, output_option, print_table
from flows.cli.show import find_run
from planvirt.errors import Exit


@click.command("rollback")
@click.argument("run")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@output_option
@click.pass_obj
def command(config: str | None, run: str, yes: bool, output: str) -> int:
    """Undo a run that was kept, whose rollback stayed incomplete, or whose process died."""
    from flows.cli.run import confirmed
    from flows.cli.running import connected, finish, reporter
    from flows.run import roll_back_run
    from flows.world import World
    from planvirt.journal.journal import Journal
    from planvirt.journal.transitions import UNDOABLE, RunState

    settings = configuration(config)
    with Journal(settings.journal_url) as journal, World(settings) as world:
        record = find_run(journal, run)
        journal.check_recoverable(record.id)
        steps = [(step.id, step.action, step.instance) for step in journal.steps(record.id) if step.state in UNDOABLE]
        if output == "text":
            print_table(
                ("UNDO", "ACTION", "INSTANCE", "HOST", "STATE"),
                [
                    (step.id, step.action, step.instance, step.host, step.state.value)
                    for step in reversed(journal.steps(record.id))
                    if step.state in UNDOABLE
                ],
            )
        if not yes and not confirmed(f"undo run {record.id}?"):
            return Exit.FAILED
        with connected(settings, os.environ) as pages:
            with reporter(output, steps) as view:
                result = roll_back_run(record.id, world, journal, notify=view, say=view.say)
            code = finish(journal, result, output, pages)
        return Exit.OK if result.state == RunState.ROLLED_BACK else code
