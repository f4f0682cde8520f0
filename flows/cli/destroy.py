"""planvirt destroy PLAN"""

import click

from flows.cli.common import inputs_option, output_option


@click.command("destroy")
@click.argument("plan", type=click.Path())
@inputs_option
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@output_option
@click.pass_obj
def command(config: str | None, plan: str, inputs: tuple[str, ...], yes: bool, output: str) -> int:
    """Remove what a plan made.

    Its instances go with their disks, after a preview. Disks that the plan keeps, and images, stay.
    """
    from flows.cli.run import carry_out

    return carry_out("destroy", config, plan, inputs, yes, output)
