"""planvirt show RUN"""

import time
from collections.abc import Sequence
from datetime import datetime

import click

from flows.cli.common import configuration, output_option, print_json, print_table, took
from planvirt.errors import Exit, UsageError
from planvirt.journal.journal import Journal
from planvirt.journal.records import RunRecord, StepRecord
from planvirt.journal.transitions import ENDED, RunState, StepState


@click.command("show")
@click.argument("run")
@click.option("--trail", is_flag=True, help="Also every transition: when, what, why.")
@output_option
@click.pass_obj
def command(config: str | None, run: str, trail: bool, output: str) -> int:
    """Show one run with its steps. RUN may be the beginning of an id, or 'last'."""
    from flows import documents
    from flows.rollback import leftovers

    with Journal(configuration(config).journal_url) as journal:
        record = find_run(journal, run)
        steps = journal.steps(record.id)
        transitions = journal.transitions(record.id) if trail else ()
    left = leftovers(record.state, steps)
    if output == "json":
        print_json(documents.run(record, steps, left) | ({"trail": documents.trail(transitions)} if trail else {}))
        return Exit.OK
    print_run(record, steps, left)
    if transitions:
        click.echo()
        print_table(
            ("WHEN", "STEP", "FROM", "TO", "WHY"),
            [
                (
                    datetime.fromtimestamp(item.at).astimezone().strftime("%H:%M:%S.%f")[:-3],
                    item.step or "(run)",
                    item.before,
                    item.after if item.after != item.before else "",
                    item.why,
                )
                for item in transitions
            ],
        )
    return Exit.OK


def find_run(journal: Journal, run: str) -> RunRecord:
    """The run of that id, or the latest one for 'last'."""
    if run != "last":
        return journal.run(run)
    latest = journal.runs(limit=1)
    if not latest:
        raise UsageError("cannot find the last run: there are no runs yet")
    return latest[0]


def print_run(record: RunRecord, steps: Sequence[StepRecord], left: Sequence[str]) -> None:
    """A run for people: its end, its steps, its first error, and what is left of it."""
    click.echo(f"run {record.id} of plan {record.plan}: {state_of(record)}")
    if steps:
        print_table(
            ("STEP", "ACTION", "INSTANCE", "HOST", "STATE", "ATTEMPTS", "TOOK", "RESULT"),
            [
                (
                    step.id,
                    step.action,
                    step.instance,
                    step.host,
                    step.state.value,
                    str(step.attempts),
                    took(step.started, step.ended),
                    _result(step),
                )
                for step in steps
            ],
        )
    if record.error:
        click.echo(f"{click.style('error:', fg='red', bold=True)} {record.error['brief']}")
        for line in record.error.get("details", "").splitlines():
            click.echo(f"  {line}")
        if record.error.get("resolution"):
            click.echo(f"  {click.style('→', fg='cyan')} {record.error['resolution']}")
    if left:
        click.secho("left over:", fg="red")
        for name in left:
            click.echo(f"  {name}")
    for way in _ways_on(record):
        click.echo(f"  {click.style('→', fg='cyan')} {way}")


def state_of(record: RunRecord) -> str:
    """A run's state for people, who want to know whether somebody still works on it."""
    words = record.state.replace("_", " ")
    return f"{words}, but its process is dead" if _is_dead(record) else words


def _is_dead(record: RunRecord) -> bool:
    return record.state not in ENDED and record.lease_until <= time.time()


def _ways_on(record: RunRecord) -> list[str]:
    """What can be done about a run that is not over and done with."""
    if record.state == RunState.KEPT:
        return [
            f"'planvirt resume {record.id}' goes on where it stopped",
            f"'planvirt rollback {record.id}' undoes it",
        ]
    if record.state == RunState.ROLLBACK_INCOMPLETE:
        return [f"'planvirt rollback {record.id}' finishes the rollback"]
    if _is_dead(record):
        return ["'planvirt recover' finishes it as its plan says"]
    return []


def _result(step: StepRecord) -> str:
    if step.state == StepState.UNDONE:
        return f"after: {step.error['brief']}" if step.error else ""
    if step.undo_error:
        return step.undo_error["brief"]
    if step.error and not step.outputs:
        return step.error["brief"]
    if "image" in step.outputs:
        return f"image {step.outputs['image']}"
    if "images" in step.outputs:
        return f"images {', '.join(step.outputs['images'].values())}"
    return ", ".join(step.outputs.get("addresses", ()))
