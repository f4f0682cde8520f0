"""planvirt show RUN"""

from collections.abc import Sequence
from datetime import datetime

import click

from flows.cli.common import configuration, output_option, print_json, print_table
from flows.cli.runs import took
from planvirt.errors import Exit
from planvirt.journal.journal import Journal
from planvirt.journal.records import RunRecord, StepRecord
from planvirt.journal.transitions import RunState, StepState


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
        print_json(documents.run(record, steps, left))
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
    latest = journal.runs(limit=1) if run == "last" else ()
    return latest[0] if latest else journal.run(run)


def print_run(record: RunRecord, steps: Sequence[StepRecord], left: Sequence[str]) -> None:
    """A run for people: its end, its steps, its first error, and what is left of it."""
    click.echo(f"run {record.id} of plan {record.plan}: {record.state.replace('_', ' ')}")
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
    if record.state == RunState.ROLLBACK_INCOMPLETE:
        click.echo(f"  {click.style('→', fg='cyan')} planvirt rollback {record.id}")


def _result(step: StepRecord) -> str:
    if step.state == StepState.UNDONE:
        return f"undone after: {step.error['brief']}" if step.error else "undone"
    if step.undo_error:
        return step.undo_error["brief"]
    if step.error and not step.outputs:
        return step.error["brief"]
    if "image" in step.outputs:
        return f"image {step.outputs['image']}"
    return ", ".join(step.outputs.get("addresses", ()))
