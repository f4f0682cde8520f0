"""planvirt run PLAN"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from planvirt.load import load_plan

from flows.cli.common import configuration, inputs_option, output_option, read_inputs
from flows.cli.preview import print_preview
from planvirt.config import Config
from planvirt.errors import Conflict, Exit, UsageError

if TYPE_CHECKING:
    from flows.prepare import Prepared
    from flows.world import World


@click.command("run")
@click.argument("plan", type=click.Path())
@inputs_option
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@output_option
@click.pass_obj
def command(config: str | None, plan: str, inputs: tuple[str, ...], yes: bool, output: str) -> int:
    """Show what would change, ask, and carry it out; undo all of it when a step fails."""
    return carry_out("run", config, plan, inputs, yes, output)


def carry_out(kind: str, config: str | None, plan: str, inputs: tuple[str, ...], yes: bool, output: str) -> int:
    """Prepare a run or a destroy, confirm it, and carry it out."""
    from flows.prepare import prepare_destroy, prepare_run
    from flows.preview import check
    from flows.world import World

    settings = configuration(config)
    checked = load_plan(Path(plan), config=settings, inputs=read_inputs(inputs))
    prepare = {"run": prepare_run, "destroy": prepare_destroy}[kind]
    with World(settings) as world:
        prepared = prepare(checked, world)
        if output == "text" or prepared.preview.conflicts:
            print_preview(prepared.preview)
        check(prepared.preview)
        if not prepared.preview.changes and output == "text":
            return Exit.OK
        if not yes:
            _confirm(kind)
            again = prepare(checked, world)
            if again.preview.changes != prepared.preview.changes:
                raise Conflict(
                    f"cannot {kind} {checked.name}: what is there has changed since the preview",
                    resolution="look at the new preview and confirm that",
                )
        return _begin(prepared, settings, world, output)


def _begin(prepared: "Prepared", settings: Config, world: "World", output: str) -> int:
    from flows.cli.running import connected, finish, reporter, warm_up
    from flows.run import carry_out_prepared
    from flows.secret_sources import ConfiguredSecrets
    from planvirt.journal.journal import Journal

    steps = [(step.id, step.action, step.instance.name) for step in prepared.preview.steps]
    with connected(settings, os.environ) as pages, Journal(settings.journal_url) as journal:
        warm_up()
        with reporter(output, steps) as view:
            result = carry_out_prepared(
                prepared,
                world,
                journal,
                secret_values=ConfiguredSecrets(settings, os.environ),
                notify=view,
                say=view.say,
            )
        return finish(journal, result, output, pages)


def _confirm(kind: str) -> None:
    if not sys.stdin.isatty():
        raise UsageError(
            f"cannot ask whether to {kind}: there is no terminal", resolution="say --yes when nobody is there to answer"
        )
    click.confirm(f"\n{kind} this?", abort=True, err=True)
