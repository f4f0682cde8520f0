"""Whole runs through the program and a real Prefect server, on a simulated host: how they end and what they leave."""

import json
import signal
import time
import urllib.request
from typing import Any

import pytest

from planvirt.journal.journal import Journal
from planvirt.journal.transitions import RunState
from tests.flows.workshop import Workshop, interrupt, until

pytestmark = pytest.mark.real

PLAN = """\
planvirt: 1
name: web
defaults:
  retry: {attempts: 3, delay: 100ms}
instances:
  web: {count: 2, memory: 64 MiB, disks: [1 MiB]}
operations:
  - {id: image, action: snapshot, instances: [web-1], with: {upload: {store: local, name: "web-{{ run.id }}"}}}
  - {id: halt, action: stop, instances: [web]}
"""


@pytest.fixture
def shop(running: Workshop) -> Workshop:
    running.write("web.yaml", PLAN)
    return running


def api(shop: Workshop, path: str, body: object) -> Any:
    request = urllib.request.Request(  # noqa: S310 - loopback
        f"{shop.environ['PREFECT_API_URL']}{path}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as reply:  # noqa: S310
        return json.load(reply)


def journal(shop: Workshop) -> Journal:
    return Journal(f"sqlite:///{shop.home}/journal.sqlite")


def test_a_plan_is_carried_out_and_everything_bears_its_mark(shop: Workshop) -> None:
    ended = shop.run("web.yaml")
    assert ended.code == 0, ended
    run = ended.document["run"]
    assert run["state"] == "succeeded"
    assert [(step["id"], step["state"], step["attempts"]) for step in run["steps"]] == [
        ("launch.web-1", "done", 1),
        ("launch.web-2", "done", 1),
        ("image.web-1", "done", 1),
        ("halt.web-1", "done", 1),
        ("halt.web-2", "done", 1),
    ]
    instances = shop.planvirt("instances", "--output", "json").document["instances"]
    assert {(item["name"], item["state"], item["plan"], item["run"]) for item in instances} == {
        ("web-1", "stopped", "web", run["id"]),
        ("web-2", "stopped", "web", run["id"]),
    }
    assert all(f".{run['id']}." in name for name in shop.left() if name.endswith(".planvirt"))
    (image,) = shop.images()
    assert image["status"] == "active"
    assert image["checksum"] == run["steps"][2]["outputs"]["checksum"]
    assert image["properties"]["planvirt_run"] == run["id"]


def test_prefect_shows_the_plan_and_every_step(shop: Workshop) -> None:
    run = shop.run("web.yaml").document["run"]
    found: list[Any] = []

    def complete() -> bool:
        where = {"flow_runs": {"id": {"any_": [run["flow_run_id"]]}}}
        found[:] = api(shop, "/task_runs/filter", where)
        return len(found) == 5 and all(task["state_type"] == "COMPLETED" for task in found)

    until(complete)
    assert sorted(task["name"] for task in found) == [
        "launch web-1",
        "launch web-2",
        "snapshot web-1",
        "stop web-1",
        "stop web-2",
    ]
    by_name = {task["name"]: task for task in found}
    followed = [item["id"] for item in by_name["stop web-2"]["task_inputs"]["wait_for"]]
    assert by_name["snapshot web-1"]["id"] in followed
    assert "plan:web" in by_name["stop web-2"]["tags"]
    (flow_run,) = api(shop, "/flow_runs/filter", {"flow_runs": {"id": {"any_": [run["flow_run_id"]]}}})
    (flow,) = api(shop, "/flows/filter", {"flows": {"id": {"any_": [flow_run["flow_id"]]}}})
    assert flow["name"] == "web"
    assert flow_run["state_type"] == "COMPLETED"


def test_a_second_run_finds_everything_as_declared(shop: Workshop) -> None:
    shop.write("web.yaml", PLAN.partition("operations:")[0])
    assert shop.run("web.yaml").code == 0
    before = shop.left()
    again = shop.planvirt("run", "web.yaml", "--yes")
    assert again.code == 0
    assert "nothing to do" in again.out
    assert shop.left() == before


def test_a_failing_step_undoes_the_run(shop: Workshop) -> None:
    shop.simulated.fail("request_shutdown", name="web-2", times=None, error="error")
    ended = shop.run("web.yaml")
    assert ended.code == 1
    run = ended.document["run"]
    assert run["state"] == "rolled_back"
    assert "web-2" in run["error"]["brief"]
    assert {step["state"] for step in run["steps"]} == {"undone"}
    assert shop.left() == []
    assert shop.images() == []
    names: list[str] = []

    def undos_are_there() -> bool:
        tasks = api(shop, "/task_runs/filter", {"flow_runs": {"id": {"any_": [run["flow_run_id"]]}}})
        names[:] = sorted(task["name"] for task in tasks if task["name"].startswith("undo "))
        return len(names) == 5

    until(undos_are_there)
    assert "undo launch web-1" in names


def test_a_passing_fault_is_tried_again(shop: Workshop) -> None:
    shop.simulated.fail("start", name="web-1", times=2)
    run = shop.run("web.yaml").document["run"]
    assert run["state"] == "succeeded"
    assert run["steps"][0]["attempts"] == 3


def test_a_hanging_step_ends_in_time(shop: Workshop) -> None:
    shop.write(
        "web.yaml",
        PLAN.replace("{id: halt, action: stop, instances: [web]}", "{id: halt, action: stop, instances: [web], "
                     "timeout: 1s, retry: {attempts: 1}}"),
    )  # fmt: skip
    shop.simulated.fail("request_shutdown", name="web-1", times=1, hang=20.0)
    began = time.monotonic()
    ended = shop.run("web.yaml")
    assert time.monotonic() - began < 60
    assert ended.code in (1, 3)
    halt = next(step for step in ended.document["run"]["steps"] if step["id"] == "halt.web-1")
    assert "in time" in halt["error"]["brief"]


def test_an_undo_that_fails_is_named_and_can_be_finished_later(shop: Workshop) -> None:
    shop.simulated.fail("request_shutdown", name="web-2", times=None, error="error")
    shop.simulated.fail("undefine", name="web-1", times=3, error="error")
    ended = shop.run("web.yaml")
    assert ended.code == 3
    run = ended.document["run"]
    assert run["state"] == "rollback_incomplete"
    assert "instance web-1 on sim" in run["leftovers"]
    assert "web-2" in run["error"]["brief"]  # the first error, not that of the undo
    assert "web-2" not in shop.left()
    shown = shop.planvirt("show", run["id"])
    assert f"planvirt rollback {run['id']}" in shown.out
    refused = shop.planvirt("run", "web.yaml", "--yes")
    assert refused.code == 6
    assert f"web-1: run {run['id']} of plan web could not be undone" in refused.err
    finished = shop.planvirt("rollback", run["id"], "--yes", "--output", "json")
    assert finished.code == 0
    assert finished.document["run"]["state"] == "rolled_back"
    assert shop.left() == []


def test_keep_leaves_everything_and_rollback_can_still_be_chosen(shop: Workshop) -> None:
    shop.write("web.yaml", PLAN.replace("name: web\n", "name: web\non_failure: keep\n", 1))
    shop.simulated.fail("request_shutdown", name="web-2", times=None, error="error")
    ended = shop.run("web.yaml")
    assert ended.code == 5
    assert ended.document["run"]["state"] == "kept"
    assert "web-1" in shop.left()
    assert shop.planvirt("rollback", "last").code == 2  # nobody is there to be asked
    assert shop.planvirt("rollback", "last", "--yes").code == 0
    assert shop.left() == []
    again = shop.planvirt("rollback", "last", "--yes")
    assert again.code == 6
    assert "it has ended as rolled back" in again.err


def test_a_run_is_not_undone_beneath_a_later_one(shop: Workshop) -> None:
    shop.write("web.yaml", PLAN.replace("name: web\n", "name: web\non_failure: keep\n", 1))
    shop.simulated.fail("request_shutdown", name="web-2", times=1, error="error")
    kept = shop.run("web.yaml").document["run"]["id"]
    assert shop.run("web.yaml").code == 0
    before = shop.left()
    refused = shop.planvirt("rollback", kept, "--yes")
    assert refused.code == 6, refused
    assert "has worked on its instances since" in refused.err
    assert shop.left() == before


def test_ctrl_c_rolls_back(shop: Workshop) -> None:
    with shop.simulated.world() as world:
        world.guests["web-2"] = {"ignores_shutdown": True}
    process = shop.begin("run", "web.yaml", "--yes", "--output", "json")
    until(lambda: "start web-2" in shop.simulated.events() and len(shop.left()) == 4 and _halting(shop))
    interrupt(process)
    ended = shop.finish(process)
    assert ended.code == 1, ended
    assert "interrupted" in ended.err
    assert ended.document["run"]["state"] == "rolled_back"
    assert shop.left() == []
    with journal(shop) as found:
        assert found.claims() == ()


def _halting(shop: Workshop) -> bool:
    with journal(shop) as found:
        return any(
            step.id == "halt.web-2" and step.state == "doing"
            for run in found.runs(limit=1)
            for step in found.steps(run.id)
        )


def test_of_two_runs_at_once_one_wins_and_the_other_touches_nothing(shop: Workshop) -> None:
    with shop.simulated.world() as world:
        world.guests["web-2"] = {"ignores_shutdown": True}
    first = shop.begin("run", "web.yaml", "--yes", "--output", "json")
    until(lambda: shop.phase("halt.web-2") != "")
    before = len(shop.simulated.events())
    second = shop.planvirt("run", "web.yaml", "--yes")
    assert second.code == 6, second
    assert "is working on it" in second.err
    assert {event.split()[0] for event in shop.simulated.events()[before:]} <= {"request_shutdown"}  # the first one's
    interrupt(first)
    assert shop.finish(first).code == 1


def test_after_kill_9_the_next_run_says_what_to_do_and_rollback_does_it(shop: Workshop) -> None:
    shop.simulated.fail("request_shutdown", name="web-2", kill=True, at="after")
    process = shop.begin("run", "web.yaml", "--yes")
    assert shop.finish(process).code == -signal.SIGKILL
    with journal(shop) as found:
        (run,) = found.runs()
        assert run.state == RunState.RUNNING
    refused = shop.planvirt("run", "web.yaml", "--yes")
    assert refused.code == 6
    assert shop.planvirt("rollback", run.id, "--yes").code == 6  # its lease still lasts
    _let_the_lease_lapse(shop, run.id)
    assert f"planvirt rollback {run.id}" in shop.planvirt("doctor").out
    assert f"planvirt rollback {run.id}" in shop.planvirt("preview", "web.yaml").out
    again = shop.run("web.yaml")
    assert again.code == 0, again
    assert f"run {run.id} died" in again.err
    with journal(shop) as found:
        assert found.run(run.id).state == RunState.ROLLED_BACK


def test_recover_goes_on_with_a_run_whose_plan_says_so(shop: Workshop) -> None:
    shop.write("web.yaml", PLAN.replace("name: web\n", "name: web\non_crash: resume\n", 1))
    shop.simulated.fail("request_shutdown", name="web-2", kill=True, at="before")
    assert shop.finish(shop.begin("run", "web.yaml", "--yes")).code == -signal.SIGKILL
    early = shop.planvirt("recover").out  # its lease still lasts
    assert "0 runs to recover" in early and "counts as running: if its process was killed" in early
    with journal(shop) as found:
        (run,) = found.runs()
    _let_the_lease_lapse(shop, run.id)
    ended = shop.planvirt("recover", "--output", "json")
    assert ended.code == 0, ended
    assert ended.document == {"recovered": [{"id": run.id, "plan": "web", "state": "succeeded"}]}
    steps = shop.planvirt("show", run.id, "--output", "json").document["run"]["steps"]
    assert {step["state"] for step in steps} == {"done"}
    assert [step["attempts"] for step in steps if step["action"] == "launch"] == [1, 1]
    assert len(shop.images()) == 1


def test_a_kept_run_is_resumed_where_it_failed(shop: Workshop) -> None:
    shop.write("web.yaml", PLAN.replace("name: web\n", "name: web\non_failure: keep\n", 1))
    shop.simulated.fail("request_shutdown", name="web-2", times=1, error="error")
    assert shop.run("web.yaml").code == 5
    shop.write("web.yaml", (shop.folder / "web.yaml").read_text() + "# a remark\n")
    refused = shop.planvirt("resume", "last")
    assert refused.code == 6
    assert "has changed since it began" in refused.err
    ended = shop.planvirt("resume", "last", "--as-recorded", "--output", "json")
    assert ended.code == 0, ended
    attempts = {step["id"]: step["attempts"] for step in ended.document["run"]["steps"]}
    assert attempts["launch.web-1"] == 1
    assert attempts["halt.web-2"] == 2
    assert len(shop.images()) == 1


def test_a_rollback_to_a_step_keeps_what_came_before_it(shop: Workshop) -> None:
    shop.write("web.yaml", PLAN.replace("name: web\n", "name: web\non_failure: keep\n", 1))
    shop.simulated.fail("request_shutdown", name="web-2", times=1, error="error")
    assert shop.run("web.yaml").code == 5
    assert shop.planvirt("rollback", "last", "--to", "nowhere", "--yes").code == 2
    ended = shop.planvirt("rollback", "last", "--to", "launch.web-2", "--yes", "--output", "json")
    assert ended.code == 0, ended
    assert ended.document["run"]["state"] == "kept"
    assert shop.images() == []
    found = shop.simulated.instance("web-1")
    assert found is not None
    assert found.state == "running"
    resumed = shop.planvirt("resume", "last", "--output", "json")
    assert resumed.code == 0, resumed
    assert len(shop.images()) == 1


def _let_the_lease_lapse(shop: Workshop, run: str) -> None:
    import sqlite3

    with sqlite3.connect(shop.home / "journal.sqlite") as database:
        database.execute("UPDATE runs SET lease_until = 0 WHERE id = ?", (run,))
    database.close()


def test_destroy_removes_what_the_plan_made_and_nothing_else(shop: Workshop) -> None:
    shop.simulated.add_foreign("pet")
    assert shop.run("web.yaml").code == 0
    shop.write("web.yaml", PLAN.replace("count: 2", "count: 1").replace("[web-1]", "[web]"))
    listed = shop.planvirt("preview", "web.yaml", "--destroy", "--output", "json").document
    assert [name.split(" with ")[0] for name in listed["destroys"]] == [
        "instance web-1 on sim",
        "instance web-2 on sim",
    ]
    assert shop.planvirt("destroy", "web.yaml", "--yes").code == 0
    assert shop.left() == ["pet", "pet.qcow2"]
    assert len(shop.images()) == 1  # images are backups: they stay
    assert shop.planvirt("destroy", "web.yaml", "--yes").code == 0


def test_a_kept_disk_outlives_its_instance_and_comes_back_with_it(shop: Workshop) -> None:
    shop.write(
        "db.yaml",
        "planvirt: 1\nname: db\ninstances:\n"
        "  db: {memory: 64 MiB, disks: [1 MiB, {name: data, size: 1 MiB, keep: true}]}\n",
    )
    assert shop.run("db.yaml").code == 0
    (data,) = [name for name in shop.left() if ".data." in name]
    shop.simulated.write_disk(data, b"precious")
    assert shop.planvirt("destroy", "db.yaml", "--yes").code == 0
    assert shop.left() == [data]
    assert shop.run("db.yaml").code == 0
    found = shop.simulated.instance("db")
    assert found is not None
    assert data in found.volumes


def test_a_later_step_uses_what_an_earlier_one_made(shop: Workshop) -> None:
    shop.write(
        "clone.yaml",
        """\
planvirt: 1
name: clone
instances:
  one: {memory: 64 MiB, disks: [1 MiB]}
  two: {memory: 64 MiB, disks: [1 MiB], image: "{{ steps.keep.outputs.image }}"}
operations:
  - {id: keep, action: snapshot, instances: [one], with: {upload: {store: local, name: kept}}}
  - {action: wait, instances: [one], with: {for: running}, when: "{{ steps.keep.outputs.size > 1000000000 }}"}
""",
    )
    ended = shop.run("clone.yaml")
    assert ended.code == 0, ended
    states = {step["id"]: step["state"] for step in ended.document["run"]["steps"]}
    assert states["launch.two"] == "done"
    assert states["wait.one"] == "skipped"


def test_a_secret_shows_nowhere(running: Workshop) -> None:
    running.write(
        "planvirt.toml", '[hosts.sim]\ndriver = "simulated"\npath = "world.json"\n[secrets.token]\nfile = "token"\n'
    )
    running.write("token", "hunter2-swordfish\n")
    running.write("kernel", "k")
    running.write(
        "p.yaml",
        "planvirt: 1\nname: p\ninstances:\n  a:\n    memory: 64 MiB\n    disks: [1 MiB]\n"
        '    boot: {kernel: ./kernel, cmdline: "token={{ secrets.token }}"}\n',
    )
    ended = running.run("p.yaml")
    assert ended.code == 0, ended
    assert "hunter2" not in ended.out + ended.err
    assert "hunter2" not in running.planvirt("show", "last", "--trail").out
    assert not [path for path in running.home.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]


def test_a_run_without_a_server_starts_one_and_keeps_it(workshop: Workshop) -> None:
    workshop.write("web.yaml", PLAN)
    try:
        first = workshop.planvirt("run", "web.yaml", "--yes")
        assert first.code == 0, first
        assert "starting a Prefect server" in first.err
        second = workshop.planvirt("destroy", "web.yaml", "--yes")
        assert second.code == 0
        assert "starting" not in second.err
    finally:
        ended = workshop.planvirt("down")
    assert "ended the server" in ended.out
    assert "no Prefect server" in workshop.planvirt("down").out


def test_an_api_that_does_not_answer_is_told_and_nothing_is_touched(workshop: Workshop) -> None:
    workshop.write("web.yaml", PLAN)
    workshop.environ = {"PREFECT_API_URL": "http://127.0.0.1:9/api"}
    ended = workshop.planvirt("run", "web.yaml", "--yes")
    assert ended.code == 1
    assert "Traceback" not in ended.err
    assert "PREFECT_API_URL" in ended.err
    assert workshop.left() == []


def test_a_server_that_dies_in_the_middle_does_not_keep_the_run_from_its_rollback(workshop: Workshop) -> None:
    workshop.write("web.yaml", PLAN.replace("[web]}", "[web], with: {grace: 8s}}"))
    with workshop.simulated.world() as world:
        world.guests["web-2"] = {"ignores_shutdown": True}
    process = workshop.begin("run", "web.yaml", "--yes", "--output", "json")
    try:
        until(lambda: (workshop.home / "journal.sqlite").exists() and _halting(workshop), 90)
    finally:
        assert workshop.planvirt("down").code == 0
    began = time.monotonic()
    ended = workshop.finish(process)
    assert time.monotonic() - began < 60
    assert ended.code == 1, ended
    assert ended.document["run"]["state"] == "rolled_back"
    assert "did not shut down" in ended.document["run"]["error"]["brief"]
    assert workshop.left() == []
    assert "Traceback" not in ended.err


def test_a_closed_pipe_does_not_end_the_run(shop: Workshop) -> None:
    process = shop.begin("run", "web.yaml", "--yes", "--output", "json")
    assert process.stderr is not None
    process.stderr.close()
    process.stderr = None
    assert shop.finish(process).code == 0


def test_sigterm_before_the_first_step_cancels_and_frees(shop: Workshop) -> None:
    process = shop.begin("run", "web.yaml", "--yes")
    until(lambda: (shop.home / "journal.sqlite").exists() and bool(_claims(shop)))
    process.terminate()
    ended = shop.finish(process)
    assert ended.code == 1, ended
    assert _claims(shop) == 0
    assert shop.left() == []


def _claims(shop: Workshop) -> int:
    with journal(shop) as found:
        return len(found.claims())


def test_a_guest_that_repeats_a_secret_does_not_make_it_known(running: Workshop) -> None:
    running.write(
        "planvirt.toml", '[hosts.sim]\ndriver = "simulated"\npath = "world.json"\n[secrets.token]\nfile = "token"\n'
    )
    running.write("token", "hunter2-swordfish\n")
    running.write("kernel", "k")
    with running.simulated.world() as world:
        world.guests["a"] = {"console": "Kernel command line: token=hunter2-swordfish\n"}
    running.write(
        "p.yaml",
        "planvirt: 1\nname: p\ninstances:\n  a:\n    memory: 64 MiB\n    disks: [1 MiB]\n"
        '    boot: {kernel: ./kernel, cmdline: "token={{ secrets.token }}"}\n'
        "    ready: {console: never, within: 500ms}\n",
    )
    ended = running.run("p.yaml")
    assert ended.code == 1, ended
    assert "Kernel command line: ***" in ended.out
    assert "hunter2" not in ended.out + ended.err
    assert not [path for path in running.home.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]
    run = ended.document["run"]["flow_run_id"]
    time.sleep(3)  # Prefect sends its logs every two seconds
    logs = api(running, "/logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200})
    tasks = api(running, "/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    assert logs
    assert "hunter2" not in json.dumps([logs, tasks])
