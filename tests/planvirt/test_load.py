"""Loading plans: inputs, values, paths, and that nothing heavy is imported and no file crashes the loader."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planvirt.errors import InvalidPlan
from planvirt.graph import build_graph
from planvirt.load import check_plan, load_plan
from planvirt.plan import Deferred, Disk, Nic, Plan, Retry
from planvirt.source import SourceError
from tests.planvirt.plan_files import PLANS, plan_config, plan_names, repository


def load(name: str, tmp_path: Path, **inputs: object) -> Plan:
    return load_plan(repository(tmp_path) / "good" / f"{name}.yaml", config=plan_config(tmp_path), inputs=inputs)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(f"planvirt: 1\nname: test\n{text}")
    return path


def messages(path: Path, tmp_path: Path, **inputs: object) -> list[str]:
    with pytest.raises(InvalidPlan) as caught:
        load_plan(path, config=plan_config(tmp_path), inputs=inputs)
    return [problem.message for problem in caught.value.problems]


def test_values(tmp_path: Path) -> None:
    plan = load("web-tier", tmp_path, replicas="3")
    assert [instance.name for instance in plan.instances] == ["db", "web-1", "web-2", "web-3"]
    db, web = plan.instances[:2]
    assert db.disks == (Disk("root", 10 * 2**30), Disk("data", 50 * 2**30, keep=True))
    assert (db.memory, web.memory, web.vcpus, web.host, web.index) == (4 * 2**30, 2**30, 1, "kvm1", 1)
    assert web.nics == (Nic("network", "default"),)
    assert web.needs == ("db",)
    assert db.retry == Retry(3, 5.0, 2.0, 60.0, 0.2)
    assert db.ready is not None
    assert (db.ready.port, db.ready.within, db.timeout) == (22, 180.0, 600.0)
    image = plan.operations[0]
    assert image.retry == Retry(5, 5.0, 2.0, 60.0, 0.2)
    assert (image.timeout, image.parallel, image.instances) == (1800.0, 2, ("web-1", "web-2", "web-3"))
    name = image.arguments["upload"]["name"]
    assert isinstance(name, Deferred)
    assert (name.names, name.line) == (("instance.name", "run.date"), 37)
    assert image.arguments["upload"]["store"] == "glance"
    assert plan.operations[1].when is False
    assert plan.images["debian-12"].source == str(tmp_path / "repository" / "files" / "debian.qcow2")


def test_a_snapshot_has_somewhere_to_go(tmp_path: Path) -> None:
    upload = load("image-from-a-step", tmp_path).operations[0].arguments["upload"]
    assert upload["store"] == "local"
    assert upload["name"].names == ("instance.name", "run.date")


def test_profiles_merge_labels_and_retry(tmp_path: Path) -> None:
    one, two = load("profiles", tmp_path).instances
    assert (one.vcpus, one.memory, dict(one.labels)) == (2, 2**30, {"owner": "ops", "tier": "web"})
    assert (two.memory, dict(two.labels)) == (8 * 2**30, {"owner": "ops", "tier": "db"})
    assert (two.retry.attempts, two.retry.delay) == (2, 1.0)


def test_an_alias_is_an_instance_of_its_own(tmp_path: Path) -> None:
    plan = load("yaml-words", tmp_path)
    assert plan.inputs == {
        "flag": "on", "number": 777, "time": "1:30", "date": "2026-01-01", "truth": True, "none": "null"
    }  # fmt: skip
    assert [dict(instance.labels) for instance in plan.instances] == [{"flag": "on", "plain": "no"}] * 2


def test_each_and_index_reach_the_run(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'instances:\n  a: {memory: 1 GiB, count: 2, image: "{{ steps.s.outputs.image }}{{ index }}"}\n'
        "  b: {image: local/x, memory: 1 GiB}\n"
        "operations: [{id: s, action: snapshot, instances: [b], needs: [b]}]\n",
    )
    images = [instance.image for instance in load_plan(path, config=plan_config(tmp_path)).instances[:2]]
    assert [image.known for image in images if isinstance(image, Deferred)] == [{"index": 1}, {"index": 2}]
    assert len({instance.spec() for instance in load_plan(path, config=plan_config(tmp_path)).instances}) == 3


INPUTS = """\
inputs:
  n: {type: integer, minimum: 1, maximum: 9}
  ratio: {type: number, default: 0.5}
  flag: {type: boolean, default: false}
  text: {type: string, default: abc, min_length: 2, choices: [abc, "12"]}
"""


@pytest.mark.parametrize(
    ("given_inputs", "expected"),
    [
        ({}, ["input 'n' is required"]),
        ({"n": "0"}, ["input 'n' must be at least 1, not 0"]),
        ({"n": "ten"}, ["input 'n' must be a whole number, not 'ten'"]),
        ({"n": 1.5}, ["input 'n' must be a whole number, not 1.5"]),
        ({"n": True}, ["input 'n' must be a whole number, not true"]),
        ({"n": "1", "flag": "yes"}, ["input 'flag' must be true or false, not 'yes'"]),
        ({"n": "1", "text": "x"}, ["input 'text' must have at least 2 characters, not 'x'"]),
        ({"n": "1", "text": "xyz"}, ["input 'text' must be one of abc, 12, not 'xyz'"]),
        ({"n": "1", "m": "2"}, ["unknown input 'm' is given"]),
    ],
)
def test_wrong_inputs(given_inputs: dict[str, object], expected: list[str], tmp_path: Path) -> None:
    assert messages(write(tmp_path, INPUTS), tmp_path, **given_inputs) == expected


def test_what_depends_on_an_input_that_is_not_given_is_not_judged(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """\
inputs: {tier: {type: string}, n: {type: integer}}
instances:
  web: {memory: 1 GiB, count: "{{ inputs.n }}", labels: {tier: "{{ inputs.tier }}"}, host: "{{ inputs.tier }}"}
  db: {memory: "{{ inputs.tier }}", image: "{{ inputs.tier }}"}
operations:
  - {action: stop, instances: {labels: {tier: web}}, with: {grace: "{{ inputs.tier }}"}}
  - {action: reboot, instances: [web-3], when: "{{ inputs.tier }}", parallel: "{{ inputs.tier }}"}
""",
    )
    assert check_plan(path, plan_config(tmp_path)) == ()
    assert check_plan(path, plan_config(tmp_path), {"tier": "x"})


def test_right_inputs(tmp_path: Path) -> None:
    path = write(tmp_path, INPUTS)
    given_inputs = {"n": "3", "ratio": "2", "flag": "true", "text": "12"}
    plan = load_plan(path, config=plan_config(tmp_path), inputs=given_inputs)
    assert plan.inputs == {"n": 3, "ratio": 2.0, "flag": True, "text": "12"}
    assert load_plan(path, config=plan_config(tmp_path), inputs=plan.inputs).hash == plan.hash


def test_an_input_is_never_a_template(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "inputs: {text: a}\ninstances: {a: {memory: 1 GiB, boot: {kernel: ./k, cmdline: '{{ inputs.text }}'}}}\n",
    )
    (tmp_path / "k").touch()
    plan = load_plan(path, config=plan_config(tmp_path), inputs={"text": "{{ secrets.ops_key }}"})
    boot = plan.instances[0].boot
    assert boot is not None
    assert boot.cmdline == "{{ secrets.ops_key }}"


def test_a_run_can_go_on_without_the_file(tmp_path: Path) -> None:
    plan = load("smallest", tmp_path)
    again = load_plan(plan.path, config=plan_config(tmp_path), text=plan.text, commit="abc")
    assert (again.hash, again.commit) == (plan.hash, "abc")
    with pytest.raises(SourceError):
        load_plan(tmp_path / "none.yaml", config=plan_config(tmp_path))


def test_a_missing_file_is_a_problem_of_validation(tmp_path: Path) -> None:
    (problem,) = check_plan(tmp_path / "none.yaml", plan_config(tmp_path))
    assert (problem.line, problem.message) == (0, f"cannot read {tmp_path}/none.yaml: there is no such file")


def test_paths_stay_in_the_folder_outside_git_unless_allowed(tmp_path: Path) -> None:
    (tmp_path / "plans").mkdir()
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "k").touch()
    path = write(tmp_path / "plans", "instances: {a: {memory: 1 GiB, boot: {kernel: ../shared/k}}}\n")
    assert messages(path, tmp_path) == ["'../shared/k' lies outside the plan's folder"]
    config = replace(plan_config(tmp_path), allow_paths=(tmp_path / "shared",))
    boot = load_plan(path, config=config).instances[0].boot
    assert boot is not None
    assert boot.kernel == tmp_path / "shared" / "k"


def test_validation_imports_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from planvirt.load import check_plan, load_plan; from planvirt.config import load_config\n"
        "from planvirt.graph import build_graph; from planvirt.drawing import draw_text\n"
        "config = load_config(None, Path('/'), {'PLANVIRT_HOME': '/nowhere'})\n"
        "path = Path(sys.argv[1]); assert not check_plan(path, config)\n"
        "draw_text(build_graph(load_plan(path, config=config)))\n"
        "heavy = {'prefect', 'sqlalchemy', 'libvirt', 'pydantic', 'rich'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    path = repository(tmp_path) / "good" / "image-from-a-step.yaml"
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, cwd=PLANS.parent.parent)


_WORDS = st.sampled_from(
    ["web", "db", "web-1", "image", "4 GiB", "5s", "local/x", "./x", "all", "running", "{{ inputs.n }}", "{{ index }}",
     "{{ steps.image.outputs.image }}", "{{ instances.web.address }}", "{{ nothing }}", "{{", "", "stop", "launch"]
)  # fmt: skip
_KEYS = st.sampled_from(
    ["inputs", "images", "profiles", "instances", "operations", "finally", "use", "count", "for_each", "image",
     "memory", "disks", "networks", "needs", "state", "ready", "boot", "kernel", "labels", "id", "action", "with",
     "when", "upload", "web", "db", "type", "default", "minimum", "choices", "source", "size", "name", "port", "retry"]
)  # fmt: skip
_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats(-2, 2) | _WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=8,
)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a structure where something else can be put."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in pairs for place in ((value, key), *_places(item))]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_plan_crashes_the_loader(tmp_path: Path, data: st.DataObject) -> None:
    import json

    from planvirt.document import parse

    name = data.draw(st.sampled_from(plan_names("good")))
    plan = parse((PLANS / "good" / f"{name}.yaml").read_text()).data
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(_places(plan)))
        if isinstance(container, dict) and data.draw(st.booleans()):
            container[data.draw(_KEYS)] = container.pop(key)
        else:
            container[key] = data.draw(_ANYTHING)
    path = tmp_path / "plan.yaml"
    path.write_text(json.dumps(plan))
    problems = check_plan(path, plan_config(tmp_path))
    try:
        build_graph(load_plan(path, config=plan_config(tmp_path)))
    except InvalidPlan as error:
        assert all(problem.message for problem in error.problems)
    else:
        assert problems == ()
