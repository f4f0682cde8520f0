"""planvirt graph PLAN"""

from pathlib import Path

import click

from flows.cli.common import configuration, inputs_option, output_option, print_json, read_inputs
from planvirt.errors import Exit
from planvirt.load import load_plan


@click.command("graph")
@click.argument("plan", type=click.Path())
@inputs_option
@click.option("--as", "shape", type=click.Choice(["text", "mermaid", "dot"]), default="text", help="How to draw it.")
@output_option
@click.pass_obj
def command(config: str | None, plan: str, inputs: tuple[str, ...], shape: str, output: str) -> int:
    """Draw the plan's steps and what each waits for."""
    from flows import documents
    from planvirt.drawing import DRAWINGS
    from planvirt.graph import build_graph

    checked = load_plan(Path(plan), config=configuration(config), inputs=read_inputs(inputs))
    graph = build_graph(checked)
    if output == "json":
        print_json(documents.graph(checked.name, graph))
    else:
        click.echo(DRAWINGS[shape](graph))
    return Exit.OK
