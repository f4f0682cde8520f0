"""Whole runs in hard times: libvirtd dies beneath them, or no space is left."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from planvirt.deadline import Deadline
from tests.drivers.libvirt_host import Guest, qemu_host
from tests.drivers.private_libvirtd import PrivateLibvirtd, private_libvirtd
from tests.flows.lab import Lab, lab_at
from tests.flows.small_disk import small_disk
from tests.flows.workshop import until

pytestmark = pytest.mark.real

MIB = 1 << 20


@pytest.fixture(scope="module")
def daemon() -> Iterator[PrivateLibvirtd]:
    with private_libvirtd() as daemon:
        yield daemon


@pytest.fixture
def lab(tmp_path: Path, prefect_url: str, guest: Guest, daemon: PrivateLibvirtd) -> Iterator[Lab]:
    """A lab whose hypervisor is under a daemon of its own."""
    daemon.start()
    with qemu_host(uri=daemon.uri, owner=daemon.user) as host, lab_at(host, tmp_path, prefect_url, guest) as lab:
        yield lab
        daemon.start()


@pytest.fixture
def cramped(tmp_path: Path, prefect_url: str, guest: Guest, daemon: PrivateLibvirtd) -> Iterator[Lab]:
    """The same with a pool of 40 MiB."""
    daemon.start()
    with (
        qemu_host(uri=daemon.uri, owner=daemon.user) as host,
        small_disk(host.folder, 40, daemon.user),
        lab_at(host, tmp_path, prefect_url, guest) as lab,
    ):
        yield lab


# libvirtd dies

PATIENT = "defaults:\n  retry: {attempts: 6, delay: 1s, backoff: 1}\n"
ONE = """\
instances:
  {word}-one:
    image: tiny
    memory: 192 MiB
    disks: [64 MiB]
"""
KEPT = """\
operations:
  - {id: keep, action: snapshot, instances: [{word}-one], with: {upload: {store: local, name: kept}}}
"""


def as_soon_as(process: "subprocess.Popen[str]", holds: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait, with open eyes, until something is so while a command runs."""
    end = time.monotonic() + seconds
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it did not become so in time"
        time.sleep(0.001)


def console(lab: Lab) -> str:
    return "".join(path.read_text(errors="replace") for path in lab.host.folder.glob("planvirt-console.*.log"))


def size_of(lab: Lab, pattern: str) -> int:
    """How much there is of the volume; -1 for none."""
    return max((path.stat().st_size for path in lab.host.folder.glob(pattern)), default=-1)


def crash(daemon: PrivateLibvirtd) -> None:
    """Kill the daemon, and start it again a second later. What its guests do meanwhile, they do in the middle of it."""
    stopped = daemon.guests().values()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    daemon.kill()
    time.sleep(1.0)
    daemon.begin()
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)


def test_a_run_survives_a_daemon_that_dies_while_it_waits_and_while_it_copies(
    lab: Lab, daemon: PrivateLibvirtd
) -> None:
    plan = lab.plan(
        "twice",
        PATIENT
        + ONE
        + "    ready: {console: heartbeat 2, within: 60s}\n    {boot:planvirt.fill=48 planvirt.heartbeat=1}\n"
        + KEPT,
    )
    process = lab.shop.begin("run", plan, "--yes", "--output", "json")
    as_soon_as(process, lambda: "disk filled" in console(lab))
    (pid,) = daemon.guests().values()
    crash(daemon)
    as_soon_as(process, lambda: size_of(lab, "*snapshot*") > 2 * MIB)
    crash(daemon)
    ended = lab.shop.finish(process)
    assert ended.code == 0, ended
    assert all(step["attempts"] > 1 for step in ended.document["run"]["steps"])
    assert daemon.guests() == {f"{lab.word}-one": pid}  # it is the same guest
    assert not [name for name in lab.volumes() if "snapshot" in name]
    (image,) = lab.shop.images()
    assert image["status"] == "active"
    assert image["size"] > 48 * MIB
    assert lab.shop.planvirt("destroy", plan, "--yes").code == 0
    assert_nothing_left(lab, daemon)


def test_a_copy_that_the_daemon_had_only_begun_is_undone_or_made_anew(lab: Lab, daemon: PrivateLibvirtd) -> None:
    plan = lab.plan("begun", PATIENT + ONE + "    ready: {console: guest up, within: 60s}\n    {boot:}\n" + KEPT)
    process = lab.shop.begin("run", plan, "--yes", "--output", "json")
    as_soon_as(process, lambda: size_of(lab, "*snapshot*") >= 0)
    crash(daemon)
    ended = lab.shop.finish(process)
    if ended.code == 0:  # the job was further on than its file looked
        assert lab.shop.planvirt("destroy", plan, "--yes").code == 0
    else:
        assert ended.document["run"]["state"] == "rolled_back", ended
        assert "libvirt has lost sight of an earlier copy" in ended.err
        assert "restart libvirtd" in ended.document["run"]["error"]["resolution"]
        assert lab.shop.images() == []
    assert_nothing_left(lab, daemon)


def test_a_raw_disk_is_whole_although_the_daemon_died_while_it_copied_it(lab: Lab, daemon: PrivateLibvirtd) -> None:
    image = lab.guest.folder / "big.raw"
    image.write_bytes(b"".join(bytes([number]) * MIB for number in range(128)))
    plan = lab.plan(
        "raw",
        f"  big: {{source: {image}, format: raw}}\n{PATIENT}instances:\n"
        "  {word}-one: {image: big, memory: 64 MiB, state: stopped, disks: [{format: raw}]}\n",
    )
    process = lab.shop.begin("run", plan, "--yes", "--output", "json")
    as_soon_as(process, lambda: size_of(lab, f"{lab.word}-raw*") >= 0)
    crash(daemon)
    ended = lab.shop.finish(process)
    assert ended.code == 0, ended
    assert ended.document["run"]["steps"][0]["attempts"] > 1
    (disk,) = lab.host.folder.glob(f"{lab.word}-raw*")
    assert disk.read_bytes() == image.read_bytes()


def test_while_the_daemon_stays_dead_the_rollback_is_incomplete_and_is_finished_later(
    lab: Lab, daemon: PrivateLibvirtd
) -> None:
    plan = lab.plan(
        "dead",
        "defaults:\n  retry: {attempts: 2, delay: 1s}\n"
        + ONE
        + "    ready: {console: guest up, within: 60s}\n    {boot:planvirt.ignore-acpi}\n"
        + "operations:\n  - {id: again, action: reboot, instances: [{word}-one], with: {kind: soft}, timeout: 5m}\n",
    )
    process = lab.shop.begin("run", plan, "--yes", "--output", "json")
    until(lambda: lab.shop.phase(f"again.{lab.word}-one") == "soft reboot", 60)
    time.sleep(1.0)  # it waits for a guest that does not hear it
    daemon.kill()
    began = time.monotonic()
    ended = lab.shop.finish(process)
    assert time.monotonic() - began < 60  # far less than the step's five minutes
    assert ended.code == 3, ended
    run = ended.document["run"]
    assert run["state"] == "rollback_incomplete"
    assert f"instance {lab.word}-one on local" in run["leftovers"]
    assert [left for left in run["leftovers"] if left.startswith(f"volume {lab.word}-dead.{lab.word}-one.root.")]
    assert set(daemon.guests()) == {f"{lab.word}-one"}
    daemon.start()
    finished = lab.shop.planvirt("rollback", run["id"], "--yes")
    assert finished.code == 0, finished
    assert_nothing_left(lab, daemon)


def assert_nothing_left(lab: Lab, daemon: PrivateLibvirtd) -> None:
    assert lab.domains() == set()
    assert lab.volumes() == set()
    assert daemon.guests() == {}


# No space on the host


def test_a_disk_that_does_not_fit_is_told_and_nothing_of_it_stays(cramped: Lab, daemon: PrivateLibvirtd) -> None:
    image = cramped.guest.folder / "large.raw"
    image.write_bytes(b"".join(bytes([number + 1]) * MIB for number in range(24)))
    plan = cramped.plan(
        "large",
        f"  large: {{source: {image}, format: raw}}\ninstances:\n"
        "  {word}-one: {image: large, memory: 64 MiB, state: stopped, disks: [{format: raw}]}\n",
    )
    ended = cramped.shop.run(plan)
    assert ended.code == 1, ended
    assert_no_space(ended.document["run"]["error"])
    assert_nothing_left(cramped, daemon)


# Where its overlay has nothing yet, for some seconds: a write that finds no space stops the guest.
WRITE_ON = """\
n=320
while [ $n -lt 400 ]; do
    dd if=/dev/urandom of=/dev/vda bs=4k seek=$((n * 16)) count=1 conv=fsync
    usleep 30000
    n=$((n + 1))
done
"""


def test_a_copy_that_does_not_fit_is_undone_and_its_guest_goes_on(cramped: Lab, daemon: PrivateLibvirtd) -> None:
    beating = ONE + "    ready: {console: heartbeat 1, within: 60s}\n    {boot:planvirt.fill=12 planvirt.heartbeat=1}\n"
    assert cramped.shop.run(cramped.plan("full", beating)).code == 0
    before = cramped.volumes()
    writing = ["/bin/sh", "-c", f"({WRITE_ON}) >/dev/null 2>&1 &"]
    assert cramped.host.compute.execute(f"{cramped.word}-one", writing, b"", Deadline(20)).exit_code == 0
    ended = cramped.shop.run(cramped.plan("full", beating + KEPT))
    assert ended.code == 1, ended
    assert_no_space(ended.document["run"]["error"])
    assert cramped.volumes() == before
    assert cramped.shop.images() == []
    beats = console(cramped).count("heartbeat")
    until(lambda: console(cramped).count("heartbeat") > beats + 1)
    assert cramped.shop.planvirt("destroy", "full.yaml", "--yes").code == 0
    assert_nothing_left(cramped, daemon)


def assert_no_space(error: dict[str, str]) -> None:
    assert error["brief"].startswith("cannot ")
    assert "no space" in error["brief"] + error["details"].lower()
    assert error["resolution"]
