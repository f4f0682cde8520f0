"""planvirt validate PLAN…"""

from pathlib import Path

import click

from flows.cli.common import configuration, inputs_option, output_option, print_json, read_inputs
from planvirt.errors import Exit
from planvirt.load import check_plan


@click.command("validate")
@click.argument("plans", nargs=-1, required=True, metavar="PLAN...", type=click.Path())
@inputs_option
@output_option
@click.pass_obj
def command(config: str | None, plans: tuple[str, ...], inputs: tuple[str, ...], output: str) -> int:
    """Check plans and tell every problem, at file:line:column."""
    from flows.documents import validation

    settings, given = configuration(config), read_inputs(inputs)
    results = {path: check_plan(Path(path), config=settings, inputs=given) for path in plans}
    document = validation(results)
    if output == "json":
        print_json(document)
        return Exit.OK if document["ok"] else Exit.INVALID
    for path, problems in results.items():
        if not problems:
            click.echo(f"{path}: {click.style('ok', fg='green')}")
        for problem in problems:
            where = f"{path}:{problem.line}:{problem.column}:" if problem.line else f"{path}:"
            place = click.style(where, bold=True)
            click.echo(f"{place} {problem.message}")
            if problem.hint:
                click.echo(f"    {click.style('→', fg='cyan')} {problem.hint}")
    return Exit.OK if document["ok"] else Exit.INVALID
