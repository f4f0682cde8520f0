"""backup: as a snapshot, and once the run has succeeded only the newest few of its class are kept."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from drivers.directory import DirectoryStore
from drivers.errors import DriverError
from drivers.image_store import StoredImage
from drivers.simulated import disk_file
from flows.actions import backup as backup_verb
from flows.call import Call, RunFacts
from flows.world import World
from planvirt.deadline import Deadline
from planvirt.journal.transitions import RunState
from tests.flows.aftermath import killed_everywhere, made, picture, with_faults
from tests.flows.yard import Yard

NIGHTLY = Path(__file__).parents[2] / "plans" / "nightly.yaml"
PLAN = """\
images:
  base: {source: ./base.raw, format: raw}
instances:
  web: {image: base, memory: 64 MiB, disks: [2 MiB, {name: data, size: 1 MiB}]}
  bad: {memory: 64 MiB, disks: [1 MiB]}
"""
FAIL = "  - {id: fail, action: exec, instances: [bad], with: {command: [broken]}}\n"


def broken(yard: Yard) -> None:
    with yard.kvm1.world() as world:
        world.guests["bad"] = {"programs": {"broken": {"exit_code": 1}}}


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return made(tmp_path / "yard", PLAN, broken)


def backup(keep: int = 2, kind: str = "daily", name: str = "{{ run.id }}", more: str = "") -> str:
    return (
        f"{PLAN}operations:\n  - {{id: keep, action: backup, instances: [web], "
        f'with: {{keep: {keep}, class: {kind}{more}, upload: {{name: "{name}"}}}}}}\n'
    )


def stored(yard: Yard) -> Sequence[StoredImage]:
    """The images of the store, newest first."""
    with World(yard.config) as world:
        return world.store("local").list()


def names(yard: Yard) -> list[str]:
    return [image.name for image in stored(yard)]


def test_the_newest_of_each_class_stay(yard: Yard) -> None:
    for number in range(1, 5):
        assert yard.run(backup(name=f"day-{number}")) == RunState.SUCCEEDED
    assert yard.run(backup(kind="weekly", name="week")) == RunState.SUCCEEDED
    assert names(yard) == ["week", "day-4", "day-3"]
    assert {image.properties["image_type"] for image in stored(yard)} == {"backup"}
    assert [image.properties["backup_type"] for image in stored(yard)] == ["weekly", "daily", "daily"]


def test_what_is_of_something_else_stays(yard: Yard) -> None:
    others = (
        (backup(kind="weekly", name="weekly"), "shop"),
        (backup(name="data", more=", disk: data"), "shop"),
        (backup(name="bad").replace("instances: [web]", "instances: [bad]"), "shop"),
        (PLAN + "operations:\n  - {action: snapshot, instances: [web], with: {upload: {name: snapshot}}}\n", "shop"),
        (backup(name="other plan").replace("web", "web2").replace("bad", "bad2"), "other"),
    )
    for text, plan in others:
        assert yard.run(text, name=plan) == RunState.SUCCEEDED
    for number in range(3):
        assert yard.run(backup(keep=1, name=f"day-{number}")) == RunState.SUCCEEDED
    assert names(yard) == ["day-2", "other plan", "snapshot", "bad", "data", "weekly"]


def test_each_disk_is_counted_for_itself(yard: Yard) -> None:
    for number in range(3):
        assert yard.run(backup(name=f"day-{number}", more=", disks: all")) == RunState.SUCCEEDED
    assert sorted(names(yard)) == ["day-1-data", "day-1-root", "day-2-data", "day-2-root"]


def test_the_one_just_made_stays_whatever_the_clock_says(yard: Yard) -> None:
    for number in range(2):
        assert yard.run(backup(name=f"day-{number}")) == RunState.SUCCEEDED
    for path in (yard.folder / "store" / "images").glob("*.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"created": record["created"] + 86400.0}))
    assert yard.run(backup(keep=1, name="now")) == RunState.SUCCEEDED
    assert names(yard) == ["now"]


def test_a_run_that_fails_prunes_nothing(yard: Yard) -> None:
    for number in range(2):
        assert yard.run(backup(name=f"day-{number}")) == RunState.SUCCEEDED
    before = picture(yard)
    assert yard.run(backup(keep=1) + FAIL) == RunState.ROLLED_BACK
    assert picture(yard) == before


class Stubborn(DirectoryStore):
    """A store that does not let go of one of its images."""

    kept = ""

    def delete(self, id: str) -> None:
        if id == self.kept:
            raise DriverError(f"cannot delete image {id}", details="it is under guard")
        super().delete(id)


class StubbornWorld(World):
    def store(self, name: str) -> Stubborn:
        return Stubborn(name, self.config.home / "store")


def commit_again(yard: Yard, world: World, keep: int) -> list[str]:
    """The end of the yard's last run once more; the words that it said."""
    record, said = yard.journal.step(f"r{yard.runs}", "keep.web"), list[str]()
    backup_verb.commit(
        Call(
            run=RunFacts(f"r{yard.runs}", "shop", "", ""),
            step=record.id,
            instance="web",
            uuid=record.uuid,
            host="kvm1",
            arguments={"keep": keep, "class": "daily"},
            world=world,
            deadline=Deadline(),
            undo=dict(record.undo),
            record=lambda _phase, _undo: None,
            log=said.append,
        )
    )
    return said


def test_one_that_cannot_be_deleted_does_not_keep_the_others(yard: Yard) -> None:
    for number in range(4):
        assert yard.run(backup(keep=9, name=f"day-{number}")) == RunState.SUCCEEDED
    Stubborn.kept = next(image.id for image in stored(yard) if image.name == "day-0")
    with StubbornWorld(yard.config) as world:
        said = commit_again(yard, world, keep=2)
    assert names(yard) == ["day-3", "day-2", "day-0"]
    assert said[:2] == [
        f"delete the surplus image local/{Stubborn.kept} (day-0)",
        f"the image local/{Stubborn.kept} stays, the next backup tries again: "
        f"cannot delete image {Stubborn.kept}: it is under guard",
    ]
    assert yard.run(backup(keep=2, name="day-4")) == RunState.SUCCEEDED
    assert names(yard) == ["day-4", "day-3"]


def test_an_image_that_is_gone_again_is_no_reason_to_prune(yard: Yard) -> None:
    for number in range(3):
        assert yard.run(backup(keep=9, name=f"day-{number}")) == RunState.SUCCEEDED
    with World(yard.config) as world:
        world.store("local").delete(stored(yard)[0].id)
        commit_again(yard, world, keep=1)
    assert names(yard) == ["day-1", "day-0"]


def test_the_preview_says_what_goes(yard: Yard) -> None:
    assert yard.preview(backup(keep=7)).destroys == (
        "all but the newest 7 backups of class daily of web in store local",
    )
    assert yard.preview(backup(keep=1, more=", disks: all")).destroys == (
        "all but the newest backup of class daily of each disk of web in store local",
    )
    late = backup().replace("keep: 2", 'keep: "{{ steps.first.outputs.size }}"')
    first = "operations:\n  - {id: first, action: snapshot, instances: [web]}\n"
    assert yard.preview(late.replace("operations:\n", first)).destroys == (
        "the backups of class daily that are more than 'keep' says of web in store local",
    )


@pytest.mark.parametrize("at", ["before", "after"])
def test_a_fault_at_any_call_leaves_all_as_before(yard: Yard, at: str) -> None:
    for number in range(2):
        assert yard.run(backup(name=f"day-{number}")) == RunState.SUCCEEDED
    before, number = picture(yard), 0
    for trial in with_faults(yard, backup(keep=1, name="now"), at=at):  # type: ignore[arg-type] # one of two words
        number += 1
        if trial.state == RunState.SUCCEEDED:
            assert names(trial.yard) == ["now"], trial.where
        else:
            assert (trial.state, picture(trial.yard)) == (RunState.ROLLED_BACK, before), trial.where
    assert number > 5


@pytest.mark.real
@pytest.mark.parametrize("forward", [False, True], ids=["back", "forward"])
@pytest.mark.parametrize("before_it", [True, False], ids=["before", "after"])
def test_killed_at_every_word(yard: Yard, before_it: bool, forward: bool) -> None:
    for number in range(3):
        assert yard.run(backup(keep=3, name=f"day-{number}")) == RunState.SUCCEEDED
    before, number = picture(yard), 0
    for trial in killed_everywhere(yard, backup(keep=2, name="now"), before=before_it, forward=forward):
        number += 1
        if trial.state == RunState.SUCCEEDED:
            assert names(trial.yard) == ["now", "day-2"], trial.where
        else:
            assert picture(trial.yard) == before, trial.where
    assert number > 10


def test_the_example_keeps_what_it_says(tmp_path: Path) -> None:
    """plans/nightly.yaml, for nine nights with two Sundays."""
    (tmp_path / "debian-12.qcow2").write_bytes(disk_file.qcow2(1 << 30, b"debian", None))
    yard, text = Yard(tmp_path), NIGHTLY.read_text()
    _, _, body = text.partition("name: nightly\n")
    for night in range(9):
        sunday = body.replace("default: false", f"default: {str(night in (2, 8)).lower()}")
        assert yard.run(sunday, name="nightly") == RunState.SUCCEEDED
    found = Counter(
        (image.properties["planvirt_instance"], image.properties["planvirt_disk"], image.properties["backup_type"])
        for image in stored(yard)
    )
    assert found == {
        ("db", "root", "daily"): 7,
        ("db", "data", "daily"): 7,
        ("web", "root", "daily"): 7,
        ("db", "root", "weekly"): 2,
        ("db", "data", "weekly"): 2,
    }
    assert not [name for name in yard.left()["kvm1"] if "backup" in name]
