"""planvirt runs"""

from datetime import datetime

import click

from flows.cli.common import configuration, output_option, print_json, print_table, took
from flows.cli.show import state_of
from planvirt.errors import Exit


@click.command("runs")
@click.option("--plan", help="Only the runs of this plan.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 1000), help="How many, newest first.")
@output_option
@click.pass_obj
def command(config: str | None, plan: str | None, limit: int, output: str) -> int:
    """List the latest runs."""
    from flows import documents
    from planvirt.journal.journal import Journal

    with Journal(configuration(config).journal_url) as journal:
        records = journal.runs(plan=plan, limit=limit)
    if output == "json":
        print_json(documents.runs(records))
        return Exit.OK
    if not records:
        click.echo("there are no runs yet")
        return Exit.OK
    print_table(
        ("RUN", "KIND", "PLAN", "STATE", "BEGAN", "TOOK", "ERROR"),
        [
            (
                record.id,
                record.kind,
                record.plan,
                state_of(record),
                datetime.fromtimestamp(record.created).astimezone().strftime("%Y-%m-%d %H:%M:%S"),
                took(record.started, record.ended),
                record.error["brief"] if record.error else "",
            )
            for record in records
        ],
    )
    return Exit.OK
