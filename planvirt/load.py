"""From a plan file to a Plan, or to everything that is wrong with the file."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from planvirt.build import Build, Defaults
from planvirt.config import Config
from planvirt.document import Document, parse
from planvirt.errors import InvalidPlan, Problem
from planvirt.graph import build_graph
from planvirt.images import build_images
from planvirt.inputs import Inputs, read_inputs
from planvirt.instances import build_instances
from planvirt.names import collect_names
from planvirt.operations import build_operations
from planvirt.paths import Bounds
from planvirt.plan import OnCrash, OnFailure, Plan, Retry
from planvirt.problems import Problems
from planvirt.references import Checker
from planvirt.render import Renderer, prune
from planvirt.schema import check_shape
from planvirt.schemas import plan_schema
from planvirt.section import Section
from planvirt.source import Source, SourceError, git_commit, read_source

_DEFAULT_TIMEOUT = 600.0


def load_plan(
    path: Path,
    *,
    config: Config,
    inputs: Mapping[str, object] | None = None,
    text: str | None = None,
    commit: str | None = None,
) -> Plan:
    """The plan in a file, with these inputs (texts as on the command line, or values of the input's type).

    A recovery gives the `text` and `commit` that its run began with, and the file is then not read. Raises SourceError
    when the file cannot be read, and InvalidPlan with all of its problems.
    """
    source = read_source(path) if text is None else Source(path, text)
    plan, problems = _load(source, config, inputs or {}, commit, complete=True)
    if plan is None or problems:
        raise InvalidPlan(str(path), problems)
    return plan


def check_plan(path: Path, config: Config, inputs: Mapping[str, object] | None = None) -> tuple[Problem, ...]:
    """All problems of a plan file, in its order. Inputs that a run must be given need not be given here."""
    try:
        source = read_source(path)
    except SourceError as error:
        return (Problem(0, 0, "", str(error), error.resolution),)
    return _load(source, config, inputs or {}, "", complete=False)[1]


def _load(
    source: Source, config: Config, given: Mapping[str, object], commit: str | None, *, complete: bool
) -> tuple[Plan | None, tuple[Problem, ...]]:
    document = parse(source.text)
    if document.problems:
        return None, document.problems
    if not isinstance(document.data, dict):
        return None, (Problem(*document.value_at(""), "", "a plan is a mapping", "start with 'planvirt: 1'"),)
    problems = Problems(document)
    data = _checked(document, problems)
    if isinstance(document.data.get("planvirt"), int) and problems.is_broken("/planvirt"):
        # Another version of the language: nothing else in the file can be judged.
        return None, tuple(problem for problem in problems.sorted() if problem.pointer == "/planvirt")
    inputs = read_inputs(data.get("inputs") or {}, given, problems, complete=complete)
    plan = _build(source, document, data, inputs, config, problems)
    if problems.found:
        return None, problems.sorted()
    try:
        build_graph(plan)
    except InvalidPlan as error:
        return None, error.problems
    if commit is None:
        commit = git_commit(source.path)
    return replace(plan, commit=commit or None), ()


def _checked(document: Document, problems: Problems) -> dict[str, Any]:
    """The data without what is wrong in shape, which is reported."""
    faults = check_shape(document.data, plan_schema())
    for fault in faults:
        problems.add(fault.pointer, fault.message, fault.hint, on_key=fault.on_key)
    data: dict[str, Any] = prune(document.data, faults)
    return data


def _build(
    source: Source, document: Document, data: dict[str, Any], inputs: Inputs, config: Config, problems: Problems
) -> Plan:
    env = {name: os.environ[name] for name in config.env if name in os.environ}
    names = collect_names(document.data, inputs, env, problems)
    checker = Checker(data, names, config, env, problems)
    checker.check()
    renderer = Renderer(inputs, env, problems)
    build = Build(data, names, config, Bounds.of(source.path, config), renderer, problems)
    defaults = _defaults(build)
    images = build_images(build)
    instances = build_instances(build, defaults)
    by_name = {instance.name: instance for instance in instances}
    operations = build_operations("operations", build, defaults, by_name)
    final = build_operations("finally", build, defaults, by_name)
    checker.check_outputs({operation.id: operation.instances for operation in (*operations, *final)})
    return Plan(
        name=str(data.get("name", "")),
        path=source.path,
        text=source.text,
        description=data.get("description", ""),
        inputs=inputs.values,
        on_failure=OnFailure(data.get("on_failure", "rollback")),
        on_crash=OnCrash(data.get("on_crash", "rollback")),
        images=images,
        instances=instances,
        operations=operations,
        finally_=final,
    )


def _defaults(build: Build) -> Defaults:
    raw = Section(build.mapping("defaults"), "/defaults", build.problems)
    section = build.renderer.section(raw, "defaults")
    host = section.get("host")
    if host is not None:
        build.check_host(host, section.at("host"))
    return Defaults(
        retry=section.retry(Retry()),
        timeout=section.positive_duration("timeout", _DEFAULT_TIMEOUT),
        host=host or build.config.default_host,
    )
