"""Every plan in tests/plans/bad tells exactly its problems, and every one in tests/plans/good becomes its graph.

After a deliberate change of words run this file with PLANVIRT_WRITE_EXPECTED=1 in the environment, and read the diff.
"""

import os
from pathlib import Path

import pytest

from planvirt.drawing import draw_text
from planvirt.graph import build_graph
from planvirt.load import check_plan, load_plan
from tests.planvirt.plan_files import PLANS, plan_config, plan_names, repository

GIVEN = {"required-input": {"image": "local/debian", "size": "2 GiB", "replicas": "7"}}


@pytest.fixture(autouse=True)
def _size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIZE", "3 GiB")


def _compare(expected: Path, text: str) -> None:
    if os.environ.get("PLANVIRT_WRITE_EXPECTED"):
        expected.write_text(text)
    assert text == expected.read_text()


@pytest.mark.parametrize("name", plan_names("bad"))
def test_bad_plan_tells_its_problems(name: str, tmp_path: Path) -> None:
    problems = check_plan(repository(tmp_path) / "bad" / f"{name}.yaml", plan_config(tmp_path))
    assert problems
    lines = [f"{p.line}:{p.column}: {p.pointer}: {p.message}" + (f" | {p.hint}" if p.hint else "") for p in problems]
    _compare(PLANS / "bad" / f"{name}.txt", "".join(line.replace("\n", "\\n") + "\n" for line in lines))


@pytest.mark.parametrize("name", plan_names("good"))
def test_good_plan_becomes_its_graph(name: str, tmp_path: Path) -> None:
    path = repository(tmp_path) / "good" / f"{name}.yaml"
    assert check_plan(path, plan_config(tmp_path)) == ()
    plan = load_plan(path, config=plan_config(tmp_path), inputs=GIVEN.get(name, {}))
    _compare(PLANS / "good" / f"{name}.txt", draw_text(build_graph(plan)) + "\n")
