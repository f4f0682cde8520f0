"""What `run`, `destroy` and `rollback` share: the Prefect server, the progress, and the result."""

import os
import sys
import threading
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager

import click

from flows import documents
from flows.cli.common import print_json
from flows.cli.show import print_run
from flows.progress import Lines, LiveTable, shown
from flows.run import EXITS, Result
from flows.server import (
    ServerError,
    configured_url,
    ensure_server,
    local_server,
    reachable,
    server_environment,
)
from planvirt.config import Config
from planvirt.journal.journal import Journal


@contextmanager
def connected(config: Config, environ: MutableMapping[str, str]) -> Iterator[str]:
    """Let Prefect find its server: the configured one, or our own, started if it must be. Yields its pages' address."""
    environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")  # the progress says it better
    url = configured_url(environ)
    if url is None:
        if local_server(config.home) is None:
            click.echo("starting a Prefect server on this machine (once; 'planvirt down' ends it) …", err=True)
        server, _ = ensure_server(config.home)
        environ.update(server_environment(config.home))
        url = environ["PREFECT_API_URL"] = server.url
    elif not reachable(url):
        raise ServerError(
            f"cannot reach the Prefect API at {url}",
            details="nothing answers there",
            resolution="start that server, or unset PREFECT_API_URL to let planvirt start one of its own",
        )
    yield url.removesuffix("/api")


@contextmanager
def warm_up() -> Iterator[None]:
    """Begin to import Prefect, which takes a second, while the block waits for something else.

    A block that ends early waits for that: an interpreter that ends meanwhile lets the import fail, or aborts.
    """
    thread = threading.Thread(target=_import_prefect, name="warm-up")
    if "PREFECT_API_URL" in os.environ:
        thread.start()
    try:
        yield
    finally:
        if thread.is_alive():
            thread.join()


def _import_prefect() -> None:
    import flows.prefect_flow  # noqa: F401 - for the import alone


@contextmanager
def reporter(output: str, steps: Sequence[tuple[str, str, str]]) -> Iterator[Lines | LiveTable]:
    """Show the run's progress on standard error."""
    with shown(steps, plain=output != "text") as view:
        yield view


def finish(journal: Journal, result: Result, output: str, pages: str) -> int:
    """Print how the run ended, and return the exit code for it."""
    record, steps = journal.run(result.run), journal.steps(result.run)
    if output == "json":
        print_json(documents.run(record, steps, result.leftovers))
    elif output == "text":
        print_run(record, steps, result.leftovers)
        if record.flow_run_id:
            click.echo(f"in the Prefect UI: {pages}/runs/flow-run/{record.flow_run_id}")
    if not reachable(f"{pages}/api"):
        click.echo(f"the Prefect server is gone: only 'planvirt show {record.id}' has the whole of this run", err=True)
        # Prefect would go on trying to send what it has, for minutes.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXITS[result.state])
    return EXITS[result.state]
