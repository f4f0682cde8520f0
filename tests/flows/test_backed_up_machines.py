"""Backups of a real machine: two disks, frozen by its real agent, compressed, and brought back."""

import pytest

from tests.flows.lab import Lab

pytestmark = pytest.mark.real

MACHINE = """\
instances:
  {word}-db:
    memory: 192 MiB
    disks: [64 MiB, {name: data, size: 16 MiB}]
    {boot:planvirt.mount}
    ready: {console: planvirt guest up, within: 90s}
operations:
"""
WRITTEN = "  - {id: write, action: exec, instances: [{word}-db], with: {command: [sh, -c, 'echo WORD >/mnt/word']}}\n"
BACKUP = """\
  - action: backup
    instances: [{word}-db]
    with: {class: daily, keep: 1, disks: all, quiesce: required, compress: zstd, upload: {store: local, name: NAME}}
"""


def test_a_backup_of_two_disks_holds_what_the_guest_had_just_written(lab: Lab) -> None:
    for name in ("first", "second"):
        text = MACHINE + WRITTEN.replace("WORD", name) + BACKUP.replace("NAME", name)
        ended = lab.shop.run(lab.plan("db", text))
        assert ended.code == 0, ended
        assert not [volume for volume in lab.volumes() if "backup" in volume]
        assert sorted(image["name"] for image in lab.shop.images()) == [f"{name}-data", f"{name}-root"]
    console = lab.host.compute.console(f"{lab.word}-db")
    assert console.count("file systems: freeze") == console.count("file systems: thaw") == 2

    restored = (
        WRITTEN.replace("WORD", "spoiled")
        + "  - {action: restore, instances: [{word}-db], with: {image: local/second-data, disk: data}}\n"
        + "  - {id: look, action: exec, instances: [{word}-db], with: {command: [cat, /mnt/word]}}\n"
    )
    ended = lab.shop.run(lab.plan("db", MACHINE + restored))
    assert ended.code == 0, ended
    (look,) = [step for step in ended.document["run"]["steps"] if step["id"].startswith("look.")]
    assert look["outputs"]["stdout"] == "second\n"
