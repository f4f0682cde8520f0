"""Short hand for records and for SQL, and a clock that stands still until a test moves it."""

from contextlib import closing

from planvirt.journal.engine import open_engine
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


def execute(url: str, *statements: str) -> list[str]:
    """Carry out SQL behind the journal's back, in one transaction, and give back all rows as texts."""
    engine = open_engine(url)
    try:
        with engine.begin() as connection:
            rows: list[str] = []
            for statement in statements:
                with closing(connection.exec_driver_sql(statement)) as done:
                    rows += map(str, done if done.returns_rows else [])
            return rows
    finally:
        engine.dispose()
