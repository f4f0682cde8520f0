"""planvirt run PLAN"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flows.cli.common import configuration, inputs_option, output_option, print_json, read_inputs
from flows.cli.preview import print_preview
from flows.documents import nothing_to_do
from planvirt.config import Config
from planvirt.errors import Exit, UsageError
from planvirt.load import load_plan
from planvirt.secret import Redactor

if TYPE_CHECKING:
    from flows.prepare import Prepared
    from flows.world import World
    from planvirt.journal.journal import Journal
    from planvirt.plan import Plan


@click.command("run")
@click.argument("plan", type=click.Path())
@inputs_option
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@output_option
@click.pass_obj
def command(config: str | None, plan: str, inputs: tuple[str, ...], yes: bool, output: str) -> int:
    """Carry a plan out, after a preview.

    Shows what would change, asks, and does it; undoes all of it when a step fails.
    """
    return carry_out("run", config, plan, inputs, yes, output)


def carry_out(kind: str, config: str | None, plan: str, inputs: tuple[str, ...], yes: bool, output: str) -> int:
    """Prepare a run or a destroy, confirm it, and carry it out."""
    from flows.prepare import prepare_destroy, prepare_run
    from flows.preview import check
    from flows.world import World
    from planvirt.journal.journal import Journal

    settings = configuration(config)
    checked = load_plan(Path(plan), config=settings, inputs=read_inputs(inputs))
    prepare = {"run": prepare_run, "destroy": prepare_destroy}[kind]
    with World(settings) as world, Journal(settings.journal_url) as journal:
        _recover_dead(checked, settings, world, journal, yes=yes, output=output)
        prepared = prepare(checked, world, journal)
        if output == "text":
            print_preview(prepared.preview, kind)
        check(prepared.preview, kind)
        if not prepared.preview.changes:
            if output == "json":
                print_json(nothing_to_do(checked.name))
            return Exit.OK
        if not yes and not confirmed(f"{kind} this?"):
            return Exit.FAILED
        return _begin(prepared, lambda: prepare(checked, world, journal), settings, world, journal, output)


def _recover_dead(
    plan: "Plan", settings: Config, world: "World", journal: "Journal", *, yes: bool, output: str
) -> None:
    """Finish first what a dead process has left on instances of this plan, as the plan of that run says."""
    from flows.cli.recovering import finish_run
    from flows.facts import claims_on
    from flows.recovery import plan_of, wants_to_go_on

    claims = claims_on(journal, plan.name, [instance.name for instance in plan.instances])
    held = {claim.run for claim in claims.values()}
    for record in journal.dead():
        if record.id not in held:
            continue
        forward = wants_to_go_on(record)
        what = "resume" if forward else "roll back"
        click.echo(f"run {record.id} died while it owned instances of this plan", err=True)
        if yes or confirmed(f"{what} it first?"):
            old = plan_of(record, settings, as_recorded=True) if forward else None
            finish_run(record, settings, world, journal, output if output == "text" else "none", plan=old)


def _begin(
    prepared: "Prepared",
    again: "Callable[[], Prepared]",
    settings: Config,
    world: "World",
    journal: "Journal",
    output: str,
) -> int:
    from flows.cli.running import connected, finish, reporter, warm_up
    from flows.images import check_images
    from flows.run import carry_out_prepared
    from flows.secret_sources import ConfiguredSecrets

    redact = Redactor()
    secrets = ConfiguredSecrets(settings, os.environ, redact)
    steps = [(step.id, step.action, step.instance.name) for step in prepared.preview.steps]
    with connected(settings, os.environ) as pages, warm_up():
        secrets.check(prepared.preview.steps)
        check_images(prepared.plan, prepared.preview.steps, world)
        with reporter(output, steps) as view:
            result = carry_out_prepared(
                prepared,
                world,
                journal,
                again=again,
                secret_values=secrets,
                redact=redact,
                notify=view,
                say=view.say,
            )
        return finish(journal, result, output, pages)


def confirmed(question: str) -> bool:
    """Whether somebody at the terminal agrees. Raises UsageError when there is no terminal."""
    if not sys.stdin.isatty():
        raise UsageError(
            f"cannot ask '{question}': there is no terminal", resolution="say --yes when nobody is there to answer"
        )
    if click.confirm(f"\n{question}", err=True):
        return True
    click.echo("nothing was touched", err=True)
    return False
