"""planvirt rollback RUN"""

import os

import click

from flows.cli.common import configuration, output_option
from flows.cli.show import find_run


@click.command("rollback")
@click.argument("run")
@output_option
@click.pass_obj
def command(config: str | None, run: str, output: str) -> int:
    """Undo a run that was kept, whose rollback stayed incomplete, or whose process died."""
    from flows.cli.running import connected, finish, reporter
    from flows.run import check_rollback, roll_back_run
    from flows.world import World
    from planvirt.journal.journal import Journal

    settings = configuration(config)
    with Journal(settings.journal_url) as journal, World(settings) as world:
        record = find_run(journal, run)
        check_rollback(record)
        steps = [(step.id, step.action, step.instance) for step in journal.steps(record.id)]
        with connected(settings, os.environ) as pages:
            with reporter(output, steps) as view:
                result = roll_back_run(record, world, journal, notify=view, say=view.say)
            return finish(journal, result, output, pages)
