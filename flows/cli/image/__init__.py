"""planvirt image …: what there is in the stores, and what hosts keep of it. Each command is a file of its own."""

import importlib

import click

COMMANDS: dict[str, str] = {
    "list": "flows.cli.image.listing",
    "show": "flows.cli.image.show",
    "pull": "flows.cli.image.pull",
    "push": "flows.cli.image.push",
    "verify": "flows.cli.image.verify",
    "export": "flows.cli.image.export",
    "rm": "flows.cli.image.rm",
    "prune": "flows.cli.image.prune",
}


class _Commands(click.Group):
    """The commands by name, imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return [*COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as above
        module = COMMANDS.get(cmd_name)
        command = None if module is None else importlib.import_module(module).command
        return command if isinstance(command, click.Command) else None


@click.group("image", cls=_Commands)
def command() -> None:
    """Look after the images in the stores, and after what hosts keep of them."""
