"""How long people wait for a command: whole processes, from their start to their exit.

`validate` of a small plan has a goal of 0.25 s. The baselines are an interpreter that does nothing, which no command
can beat, and one that imports Prefect, which no reading command should have to pay for.

`run` is measured against a Prefect server that is up already, as it is from the second run on: the time until the first
step begins (goal: 2.5 s, by the journal) and until the command ends. Its server is started by `planvirt up` in a home
of its own and ended by `planvirt down`.

    python benchmarks/start_up.py [--rounds 7]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from planvirt.journal.journal import Journal
from planvirt.journal.transitions import StepState

GOAL_VALIDATE = 0.25  # seconds
GOAL_FIRST_STEP = 2.5

CONFIGURATION = """\
[hosts.sim]
driver = "simulated"
path = "world.json"

[plans]
default_host = "sim"
"""
PLAN = """\
planvirt: 1
name: small
inputs:
  size: 64 MiB
instances:
  web: {count: 2, memory: "{{ inputs.size }}", disks: [1 MiB]}
operations:
  - {id: halt, action: stop, instances: [web]}
"""

PYTHON: dict[str, tuple[str, ...]] = {
    "python -c pass": ("-c", "pass"),
    "python -c 'import prefect'": ("-c", "import prefect"),
}
READING: dict[str, tuple[str, ...]] = {
    "planvirt --version": ("--version",),
    "planvirt validate": ("validate", "small.yaml"),
    "planvirt preview": ("preview", "small.yaml"),
    "planvirt show": ("show", "last"),
    "planvirt schema": ("schema",),
}


class Workplace:
    """A folder with a configuration, a plan and a home of its own, and processes that run in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PREFECT_", "PLANVIRT_", "PYTHONDONTWRITE"))  # the user's Python keeps its bytecode
        }
        self._environ |= {"PLANVIRT_HOME": str(folder / "home"), "PREFECT_HOME": str(folder / "prefect")}
        (folder / "planvirt.toml").write_text(CONFIGURATION)
        (folder / "small.yaml").write_text(PLAN)

    def call(self, *words: str) -> float:
        """Run Python with these words to its end; returns the seconds that it took."""
        began = time.perf_counter()
        ended = subprocess.run(
            [sys.executable, *words],
            cwd=self._folder,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        took = time.perf_counter() - began
        if ended.returncode:
            raise SystemExit(f"{' '.join(words)} failed:\n{ended.stderr}")
        return took

    def planvirt(self, *words: str) -> float:
        """The same for a planvirt command."""
        return self.call("-m", "planvirt", *words)

    def run(self) -> tuple[float, float]:
        """The seconds from the start of `planvirt run` to its first step, and to its exit."""
        (self._folder / "world.json").unlink(missing_ok=True)
        began = time.time()
        whole = self.planvirt("run", "small.yaml", "--yes")
        return self._first_step() - began, whole

    def _first_step(self) -> float:
        with Journal(f"sqlite:///{self._folder}/home/journal.sqlite") as journal:
            trail = journal.transitions(journal.runs(limit=1)[0].id)
        return next(moved.at for moved in trail if moved.step and moved.after == StepState.DOING)


def report(name: str, seconds: float, base: float, goal: float | None = None) -> None:
    """Print one line."""
    aim = f"   goal {goal} s: {'reached' if seconds <= goal else 'missed'}" if goal else ""
    print(f"{name:32} {seconds:6.3f} s   {seconds / base:5.1f} x python -c pass{aim}")


def main() -> None:
    """Measure in rounds, so that a busy moment of the machine hits all commands alike; the medians count."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    rounds = range(parser.parse_args().rounds)
    with tempfile.TemporaryDirectory() as folder:
        place = Workplace(Path(folder))
        place.planvirt("up")
        try:
            runs = [place.run() for _ in [0, *rounds]][1:]  # the first one makes the journal and Prefect's home
        finally:
            place.planvirt("down")
        found: dict[str, list[float]] = {name: [] for name in (*PYTHON, *READING)}
        for _ in rounds:
            for name, words in PYTHON.items():
                found[name].append(place.call(*words))
            for name, words in READING.items():
                found[name].append(place.planvirt(*words))
    medians = {name: statistics.median(values) for name, values in found.items()}
    base = medians["python -c pass"]
    print(f"whole processes, median of {len(rounds)}")
    for name, seconds in medians.items():
        report(name, seconds, base, GOAL_VALIDATE if name == "planvirt validate" else None)
    report("planvirt run: to the first step", statistics.median(first for first, _ in runs), base, GOAL_FIRST_STEP)
    report("planvirt run: to its exit", statistics.median(whole for _, whole in runs), base)


if __name__ == "__main__":
    main()
