"""planvirt doctor"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import click

from flows.cli.common import configuration, output_option, plural, print_json, size
from planvirt.config import Config
from planvirt.errors import Exit, PlanvirtError

if TYPE_CHECKING:
    from flows.world import World


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    ok: bool
    details: str
    resolution: str = ""


@click.command("doctor")
@output_option
@click.pass_obj
def command(config: str | None, output: str) -> int:
    """Check everything, and say how to mend it.

    The hosts, the stores, the journal and Prefect.
    """
    settings = configuration(config)
    findings = list(_examine(settings))
    healthy = all(finding.ok for finding in findings)
    if output == "json":
        checks = [
            {"what": item.what, "ok": item.ok, "details": item.details, "resolution": item.resolution}
            for item in findings
        ]
        print_json({"ok": healthy, "checks": checks})
        return Exit.OK if healthy else Exit.FAILED
    for item in findings:
        sign = click.style("ok  ", fg="green") if item.ok else click.style("FAIL", fg="red")
        click.echo(f"{sign} {item.what}: {item.details}")
        for line in item.resolution.splitlines():
            click.echo(f"     {click.style('→', fg='cyan')} {line}")
    return Exit.OK if healthy else Exit.FAILED


def _examine(config: Config) -> Iterator[Finding]:
    from flows.world import World

    yield Finding("configuration", True, str(config.path or "none found: one host and one store, both 'local'"))
    yield _look("journal", lambda: _journal(config))
    with World(config) as world:
        for name in config.hosts:
            yield _look(f"host {name}", partial(_host, world, name))
        for name in config.stores:
            yield _look(f"store {name}", partial(_store, world, name))
    yield _prefect(config)


def _look(what: str, examine: Callable[[], str]) -> Finding:
    try:
        return Finding(what, True, examine())
    except PlanvirtError as error:
        return Finding(what, False, str(error), error.resolution)


def _journal(config: Config) -> str:
    from sqlalchemy import make_url

    from planvirt.journal.journal import Journal

    with Journal(config.journal_url) as journal:
        stuck = [claim for claim in journal.claims() if not claim.alive]
        if stuck:
            runs = sorted({claim.run for claim in stuck})
            raise PlanvirtError(
                f"{plural(len(stuck), 'instance')} of runs that died or could not be undone",
                details=", ".join(sorted(claim.instance for claim in stuck)),
                resolution="\n".join(f"planvirt rollback {run}" for run in runs),
            )
        shown = make_url(config.journal_url).render_as_string(hide_password=True)
        return f"{shown}, {plural(len(journal.runs(limit=1000)), 'run')}"


def _host(world: "World", name: str) -> str:
    facts = world.host(name).facts()
    known = facts.hypervisor.lower() in facts.version.lower()
    what = facts.version if known else f"{facts.hypervisor} {facts.version}"
    return (
        f"{what} at {facts.uri}, accel {facts.accel}, {plural(facts.cpus, 'cpu')}, {size(facts.memory)} memory, "
        f"{size(facts.free_space)} free for disks"
    )


def _store(world: "World", name: str) -> str:
    store = world.store(name)
    store.check()
    return plural(len(store.list()), "image")


def _prefect(config: Config) -> Finding:
    from importlib.metadata import version

    from flows.server import configured_url, local_server, reachable

    found = f"version {version('prefect')}"
    url = configured_url(os.environ)
    if url is None:
        server = local_server(config.home)
        where = f"local server at {server.ui}" if server else "no server yet: 'planvirt run' starts one and keeps it"
        return Finding("prefect", True, f"{found}, {where}")
    if reachable(url):
        return Finding("prefect", True, f"{found}, server at {url}")
    return Finding(
        "prefect",
        False,
        f"{found}, no answer from {url}",
        "start that server, or unset PREFECT_API_URL to let planvirt start one of its own",
    )
