"""Everything there is on the simulated hosts of a yard, to compare before and after; and runs that are killed."""

import signal
import time
from typing import Any

from drivers.simulated.world import World as Paper
from flows.call import RunFacts
from flows.context import RunContext
from flows.executor import ThreadExecutor
from flows.prepare import Prepared
from flows.recovery import recover
from flows.world import World
from planvirt.journal.journal import LEASE, Journal
from planvirt.journal.transitions import ENDED, RunState
from planvirt.mark import read_volume_name
from tests.flows.dying import Dying, in_child
from tests.flows.yard import Yard

Seen = dict[str, dict[str, Any]]


def seen(yard: Yard) -> Seen:
    """Instances and volumes by host. A volume is known by its disk's name and by what a guest reads from it."""
    found = {}
    for host, compute in yard.hosts.items():
        with compute.world() as paper:
            found[host] = {
                "instances": {name: _machine(paper, name) for name in sorted(paper.instances)},
                "volumes": sorted(_volume(paper, name) for name in paper.volumes),
            }
    return found


def _machine(paper: Paper, name: str) -> dict[str, Any]:
    machine = paper.instances[name]
    return {
        "uuid": machine.uuid,
        "mark": machine.mark,
        "state": machine.state,
        "sizes": machine.sizes,
        "disks": [(_volume(paper, disk.volume), disk.format, disk.bus) for disk in machine.disks],
        "nics": list(machine.nics),
        "set aside": machine.set_aside,
        "keep": list(machine.keep),
        "notes": dict(machine.notes),
    }


def _volume(paper: Paper, name: str) -> tuple[str, int, str, bytes, bool]:
    volume, read = paper.volumes[name], read_volume_name(name)
    known = name if read is None else f"{read[0].plan}.{read[0].instance}.{read[1]}"
    return known, volume.capacity, volume.format, paper.content(name), volume.partial


def die(yard: Yard, prepared: Prepared, number: int, *, before: bool) -> str | None:
    """Carry out in a process that is killed at that word of its journal. Returns the run's id; None when it was not."""
    run = f"r{yard.runs + 1}"

    def body() -> None:
        Dying.left, Dying.before = number, before
        yard.journal = Dying(yard.config.journal_url)
        yard.carry_out(prepared)

    killed = in_child(body) == signal.SIGKILL
    yard.runs += 1
    return run if killed else None


def finish(yard: Yard, prepared: Prepared, run: str, *, forward: bool) -> RunState:
    """What `planvirt recover` does with a run whose process is dead."""
    url = yard.config.journal_url
    with Journal(url, clock=lambda: time.time() + 2 * LEASE) as journal, World(yard.config) as world:
        if run not in [record.id for record in journal.runs()]:
            return RunState.CANCELLED
        if journal.run(run).state in ENDED:
            return journal.run(run).state
        record = journal.take_over(run, "test", forward=forward)
        plan = prepared.plan if forward else None
        facts = RunFacts(run, prepared.plan.name, "", "2026-01-01T00:00:00Z", prepared.plan.images)
        context = RunContext(facts, journal, world, lambda _: None, plan=plan, workers=1, undo_pause=0.0)
        executor = ThreadExecutor(1)
        state, _ = recover(context, record, executor)
        executor.close()
        assert journal.claims() == ()
        return state
