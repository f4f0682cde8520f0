"""Whole runs whose journal has hard times: its disk is full, it is locked, or several processes want the same of it."""

import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from planvirt.journal.journal import Journal
from tests.flows.small_disk import filled, small_disk
from tests.flows.workshop import Ended, Workshop, until

pytestmark = pytest.mark.real

PLAN = """\
planvirt: 1
name: web
instances:
  web: {count: 2, memory: 64 MiB, disks: [1 MiB]}
operations:
  - {id: nap, action: sleep, instances: [web-1], with: {for: 2s}}
  - {id: halt, action: stop, instances: [web]}
"""


@pytest.fixture
def shop(running: Workshop) -> Workshop:
    running.write("web.yaml", PLAN)
    return running


@contextmanager
def locked(shop: Workshop) -> Iterator[None]:
    """Write to the journal from another process's place, and do not come to an end."""
    database = sqlite3.connect(shop.home / "journal.sqlite", isolation_level=None, timeout=30)
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        database.execute("ROLLBACK")
        database.close()


def let_leases_lapse(shop: Workshop, seconds: float = 0.0) -> None:
    """Spare the test the minute after which a run counts as dead."""
    with sqlite3.connect(shop.home / "journal.sqlite") as database:
        database.execute("UPDATE runs SET lease_until = ? WHERE token <> ''", (time.time() + seconds,))
    database.close()


def assert_in_three_parts(ended: Ended, brief: str, details: str, resolution: str) -> None:
    assert "Traceback" not in ended.err
    error = ended.document["error"]
    assert brief in error["brief"] and error["brief"].startswith("cannot ")
    assert details in error["details"]
    assert resolution in error["resolution"]


def assert_in_order(shop: Workshop, left: list[str]) -> None:
    """Nothing but this is left, and nobody owns anything."""
    assert shop.left() == left
    with Journal(f"sqlite:///{shop.home}/journal.sqlite") as journal:
        assert journal.claims() == ()
        assert journal.open() == ()


# Without space


def test_a_run_whose_journal_is_full_is_cut_short_and_recovered_when_there_is_space(shop: Workshop) -> None:
    shop.home.mkdir()
    with small_disk(shop.home, 1):
        process = shop.begin("run", "web.yaml", "--yes", "--output", "json")
        until(lambda: shop.phase("nap.web-1") != "")
        with filled(shop.home):
            ended = shop.finish(process)
            run = shop.planvirt("runs", "--output", "json").document["runs"][0]["id"]  # reading takes no space
        assert ended.code == 3, ended
        assert_in_three_parts(ended, f"cannot finish run {run}", "disk is full", "'planvirt recover --wait'")
        assert "stop web-1" not in ended.err  # nothing is done of which the journal does not know
        assert shop.left() != []
        let_leases_lapse(shop, 2.0)
        recovered = shop.planvirt("recover", "--wait")
        assert recovered.code == 0, recovered
        assert f"run {run} of plan web: rolled back" in recovered.out
        assert_in_order(shop, [])


# Locked


def test_a_run_goes_on_when_the_journal_was_locked_for_three_seconds(shop: Workshop) -> None:
    process = shop.begin("run", "web.yaml", "--yes", "--output", "json")
    until(lambda: shop.phase("nap.web-1") != "")
    with locked(shop):
        time.sleep(3.0)
        assert process.poll() is None
        assert "request_shutdown web-1" not in shop.simulated.events()
    ended = shop.finish(process)
    assert ended.code == 0, ended
    assert {step["attempts"] for step in ended.document["run"]["steps"]} == {1}


def test_a_journal_that_stays_locked_is_told_and_nothing_is_left(shop: Workshop) -> None:
    configured = (shop.folder / "planvirt.toml").read_text()
    url = f"sqlite:///{shop.home}/journal.sqlite?timeout=1"
    shop.write("planvirt.toml", f'{configured}\n[journal]\nurl = "{url}"\n')
    assert shop.planvirt("runs").code == 0  # the journal is there
    with locked(shop):
        ended = shop.run("web.yaml")
    assert ended.code == 1, ended
    assert_in_three_parts(ended, "cannot write to the journal", "database is locked", "its database answers")
    assert_in_order(shop, [])
    process = shop.begin("run", "web.yaml", "--yes", "--output", "json")
    until(lambda: shop.phase("nap.web-1") != "")
    with locked(shop):
        ended = shop.finish(process)
    assert ended.code == 3, ended
    assert_in_three_parts(ended, "cannot finish run", "database is locked", "'planvirt recover --wait'")
    let_leases_lapse(shop)
    assert shop.planvirt("recover").code == 0
    assert_in_order(shop, [])


# Many at once


def test_of_four_equal_runs_at_once_one_does_the_work(shop: Workshop) -> None:
    processes = [shop.begin("run", "web.yaml", "--yes", "--output", "json") for _ in range(4)]
    ended = sorted((shop.finish(process) for process in processes), key=lambda each: each.code)
    assert [each.code for each in ended] == [0, 6, 6, 6], ended
    winner = ended[0].document["run"]["id"]
    for loser in ended[1:]:
        assert f"run {winner} of plan web is working on it" in str(loser.document["error"])
    done = [event for event in shop.simulated.events() if not event.startswith("create_volume")]
    assert sorted(done) == sorted(
        f"{call} web-{number}" for call in ("define", "start", "request_shutdown") for number in (1, 2)
    )
    found = shop.planvirt("instances", "--output", "json").document["instances"]
    assert [(each["name"], each["state"], each["run"]) for each in found] == [
        ("web-1", "stopped", winner),
        ("web-2", "stopped", winner),
    ]
    assert len(shop.planvirt("runs", "--output", "json").document["runs"]) == 1
    assert_in_order(shop, shop.left())


def test_a_destroy_takes_an_instance_from_a_long_run_and_nothing_else(shop: Workshop) -> None:
    shop.simulated.add_foreign("pet")
    shop.write("db.yaml", "planvirt: 1\nname: db\ninstances:\n  db: {memory: 64 MiB, disks: [1 MiB]}\n")
    assert shop.run("db.yaml").code == 0
    before = shop.left()
    step = "  - {{id: nap{}, action: sleep, instances: [cache], with: {{for: 300ms}}}}\n"
    shop.write(
        "long.yaml",
        "planvirt: 1\nname: long\ninstances:\n  cache: {memory: 64 MiB, disks: [1 MiB]}\noperations:\n"
        + "".join(step.format(number) for number in range(20)),
    )
    process = shop.begin("run", "long.yaml", "--yes", "--output", "json")
    until(lambda: shop.phase("nap1.cache") != "")
    destroyed = shop.planvirt("destroy", "long.yaml", "--yes", "--output", "json")
    assert destroyed.code == 0, destroyed
    ended = shop.finish(process)
    assert ended.code == 1, ended
    run = ended.document["run"]
    assert run["state"] == "rolled_back"
    assert f"run {destroyed.document['run']['id']} terminates it" in run["error"]["brief"]
    assert {each["state"] for each in run["steps"]} == {"undone", "skipped"}
    assert_in_order(shop, before)


def test_of_two_that_recover_at_once_one_does_the_work(shop: Workshop) -> None:
    shop.simulated.fail("request_shutdown", name="web-2", kill=True, at="after")
    assert shop.finish(shop.begin("run", "web.yaml", "--yes")).code == -signal.SIGKILL
    let_leases_lapse(shop)
    shop.simulated.fail("undefine", name="web-1", hang=3.0)
    processes = [shop.begin("recover") for _ in range(2)]
    ended = [shop.finish(process) for process in processes]
    (worker,) = [each for each in ended if "of plan web: rolled back" in each.out]
    (other,) = [each for each in ended if each is not worker]
    assert worker.code == 0, worker
    if other.code == 0:  # it came a moment later
        assert "0 runs to recover" in other.out and "counts as running" in other.out
    else:
        assert other.code == 6, other
        assert "it is still running" in other.err and "Traceback" not in other.err
    events = shop.simulated.events()
    assert [events.count(f"undefine {name}") for name in ("web-1", "web-2")] == [1, 1]
    assert_in_order(shop, [])
