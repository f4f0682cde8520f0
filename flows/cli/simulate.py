"""planvirt simulate PLAN"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.cli.common import configuration, inputs_option, output_option, plural, print_json, print_table, read_inputs
from flows.cli.preview import print_conflicts, print_preview
from planvirt.errors import Exit, UsageError
from planvirt.load import load_plan
from planvirt.problems import did_you_mean

if TYPE_CHECKING:
    from flows.context import Event
    from flows.preview import Preview
    from flows.rehearsal import Failure, Rehearsed
    from flows.replica import Replica


@click.command("simulate")
@click.argument("plan", type=click.Path())
@inputs_option
@click.option(
    "--fail",
    "fail",
    multiple=True,
    metavar="STEP[:N]",
    help="Let a step fail for good, or N times for a passing reason; as often as needed.",
)
@click.option("--kill", metavar="STEP", help="Kill planvirt in the middle of a step, then roll back.")
@click.option("--offline", is_flag=True, help="Ask no host: all are empty.")
@output_option
@click.pass_obj
def command(
    config: str | None,
    plan: str,
    inputs: tuple[str, ...],
    fail: tuple[str, ...],
    kill: str | None,
    offline: bool,
    output: str,
) -> int:
    """Rehearse a run, failures included.

    On a simulated copy of what there is: nothing real is touched.
    """
    from flows.images import check_images
    from flows.rehearsal import Rehearsal, prepare, rehearse
    from flows.replica import replicate, with_images
    from flows.world import World
    from planvirt.journal.journal import Journal

    settings = configuration(config)
    checked = load_plan(Path(plan), config=settings, inputs=read_inputs(inputs))
    with tempfile.TemporaryDirectory(prefix="planvirt-rehearsal-") as folder:
        with World(settings) as world:
            replica = replicate(world, checked, Path(folder), offline=offline)
            with Journal(settings.journal_url) as journal:
                prepared = prepare(checked, replica, journal)
            found = prepared.preview
            known = [change.step for change in found.changes]
            failures = tuple(_failure(text, known) for text in fail)
            if kill is not None:
                _check_step(kill, known)
            if found.changes and not found.conflicts:
                replica = with_images(replica, world, checked, found.steps, offline=offline)
        if output == "text":
            print_preview(found, "run")
            print_conflicts(found)
        if found.conflicts or not found.changes:
            return _nothing_rehearsed(found, replica, output)
        with replica.open() as copies:
            check_images(checked, found.steps, copies)
        if output == "text":
            click.secho("\nrehearsal on a simulated copy of the hosts:", bold=True)
            for note in replica.notes:
                click.secho(f"  ({note})", fg="yellow")
        events: list[Event] = []
        told = _say if output == "text" else events.append
        ended = rehearse(Rehearsal(prepared, replica, failures, kill), told)
    if output == "json":
        print_json(_document(found, replica, ended, events))
    else:
        _print_end(ended)
    return _exit(ended, asked=bool(failures) or kill is not None)


def _failure(text: str, known: Sequence[str]) -> "Failure":
    """What --fail asks for. Raises UsageError."""
    from flows.rehearsal import Failure

    step, colon, times = text.partition(":")
    _check_step(step, known)
    if not colon:
        return Failure(step)
    if not times.isascii() or not times.isdigit() or int(times) == 0:
        raise UsageError(
            f"cannot let {step} fail {times!r} times",
            resolution=f"write how often, such as --fail {step}:2, or --fail {step} for good",
        )
    return Failure(step, int(times))


def _check_step(step: str, known: Sequence[str]) -> None:
    if step not in known:
        hint = did_you_mean(step, known)
        raise UsageError(
            f"cannot let step {step!r} go wrong",
            details="a run of this plan would have no such step now",
            resolution="\n".join(part for part in (hint, "'planvirt preview' lists the steps") if part),
        )


def _say(event: "Event") -> None:
    colour = {"failed": "red", "undo-failed": "red", "killed": "red", "undone": "yellow", "done": "green"}
    click.echo(f"  {click.style(str(event), fg=colour.get(event.kind))}")


def _nothing_rehearsed(found: "Preview", replica: "Replica", output: str) -> int:
    state = "refused" if found.conflicts else "succeeded"
    if output == "json":
        print_json(_as_json(found, replica, state))
    else:
        click.echo("\nrehearsal: nothing was touched")
    return Exit.CONFLICT if found.conflicts else Exit.OK


def _print_end(ended: "Rehearsed") -> None:
    """How it ended, what became of the instances, and what would be left."""
    click.secho(f"\nthe run would end: {ended.state.replace('_', ' ')}", bold=True)
    if ended.error:
        click.echo(f"{click.style('error:', fg='red', bold=True)} {ended.error['brief']}")
        for line in ended.error.get("details", "").splitlines():
            click.echo(f"  {line}")
    print_table(
        ("INSTANCE", "HOST", "BEFORE", "AFTER"),
        [(fate.name, fate.host, fate.before, fate.after) for fate in ended.instances],
    )
    if ended.killed is not None:
        _print_things("the killed process would leave, until the rollback", ended.killed)
    _print_things("left over", ended.leftovers)
    for step in ended.unmet:
        click.secho(f"{step} did not go wrong as it was told: it was not reached, or had nothing to do", fg="yellow")
    click.secho("\nrehearsal: nothing was touched", bold=True)
    click.echo("guests did what the plan waits for, and no data was copied: a real run may still fail")


def _print_things(heading: str, things: Sequence[str]) -> None:
    click.echo(f"{heading}: {'nothing' if not things else plural(len(things), 'thing')}")
    for thing in things:
        click.echo(f"  {thing}")


def _document(found: "Preview", replica: "Replica", ended: "Rehearsed", events: "Sequence[Event]") -> dict[str, Any]:
    return _as_json(
        found,
        replica,
        ended.state.value,
        error=dict(ended.error) if ended.error else None,
        events=[
            {"kind": item.kind, "step": item.step, "action": item.action, "instance": item.instance, "text": item.text}
            for item in events
        ],
        instances=[
            {"name": fate.name, "host": fate.host, "before": fate.before, "after": fate.after}
            for fate in ended.instances
        ],
        leftovers=list(ended.leftovers),
        killed=None if ended.killed is None else list(ended.killed),
        unmet=list(ended.unmet),
    )


def _as_json(found: "Preview", replica: "Replica", state: str, **parts: Any) -> dict[str, Any]:
    from flows import documents

    empty: dict[str, Any] = {
        "error": None, "events": [], "instances": [], "leftovers": [], "killed": None, "unmet": [],
    }  # fmt: skip
    simulation = {"state": state, **empty, **parts, "notes": list(replica.notes)}
    return {"simulation": simulation, "preview": documents.preview(found)}


def _exit(ended: "Rehearsed", *, asked: bool) -> int:
    """OK when it ended as asked: in success, or with everything undone after a failure that was asked for."""
    from planvirt.journal.transitions import RunState

    if ended.state == RunState.ROLLBACK_INCOMPLETE or (ended.state == RunState.ROLLED_BACK and ended.leftovers):
        return Exit.ROLLBACK_INCOMPLETE
    good = ended.state == RunState.SUCCEEDED or (ended.state == RunState.ROLLED_BACK and asked)
    return Exit.OK if good and not ended.unmet else Exit.FAILED
