"""Whole runs on real virtual machines: QEMU under libvirt, a real Prefect server, a folder of images."""

import hashlib
import os
import subprocess

import pytest

from planvirt.states import Note
from tests.flows.lab import Lab
from tests.flows.workshop import interrupt, until

pytestmark = pytest.mark.real


SMALL = "memory: 192 MiB, disks: [64 MiB]"
PAIR = """\
instances:
  {word}-one:
    image: tiny
    memory: 192 MiB
    disks: [64 MiB]
    ready: {console: planvirt guest up, within: 90s}
    {boot:planvirt.write=hello}
"""


def test_a_running_machine_becomes_an_image_and_another_machine_is_born_from_it(lab: Lab) -> None:
    plan = lab.plan(
        "clone",
        PAIR
        + """\
  {word}-two:
    image: "{{ steps.keep.outputs.image }}"
    memory: 192 MiB
    disks: [64 MiB]
    {boot:}
operations:
  - id: written
    action: wait
    instances: [{word}-one]
    with: {console: "disk written: hello"}
  - id: keep
    action: snapshot
    instances: [{word}-one]
    with: {upload: {store: local, name: kept}}
  - id: born
    action: launch
    instances: [{word}-two]
  - id: inherited
    action: wait
    instances: [{word}-two]
    with: {console: "disk says: hello"}
    timeout: 60s
""",
    )
    ended = lab.shop.run(plan)
    assert ended.code == 0, ended
    (image,) = lab.shop.images()
    blob = next(path for path in (lab.shop.folder / "store").rglob("*") if path.name == image["checksum"][7:])
    assert hashlib.sha256(blob.read_bytes()).hexdigest() == image["checksum"].removeprefix("sha256:")
    assert blob.stat().st_size == image["size"]
    base = next(name for name in lab.host.files() if name.endswith(".qcow2") and image["checksum"][7:] not in name)
    assert hashlib.sha256((lab.host.folder / base).read_bytes()).hexdigest() == base.split(".")[1]
    with lab.host.door() as connection:
        described = connection.lookupByName(f"{lab.word}-one").XMLDesc()
    run = ended.document["run"]["id"]
    for mark in (f"{lab.word}-clone", f"{lab.word}-one", run):
        assert mark in described
    assert not [name for name in lab.volumes() if "snapshot" in name]
    assert lab.shop.planvirt("destroy", plan, "--yes").code == 0
    assert lab.domains() == set()
    assert lab.volumes() == set()


def test_a_failing_last_step_leaves_nothing(lab: Lab) -> None:
    plan = lab.plan(
        "doomed",
        PAIR
        + """\
operations:
  - {id: keep, action: snapshot, instances: [{word}-one], with: {upload: {store: local, name: doomed}}}
  - {id: never, action: wait, instances: [{word}-one], with: {console: this never comes}, timeout: 2s}
""",
    )
    ended = lab.shop.run(plan)
    assert ended.code == 1, ended
    assert ended.document["run"]["state"] == "rolled_back"
    assert "this never comes" in ended.document["run"]["error"]["details"]
    assert lab.domains() == set()
    assert lab.volumes() == set()
    assert lab.shop.images() == []


def test_ctrl_c_during_a_launch_leaves_nothing(lab: Lab) -> None:
    process = lab.shop.begin("run", lab.plan("cut", PAIR), "--yes", "--output", "json")
    until(lambda: bool(lab.domains()), 60)
    interrupt(process)
    ended = lab.shop.finish(process)
    assert ended.code == 1, ended
    assert lab.domains() == set()
    assert lab.volumes() == set()


def test_a_foreign_machine_of_the_same_name_is_refused_and_left_alone(lab: Lab) -> None:
    with lab.host.door() as connection:
        connection.defineXML(
            f"<domain type='qemu'><name>{lab.word}-one</name><memory>65536</memory><os><type>hvm</type></os></domain>"
        )
        before = connection.lookupByName(f"{lab.word}-one").XMLDesc()
        ended = lab.shop.planvirt("run", lab.plan("clash", PAIR), "--yes")
        assert ended.code == 6, ended
        assert "which planvirt did not make" in ended.err
        assert lab.shop.planvirt("destroy", "clash.yaml", "--yes").code == 0
        assert connection.lookupByName(f"{lab.word}-one").XMLDesc() == before
    assert lab.volumes() == set()


def test_an_image_that_is_not_what_the_plan_says_never_reaches_the_hypervisor(lab: Lab) -> None:
    plan = lab.plan("false", PAIR)
    text = (lab.shop.folder / plan).read_text()
    lab.shop.write(plan, text.replace("disk.qcow2}", f"disk.qcow2, checksum: 'sha256:{'0' * 64}'}}"))
    ended = lab.shop.run(plan)
    assert ended.code == 1, ended
    assert "checksum" in ended.err
    assert lab.domains() == set()
    assert not [name for name in lab.host.files() if name.startswith("planvirt-image.")]


def test_a_missing_image_is_told_at_its_line(lab: Lab) -> None:
    plan = lab.plan("gone", PAIR)
    lab.shop.write(plan, (lab.shop.folder / plan).read_text().replace("disk.qcow2", "no.qcow2"))
    ended = lab.shop.planvirt("run", plan, "--yes")
    assert ended.code == 2
    assert f"{plan}:4:" in ended.err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_store_without_space_undoes_the_run(lab: Lab) -> None:
    store = lab.shop.folder / "store"
    store.mkdir()
    subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(store)], check=True)
    try:
        plan = lab.plan(
            "full",
            PAIR.replace("planvirt.write=hello", "planvirt.fill=4")
            + """\
operations:
  - {id: filled, action: wait, instances: [{word}-one], with: {console: "disk filled: 4 MiB"}, timeout: 60s}
  - {id: keep, action: snapshot, instances: [{word}-one], with: {upload: {store: local, name: full}}}
""",
        )
        ended = lab.shop.run(plan)
        assert ended.code == 1, ended
        assert "space" in str(ended.document["run"]["error"])
        assert lab.domains() == set()
        assert lab.volumes() == set()
        assert lab.shop.images() == []
        assert not [path for path in store.rglob("*") if path.is_file() and path.stat().st_size > 4096]
    finally:
        subprocess.run(["/bin/umount", str(store)], check=True)


def test_power_verbs(lab: Lab) -> None:
    plan = lab.plan(
        "power",
        PAIR
        + """\
operations:
  - {action: reboot, instances: [{word}-one], with: {kind: soft}, timeout: 60s}
  - {action: wait, instances: [{word}-one], with: {console: planvirt guest up}, timeout: 60s}
  - {action: stop, instances: [{word}-one], with: {grace: 30s}}
  - {action: start, instances: [{word}-one]}
  - {action: reboot, instances: [{word}-one], with: {kind: hard}, timeout: 60s}
  - {action: stop, instances: [{word}-one], with: {grace: 1s, force: true}}
""",
    )
    ended = lab.shop.run(plan)
    assert ended.code == 0, ended
    waited = next(step for step in ended.document["run"]["steps"] if step["action"] == "wait")
    assert waited["ended"] - waited["started"] > 0.5  # it was not content with what the guest said before its reboot
    forced = [step["outputs"]["forced"] for step in ended.document["run"]["steps"] if step["action"] == "stop"]
    assert forced[0] is False
    (found,) = [
        item
        for item in lab.shop.planvirt("instances", "--output", "json").document["instances"]
        if item["name"] == f"{lab.word}-one"
    ]
    assert found["state"] == "stopped"


def test_a_guest_that_ignores_its_button_fails_the_stop_unless_force_is_allowed(lab: Lab) -> None:
    plan = lab.plan(
        "deaf",
        PAIR.replace("planvirt.write=hello", "planvirt.ignore-acpi")
        + "operations:\n  - {action: stop, instances: [{word}-one], with: {grace: 3s}}\n",
    )
    ended = lab.shop.run(plan)
    assert ended.code == 1, ended
    assert "did not shut down within 3 s" in ended.document["run"]["error"]["brief"]
    assert lab.domains() == set()
    lab.shop.write(plan, (lab.shop.folder / plan).read_text().replace("grace: 3s", "grace: 3s, force: true"))
    assert lab.shop.run(plan).code == 0


def test_waiting_for_an_address_and_a_port(lab: Lab) -> None:
    with lab.host.door() as connection:
        if "default" not in connection.listNetworks():
            pytest.skip("libvirt's network 'default' is not active on this machine")
    plan = lab.plan(
        "net",
        PAIR.replace("console: planvirt guest up, within: 90s", "port: 8080, within: 90s").replace(
            "    image: tiny\n", "    image: tiny\n    networks: [default]\n"
        )
        + "operations:\n  - {id: up, action: wait, instances: [{word}-one], with: {address: true, port: 8080}}\n",
    )
    ended = lab.shop.run(plan)
    assert ended.code == 0, ended
    (address,) = ended.document["run"]["steps"][0]["outputs"]["addresses"]
    assert address.count(".") == 3


STILL = """\
instances:
  {word}-one:
    image: tiny
    memory: 192 MiB
    disks: [64 MiB]
    ready: {console: heartbeat 1, within: 90s}
    {boot:planvirt.heartbeat=1}
  {word}-two:
    image: tiny
    memory: 192 MiB
    disks: [64 MiB]
    ready: {console: heartbeat 1, within: 90s}
    {boot:planvirt.heartbeat=1}
"""


def test_guests_stand_still_and_go_on_where_they_were(lab: Lab) -> None:
    def beats(name: str) -> list[int]:
        lines = lab.host.compute.console(f"{lab.word}-{name}").splitlines()
        return [int(line.split()[1]) for line in lines if line.startswith("heartbeat ")]

    def goes_on(name: str, last: int) -> None:
        until(lambda: beats(name)[-1] > last)

    def states() -> set[str]:
        found = lab.shop.planvirt("instances", "--output", "json").document["instances"]
        return {item["state"] for item in found if item["name"].startswith(lab.word)}

    assert lab.shop.run(lab.plan("still", STILL)).code == 0
    plan = lab.plan(
        "still",
        STILL
        + """\
operations:
  - {action: pause, instances: [{word}-one]}
  - {action: suspend, instances: [{word}-two]}
  - {action: sleep, instances: [{word}-one, {word}-two], with: {for: 2s}}
  - {id: never, action: wait, instances: [{word}-one], with: {console: this never comes}, timeout: 1s}
""",
    )
    ended = lab.shop.run(plan)
    assert ended.document["run"]["state"] == "rolled_back", ended
    assert states() == {"running"}
    for name in ("one", "two"):
        goes_on(name, beats(name)[-1] + 1)
        assert beats(name) == list(range(1, len(beats(name)) + 1))  # neither booted again, and no line is lost
    lab.shop.write(plan, (lab.shop.folder / plan).read_text().replace("  - {id: never", "  #"))
    assert lab.shop.run(plan).code == 0
    assert states() == {"paused", "suspended"}
    before = {name: beats(name)[-1] for name in ("one", "two")}
    plan = lab.plan(
        "still",
        STILL
        + """\
operations:
  - {action: unpause, instances: [{word}-one]}
  - {action: resume, instances: [{word}-two]}
  - {action: lock, instances: [{word}-one]}
""",
    )
    ended = lab.shop.run(plan)
    assert ended.code == 0, ended
    for name, last in before.items():
        goes_on(name, last)
    refused = lab.shop.planvirt("destroy", plan, "--yes")
    assert refused.code == 6
    assert f"{lab.word}-one is locked" in refused.err
    assert states() == {"running"}
    lab.shop.write(plan, lab.shop.folder.joinpath(plan).read_text().partition("operations:")[0])
    lab.host.compute.note(f"{lab.word}-one", Note.LOCKED, None)
    assert lab.shop.planvirt("destroy", plan, "--yes").code == 0
    assert lab.volumes() == set()
