"""planvirt resume RUN"""

import click

from flows.cli.common import configuration, output_option
from flows.cli.show import find_run


@click.command("resume")
@click.argument("run")
@click.option("--as-recorded", is_flag=True, help="Go on with the plan as it was, although its file has changed.")
@output_option
@click.pass_obj
def command(config: str | None, run: str, as_recorded: bool, output: str) -> int:
    """Go on with a run that stopped.

    For a run that was kept, or whose process died: what is done stays, the rest is done now.
    """
    from flows.cli.recovering import finish_run
    from flows.recovery import plan_of
    from flows.world import World
    from planvirt.journal.journal import Journal

    settings = configuration(config)
    with Journal(settings.journal_url) as journal, World(settings) as world:
        record = find_run(journal, run)
        plan = plan_of(record, settings, as_recorded=as_recorded)
        return finish_run(record, settings, world, journal, output, plan=plan)
