"""Destroying an instance that another run is at work on: that run notices, lets go of it, and undoes the rest."""

import threading
from pathlib import Path

import pytest

from planvirt.journal.transitions import RunState
from tests.flows.yard import Yard

TWO = """\
instances:
  web: {memory: 64 MiB, disks: [1 MiB]}
  db: {memory: 64 MiB, disks: [1 MiB]}
"""
WORKING = f"""\
{TWO}operations:
  - {{id: first, action: stop, instances: [db]}}
  - {{id: busy, action: reboot, instances: [web]}}
  - {{id: after, action: pause, instances: [web]}}
"""


class Busy:
    """A run in a thread of its own that hangs in a call to the host until it is let go on."""

    def __init__(self, yard: Yard, text: str) -> None:
        self.yard = yard
        self.state: RunState | None = None
        self.prepared = yard.prepare(text)
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        self.state = self.yard.carry_out(self.prepared)

    def begin(self, event: str) -> None:
        """Start it, and return when that step is on its way."""
        self.thread.start()
        deadline = threading.Event()
        for _ in range(200):
            steps = self.yard.journal.steps("r2") if self.yard.runs == 2 else ()
            if any(step.id == event and step.state == "doing" for step in steps):
                return
            deadline.wait(0.05)
        raise AssertionError(f"{event} did not begin")

    def end(self) -> RunState:
        self.thread.join(30)
        assert self.state is not None
        return self.state


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return Yard(tmp_path)


def test_a_preview_says_at_whose_cost(yard: Yard) -> None:
    yard.run(TWO)
    yard.kvm1.fail("reboot", name="web", hang=3.0)
    busy = Busy(yard, WORKING)
    busy.begin("busy.web")
    found = yard.preview("instances:\n  web: {memory: 64 MiB, state: absent}\n")
    assert found.conflicts == ()
    assert [change.why for change in found.changes] == [
        "declared absent, running; takes it from run r2, which is at work on it"
    ]
    assert busy.end() == RunState.SUCCEEDED


def test_whoever_does_more_than_terminate_has_to_wait(yard: Yard) -> None:
    yard.run(TWO)
    yard.kvm1.fail("reboot", name="web", hang=3.0)
    busy = Busy(yard, WORKING)
    busy.begin("busy.web")
    again = yard.preview(f"{TWO}operations:\n  - {{action: stop, instances: [web]}}\n")
    assert any("run r2 of plan shop is working on it" in conflict for conflict in again.conflicts)
    assert busy.end() == RunState.SUCCEEDED


def test_a_destroy_takes_an_instance_from_a_run_that_is_at_work_on_it(yard: Yard) -> None:
    yard.run(TWO)
    yard.kvm1.fail("reboot", name="web", hang=2.0)
    busy = Busy(yard, WORKING)
    busy.begin("busy.web")
    ended = yard.carry_out(yard.prepare("instances:\n  web: {memory: 64 MiB, state: absent}\n"))
    assert ended == RunState.SUCCEEDED
    # The other run has lost web, has not touched it any more, and has undone what it did to db.
    assert busy.end() == RunState.ROLLED_BACK
    assert yard.left() == {"kvm1": ["db", "shop.db.root"]}
    db = yard.kvm1.instance("db")
    assert db is not None and db.state == "running"
    events = yard.kvm1.events()
    assert "pause web" not in events
    last = max(place for place, event in enumerate(events) if event.endswith(" web"))
    assert events[last] == "delete_set_aside web"
    record = yard.journal.run("r2")
    assert record.error is not None and "run r3 terminates it" in record.error["brief"]
    assert {step.id: step.state for step in yard.journal.steps("r2")} == {
        "first.db": "undone", "busy.web": "undone", "after.web": "skipped"
    }  # fmt: skip


def test_volumes_that_the_other_run_was_making_go_with_the_instance(yard: Yard) -> None:
    yard.run("instances:\n  db: {memory: 64 MiB}\n")
    yard.kvm1.fail("start", name="web", hang=2.0, at="after")
    busy = Busy(yard, "instances:\n  web: {memory: 64 MiB, disks: [1 MiB]}\n  db: {memory: 64 MiB}\n")
    busy.begin("launch.web")
    for _ in range(100):
        if (found := yard.kvm1.instance("web")) is not None and found.state == "running":
            break
        threading.Event().wait(0.05)
    assert yard.destroy("instances:\n  web: {memory: 64 MiB, disks: [1 MiB]}\n") == RunState.SUCCEEDED
    assert busy.end() == RunState.ROLLED_BACK
    assert yard.left() == {}


def test_a_copy_that_the_other_run_was_making_goes_with_the_instance(yard: Yard) -> None:
    yard.run("instances:\n  web: {memory: 64 MiB, disks: [1 MiB]}\n")
    yard.kvm1.fail("export_disks", name="web", hang=2.0, at="after")
    busy = Busy(yard, "instances:\n  web: {memory: 64 MiB, disks: [2 MiB]}\n")
    busy.begin("resize.web")
    for _ in range(100):
        if len(yard.kvm1.volumes()) == 2:
            break
        threading.Event().wait(0.05)
    assert yard.destroy("instances:\n  web: {memory: 64 MiB, disks: [1 MiB]}\n") == RunState.SUCCEEDED
    assert busy.end() == RunState.ROLLED_BACK
    assert yard.left() == {}
