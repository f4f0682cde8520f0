"""planvirt simulate: a run on a copy of the hosts. The "real" ones here are simulated, too, in files."""

import io
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from drivers.compute import Domain
from flows.cli import main
from flows.replica import replicate
from flows.world import World
from planvirt.journal.records import RunRecord, StepRecord
from planvirt.journal.transitions import RunState
from planvirt.mark import Mark, instance_uuid
from planvirt.states import Note, State
from tests.flows.workshop import Ended
from tests.flows.yard import Yard

CONFIGURATION = """\
[hosts.kvm1]
driver = "simulated"
path = "kvm1.json"

[hosts.kvm2]
driver = "simulated"
path = "kvm2.json"

[stores.local]
path = "store"

[plans]
default_host = "kvm1"

[journal]
url = "sqlite:///FOLDER/journal.sqlite"

[secrets.word]
env = "NOBODY_SETS_THIS"
"""

OLD = "instances:\n  db: {memory: 64 MiB, disks: [1 MiB]}\n  old: {memory: 64 MiB, disks: [1 MiB]}\n"
NEW = """\
defaults: {retry: {attempts: 3, delay: 5s}}
instances:
  db: {memory: 64 MiB, disks: [1 MiB]}
  old: {state: absent}
  web:
    memory: 64 MiB
    disks: [1 MiB]
    networks: [default]
    host: kvm2
    ready: {port: 22, console: "login:"}
operations:
  - {id: image, action: snapshot, instances: [db]}
  - {id: off, action: stop, instances: [db]}
  - {id: said, action: wait, instances: [web], with: {console: "run {{ run.id }}"}}
"""


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    """Two hosts on which an earlier edition of the plan was run."""
    yard = Yard(tmp_path)
    yard.run(OLD)
    return yard


def simulate(yard: Yard, text: str, *words: str) -> Ended:
    """The command in this process: it starts in milliseconds."""
    yard.folder.joinpath("planvirt.toml").write_text(CONFIGURATION.replace("FOLDER", str(yard.folder)))
    yard.folder.joinpath("shop.yaml").write_text(f"planvirt: 1\nname: shop\n{text}")
    return called(yard, *words)


def called(yard: Yard, *words: str) -> Ended:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(["--config", f"{yard.folder}/planvirt.toml", "simulate", f"{yard.folder}/shop.yaml", *words])
    return Ended(code, out.getvalue(), err.getvalue())


def simulation(yard: Yard, text: str, *words: str, code: int = 0) -> Any:
    ended = simulate(yard, text, "--output", "json", *words)
    assert ended.code == code, ended
    return ended.document["simulation"]


def files(yard: Yard) -> dict[str, bytes]:
    """What is real: the hosts, and the images in the store."""
    real = [*yard.folder.glob("kvm?.json"), *yard.folder.glob("store/**/*")]
    return {str(path): path.read_bytes() for path in real if path.is_file()}


def fates(document: Any) -> dict[str, str]:
    return {item["name"]: f"{item['before']} {item['after']}" for item in document["instances"]}


def told(document: Any, *kinds: str) -> str:
    kinds = kinds or ("done", "failed", "killed", "undone", "committed", "again")
    return " ".join(f"{item['step']}:{item['kind']}" for item in document["events"] if item["kind"] in kinds)


def test_a_rehearsal_goes_to_the_end_and_touches_nothing(yard: Yard) -> None:
    yard.preview(NEW)
    before, runs = files(yard), yard.journal.runs()
    ended = simulate(yard, NEW)
    assert ended.code == 0, ended
    assert re.search(r"^launch.web +launch +web +kvm2 +live", ended.out, re.MULTILINE)
    assert "rehearsal on a simulated copy of the hosts" in ended.out
    assert "launch web: wait for console text 'login:', port 22" in ended.out
    assert "terminate old: deleted for good" in ended.out
    assert "the run would end: succeeded" in ended.out
    assert "rehearsal: nothing was touched" in ended.out
    assert files(yard) == before
    assert yard.journal.runs() == runs


def test_what_becomes_of_the_instances(yard: Yard) -> None:
    document = simulation(yard, NEW)
    assert (document["state"], document["leftovers"], document["error"]) == ("succeeded", [], None)
    assert fates(document) == {"db": "running stopped", "old": "running absent", "web": "absent running"}


def test_a_step_that_fails_is_rolled_back_with_all_before_it(yard: Yard) -> None:
    before = files(yard)
    document = simulation(yard, NEW, "--fail", "off.db")
    assert (document["state"], document["leftovers"], document["killed"]) == ("rolled_back", [], None)
    assert document["error"]["brief"] == "cannot request shutdown db"
    assert fates(document) == {"db": "running running", "old": "running running", "web": "absent absent"}
    assert told(document).endswith("off.db:failed off.db:undone image.db:undone launch.web:undone terminate.old:undone")
    assert files(yard) == before


def test_a_passing_fault_is_tried_again_without_the_pause(yard: Yard) -> None:
    document = simulation(yard, NEW, "--fail", "off.db:2")
    assert document["state"] == "succeeded"
    assert "off.db:failed off.db:again off.db:failed off.db:again off.db:done" in told(document)
    pauses = [item["text"] for item in document["events"] if item["kind"] == "again"]
    assert pauses == ["attempt 2 of 3, after 5.0 s in a run", "attempt 3 of 3, after 10.0 s in a run"]


def test_a_passing_fault_that_outlasts_the_retries_fails(yard: Yard) -> None:
    document = simulation(yard, NEW, "--fail", "launch.web:3")
    assert document["state"] == "rolled_back"
    assert told(document, "failed") == " ".join(["launch.web:failed"] * 3)


@pytest.mark.parametrize("step", ["terminate.old", "launch.web", "image.db", "off.db", "said.web"])
def test_every_verb_can_fail_and_be_killed(yard: Yard, step: str) -> None:
    assert simulation(yard, NEW, "--fail", step)["state"] == "rolled_back"
    killed = simulation(yard, NEW, "--kill", step)
    assert (killed["state"], killed["leftovers"]) == ("rolled_back", [])
    assert f"{step}:killed {step}:undone" in told(killed)


REPAIR = """\
images:
  base: {source: ./base.raw, format: raw}
instances:
  db: {memory: 64 MiB, disks: [1 MiB]}
operations:
  - {id: look, action: exec, instances: [db], with: {command: [probe], exit_codes: [3], undo: [forget]}}
  - {id: help, action: rescue, instances: [db], with: {image: base}}
  - {id: well, action: unrescue, instances: [db]}
  - {id: anew, action: rebuild, instances: [db], with: {image: base}}
  - {id: back, action: restore, instances: [db], with: {image: base}}
  - {id: away, action: shelve, instances: [db], with: {store: local}}
  - {id: here, action: unshelve, instances: [db]}
"""


@pytest.mark.parametrize("step", [None, "look", "help", "well", "anew", "back", "away", "here"])
@pytest.mark.parametrize("option", ["--fail", "--kill"])
def test_a_repair_can_be_rehearsed(yard: Yard, step: str | None, option: str) -> None:
    (yard.folder / "base.raw").write_bytes(b"base".ljust(1 << 20, b"\0"))
    before = files(yard)
    options = () if step is None else (option, f"{step}.db")
    document = simulation(yard, REPAIR, *options)
    assert (document["state"], document["leftovers"]) == ("succeeded" if step is None else "rolled_back", [])
    assert fates(document)["db"] == "running running"
    assert files(yard) == before


def test_an_instance_that_is_shelved_is_unshelved_in_a_rehearsal(yard: Yard) -> None:
    (yard.folder / "base.raw").write_bytes(b"base".ljust(1 << 20, b"\0"))
    head = REPAIR.partition("operations:\n")[0] + "operations:\n"
    yard.run(head + "  - {id: away, action: shelve, instances: [db], with: {store: local}}\n")
    document = simulation(yard, head + "  - {id: here, action: unshelve, instances: [db]}\n")
    assert (document["state"], fates(document)["db"]) == ("succeeded", "shelved running")


def test_a_killed_process_leaves_things_and_the_rollback_removes_them(yard: Yard) -> None:
    before = files(yard)
    document = simulation(yard, NEW, "--kill", "image.db")
    left = [thing.split(".20")[0].split(" by run ")[0] for thing in document["killed"]]
    assert left[:3] == ["instance old on kvm1, set aside", "volume shop.db.snapshot-image-root", "instance web on kvm2"]
    assert [thing.split()[0] for thing in left[3:]] == ["volume", "image"]
    assert document["leftovers"] == []
    assert fates(document) == {"db": "running running", "old": "running running", "web": "absent absent"}
    assert files(yard) == before


def test_a_run_that_would_be_kept_says_what_stays(yard: Yard) -> None:
    document = simulation(yard, f"on_failure: keep\n{NEW}", "--fail", "said.web", code=1)
    assert document["state"] == "kept"
    assert "instance web on kvm2" in document["leftovers"]


def test_a_wait_for_what_cannot_come_fails(yard: Yard) -> None:
    ready = "ready: {address: true, within: 1s}"
    text = f"instances:\n  lone: {{memory: 64 MiB, disks: [1 MiB], {ready}}}\n"
    document = simulation(yard, text, code=1)
    assert document["state"] == "rolled_back"
    assert "cannot see lone ready" in document["error"]["brief"]


def test_a_guest_comes_into_the_state_that_is_waited_for(yard: Yard) -> None:
    text = f"{OLD}operations:\n  - {{id: off, action: wait, instances: [db], with: {{for: stopped}}}}\n"
    assert fates(simulation(yard, text))["db"] == "running stopped"


def test_a_rehearsal_does_not_sleep(yard: Yard) -> None:
    text = f"{OLD}operations:\n  - {{id: rest, action: sleep, instances: [db], with: {{for: 1h}}}}\n"
    events = simulation(yard, text)["events"]
    assert "sleep, for 3600 s in a run" in [item["text"] for item in events]


def test_secrets_are_not_read(yard: Yard) -> None:
    wait = "operations:\n  - {id: said, action: wait, instances: [db], with: {console: '{{ secrets.word }}'}}\n"
    assert simulation(yard, f"{OLD}{wait}")["state"] == "succeeded"


def test_a_foreign_instance_in_the_way_is_in_the_way_of_the_rehearsal(yard: Yard) -> None:
    yard.kvm2.add_foreign("web")
    before = files(yard)
    ended = simulate(yard, NEW, "--output", "json")
    assert ended.code == 6
    assert ended.document["simulation"]["state"] == "refused"
    conflict = "web: host kvm2 has an instance of that name which planvirt did not make"
    assert ended.document["preview"]["conflicts"][0] == conflict
    assert files(yard) == before
    assert "in the way:" in simulate(yard, NEW).out


def test_the_claims_of_real_runs_hold(yard: Yard) -> None:
    step = StepRecord("stop.db", 0, "stop", "db", instance_uuid("shop", "db"), "kvm1")
    yard.journal.begin(RunRecord("other", "run", "shop", "", "", "", None, {}, "rollback"), [step])
    ended = simulate(yard, NEW, "--output", "json")
    assert ended.code == 6
    assert "run other of plan shop is working on it" in ended.document["preview"]["conflicts"][0]


def test_instances_are_copied_as_they_are(yard: Yard) -> None:
    yard.kvm1.add_foreign("theirs", State.PAUSED)
    mark = Mark("else", "kept", "r0", "0" * 64)
    yard.kvm1.define(Domain("kept", instance_uuid("else", "kept"), 2, 1 << 26, mark, protect=True))
    yard.kvm1.set_aside("kept", "r0")
    yard.kvm1.note("old", Note.LOCKED, "")
    with World(yard.config) as world:
        replica = replicate(world, yard.plan(OLD), yard.folder / "copy", offline=False)
    for name, host in yard.hosts.items():
        assert replica.host(name).instances() == host.instances()
        assert replica.host(name).volumes() == host.volumes()
    yard.kvm1.note("old", Note.LOCKED, None)
    document = simulation(yard, OLD)
    assert (document["state"], document["events"]) == ("succeeded", [])
    document = simulation(yard, NEW, "--fail", "launch.web")
    assert document["leftovers"] == []


def test_a_step_that_nobody_knows(yard: Yard) -> None:
    for option in ("--fail", "--kill"):
        ended = simulate(yard, NEW, option, "lunch.web")
        assert ended.code == 2
        assert "error: cannot let step 'lunch.web' go wrong" in ended.err
        assert "did you mean 'launch.web'?" in ended.err


@pytest.mark.parametrize("times", ["0", "often", "-1", ""])
def test_a_number_of_failures_that_is_none(yard: Yard, times: str) -> None:
    ended = simulate(yard, NEW, "--fail", f"off.db:{times}")
    assert (ended.code, ended.out) == (2, "")
    assert "--fail off.db:2" in ended.err


@pytest.mark.parametrize("option", ["--fail", "--kill"])
def test_a_step_that_finds_nothing_to_do_cannot_go_wrong(yard: Yard, option: str) -> None:
    stop = "action: stop, instances: [db]"
    text = f"{OLD}operations: [{{id: off, {stop}}}, {{id: again, {stop}}}]\n"
    document = simulation(yard, text, option, "again.db", code=1)
    assert (document["state"], document["unmet"]) == ("succeeded", ["again.db"])


def test_a_host_that_does_not_answer_begins_empty(yard: Yard) -> None:
    simulate(yard, OLD)
    text = '[hosts.kvm1]\nuri = "qemu+unix:///system?socket=/nowhere"\n'
    (yard.folder / "planvirt.toml").write_text(text)
    found = called(yard, "--output", "json")
    assert found.code == 0, found
    assert "host kvm1 begins empty" in found.document["simulation"]["notes"][0]
    assert fates(found.document["simulation"]) == {"db": "absent running", "old": "absent running"}


def test_offline_no_host_is_asked(yard: Yard) -> None:
    document = simulation(yard, OLD, "--offline")
    assert document["notes"] == ["no host was asked: every host begins empty"]
    assert fates(document) == {"db": "absent running", "old": "absent running"}


def test_images_are_checked_and_not_copied(yard: Yard) -> None:
    with (yard.folder / "big.raw").open("wb") as file:
        file.write(b"guest")
        file.truncate(8 << 20)
    text = "images:\n  big: {source: ./big.raw}\ninstances:\n  one: {image: big, memory: 64 MiB}\n"
    assert fates(simulation(yard, text)) == {"one": "absent running"}
    wrong = text.replace("big.raw", f"big.raw, checksum: 'sha256:{'0' * 64}'")
    assert "its checksum is wrong" in simulate(yard, wrong).err
    small = text.replace("image: big", "image: big, disks: [1 MiB]")
    assert "image big is larger than the disk" in simulate(yard, small).err


def test_the_document(yard: Yard) -> None:
    ended = simulate(yard, NEW, "--output", "json")
    assert set(ended.document) == {"simulation", "preview"}
    assert {"state", "events", "instances", "leftovers"} <= set(ended.document["simulation"])
    event = ended.document["simulation"]["events"][0]
    assert set(event) == {"kind", "step", "action", "instance", "text"}
    assert [change["step"] for change in ended.document["preview"]["changes"]] == [
        "terminate.old", "launch.web", "image.db", "off.db", "said.web",
    ]  # fmt: skip


def test_prefect_is_not_imported(yard: Yard) -> None:
    simulate(yard, NEW)
    words = ["simulate", "shop.yaml", "--fail", "off.db"]
    code = f"import sys, flows.cli as cli; print(cli.main({words!r}), 'prefect' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=yard.folder, capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stdout.splitlines()[-1] == "0 False"


def test_the_real_run_does_as_the_rehearsal(yard: Yard) -> None:
    text = NEW.replace('    ready: {port: 22, console: "login:"}\n', "").replace("run {{ run.id }}", "web is up")
    document = simulation(yard, text)
    assert yard.run(text) == RunState.SUCCEEDED
    now = {item.name: item.state.value for host in yard.hosts.values() for item in host.instances()}
    assert {name: fate.split()[1] for name, fate in fates(document).items()} == {"old": "absent", **now}
