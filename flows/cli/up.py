"""planvirt up"""

import click

from flows.cli.common import configuration
from planvirt.errors import Exit


@click.command("up")
@click.pass_obj
def command(config: str | None) -> int:
    """Start the local Prefect server.

    If it does not run yet; and tell its address.
    """
    from flows.server import ensure_server

    server, started = ensure_server(configuration(config).home)
    click.echo(f"the Prefect server {'is started' if started else 'is up'}: {server.ui}")
    return Exit.OK
