"""What the guest's real agent is for: running programs in the guest, and freezing its file systems for a snapshot."""

import os
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import libvirt
import libvirt_qemu
import pytest

from drivers.compute import AttachedDisk, Domain, Executed
from drivers.errors import DriverError, NameTaken, NoAgent, NotFound, NotFrozen, Transient, Unsupported
from drivers.libvirt.agent import understood
from drivers.libvirt.driver import LibvirtCompute
from planvirt.config import HostConfig
from planvirt.deadline import Deadline, DeadlinePassed
from planvirt.errors import Conflict, PlanvirtError
from planvirt.mark import Mark, instance_uuid
from planvirt.states import State
from tests.drivers.libvirt_host import Guest, QemuHost, local_image, qemu_host, sha256_of

pytestmark = pytest.mark.real

MIB = 1 << 20
BIG = 512 * MIB  # takes longer to copy than the driver waits between two looks
LIBVIRT = Path("/run/libvirt/libvirt-sock")


class Later(threading.Event):
    """An interruption that comes between the first and the second look."""

    def __init__(self) -> None:
        super().__init__()
        self._looks = 0

    def is_set(self) -> bool:
        self._looks += 1
        return self._looks > 1


@dataclass(frozen=True)
class Machine:
    """An instance and what its guest is asked for."""

    qemu: QemuHost
    name: str

    @property
    def mark(self) -> Mark:
        return Mark("agent", self.name, "r1", "5bec" * 16, "c0ffee")

    def define(self, guest: Guest, cmdline: str, *disks: str) -> None:
        kernel, initrd = guest.imported(self.qemu.compute)
        self.qemu.compute.define(
            Domain(
                name=self.name,
                uuid=instance_uuid(self.mark.plan, self.name),
                vcpus=1,
                memory=192 * MIB,
                mark=self.mark,
                disks=[AttachedDisk(disk) for disk in disks],
                kernel=kernel,
                initrd=initrd,
                cmdline=f"console=ttyS0 quiet planvirt.name={self.name} {cmdline}",
            )
        )

    def disk(self, name: str, size: int, base: str | None = None) -> str:
        volume = self.mark.volume(name)
        self.qemu.compute.create_volume(volume, size=size, format="qcow2", base=base, deadline=Deadline(60))
        return volume

    def start(self) -> None:
        self.qemu.compute.start(self.name)
        end = time.monotonic() + 60
        while f"planvirt guest up: {self.name}" not in (console := self.qemu.compute.console(self.name)):
            assert time.monotonic() < end, console
            time.sleep(0.1)

    def run(self, *command: str, stdin: bytes = b"", deadline: Deadline | None = None) -> Executed:
        return self.qemu.compute.execute(self.name, command, stdin, deadline or Deadline(60))

    def export(self, disk: str, deadline: Deadline | None = None) -> Path:
        """Have the disk copied while the guest's file systems are frozen."""
        copy = self.mark.volume("copy")
        self.qemu.compute.export_disks(self.name, {disk: copy}, quiesce=True, deadline=deadline or Deadline(60))
        return self.qemu.folder / copy

    def number(self, disk: str) -> int:
        """What stands at the start of a disk, as the guest sees it."""
        text = self.run("sh", "-c", f"dd if=/dev/{disk} bs=8 count=1 2>/dev/null").stdout.strip(b"\0")
        return int(text) if text.isdigit() else 0

    def freezes(self) -> list[str]:
        """What the guest was told about its file systems so far."""
        lines = self.qemu.compute.console(self.name).splitlines()
        return [line.removeprefix("file systems: ") for line in lines if line.startswith("file systems: ")]

    def freeze_status(self) -> str:
        with self.qemu.door() as connection:
            domain = connection.lookupByName(self.name)
            return str(libvirt_qemu.qemuAgentCommand(domain, '{"execute": "guest-fsfreeze-status"}', 20, 0))


def flat(copy: Path, folder: Path) -> Path:
    """The disk that a copy holds."""
    plain = folder / f"{copy.name}.raw"
    subprocess.run(["/usr/bin/env", "qemu-img", "convert", "-O", "raw", copy, plain], check=True)
    return plain


class Relay:
    """A way to the host's libvirt that can be cut."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.uri = f"qemu+unix:///system?socket={path}"
        self._server = socket.socket(socket.AF_UNIX)
        self._open: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._server.bind(str(self.path))
        self._server.listen()
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()
        self._hang_up()

    def _serve(self) -> None:
        with suppress(OSError):  # the end
            while True:
                near, far = self._server.accept()[0], socket.socket(socket.AF_UNIX)
                far.connect(str(LIBVIRT))
                self._open += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):  # it was cut
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def _hang_up(self) -> None:
        for each in self._open:
            with suppress(OSError):  # the other side was faster
                each.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        self.path.rename(self.path.with_suffix(".cut"))
        self._hang_up()

    def join(self) -> None:
        self.path.with_suffix(".cut").rename(self.path)


@pytest.fixture(scope="module")
def host() -> Iterator[QemuHost]:
    with qemu_host() as host:
        yield host


@pytest.fixture(scope="module")
def machine(host: QemuHost, guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A guest whose agent answers, with a disk that takes its time and one that bears a mounted file system."""
    image = tmp_path_factory.mktemp("images") / "big.raw"
    block = os.urandom(MIB)
    with image.open("wb") as file:
        for number in range(BIG // MIB):
            file.write(number.to_bytes(8, "big") + block[8:])
    base = host.compute.import_image(local_image(image, "raw", BIG), Deadline(60)).name
    image.unlink()
    machine = Machine(host, f"{host.pool}-vm")
    machine.define(guest, "planvirt.mount", machine.disk("boot", BIG, base), machine.disk("data", 16 * MIB))
    machine.start()
    return machine


@pytest.fixture(scope="module")
def silent(host: QemuHost, guest: Guest) -> Machine:
    """A guest that has no agent."""
    silent = Machine(host, f"{host.pool}-silent")
    silent.define(guest, "planvirt.no-agent", silent.disk("boot", 8 * MIB))
    silent.start()
    return silent


# Programs


def test_a_program_says_how_it_ended_and_what_it_wrote(machine: Machine) -> None:
    assert machine.run("sh", "-c", "echo out; echo err >&2; exit 7") == Executed(7, b"out\n", b"err\n")
    assert machine.run("true") == Executed(0, b"", b"")
    assert machine.run("sh", "-c", "kill -9 $$").exit_code == 137


@pytest.mark.parametrize(
    "word", ["two words", 'it\'s "quoted"', "$HOME", "a;b|c>d*", "back\\slash", "", "Grüße\n", "-n"]
)
def test_arguments_arrive_as_they_are(machine: Machine, word: str) -> None:
    assert machine.run("printf", "%s|", word, "end").stdout == f"{word}|end|".encode()


def test_a_program_reads_its_input(machine: Machine) -> None:
    everything = bytes(range(256)) * 300
    assert machine.run("cat", stdin=everything) == Executed(0, everything, b"")
    assert machine.run("cat") == Executed(0, b"", b"")


def test_what_libvirt_cannot_carry_is_refused_and_the_agent_still_answers(machine: Machine) -> None:
    with pytest.raises(DriverError, match="too large"):
        machine.run("cat", stdin=bytes(100_000))
    with pytest.raises(DriverError) as caught:
        machine.run("head", "-c", "3500000", "/dev/zero")
    assert "write less" in caught.value.resolution and not isinstance(caught.value, Transient)
    assert len(machine.run("head", "-c", "2500000", "/dev/zero").stdout) == 2_500_000


def test_a_program_that_is_not_there_is_told_of_in_the_agents_words(machine: Machine) -> None:
    with pytest.raises(DriverError, match="No such file or directory") as caught:
        machine.run("/no/such/program")
    assert not isinstance(caught.value, Transient)
    assert caught.value.brief == f"cannot run /no/such/program in {machine.name}"


def test_a_program_is_killed_when_its_time_is_up(machine: Machine) -> None:
    with pytest.raises(DeadlinePassed):
        machine.run(
            "sh", "-c", "trap '' TERM; touch /run/began; while true; do usleep 100000; done", deadline=Deadline(2)
        )
    assert machine.run("rm", "/run/began").exit_code == 0
    assert "/run/began" not in machine.run("ps").stdout.decode()


def test_a_program_goes_on_while_the_host_cannot_be_reached(machine: Machine, tmp_path: Path) -> None:
    host = machine.qemu
    with Relay(tmp_path / "socket") as relay:
        config = HostConfig("host", uri=relay.uri, accel="tcg", pool=host.pool, pool_path=host.folder)
        far = Machine(replace(host, compute=LibvirtCompute(config, tmp_path)), machine.name)
        with ThreadPoolExecutor(1) as pool:
            ended = pool.submit(
                far.run, "sh", "-c", "touch /run/begun; while [ -e /run/begun ]; do usleep 100000; done"
            )
            while machine.run("test", "-e", "/run/begun").exit_code:
                time.sleep(0.1)
            relay.cut()
            time.sleep(1)  # the program is looked for meanwhile
            machine.run("rm", "/run/begun")
            assert not ended.done()
            relay.join()
            assert ended.result() == Executed(0, b"", b"")
        far.qemu.compute.close()


def test_a_program_whose_agent_was_started_anew_is_lost(machine: Machine) -> None:
    with pytest.raises(DriverError, match="pid") as caught:
        machine.run("sh", "-c", "kill $(pidof qemu-ga); sleep 5")
    assert "became of the program" in caught.value.resolution
    assert machine.run("echo", "again").stdout == b"again\n"


def test_no_program_is_run_while_the_file_systems_are_frozen(machine: Machine) -> None:
    with machine.qemu.door() as connection:
        domain = connection.lookupByName(machine.name)
        assert domain.fsFreeze() == 1
        try:
            with pytest.raises(Transient, match="frozen"):
                machine.run("true")
        finally:
            domain.fsThaw()
    assert machine.run("true").exit_code == 0


def test_no_program_is_run_in_a_guest_that_stands_still(machine: Machine) -> None:
    with machine.qemu.door() as connection:
        domain = connection.lookupByName(machine.name)
        domain.suspend()
        try:
            with pytest.raises(Conflict, match="it is paused"):
                machine.run("true")
        finally:
            domain.resume()
    assert machine.run("true").exit_code == 0


def test_no_program_is_run_in_a_guest_that_is_off_or_not_there(host: QemuHost, guest: Guest) -> None:
    off = Machine(host, f"{host.pool}-off")
    off.define(guest, "", off.disk("boot", 8 * MIB))
    with pytest.raises(Conflict, match="it is stopped"):
        off.run("true")
    facts = host.compute.instance(off.name)
    assert facts is not None and facts.state is State.STOPPED
    with pytest.raises(NotFound):
        Machine(host, f"{host.pool}-nobody").run("true")


def test_no_program_is_run_in_a_foreign_guest(host: QemuHost) -> None:
    name = f"{host.pool}-foreign"
    with host.door() as connection:
        domain = connection.createXML(
            f"<domain type='qemu'><name>{name}</name><uuid>{uuid.uuid4()}</uuid><memory unit='MiB'>64</memory>"
            "<os><type arch='x86_64'>hvm</type></os></domain>"
        )
        try:
            with pytest.raises(NameTaken, match="planvirt did not make it"):
                Machine(host, name).run("true")
        finally:
            domain.destroy()


def test_a_guest_without_an_agent_may_get_one(silent: Machine) -> None:
    with pytest.raises(NoAgent) as caught:
        silent.run("true")
    assert caught.value.resolution == "install and start qemu-guest-agent in the guest"


@pytest.mark.parametrize(
    ("begun", "code", "text", "kind", "resolution"),
    [
        (False, libvirt.VIR_ERR_AGENT_UNRESPONSIVE, "QEMU guest agent is not connected", NoAgent, "install and start"),
        (
            False,
            libvirt.VIR_ERR_AGENT_UNRESPONSIVE,
            "it is not available due to an error",
            NoAgent,
            "restart the guest",
        ),
        (True, libvirt.VIR_ERR_AGENT_UNRESPONSIVE, "Guest agent not available for now", Transient, "may have begun"),
        (False, libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED, "QEMU guest agent is not configured", Unsupported, ""),
        (True, libvirt.VIR_ERR_INTERNAL_ERROR, "Command guest-exec has been disabled", Unsupported, "allow guest-exec"),
        (True, libvirt.VIR_ERR_SYSTEM_ERROR, "No complete agent response found in 9 bytes", DriverError, "agent in it"),
        (True, libvirt.VIR_ERR_INTERNAL_ERROR, "PID ld does not exist", DriverError, "became of the program"),
        (True, libvirt.VIR_ERR_OPERATION_INVALID, "domain is not running", Conflict, ""),
    ],
)
def test_what_is_said_against_a_command(
    begun: bool, code: int, text: str, kind: type[PlanvirtError], resolution: str
) -> None:
    libvirt.virResetLastError()  # the words of this thread's last error would be taken
    error = libvirt.libvirtError(text)
    error.err = (code, 0, text, 2, None, None, None, 0, 0)
    with pytest.raises(PlanvirtError) as caught, understood("run it", begun=begun):
        raise error
    assert type(caught.value) is kind
    assert (caught.value.brief, caught.value.details) == ("cannot run it", text)
    assert resolution in caught.value.resolution


# Snapshots of frozen file systems


def test_a_guest_is_frozen_for_the_moment_only(machine: Machine, tmp_path: Path) -> None:
    told, word = machine.freezes(), uuid.uuid4().hex
    machine.run("sh", "-c", "cat >/mnt/word", stdin=word.encode())  # the guest alone knows of it for some seconds
    copy = machine.export(machine.mark.volume("data"))
    assert machine.freezes() == [*told, "freeze", "thaw"]
    assert "thawed" in machine.freeze_status()
    assert word.encode() in flat(copy, tmp_path).read_bytes()
    assert machine.run("sh", "-c", "echo more >/mnt/word && sync").exit_code == 0


def test_a_copy_that_runs_out_of_time_leaves_the_guest_thawed(machine: Machine) -> None:
    told, files = machine.freezes(), machine.qemu.files()
    with pytest.raises(DeadlinePassed):
        machine.export(machine.mark.volume("boot"), Deadline(60, interrupted=Later()))
    assert machine.freezes() == [*told, "freeze", "thaw"]
    assert "thawed" in machine.freeze_status()
    assert machine.qemu.files() == files - {machine.mark.volume("copy")}
    assert machine.run("sh", "-c", "echo more >/mnt/word && sync").exit_code == 0


def test_disks_are_copied_as_of_one_moment(machine: Machine, guest: Guest, tmp_path: Path) -> None:
    """The guest writes a number to its first disk, then the same one to its second, then the next to the first …"""
    host = machine.qemu
    boot = machine.mark.volume("boot")
    base = next(volume.base for volume in host.compute.volumes() if volume.name == boot)
    assert base is not None
    pair = Machine(host, f"{host.pool}-pair")
    pair.define(guest, "", pair.disk("boot", BIG, base), pair.disk("data", 16 * MIB))
    pair.start()
    before = sha256_of(host.folder / base)
    put = "printf %08d $n | dd of=/dev/$disk bs=512 count=1 conv=sync,fsync 2>/dev/null"
    loop = f"n=0; while [ -e /run/go ]; do n=$((n + 1)); for disk in vda vdb; do {put}; done; done"
    pair.run("sh", "-c", f"touch /run/go; ({loop}) </dev/null >/dev/null 2>&1 &")
    while pair.number("vdb") < 3:
        time.sleep(0.1)
    first = pair.number("vdb")
    copies = {pair.mark.volume(disk): pair.mark.volume(f"copy-{disk}") for disk in ("data", "boot")}
    host.compute.export_disks(pair.name, copies, deadline=Deadline(120))
    last = pair.number("vda")
    pair.run("rm", "/run/go")

    assert sha256_of(host.folder / base) == before
    second, one = (int(flat(host.folder / copy, tmp_path).read_bytes()[:8]) for copy in copies.values())
    assert one - second in (0, 1)
    assert first <= second and one < last  # it wrote before the copy and while it was made
    facts = host.compute.instance(pair.name)
    assert facts is not None and facts.state is State.RUNNING
    host.compute.undefine(pair.name)


def test_a_guest_that_freezes_too_late_is_thawed_all_the_same(machine: Machine) -> None:
    files = machine.qemu.files()
    machine.run("sh", "-c", "cp /etc/fsfreeze /run/hook; echo '[ $1 = thaw ] || sleep 23' >>/etc/fsfreeze")
    try:
        with pytest.raises(NotFrozen) as caught:
            machine.export(machine.mark.volume("data"))
    finally:
        machine.run("cp", "/run/hook", "/etc/fsfreeze")
    assert "cannot freeze" in str(caught.value)
    assert machine.freezes()[-2:] == ["freeze", "thaw"]
    assert "thawed" in machine.freeze_status()
    assert machine.qemu.files() <= files
    assert machine.run("sh", "-c", "echo more >/mnt/word && sync").exit_code == 0


def test_what_a_dead_process_has_left_frozen_is_thawed(machine: Machine) -> None:
    with machine.qemu.door() as connection:
        assert connection.lookupByName(machine.name).fsFreeze() == 1
    assert "frozen" in machine.freeze_status()
    for _ in range(2):
        machine.qemu.compute.thaw(machine.name)
        assert "thawed" in machine.freeze_status()
    assert machine.run("sh", "-c", "echo more >/mnt/word && sync").exit_code == 0


def test_there_is_nothing_to_thaw_without_an_agent(silent: Machine) -> None:
    silent.qemu.compute.thaw(silent.name)


def test_a_freeze_without_an_agent_fails_and_leaves_nothing(silent: Machine) -> None:
    files = silent.qemu.files()
    with pytest.raises(NotFrozen, match="cannot freeze") as caught:
        silent.export(silent.mark.volume("boot"))
    assert "qemu-guest-agent" in caught.value.resolution
    assert silent.qemu.files() == files
    with silent.qemu.door() as connection:
        assert not connection.lookupByName(silent.name).jobStats().get("type")
