"""The journal: what it refuses, what it keeps, and who wins a race for an instance."""

import multiprocessing
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from planvirt.errors import ConfigError
from planvirt.journal.engine import JournalError
from planvirt.journal.journal import LEASE, Claimed, Journal, LostClaim, UnknownRun
from planvirt.journal.transitions import ENDED, IllegalTransition, RunState, StepState
from planvirt.secret import Secret
from tests.planvirt.journal.samples import Clock, record, step


def test_a_run_comes_back_as_it_was_written(journal: Journal) -> None:
    journal.begin(record("r1", inputs={"n": 3}), [step("a"), step("b", 1)])
    assert journal.run("r1").inputs == {"n": 3}
    assert [found.id for found in journal.steps("r1")] == ["launch.a", "launch.b"]


def test_a_run_is_found_by_the_beginning_of_its_id(journal: Journal) -> None:
    journal.begin(record("2026-aa"), [])
    journal.begin(record("2026-ab"), [])
    assert journal.run("2026-ab").id == "2026-ab"
    with pytest.raises(UnknownRun, match="several"):
        journal.run("2026")
    with pytest.raises(UnknownRun, match="no run"):
        journal.run("%")


def test_an_illegal_transition_changes_nothing(journal: Journal) -> None:
    journal.begin(record("r1"), [step("a")])
    with pytest.raises(IllegalTransition):
        journal.move_run("r1", RunState.SUCCEEDED, "skipping ahead")
    with pytest.raises(IllegalTransition):
        journal.move_step("r1", "launch.a", StepState.DONE, "never begun")
    assert journal.run("r1").state == RunState.PENDING
    assert journal.step("r1", "launch.a").state == StepState.PENDING
    assert [line.why for line in journal.transitions("r1")] == ["planned"]


def test_every_change_is_in_the_audit_trail(journal: Journal, clock: Clock) -> None:
    journal.begin(record("r1"), [step("a")])
    journal.move_run("r1", RunState.RUNNING, "begun")
    clock.now += 1
    journal.move_step("r1", "launch.a", StepState.DOING, "attempt 1")
    journal.phase("r1", "launch.a", "define", {"domain": "a"})
    trail = [(line.step, line.before, line.after, line.why, line.who) for line in journal.transitions("r1")]
    assert trail == [
        (None, "", "pending", "planned", "me"),
        (None, "pending", "running", "begun", "me"),
        ("launch.a", "pending", "doing", "attempt 1", "me"),
        ("launch.a", "doing", "doing", "define", "me"),
    ]
    assert journal.transitions("r1")[-1].at == 1001.0


def test_phases_add_up_to_what_the_undo_needs(journal: Journal) -> None:
    journal.begin(record("r1"), [step("a")])
    journal.move_step("r1", "launch.a", StepState.DOING, "attempt 1")
    journal.phase("r1", "launch.a", "disks", {"volumes": ["v1"]})
    journal.phase("r1", "launch.a", "define", {"domain": "a"})
    found = journal.step("r1", "launch.a")
    assert found.undo == {"volumes": ["v1"], "domain": "a"}
    assert found.phase == "define"


def test_attempts_are_counted(journal: Journal) -> None:
    journal.begin(record("r1"), [step("a")])
    for _ in range(3):
        journal.move_step("r1", "launch.a", StepState.DOING, "again")
        journal.move_step("r1", "launch.a", StepState.FAILED, "no", error={"brief": "no"})
    assert journal.step("r1", "launch.a").attempts == 3


def test_a_claimed_instance_is_refused_and_nothing_of_the_second_run_is_kept(journal: Journal) -> None:
    journal.begin(record("r1"), [step("a")])
    with pytest.raises(Claimed, match="run r1 of plan p is working on it"):
        journal.begin(record("r2"), [step("b"), step("a", 1)])
    with pytest.raises(UnknownRun):
        journal.run("r2")
    assert {claim.uuid: claim.run for claim in journal.claims()} == {"uuid-a": "r1"}


@pytest.mark.parametrize(
    "way",
    [
        (RunState.CANCELLED,),
        (RunState.RUNNING, RunState.KEPT),
        (RunState.RUNNING, RunState.COMMITTING, RunState.SUCCEEDED),
    ],
)
def test_the_end_of_a_run_releases_its_claims(journal: Journal, way: tuple[RunState, ...]) -> None:
    journal.begin(record("r1"), [step("a")])
    for state in way:
        assert journal.claims()
        journal.move_run("r1", state, "on")
    assert way[-1] in ENDED
    assert journal.claims() == ()
    journal.begin(record("r2"), [step("a")])


def test_a_dead_runs_claim_says_how_to_get_rid_of_it(journal: Journal, clock: Clock) -> None:
    journal.begin(record("r1"), [step("a")])
    clock.now += LEASE + 1
    with pytest.raises(Claimed, match="died") as caught:
        journal.begin(record("r2"), [step("a")])
    assert "planvirt rollback r1" in caught.value.resolution


def test_a_step_without_its_claim_touches_nothing(journal: Journal) -> None:
    journal.begin(record("r1"), [step("a")])
    journal.move_run("r1", RunState.CANCELLED, "over")
    with pytest.raises(LostClaim):
        journal.move_step("r1", "launch.a", StepState.DOING, "too late")
    assert journal.step("r1", "launch.a").state == StepState.PENDING


def test_a_secret_is_kept_as_stars(journal: Journal, tmp_path: Path) -> None:
    journal.begin(record("r1"), [step("a")])
    journal.move_step("r1", "launch.a", StepState.DOING, "go", arguments={"cmdline": Secret("hunter2")})
    assert journal.step("r1", "launch.a").arguments == {"cmdline": "***"}
    assert not any(b"hunter2" in path.read_bytes() for path in tmp_path.iterdir())


def _race(url: str, name: str, gate: "multiprocessing.synchronize.Barrier", won: "multiprocessing.Queue[str]") -> None:
    with Journal(url) as journal:
        gate.wait()
        try:
            journal.begin(record(name), [step("a"), step("b", 1)])
        except Claimed:
            return
        won.put(name)


def test_of_many_processes_one_wins(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/journal.sqlite"
    context = multiprocessing.get_context("spawn")
    gate, won = context.Barrier(6), context.Queue()
    racers = [context.Process(target=_race, args=(url, f"r{number}", gate, won)) for number in range(6)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
        assert racer.exitcode == 0
    with Journal(url) as journal:
        assert len(journal.runs()) == 1
        assert {claim.run for claim in journal.claims()} == {won.get(timeout=5)}
    assert won.empty()


def test_a_place_that_cannot_be_written_is_an_error_in_three_parts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError) as caught:
        Journal(f"sqlite:///{tmp_path}/file/journal.sqlite")
    assert caught.value.brief.startswith("cannot")
    assert caught.value.resolution


@pytest.mark.parametrize("url", ["not a url", "mysql://db/planvirt", "sqlite://", "sqlite:///:memory:"])
def test_a_wrong_url_is_the_operators_fault(url: str) -> None:
    with pytest.raises(ConfigError):
        Journal(url)


def test_what_the_database_says_is_an_error_in_three_parts(journal: Journal, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as database:
        database.execute("PRAGMA foreign_keys=OFF")
        for table in ("runs", "steps", "transitions", "claims"):
            database.execute(f"DROP TABLE {table}")
    reads: list[Callable[[], object]] = [
        journal.runs,
        journal.claims,
        lambda: journal.run("r1"),
        lambda: journal.later_runs("r1"),
        lambda: journal.steps("r1"),
        lambda: journal.step("r1", "launch.a"),
        lambda: journal.transitions("r1"),
    ]
    for read in reads:
        with pytest.raises(JournalError, match="cannot read the journal: no such table"):
            read()
    with pytest.raises(JournalError, match="cannot write to the journal: no such table"):
        journal.begin(record("r1"), [step("a")])


def test_many_processes_may_make_a_new_journal(tmp_path: Path) -> None:
    gate = threading.Barrier(6)

    def make(number: int) -> int:
        gate.wait()
        with Journal(f"sqlite:///{tmp_path}/{number // 6}/journal.sqlite") as journal:
            return len(journal.runs())

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(make, range(60))) == [0] * 60


def test_threads_share_a_journal(journal: Journal) -> None:
    journal.begin(record("r1"), [step(str(number), number) for number in range(8)])
    journal.move_run("r1", RunState.RUNNING, "begun")

    def work(number: int) -> None:
        journal.move_step("r1", f"launch.{number}", StepState.DOING, "attempt 1")
        for count in range(20):
            journal.phase("r1", f"launch.{number}", "volume", {f"volume {count}": number})
            journal.renew("r1")
            assert len(journal.step("r1", f"launch.{number}").undo) == count + 1
        journal.move_step("r1", f"launch.{number}", StepState.DONE, "done")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert {found.state for found in journal.steps("r1")} == {StepState.DONE}
    assert len(journal.transitions("r1")) == 2 + 8 * 22


def test_a_journal_of_another_layout_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/journal.sqlite"
    Journal(url).close()
    with sqlite3.connect(tmp_path / "journal.sqlite") as database:
        database.execute("UPDATE layout SET version = 99")
    database.close()
    with pytest.raises(JournalError, match="99"):
        Journal(url)
