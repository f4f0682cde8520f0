"""Runs on real virtual machines, interrupted by SIGKILL wherever their journal has a word, and recovered."""

import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from planvirt.journal.journal import Journal
from planvirt.mark import read_volume_name
from tests.flows.lab import Lab
from tests.flows.workshop import Workshop

pytestmark = pytest.mark.real


OLD = "instances:\n  {word}-old: {memory: 64 MiB, disks: [1 MiB], state: stopped}\n"
LIFE = """\
instances:
  {word}-old: {memory: 64 MiB, disks: [1 MiB], state: stopped}
  {word}-one:
    image: tiny
    memory: 192 MiB
    disks: [64 MiB]
    {boot:}
operations:
  - {id: keep, action: snapshot, instances: [{word}-one], with: {upload: {store: local, name: kept}}}
  - {id: gone, action: terminate, instances: [{word}-old]}
"""
SMALL = "instances:\n  {word}-old: {memory: 64 MiB, disks: [1 MiB, {name: tmp, size: 1 MiB}], state: stopped}\n"
GROWN = """\
instances:
  {word}-old:
    memory: 96 MiB
    vcpus: 2
    disks: [2 MiB, {name: tmp, size: 1 MiB}, {name: data, size: 1 MiB}]
    networks: [{user: true}]
    state: stopped
operations:
  - {action: detach, instances: [{word}-old], with: {disk: tmp, delete: true}}
"""
BOOTED = """\
instances:
  {word}-old:
    memory: 160 MiB
    max_memory: 256 MiB
    max_vcpus: 2
    disks: [1 MiB]
    {boot:}
    ready: {console: planvirt guest up, within: 90s}
"""
LIVE = BOOTED.replace("memory: 160", "vcpus: 1\n    memory: 192") + (
    "operations:\n"
    "  - {id: data, action: attach, instances: [{word}-old], with: {disk: {name: data, size: 1 MiB}}}\n"
    "  - {id: net, action: attach, instances: [{word}-old], with: {network: {user: true}}}\n"
)


@pytest.mark.parametrize(
    ("before", "plan", "fewest"),
    [(OLD, LIFE, 15), (SMALL, GROWN, 20), (BOOTED, LIVE, 12)],
    ids=["launch, snapshot, terminate", "resize, attach, detach", "while the guest runs"],
)
def test_killed_at_every_word_nothing_of_a_real_machine_is_left(
    lab: Lab, before: str, plan: str, fewest: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lab.shop.run(lab.plan("saga", before)).code == 0
    untouched = _picture(lab)
    lab.plan("saga", plan)
    kills = 0
    while _killed(lab, kills + 1):
        kills += 1
        _let_every_lease_lapse(lab.shop)
        recovered = lab.shop.planvirt("recover")
        shown = lab.shop.planvirt("runs", "--output", "json").document["runs"][0]
        if shown["state"] == "succeeded":  # it was past its point of no return
            assert recovered.code == 0, recovered
            break
        assert shown["state"] in ("rolled_back", "cancelled"), recovered
        assert _picture(lab) == untouched, f"after kill {kills}"
        assert lab.shop.images() == []
    assert not _claims(lab.shop)
    assert _picture(lab) != untouched  # it came to its end at last
    with capsys.disabled():
        print(f" [{kills} kills]", end="")
    assert kills > fewest


def _picture(lab: Lab) -> dict[str, Any]:
    """The machines as planvirt sees them, and the disks in the pool.

    A disk that had grown may be another volume afterwards: the copy that was kept of it. It is of the same size.
    """
    found: dict[str, Any] = {}
    for facts in lab.host.compute.instances():
        if facts.name.startswith(lab.word):
            found[facts.name] = replace(facts, disks=()), [(_disk(disk.volume), disk.bus) for disk in facts.disks]
    sizes = {volume.name: volume.capacity for volume in lab.host.compute.volumes()}
    return {**found, "disks": sorted((_disk(name), sizes.get(name)) for name in lab.volumes())}


def _disk(volume: str) -> str:
    named = read_volume_name(volume)
    return volume if named is None else named[1]


def _killed(lab: Lab, word: int) -> bool:
    """Run the plan in a process that dies at that word of its journal; False when it came to its end before."""
    words = [sys.executable, "-m", "tests.flows.dying", "planvirt.toml", "saga.yaml", f"killed-{word}", str(word)]
    environ = dict(os.environ) | {"PLANVIRT_HOME": str(lab.shop.home), "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(words, cwd=lab.shop.folder, env=environ, capture_output=True, text=True, timeout=120)
    assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
    return ended.returncode != 0


def _let_every_lease_lapse(shop: Workshop) -> None:
    with sqlite3.connect(shop.home / "journal.sqlite") as database:
        database.execute("UPDATE runs SET lease_until = 0")
    database.close()


def _claims(shop: Workshop) -> int:
    with Journal(f"sqlite:///{shop.home}/journal.sqlite") as journal:
        return len(journal.claims())
