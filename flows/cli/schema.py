"""planvirt schema [plan|config]"""

import click

from planvirt.errors import Exit


@click.command("schema")
@click.argument("which", type=click.Choice(["plan", "config"]), default="plan")
def command(which: str) -> int:
    """Print the JSON Schema of plans or of the configuration, for editors."""
    from planvirt.schemas import schema_text

    click.echo(schema_text(which).rstrip("\n"))
    return Exit.OK
