"""A run and its steps as the journal is told of them before anything happens."""

from collections.abc import Iterable, Mapping
from typing import Literal

from planvirt.graph import Step
from planvirt.journal.records import RunRecord, StepRecord
from planvirt.mark import instance_uuid
from planvirt.plan import Plan


def run_record(run: str, kind: Literal["run", "destroy"], plan: Plan, parallel: Mapping[str, int]) -> RunRecord:
    """The run of that id, pending, with all that recovery will need of its plan."""
    return RunRecord(
        id=run,
        kind=kind,
        plan=plan.name,
        path=str(plan.path.resolve()),  # a resume may be asked for in another folder
        text=plan.text,
        hash=plan.hash,
        commit=plan.commit,
        inputs=dict(plan.inputs),
        on_failure=plan.on_failure,
        parallel=dict(parallel),
    )


def step_records(plan: str, steps: Iterable[Step]) -> list[StepRecord]:
    """The steps of a run of the plan of that name, in their order, pending."""
    return [
        StepRecord(
            id=step.id,
            position=position,
            action=step.action,
            instance=step.instance.name,
            uuid=instance_uuid(plan, step.instance.name),
            host=step.instance.host,
            operation=step.operation,
            needs=step.needs,
            final=step.final,
            decided={} if step.operation is not None else dict(step.arguments),
        )
        for position, step in enumerate(steps)
    ]
