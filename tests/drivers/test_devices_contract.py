"""What drivers/compute.py promises of changes to an instance that is there: its sizes, disks and network interfaces,
what it boots from, and what is written down about it.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from drivers.compute import AttachedDisk, Sizes
from drivers.errors import NotFound
from planvirt.deadline import Deadline, DeadlinePassed
from planvirt.errors import Conflict
from planvirt.plan import Nic
from planvirt.states import Note, State
from tests.drivers.compute_hosts import (
    MIB,
    Host,
    cancelled,
    content_of,
    image_file,
    require_state,
    wait_for_console,
)

CONTENT = b"planvirt:devices"
NIC = Nic("user", mac="52:54:00:0a:0b:0c")
OTHER_NIC = Nic("user", mac="52:54:00:0a:0b:0d")

# What a guest is given that can become four times as large while it runs.
SMALL, LARGE = Sizes(1, 256 * MIB, 4, 512 * MIB), Sizes(3, 384 * MIB, 4, 512 * MIB)


def every_change(host: Host, name: str) -> tuple[Callable[[], Any], ...]:
    """A call of each method that changes an instance, with what would be well if the instance were another one."""
    compute, boot, spare = host.compute, host.mark().volume("boot"), AttachedDisk(host.volume("spare"))
    return (
        lambda: compute.resize(name, Sizes(2, 512 * MIB, 2, 512 * MIB)),
        lambda: compute.grow_disk(name, boot, 16 * MIB),
        lambda: compute.attach_disk(name, spare),
        lambda: compute.detach_disk(name, spare.volume, host.deadline()),
        lambda: compute.replace_disk(name, boot, spare),
        lambda: compute.attach_nic(name, NIC),
        lambda: compute.detach_nic(name, NIC.mac or "", host.deadline()),
        lambda: compute.rescue(name, spare),
        lambda: compute.unrescue(name),
    )


def every_note(host: Host, name: str) -> tuple[Callable[[], Any], ...]:
    return (
        lambda: host.compute.note(name, Note.RESIZED, "{}"),
        lambda: host.compute.note(name, Note.RESIZED, None),
        lambda: host.compute.set_spec(name, "ab" * 32),
    )


def growing(host: Host, state: State) -> str:
    """An instance that can grow while it runs."""
    require_state(host, state)
    name = host.compute.define(replace(host.domain(), max_vcpus=4, max_memory=512 * MIB)).name
    if state is not State.STOPPED:
        host.compute.start(name)
    if state is State.PAUSED:
        host.pause(name)
    return name


def capacity(host: Host, volume: str) -> int:
    (facts,) = [facts for facts in host.compute.volumes() if facts.name == volume]
    return facts.capacity


# Refusals


def test_a_foreign_instance_keeps_its_hardware(host: Host) -> None:
    name = host.name("other")
    host.add_foreign(name)
    before = host.seen(name)
    for attempt in (*every_change(host, name), *every_note(host, name)):
        with pytest.raises(Conflict):
            attempt()
    assert host.seen(name) == before


def test_what_is_set_aside_keeps_its_hardware(host: Host) -> None:
    name = host.made()
    host.compute.set_aside(name, "r7")
    (before,) = [facts for facts in host.compute.instances() if facts.mark == host.mark()]
    for attempt in (*every_change(host, before.name), *every_note(host, before.name)):
        with pytest.raises(Conflict):
            attempt()
    assert host.seen(before.name) == before
    for attempt in (*every_change(host, name), *every_note(host, name)):
        with pytest.raises(NotFound):
            attempt()


def test_a_saved_memory_fits_its_hardware_only(host: Host) -> None:
    require_state(host, State.SUSPENDED)
    name = host.made(state=State.SUSPENDED)
    before = host.seen(name)
    for attempt in every_change(host, name):
        with pytest.raises(Conflict):
            attempt()
    assert host.seen(name) == before
    assert capacity(host, host.mark().volume("boot")) == 8 * MIB


# Sizes


def test_an_instance_that_is_off_takes_any_size(host: Host) -> None:
    name = host.made()
    before = host.seen(name)
    assert before.sizes == Sizes(1, 256 * MIB, 1, 256 * MIB)
    for sizes in (SMALL, SMALL, LARGE, Sizes(4, 512 * MIB, 4, 512 * MIB), Sizes(1, 192 * MIB, 1, 192 * MIB)):
        host.compute.resize(name, sizes)
        assert host.seen(name) == replace(before, sizes=sizes)
    host.compute.start(name)
    assert host.seen(name).sizes == Sizes(1, 192 * MIB, 1, 192 * MIB)


def test_nothing_is_larger_than_it_can_become(host: Host) -> None:
    name = host.made()
    before = host.seen(name)
    for sizes in (Sizes(2, 256 * MIB, 1, 256 * MIB), Sizes(1, 512 * MIB, 1, 256 * MIB)):
        with pytest.raises(Conflict):
            host.compute.resize(name, sizes)
    assert host.seen(name) == before


@pytest.mark.parametrize("state", [State.RUNNING, State.PAUSED])
def test_a_guest_grows_as_far_as_it_can(host: Host, state: State) -> None:
    name = growing(host, state)
    before = host.seen(name)
    assert before.sizes == SMALL
    for sizes in (LARGE, LARGE, replace(LARGE, memory=320 * MIB)):
        host.compute.resize(name, sizes)
        assert host.seen(name) == replace(before, sizes=sizes)
    settled = host.seen(name)
    for wrong in (
        replace(settled.sizes, vcpus=2),
        replace(settled.sizes, vcpus=5, max_vcpus=5),
        replace(settled.sizes, memory=640 * MIB, max_memory=640 * MIB),
        replace(settled.sizes, vcpus=4, max_memory=640 * MIB),
        replace(settled.sizes, memory=384 * MIB, max_vcpus=3),
    ):
        with pytest.raises(Conflict):
            host.compute.resize(name, wrong)
        assert host.seen(name) == settled
    host.compute.power_off(name)
    assert host.seen(name).sizes == settled.sizes
    host.compute.resize(name, SMALL)
    host.compute.start(name)
    assert host.seen(name).sizes == SMALL


# Disks that grow


@pytest.mark.needs("grow")
@pytest.mark.parametrize("state", [State.STOPPED, State.RUNNING, State.PAUSED])
@pytest.mark.parametrize("format", ["qcow2", "raw"])
def test_a_disk_grows_and_keeps_its_content(
    host: Host, tmp_path: Path, format: Literal["qcow2", "raw"], state: State
) -> None:
    base = host.compute.import_image(image_file(tmp_path, CONTENT, format="qcow2"), host.deadline()).name
    disk = host.volume("boot", base=base, format=format)
    domain = replace(host.domain(disk=disk), disks=[AttachedDisk(disk, format)])
    name = host.compute.define(domain).name
    if state is not State.STOPPED:
        host.compute.start(name)
    if state is State.PAUSED:
        host.pause(name)
    before = host.seen(name)
    for _ in range(2):
        host.compute.grow_disk(name, disk, 16 * MIB)
        assert capacity(host, disk) == 16 * MIB
    with pytest.raises(Conflict):
        host.compute.grow_disk(name, disk, 12 * MIB)
    with pytest.raises(NotFound):
        host.compute.grow_disk(name, host.volume("other"), 16 * MIB)
    assert host.seen(name) == before
    assert capacity(host, disk) == 16 * MIB and capacity(host, host.mark().volume("other")) == 8 * MIB
    host.compute.power_off(name)
    copy = host.mark().volume("copy")
    (made,) = host.compute.export_disks(name, {disk: copy}, deadline=host.deadline())
    assert made.capacity == 16 * MIB
    assert content_of(host.compute.open_volume(copy), tmp_path, "qcow2", len(CONTENT)) == CONTENT


# Disks that come and go


@pytest.mark.needs("devices")
@pytest.mark.parametrize("state", [State.STOPPED, State.RUNNING])
def test_disks_come_and_go(host: Host, state: State) -> None:
    name = host.made(state=state)
    if state is State.RUNNING:
        wait_for_console(host, name)
    before = host.seen(name)
    (boot,) = before.disks
    one, two = AttachedDisk(host.volume("one")), AttachedDisk(host.volume("two", format="raw"), "raw")
    for disk, disks in ((one, (boot, one)), (one, (boot, one)), (two, (boot, one, two)), (one, (boot, one, two))):
        host.compute.attach_disk(name, disk)
        assert host.seen(name) == replace(before, disks=disks)
    for _ in range(2):
        host.compute.detach_disk(name, one.volume, host.deadline())
        assert host.seen(name) == replace(before, disks=(boot, two))
    host.compute.attach_disk(name, one)
    assert host.seen(name) == replace(before, disks=(boot, two, one))
    assert {one.volume, two.volume} <= host.ours()
    host.compute.power_off(name)
    host.compute.start(name)
    assert host.seen(name).disks == (boot, two, one)


@pytest.mark.needs("devices")
@pytest.mark.parametrize("state", [State.STOPPED, State.RUNNING])
def test_several_threads_change_an_instance(host: Host, state: State) -> None:
    name = host.made(state=state)
    before = host.seen(name)
    disks = [AttachedDisk(host.volume(f"disk-{number}")) for number in range(4)]
    with ThreadPoolExecutor(6) as pool:
        work = [pool.submit(host.compute.attach_disk, name, disk) for disk in disks]
        work.append(pool.submit(host.compute.attach_nic, name, NIC))
        work.append(pool.submit(host.compute.note, name, Note.RESIZED, "{}"))
    for each in work:
        each.result()
    after = host.seen(name)
    assert after.disks[0] == before.disks[0] and set(after.disks[1:]) == set(disks)
    assert (after.nics, after.notes) == ((*before.nics, NIC), {str(Note.RESIZED): "{}"})


@pytest.mark.needs("devices")
@pytest.mark.parametrize("bus", ["scsi", "usb", "sata"])
def test_a_disk_comes_on_every_bus(host: Host, bus: str) -> None:
    name = host.made()
    before = host.seen(name)
    disk = AttachedDisk(host.volume("data"), bus=bus)
    host.compute.attach_disk(name, disk)
    assert host.seen(name).disks == (*before.disks, disk)
    host.compute.start(name)
    host.compute.power_off(name)
    host.compute.detach_disk(name, disk.volume, host.deadline())
    assert host.seen(name) == before


@pytest.mark.needs("devices")
def test_the_boot_disk_stays(host: Host) -> None:
    name = host.made()
    before = host.seen(name)
    with pytest.raises(Conflict):
        host.compute.detach_disk(name, before.volumes[0], host.deadline())
    host.compute.detach_disk(name, host.volume("data"), host.deadline())
    assert host.seen(name) == before


@pytest.mark.needs("devices", "files")
def test_a_volume_has_one_user(host: Host, tmp_path: Path) -> None:
    name = host.made()
    before = host.seen(name)
    theirs = host.seen(host.made("db")).volumes[0]
    aside = host.seen(host.made("old")).volumes[0]
    host.compute.set_aside(host.name("old"), "r7")
    foreign = host.add_foreign(host.name("other"))
    base = host.volume("base")
    overlay = host.volume("overlay", base=base)
    cached = host.compute.import_image(image_file(tmp_path, CONTENT, format="qcow2"), host.deadline()).name
    for disk in map(AttachedDisk, (theirs, aside, foreign, base, cached)):
        with pytest.raises(Conflict):
            host.compute.attach_disk(name, disk)
        with pytest.raises(Conflict):
            host.compute.replace_disk(name, before.volumes[0], disk)
        with pytest.raises(Conflict):
            host.compute.rescue(name, disk)
    with pytest.raises(NotFound):
        host.compute.attach_disk(name, AttachedDisk(host.mark().volume("nothing")))
    assert host.seen(name) == before
    for volume in (overlay, cached):
        host.compute.delete_volume(volume)


@pytest.mark.needs("devices")
def test_a_guest_that_keeps_a_device_has_it(host: Host) -> None:
    name = host.made(state=State.RUNNING)
    data = AttachedDisk(host.volume("data"))
    host.compute.attach_disk(name, data)
    host.compute.attach_nic(name, NIC)
    host.hold_devices(name)
    before = host.seen(name)
    with pytest.raises(DeadlinePassed):
        host.compute.detach_disk(name, data.volume, Deadline(1.0))
    with pytest.raises(DeadlinePassed):
        host.compute.detach_nic(name, NIC.mac or "", Deadline(1.0))
    assert host.seen(name) == before
    host.compute.power_off(name)
    assert host.seen(name).disks == before.disks and host.seen(name).nics == before.nics
    for call, thing in ((host.compute.detach_disk, data.volume), (host.compute.detach_nic, NIC.mac or "")):
        with pytest.raises(DeadlinePassed):
            call(name, thing, cancelled())
        call(name, thing, host.deadline())
    assert host.seen(name).disks == before.disks[:-1] and host.seen(name).nics == before.nics[:-1]


# A disk in another one's place


def test_a_disk_takes_another_ones_place(host: Host) -> None:
    domain = host.domain()
    boot, data = host.volume("boot"), host.volume("data")
    name = host.compute.define(replace(domain, disks=[AttachedDisk(boot), AttachedDisk(data)])).name
    before = host.seen(name)
    new = AttachedDisk(host.volume("new", format="raw"), "raw")
    with pytest.raises(NotFound):
        host.compute.replace_disk(name, host.mark().volume("nothing"), new)
    for _ in range(2):
        host.compute.replace_disk(name, boot, new)
        assert host.seen(name) == replace(before, disks=(new, AttachedDisk(data)))
    assert boot in host.ours()
    host.compute.start(name)
    with pytest.raises(Conflict):
        host.compute.replace_disk(name, new.volume, AttachedDisk(boot))
    assert host.seen(name).volumes == (new.volume, data)
    host.compute.power_off(name)
    host.compute.replace_disk(name, new.volume, AttachedDisk(boot))
    assert host.seen(name) == before


def test_a_disk_that_is_gone_is_replaced(host: Host) -> None:
    name = host.made()
    (boot,) = host.seen(name).volumes
    host.compute.note(name, Note.SHELVED, "{}")
    host.compute.delete_volume(boot)
    host.compute.replace_disk(name, boot, AttachedDisk(host.volume("new")))
    assert host.seen(name).volumes == (host.mark().volume("new"),)


# Network interfaces


@pytest.mark.needs("devices")
@pytest.mark.parametrize("state", [State.STOPPED, State.RUNNING])
def test_network_interfaces_come_and_go(host: Host, state: State) -> None:
    name = host.made(state=state)
    if state is State.RUNNING:
        wait_for_console(host, name)
    before = host.seen(name)
    (first,) = before.nics
    assert first.mac is not None
    for nic, nics in (
        (NIC, (first, NIC)),
        (NIC, (first, NIC)),
        (OTHER_NIC, (first, NIC, OTHER_NIC)),
        (first, (first, NIC, OTHER_NIC)),
    ):
        host.compute.attach_nic(name, nic)
        assert host.seen(name) == replace(before, nics=nics)
    for _ in range(2):
        host.compute.detach_nic(name, NIC.mac or "", host.deadline())
        assert host.seen(name) == replace(before, nics=(first, OTHER_NIC))
    host.compute.detach_nic(name, first.mac, host.deadline())
    host.compute.power_off(name)
    host.compute.start(name)
    assert host.seen(name).nics == (OTHER_NIC,)


# Rescue


def test_a_rescue_leads_back_to_what_was_there(host: Host) -> None:
    name = host.made()
    before, rescuer = host.seen(name), AttachedDisk(host.volume("rescue"))
    host.compute.unrescue(name)
    for _ in range(2):
        host.compute.rescue(name, rescuer)
        facts = host.seen(name)
        assert (facts.state, facts.power) == (State.RESCUED, State.STOPPED)
        assert facts.disks == (*before.disks, rescuer)
    with pytest.raises(Conflict):
        host.compute.rescue(name, AttachedDisk(host.volume("another")))
    host.compute.set_aside(name, "r7")
    assert host.compute.bring_back(name, "r7") == facts
    host.compute.start(name)
    assert (host.seen(name).state, host.seen(name).power) == (State.RESCUED, State.RUNNING)
    with pytest.raises(Conflict):
        host.compute.unrescue(name)
    with pytest.raises(Conflict):
        host.compute.rescue(name, rescuer)
    host.compute.power_off(name)
    assert host.seen(name) == facts
    for _ in range(2):
        host.compute.unrescue(name)
        assert host.seen(name) == before
    assert rescuer.volume in host.ours()
    host.compute.start(name)
    assert host.seen(name).state is State.RUNNING


def test_a_running_instance_is_not_rescued(host: Host) -> None:
    name = host.made(state=State.RUNNING)
    before = host.seen(name)
    with pytest.raises(Conflict):
        host.compute.rescue(name, AttachedDisk(host.volume("rescue")))
    assert host.seen(name) == before


# Notes


def test_notes_outlast_everything(host: Host) -> None:
    """They are texts of the caller's, one of each kind."""
    domain = host.domain()
    name = host.compute.define(domain).name
    before = host.seen(name)
    notes = {
        Note.LOCKED: "",
        Note.RESIZED: '{"vcpus": 1, "by": "<a & b>"}',
        Note.SHELVED: "two\nlines, \"quotes' and an umlaut: ü",
    }
    for _ in range(2):
        for note, text in notes.items():
            host.compute.note(name, note, "an earlier one")
            host.compute.note(name, note, text)
    assert host.seen(name) == replace(before, notes={str(note): text for note, text in notes.items()})
    assert host.seen(name).state is State.SHELVED and host.seen(name).locked
    host.compute.define(domain)
    host.compute.resize(name, SMALL)
    host.compute.replace_disk(name, before.volumes[0], AttachedDisk(host.volume("new")))
    host.compute.rescue(name, AttachedDisk(host.volume("rescue")))
    host.compute.unrescue(name)
    host.compute.start(name)
    host.compute.set_aside(name, "r7")
    host.compute.bring_back(name, "r7")
    assert host.seen(name).notes == {str(note): text for note, text in notes.items()}
    for _ in range(2):
        host.compute.note(name, Note.SHELVED, None)
    assert host.seen(name).state is State.RESIZED
    host.compute.note(name, Note.RESIZED, None)
    assert (host.seen(name).state, host.seen(name).notes) == (State.STOPPED, {str(Note.LOCKED): ""})


def test_what_has_changed_is_not_defined_anew(host: Host) -> None:
    domain = host.domain()
    name = host.compute.define(domain).name
    host.compute.resize(name, SMALL)
    host.compute.rescue(name, AttachedDisk(host.volume("rescue")))
    changed = host.seen(name)
    assert host.compute.define(domain) == changed == host.seen(name)
    host.compute.start(name)
    assert host.compute.define(domain) == host.seen(name) == replace(changed, power=State.RUNNING)


def test_the_mark_says_another_spec(host: Host) -> None:
    domain = replace(host.domain(), keep=("data",), protect=True)
    name = host.compute.define(domain).name
    before = host.seen(name)
    host.compute.start(name)
    for _ in range(2):
        host.compute.set_spec(name, "ab" * 32)
    host.compute.power_off(name)
    mark = replace(domain.mark, spec="ab" * 32)
    assert host.seen(name) == replace(before, mark=mark)
    assert host.compute.define(replace(domain, mark=mark)) == host.seen(name)
