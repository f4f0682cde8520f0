"""planvirt down"""

import click

from flows.cli.common import configuration
from planvirt.errors import Exit


@click.command("down")
@click.pass_obj
def command(config: str | None) -> int:
    """End the local Prefect server.

    Its history stays.
    """
    from flows.server import stop_server

    server = stop_server(configuration(config).home)
    click.echo("no Prefect server of planvirt's is running" if server is None else f"ended the server at {server.ui}")
    return Exit.OK
