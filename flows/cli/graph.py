"""planvirt graph PLAN"""

from pathlib import Path

import click
from planvirt.load import load_plan

from flows.cli.common import configuration, inputs_option, read_inputs
from planvirt.errors import Exit


@click.command("graph")
@click.argument("plan", type=click.Path())
@inputs_option
@click.option("--as", "shape", type=click.Choice(["text", "mermaid", "dot"]), default="text", help="How to draw it.")
@click.pass_obj
def command(config: str | None, plan: str, inputs: tuple[str, ...], shape: str) -> int:
    """Draw the plan's steps and what each waits for."""
    from planvirt.drawing import DRAWINGS
    from planvirt.graph import build_graph

    checked = load_plan(Path(plan), config=configuration(config), inputs=read_inputs(inputs))
    click.echo(DRAWINGS[shape](build_graph(checked)))
    return Exit.OK
