"""planvirt schema [plan|config]"""

import click

from planvirt.errors import Exit


@click.command("schema")
@click.argument("which", type=click.Choice(["plan", "config"]), default="plan")
def command(which: str) -> int:
    """Print a JSON Schema for editors.

    Of plans, or of the configuration.
    """
    from planvirt.schemas import schema_text

    click.echo(schema_text(which).rstrip("\n"))
    return Exit.OK
