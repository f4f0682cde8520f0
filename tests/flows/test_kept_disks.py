"""Which disks go with an instance, which outlive it, and which a new instance gets back."""

import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest

from flows.kept_disks import check_header
from flows.preview import Refused
from planvirt.errors import Conflict
from planvirt.journal.transitions import RunState
from planvirt.plan import Disk, Instance
from tests.flows.yard import Yard

KEEPING = "instances:\n  db: {memory: 64 MiB, disks: [1 MiB, {name: data, size: 1 MiB, keep: true}]}\n"
NOTHING = "instances: {}\n"


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return Yard(tmp_path)


def kept_as(yard: Yard, *, format: str = "qcow2", size: int = 1 << 20, base: str | None = None) -> str:
    """Leave a kept disk behind that has become such a one. Returns its volume's name."""
    yard.run(KEEPING)
    yard.destroy(KEEPING)
    data = yard.volume("db", "data")
    with yard.kvm1.world() as world:
        volume = world.volumes[data]
        volume.format, volume.capacity, volume.base = format, size, base
    return data


def test_a_disk_is_kept_when_its_instance_has_left_the_plan(yard: Yard) -> None:
    yard.run(KEEPING)
    assert yard.preview(NOTHING, destroy=True).destroys == ("instance db on kvm1 with 1 disk (keeps data)",)
    assert yard.destroy(NOTHING) == RunState.SUCCEEDED
    assert yard.left() == {"kvm1": ["shop.db.data"]}


def test_the_plan_can_keep_a_disk_that_was_made_without_that(yard: Yard) -> None:
    yard.run(KEEPING.replace(", keep: true", ""))
    preview = yard.preview(KEEPING)
    assert (preview.conflicts, preview.changes) == ((), ())
    assert yard.preview(KEEPING, destroy=True).destroys == ("instance db on kvm1 with 1 disk (keeps data)",)
    yard.destroy(KEEPING)
    assert yard.left() == {"kvm1": ["shop.db.data"]}


def test_a_disk_that_was_made_to_be_kept_stays_when_the_plan_says_so_no_more(yard: Yard) -> None:
    yard.run(KEEPING)
    edited = KEEPING.replace(", keep: true", "")
    assert yard.preview(edited).conflicts == ()
    yard.destroy(edited)
    assert yard.left() == {"kvm1": ["shop.db.data"]}


def test_keeping_a_disk_does_not_make_another_machine() -> None:
    def spec(*, keep: bool, protect: bool) -> str:
        disks = (Disk("root", 1 << 20), Disk("data", 1 << 20, keep=keep))
        return Instance("db", "db", "kvm1", 1, 1 << 20, disks=disks, protect=protect).spec()

    assert spec(keep=True, protect=True) == spec(keep=False, protect=False)


def test_a_disk_of_another_instance_that_was_attached_by_hand_stays(yard: Yard) -> None:
    yard.run(KEEPING)
    yard.run("instances:\n  web: {memory: 64 MiB, disks: [1 MiB]}\n", name="other")
    (foreign,) = [volume.name for volume in yard.kvm1.volumes() if volume.mark and volume.mark.plan == "other"]
    with yard.kvm1.world() as world:
        world.instances["db"].volumes.append(foreign)
        del world.instances["web"]
    assert yard.preview(NOTHING, destroy=True).destroys == ("instance db on kvm1 with 1 disk (keeps data)",)
    assert yard.destroy(KEEPING) == RunState.SUCCEEDED
    assert [key.split(".")[0] for key in yard.left()["kvm1"]] == ["other", "shop"]


def test_a_kept_disk_comes_back(yard: Yard) -> None:
    data = kept_as(yard)
    assert yard.preview(KEEPING).conflicts == ()
    assert yard.run(KEEPING) == RunState.SUCCEEDED
    found = yard.kvm1.instance("db")
    assert found is not None and data in found.volumes


@pytest.mark.parametrize(("format", "size", "why"), [
    ("raw", 1 << 20, "it is raw, the plan says qcow2"),
    ("qcow2", 2 << 20, "it has 2 MiB, the plan says 1 MiB"),
    ("qcow2", 1 << 19, "it has 512 KiB, the plan says 1 MiB"),
])  # fmt: skip
def test_a_kept_disk_that_is_another_one_is_refused(yard: Yard, format: str, size: int, why: str) -> None:
    data = kept_as(yard, format=format, size=size)
    expected = f"launch.db: cannot attach the kept disk data of db: {why}: volume {data}"
    assert yard.preview(KEEPING).conflicts == (expected,)
    with pytest.raises(Refused):
        yard.run(KEEPING)


def test_a_kept_disk_whose_header_names_a_file_beneath_it_is_refused(yard: Yard) -> None:
    kept_as(yard, base="shadow")
    (conflict,) = yard.preview(KEEPING).conflicts
    assert "it says that it is built on shadow" in conflict


@pytest.mark.parametrize(("options", "refused"), [
    ((), False),
    (("-o", "data_file=elsewhere.raw"), True),
    (("-o", "compat=0.10"), False),
])  # fmt: skip
def test_a_kept_disk_whose_header_leads_to_another_file_is_refused(
    tmp_path: Path, options: tuple[str, ...], refused: bool
) -> None:
    path = tmp_path / "disk.qcow2"
    command = ["qemu-img", "create", "-q", "-f", "qcow2", *options, str(path), "1M"]
    subprocess.run(command, check=True, cwd=tmp_path)
    disk = Disk("data", 1 << 20, keep=True)
    with path.open("rb") as file, pytest.raises(Conflict) if refused else nullcontext():
        check_header(Instance("db", "db", "kvm1", 1, 1 << 20, disks=(disk,)), disk, file)


def test_a_kept_disk_may_be_as_much_larger_as_the_host_rounds(yard: Yard) -> None:
    kept_as(yard, size=(1 << 20) + 512)
    assert yard.run(KEEPING) == RunState.SUCCEEDED


def test_two_kept_disks_of_one_name_are_refused(yard: Yard) -> None:
    first = kept_as(yard)
    second = first.replace(".r1.", ".r9.")
    with yard.kvm1.world() as world:
        world.volumes[second] = world.volumes[first]
    expected = f"launch.db: cannot attach the kept disk data of db: there are 2 of them: {first}, {second}"
    assert yard.preview(KEEPING).conflicts == (expected,)


def test_a_kept_disk_that_changed_since_the_preview_is_refused_too(yard: Yard) -> None:
    data = kept_as(yard)
    prepared = yard.prepare(KEEPING)
    with yard.kvm1.world() as world:
        world.volumes[data].format = "raw"
    assert yard.carry_out(prepared) == RunState.ROLLED_BACK
    assert yard.left() == {"kvm1": ["shop.db.data"]}
    error = yard.journal.step("r3", "launch.db").error
    assert error is not None
    assert error["brief"] == "cannot attach the kept disk data of db: it is raw, the plan says qcow2"
