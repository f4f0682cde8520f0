"""The journal's SQL. Statements are built once and given their values when they are executed: building costs more."""

from importlib import import_module

from sqlalchemy import BindParameter, and_, bindparam, delete, insert, select, update
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
UPDATE_RUN = update(runs).where(runs.c.id == _RUN)
UPDATE_MY_RUN = update(runs).where(_MINE)
LATER_RUNS = (
    select(runs.c.id)
    .join(steps, steps.c.run == runs.c.id)
    .where(
        runs.c.id != _RUN,
        runs.c.created > select(runs.c.created).where(runs.c.id == _RUN).scalar_subquery(),
        steps.c.uuid.in_(select(steps.c.uuid).where(_UNDOABLE)),
        steps.c.state.in_((StepState.DONE, StepState.COMMITTED, StepState.DOING, StepState.FAILED)),
    )
    .group_by(runs.c.id, runs.c.created)
    .order_by(runs.c.created)
)

# Steps

INSERT_STEP = insert(steps)
STEP = select(steps).where(steps.c.run == _RUN, steps.c.id == _STEP)
STEPS = select(steps).where(steps.c.run == _RUN).order_by(steps.c.position)
UNDOABLE_STEPS = select(steps).where(_UNDOABLE)
UPDATE_STEP = update(steps).where(steps.c.run == _RUN, steps.c.id == _STEP)
# A step with what tells whether it may be written to: who owns its run, and which run owns its instance. Both rows are
# locked, so that a take-over comes wholly before or wholly after.
LOCKED_STEP = (
    select(
        steps.c.state,
        steps.c.attempts,
        steps.c.started,
        steps.c.undo,
        steps.c.instance,
        runs.c.token,
        runs.c.owner,
        claims.c.run.label("holder"),
    )
    .join(runs, runs.c.id == steps.c.run)
    .outerjoin(claims, and_(claims.c.uuid == steps.c.uuid, claims.c.run == steps.c.run))
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
DELETE_CLAIMS = delete(claims).where(claims.c.run == _RUN)
DELETE_UNDONE_CLAIMS = DELETE_CLAIMS.where(claims.c.uuid.not_in(select(steps.c.uuid).where(_UNDOABLE)))


def insert_claims(dialect: str) -> Executable:
    """Take instances, and leave a claim that is there as it is.

    Every dialect of SQLAlchemy has an insert of its own for that. The one that is not in use is not imported: that
    would take a tenth of the journal's start.
    """
    statement: Executable = import_module(f"sqlalchemy.dialects.{dialect}").insert(claims).on_conflict_do_nothing()
    return statement
