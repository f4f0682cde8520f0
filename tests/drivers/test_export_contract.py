"""What drivers/compute.py promises of copies of several disks, of frozen guests and of compression, on every driver."""

from pathlib import Path

import pytest

from drivers.compute import AttachedDisk
from drivers.errors import DriverError, NotFound, NotFrozen
from planvirt.deadline import DeadlinePassed
from planvirt.states import State
from tests.drivers.compute_hosts import MIB, Host, cancelled, content_of, image_file, require_state

CONTENT = b"planvirt:contract"


@pytest.mark.needs("files")
@pytest.mark.parametrize("state", [State.STOPPED, State.RUNNING])
def test_several_disks_are_exported_at_once(host: Host, tmp_path: Path, state: State) -> None:
    base = host.compute.import_image(image_file(tmp_path, CONTENT, format="raw"), host.deadline()).name
    disks = [host.volume("boot", base=base), host.volume("data", base=base)]
    targets = [host.mark().volume("copy-1"), host.mark().volume("copy-2")]
    name = host.made(state=State.STOPPED, disk=disks[0])
    host.compute.attach_disk(name, AttachedDisk(disks[1]))
    if state is State.RUNNING:
        host.compute.start(name)
    before = host.seen(name)

    made = host.compute.export_disks(name, dict(zip(reversed(disks), targets, strict=True)), deadline=host.deadline())

    assert [(each.name, each.base, each.format) for each in made] == [(target, None, "qcow2") for target in targets]
    assert {each.capacity for each in made} == {volume.capacity for volume in host.compute.volumes() if volume.base}
    assert host.seen(name) == before
    for target in targets:
        assert content_of(host.compute.open_volume(target), tmp_path, "qcow2", len(CONTENT)) == CONTENT


@pytest.mark.needs("files")
def test_one_disk_that_cannot_be_exported_keeps_the_others_from_it(host: Host) -> None:
    name, disk, other = host.made(), host.mark().volume("boot"), host.volume("boot", "db")
    targets = [host.mark().volume("copy-1"), host.mark().volume("copy-2")]
    with pytest.raises(NotFound):
        host.compute.export_disks(name, dict(zip((disk, other), targets, strict=True)), deadline=host.deadline())
    assert not host.ours() & set(targets)


@pytest.mark.needs("files")
def test_a_guest_that_was_saved_cannot_be_frozen(host: Host) -> None:
    require_state(host, State.SUSPENDED)
    name, target = host.made(state=State.SUSPENDED), host.mark().volume("copy")
    with pytest.raises(NotFrozen, match="it is suspended"):
        host.compute.export_disks(name, {host.mark().volume("boot"): target}, quiesce=True, deadline=host.deadline())
    assert target not in host.ours()
    assert host.seen(name).state is State.SUSPENDED


def test_nothing_is_thawed_where_nothing_is_frozen(host: Host) -> None:
    host.compute.thaw(host.name("nobody"))
    name = host.made()
    host.compute.thaw(name)
    host.compute.start(name)
    before = host.seen(name)
    host.compute.thaw(name)
    assert host.seen(name) == before


@pytest.mark.needs("files")
def test_a_volume_is_compressed_into_another_one(host: Host, tmp_path: Path) -> None:
    if "zstd" not in host.compute.capabilities().compressions:
        pytest.skip("this host compresses nothing")
    base = host.compute.import_image(image_file(tmp_path, CONTENT, format="raw"), host.deadline()).name
    disk, copy, target = host.volume("boot", base=base), host.mark().volume("copy"), host.mark().volume("small")
    host.compute.export_disks(host.made(disk=disk), {disk: copy}, deadline=host.deadline())
    for _ in range(2):
        made = host.compute.compress_volume(copy, target, "zstd", host.deadline())
        assert (made.name, made.base, made.format, made.capacity) == (target, None, "qcow2", 8 * MIB)
    assert content_of(host.compute.open_volume(target), tmp_path, "qcow2", len(CONTENT)) == CONTENT
    for volume, wanted in ((disk, "zstd"), (copy, "middle-out")):
        with pytest.raises(DriverError):
            host.compute.compress_volume(volume, host.mark().volume("none"), wanted, host.deadline())
    with pytest.raises(DeadlinePassed):
        host.compute.compress_volume(copy, host.mark().volume("none"), "zstd", cancelled())
    assert host.mark().volume("none") not in host.ours()
