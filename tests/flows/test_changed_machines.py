"""Real virtual machines that change: their size, disks and interfaces, what they boot, where their disks are kept."""

from xml.etree import ElementTree as ET

import pytest

from drivers.compute import Sizes
from planvirt.mark import read_volume_name
from tests.flows.lab import Lab

pytestmark = pytest.mark.real


BOOTED = """\
    {boot:planvirt.write=hello}
    ready: {console: planvirt guest up, within: 90s}
    resize: {reboot: true, grace: 20s}
"""


def _live(lab: Lab) -> ET.Element:
    """What the guest has now."""
    with lab.host.door() as connection:
        return ET.fromstring(connection.lookupByName(f"{lab.word}-db").XMLDesc(0))  # noqa: S314 - libvirt wrote it


def _domain_id(lab: Lab) -> int:
    with lab.host.door() as connection:
        number: int = connection.lookupByName(f"{lab.word}-db").ID()
        return number


def _disks(lab: Lab) -> list[str]:
    return sorted(named[1] for name in lab.volumes() if (named := read_volume_name(name)) is not None)


def test_a_declaration_that_grows_is_followed_while_the_guest_runs(lab: Lab) -> None:
    """And taken back by a reboot when a later step fails; the guest's own view of its disks is the judge."""
    head = "instances:\n  {word}-db:\n    max_vcpus: 2\n    max_memory: 256 MiB\n"
    small = head + "    memory: 192 MiB\n    disks: [64 MiB]\n" + BOOTED
    large = (
        head
        + "    vcpus: 2\n    memory: 224 MiB\n    disks: [128 MiB, {name: data, size: 16 MiB}]\n"
        + "    networks: [{user: true}]\n"
        + BOOTED
    )
    look = "operations:\n  - {action: exec, instances: [{word}-db], with: {command: [cat, /proc/partitions]}}\n"
    fails = "  - {id: never, action: exec, instances: [{word}-db], with: {command: ['false']}}\n"
    assert lab.shop.run(lab.plan("grow", small)).code == 0

    ended = lab.shop.run(lab.plan("grow", large + look + fails))
    assert ended.code == 1, ended
    steps = {step["id"].partition(".")[0]: step for step in ended.document["run"]["steps"]}
    assert "131072 vda" in steps["exec"]["outputs"]["stdout"] and "16384 vdb" in steps["exec"]["outputs"]["stdout"]
    live = _live(lab)
    found = lab.host.compute.instance(f"{lab.word}-db")
    assert found is not None and found.sizes == Sizes(1, 192 << 20, 2, 256 << 20)
    assert len(live.findall("devices/disk")) == 1 and live.find("devices/interface") is None
    assert _disks(lab) == ["root"]
    assert lab.shop.planvirt("preview", "grow.yaml", "--exit-code").code == 4

    started = _domain_id(lab)
    assert lab.shop.run(lab.plan("grow", large + look)).code == 0
    assert _domain_id(lab) == started  # without a reboot
    live = _live(lab)
    assert len(live.findall("devices/disk")) == 2 and live.find("devices/interface") is not None
    assert _disks(lab) == ["data", "root"]
    lab.plan("grow", large)
    again = lab.shop.planvirt("preview", "grow.yaml")
    assert "nothing to do" in again.out


def test_disks_that_are_replaced_put_away_and_brought_back_keep_what_they_hold(lab: Lab) -> None:
    text = "instances:\n  {word}-db:\n    memory: 192 MiB\n    disks: [64 MiB]\n" + BOOTED
    assert lab.shop.run(lab.plan("keep", text)).code == 0
    says = "with: {console: 'disk says: hello'}, timeout: 60s"
    plan = lab.plan(
        "keep",
        "instances:\n  {word}-db:\n    memory: 192 MiB\n    disks: [64 MiB]\n    {boot:planvirt.write=hello}\n"
        "operations:\n"
        "  - {id: kept, action: snapshot, instances: [{word}-db], with: {upload: {store: local, name: kept}}}\n"
        "  - {action: rebuild, instances: [{word}-db], with: {image: tiny}}\n"
        "  - {id: empty, action: wait, instances: [{word}-db], with: {console: 'disk is empty'}, timeout: 60s}\n"
        "  - {action: restore, instances: [{word}-db], with: {image: '{{ steps.kept.outputs.image }}'}}\n"
        f"  - {{id: restored, action: wait, instances: [{{word}}-db], {says}}}\n"
        "  - {action: shelve, instances: [{word}-db], with: {store: local, grace: 20s}}\n",
    )
    ended = lab.shop.run(plan)
    assert ended.code == 0, ended
    assert _disks(lab) == []
    assert [image["name"] for image in lab.shop.images()] != ["kept"]
    found = lab.shop.planvirt("instances", "--output", "json").document["instances"]
    assert [item["state"] for item in found if item["name"] == f"{lab.word}-db"] == ["shelved"]
    back = lab.plan(
        "keep",
        "instances:\n  {word}-db:\n    memory: 192 MiB\n    disks: [64 MiB]\n    {boot:planvirt.write=hello}\n"
        "operations:\n"
        "  - {action: unshelve, instances: [{word}-db]}\n"
        f"  - {{action: wait, instances: [{{word}}-db], {says}}}\n",
    )
    ended = lab.shop.run(back)
    assert ended.code == 0, ended
    assert _disks(lab) == ["root"]
    assert [image["name"] for image in lab.shop.images()] == ["kept"]
