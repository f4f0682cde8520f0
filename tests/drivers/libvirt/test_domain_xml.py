"""Domains as XML: what is in golden/ is what libvirt gets. PLANVIRT_GOLDEN=write makes the files anew."""

import os
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree as ET

import pytest

from drivers.compute import AttachedDisk, Domain, Sizes
from drivers.libvirt.domain_xml import (
    find_disk,
    find_nic,
    parse,
    read_disks,
    read_keep,
    read_mark,
    read_nics,
    read_protect,
    read_sizes,
)
from drivers.libvirt.rendering import next_target, nic_xml, render
from planvirt.mark import Mark, nic_mac
from planvirt.plan import Nic

GOLDEN = Path(__file__).parent / "golden"
UUID = "8c2ccd0c-2b1f-5b7e-8f0e-3f0f2d1b7a10"
HOSTILE = "x'/><disk type='file'>\"&amp;{{ 7*7 }}]]>"


def domain(
    *, mark: Mark | None = None, disks: tuple[AttachedDisk, ...] = (AttachedDisk("boot"),), nics: tuple[Nic, ...] = (),
    kernel: str | None = None, initrd: str | None = None, cmdline: str = "", labels: dict[str, str] | None = None,
    keep: tuple[str, ...] = (), protect: bool = False, max_vcpus: int = 0, max_memory: int = 0,
) -> Domain:  # fmt: skip
    mark = mark or Mark("shop", "web-1", "20240101-abc", "5bec" * 16, "c0ffee")
    return Domain(
        mark.instance, UUID, 2, 512 << 20, mark, disks, nics, kernel, initrd, cmdline, labels or {},
        keep, protect, max_vcpus, max_memory,
    )  # fmt: skip


CASES: dict[str, tuple[Literal["kvm", "qemu", "test"], Domain]] = {
    "smallest-kvm": ("kvm", domain()),
    "smallest-tcg": ("qemu", domain()),
    "smallest-test": ("test", domain()),
    "everything": (
        "qemu",
        domain(
            disks=(
                AttachedDisk("boot"),
                AttachedDisk("data", format="raw"),
                AttachedDisk("slow", bus="sata"),
                AttachedDisk("many", bus="scsi"),
            ),
            nics=(
                Nic("network", "default"),
                Nic("bridge", "br0", mac="52:54:00:00:00:01"),
                Nic("user", model="e1000e"),
            ),
            kernel="planvirt-file.k",
            initrd="planvirt-file.i",
            cmdline="console=ttyS0 quiet",
            labels={"tier": "web", "owner": "ops"},
            keep=("data", "many"),
            protect=True,
            max_vcpus=4,
            max_memory=1 << 30,
        ),
    ),
    "hostile": (
        "qemu",
        domain(
            mark=Mark("shop", "web-1", "r1", "5bec" * 16, HOSTILE),
            nics=(Nic("network", HOSTILE, model=HOSTILE),),
            kernel="planvirt-file.k",
            cmdline=HOSTILE,
            labels={HOSTILE: HOSTILE},
            keep=(HOSTILE,),
        ),
    ),
}


def rendered(case: str) -> str:
    kind, wanted = CASES[case]
    names = ("boot", "data", "slow", "many", "planvirt-file.k", "planvirt-file.i")
    paths = {name: f"/pool/{name}" for name in names}
    return render(wanted, type=kind, paths=paths, console=f"/pool/planvirt-console.{UUID}.log")


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    file, xml = GOLDEN / f"{case}.xml", rendered(case)
    if os.environ.get("PLANVIRT_GOLDEN") == "write":
        file.write_text(xml)
    assert xml == file.read_text()


def test_every_golden_file_has_its_case() -> None:
    assert {file.stem for file in GOLDEN.glob("*.xml")} == set(CASES)


def test_what_is_hostile_stays_one_value() -> None:
    root = ET.fromstring(rendered("hostile"))  # noqa: S314 - made here
    assert root.findtext("os/cmdline") == HOSTILE
    assert len(root.findall("devices/disk")) == 1
    source = root.find("devices/interface/source")
    assert source is not None and source.get("network") == HOSTILE


def test_what_outlives_a_domain_comes_back_out() -> None:
    everything, smallest = parse(rendered("everything")), parse(rendered("smallest-kvm"))
    assert (read_keep(everything), read_protect(everything)) == (("data", "many"), True)
    assert (read_keep(smallest), read_protect(smallest)) == ((), False)
    assert read_keep(parse(rendered("hostile"))) == (HOSTILE,)


def test_mark_and_disks_come_back_out() -> None:
    root = parse(rendered("everything"))
    assert read_mark(root) == CASES["everything"][1].mark
    assert [(disk.path, disk.format, disk.target) for disk in read_disks(root)] == [
        ("/pool/boot", "qcow2", "vda"),
        ("/pool/data", "raw", "vdb"),
        ("/pool/slow", "qcow2", "sda"),
        ("/pool/many", "qcow2", "sdb"),
    ]


def test_sizes_and_network_interfaces_come_back_out() -> None:
    everything, smallest = parse(rendered("everything")), parse(rendered("smallest-kvm"))
    assert read_sizes(everything) == Sizes(2, 512 << 20, 4, 1 << 30)
    assert read_sizes(smallest) == Sizes(2, 512 << 20, 2, 512 << 20)
    assert read_nics(everything) == [
        Nic("network", "default", nic_mac(UUID, 0)),
        Nic("bridge", "br0", "52:54:00:00:00:01"),
        Nic("user", "", nic_mac(UUID, 2), "e1000e"),
    ]
    assert read_nics(smallest) == []


def test_a_device_is_found_by_what_tells_it_apart() -> None:
    root = parse(rendered("everything"))
    found = find_disk(root, "slow")
    assert found is not None and [node.get("dev") for node in found.iterfind("target")] == ["sda"]
    assert find_disk(root, "low") is None
    bridge = find_nic(root, "52:54:00:00:00:01")
    assert bridge is not None and bridge.get("type") == "bridge"
    assert find_nic(root, "52:54:00:00:00:02") is None


def test_a_network_interface_of_its_own_is_as_in_a_domain() -> None:
    nic = Nic("bridge", "br0", mac="52:54:00:00:00:01")
    assert nic_xml(nic) in rendered("everything")


@pytest.mark.parametrize("xml", ["<domain/>", "<domain><metadata><other xmlns='urn:other'/></metadata></domain>"])
def test_no_mark(xml: str) -> None:
    root = parse(xml)
    assert (read_mark(root), read_keep(root), read_protect(root)) == (None, (), False)


@pytest.mark.parametrize(
    ("bus", "taken", "target"),
    [
        ("virtio", [], "vda"),
        ("virtio", ["vda", "vdc", "sdf"], "vdd"),
        ("scsi", ["vda"], "sda"),
        ("usb", ["sda", "sdb"], "sdc"),
        ("virtio", ["vdz"], "vdaa"),
        ("virtio", ["vdzz", "vda"], "vdaaa"),
        ("virtio", ["vda1"], "vda"),
    ],
)
def test_another_disk_comes_behind_the_others(bus: str, taken: list[str], target: str) -> None:
    assert next_target(bus, taken) == target


def test_the_disks_after_z() -> None:
    wanted = domain(disks=tuple(AttachedDisk("boot") for _ in range(28)))
    xml = render(wanted, type="qemu", paths={"boot": "/b"}, console="/c")
    targets = [disk.target for disk in read_disks(parse(xml))]
    assert targets[25:] == ["vdz", "vdaa", "vdab"]
