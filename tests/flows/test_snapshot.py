"""snapshot: images of several disks are of one moment, or there are none; a guest is never left frozen."""

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drivers.image_store import StoredImage
from flows.context import Event
from flows.facts import gather
from flows.preview import preview
from flows.world import World
from planvirt.graph import build_graph
from planvirt.journal.transitions import RunState
from tests.flows.aftermath import killed_everywhere, made, picture, with_faults
from tests.flows.dying import in_child
from tests.flows.whole_world import finish
from tests.flows.yard import Yard

PLAN = """\
images:
  base: {source: ./base.raw, format: raw}
instances:
  web: {image: base, memory: 64 MiB, disks: [2 MiB, {name: data, size: 1 MiB}, {name: logs, size: 1 MiB}]}
  bad: {memory: 64 MiB, disks: [1 MiB]}
"""
BOTH = "disks: [root, data], quiesce: required, compress: zstd, upload: {name: web}"
FAIL = "  - {id: fail, action: exec, instances: [bad], with: {command: [broken]}}\n"


def used(yard: Yard) -> None:
    """Let the guest have written to its disks, and have every run fail that ends with FAIL."""
    with yard.kvm1.world() as world:
        world.guests["bad"] = {"programs": {"broken": {"exit_code": 1}}}
    write(yard, b"first")


def write(yard: Yard, word: bytes) -> None:
    for disk in ("root", "data", "logs"):
        yard.kvm1.write_disk(yard.volume("web", disk), word)


class Restless(Yard):
    """A yard whose guest writes on, and whose host fails, when the second image is first uploaded."""

    def _hear(self, event: Event) -> None:
        super()._hear(event)
        if event.text == "upload the image of disk data" and self.heard.count(str(event)) == 1:
            write(self, b"second")
            self.kvm1.fail("open_volume", name=self.volume("web", "snapshot-keep-data"))


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return made(tmp_path / "yard", PLAN, used)


def taken(arguments: str, more: str = "") -> str:
    return f"{PLAN}operations:\n  - {{id: keep, action: snapshot, instances: [web], with: {{{arguments}}}{more}}}\n"


def images(yard: Yard) -> dict[str, StoredImage]:
    """What the store has, by name."""
    with World(yard.config) as world:
        return {image.name: image for image in world.store("local").list()}


def content(yard: Yard, image: StoredImage) -> bytes:
    """What a guest reads from a disk that is made from the image."""
    with World(yard.config) as world:
        path = world.store("local").path(image.id)
    assert path is not None
    words = ["/usr/bin/env", "qemu-img", "dd", "-f", image.format, "-O", "raw", "bs=512", "count=1", f"if={path}"]
    subprocess.run([*words, f"of={yard.folder / 'flat'}"], check=True, capture_output=True)
    return (yard.folder / "flat").read_bytes().rstrip(b"\0")


def outputs(yard: Yard) -> Any:
    return yard.journal.step(f"r{yard.runs}", "keep.web").outputs


def is_frozen(yard: Yard) -> bool:
    with yard.kvm1.world() as world:
        return world.instances["web"].frozen


def without_images(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if not key.startswith("image ")}


def test_each_disk_becomes_an_image_of_its_own(yard: Yard) -> None:
    before = picture(yard)
    assert yard.run(taken("disks: all, upload: {name: web}")) == RunState.SUCCEEDED
    found = images(yard)
    assert sorted(found) == ["web-data", "web-logs", "web-root"]
    assert {content(yard, image) for image in found.values()} == {b"first"}
    assert {image.properties["planvirt_disk"] for image in found.values()} == {"root", "data", "logs"}
    assert outputs(yard) == {"images": {disk: f"local/{found[f'web-{disk}'].id}" for disk in ("root", "data", "logs")}}
    assert without_images(picture(yard)) == before
    assert yard.kvm1.events().count("export_disks web") == 1


@pytest.mark.parametrize(("arguments", "disk"), [("", "root"), ("disk: data", "data"), ("disks: [logs]", "logs")])
def test_a_single_image_bears_its_name_alone(yard: Yard, arguments: str, disk: str) -> None:
    given = f"{arguments}, " if arguments else ""
    assert yard.run(taken(f"{given}upload: {{name: one}}")) == RunState.SUCCEEDED
    (image,) = images(yard).values()
    assert (image.name, image.properties["planvirt_disk"]) == ("one", disk)
    assert outputs(yard) == {
        "image": f"local/{image.id}",
        "images": {disk: f"local/{image.id}"},
        "id": image.id,
        "name": "one",
        "store": "local",
        "size": image.size,
        "checksum": image.checksum,
    }


def test_a_raw_image_is_as_large_as_its_disk(yard: Yard) -> None:
    assert yard.run(taken("format: raw, upload: {name: raw}")) == RunState.SUCCEEDED
    (image,) = images(yard).values()
    assert (image.format, image.size, content(yard, image)) == ("raw", 2 << 20, b"first")


def test_a_host_that_cannot_compress_is_told_at_the_preview(yard: Yard) -> None:
    assert yard.preview(taken("compress: zstd")).conflicts == ()
    plan = yard.plan(taken("compress: zstd"))
    with World(yard.config) as world:
        facts = gather(world, yard.journal, plan)
    poor = {host: replace(can, compressions=frozenset()) for host, can in facts.capabilities.items()}
    (conflict,) = preview(plan.name, build_graph(plan), replace(facts, capabilities=poor)).conflicts
    assert conflict.startswith("keep.web: host kvm1 cannot compress images with zstd")


@pytest.mark.parametrize(("wanted", "ends"), [("required", "rolled_back"), ("if-possible", "succeeded")])
def test_a_guest_that_cannot_freeze(yard: Yard, wanted: str, ends: str) -> None:
    with yard.kvm1.world() as world:
        world.guests["web"] = {"agent": False}
    before = picture(yard)
    assert yard.run(taken(f"quiesce: {wanted}")) == ends
    assert without_images(picture(yard)) == before
    assert len(images(yard)) == (ends == "succeeded")


def test_what_an_attempt_uploaded_is_not_mixed_with_a_later_moment(yard: Yard) -> None:
    """The second image cannot be uploaded at first, and the guest writes on before the next attempt."""
    restless = Restless(yard.folder)
    restless.runs = yard.runs
    text = taken("disks: [root, data], upload: {name: web}", ", retry: {attempts: 2, delay: 1ms}")
    assert restless.run(text) == RunState.SUCCEEDED
    assert restless.heard.count("snapshot web: upload the image of disk data") == 2
    assert {name: content(yard, image) for name, image in images(yard).items()} == {
        "web-root": b"second",
        "web-data": b"second",
    }


@pytest.mark.parametrize("at", ["before", "after"])
@pytest.mark.parametrize("arguments", [BOTH, "quiesce: if-possible, format: raw"])
def test_a_fault_at_any_call_leaves_all_as_before(yard: Yard, arguments: str, at: str) -> None:
    before, number = picture(yard), 0
    for trial in with_faults(yard, taken(arguments), at=at):  # type: ignore[arg-type] # one of two words
        number += 1
        if trial.state == RunState.SUCCEEDED:
            assert without_images(picture(trial.yard)) == before, trial.where
            assert {content(trial.yard, image) for image in images(trial.yard).values()} == {b"first"}, trial.where
        else:
            assert (trial.state, picture(trial.yard)) == (RunState.ROLLED_BACK, before), trial.where
    assert number > 5


def test_an_undo_that_fails_twice_succeeds_in_the_end(yard: Yard) -> None:
    before = picture(yard)
    for trial in with_faults(yard, taken(BOTH) + FAIL, times=2):
        assert (trial.state, picture(trial.yard)) == (RunState.ROLLED_BACK, before), trial.where


def test_a_passing_fault_is_passed(yard: Yard) -> None:
    before = picture(yard)
    for trial in with_faults(yard, taken(BOTH, ", retry: {attempts: 2, delay: 1ms}"), error="transient", at="after"):
        assert trial.state == RunState.SUCCEEDED, trial.where
        assert without_images(picture(trial.yard)) == before, trial.where
        assert sorted(images(trial.yard)) == ["web-data", "web-root"], trial.where


@pytest.mark.parametrize("forward", [False, True], ids=["back", "forward"])
def test_a_guest_whose_run_died_while_it_was_frozen_is_thawed(yard: Yard, forward: bool) -> None:
    before, text = picture(yard), taken(BOTH)
    yard.kvm1.fail("export_disks", kill=True)
    prepared = yard.prepare(text)
    in_child(lambda: yard.carry_out(prepared))
    yard.runs += 1
    assert is_frozen(yard)
    ended = finish(yard, prepared, f"r{yard.runs}", forward=forward)
    assert ended == (RunState.SUCCEEDED if forward else RunState.ROLLED_BACK)
    assert not is_frozen(yard)
    assert without_images(picture(yard)) == before
    assert len(images(yard)) == (2 if forward else 0)


@pytest.mark.real
@pytest.mark.parametrize("forward", [False, True], ids=["back", "forward"])
@pytest.mark.parametrize("before_it", [True, False], ids=["before", "after"])
def test_killed_at_every_word(yard: Yard, before_it: bool, forward: bool) -> None:
    before, number = picture(yard), 0
    for trial in killed_everywhere(yard, taken(BOTH), before=before_it, forward=forward):
        number += 1
        if trial.state == RunState.SUCCEEDED:
            assert without_images(picture(trial.yard)) == before, trial.where
            found = images(trial.yard)
            assert {name: image.status for name, image in found.items()} == {
                "web-root": "active",
                "web-data": "active",
            }, trial.where
        else:
            assert picture(trial.yard) == before, trial.where
    assert number > 12
