"""shelve and unshelve: disks become images and images become disks, and nothing is lost on the way."""

import json
from pathlib import Path

import pytest

from drivers.errors import DriverError
from flows.preview import Refused
from flows.world import World
from planvirt.deadline import Deadline
from planvirt.journal.transitions import RunState
from planvirt.states import Note, State
from tests.flows.aftermath import contents, killed_everywhere, made, picture, with_faults
from tests.flows.yard import Yard

PLAN = """\
images:
  base: {source: ./base.raw, format: raw}
instances:
  web:
    image: base
    memory: 64 MiB
    disks: [{size: 2 MiB, bus: scsi}, {name: data, size: 1 MiB, format: raw}]
  bad: {memory: 64 MiB, disks: [1 MiB]}
"""
KEEPING = PLAN.replace("size: 1 MiB, format: raw", "size: 1 MiB, keep: true")
SHELVE = "operations:\n  - {id: off, action: shelve, instances: [web], with: {store: local}}\n"
UNSHELVE = "operations:\n  - {id: on, action: unshelve, instances: [web]}\n"
BOTH = SHELVE + "  - {id: on, action: unshelve, instances: [web]}\n"
GONE = "operations:\n  - {id: gone, action: terminate, instances: [web]}\n"
FAIL = "  - {id: fail, action: exec, instances: [bad], with: {command: [broken]}}\n"


def used(yard: Yard) -> None:
    """Let the guest have written to its disks, and have every run fail that ends with FAIL."""
    with yard.kvm1.world() as world:
        world.guests["bad"] = {"programs": {"broken": {"exit_code": 1}}}
    for disk in ("root", "data"):
        yard.kvm1.write_disk(yard.volume("web", disk), f"written to {disk}".encode())


WRITTEN = {"root": b"written to root", "data": b"written to data"}


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return made(tmp_path / "yard", PLAN, used)


@pytest.fixture
def shelved(yard: Yard) -> Yard:
    assert yard.run(PLAN + SHELVE) == RunState.SUCCEEDED
    return yard


def images(yard: Yard) -> dict[str, tuple[str, str]]:
    """Name and status of the images of the store, by the disks that they were."""
    with World(yard.config) as world:
        return {image.properties["planvirt_disk"]: (image.name, image.status) for image in world.store("local").list()}


def volumes(yard: Yard) -> list[str]:
    """The disks of the instance that are on the host."""
    return [name for name in yard.left()["kvm1"] if name.startswith("shop.web.")]


def state(yard: Yard) -> State | None:
    found = yard.kvm1.instance("web")
    return None if found is None else found.state


def stand(yard: Yard, state: State) -> str:
    """Bring the instance into that state; the plan that says so."""
    if state == State.STOPPED:
        yard.kvm1.power_off("web")
    elif state == State.PAUSED:
        yard.kvm1.pause("web")
    elif state == State.SUSPENDED:
        yard.kvm1.suspend("web", Deadline())
    return PLAN.replace("    memory: 64 MiB\n", f"    memory: 64 MiB\n    state: {state}\n", 1)


def test_a_shelved_instance_is_off_and_its_disks_are_images(yard: Yard) -> None:
    assert yard.run(PLAN + SHELVE) == RunState.SUCCEEDED
    found = yard.kvm1.instance("web")
    assert found is not None and (found.state, found.power) == (State.SHELVED, State.STOPPED)
    assert volumes(yard) == []
    assert images(yard) == {
        "root": ("web-root-shelved", "active"),
        "data": ("web-data-shelved", "active"),
    }
    outputs = yard.journal.step("r2", "off.web").outputs
    assert sorted(outputs["images"]) == ["data", "root"]
    assert sorted(json.loads(found.notes[Note.SHELVED])["images"]) == sorted(outputs["images"].values())


def test_what_is_shelved_is_refused_by_other_verbs(shelved: Yard) -> None:
    for action in ("start", "shelve", "snapshot", "rebuild", "exec"):
        given = ", with: {command: [w]}" if action == "exec" else ""
        with pytest.raises(Refused):
            shelved.run(PLAN + f"operations:\n  - {{action: {action}, instances: [web]{given}}}\n")


def test_an_unshelved_instance_is_what_it_was(yard: Yard) -> None:
    before = picture(yard)
    yard.run(PLAN + SHELVE)
    assert yard.run(PLAN + UNSHELVE) == RunState.SUCCEEDED
    assert contents(yard, "web") == WRITTEN
    assert images(yard) == {}
    after = picture(yard)
    assert after["instance web on kvm1"] == before["instance web on kvm1"]
    assert sorted(after) == sorted(before)
    for name in before:
        if name.startswith("volume "):
            assert [after[name][key] for key in ("capacity", "format")] == [
                before[name][key] for key in ("capacity", "format")
            ]
    assert yard.preview(PLAN).changes == ()


def test_what_was_off_when_it_was_shelved_stays_off(yard: Yard) -> None:
    text = stand(yard, State.STOPPED)
    yard.run(text + SHELVE)
    assert yard.run(text + UNSHELVE) == RunState.SUCCEEDED
    assert (state(yard), contents(yard, "web")) == (State.STOPPED, WRITTEN)


@pytest.mark.parametrize("before", [State.PAUSED, State.SUSPENDED])
def test_a_guest_that_stands_still_is_given_up(yard: Yard, before: State) -> None:
    text = PLAN + SHELVE.replace("operations:\n", "operations:\n  - {action: VERB, instances: [web]}\n").replace(
        "VERB", "pause" if before == State.PAUSED else "suspend"
    )
    assert yard.run(text) == RunState.SUCCEEDED
    assert state(yard) == State.SHELVED
    assert yard.run(PLAN + UNSHELVE) == RunState.SUCCEEDED
    assert (state(yard), contents(yard, "web")) == (State.STOPPED, WRITTEN)


def test_it_can_be_shelved_time_and_again(yard: Yard) -> None:
    for _ in range(2):
        assert yard.run(PLAN + SHELVE) == RunState.SUCCEEDED
        assert yard.run(PLAN + UNSHELVE) == RunState.SUCCEEDED
        assert (contents(yard, "web"), images(yard)) == (WRITTEN, {})


def test_both_in_one_run_leave_the_disks_where_they_were(yard: Yard) -> None:
    before = picture(yard)
    assert yard.run(PLAN + BOTH) == RunState.SUCCEEDED
    assert picture(yard) == before


def test_to_be_shelved_anew_in_one_run(shelved: Yard) -> None:
    text = PLAN + UNSHELVE + "  - {id: off, action: shelve, instances: [web]}\n"
    assert shelved.run(text) == RunState.SUCCEEDED
    assert (state(shelved), volumes(shelved), len(images(shelved))) == (State.SHELVED, [], 2)
    assert shelved.run(PLAN + UNSHELVE) == RunState.SUCCEEDED
    assert contents(shelved, "web") == WRITTEN


def test_disks_that_a_kept_run_has_left_are_used_as_they_are(yard: Yard) -> None:
    kept = PLAN.replace("images:\n", "on_failure: keep\nimages:\n", 1)
    before = picture(yard)
    assert yard.run(kept + SHELVE + FAIL) == RunState.KEPT
    assert (state(yard), len(volumes(yard)), len(images(yard))) == (State.SHELVED, 2, 2)
    assert yard.run(PLAN + UNSHELVE) == RunState.SUCCEEDED
    assert picture(yard) == before


def test_a_kept_run_can_be_rolled_back(yard: Yard) -> None:
    kept = PLAN.replace("images:\n", "on_failure: keep\nimages:\n", 1)
    before = picture(yard)
    assert yard.run(kept + SHELVE + FAIL) == RunState.KEPT
    assert yard.roll_back("r2") == RunState.ROLLED_BACK
    assert picture(yard) == before


def test_a_disk_of_another_instance_that_was_attached_by_hand_stays(yard: Yard) -> None:
    other = yard.volume("bad", "root")
    with yard.kvm1.world() as world:
        (disk,) = world.instances["bad"].disks
        world.instances["web"].disks.append(disk)
        world.instances["bad"].disks.clear()
    assert yard.run(PLAN.replace("  bad: {memory: 64 MiB, disks: [1 MiB]}\n", "") + SHELVE) == RunState.SUCCEEDED
    assert f"volume {other} on kvm1" in picture(yard)
    assert sorted(images(yard)) == ["data", "root"]


def test_a_note_that_somebody_has_spoilt_is_not_guessed_at(shelved: Yard) -> None:
    with shelved.kvm1.world() as world:
        world.instances["web"].notes[Note.SHELVED.value] = "gone to the attic"
    before = picture(shelved)
    assert shelved.run(PLAN + UNSHELVE) == RunState.ROLLED_BACK
    error = shelved.journal.step("r3", "on.web").error
    assert error is not None and error["details"] == "gone to the attic"
    assert picture(shelved) == before


def test_an_image_that_has_changed_is_not_brought_back(shelved: Yard) -> None:
    for path in (shelved.folder / "store" / "blobs").rglob("*"):
        if path.is_file() and b"written to root" in path.read_bytes():
            path.chmod(0o644)
            path.write_bytes(path.read_bytes().replace(b"written to root", b"forged in root!"))
    before = picture(shelved)
    assert shelved.run(PLAN + UNSHELVE) == RunState.ROLLED_BACK
    assert picture(shelved) == before


# What becomes of the disks when a shelved instance goes


def test_a_terminated_instance_takes_its_images_along(shelved: Yard) -> None:
    assert shelved.run(PLAN + GONE) == RunState.SUCCEEDED
    assert (state(shelved), volumes(shelved), images(shelved)) == (None, [], {})


def test_a_destroyed_instance_takes_its_images_along(shelved: Yard) -> None:
    assert shelved.destroy(PLAN) == RunState.SUCCEEDED
    assert picture(shelved) == {}


def test_a_preview_tells_of_the_images_that_go(shelved: Yard) -> None:
    kept = PLAN.replace("size: 1 MiB, format: raw", "size: 1 MiB, format: raw, keep: true")
    assert "instance web on kvm1 with 2 disks, shelved as 2 images" in shelved.preview(PLAN, destroy=True).destroys
    assert "instance web on kvm1 with 1 disk, shelved as 1 image (keeps data)" in (
        shelved.preview(kept, destroy=True).destroys
    )


def test_a_store_that_cannot_be_written_to_is_refused_before_anything_is_done(yard: Yard) -> None:
    (yard.folder / "store").write_text("in the way")
    with pytest.raises(DriverError):
        yard.prepare(PLAN + SHELVE)


def test_what_a_kept_disk_became_outlives_the_instance(tmp_path: Path) -> None:
    yard = made(tmp_path / "yard", KEEPING, used)
    yard.run(KEEPING + SHELVE)
    assert yard.run(KEEPING + GONE) == RunState.SUCCEEDED
    assert images(yard) == {"data": ("web-data-shelved", "active")}


def test_a_kept_disk_comes_back_as_one(tmp_path: Path) -> None:
    yard = made(tmp_path / "yard", KEEPING, used)
    yard.run(KEEPING + SHELVE)
    yard.run(KEEPING + UNSHELVE)
    assert yard.destroy(KEEPING) == RunState.SUCCEEDED
    assert volumes(yard) == ["shop.web.data"]
    assert yard.run(KEEPING) == RunState.SUCCEEDED
    assert contents(yard, "web")["data"] == b"written to data"


def test_a_terminated_instance_comes_back_shelved(shelved: Yard) -> None:
    before = picture(shelved)
    assert shelved.run(PLAN + GONE + FAIL) == RunState.ROLLED_BACK
    assert picture(shelved) == before


def test_a_note_cannot_have_other_images_deleted(yard: Yard) -> None:
    yard.run(PLAN + "operations:\n  - {action: snapshot, instances: [web], with: {disk: data}}\n")
    with World(yard.config) as world:
        (image,) = world.store("local").list()
    with yard.kvm1.world() as paper:
        note = {"images": [f"local/{image.id}"], "disks": {}, "was": "running"}
        paper.instances["web"].notes[Note.SHELVED.value] = json.dumps(note)
    assert yard.destroy(PLAN) == RunState.SUCCEEDED
    assert list(images(yard)) == ["data"]


def test_shelved_and_terminated_in_one_run(yard: Yard) -> None:
    text = PLAN + SHELVE + "  - {id: gone, action: terminate, instances: [web]}\n"
    before = picture(yard)
    assert yard.run(text + FAIL) == RunState.ROLLED_BACK
    assert picture(yard) == before
    assert yard.run(text) == RunState.SUCCEEDED
    assert (state(yard), volumes(yard), images(yard)) == (None, [], {})


# When things go wrong


@pytest.mark.parametrize("before", [State.RUNNING, State.STOPPED])
@pytest.mark.parametrize("operations", [SHELVE, BOTH], ids=["shelve", "both"])
def test_a_later_failure_brings_all_back(yard: Yard, before: State, operations: str) -> None:
    text = stand(yard, before)
    there = picture(yard)
    assert yard.run(text + operations + FAIL) == RunState.ROLLED_BACK
    assert picture(yard) == there


def test_a_later_failure_shelves_it_again(shelved: Yard) -> None:
    before = picture(shelved)
    assert shelved.run(PLAN + UNSHELVE + FAIL) == RunState.ROLLED_BACK
    assert picture(shelved) == before
    assert shelved.run(PLAN + UNSHELVE) == RunState.SUCCEEDED
    assert contents(shelved, "web") == WRITTEN


def test_a_guest_that_does_not_shut_down_is_left_alone(yard: Yard) -> None:
    with yard.kvm1.world() as world:
        world.guests["web"] = {"ignores_shutdown": True}
    before = picture(yard)
    assert yard.run(PLAN + SHELVE.replace("store: local", "store: local, grace: 100ms")) == RunState.ROLLED_BACK
    assert picture(yard) == before
    assert "power_off web" not in yard.kvm1.events()


@pytest.mark.sweep
@pytest.mark.parametrize("at", ["before", "after"])
def test_a_fault_at_any_call_of_a_shelve_leaves_all_as_before(yard: Yard, at: str) -> None:
    before, number = picture(yard), 0
    for trial in with_faults(yard, PLAN + SHELVE, at=at):  # type: ignore[arg-type] # one of two words
        number += 1
        if trial.state == RunState.SUCCEEDED:
            assert (state(trial.yard), volumes(trial.yard)) == (State.SHELVED, []), trial.where
        else:
            assert (trial.state, picture(trial.yard)) == (RunState.ROLLED_BACK, before), trial.where
    assert number > 15


@pytest.mark.sweep
@pytest.mark.parametrize("at", ["before", "after"])
def test_a_fault_at_any_call_of_an_unshelve_leaves_all_as_before(shelved: Yard, at: str) -> None:
    before, number = picture(shelved), 0
    for trial in with_faults(shelved, PLAN + UNSHELVE, at=at):  # type: ignore[arg-type] # one of two words
        number += 1
        if trial.state == RunState.SUCCEEDED:
            assert (contents(trial.yard, "web"), images(trial.yard)) == (WRITTEN, {}), trial.where
        else:
            assert (trial.state, picture(trial.yard)) == (RunState.ROLLED_BACK, before), trial.where
    assert number > 8


@pytest.mark.sweep
def test_an_undo_of_a_shelve_that_fails_twice_succeeds_in_the_end(yard: Yard) -> None:
    before = picture(yard)
    for trial in with_faults(yard, PLAN + SHELVE + FAIL, times=2):
        assert (trial.state, picture(trial.yard)) == (RunState.ROLLED_BACK, before), trial.where


@pytest.mark.sweep
def test_an_undo_of_an_unshelve_that_fails_twice_succeeds_in_the_end(shelved: Yard) -> None:
    before = picture(shelved)
    for trial in with_faults(shelved, PLAN + UNSHELVE + FAIL, times=2):
        assert (trial.state, picture(trial.yard)) == (RunState.ROLLED_BACK, before), trial.where


@pytest.mark.sweep
@pytest.mark.parametrize("operations", [SHELVE, BOTH], ids=["shelve", "both"])
def test_a_passing_fault_is_passed(yard: Yard, operations: str) -> None:
    text = PLAN + operations.replace("instances: [web]", "instances: [web], retry: {attempts: 2, delay: 1ms}")
    for trial in with_faults(yard, text, error="transient", at="after"):
        assert trial.state == RunState.SUCCEEDED, trial.where
        if operations == SHELVE:
            assert (volumes(trial.yard), len(images(trial.yard))) == ([], 2), trial.where
        else:
            assert (contents(trial.yard, "web"), images(trial.yard)) == (WRITTEN, {}), trial.where


@pytest.mark.sweep
@pytest.mark.parametrize("forward", [False, True], ids=["back", "forward"])
@pytest.mark.parametrize("before_it", [True, False], ids=["before", "after"])
def test_a_shelve_killed_at_every_word(yard: Yard, before_it: bool, forward: bool) -> None:
    before, number = picture(yard), 0
    for trial in killed_everywhere(yard, PLAN + SHELVE, before=before_it, forward=forward):
        number += 1
        if trial.state == RunState.SUCCEEDED:
            assert (state(trial.yard), volumes(trial.yard), len(images(trial.yard))) == (State.SHELVED, [], 2)
        else:
            assert picture(trial.yard) == before, trial.where
    assert number > 20


@pytest.mark.sweep
@pytest.mark.parametrize("forward", [False, True], ids=["back", "forward"])
@pytest.mark.parametrize("before_it", [True, False], ids=["before", "after"])
def test_an_unshelve_killed_at_every_word(shelved: Yard, before_it: bool, forward: bool) -> None:
    before, number = picture(shelved), 0
    for trial in killed_everywhere(shelved, PLAN + UNSHELVE, before=before_it, forward=forward):
        number += 1
        if trial.state == RunState.SUCCEEDED:
            assert (contents(trial.yard, "web"), images(trial.yard)) == (WRITTEN, {}), trial.where
            assert state(trial.yard) == State.RUNNING, trial.where
        else:
            assert picture(trial.yard) == before, trial.where
    assert number > 15
