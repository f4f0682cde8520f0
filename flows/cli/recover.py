"""planvirt recover"""

import time

import click

from flows.cli.common import configuration, output_option, plural, print_json
from planvirt.errors import Exit, PlanvirtError


@click.command("recover")
@click.option("--wait", is_flag=True, help="Wait until it is certain which runs are dead: a minute at most.")
@output_option
@click.pass_obj
def command(config: str | None, wait: bool, output: str) -> int:
    """Finish every run whose process died.

    Each as its plan says: `on_crash: rollback` (the default) or `resume`. A run counts as dead when it has given no
    sign of life for a minute.
    """
    from flows.cli import show_error
    from flows.cli.recovering import finish_run
    from flows.recovery import plan_of, wants_to_go_on
    from flows.world import World
    from planvirt.journal.journal import Journal

    settings = configuration(config)
    codes: list[int] = []
    with Journal(settings.journal_url) as journal, World(settings) as world:
        if wait and (left := max((left for _, left in journal.open()), default=0.0)):
            click.echo(f"waiting {left:.0f} s for signs of life", err=True)
            time.sleep(left)
        dead = journal.dead()
        if output == "text":
            click.echo(f"{plural(len(dead), 'run')} to recover")
            for record, left in journal.open():
                if left:
                    click.echo(
                        f"run {record.id} of plan {record.plan} counts as running: if its process was killed, "
                        f"it can be recovered in {left:.0f} s ('--wait' does that)"
                    )
        for record in dead:
            try:
                plan = plan_of(record, settings, as_recorded=True) if wants_to_go_on(record) else None
                shown = output if output == "text" else "none"
                codes.append(finish_run(record, settings, world, journal, shown, plan=plan))
            except PlanvirtError as error:
                show_error(error)
                codes.append(error.exit)
        if output == "json":
            runs = [journal.run(record.id) for record in dead]
            print_json({"recovered": [{"id": run.id, "plan": run.plan, "state": run.state.value} for run in runs]})
    return max(codes, default=Exit.OK)
