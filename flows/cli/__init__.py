"""The command line. Each command is a file of its own that is imported only when it is called."""

import difflib
import importlib
import io
import itertools
import json
import sys
from collections.abc import Sequence

import click

from planvirt import __version__
from planvirt.errors import Exit, PlanvirtError, UsageError

COMMANDS: dict[str, str] = {
    "init": "flows.cli.init",
    "validate": "flows.cli.validate",
    "preview": "flows.cli.preview",
    "simulate": "flows.cli.simulate",
    "graph": "flows.cli.graph",
    "run": "flows.cli.run",
    "runs": "flows.cli.runs",
    "show": "flows.cli.show",
    "rollback": "flows.cli.rollback",
    "resume": "flows.cli.resume",
    "recover": "flows.cli.recover",
    "destroy": "flows.cli.destroy",
    "instances": "flows.cli.instances",
    "image": "flows.cli.image",
    "schema": "flows.cli.schema",
    "doctor": "flows.cli.doctor",
    "up": "flows.cli.up",
    "down": "flows.cli.down",
}


class Commands(click.Group):
    """The commands by name, imported when they are needed: `validate` must not pay for what `run` imports."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The names, in the order in which a newcomer meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as above
        """One command."""
        module = COMMANDS.get(cmd_name)
        command = None if module is None else importlib.import_module(module).command
        return command if isinstance(command, click.Command) else None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="planvirt")
@click.option(
    "--config", type=click.Path(dir_okay=False), help="The configuration file (default: planvirt.toml, found)."
)
@click.pass_context
def program(ctx: click.Context, config: str | None) -> None:
    """Run plans for virtual machines: checked, previewed, journalled, and undone when they fail."""
    ctx.obj = config


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code. Every error that a user can mend ends here, in three parts."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show an arrow shows something else
    try:
        code = program.main(args=list(arguments) if arguments is not None else None, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return Exit.INVALID
    except click.ClickException as error:
        show_error(_usage(error))
        return Exit.INVALID
    except click.Abort:
        click.echo("\ninterrupted: nothing was touched", err=True)
        return Exit.FAILED
    except PlanvirtError as error:
        show_error(error)
        if _wants_json(sys.argv[1:] if arguments is None else arguments):
            click.echo(json.dumps({"error": error.as_dict()}, indent=2, ensure_ascii=False))
        return error.exit
    except BrokenPipeError:
        # Whoever read our output has heard enough; the interpreter must not complain about it at its end.
        sys.stdout = None
        return Exit.OK
    return int(code or 0)


def _usage(error: click.ClickException) -> UsageError:
    """What is wrong with the command line, in three parts like everything else."""
    message = error.format_message().rstrip(".")
    brief = f"{message[:1].lower()}{message[1:]}"
    context = error.ctx if isinstance(error, click.UsageError) else None
    hint = f"'{context.command_path} --help' tells what it takes" if context else "'planvirt --help' lists the commands"
    unknown = brief.partition("no such command '")[2].rstrip("'")
    group = context.command if context is not None and isinstance(context.command, click.Group) else program
    known = group.list_commands(context or click.Context(program))
    close = difflib.get_close_matches(unknown, known, 1) if unknown else []
    return UsageError(brief, resolution=f"did you mean '{close[0]}'?" if close else hint)


def _wants_json(arguments: Sequence[str]) -> bool:
    """Whether the command line asks for JSON, so that whoever reads that finds the error in it, too."""
    words = [*arguments]
    return "--output=json" in words or any(
        word in ("--output", "-o") and following == "json" for word, following in itertools.pairwise(words)
    )


def show_error(error: PlanvirtError) -> None:
    """Print what could not be done, the details, and what to do about it."""
    click.echo(f"{click.style('error:', fg='red', bold=True)} {error.brief}", err=True)
    for line in error.details.splitlines():
        click.echo(f"  {line}", err=True)
    for line in error.resolution.splitlines():
        click.echo(f"  {click.style('→', fg='cyan')} {line}", err=True)
