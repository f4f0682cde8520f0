"""planvirt preview PLAN"""

from pathlib import Path

import click

from flows.cli.common import configuration, inputs_option, output_option, print_json, print_table, read_inputs
from flows.preview import Preview
from planvirt.errors import Exit
from planvirt.load import load_plan

_COLOURS = {"data-loss": "red", "replace": "red", "reboot": "yellow", "live": None, "none": None, "next-boot": "yellow"}


@click.command("preview")
@click.argument("plan", type=click.Path())
@inputs_option
@click.option("--destroy", "destroying", is_flag=True, help="Preview 'planvirt destroy' instead of 'planvirt run'.")
@click.option("--exit-code", is_flag=True, help="End with 4 when there is something to do.")
@output_option
@click.pass_obj
def command(
    config: str | None, plan: str, inputs: tuple[str, ...], destroying: bool, exit_code: bool, output: str
) -> int:
    """Show what a run would change.

    Also what each change means for the instance, and how it would be undone. Nothing is touched.
    """
    from flows import documents
    from flows.prepare import prepare_destroy, prepare_run
    from flows.world import World
    from planvirt.journal.journal import Journal

    settings = configuration(config)
    checked = load_plan(Path(plan), config=settings, inputs=read_inputs(inputs))
    with World(settings) as world, Journal(settings.journal_url) as journal:
        found = (prepare_destroy if destroying else prepare_run)(checked, world, journal).preview
    if output == "json":
        print_json(documents.preview(found))
    else:
        print_preview(found, "destroy" if destroying else "run")
        print_conflicts(found)
    if found.conflicts:
        return Exit.CONFLICT
    return Exit.CHANGES_PENDING if exit_code and found.changes else Exit.OK


def print_preview(found: Preview, kind: str) -> None:
    """The preview as a table, with what is destroyed by name."""
    if not found.changes and not found.conflicts:
        nothing = "nothing to do, everything is as declared" if kind == "run" else "nothing to destroy"
        click.echo(f"{found.plan}: {nothing}")
    if found.changes:
        print_table(
            ("STEP", "ACTION", "INSTANCE", "HOST", "IMPACT", "UNDO", "WHY"),
            [
                (item.step, item.action, item.instance, item.host, item.impact.value, item.undo, item.why)
                for item in found.changes
            ],
        )
    if found.destroys:
        click.secho("\nthis destroys for good:", fg="red")
        for name in found.destroys:
            click.echo(f"  {name}")
    if found.undeclared:
        click.secho("\nnot in the plan any more, and left as it is ('planvirt destroy' removes it):", fg="yellow")
        for name in found.undeclared:
            click.echo(f"  {name}")


def print_conflicts(found: Preview) -> None:
    """What stands in the way of a run."""
    if found.conflicts:
        click.secho("\nin the way:", fg="red")
        for line in found.conflicts:
            click.echo(f"  {line}")
