"""How validation grows with a plan: by its instances, and by its operations.

The baseline is `yaml.safe_load` of the same text with its C loader: the least that reading the file can cost. A phase
is a function of planvirt that does one part of the work: `yaml` (text to data with lines), `schema` (the shape),
`build` (names, references, expressions, the plan itself) and `graph`. The goal is growth that is no worse than linear:
ten times the plan, at most ten times the time. The last column is the exponent between a size and the one before it; 1
is linear. What grows with a plan's `count` instead of its text is measured as well: operations on a whole group.

    python benchmarks/validate.py [--rounds 5]
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import yaml

from planvirt.config import Config, HostConfig, StoreConfig
from planvirt.document import parse
from planvirt.graph import build_graph
from planvirt.load import load_plan
from planvirt.schema import check_shape
from planvirt.schemas import plan_schema

CONFIG = Config(
    home=Path(),
    hosts={"local": HostConfig("local", driver="simulated")},
    stores={"local": StoreConfig("local")},
)
HEAD = """\
planvirt: 1
name: large
inputs:
  memory: 64 MiB
profiles:
  small: {vcpus: 1, disks: [1 GiB], networks: [default]}
"""
TOLERATED = 1.2  # above this exponent growth is called worse than linear
NOTICED = 0.05  # what takes a smaller part of the whole is not worth a word


@dataclass(frozen=True)
class Sample:
    """A plan's text, and how large it is."""

    kind: str
    size: int
    text: str


def instances(count: int) -> Sample:
    """Instances that are written out one by one, each with an expression and a need."""
    lines = [
        f"  vm-{number}: {{use: small, memory: '{{{{ inputs.memory }}}}', labels: {{n: x{number}}}"
        + (f", needs: [vm-{number - 1}]}}" if number % 10 else "}")
        for number in range(count)
    ]
    return Sample("instances", count, HEAD + "instances:\n" + "\n".join(lines) + "\n")


def operations(count: int) -> Sample:
    """Operations one after the other, each on one of twenty instances, with an expression of its own."""
    lines = [
        f"  - {{id: op-{number}, action: wait, instances: [vm-{number % 20 + 1}], with: {{for: running}},"
        f" when: '{{{{ run.id != \"{number}\" }}}}'}}"
        for number in range(count)
    ]
    head = HEAD + "instances:\n  vm: {use: small, memory: '{{ inputs.memory }}', count: 20}\n"
    return Sample("operations", count, head + "operations:\n" + "\n".join(lines) + "\n")


def group(count: int) -> Sample:
    """Three operations on a group, each of which waits for the one before it on all instances."""
    lines = [f"  - {{id: op-{number}, action: wait, instances: [vm], with: {{for: running}}}}" for number in range(3)]
    head = HEAD + f"instances:\n  vm: {{use: small, memory: '{{{{ inputs.memory }}}}', count: {count}}}\n"
    return Sample("instances of a group", count, head + "operations:\n" + "\n".join(lines) + "\n")


def seconds(rounds: int, measured: Callable[[], Any]) -> float:
    """The median time of a call."""
    found = []
    for _ in range(rounds):
        gc.collect()
        began = time.perf_counter()
        measured()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def phases(sample: Sample, rounds: int) -> dict[str, float]:
    """The seconds of each phase, and of the baseline."""
    data = parse(sample.text).data

    def load() -> Any:
        return load_plan(Path("large.yaml"), config=CONFIG, text=sample.text, commit="")

    plan = load()
    found = {
        "safe_load": seconds(rounds, lambda: yaml.load(sample.text, Loader=yaml.CSafeLoader)),
        "yaml": seconds(rounds, lambda: parse(sample.text)),
        "schema": seconds(rounds, lambda: check_shape(data, plan_schema())),
        "graph": seconds(rounds, lambda: build_graph(plan)),
        "all": seconds(rounds, load),
    }
    found["build"] = max(0.0, found["all"] - found["yaml"] - found["schema"] - found["graph"])
    return found


def report(sample: Sample, found: dict[str, float], size: int, before: dict[str, float]) -> None:
    """Print a line a phase; `before` are the times of the plan that has only `size` entries."""
    print(f"{sample.size} {sample.kind}, {len(sample.text) / 1024:.0f} KiB")
    for name in ("safe_load", "yaml", "schema", "build", "graph", "all"):
        line = f"  {name:10} {found[name] * 1000:9.1f} ms {found[name] / found['safe_load']:8.1f} x safe_load"
        if before.get(name) and found[name] > NOTICED * found["all"]:
            exponent = log(found[name] / before[name]) / log(sample.size / size)
            line += f"   grows with n^{exponent:.2f}" + (" (worse than linear)" if exponent > TOLERATED else "")
        print(line)


def main() -> None:
    """Measure each size in each phase."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    phases(instances(1), 1)  # imports
    for make in (instances, operations, group):
        size, before = 0, dict[str, float]()
        for count in (10, 100, 1000):
            sample = make(count)
            found = phases(sample, rounds)
            report(sample, found, size, before)
            size, before = count, found


if __name__ == "__main__":
    main()
