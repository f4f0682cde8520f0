"""Draws a graph: as indented text, for Mermaid, and for Graphviz."""

import json
from collections.abc import Callable
from functools import reduce
from operator import or_

from planvirt.graph import Graph, Step
from planvirt.plan import Deferred


def draw_text(graph: Graph) -> str:
    """The steps in waves: everything in a wave can run at once, after all waves before it."""
    if not graph.steps:
        return "nothing to do"
    lines, direct = [], _direct(graph)
    width = max(len(step.id) for step in graph.steps)
    for number, wave in enumerate(_waves(graph), 1):
        lines.append(f"{number}.")
        for step in wave:
            after = f"after {_shortened(direct[step.id])}" if step.needs else ""
            lines.append(f"   {step.id:<{width}}  {' '.join(filter(None, (after, *_notes(graph, step))))}".rstrip())
    return "\n".join(lines)


def draw_mermaid(graph: Graph) -> str:
    """A Mermaid flow chart."""
    number = {step.id: f"s{index}" for index, step in enumerate(graph.steps)}
    lines, direct = ["flowchart LR"], _direct(graph)
    for step in graph.steps:
        label = f"{_verb(step)}<br/>{step.instance.name}"
        lines.append(f'  {number[step.id]}["{label}"]')
    for step in graph.steps:
        lines += [f"  {number[need]} --> {number[step.id]}" for need in direct[step.id]]
    final = [number[step.id] for step in graph.steps if step.final]
    if final:
        lines += ["  classDef final stroke-dasharray: 4 4", f"  class {','.join(final)} final"]
    return "\n".join(lines)


def draw_dot(graph: Graph) -> str:
    """A Graphviz digraph."""
    lines, direct = ["digraph plan {", "  rankdir=LR;", "  node [shape=box];"], _direct(graph)
    for step in graph.steps:
        style = ", style=dashed" if step.final else ""
        label = json.dumps(f"{_verb(step)}\n{step.instance.name}")
        lines.append(f"  {json.dumps(step.id)} [label={label}{style}];")
    for step in graph.steps:
        lines += [f"  {json.dumps(need)} -> {json.dumps(step.id)};" for need in direct[step.id]]
    return "\n".join([*lines, "}"])


DRAWINGS: dict[str, Callable[[Graph], str]] = {"text": draw_text, "mermaid": draw_mermaid, "dot": draw_dot}


def _verb(step: Step) -> str:
    return step.action if step.operation in (None, step.action) else f"{step.operation}: {step.action}"


def _waves(graph: Graph) -> list[list[Step]]:
    depth: dict[str, int] = {}
    waves: list[list[Step]] = []
    for step in graph.steps:
        depth[step.id] = 1 + max((depth[need] for need in step.needs), default=-1)
        while len(waves) <= depth[step.id]:
            waves.append([])
        waves[depth[step.id]].append(step)
    return waves


def _direct(graph: Graph) -> dict[str, list[str]]:
    """What each step waits for, without what those wait for themselves."""
    # Sets of steps are the bits of a number: a plan may have thousands of steps that all wait for each other's group.
    bit = {step.id: 1 << place for place, step in enumerate(graph.steps)}
    before: dict[str, int] = {}
    direct = {}
    for step in graph.steps:
        behind = reduce(or_, (before[need] for need in step.needs), 0)
        direct[step.id] = [need for need in step.needs if not behind & bit[need]]
        before[step.id] = reduce(or_, (bit[need] for need in direct[step.id]), behind)
    return direct


def _shortened(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def _notes(graph: Graph, step: Step) -> list[str]:
    notes = []
    if step.when is False:
        notes.append("(skipped: its condition is false)")
    elif isinstance(step.when, Deferred):
        notes.append(f"(if {step.when.text})")
    if step.operation is not None and step.operation in graph.parallel:
        notes.append(f"({graph.parallel[step.operation]} at a time)")
    if step.final:
        notes.append("(in any case)")
    return notes
