"""A run takes an instance from one that lives: one of both owns it, and the loser writes nothing on it any more."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from planvirt.journal.journal import LEASE, Claimed, Journal, LostClaim, NotRecoverable
from planvirt.journal.transitions import RunState, StepState
from tests.planvirt.journal.samples import Clock, record, step

PREEMPTS = {"uuid-a": "r1"}


def begin(journal: Journal) -> None:
    """Run r1 with one instance done, one on its way, one to come."""
    journal.begin(record("r1"), [step("a"), step("b", 1), step("c", 2)])
    journal.move_run("r1", RunState.RUNNING, "begun")
    journal.move_step("r1", "launch.a", StepState.DOING, "attempt 1")


def states(journal: Journal, run: str = "r1") -> list[str]:
    return [item.state for item in journal.steps(run)]


def test_the_claim_changes_hands(journal: Journal, other: Journal) -> None:
    begin(journal)
    other.begin(record("r2"), [step("a")], PREEMPTS)
    assert {claim.uuid: claim.run for claim in journal.claims()} == {"uuid-a": "r2", "uuid-b": "r1", "uuid-c": "r1"}


def test_the_loser_notices_at_its_next_word_and_ends_what_it_was_doing(journal: Journal, other: Journal) -> None:
    begin(journal)
    other.begin(record("r2"), [step("a")], PREEMPTS)
    assert other.at_work("r1", "uuid-a")
    with pytest.raises(LostClaim, match="does not own a any more"):
        journal.phase("r1", "launch.a", "start", {})
    with pytest.raises(LostClaim):
        journal.move_step("r1", "launch.a", StepState.DONE, "done")
    assert journal.yields("r1", "launch.a") == "r2"
    assert states(journal) == ["undone", "pending", "pending"]
    assert not other.at_work("r1", "uuid-a")
    journal.move_step("r1", "launch.b", StepState.DOING, "the others are its own still")


def test_what_is_not_on_its_way_ends_at_once(journal: Journal, other: Journal) -> None:
    begin(journal)
    journal.move_step("r1", "launch.a", StepState.DONE, "done")
    other.begin(record("r2"), [step("a"), step("c", 1)], {"uuid-a": "r1", "uuid-c": "r1"})
    assert states(journal) == ["undone", "pending", "skipped"]
    assert not other.at_work("r1", "uuid-a")
    assert [item.why for item in journal.transitions("r1")][-2:] == ["run r2 has pre-empted it"] * 2


def test_nobody_yields_what_is_its_own(journal: Journal) -> None:
    begin(journal)
    assert journal.yields("r1", "launch.a") is None
    assert states(journal)[0] == "doing"


def test_a_claim_is_swapped_only_with_the_run_that_was_seen(journal: Journal, other: Journal) -> None:
    begin(journal)
    with pytest.raises(Claimed, match="run r1"):
        other.begin(record("r2"), [step("a")])
    other.begin(record("r2"), [step("a")], PREEMPTS)
    with pytest.raises(Claimed, match="run r2"):
        journal.begin(record("r3"), [step("a")], PREEMPTS)


def test_a_dead_run_is_not_preempted_but_recovered(journal: Journal, other: Journal, clock: Clock) -> None:
    begin(journal)
    clock.now += LEASE + 1
    with pytest.raises(Claimed, match="died"):
        other.begin(record("r2"), [step("a")], PREEMPTS)
    assert states(journal) == ["doing", "pending", "pending"]


def test_a_loser_that_dies_is_rolled_back_without_what_it_lost(journal: Journal, other: Journal, clock: Clock) -> None:
    begin(journal)
    journal.move_step("r1", "launch.b", StepState.DOING, "attempt 1")
    other.begin(record("r2"), [step("a")], PREEMPTS)
    clock.now += LEASE + 1
    other.renew("r2")
    taken = other.take_over("r1", "rollback")
    assert taken.state == RunState.ROLLING_BACK
    assert states(journal) == ["undone", "doing", "pending"]


def test_a_loser_cannot_be_resumed(journal: Journal, other: Journal, clock: Clock) -> None:
    begin(journal)
    clock.now += 1
    other.begin(record("r2"), [step("a")], PREEMPTS)
    other.move_run("r2", RunState.RUNNING, "begun")
    other.move_step("r2", "launch.a", StepState.DOING, "attempt 1")
    clock.now += LEASE + 1
    with pytest.raises(NotRecoverable, match="run r2 has worked on its instances since"):
        journal.take_over("r1", "resume", forward=True)


def test_of_many_that_preempt_at_once_one_wins(url: str) -> None:
    with Journal(url, who="first") as first:
        begin(first)
        barrier = threading.Barrier(8)

        def race(number: int) -> bool:
            with Journal(url, who=f"racer {number}") as racer:
                barrier.wait()
                try:
                    racer.begin(record(f"x{number}"), [step("a")], PREEMPTS)
                except Claimed:
                    return False
                return True

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(race, range(8))) == 1
