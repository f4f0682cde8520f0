"""Short hand for records, and a clock that stands still until a test moves it."""

from planvirt.journal.records import RunRecord, StepRecord


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def record(id: str, **changes: object) -> RunRecord:
    values: dict[str, object] = {"kind": "run", "plan": "p", "path": "p.yaml", "text": "…", "hash": "h"}
    values |= {"commit": None, "inputs": {}, "on_failure": "rollback"}
    return RunRecord(id=id, **(values | changes))  # type: ignore[arg-type]  # the tests' own short hand


def step(name: str, position: int = 0) -> StepRecord:
    return StepRecord(f"launch.{name}", position, "launch", name, f"uuid-{name}", "kvm1")
