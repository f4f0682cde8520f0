"""The journal: what it refuses, what it keeps, and who wins a race for an instance."""

import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from planvirt.errors import ConfigError
from planvirt.journal.engine import JournalError, open_engine
from planvirt.journal.journal import LEASE, Claimed, Journal, LostClaim, UnknownRun
from planvirt.journal.transitions import ENDED, IllegalTransition, RunState, StepState
from planvirt.secret import Secret
from tests.planvirt.journal.samples import Clock, execute, record, step

if TYPE_CHECKING:
    from tests.planvirt.journal.postgresql import Server


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


def test_a_secret_is_kept_as_stars(journal: Journal, url: str, tmp_path: Path) -> None:
    journal.begin(record("r1"), [step("a")])
    journal.move_step("r1", "launch.a", StepState.DOING, "go", arguments={"cmdline": Secret("hunter2")})
    assert journal.step("r1", "launch.a").arguments == {"cmdline": "***"}
    rows = execute(url, "SELECT * FROM runs", "SELECT * FROM steps", "SELECT * FROM transitions")
    assert any("***" in row for row in rows)
    assert not any("hunter2" in row for row in rows)
    assert not any(b"hunter2" in path.read_bytes() for path in tmp_path.iterdir())


def _race(url: str, name: str, gate: Barrier, won: "multiprocessing.Queue[str]") -> None:
    with Journal(url) as journal:
        gate.wait()
        try:
            journal.begin(record(name), [step("a"), step("b", 1)])
        except Claimed:
            return
        won.put(name)


def test_of_many_processes_one_wins(url: str) -> None:
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


def test_of_twenty_claims_one_wins_each_time(url: str) -> None:
    """Each has a journal of its own, and names the same instances in one order or the other: no deadlock."""
    gate = threading.Barrier(20)

    def race(number: int) -> list[int]:
        steps = [step(name, position) for position, name in enumerate(("ab", "ba")[number % 2])]
        won = []
        with Journal(url) as journal:
            for turn in range(20):
                run = f"r{turn}-{number}"
                gate.wait(60)
                try:
                    journal.begin(record(run), steps)
                except Claimed:
                    gate.wait(60)
                else:
                    won.append(turn)
                    gate.wait(60)  # nobody gives back what others may still ask for
                    assert {claim.run for claim in journal.claims()} == {run}
                    journal.move_run(run, RunState.CANCELLED, "the next turn")
        return won

    def race_or_abort(number: int) -> list[int]:
        try:
            return race(number)
        except BaseException:
            gate.abort()  # the others need not wait for this one
            raise

    with ThreadPoolExecutor(20) as threads:
        winners = list(threads.map(race_or_abort, range(20)))
    assert sorted(turn for turns in winners for turn in turns) == list(range(20))
    with Journal(url) as journal:
        assert len(journal.runs()) == 20


def test_a_place_that_cannot_be_written_is_an_error_in_three_parts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError) as caught:
        Journal(f"sqlite:///{tmp_path}/file/journal.sqlite")
    assert caught.value.brief.startswith("cannot")
    assert caught.value.resolution


@pytest.mark.parametrize(
    "wrong",
    [
        "not a url",
        "mysql://db/planvirt",
        "mysql://me:hunter2@db/planvirt",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:////tmp/journal.sqlite?timeout=long",
        "postgresql+nothing://me:hunter2@db/planvirt",
        "postgresql://me:hunter2@db:port/planvirt",
    ],
)
def test_a_wrong_url_is_the_operators_fault(wrong: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Journal(wrong)
    assert caught.value.resolution
    assert "hunter2" not in str(caught.value)


def test_a_database_that_does_not_answer_is_an_error_in_three_parts(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"cannot open the journal postgresql\+psycopg://me:\*\*\*@/") as caught:
        Journal(f"postgresql://me:hunter2@/planvirt?host={tmp_path}")
    assert "No such file" in caught.value.details
    assert caught.value.resolution
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_postgresql_means_psycopg(scheme: str) -> None:
    engine = open_engine(f"{scheme}://planvirt@db/planvirt")
    assert (engine.dialect.name, engine.dialect.driver) == ("postgresql", "psycopg")


@pytest.mark.real
def test_a_journal_outlives_its_connections(postgresql: "Server", postgresql_url: str) -> None:
    with Journal(postgresql_url) as journal:
        journal.begin(record("r1"), [step("a")])
        others = "backend_type = 'client backend' AND pid <> pg_backend_pid()"
        ended = postgresql.execute(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {others}")  # noqa: S608 - ours
        assert (True,) in ended
        journal.renew("r1")
        assert journal.claims()[0].run == "r1"


def test_what_the_database_says_is_an_error_in_three_parts(journal: Journal, url: str) -> None:
    execute(url, *(f"DROP TABLE {table}" for table in ("claims", "transitions", "steps", "runs")))
    what = r"(no such table: \w+|relation \"\w+\" does not exist)"
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
        with pytest.raises(JournalError, match=f"cannot read the journal: {what}"):
            read()
    with pytest.raises(JournalError, match=f"cannot write to the journal: {what}"):
        journal.begin(record("r1"), [step("a")])


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
