"""The simulated host: faults on demand, strictness, guests with manners, and one world for several processes."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from drivers.compute import AttachedDisk, Domain
from drivers.errors import DriverError, HostUnreachable, NameTaken, NotFound, OutOfSpace, Transient, Unsupported
from drivers.simulated import Fault, SimulatedCompute
from planvirt.deadline import Deadline, DeadlinePassed
from planvirt.errors import Conflict
from planvirt.mark import Mark, instance_uuid
from planvirt.plan import Nic
from planvirt.states import State

MIB = 1 << 20
ROOT = Path(__file__).parents[2]


def mark(name: str = "web") -> Mark:
    return Mark("tier", name, "r1", "5bec" * 16)


def make(compute: SimulatedCompute, name: str = "web", *, start: bool = True) -> str:
    disk = mark(name).volume("boot")
    compute.create_volume(disk, size=MIB, format="qcow2", base=None, deadline=Deadline())
    nics = [Nic("user")]
    domain = Domain(name, instance_uuid("tier", name), 1, MIB, mark(name), disks=[AttachedDisk(disk)], nics=nics)
    compute.define(domain)
    if start:
        compute.start(name)
    return name


def state(compute: SimulatedCompute, name: str = "web") -> State | None:
    facts = compute.instance(name)
    return None if facts is None else facts.state


@pytest.fixture(params=["memory", "file"])
def compute(request: pytest.FixtureRequest, tmp_path: Path) -> SimulatedCompute:
    if request.param == "memory":
        return SimulatedCompute.in_memory("host")
    return SimulatedCompute.in_file("host", tmp_path / "world.json")


def test_it_never_claims_to_be_a_hypervisor(compute: SimulatedCompute) -> None:
    facts = compute.facts()
    assert (facts.hypervisor, facts.accel) == ("simulated", "none")
    assert facts.uri.startswith("simulated:")


# Faults


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        (None, Transient),
        ("transient", Transient),
        ("error", DriverError),
        ("conflict", Conflict),
        ("name-taken", NameTaken),
        ("not-found", NotFound),
        ("unreachable", HostUnreachable),
        ("unsupported", Unsupported),
        ("out-of-space", OutOfSpace),
    ],
)
def test_a_call_fails_as_it_was_told_and_then_no_more(
    compute: SimulatedCompute, word: str | None, kind: type[Exception]
) -> None:
    make(compute, start=False)
    compute.fail("start", times=2, error=word)
    for _ in range(2):
        with pytest.raises(kind) as caught:
            compute.start("web")
        assert type(caught.value) is kind
        assert state(compute) is State.STOPPED
    compute.start("web")
    assert state(compute) is State.RUNNING


def test_a_fault_is_for_one_name(compute: SimulatedCompute) -> None:
    make(compute, "web", start=False)
    make(compute, "db", start=False)
    compute.fail("start", name="db", times=None)
    compute.start("web")
    for _ in range(3):
        with pytest.raises(Transient):
            compute.start("db")
    assert (state(compute, "web"), state(compute, "db")) == (State.RUNNING, State.STOPPED)


def test_a_fault_after_the_effect_leaves_the_effect(compute: SimulatedCompute) -> None:
    make(compute, start=False)
    compute.fail("start", at="after")
    with pytest.raises(Transient):
        compute.start("web")
    assert state(compute) is State.RUNNING


def test_a_host_that_cannot_be_reached_answers_no_call(compute: SimulatedCompute) -> None:
    make(compute)
    compute.fail("*", times=None, error="unreachable")
    calls: tuple[Callable[[], object], ...] = (
        compute.capabilities,
        compute.facts,
        compute.instances,
        compute.volumes,
        lambda: compute.instance("web"),
        lambda: compute.power_off("web"),
        lambda: compute.console("web"),
    )
    for call in calls:
        with pytest.raises(HostUnreachable):
            call()
    with compute.world() as world:
        world.faults.clear()
    assert state(compute) is State.RUNNING


def test_a_copy_that_fails_on_the_way_leaves_nothing(compute: SimulatedCompute) -> None:
    make(compute)
    target = mark().volume("copy")
    compute.fail("export_disks", at="during", error="error")
    with pytest.raises(DriverError):
        compute.export_disks("web", {mark().volume("boot"): target}, deadline=Deadline())
    assert target not in {volume.name for volume in compute.volumes()}


def test_a_copy_takes_its_time_and_ends_when_nobody_waits(compute: SimulatedCompute) -> None:
    make(compute)
    target, boot = mark().volume("copy"), mark().volume("boot")
    with compute.world() as world:
        world.copy_seconds = 0.2
    told: list[tuple[int, int]] = []
    deadline = Deadline(on_progress=lambda *now: told.append(now))
    compute.export_disks("web", {boot: target}, deadline=deadline)
    assert len(told) > 2
    compute.delete_volume(target)
    impatient: Deadline = Deadline(on_progress=lambda _done, _total: impatient.cancel())
    for deadline in (impatient, Deadline(0.05)):
        with pytest.raises(DeadlinePassed):
            compute.export_disks("web", {boot: target}, deadline=deadline)
        assert target not in {volume.name for volume in compute.volumes()}


def test_a_hanging_call_ends_with_its_deadline(compute: SimulatedCompute) -> None:
    make(compute)
    compute.fail("reboot", hang=60.0)
    begun = time.monotonic()
    with pytest.raises(DeadlinePassed):
        compute.reboot("web", "hard", Deadline(0.1))
    assert time.monotonic() - begun < 30
    assert "reboot web" not in compute.events()


def test_a_hang_is_only_a_delay(compute: SimulatedCompute) -> None:
    make(compute, start=False)
    compute.fail("start", hang=0.01)
    compute.start("web")
    assert state(compute) is State.RUNNING


# Strictness


def test_a_volume_in_use_is_not_deleted(compute: SimulatedCompute) -> None:
    make(compute)
    with pytest.raises(Conflict):
        compute.delete_volume(mark().volume("boot"))
    compute.set_aside("web", "r1")
    with pytest.raises(Conflict):
        compute.delete_volume(mark().volume("boot"))
    assert mark().volume("boot") in {volume.name for volume in compute.volumes()}
    compute.delete_set_aside("web", "r1")
    compute.delete_volume(mark().volume("boot"))
    assert list(compute.volumes()) == []


def test_a_volume_without_a_mark_is_not_made(compute: SimulatedCompute) -> None:
    with pytest.raises(DriverError):
        compute.create_volume("disk.qcow2", size=MIB, format="qcow2", base=None, deadline=Deadline())
    make(compute)
    with pytest.raises(DriverError):
        compute.export_disks("web", {mark().volume("boot"): "copy.qcow2"}, deadline=Deadline())
    with compute.world() as world:
        assert set(world.volumes) == {mark().volume("boot")}


def test_what_is_set_aside_is_left_alone(compute: SimulatedCompute) -> None:
    make(compute)
    compute.set_aside("web", "r1")
    (aside,) = compute.instances()
    for call in (compute.start, compute.power_off, compute.request_shutdown, compute.undefine):
        with pytest.raises(Conflict):
            call(aside.name)
    assert list(compute.instances()) == [aside]


@pytest.mark.parametrize("odd", [State.PAUSED, State.SUSPENDED, State.ERROR])
def test_only_a_stopped_instance_starts(compute: SimulatedCompute, odd: State) -> None:
    make(compute)
    with compute.world() as world:
        world.instances["web"].state = odd
    for call in (compute.start, compute.request_shutdown):
        with pytest.raises(Conflict, match=str(odd)):
            call("web")
    assert state(compute) is odd
    compute.power_off("web")
    compute.start("web")


def test_a_full_pool_takes_no_copy(compute: SimulatedCompute) -> None:
    make(compute)
    compute.write_disk(mark().volume("boot"), b"x" * 1000)
    with compute.world() as world:
        world.space = 999
    with pytest.raises(OutOfSpace):
        compute.export_disks("web", {mark().volume("boot"): mark().volume("copy")}, deadline=Deadline())
    assert [volume.name for volume in compute.volumes()] == [mark().volume("boot")]


# Guests


def test_guests_take_their_time(tmp_path: Path) -> None:
    now = [1000.0]
    world = SimulatedCompute.in_file("host", tmp_path / "world.json")
    compute = SimulatedCompute("host", world._worlds, clock=lambda: now[0])
    with compute.world() as at_first:
        at_first.guests["*"] = {"boot_seconds": 5.0, "shutdown_seconds": 3.0, "console": "{name} says hello\n"}
    make(compute)
    assert (compute.console("web"), list(compute.addresses("web"))) == ("", [])
    now[0] += 5
    assert compute.console("web") == "web says hello\n"
    assert len(compute.addresses("web")) == 2
    compute.request_shutdown("web")
    now[0] += 2
    compute.request_shutdown("web")  # asking twice does not make it later
    assert state(compute) is State.RUNNING
    now[0] += 1
    assert state(compute) is State.STOPPED
    assert list(compute.addresses("web")) == []


def test_a_guest_of_its_own_manners(compute: SimulatedCompute) -> None:
    make(compute, "web")
    make(compute, "db")
    with compute.world() as world:
        world.guests["db"] = {"ignores_shutdown": True, "addresses": ["127.0.0.1"]}
    for name in ("web", "db"):
        compute.request_shutdown(name)
    assert (state(compute, "web"), state(compute, "db")) == (State.STOPPED, State.RUNNING)
    assert compute.addresses("db") == ("127.0.0.1",)


def test_a_freeze_needs_an_agent_and_always_ends(compute: SimulatedCompute) -> None:
    make(compute)
    target = mark().volume("copy")
    compute.export_disks("web", {mark().volume("boot"): target}, quiesce=True, deadline=Deadline())
    compute.fail("export_disks", at="during")
    with pytest.raises(Transient):
        compute.export_disks("web", {mark().volume("boot"): target}, quiesce=True, deadline=Deadline())
    assert compute.events().count("freeze web") == compute.events().count("thaw web") == 2
    with compute.world() as world:
        world.guests["web"] = {"agent": False}
    with pytest.raises(DriverError):
        compute.export_disks("web", {mark().volume("boot"): target}, quiesce=True, deadline=Deadline())


def test_events_tell_what_took_effect(compute: SimulatedCompute) -> None:
    make(compute)
    compute.start("web")
    compute.fail("power_off")
    with pytest.raises(Transient):
        compute.power_off("web")
    compute.power_off("web")
    compute.power_off("web")
    assert compute.events() == [f"create_volume {mark().volume('boot')}", "define web", "start web", "power_off web"]


# One world, several processes


def child(code: str, world: Path) -> "subprocess.Popen[str]":
    prelude = (
        "import sys\nfrom pathlib import Path\nfrom drivers.simulated import SimulatedCompute\n"
        "from planvirt.deadline import Deadline\nfrom planvirt.mark import Mark\n"
        "compute = SimulatedCompute.in_file('host', Path(sys.argv[1]))\n"
        "mark = lambda name: Mark('tier', name, 'r1', '5bec' * 16)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", prelude + code, str(world)], cwd=ROOT, text=True, stderr=subprocess.PIPE
    )


def finish(process: "subprocess.Popen[str]") -> int:
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode


def test_processes_see_each_others_work(tmp_path: Path) -> None:
    compute = SimulatedCompute.in_file("host", tmp_path / "world.json")
    make(compute)
    assert finish(child("compute.power_off('web')", tmp_path / "world.json")) == 0
    assert state(compute) is State.STOPPED


def test_no_work_is_lost_between_processes(tmp_path: Path) -> None:
    code = """
import os
for number in range(25):
    name = mark(f"web-{os.getpid()}-{number}").volume("boot")
    compute.create_volume(name, size=512, format="qcow2", base=None, deadline=Deadline())
"""
    for process in [child(code, tmp_path / "world.json") for _ in range(4)]:
        assert finish(process) == 0
    compute = SimulatedCompute.in_file("host", tmp_path / "world.json")
    assert len(compute.volumes()) == len(compute.events()) == 100


@pytest.mark.parametrize(("at", "left"), [("before", State.STOPPED), ("after", State.RUNNING)])
def test_a_process_dies_at_a_call_and_its_world_stays(tmp_path: Path, at: str, left: State) -> None:
    compute = SimulatedCompute.in_file("host", tmp_path / "world.json")
    make(compute, start=False)
    compute.fail("start", kill=True, at=at)  # type: ignore[arg-type] # a parameter
    assert finish(child("compute.start('web')", tmp_path / "world.json")) == -signal.SIGKILL
    assert state(compute) is left
    assert finish(child("compute.start('web')", tmp_path / "world.json")) == 0
    assert state(compute) is State.RUNNING


def test_a_copy_whose_process_dies_is_half_made_and_can_be_repeated(tmp_path: Path) -> None:
    compute = SimulatedCompute.in_file("host", tmp_path / "world.json")
    make(compute)
    compute.write_disk(mark().volume("boot"), b"data")
    compute.fail("export_disks", kill=True, at="during")
    code = "compute.export_disks('web', {mark('web').volume('boot'): mark('web').volume('copy')}, deadline=Deadline())"
    assert finish(child(code, tmp_path / "world.json")) == -signal.SIGKILL
    with compute.world() as world:
        assert world.volumes[mark().volume("copy")].partial
    assert mark().volume("copy") in {volume.name for volume in compute.volumes()}  # so that it can be found
    assert finish(child(code, tmp_path / "world.json")) == 0
    with compute.world() as world:
        assert world.content(mark().volume("copy")) == b"data"


def test_a_person_may_write_the_world(tmp_path: Path) -> None:
    path = tmp_path / "world.json"
    path.write_text('{"faults": [{"call": "start", "name": "web", "times": 1, "error": "conflict"}]}')
    compute = SimulatedCompute.in_file("host", path)
    make(compute, start=False)
    with pytest.raises(Conflict):
        compute.start("web")
    compute.start("web")
    with compute.world() as world:
        assert world.faults == [Fault("start", "web", 0, "conflict")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"instances": {"web": {}}}',
        '{"instances": {"web": {"name": "web", "uuid": "x", "state": "odd"}}}',
        '{"faults": [{"cal": "start"}]}',
        '{"guests": {"*": {"boot_second": 1}}}',
        '{"no": "such key"}',
    ],
)
def test_a_damaged_world_is_named_and_kept(tmp_path: Path, text: str) -> None:
    path = tmp_path / "world.json"
    path.write_text(text)
    with pytest.raises(DriverError) as caught:
        SimulatedCompute.in_file("host", path).instances()
    assert str(path) in caught.value.brief
    assert path.read_text() == text


def test_reading_does_not_write(tmp_path: Path) -> None:
    path = tmp_path / "world.json"
    compute = SimulatedCompute.in_file("host", path)
    make(compute)
    before = path.stat().st_ino
    compute.instances()
    compute.console("web")
    compute.start("web")
    assert path.stat().st_ino == before
    assert json.loads(path.read_text())["instances"]["web"]["state"] == "running"
