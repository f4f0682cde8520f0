"""What commands report, as plain data with stable keys: the JSON that `--output json` prints."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `validate` must not pay for what it does not use
    from drivers.compute import InstanceFacts, VolumeFacts
    from drivers.image_store import StoredImage
    from flows.preview import Preview
    from flows.pruning import Item
    from planvirt.errors import PlanvirtError, Problem
    from planvirt.graph import Graph
    from planvirt.journal.records import RunRecord, StepRecord, Transition


def validation(results: "Mapping[str, Sequence[Problem]]") -> dict[str, Any]:
    """The document of `validate`: every file with its problems."""
    plans = [
        {"path": path, "ok": not problems, "problems": [problem.as_dict() for problem in problems]}
        for path, problems in results.items()
    ]
    return {"ok": all(plan["ok"] for plan in plans), "plans": plans}


def graph(plan: str, found: "Graph") -> dict[str, Any]:
    """The document of `graph`: the steps in order, each with the ids of those it waits for."""
    return {
        "plan": plan,
        "steps": [
            {"id": step.id, "action": step.action, "instance": step.instance.name, "needs": list(step.needs)}
            for step in found.steps
        ],
    }


def preview(found: "Preview") -> dict[str, Any]:
    """The document of `preview`."""
    return {
        "plan": found.plan,
        "changes": [
            {
                "step": change.step,
                "action": change.action,
                "instance": change.instance,
                "host": change.host,
                "impact": change.impact.value,
                "undo": change.undo,
                "reason": change.why,
            }
            for change in found.changes
        ],
        "destroys": list(found.destroys),
        "conflicts": list(found.conflicts),
        "undeclared": list(found.undeclared),
    }


def run(record: "RunRecord", steps: "Iterable[StepRecord]", leftovers: Sequence[str]) -> dict[str, Any]:
    """The document of `run` and `show`."""
    return {"run": _run(record) | {"leftovers": list(leftovers), "steps": [_step(step) for step in steps]}}


def nothing_to_do(plan: str) -> dict[str, Any]:
    """The document of a `run` that found everything as declared: no run was needed."""
    run = {"id": None, "kind": "run", "plan": plan, "state": "succeeded", "error": None, "flow_run_id": None}
    return {"run": run | {"leftovers": [], "steps": []}}


def trail(transitions: "Iterable[Transition]") -> list[dict[str, Any]]:
    """The audit trail, as `show --trail` adds it."""
    return [
        {"step": item.step, "before": item.before, "after": item.after, "at": item.at, "who": item.who, "why": item.why}
        for item in transitions
    ]


def runs(records: "Iterable[RunRecord]") -> dict[str, Any]:
    """The document of `runs`."""
    return {"runs": [_run(record) for record in records]}


def instances(found: "Iterable[InstanceFacts]") -> dict[str, Any]:
    """The document of `instances`."""
    return {
        "instances": [
            {
                "name": item.name,
                "host": item.host,
                "state": item.state.value,
                "plan": item.mark.plan if item.mark else None,
                "run": item.mark.run if item.mark else None,
                "commit": item.mark.commit or None if item.mark else None,
                "uuid": item.uuid,
                "addresses": list(item.addresses),
                "set_aside": item.set_aside,
                "locked": item.locked,
            }
            for item in found
        ]
    }


def images(found: "Iterable[StoredImage]") -> dict[str, Any]:
    """The document of `image list`."""
    return {"images": [image(item) for item in found]}


def image(item: "StoredImage") -> dict[str, Any]:
    """One image, as every document has it."""
    return {
        "id": item.id,
        "name": item.name,
        "store": item.store,
        "size": item.size,
        "checksum": item.checksum,
        "status": item.status,
        "format": item.format,
        "created": item.created,
        "properties": dict(item.properties),
    }


def pulled(host: str, item: "StoredImage", volume: "VolumeFacts") -> dict[str, Any]:
    """The document of `image pull`."""
    kept = {"host": host, "name": volume.name, "capacity": volume.capacity, "allocation": volume.allocation}
    return {"image": image(item), "volume": kept}


def verified(ended: "Iterable[tuple[StoredImage, PlanvirtError | None]]") -> dict[str, Any]:
    """The document of `image verify`."""
    images = [{**image(item), "ok": error is None, "error": error and error.as_dict()} for item, error in ended]
    return {"ok": all(each["ok"] for each in images), "images": images}


def removed(ended: "Iterable[tuple[StoredImage, PlanvirtError | None]]") -> dict[str, Any]:
    """The document of `image rm`."""
    return {
        "images": [
            {**image(item), "deleted": error is None, "error": error and error.as_dict()} for item, error in ended
        ]
    }


def pruned(items: "Iterable[Item]", ended: "Mapping[Item, int | PlanvirtError]", *, dry_run: bool) -> dict[str, Any]:
    """The document of `image prune`: everything that was found, and what became of it."""
    found = [
        {
            "host": item.host or None,
            "name": item.name,
            "kind": item.kind,
            "size": item.size,
            "unused": item.kept is None,
            "kept": item.kept,
            "deleted": isinstance(result := ended.get(item), int),
            "error": result.as_dict() if result is not None and not isinstance(result, int) else None,
        }
        for item in items
    ]
    return {"dry_run": dry_run, "freed": sum(r for r in ended.values() if isinstance(r, int)), "found": found}


def _run(record: "RunRecord") -> dict[str, Any]:
    return {
        "id": record.id,
        "kind": record.kind,
        "plan": record.plan,
        "commit": record.commit,
        "state": record.state.value,
        "error": dict(record.error) if record.error else None,
        "flow_run_id": record.flow_run_id,
        "created": record.created,
        "started": record.started,
        "ended": record.ended,
    }


def _step(step: "StepRecord") -> dict[str, Any]:
    return {
        "id": step.id,
        "action": step.action,
        "instance": step.instance,
        "host": step.host,
        "state": step.state.value,
        "attempts": step.attempts,
        "error": dict(step.error) if step.error else None,
        "undo_error": dict(step.undo_error) if step.undo_error else None,
        "outputs": dict(step.outputs),
        "started": step.started,
        "ended": step.ended,
    }
