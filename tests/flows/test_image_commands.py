"""The commands that look after images: on a simulated host and a folder store, and once on a real hypervisor."""

import fcntl
import hashlib
import io
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import pytest

from drivers.simulated.world import Machine, Volume
from flows.cli import main
from flows.image_files import push
from flows.image_needs import needs
from flows.images import local_image
from flows.pruning import delete, look
from flows.world import World
from planvirt.config import load_config
from planvirt.deadline import Deadline
from planvirt.errors import Conflict, PlanvirtError
from planvirt.journal.journal import LEASE, Journal
from planvirt.journal.records import RunRecord, StepRecord
from planvirt.journal.transitions import RunState, StepState
from planvirt.mark import Mark, cached_file, cached_image
from planvirt.states import Note, State
from tests.drivers.libvirt_host import Guest, build_guest, qemu_host
from tests.flows.lab import Lab, lab_at
from tests.flows.workshop import Ended, Workshop
from tests.flows.yard import Yard

MIB = 1 << 20
CONTENT = b"planvirt:disk"
SOON = ("--older-than", "0s")


class Here(Workshop):
    """A workshop whose commands run in this process: they need no other, and dozens of starts would take minutes."""

    def planvirt(self, *words: str) -> Ended:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), chdir(self.folder):
            code = main(words)
        return Ended(code, out.getvalue(), err.getvalue())


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    shop = Here(tmp_path / "workshop")
    monkeypatch.setenv("PLANVIRT_HOME", str(shop.home))
    return shop


@pytest.fixture
def disk(workshop: Workshop) -> Path:
    """An image file: some bytes, and a hole."""
    path = workshop.folder / "debian.img"
    with path.open("wb") as file:
        file.write(CONTENT)
        file.seek(2 * MIB)
        file.write(CONTENT)
        file.truncate(4 * MIB)
    return path


@pytest.fixture
def image(workshop: Workshop, disk: Path) -> dict[str, Any]:
    """It in the store."""
    pushed = workshop.planvirt("image", "push", disk.name, "local", "--output", "json")
    assert pushed.code == 0, pushed
    document: dict[str, Any] = pushed.document["image"]
    return document


@pytest.fixture
def journal(workshop: Workshop) -> Iterator[Journal]:
    workshop.home.mkdir(exist_ok=True)
    with Journal(f"sqlite:///{workshop.home}/journal.sqlite") as journal:
        yield journal


@pytest.fixture
def world(workshop: Workshop) -> Iterator[World]:
    config = load_config(workshop.folder / "planvirt.toml", workshop.folder, {"PLANVIRT_HOME": str(workshop.home)})
    with World(config) as world:
        yield world


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def blob_of(shop: Workshop, image: dict[str, Any]) -> Path:
    sha256 = str(image["checksum"]).removeprefix("sha256:")
    return shop.folder / "store" / "blobs" / "sha256" / sha256[:2] / sha256


def cached(shop: Workshop) -> list[str]:
    with shop.simulated.world() as world:
        return sorted(name for name in world.volumes if name.startswith("planvirt-"))


def begin(journal: Journal, **step: Any) -> None:
    """A run that has not ended, with one step ahead of it on the host `sim`."""
    run = RunRecord("r1", "run", "shop", "", step.pop("text", "planvirt: 1\n"), "", None, {}, "rollback")
    values: dict[str, Any] = {"position": 0, "action": "launch", "instance": "web", "uuid": "u1", "host": "sim"} | step
    journal.begin(run, [StepRecord("launch.web", **values)])
    journal.move_run("r1", RunState.RUNNING, "test")


# Pushing


def test_what_is_pushed_is_in_the_store_with_its_hash(workshop: Workshop, disk: Path, image: dict[str, Any]) -> None:
    assert (image["name"], image["format"], image["status"], image["size"]) == ("debian", "raw", "active", 4 * MIB)
    assert image["checksum"] == f"sha256:{sha256_of(disk)}"
    assert blob_of(workshop, image).read_bytes() == disk.read_bytes()


def test_pushing_again_makes_no_second_image(workshop: Workshop, disk: Path, image: dict[str, Any]) -> None:
    again = workshop.planvirt("image", "push", disk.name, "local", "--output", "json").document
    assert (again["pushed"], again["image"]) == (False, image)
    other = workshop.planvirt("image", "push", disk.name, "local", "--name", "other", "--output", "json").document
    assert other["pushed"] is True
    assert sorted(each["name"] for each in workshop.images()) == ["debian", "other"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--format", "qcow2"), "it is raw, not qcow2"),
        (("--checksum", f"sha256:{'0' * 64}"), "its checksum is wrong"),
        (("--checksum", f"sha512:{'0' * 128}"), "its checksum is wrong"),
        (("--checksum", "md5:0"), "is no checksum"),
    ],
)
def test_a_file_that_is_not_what_was_said_is_refused(
    workshop: Workshop, disk: Path, options: tuple[str, ...], words: str
) -> None:
    ended = workshop.planvirt("image", "push", disk.name, "local", *options)
    assert ended.code == 1
    assert words in ended.err and "→" in ended.err and "the plan" not in ended.err
    assert workshop.images() == []


def test_a_file_with_the_right_checksum_is_taken(workshop: Workshop, disk: Path) -> None:
    sha512 = hashlib.sha512(disk.read_bytes()).hexdigest()
    ended = workshop.planvirt("image", "push", disk.name, "local", "--format", "raw", "--checksum", f"sha512:{sha512}")
    assert ended.code == 0, ended
    assert f"sha256:{sha256_of(disk)}" in ended.out


def test_an_image_that_leads_out_of_its_file_never_gets_into_the_store(workshop: Workshop) -> None:
    backed = workshop.folder / "backed.qcow2"
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/hostname", "-F", "raw", str(backed), "1M"]
    subprocess.run(command, check=True)
    ended = workshop.planvirt("image", "push", backed.name, "local")
    assert ended.code == 1
    assert "it has a backing file" in ended.err
    assert workshop.images() == []


def test_a_file_that_changes_on_its_way_leaves_nothing(world: World, disk: Path) -> None:
    def change(done: int, _total: int) -> None:
        if done == 4 * MIB and not changed:  # it has been checked, and is about to be uploaded
            changed.append(done)
            now = disk.stat()
            with disk.open("r+b") as file:
                file.write(b"another")
            os.utime(disk, ns=(now.st_atime_ns, now.st_mtime_ns))

    changed: list[int] = []
    store = world.store("local")
    with pytest.raises(PlanvirtError, match="changed"):
        push(disk, store, name="x", format=None, checksum=None, deadline=Deadline(on_progress=change))
    assert changed
    assert store.list() == []


def test_a_push_that_is_interrupted_leaves_nothing(world: World, disk: Path) -> None:
    def cut(_done: int, _total: int) -> None:
        if store.list():
            raise KeyboardInterrupt

    store = world.store("local")
    with pytest.raises(KeyboardInterrupt):
        push(disk, store, name="x", format=None, checksum=None, deadline=Deadline(on_progress=cut))
    assert store.list() == []


# Listing and showing


def test_the_list_can_be_narrowed(workshop: Workshop, image: dict[str, Any], world: World) -> None:
    world.store("local").create("snap", name="web-1", format="qcow2", properties={"planvirt_plan": "shop"})

    def listed(*words: str) -> list[str]:
        found = workshop.planvirt("image", "list", "--output", "json", *words).document["images"]
        return sorted(each["name"] for each in found)

    assert listed() == ["debian", "web-1"]
    assert listed("--name", "web-*") == ["web-1"]
    assert listed("--plan", "shop") == ["web-1"]
    assert listed("--store", "local", "--name", "none") == []
    assert workshop.planvirt("image", "list", "--name", "none").out == "none of 2 images is such a one\n"


def test_show_tells_where_an_image_comes_from(workshop: Workshop, world: World) -> None:
    properties = {
        "image_type": "snapshot", "planvirt_plan": "shop", "planvirt_instance": "web-1", "planvirt_disk": "boot",
        "planvirt_run": "r7", "planvirt_commit": "c0ffee", "instance_uuid": "u-1", "colour": "blue\x1b[8m",
    }  # fmt: skip
    world.store("local").create("snap", name="nightly", format="qcow2", properties=properties)
    text = workshop.planvirt("image", "show", "local/nightly")
    assert text.code == 0, text
    for words in ("local/snap", "queued", "disk boot of instance web-1", "plan shop in run r7", "c0ffee", "blue"):
        assert words in text.out
    assert "\x1b" not in text.out
    document = workshop.planvirt("image", "show", "local/snap", "--output", "json").document
    assert (document["image"]["id"], document["image"]["properties"]) == ("snap", properties)


@pytest.mark.parametrize("words", [("show",), ("pull", "sim"), ("export", "copy.img"), ("rm", "--yes"), ("verify",)])
def test_an_unknown_image_is_told_with_one_like_it(
    workshop: Workshop, image: dict[str, Any], words: tuple[str, ...]
) -> None:
    ended = workshop.planvirt("image", words[0], "local/debain", *words[1:])
    assert ended.code == 1
    assert ended.err.startswith("error: cannot find image debain in store local")
    assert "did you mean 'debian'?" in ended.err
    assert workshop.images() == [image]


def test_unknown_places_are_told_with_one_like_them(workshop: Workshop, image: dict[str, Any], disk: Path) -> None:
    assert image
    for words, near in [
        (("show", "locla/debian"), "did you mean 'local'?"),
        (("show", "debian"), "did you mean 'local/debian'?"),
        (("push", disk.name, "locla"), "did you mean 'local'?"),
        (("list", "--store", "locla"), "did you mean 'local'?"),
        (("pull", "local/debian", "sin"), "did you mean 'sim'?"),
        (("prune", "--host", "sin", "--yes"), "did you mean 'sim'?"),
        (("verify", "--all", "--store", "locla"), "did you mean 'local'?"),
    ]:
        ended = workshop.planvirt("image", *words)
        assert ended.code == 2, ended
        assert near in ended.err
        assert ended.err.startswith("error: cannot")


# Pulling


def test_a_pulled_image_is_what_a_launch_finds(workshop: Workshop, image: dict[str, Any]) -> None:
    ended = workshop.planvirt("image", "pull", "local/debian", "sim", "--output", "json")
    assert ended.code == 0, ended
    name = cached_image(image["checksum"].removeprefix("sha256:"), "raw")
    assert ended.document["volume"] == {"host": "sim", "name": name, "capacity": 4 * MIB, "allocation": 4 * MIB} | {
        "allocation": ended.document["volume"]["allocation"]
    }
    assert cached(workshop) == [name]
    assert workshop.planvirt("image", "pull", f"local/{image['id']}", "sim").code == 0
    assert workshop.simulated.events().count(f"import_image {name}") == 1


def test_an_image_without_content_is_not_pulled(workshop: Workshop, world: World) -> None:
    world.store("local").create("half", name="half", format="raw", properties={})
    ended = workshop.planvirt("image", "pull", "local/half", "sim")
    assert ended.code == 6
    assert "it is queued" in ended.err
    assert cached(workshop) == []


# Verifying


def test_verify_says_which_image_has_changed(workshop: Workshop, image: dict[str, Any]) -> None:
    workshop.write("other.img", "other" * 200)
    assert workshop.planvirt("image", "push", "other.img", "local").code == 0
    good = workshop.planvirt("image", "verify", "--all")
    assert (good.code, good.out.count("ok  ")) == (0, 2)
    blob = blob_of(workshop, image)
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.write(b"rotten")
    bad = workshop.planvirt("image", "verify", "--all", "--output", "json")
    assert bad.code == 1
    assert bad.document["ok"] is False
    assert {each["name"]: each["ok"] for each in bad.document["images"]} == {"debian": False, "other": True}
    assert workshop.planvirt("image", "verify", "local/other").code == 0
    told = workshop.planvirt("image", "verify", "local/other", "local/debian")
    assert told.code == 1
    assert f"FAIL local/{image['id']} debian" in told.out and "1 of 2" in told.out
    assert "its content has changed" in told.err


@pytest.mark.parametrize("words", [(), ("local/debian", "--all"), ("local/debian", "--store", "local")])
def test_verify_wants_to_know_what(workshop: Workshop, words: tuple[str, ...]) -> None:
    ended = workshop.planvirt("image", "verify", *words)
    assert ended.code == 2
    assert "--all" in ended.err


# Exporting


def test_an_exported_image_is_the_same_with_its_holes(workshop: Workshop, image: dict[str, Any], disk: Path) -> None:
    ended = workshop.planvirt("image", "export", "local/debian", "copy.img", "--output", "json")
    assert ended.code == 0, ended
    copy = workshop.folder / "copy.img"
    assert ended.document == {"image": image, "file": str(copy)}
    assert copy.read_bytes() == disk.read_bytes()
    assert copy.stat().st_blocks * 512 < MIB
    assert copy.stat().st_mode & 0o777 == disk.stat().st_mode & 0o777


def test_export_replaces_nothing_unless_told(workshop: Workshop, image: dict[str, Any], disk: Path) -> None:
    assert image
    mine = workshop.write("mine.img", "precious")
    refused = workshop.planvirt("image", "export", "local/debian", "mine.img")
    assert refused.code == 6
    assert "--force" in refused.err
    assert mine.read_text() == "precious"
    assert workshop.planvirt("image", "export", "local/debian", "mine.img", "--force").code == 0
    assert mine.read_bytes() == disk.read_bytes()


def test_an_export_of_a_rotten_image_leaves_the_file_alone(workshop: Workshop, image: dict[str, Any]) -> None:
    mine = workshop.write("mine.img", "precious")
    blob = blob_of(workshop, image)
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.write(b"rotten")
    before = sorted(path.name for path in workshop.folder.iterdir())
    ended = workshop.planvirt("image", "export", "local/debian", "mine.img", "--force")
    assert ended.code == 1
    assert "cannot trust image" in ended.err
    assert mine.read_text() == "precious"
    assert sorted(path.name for path in workshop.folder.iterdir()) == before


def test_an_export_into_a_missing_folder_is_told(workshop: Workshop, image: dict[str, Any]) -> None:
    assert image
    ended = workshop.planvirt("image", "export", "local/debian", "no/such/copy.img")
    assert ended.code == 1
    assert ended.err.startswith("error: cannot write no/such/copy.img")


# Removing


def test_rm_asks_and_deletes_what_it_has_named(workshop: Workshop, image: dict[str, Any]) -> None:
    silent = workshop.planvirt("image", "rm", "local/debian")
    assert silent.code == 2
    assert "say --yes" in silent.err
    assert workshop.images() == [image]
    ended = workshop.planvirt("image", "rm", "local/debian", f"local/{image['id']}", "--yes", "--output", "json")
    assert ended.code == 0, ended
    assert [each["deleted"] for each in ended.document["images"]] == [True]
    assert workshop.images() == []
    assert not blob_of(workshop, image).exists()


def test_rm_does_not_guess_between_images_of_one_name(workshop: Workshop, image: dict[str, Any]) -> None:
    workshop.write("debian.img", "newer" * 200)
    assert workshop.planvirt("image", "push", "debian.img", "local").code == 0
    ended = workshop.planvirt("image", "rm", "local/debian", "--yes")
    assert ended.code == 2
    assert f"local/{image['id']}" in ended.err
    assert len(workshop.images()) == 2


def test_an_image_that_a_shelved_instance_needs_stays(workshop: Workshop, image: dict[str, Any]) -> None:
    with workshop.simulated.world() as world:
        mark = Mark("shop", "web", "r0", "5bec" * 16)
        note = json.dumps({"was": "running", "images": [f"local/{image['id']}"], "volumes": []})
        world.instances["web"] = Machine("web", "u1", mark, State.STOPPED, notes={Note.SHELVED.value: note})
    refused = workshop.planvirt("image", "rm", "local/debian", "--yes")
    assert refused.code == 6
    assert "instance web on sim is shelved" in refused.err
    assert workshop.images() == [image]
    assert workshop.planvirt("image", "rm", "local/debian", "--yes", "--force").code == 0
    assert workshop.images() == []


@pytest.mark.parametrize("by", ["id", "name", "plan", "note"])
def test_an_image_that_an_open_run_names_stays(
    workshop: Workshop, image: dict[str, Any], journal: Journal, by: str
) -> None:
    ways: dict[str, dict[str, Any]] = {
        "id": {"undo": {"store": "local", "image": image["id"]}},
        "name": {"arguments": {"image": "local/debian"}},
        "plan": {"text": "planvirt: 1\nimages:\n  base: {source: local/debian}\n"},
        "note": {"undo": {"note": json.dumps({"images": [f"local/{image['id']}"]})}},
    }
    begin(journal, **ways[by])
    refused = workshop.planvirt("image", "rm", "local/debian", "--yes")
    assert refused.code == 6
    assert "run r1 of plan shop has not ended" in refused.err
    assert workshop.images() == [image]
    journal.move_run("r1", RunState.CANCELLED, "test")
    assert workshop.planvirt("image", "rm", "local/debian", "--yes").code == 0


def test_what_a_kept_run_can_be_rolled_back_with_stays(world: World, image: dict[str, Any], journal: Journal) -> None:
    begin(journal, undo={"images": [f"local/{image['id']}"]})
    journal.move_step("r1", "launch.web", StepState.DOING, "test")
    journal.move_step("r1", "launch.web", StepState.FAILED, "test")
    journal.move_run("r1", RunState.KEPT, "test")
    stored = world.store("local").get(image["id"])
    assert stored is not None
    assert [need.who for need in needs(world, journal) if need.concerns(stored)] == [
        "run r1 of plan shop can still be rolled back"
    ]


def test_nothing_is_removed_while_a_host_cannot_say_what_it_needs(workshop: Workshop, image: dict[str, Any]) -> None:
    workshop.simulated.fail("instances", times=None)
    refused = workshop.planvirt("image", "rm", "local/debian", "--yes")
    assert refused.code == 1
    assert "host sim does not answer" in refused.err
    assert workshop.images() == [image]


# Pruning


@pytest.fixture
def kept(workshop: Workshop, image: dict[str, Any]) -> dict[str, str]:
    """A host with cached things: an image that nothing uses and one that is used, kernels likewise, a half-made one."""
    assert workshop.planvirt("image", "pull", "local/debian", "sim").code == 0
    names = {
        "unused": cached_image(image["checksum"].removeprefix("sha256:"), "raw"),
        "base": cached_image("1" * 64, "qcow2"),
        "kernel": cached_file("2" * 64),
        "old kernel": cached_file("3" * 64),
        "half": cached_image("4" * 64, "qcow2"),
    }
    mark = Mark("shop", "web", "r0", "5bec" * 16)
    with workshop.simulated.world() as world:
        for name in ("base", "kernel", "old kernel", "half"):
            world.volumes[names[name]] = Volume(MIB, content="", allocation=1000, partial=name == "half")
        disk = mark.volume("boot")
        world.volumes[disk] = Volume(MIB, base=names["base"])
        world.instances["web.r9.aside"] = Machine("web", "u1", mark, kernel=names["kernel"], set_aside="r9")
    return names


def test_prune_deletes_what_nothing_uses_and_nothing_else(workshop: Workshop, kept: dict[str, str]) -> None:
    with workshop.simulated.world() as world:
        size = world.volumes[kept["unused"]].allocation
    ended = workshop.planvirt("image", "prune", "--yes", "--output", "json", *SOON)
    assert ended.code == 0, ended
    gone = {kept["unused"], kept["old kernel"], kept["half"]}
    assert {each["name"] for each in ended.document["found"] if each["deleted"]} == gone
    assert ended.document["freed"] == size + 2000
    why = {each["name"]: each["kept"] for each in ended.document["found"]}
    assert "used by shop.web.boot." in why[kept["base"]]
    assert why[kept["kernel"]] == "used by web.r9.aside"
    assert cached(workshop) == sorted([kept["base"], kept["kernel"]])


def test_prune_tells_first_and_deletes_only_when_told(workshop: Workshop, kept: dict[str, str]) -> None:
    before = cached(workshop)
    told = workshop.planvirt("image", "prune", "--dry-run", *SOON)
    assert told.code == 0, told
    for words in (kept["unused"], kept["half"], "half-made image", "kernel or initrd", "2 more are in use"):
        assert words in told.out
    asked = workshop.planvirt("image", "prune", *SOON)
    assert asked.code == 2
    assert "say --yes" in asked.err
    assert cached(workshop) == before
    document = workshop.planvirt("image", "prune", "--dry-run", "--output", "json", *SOON).document
    assert (document["dry_run"], document["freed"]) == (True, 0)
    assert sum(each["unused"] for each in document["found"]) == 3


def test_what_came_a_moment_ago_stays(workshop: Workshop, kept: dict[str, str]) -> None:
    ended = workshop.planvirt("image", "prune", "--yes")
    assert ended.code == 0, ended
    assert "written or read" in ended.out
    assert cached(workshop) == sorted([kept["base"], kept["kernel"], kept["unused"]])


def test_one_failed_deletion_does_not_stop_the_others(workshop: Workshop, kept: dict[str, str]) -> None:
    workshop.simulated.fail("delete_volume", name=kept["old kernel"], error="error", times=None)
    ended = workshop.planvirt("image", "prune", "--yes", *SOON)
    assert ended.code == 1
    assert "was told to fail" in ended.err
    assert "1 thing could not be deleted" in ended.out
    assert cached(workshop) == sorted([kept["base"], kept["kernel"], kept["old kernel"]])


def test_a_host_that_does_not_answer_does_not_stop_the_others(workshop: Workshop, kept: dict[str, str]) -> None:
    text = (workshop.folder / "planvirt.toml").read_text()
    workshop.write("planvirt.toml", '[hosts.far]\nuri = "qemu+unix:///system?socket=/nowhere"\n' + text)
    ended = workshop.planvirt("image", "prune", "--yes", *SOON)
    assert ended.code == 1
    assert ended.err.startswith("error: cannot")
    assert kept["unused"] not in cached(workshop)
    assert workshop.planvirt("image", "prune", "--host", "sim", "--yes", *SOON).code == 0


def test_nothing_vanishes_under_a_run_that_is_about_to_build_on_it(
    workshop: Workshop, kept: dict[str, str], journal: Journal
) -> None:
    before = cached(workshop)
    begin(journal)
    ended = workshop.planvirt("image", "prune", "--yes", *SOON)
    assert ended.code == 0, ended
    assert "run r1 of plan shop is at work there" in ended.out
    assert cached(workshop) == before
    journal.move_step("r1", "launch.web", StepState.DOING, "test")
    assert workshop.planvirt("image", "prune", "--yes", *SOON).code == 0
    assert cached(workshop) == before
    journal.move_step("r1", "launch.web", StepState.DONE, "test")
    assert workshop.planvirt("image", "prune", "--yes", *SOON).code == 0
    assert kept["unused"] not in cached(workshop)


def test_a_dead_run_is_named_as_what_is_in_the_way(workshop: Workshop, kept: dict[str, str]) -> None:
    before = cached(workshop)
    url = f"sqlite:///{workshop.home}/journal.sqlite"
    with Journal(url, clock=lambda: time.time() - 2 * LEASE) as dead:
        begin(dead)
    ended = workshop.planvirt("image", "prune", "--yes", *SOON)
    assert ended.code == 0, ended
    assert "planvirt recover" in ended.out
    assert cached(workshop) == before
    assert kept["unused"] in before


def test_a_run_that_begins_after_the_question_is_not_disturbed(
    workshop: Workshop, world: World, kept: dict[str, str], journal: Journal
) -> None:
    found = look(world, journal, ["sim"], downloads=False, age=0)
    assert {item.name for item in found.unused} == {kept["unused"], kept["old kernel"], kept["half"]}
    begin(journal)
    for item in found.unused:
        with pytest.raises(Conflict, match="is at work there"):
            delete(item, world, journal, age=0)
    assert set(kept.values()) == set(cached(workshop))


def test_launches_beside_a_prune_that_never_rests_find_their_image(tmp_path: Path) -> None:
    yard = Yard(tmp_path / "yard")
    (tmp_path / "yard" / "base.img").write_bytes(CONTENT * 100)
    plan = "images: {base: {source: ./base.img}}\ninstances:\n  web: {image: base, memory: 64 MiB, disks: [1 MiB]}\n"
    ends: list[RunState] = []
    over = threading.Event()

    def launch() -> None:
        try:
            for _ in range(15):
                ends.append(yard.run(plan))
                yard.destroy(plan)
        finally:
            over.set()

    launching = threading.Thread(target=launch)
    launching.start()
    freed = 0
    with World(yard.config) as world, Journal(yard.config.journal_url) as journal:
        while not over.is_set():
            for item in look(world, journal, ["kvm1"], downloads=False, age=0).unused:
                with suppress(Conflict):
                    freed += delete(item, world, journal, age=0)
    launching.join()
    assert ends == [RunState.SUCCEEDED] * 15
    assert freed > 0


def test_what_was_put_to_use_after_the_question_stays(
    workshop: Workshop, world: World, kept: dict[str, str], journal: Journal
) -> None:
    found = look(world, journal, ["sim"], downloads=False, age=0)
    (item,) = [item for item in found.unused if item.name == kept["unused"]]
    volume = Mark("other", "db", "r5", "5bec" * 16).volume("boot")
    workshop.simulated.create_volume(volume, size=8 * MIB, format="qcow2", base=item.name, deadline=Deadline())
    with pytest.raises(Conflict, match="used by"):
        delete(item, world, journal, age=0)
    assert kept["unused"] in cached(workshop)


def test_what_is_gone_already_counts_for_nothing(
    workshop: Workshop, world: World, kept: dict[str, str], journal: Journal
) -> None:
    (item,) = [i for i in look(world, journal, ["sim"], downloads=False, age=0).unused if i.name == kept["unused"]]
    workshop.simulated.delete_volume(item.name)
    assert delete(item, world, journal, age=0) == 0


def downloads(shop: Workshop, *names: str, age: float = 7200) -> list[Path]:
    folder = shop.home / "cache" / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x" * 5000)
        os.utime(folder / name, (time.time() - age, time.time() - age))
    return [folder / name for name in names]


def test_downloads_go_only_when_asked_for(workshop: Workshop) -> None:
    whole, part, origin, lock = downloads(workshop, "sha256-aa", "sha256-bb.part", "sha256-bb.from", "sha256-bb.lock")
    (fresh,) = downloads(workshop, "sha256-cc", age=0)
    assert workshop.planvirt("image", "prune", "--yes").code == 0
    assert whole.exists() and part.exists()
    ended = workshop.planvirt("image", "prune", "--downloads", "--yes", "--output", "json")
    assert ended.code == 0, ended
    assert {(each["host"], each["name"]) for each in ended.document["found"] if each["deleted"]} == {
        (None, "downloads/sha256-aa"), (None, "downloads/sha256-bb.part"),
    }  # fmt: skip
    assert [path.exists() for path in (whole, part, origin, lock, fresh)] == [False, False, False, True, True]


def test_downloads_stay_while_any_run_may_read_them(workshop: Workshop, journal: Journal) -> None:
    (whole,) = downloads(workshop, "sha256-aa")
    begin(journal, host="elsewhere")
    ended = workshop.planvirt("image", "prune", "--downloads", "--yes")
    assert ended.code == 0, ended
    assert "run r1 of plan shop is at work" in ended.out
    assert whole.exists()


def test_a_download_on_its_way_stays(workshop: Workshop) -> None:
    part, lock = downloads(workshop, "sha256-bb.part", "sha256-bb.lock")
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ended = workshop.planvirt("image", "prune", "--downloads", "--yes")
    assert ended.code == 1
    assert "it is being fetched" in ended.err
    assert part.exists()


def test_a_download_that_is_wanted_again_stays(workshop: Workshop, world: World, journal: Journal) -> None:
    (whole,) = downloads(workshop, "sha256-aa")
    os.utime(whole, (time.time() - 7200, time.time() - 9000))  # read since it was written: reading leaves no trace now
    assert [i.kept for i in look(world, journal, [], downloads=True, age=3600).items] == [None]
    local_image(str(whole), {}, world, Deadline())
    (item,) = look(world, journal, [], downloads=True, age=3600).items
    assert item.kept is not None and item.kept.startswith("written or read")
    assert whole.stat().st_mtime < time.time() - 8000  # who checks it right now must not think that it has changed


def test_an_unknown_command_is_told_with_one_like_it(workshop: Workshop) -> None:
    ended = workshop.planvirt("image", "prun")
    assert ended.code == 2
    assert "did you mean 'prune'?" in ended.err


@pytest.mark.real
def test_pull_and_prune_on_a_real_hypervisor(tmp_path: Path, prefect_url: str, guest: Guest) -> None:
    with qemu_host() as host, lab_at(host, tmp_path, prefect_url, guest) as lab:
        _pull_and_prune(lab)


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Guest:
    return build_guest(tmp_path_factory.mktemp("guest") / "guest")


def _pull_and_prune(lab: Lab) -> None:
    disk = lab.guest.folder / "disk.qcow2"
    for name in ("used", "spare"):
        assert lab.shop.planvirt("image", "push", str(disk), "local", "--name", name).code == 0
    spare = lab.shop.folder / "spare.img"
    with spare.open("wb") as file:
        file.write(os.urandom(MIB))
        file.truncate(4 * MIB)
    assert lab.shop.planvirt("image", "push", "spare.img", "local", "--name", "lonely").code == 0
    for name in ("used", "spare", "lonely"):  # two are the same bytes, so one volume
        assert lab.shop.planvirt("image", "pull", f"local/{name}", "local").code == 0
    machine = """\
instances:
  {word}-one:
    image: local/used
    memory: 192 MiB
    disks: [64 MiB]
    ready: {console: planvirt guest up, within: 90s}
    {boot:}
"""
    assert lab.shop.run(lab.plan("prune", machine)).code == 0
    lonely = cached_image(sha256_of(spare), "raw")
    used = cached_image(sha256_of(disk), "qcow2")
    kernels = {cached_file(sha256_of(path)) for path in (lab.guest.kernel, lab.guest.initrd)}
    half = cached_image("e" * 64, "qcow2")
    (lab.host.folder / half).write_bytes(b"half")
    foreign = lab.host.folder / "foreign.qcow2"
    command = [
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        str(lab.host.folder / lonely),
        "-F",
        "raw",
        str(foreign),
    ]
    subprocess.run(command, check=True)
    ended = lab.shop.planvirt("image", "prune", "--yes", "--output", "json", *SOON)
    assert ended.code == 0, ended
    assert {each["name"] for each in ended.document["found"] if each["deleted"]} == {half}
    assert {used, lonely, *kernels} <= lab.host.files() and half not in lab.host.files()
    foreign.unlink()
    ended = lab.shop.planvirt("image", "prune", "--yes", "--output", "json", *SOON)
    assert {each["name"] for each in ended.document["found"] if each["deleted"]} == {lonely}
    assert ended.document["freed"] >= MIB
    assert not {name for name in lab.host.files() if name.startswith(lonely)}
    assert lab.shop.planvirt("destroy", "prune.yaml", "--yes").code == 0
    assert lab.shop.planvirt("image", "prune", "--yes", *SOON).code == 0
    assert {name for name in lab.host.files() if name.startswith("planvirt-")} == set()
