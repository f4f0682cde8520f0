"""rebuild and restore: a disk is made anew from an image, and the earlier one comes back when the run fails."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drivers.compute import AttachedDisk
from planvirt.journal.transitions import RunState
from planvirt.plan import Boot, Instance
from planvirt.states import State
from tests.flows.aftermath import contents, killed_everywhere, made, picture, with_faults
from tests.flows.yard import Yard

PLAN = """\
images:
  base: {source: ./base.raw, format: raw}
  other: {source: ./other.raw, format: raw}
instances:
  web:
    image: base
    memory: 64 MiB
    disks: [{size: 2 MiB, bus: scsi}, {name: data, size: 1 MiB, format: raw, keep: true}]
  bad: {memory: 64 MiB, disks: [1 MiB]}
"""
EDITED = PLAN.replace("image: base", "image: other")
REBUILD = "operations:\n  - {id: anew, action: rebuild, instances: [web]}\n"
OTHER = "operations:\n  - {id: anew, action: rebuild, instances: [web], with: {image: other}}\n"
RESTORE = "operations:\n  - {id: back, action: restore, instances: [web], with: {image: other, disk: data}}\n"
FAIL = "  - {id: fail, action: exec, instances: [bad], with: {command: [broken]}}\n"


def used(yard: Yard) -> None:
    """Let the guest have written to its disks, and have every run fail that ends with FAIL."""
    with yard.kvm1.world() as world:
        world.guests["bad"] = {"programs": {"broken": {"exit_code": 1}}}
    for disk in ("root", "data"):
        yard.kvm1.write_disk(yard.volume("web", disk), f"written to {disk}".encode())


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return made(tmp_path / "yard", PLAN, used)


def disk(yard: Yard, name: str) -> Mapping[str, Any]:
    """The volume of the disk that the instance has by that name."""
    found = yard.kvm1.instance("web")
    assert found is not None
    (volume,) = [volume for volume in found.volumes if volume.split(".")[2] == name]
    volume_facts: Mapping[str, Any] = picture(yard)[f"volume {volume} on kvm1"]
    return volume_facts


def stopped(yard: Yard, text: str) -> str:
    """Stop the instance; the plan that says so."""
    yard.kvm1.power_off("web")
    return text.replace("    memory: 64 MiB\n", "    memory: 64 MiB\n    state: stopped\n")


def test_a_rebuilt_instance_begins_anew_and_keeps_its_other_disks(yard: Yard) -> None:
    before = yard.kvm1.instance("web")
    assert yard.run(PLAN + REBUILD) == RunState.SUCCEEDED
    assert contents(yard, "web") == {"root": b"base", "data": b"written to data"}
    after = yard.kvm1.instance("web")
    assert before is not None and after is not None
    assert (after.state, after.mark, after.nics) == (State.RUNNING, before.mark, before.nics)
    assert [(item.format, item.bus) for item in after.disks] == [("qcow2", "scsi"), ("raw", "virtio")]
    assert after.volumes[0] != before.volumes[0]
    assert yard.left()["kvm1"].count("shop.web.root") == 1
    assert yard.preview(PLAN).changes == ()


def test_a_stopped_instance_stays_stopped(yard: Yard) -> None:
    assert yard.run(stopped(yard, PLAN + REBUILD)) == RunState.SUCCEEDED
    found = yard.kvm1.instance("web")
    assert found is not None and found.state == State.STOPPED
    assert contents(yard, "web")["root"] == b"base"


def test_a_rebuild_brings_a_changed_image(yard: Yard) -> None:
    assert yard.preview(EDITED).conflicts != ()
    assert yard.run(EDITED + REBUILD) == RunState.SUCCEEDED
    assert contents(yard, "web")["root"] == b"other"
    assert yard.preview(EDITED).changes == ()
    assert yard.preview(PLAN).conflicts != ()


def test_a_rebuild_from_another_image_leaves_the_definition(yard: Yard) -> None:
    before = yard.kvm1.instance("web")
    assert yard.run(PLAN + OTHER) == RunState.SUCCEEDED
    after = yard.kvm1.instance("web")
    assert before is not None and after is not None and after.mark == before.mark
    assert contents(yard, "web")["root"] == b"other"


def test_a_rebuild_makes_the_disk_as_large_as_the_plan_says_or_the_image_needs(yard: Yard) -> None:
    yard.run(PLAN.replace("{size: 2 MiB", "{size: 3 MiB") + REBUILD)
    assert disk(yard, "root")["capacity"] == 3 << 20
    yard.run(PLAN.replace("size: 2 MiB, ", "") + OTHER)
    assert disk(yard, "root")["capacity"] == 2 << 20


def test_a_rebuild_does_not_hide_that_boot_settings_differ() -> None:
    old = Instance("web", "web", "kvm1", 1, 1 << 20, image="base", boot=Boot(Path("/old")))
    new = replace(old, image="other", boot=Boot(Path("/new")))
    assert new.differs_from(old.spec()) == ("image", "boot")
    assert new.differs_from(new.spec_after_rebuild(old.spec())) == ("boot",)


def test_an_earlier_step_of_the_run_may_make_the_image(yard: Yard) -> None:
    text = PLAN + (
        "operations:\n"
        "  - {id: taken, action: snapshot, instances: [web], with: {disk: data}}\n"
        '  - {id: back, action: restore, instances: [web], with: {image: "{{ steps.taken.outputs.image }}"}}\n'
    )
    assert yard.run(text) == RunState.SUCCEEDED
    assert contents(yard, "web") == {"root": b"written to data", "data": b"written to data"}


@pytest.mark.parametrize("where", ["the plan", "the host"])
def test_a_boot_disk_that_is_kept_is_not_rebuilt(tmp_path: Path, where: str) -> None:
    keeping = PLAN.replace("{size: 2 MiB, bus: scsi}", "{size: 2 MiB, bus: scsi, keep: true}")
    yard = made(tmp_path / "yard", keeping)
    before = picture(yard)
    text = keeping if where == "the plan" else PLAN
    assert yard.run(text + REBUILD) == RunState.ROLLED_BACK
    error = yard.journal.step("r2", "anew.web").error
    assert error is not None and error["brief"] == "cannot rebuild web: its boot disk root is to be kept"
    assert picture(yard) == before
    assert yard.run(keeping + RESTORE.replace(", disk: data", "")) == RunState.SUCCEEDED
    assert contents(yard, "web")["root"] == b"other"


@pytest.mark.parametrize(("volume", "why"), [(None, "it has no disk"), ("by-hand.qcow2", "was not made for it")])
def test_an_instance_without_a_boot_disk_of_its_own_is_not_rebuilt(yard: Yard, volume: str | None, why: str) -> None:
    prepared = yard.prepare(PLAN + REBUILD)
    with yard.kvm1.world() as world:
        world.instances["web"].disks = [AttachedDisk(volume)] if volume else []
    before = picture(yard)
    assert yard.carry_out(prepared) == RunState.ROLLED_BACK
    error = yard.journal.step("r2", "anew.web").error
    assert error is not None and error["brief"].endswith(why)
    assert picture(yard) == before


def test_a_restored_disk_is_as_large_as_it_was_or_as_the_image_needs(yard: Yard) -> None:
    assert yard.run(PLAN + RESTORE) == RunState.SUCCEEDED
    assert contents(yard, "web") == {"root": b"written to root", "data": b"other"}
    found = disk(yard, "data")
    assert (found["capacity"], found["format"], found["base"]) == (2 << 20, "raw", None)
    yard.run(PLAN.replace("size: 1 MiB", "size: 2 MiB") + RESTORE.replace("image: other", "image: base"))
    assert disk(yard, "data")["capacity"] == 2 << 20
    assert yard.left()["kvm1"].count("shop.web.data") == 1


def test_a_restored_disk_that_is_kept_outlives_its_instance_and_comes_back(yard: Yard) -> None:
    qcow2 = PLAN.replace("format: raw, keep", "keep")
    yard.destroy(PLAN)
    with yard.kvm1.world() as world:
        world.volumes = {name: volume for name, volume in world.volumes.items() if ".data." not in name}
    text = qcow2.replace("size: 1 MiB", "size: 2 MiB")
    assert yard.run(text) == RunState.SUCCEEDED
    assert yard.run(text + RESTORE) == RunState.SUCCEEDED
    assert yard.destroy(text) == RunState.SUCCEEDED
    assert yard.run(text) == RunState.SUCCEEDED
    assert contents(yard, "web")["data"] == b"other"


def test_a_disk_that_is_not_there_is_not_restored(yard: Yard) -> None:
    before = picture(yard)
    first = "operations:\n  - {id: off, action: detach, instances: [web], with: {disk: data}}\n"
    assert yard.run(PLAN + RESTORE.replace("operations:\n", first)) == RunState.ROLLED_BACK
    error = yard.journal.step("r2", "back.web").error
    assert error is not None and error["brief"] == "cannot make disk data of web anew: it has root"
    assert picture(yard) == before


@pytest.mark.parametrize("text", [PLAN + REBUILD, EDITED + REBUILD, PLAN + OTHER, PLAN + RESTORE])
@pytest.mark.parametrize("state", [State.RUNNING, State.STOPPED])
def test_a_later_failure_brings_all_back(yard: Yard, text: str, state: State) -> None:
    if state == State.STOPPED:
        text = stopped(yard, text)
    before, read = picture(yard), contents(yard, "web")
    assert yard.run(text + FAIL) == RunState.ROLLED_BACK
    assert (picture(yard), contents(yard, "web")) == (before, read)


def test_two_in_one_run_leave_the_last(yard: Yard) -> None:
    again = REBUILD + "  - {id: then, action: restore, instances: [web], with: {image: other}}\n"
    before = picture(yard)
    assert yard.run(PLAN + again + FAIL) == RunState.ROLLED_BACK
    assert picture(yard) == before
    assert yard.run(PLAN + again) == RunState.SUCCEEDED
    assert contents(yard, "web")["root"] == b"other"
    assert yard.left()["kvm1"].count("shop.web.root") == 1


def test_what_is_rebuilt_and_terminated_in_one_run_is_gone(yard: Yard) -> None:
    text = PLAN + REBUILD + "  - {id: gone, action: terminate, instances: [web]}\n"
    assert yard.run(text) == RunState.SUCCEEDED
    assert not [name for name in yard.left()["kvm1"] if "web" in name and "data" not in name]


def test_a_guest_that_does_not_shut_down_is_left_alone_where_force_is_not_allowed(yard: Yard) -> None:
    with yard.kvm1.world() as world:
        world.guests["web"] = {"ignores_shutdown": True}
    before = picture(yard)
    assert yard.run(PLAN + OTHER.replace("image: other}", "image: other, grace: 100ms, force: false}")) == (
        RunState.ROLLED_BACK
    )
    assert picture(yard) == before
    assert "power_off web" not in yard.kvm1.events()


@pytest.mark.sweep
@pytest.mark.parametrize("at", ["before", "after"])
@pytest.mark.parametrize("text", [EDITED + REBUILD, PLAN + RESTORE], ids=["rebuild", "restore"])
def test_a_fault_at_any_call_leaves_all_as_before(yard: Yard, text: str, at: str) -> None:
    before, number = picture(yard), 0
    for trial in with_faults(yard, text, at=at):  # type: ignore[arg-type] # one of two words
        number += 1
        if trial.state == RunState.SUCCEEDED:
            assert b"other" in contents(trial.yard, "web").values(), trial.where
            assert trial.yard.left()["kvm1"].count("shop.web.root") == 1, trial.where
            assert trial.yard.left()["kvm1"].count("shop.web.data") == 1, trial.where
        else:
            assert (trial.state, picture(trial.yard)) == (RunState.ROLLED_BACK, before), trial.where
    assert number > 10


@pytest.mark.sweep
def test_an_undo_that_fails_twice_succeeds_in_the_end(yard: Yard) -> None:
    before = picture(yard)
    for trial in with_faults(yard, EDITED + REBUILD + FAIL, times=2):
        assert (trial.state, picture(trial.yard)) == (RunState.ROLLED_BACK, before), trial.where


@pytest.mark.sweep
def test_a_passing_fault_is_passed(yard: Yard) -> None:
    text = EDITED + REBUILD.replace("instances: [web]", "instances: [web], retry: {attempts: 2, delay: 1ms}")
    for trial in with_faults(yard, text, error="transient", at="after"):
        assert trial.state == RunState.SUCCEEDED, trial.where
        assert contents(trial.yard, "web") == {"root": b"other", "data": b"written to data"}, trial.where
        assert trial.yard.preview(EDITED).changes == (), trial.where


@pytest.mark.sweep
@pytest.mark.parametrize("forward", [False, True], ids=["back", "forward"])
@pytest.mark.parametrize("before_it", [True, False], ids=["before", "after"])
def test_killed_at_every_word(yard: Yard, before_it: bool, forward: bool) -> None:
    text = EDITED + REBUILD + "  - {id: back, action: restore, instances: [web], with: {image: other, disk: data}}\n"
    before, number = picture(yard), 0
    for trial in killed_everywhere(yard, text, before=before_it, forward=forward):
        number += 1
        found = trial.yard.kvm1.instance("web")
        assert found is not None and found.state == State.RUNNING, trial.where
        if trial.state == RunState.SUCCEEDED:
            assert contents(trial.yard, "web") == {"root": b"other", "data": b"other"}, trial.where
            assert len(trial.yard.left()["kvm1"]) == 7, trial.where
            assert trial.yard.preview(EDITED.replace("size: 1 MiB", "size: 2 MiB")).changes == (), trial.where
        else:
            assert picture(trial.yard) == before, trial.where
    assert number > 20


@pytest.mark.parametrize("verb", ["rebuild", "restore"])
def test_a_new_disk_that_has_grown_since_goes_too(tmp_path: Path, verb: str) -> None:
    text = (
        "images:\n  base: {source: ./base.raw, format: raw}\n"
        "instances:\n  web: {memory: 64 MiB, image: base, disks: [1 MiB]}\n"
    )
    yard = made(tmp_path / "grown", text)
    before = picture(yard)
    yard.kvm1.fail("suspend", name="web", error="error", times=None)
    ended = yard.run(
        f"{text}operations:\n"
        f"  - {{action: {verb}, instances: [web], with: {{image: base}}}}\n"
        "  - {action: resize, instances: [web], with: {disks: {root: 2 MiB}}}\n"
        "  - {action: suspend, instances: [web]}\n"
    )
    assert ended == RunState.ROLLED_BACK
    assert picture(yard) == before


def test_a_name_means_the_newest_image_also_of_the_same_run(tmp_path: Path) -> None:
    text = (
        "instances:\n  web: {memory: 64 MiB, disks: [1 MiB]}\n  copy: {memory: 64 MiB, disks: [1 MiB], needs: [web]}\n"
    )
    snapshot = "{action: snapshot, instances: [web], with: {upload: {name: last}}}"
    restore = "{id: %s, action: restore, instances: [copy], with: {image: local/last}}"
    yard = made(tmp_path / "named", text)
    yard.kvm1.write_disk(yard.volume("web", "root"), b"old")
    assert yard.run(f"{text}operations: [{snapshot}]\n") == RunState.SUCCEEDED
    yard.kvm1.write_disk(yard.volume("web", "root"), b"new")
    operations = f"[{restore % 'before'}, {snapshot}, {restore % 'after'}]"
    assert yard.run(f"{text}operations: {operations}\n") == RunState.SUCCEEDED
    assert contents(yard, "copy")["root"] == b"new"
