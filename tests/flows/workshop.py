"""A folder with a configuration and plans, and the program to run in it, in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drivers.simulated import SimulatedCompute
from planvirt.journal.journal import Journal
from planvirt.journal.transitions import StepState

_LIMIT = 120.0

SIMULATED = """\
[hosts.sim]
driver = "simulated"
path = "world.json"

[stores.local]
driver = "directory"
path = "store"
"""


@dataclass(frozen=True)
class Ended:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)

    def __repr__(self) -> str:  # pytest shows it when a test fails
        return f"exit {self.code}\n--- out\n{self.out}\n--- err\n{self.err}"


@dataclass
class Workshop:
    """Commands run here, with a home of their own."""

    folder: Path
    environ: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "planvirt.toml").exists():
            self.write("planvirt.toml", SIMULATED)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def begin(self, *words: str) -> "subprocess.Popen[str]":
        """Start a command and do not wait for it."""
        return subprocess.Popen(
            [sys.executable, "-m", "planvirt", *words],
            cwd=self.folder,
            env=_environ() | {"PLANVIRT_HOME": str(self.home), "NO_COLOR": "1"} | dict(self.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def planvirt(self, *words: str) -> Ended:
        """Run a command to its end."""
        return self.finish(self.begin(*words))

    def finish(self, process: "subprocess.Popen[str]") -> Ended:
        """Wait for a command that was begun."""
        try:
            out, err = process.communicate(timeout=_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"the command hung\n{out}\n{err}") from None
        return Ended(process.returncode, out, err)

    def run(self, plan: str, *words: str) -> Ended:
        """Run a plan without being asked, and get its document."""
        return self.planvirt("run", plan, "--yes", "--output", "json", *words)

    @property
    def simulated(self) -> SimulatedCompute:
        """The world of the simulated host, to look at and to change."""
        return SimulatedCompute.in_file("sim", self.folder / "world.json")

    def left(self) -> list[str]:
        """Instances and volumes on the simulated host, cached images aside."""
        with self.simulated.world() as world:
            return sorted([*world.instances, *(name for name in world.volumes if not name.startswith("planvirt-"))])

    def images(self) -> list[Any]:
        images: list[Any] = self.planvirt("image", "list", "--output", "json").document["images"]
        return images

    def phase(self, step: str) -> str:
        """What a step of the latest run is at; "" when it is not on its way."""
        if not (self.home / "journal.sqlite").exists():
            return ""
        with Journal(f"sqlite:///{self.home}/journal.sqlite") as journal:
            found = (each for run in journal.runs(limit=1) for each in journal.steps(run.id))
            return next((each.phase for each in found if each.id == step and each.state == StepState.DOING), "")


def _environ() -> dict[str, str]:
    """Ours, but let the program keep its compiled files, as it does for its user."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def until(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not become so in time"
        time.sleep(0.05)


def interrupt(process: "subprocess.Popen[str]") -> None:
    """What Ctrl-C does."""
    process.send_signal(signal.SIGINT)
