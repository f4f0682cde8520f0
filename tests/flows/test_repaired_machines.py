"""Real virtual machines that are rescued, rebuilt, restored and shelved in a run that fails: all is taken back."""

import os
from xml.etree import ElementTree as ET

import pytest

from tests.drivers.libvirt.test_hardware import boot_sector
from tests.flows.lab import Lab

pytestmark = pytest.mark.real

PLAN = """\
  rescue: {source: ./rescue.raw, format: raw}
instances:
  {word}-db:
    memory: 192 MiB
    disks: [64 MiB, {name: data, size: 16 MiB, format: raw}]
    {boot:planvirt.write=hello}
"""
RESCUE = "  - {action: rescue, instances: [{word}-db], with: {image: rescue, grace: 20s}}\n"
SAYS = "  - {id: NAME, action: wait, instances: [{word}-db], with: {console: 'TEXT'}, timeout: 60s}\n"


def says(name: str, text: str) -> str:
    return SAYS.replace("NAME", name).replace("TEXT", text)


@pytest.fixture
def lab(lab: Lab) -> Lab:
    """A machine that is up, and an image to rescue it with."""
    image = lab.shop.folder / "rescue.raw"
    image.write_bytes(boot_sector("RESCUED"))
    os.truncate(image, 1 << 20)
    ended = lab.shop.run(lab.plan("mend", PLAN + "operations:\n" + says("up", "disk written: hello")))
    assert ended.code == 0, ended
    return lab


def definition(lab: Lab) -> list[str]:
    """The machine as it is kept, whether it runs or not."""
    with lab.host.door() as connection:
        xml = connection.lookupByName(f"{lab.word}-db").XMLDesc(2)  # VIR_DOMAIN_XML_INACTIVE
    return ET.canonicalize(xml, strip_text=True).replace("><", ">\n<").splitlines()


def test_a_run_that_fails_brings_every_disk_back(lab: Lab) -> None:
    before = definition(lab), lab.volumes()
    plan = lab.plan(
        "mend",
        PLAN
        + "operations:\n"
        + RESCUE
        + says("rescued", "RESCUED")
        + "  - {action: unrescue, instances: [{word}-db], with: {grace: 1s}}\n"
        + "  - {action: rebuild, instances: [{word}-db], with: {image: tiny, grace: 20s}}\n"
        + says("empty", "disk is empty")
        + "  - {action: shelve, instances: [{word}-db], with: {store: local, grace: 20s}}\n"
        + "  - {action: unshelve, instances: [{word}-db]}\n"
        + "  - {action: restore, instances: [{word}-db], with: {image: tiny, disk: data, grace: 20s}}\n"
        + "  - {id: never, action: exec, instances: [{word}-db], with: {command: ['false']}, retry: {attempts: 9}}\n",
    )
    ended = lab.shop.run(plan)
    assert ended.code == 1, ended
    steps = {step["id"].partition(".")[0]: step for step in ended.document["run"]["steps"]}
    assert steps["never"]["error"] is not None, ended
    assert steps["never"]["error"]["brief"] == (f"cannot run false in {lab.word}-db: it ended with 1")
    assert definition(lab) == before[0]
    assert (lab.volumes(), lab.shop.images()) == (before[1], [])
    ended = lab.shop.run(lab.plan("mend", PLAN + "operations:\n" + says("up", "disk says: hello")))
    assert ended.code == 0, ended


def test_a_failed_unshelve_leaves_it_shelved(lab: Lab) -> None:
    head = PLAN + "operations:\n"
    away = head + "  - {action: shelve, instances: [{word}-db], with: {store: local, grace: 20s}}\n"
    assert lab.shop.run(lab.plan("mend", away)).code == 0
    before = definition(lab), lab.volumes(), [image["id"] for image in lab.shop.images()]
    assert (lab.volumes(), len(before[2])) == (set(), 2)
    back = head + "  - {action: unshelve, instances: [{word}-db]}\n"
    never = "  - {id: never, action: wait, instances: [{word}-db], with: {console: 'never comes'}, timeout: 1s}\n"
    assert lab.shop.run(lab.plan("mend", back + never)).code == 1
    assert definition(lab) == before[0]
    assert (lab.volumes(), [image["id"] for image in lab.shop.images()]) == before[1:]
    ended = lab.shop.run(lab.plan("mend", back + says("up", "disk says: hello")))
    assert ended.code == 0, ended
    assert (definition(lab) == before[0], len(lab.volumes()), lab.shop.images()) == (False, 2, [])


def test_a_rescued_machine_is_destroyed_with_its_rescue_disk(lab: Lab) -> None:
    assert lab.shop.run(lab.plan("mend", PLAN + "operations:\n" + RESCUE)).code == 0
    assert len(lab.volumes()) == 3
    assert lab.shop.planvirt("destroy", "mend.yaml", "--yes").code == 0
    assert (lab.domains(), lab.volumes()) == (set(), set())
