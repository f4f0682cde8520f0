"""The journal's SQL. Statements are built once and given their values when they are executed: building costs more."""

from importlib import import_module
from typing import Any

from sqlalchemy import BindParameter, Select, and_, bindparam, delete, insert, select, text, update
from sqlalchemy.sql import Executable

from planvirt.journal.tables import claims, runs, steps, transitions
from planvirt.journal.transitions import ENDED, UNDOABLE, StepState

# Names of values begin with "the_": an update without a list of columns sets those that its other values are named for.
_RUN: BindParameter[str] = bindparam("the_run")
_STEP: BindParameter[str] = bindparam("the_step")
_MINE = and_(runs.c.id == _RUN, runs.c.token == bindparam("the_token"))
_UNDOABLE = and_(steps.c.run == _RUN, steps.c.state.in_(sorted(UNDOABLE)))

# Runs

INSERT_RUN = insert(runs)
RUN = select(runs).where(runs.c.id == _RUN)
LOCKED_RUN = RUN.with_for_update()
LATEST_RUNS = select(runs).order_by(runs.c.created.desc(), runs.c.id.desc()).limit(bindparam("the_limit"))
OPEN_RUNS = select(runs).where(runs.c.state.not_in(sorted(ENDED))).order_by(runs.c.created, runs.c.id)
LOCK_RUNS = text("LOCK TABLE runs IN SHARE ROW EXCLUSIVE MODE")  # others may read it
UPDATE_RUN = update(runs).where(runs.c.id == _RUN)
UPDATE_MY_RUN = update(runs).where(_MINE)


def _later_runs(on: Select[Any]) -> Select[Any]:
    """Runs that began later and did something on these instances."""
    return (
        select(runs.c.id)
        .join(steps, steps.c.run == runs.c.id)
        .where(
            runs.c.id != _RUN,
            runs.c.created > select(runs.c.created).where(runs.c.id == _RUN).scalar_subquery(),
            steps.c.uuid.in_(on),
            steps.c.state.in_((StepState.DONE, StepState.COMMITTED, StepState.DOING, StepState.FAILED)),
        )
        .group_by(runs.c.id, runs.c.created)
        .order_by(runs.c.created)
    )


LATER_RUNS = _later_runs(select(steps.c.uuid).where(_UNDOABLE))  # where there is something to undo
LATER_RUNS_ANYWHERE = _later_runs(select(steps.c.uuid).where(steps.c.run == _RUN))

# Steps

INSERT_STEP = insert(steps)
STEP = select(steps).where(steps.c.run == _RUN, steps.c.id == _STEP)
STEPS = select(steps).where(steps.c.run == _RUN).order_by(steps.c.position)
UNDOABLE_STEPS = select(steps).where(_UNDOABLE)
STEPS_ON = select(steps).where(steps.c.run == _RUN, steps.c.uuid == bindparam("the_uuid")).order_by(steps.c.position)
UPDATE_STEP = update(steps).where(steps.c.run == _RUN, steps.c.id == _STEP)
# A step with what tells whether it may be written to: who owns its run. Both rows are locked, so that a take-over or a
# pre-emption comes wholly before or wholly after; who owns the instance is asked when they are.
LOCKED_STEP = (
    select(
        steps.c.state,
        steps.c.attempts,
        steps.c.started,
        steps.c.undo,
        steps.c.uuid,
        steps.c.instance,
        runs.c.token,
        runs.c.owner,
    )
    .join(runs, runs.c.id == steps.c.run)
    .where(steps.c.run == _RUN, steps.c.id == _STEP)
    .with_for_update(of=[steps, runs])
)

# Transitions

INSERT_TRANSITION = insert(transitions).inline()
TRANSITIONS = select(transitions).where(transitions.c.run == _RUN).order_by(transitions.c.id)

# Claims

CLAIMS = select(
    claims.c.uuid, claims.c.instance, claims.c.host, claims.c.run, runs.c.plan, runs.c.state, runs.c.lease_until
).join(runs, claims.c.run == runs.c.id)
CLAIMS_ON = CLAIMS.where(claims.c.uuid.in_(bindparam("the_uuids", expanding=True)))
HOLDER = select(claims.c.run).where(claims.c.uuid == bindparam("the_uuid"))
CLAIMS_OF = select(claims.c.uuid).where(claims.c.run == _RUN)
PREEMPT_CLAIM = (
    update(claims)
    .where(claims.c.uuid == bindparam("the_uuid"), claims.c.run == bindparam("the_holder"))
    .values(run=bindparam("the_run"))
)
DELETE_CLAIMS = delete(claims).where(claims.c.run == _RUN)
DELETE_UNDONE_CLAIMS = DELETE_CLAIMS.where(claims.c.uuid.not_in(select(steps.c.uuid).where(_UNDOABLE)))


def insert_claims(dialect: str) -> Executable:
    """Take instances, and leave a claim that is there as it is.

    Every dialect of SQLAlchemy has an insert of its own for that. The one that is not in use is not imported: that
    would take a tenth of the journal's start.
    """
    statement: Executable = import_module(f"sqlalchemy.dialects.{dialect}").insert(claims).on_conflict_do_nothing()
    return statement
