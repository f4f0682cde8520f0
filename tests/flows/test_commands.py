"""Commands that change nothing: what they print, how they end, and what they must not import."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.workshop import Workshop

PLAN = """\
planvirt: 1
name: web
inputs:
  replicas: {type: integer, default: 2, minimum: 1, maximum: 4}
instances:
  web: {count: "{{ inputs.replicas }}", memory: 64 MiB, disks: [1 MiB]}
operations:
  - {id: image, action: snapshot, instances: [web], with: {upload: {store: local, name: "{{ instance.name }}"}}}
"""


@pytest.fixture
def shop(workshop: Workshop) -> Workshop:
    workshop.write("web.yaml", PLAN)
    return workshop


def test_validate_says_ok(shop: Workshop) -> None:
    ended = shop.planvirt("validate", "web.yaml")
    assert (ended.code, ended.out) == (0, "web.yaml: ok\n")


def test_validate_tells_every_problem_of_every_file(shop: Workshop) -> None:
    shop.write("bad.yaml", "planvirt: 1\nname: Bad\ninstances:\n  a: {memroy: 1 GiB}\n")
    ended = shop.planvirt("validate", "web.yaml", "bad.yaml", "gone.yaml")
    assert ended.code == 2
    assert "web.yaml: ok" in ended.out
    assert "bad.yaml:2:7:" in ended.out
    assert "bad.yaml:4:7: unknown key 'memroy'" in ended.out
    assert "did you mean 'memory'?" in ended.out
    assert "gone.yaml: cannot read" in ended.out


def test_validate_as_json(shop: Workshop) -> None:
    shop.write("bad.yaml", "planvirt: 1\nname: bad\ninstances:\n  a: {memory: 1024}\n")
    document = shop.planvirt("validate", "--output", "json", "bad.yaml").document
    assert document["ok"] is False
    problem = document["plans"][0]["problems"][0]
    assert set(problem) == {"line", "column", "pointer", "message", "hint"}
    assert (problem["line"], problem["pointer"]) == (4, "/instances/a/memory")


def test_preview_lists_what_a_run_would_do(shop: Workshop) -> None:
    ended = shop.planvirt("preview", "web.yaml", "--output", "json", "-i", "replicas=1")
    assert ended.code == 0
    assert ended.document == {
        "plan": "web",
        "changes": [
            {
                "step": "launch.web-1",
                "action": "launch",
                "instance": "web-1",
                "host": "sim",
                "impact": "live",
                "undo": "terminate what this run created",
                "reason": "declared running, absent",
            },
            {
                "step": "image.web-1",
                "action": "snapshot",
                "instance": "web-1",
                "host": "sim",
                "impact": "live",
                "undo": "delete the image",
                "reason": "operation image",
            },
        ],
        "destroys": [],
        "conflicts": [],
        "undeclared": [],
    }
    assert shop.left() == []


def test_preview_ends_with_4_when_there_is_something_to_do(shop: Workshop) -> None:
    assert shop.planvirt("preview", "web.yaml", "--exit-code").code == 4


def test_preview_names_what_is_in_the_way(shop: Workshop) -> None:
    shop.simulated.add_foreign("web-1")
    ended = shop.planvirt("preview", "web.yaml")
    assert ended.code == 6
    assert "web-1: host sim has an instance of that name which planvirt did not make" in ended.out


def test_run_without_a_terminal_does_not_guess_the_answer(shop: Workshop) -> None:
    ended = shop.planvirt("run", "web.yaml")
    assert ended.code == 2
    assert "say --yes" in ended.err
    assert shop.left() == []


@pytest.mark.parametrize(("shape", "piece"), [("text", "launch.web-1"), ("mermaid", "flowchart"), ("dot", "digraph")])
def test_graph(shop: Workshop, shape: str, piece: str) -> None:
    ended = shop.planvirt("graph", "web.yaml", "--as", shape)
    assert ended.code == 0
    assert piece in ended.out


@pytest.mark.parametrize("which", ["plan", "config"])
def test_schema_is_json(workshop: Workshop, which: str) -> None:
    document = workshop.planvirt("schema", which).document
    assert document["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_runs_of_a_fresh_home(workshop: Workshop) -> None:
    assert workshop.planvirt("runs").out == "there are no runs yet\n"
    assert workshop.planvirt("runs", "--output", "json").document == {"runs": []}


def test_show_of_an_unknown_run(workshop: Workshop) -> None:
    ended = workshop.planvirt("show", "2026")
    assert ended.code == 1
    assert ended.err.startswith("error: cannot find run 2026")


def test_instances_shows_foreign_ones_only_when_asked(workshop: Workshop) -> None:
    workshop.simulated.add_foreign("pet")
    assert "pet" not in workshop.planvirt("instances").out
    assert "pet" in workshop.planvirt("instances", "--all").out


def test_init_writes_a_plan_that_validates_and_overwrites_nothing(tmp_path: Path) -> None:
    shop = Workshop(tmp_path / "fresh")
    (shop.folder / "planvirt.toml").unlink()
    assert shop.planvirt("init").code == 0
    (shop.folder / "plans" / "base.qcow2").write_bytes(b"")
    assert shop.planvirt("validate", "plans/starter.yaml").code == 0
    again = shop.planvirt("init")
    assert again.code == 2
    assert "already" in again.err


def test_doctor_tells_what_is_broken_and_how_to_mend_it(workshop: Workshop) -> None:
    assert workshop.planvirt("doctor").code == 0
    workshop.write("planvirt.toml", '[hosts.far]\nuri = "qemu+unix:///system?socket=/nowhere"\n')
    ended = workshop.planvirt("doctor")
    assert ended.code == 1
    assert "FAIL host far:" in ended.out
    assert "→" in ended.out


def test_an_unknown_host_is_told_before_anything_happens(workshop: Workshop) -> None:
    workshop.write("p.yaml", "planvirt: 1\nname: p\ninstances:\n  a: {memory: 64 MiB, host: simm}\n")
    ended = workshop.planvirt("preview", "p.yaml")
    assert ended.code == 2
    assert "p.yaml:4:29" in ended.err
    assert "simm" in ended.err


def test_a_host_that_does_not_answer_is_an_error_in_three_parts(workshop: Workshop) -> None:
    workshop.write("planvirt.toml", '[hosts.far]\nuri = "qemu+unix:///system?socket=/nowhere"\n')
    workshop.write("p.yaml", "planvirt: 1\nname: p\ninstances:\n  a: {memory: 64 MiB, disks: [1 MiB]}\n")
    ended = workshop.planvirt("run", "p.yaml", "--yes")
    assert ended.code == 1
    assert ended.err.startswith("error: cannot")
    assert "→" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    "words", [("validate", "web.yaml"), ("preview", "web.yaml"), ("graph", "web.yaml"), ("schema",)]
)
def test_reading_commands_do_not_import_prefect(shop: Workshop, words: tuple[str, ...]) -> None:
    code = (
        "import sys; from planvirt.start import main; import flows.cli as cli\n"
        f"code = cli.main({list(words)!r})\n"
        "heavy = ('prefect', 'rich', 'httpx', 'oslo_utils')\n"
        "print([name for name in heavy if name in sys.modules], code, file=sys.stderr)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=shop.folder, capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stderr.splitlines()[-1] == "[] 0"


def test_show_does_not_import_prefect(workshop: Workshop) -> None:
    code = "import sys, flows.cli as cli; cli.main(['show', 'x']); print('prefect' in sys.modules)"
    environ = {"PLANVIRT_HOME": str(workshop.home), "PATH": "/usr/bin:/bin", "HOME": str(workshop.home)}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=workshop.folder, env=environ, capture_output=True, text=True, timeout=60,
        check=True,
    )  # fmt: skip
    assert ended.stdout.splitlines()[-1] == "False"


def test_a_closed_pipe_is_no_error(shop: Workshop) -> None:
    command = f"{sys.executable} -m planvirt schema | head -1"
    ended = subprocess.run(["/bin/sh", "-c", command], cwd=shop.folder, capture_output=True, text=True, timeout=60)
    assert ended.stderr == ""


def test_a_foreign_package_in_our_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "__init__.py").write_text("")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from planvirt.start import main; sys.exit(main())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "'flows' is hidden by another one" in ended.stderr


def test_our_packages_belong_to_our_distribution() -> None:
    from importlib.metadata import packages_distributions

    found = packages_distributions()
    for name in ("planvirt", "drivers", "flows"):
        assert set(found[name]) == {"planvirt"}


def test_json_goes_to_standard_output_alone(shop: Workshop) -> None:
    json.loads(shop.planvirt("instances", "--output", "json").out)
