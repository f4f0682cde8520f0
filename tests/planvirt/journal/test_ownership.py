"""Whose a run is: what others may not write, when it can be taken over, and what becomes of it then."""

import getpass
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from planvirt.journal.journal import LEASE, Claimed, Journal, LostClaim, NotRecoverable, UnknownRun
from planvirt.journal.transitions import RunState, StepState
from tests.planvirt.journal.samples import Clock, record, step

WRITES: dict[str, Callable[[Journal], None]] = {
    "move_run": lambda journal: journal.move_run("r1", RunState.COMMITTING, "go on"),
    "end": lambda journal: journal.move_run("r1", RunState.KEPT, "go on"),
    "renew": lambda journal: journal.renew("r1"),
    "set_flow_run": lambda journal: journal.set_flow_run("r1", "a flow run"),
    "done": lambda journal: journal.move_step("r1", "launch.a", StepState.DONE, "go on", outputs={"address": "x"}),
    "doing": lambda journal: journal.move_step("r1", "launch.b", StepState.DOING, "go on"),
    "phase": lambda journal: journal.phase("r1", "launch.a", "define", {"domain": "a"}),
    "note_error of a run": lambda journal: journal.note_error("r1", None, {"brief": "no"}),
    "note_error of a step": lambda journal: journal.note_error("r1", "launch.a", {"brief": "no"}),
}


def begin(journal: Journal, *way: RunState) -> None:
    """Run r1 with its first step under way."""
    journal.begin(record("r1"), [step("a"), step("b", 1)])
    journal.move_run("r1", RunState.RUNNING, "begun")
    journal.move_step("r1", "launch.a", StepState.DOING, "attempt 1")
    for state in way:
        journal.move_run("r1", state, "on")


@pytest.mark.parametrize("write", WRITES)
def test_the_owner_may_write(journal: Journal, write: str) -> None:
    begin(journal)
    WRITES[write](journal)


@pytest.mark.parametrize("write", WRITES)
def test_who_comes_back_after_a_take_over_writes_nothing(
    journal: Journal, other: Journal, clock: Clock, write: str
) -> None:
    begin(journal)
    clock.now += LEASE + 1
    other.take_over("r1", "rollback")
    before = (other.run("r1"), other.steps("r1"), other.transitions("r1"))
    with pytest.raises(LostClaim, match="me has taken it over"):
        WRITES[write](journal)
    assert (other.run("r1"), other.steps("r1"), other.transitions("r1")) == before
    other.renew("r1")


@pytest.mark.parametrize("write", WRITES)
def test_who_never_owned_a_run_writes_nothing(journal: Journal, other: Journal, write: str) -> None:
    begin(journal)
    with pytest.raises(LostClaim):
        WRITES[write](other)


@pytest.mark.parametrize("write", WRITES)
def test_an_end_is_the_end_for_its_owner_too(journal: Journal, write: str) -> None:
    begin(journal, RunState.KEPT)
    with pytest.raises(LostClaim, match="ended as kept"):
        WRITES[write](journal)
    assert (journal.run("r1").token, journal.run("r1").lease_until) == ("", 0.0)


def test_a_lease_that_lapsed_can_be_renewed_while_nobody_took_the_run(journal: Journal, clock: Clock) -> None:
    begin(journal)
    clock.now += 10 * LEASE
    journal.renew("r1")
    assert journal.claims()[0].alive


def test_a_living_run_is_not_taken_over(journal: Journal, other: Journal, clock: Clock) -> None:
    begin(journal)
    with pytest.raises(Claimed, match="still running"):
        other.take_over("r1", "rollback")
    clock.now += LEASE / 2
    journal.renew("r1")
    clock.now += LEASE - 1
    with pytest.raises(Claimed):
        other.take_over("r1", "rollback")
    clock.now += 2
    other.take_over("r1", "rollback")


def test_a_run_that_does_not_exist_cannot_be_renewed(journal: Journal) -> None:
    with pytest.raises(UnknownRun):
        journal.renew("r1")


def test_a_user_without_a_name_is_a_number(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr(getpass, "getuser", nameless)
    with Journal(url) as journal:
        journal.begin(record("r1"), [])
        assert journal.run("r1").owner.partition("@")[0].isdigit()


# Taking over


@pytest.mark.parametrize(
    ("way", "becomes"),
    [
        ((), RunState.ROLLING_BACK),
        ((RunState.KEPT,), RunState.ROLLING_BACK),
        ((RunState.ROLLING_BACK,), RunState.ROLLING_BACK),
        ((RunState.ROLLING_BACK, RunState.ROLLBACK_INCOMPLETE), RunState.ROLLING_BACK),
        ((RunState.COMMITTING,), RunState.COMMITTING),
    ],
)
def test_what_a_run_becomes_that_is_taken_over(
    journal: Journal, other: Journal, clock: Clock, way: tuple[RunState, ...], becomes: RunState
) -> None:
    begin(journal, *way)
    clock.now += LEASE + 1
    taken = other.take_over("r1", "by hand")
    assert taken == other.run("r1")
    assert (taken.state, taken.lease_until, taken.ended) == (becomes, clock.now + LEASE, None)
    assert {claim.uuid for claim in other.claims()} >= {"uuid-a"}
    assert all(claim.alive for claim in other.claims())
    assert (other.transitions("r1")[-1].after, other.transitions("r1")[-1].why) == (becomes, "by hand")
    other.renew("r1")


def test_a_run_that_never_began_is_cancelled_by_its_take_over(journal: Journal, other: Journal, clock: Clock) -> None:
    journal.begin(record("r1"), [step("a")])
    clock.now += LEASE + 1
    taken = other.take_over("r1", "by hand")
    assert (taken.state, taken.ended, taken.token) == (RunState.CANCELLED, clock.now, "")
    assert other.claims() == ()


@pytest.mark.parametrize(
    "way",
    [
        (RunState.COMMITTING, RunState.SUCCEEDED),
        (RunState.ROLLING_BACK, RunState.ROLLED_BACK),
        (RunState.CANCELLED,),
    ],
)
def test_there_is_no_way_back_from_an_end(journal: Journal, other: Journal, way: tuple[RunState, ...]) -> None:
    begin(journal, *way)
    with pytest.raises(NotRecoverable, match=way[-1].replace("_", " ")):
        other.take_over("r1", "by hand")
    assert other.run("r1").state == way[-1]
    assert other.claims() == ()


def test_of_two_rollbacks_one_is_refused(journal: Journal, other: Journal) -> None:
    begin(journal, RunState.KEPT)
    other.take_over("r1", "by hand")
    with pytest.raises(Claimed, match="still running"):
        journal.take_over("r1", "by hand")
    other.move_run("r1", RunState.ROLLED_BACK, "undone")
    with pytest.raises(NotRecoverable, match="rolled back"):
        journal.take_over("r1", "by hand")


def test_of_many_rollbacks_at_once_one_wins(journal: Journal, url: str) -> None:
    begin(journal, RunState.KEPT)
    gate = threading.Barrier(6)

    def take_over(_number: int) -> bool:
        with Journal(url, clock=Clock()) as racer:
            gate.wait()
            try:
                racer.take_over("r1", "by hand")
            except Claimed:
                return False
            racer.renew("r1")
            return True

    with ThreadPoolExecutor(6) as threads:
        assert sum(threads.map(take_over, range(6))) == 1


def test_a_run_is_not_undone_beneath_a_later_one(journal: Journal, other: Journal, clock: Clock) -> None:
    begin(journal, RunState.KEPT)
    clock.now += 1
    journal.begin(record("r2"), [step("a")])
    with pytest.raises(Claimed, match="r2"):
        other.take_over("r1", "by hand")
    journal.move_run("r2", RunState.RUNNING, "begun")
    journal.move_step("r2", "launch.a", StepState.DOING, "attempt 1")
    journal.move_run("r2", RunState.KEPT, "on")
    with pytest.raises(NotRecoverable, match="r2 has worked on its instances"):
        other.take_over("r1", "by hand")
    assert other.run("r1").state == RunState.KEPT
    assert other.claims() == ()


def test_what_is_undone_already_does_not_keep_a_rollback_from_its_end(
    journal: Journal, other: Journal, clock: Clock
) -> None:
    begin(journal)
    journal.move_step("r1", "launch.b", StepState.DOING, "attempt 1")
    journal.move_run("r1", RunState.ROLLING_BACK, "on")
    for name, state in (("a", StepState.UNDONE), ("b", StepState.UNDO_FAILED)):
        journal.move_step("r1", f"launch.{name}", StepState.UNDOING, "on")
        journal.move_step("r1", f"launch.{name}", state, "on")
    journal.move_run("r1", RunState.ROLLBACK_INCOMPLETE, "on")
    clock.now += 1
    journal.begin(record("r2"), [step("a")])
    journal.move_run("r2", RunState.RUNNING, "begun")
    journal.move_step("r2", "launch.a", StepState.DOING, "attempt 1")
    assert journal.later_runs("r1") == ()
    other.take_over("r1", "by hand")
    other.move_step("r1", "launch.b", StepState.UNDOING, "again")
    assert {claim.instance: claim.run for claim in other.claims()} == {"a": "r2", "b": "r1"}


def test_a_step_that_did_not_begin_can_be_skipped_without_its_instance(
    journal: Journal, other: Journal, clock: Clock
) -> None:
    begin(journal, RunState.KEPT)
    clock.now += 1
    journal.begin(record("r2"), [step("b")])
    other.take_over("r1", "by hand")
    with pytest.raises(LostClaim, match="does not own b"):
        other.move_step("r1", "launch.b", StepState.DOING, "attempt 1")
    other.move_step("r1", "launch.b", StepState.SKIPPED, "the run ended before it")


def test_a_run_that_was_let_go_can_be_taken_over_at_once(journal: Journal, other: Journal) -> None:
    begin(journal)
    journal.let_go("r1")
    assert [claim.alive for claim in other.claims()] == [False, False]
    with pytest.raises(LostClaim, match="given up"):
        journal.phase("r1", "launch.a", "define", {})
    assert other.take_over("r1", "by hand").state == RunState.ROLLING_BACK


def test_only_its_owner_lets_a_run_go(journal: Journal, other: Journal) -> None:
    begin(journal)
    before = journal.run("r1"), journal.transitions("r1")
    other.let_go("r1")
    assert (journal.run("r1"), journal.transitions("r1")) == before
    journal.move_run("r1", RunState.KEPT, "on")
    journal.let_go("r1")
    assert journal.transitions("r1")[-1].why == "on"


def test_no_run_begins_or_is_taken_over_in_a_standstill(journal: Journal, other: Journal, clock: Clock) -> None:
    journal.begin(record("dead"), [step("a")])
    journal.move_run("dead", RunState.RUNNING, "test")
    clock.now += LEASE + 1
    ends: list[str] = []

    def begin() -> None:
        other.begin(record("new"), [step("b")])
        other.take_over("dead", "test")
        ends.append("began")

    thread = threading.Thread(target=begin)
    with journal.standstill():
        thread.start()
        thread.join(0.3)
        assert [run.id for run, _ in journal.open()] == ["dead"]
        assert ends == []
        ends.append("standstill")
    thread.join(30)
    assert ends == ["standstill", "began"]
    assert [run.id for run, _ in journal.open()] == ["dead", "new"]
    assert journal.run("dead").state == RunState.ROLLING_BACK
