"""What comes back as it was written, and what is long or strange enough to be refused by a database."""

from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
from sqlalchemy import Column, String

from planvirt.journal import tables
from planvirt.journal.journal import Journal
from planvirt.journal.transitions import RunState, StepState
from tests.planvirt.journal.samples import record, step

_NAME = 63  # characters of a plan's, an instance's, an operation's and a host's name at the most


def test_what_a_step_needs_to_be_carried_out_again_is_kept(journal: Journal) -> None:
    decided = {"state": "running", "retry": {"attempts": 3, "delay": 5.0}, "nothing": None, "list": [1, "a"]}
    journal.begin(
        record("r1", parallel={"image": 2}),
        [replace(step("a"), decided=decided, final=True, needs=("x", "y")), step("b", 1)],
    )
    first, second = journal.steps("r1")
    assert (first.decided, first.final, first.needs) == (decided, True, ("x", "y"))
    assert (second.decided, second.final, second.needs) == ({}, False, ())
    assert journal.run("r1").parallel == {"image": 2}


def test_mappings_that_cannot_change_are_mappings(journal: Journal) -> None:
    frozen = MappingProxyType({"n": MappingProxyType({"m": 3})})
    journal.begin(record("r1", inputs=frozen), [replace(step("a"), decided=frozen)])
    assert journal.run("r1").inputs == {"n": {"m": 3}}
    assert journal.step("r1", "launch.a").decided == {"n": {"m": 3}}


def test_an_error_is_noted_and_no_state_changed(journal: Journal) -> None:
    journal.begin(record("r1"), [step("a")])
    journal.move_run("r1", RunState.RUNNING, "begun")
    for state in (StepState.DOING, StepState.DONE):
        journal.move_step("r1", "launch.a", state, "on")
    journal.move_run("r1", RunState.COMMITTING, "every step is done")
    error = {"brief": "cannot delete a", "details": "it is busy", "resolution": "try again"}
    journal.note_error("r1", "launch.a", error)
    journal.note_error("r1", None, {"brief": "cannot commit", "details": "", "resolution": ""})
    assert (journal.step("r1", "launch.a").state, journal.step("r1", "launch.a").error) == (StepState.DONE, error)
    assert journal.run("r1").state == RunState.COMMITTING
    assert (journal.run("r1").error or {})["brief"] == "cannot commit"
    assert [(line.step, line.before, line.after, line.why) for line in journal.transitions("r1")[-2:]] == [
        ("launch.a", "done", "done", "cannot delete a: it is busy"),
        (None, "committing", "committing", "cannot commit"),
    ]


@pytest.mark.parametrize(
    ("column", "longest"),
    [
        (tables.runs.c.id, len("20261124-061103-46d6a0")),
        (tables.runs.c.plan, _NAME),
        (tables.runs.c.hash, 64),
        (tables.runs.c.commit, 64),
        (tables.runs.c.flow_run_id, 36),
        (tables.runs.c.state, max(map(len, RunState))),
        (tables.steps.c.id, _NAME + 1 + _NAME),
        (tables.steps.c.instance, _NAME),
        (tables.steps.c.host, _NAME),
        (tables.steps.c.operation, _NAME),
        (tables.steps.c.state, max(map(len, StepState))),
        (tables.transitions.c.step, _NAME + 1 + _NAME),
        (tables.transitions.c.before, max(map(len, RunState))),
        (tables.claims.c.instance, _NAME),
        (tables.claims.c.host, _NAME),
        (tables.runs.c.path, None),
        (tables.runs.c.owner, None),
        (tables.steps.c.phase, None),
        (tables.transitions.c.who, None),
        (tables.transitions.c.why, None),
    ],
    ids=str,
)
def test_the_longest_fits(column: Column[Any], longest: int | None) -> None:
    length = column.type.length if isinstance(column.type, String) else None
    assert length is None if longest is None else (length or 0) >= longest


def test_strange_texts_are_kept_as_well_as_can_be(journal: Journal) -> None:
    journal.begin(record("r1", path="plans/\udcff.yaml"), [step("a")])
    journal.move_run("r1", RunState.RUNNING, "it said \0\udc80 and ü")
    assert journal.run("r1").path == "plans/?.yaml"
    assert journal.transitions("r1")[-1].why == "it said ?? and ü"
