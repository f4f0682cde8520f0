"""planvirt rollback RUN"""

import click

from flows.cli.common import configuration, output_option, print_table
from flows.cli.show import find_run
from planvirt.errors import Exit, UsageError


@click.command("rollback")
@click.argument("run")
@click.option("--to", metavar="STEP", help="Undo only what came after this step, and keep the rest.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@output_option
@click.pass_obj
def command(config: str | None, run: str, to: str | None, yes: bool, output: str) -> int:
    """Undo what a run did.

    For a run that was kept, whose rollback stayed incomplete, or whose process died.
    """
    from flows.cli.recovering import finish_run
    from flows.cli.run import confirmed
    from flows.world import World
    from planvirt.journal.journal import Journal
    from planvirt.journal.transitions import UNDOABLE

    settings = configuration(config)
    with Journal(settings.journal_url) as journal, World(settings) as world:
        record = find_run(journal, run)
        journal.check_recoverable(record.id)
        records = journal.steps(record.id)
        first = next((step.position + 1 for step in records if step.id == to), None if to else 0)
        if first is None:
            raise UsageError(
                f"cannot roll back to {to}: run {record.id} has no such step",
                resolution=f"'planvirt show {record.id}' lists its steps",
            )
        if output == "text":
            print_table(
                ("UNDO", "ACTION", "INSTANCE", "HOST", "STATE"),
                [
                    (step.id, step.action, step.instance, step.host, step.state.value)
                    for step in reversed(records)
                    if step.state in UNDOABLE and step.position >= first
                ],
            )
        if not yes and not confirmed(f"undo run {record.id}?"):
            return Exit.FAILED
        return finish_run(record, settings, world, journal, output, plan=None, to=to)
