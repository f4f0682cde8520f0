"""What drivers/compute.py promises, tried on every driver. A new driver is one line in compute_hosts.HOSTS."""

import ipaddress
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from drivers.errors import NameTaken, NotFound, WrongChecksum
from planvirt.deadline import Deadline, DeadlinePassed
from planvirt.errors import Conflict
from planvirt.mark import cached_file, cached_image
from planvirt.states import Note, State
from planvirt.verbs import ACTIONS
from tests.drivers.compute_hosts import (
    MIB,
    Host,
    cancelled,
    content_of,
    greeting,
    image_file,
    require_state,
    wait_for_console,
)

CONTENT = b"planvirt:contract"


def cancelled_on_the_way() -> Deadline:
    """A deadline that somebody cancels as soon as the work tells of progress."""
    deadline: Deadline = Deadline(on_progress=lambda _done, _total: deadline.cancel())
    return deadline


# The host


def test_a_host_says_what_it_is(host: Host) -> None:
    facts = host.compute.facts()
    assert facts.name == host.compute.host
    assert facts.hypervisor and facts.version and facts.uri
    assert facts.free_space > 0 and facts.memory > 0 and facts.cpus > 0


def test_capabilities_are_actions_of_the_table(host: Host) -> None:
    verbs = host.compute.capabilities().verbs
    assert {"launch", "start", "terminate"} <= verbs <= set(ACTIONS)


def test_a_closed_driver_connects_anew(host: Host) -> None:
    name = host.made()
    host.compute.close()
    host.compute.close()
    assert host.seen(name).state is State.STOPPED


def test_instances_are_sorted_and_foreign_ones_have_no_mark(host: Host) -> None:
    host.add_foreign(host.name("other"))
    for short in ("zeta", "alpha"):
        host.made(short)
    names = [facts.name for facts in host.compute.instances()]
    assert names == sorted(names)
    assert {host.name("zeta"), host.name("alpha"), host.name("other")} <= set(names)
    assert host.seen(host.name("other")).mark is None


def test_an_instance_that_is_not_there_is_none(host: Host) -> None:
    assert host.compute.instance(host.name("nobody")) is None


# Volumes


@pytest.mark.parametrize("format", ["qcow2", "raw"])
def test_an_empty_volume_bears_its_mark(host: Host, format: str) -> None:
    name = host.mark().volume("data")
    made = host.compute.create_volume(name, size=8 * MIB, format=format, base=None, deadline=host.deadline())  # type: ignore[arg-type] # a parameter
    (listed,) = [volume for volume in host.compute.volumes() if volume.name == name]
    for facts in (made, listed):
        assert (facts.name, facts.capacity, facts.format, facts.base) == (name, 8 * MIB, format, None)
        assert facts.mark is not None
        assert (facts.mark.plan, facts.mark.instance, facts.mark.run) == (host.plan, host.name("web"), "r1")


def test_making_a_volume_again_returns_it_and_another_one_is_refused(host: Host) -> None:
    name = host.volume("data")
    host.volume("data")
    with pytest.raises(Conflict):
        host.volume("data", size=16 * MIB)
    (facts,) = [volume for volume in host.compute.volumes() if volume.name == name]
    assert facts.capacity == 8 * MIB


def test_volumes_are_sorted_and_only_planvirts(host: Host) -> None:
    foreign = host.add_foreign(host.name("other"))
    host.volume("zeta")
    host.volume("alpha")
    names = [volume.name for volume in host.compute.volumes()]
    assert names == sorted(names)
    assert foreign in host.all_volumes() and foreign not in names


def test_a_volume_on_a_missing_base_is_not_made(host: Host) -> None:
    with pytest.raises(NotFound):
        host.volume(base=cached_image("0" * 64, "qcow2"))
    assert host.ours() == set()


def test_a_volume_is_not_made_when_nobody_waits_for_it(host: Host) -> None:
    name = host.mark().volume("data")
    with pytest.raises(DeadlinePassed):
        host.compute.create_volume(name, size=MIB, format="qcow2", base=None, deadline=cancelled())
    assert host.ours() == set()


def test_deleting_a_volume_twice_is_well(host: Host) -> None:
    name, other = host.volume("data"), host.volume("more")
    host.compute.delete_volume(name)
    host.compute.delete_volume(name)
    assert host.ours() == {other}


def test_a_foreign_volume_is_not_deleted(host: Host) -> None:
    foreign = host.add_foreign(host.name("other"))
    with pytest.raises(Conflict):
        host.compute.delete_volume(foreign)
    assert foreign in host.all_volumes()


@pytest.mark.needs("files")
@pytest.mark.parametrize("format", ["qcow2", "raw"])
def test_an_image_becomes_a_base_volume_named_by_its_hash(host: Host, tmp_path: Path, format: str) -> None:
    image = image_file(tmp_path, CONTENT, format=format)  # type: ignore[arg-type] # a parameter
    base = host.compute.import_image(image, host.deadline())
    again = host.compute.import_image(image, host.deadline())
    assert base.name == again.name == cached_image(image.sha256, format)
    assert (base.mark, base.format, base.capacity, base.base) == (None, format, 4 * MIB, None)
    assert base.name in {volume.name for volume in host.compute.volumes()}
    assert content_of(host.compute.open_volume(base.name), tmp_path, format, len(CONTENT)) == CONTENT
    host.compute.delete_volume(base.name)
    assert base.name not in {volume.name for volume in host.compute.volumes()}


@pytest.mark.needs("files")
def test_an_image_that_changed_after_its_check_is_refused(host: Host, tmp_path: Path) -> None:
    image = image_file(tmp_path, CONTENT, format="raw")
    with image.path.open("r+b") as file:
        file.write(b"another")
    with pytest.raises(WrongChecksum):
        host.compute.import_image(image, host.deadline())
    assert cached_image(image.sha256, "raw") not in {volume.name for volume in host.compute.volumes()}


@pytest.mark.needs("files")
@pytest.mark.parametrize("deadline", [cancelled, cancelled_on_the_way])
def test_an_import_that_nobody_waits_for_can_be_repeated(host: Host, tmp_path: Path, deadline: object) -> None:
    image = image_file(tmp_path, CONTENT, format="raw")
    with pytest.raises(DeadlinePassed):
        host.compute.import_image(image, deadline())  # type: ignore[operator] # a parameter
    with pytest.raises(NotFound):
        host.volume(base=cached_image(image.sha256, "raw"))  # a half-made base is no base
    base = host.compute.import_image(image, host.deadline())
    assert content_of(host.compute.open_volume(base.name), tmp_path, "raw", len(CONTENT)) == CONTENT
    host.compute.delete_volume(base.name)


@pytest.mark.needs("files")
def test_an_image_imported_by_several_threads_is_there_once_and_whole(host: Host, tmp_path: Path) -> None:
    image = image_file(tmp_path, CONTENT, format="raw")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: host.compute.import_image(image, host.deadline()), range(4)))
    assert len({facts.name for facts in found}) == 1
    assert content_of(host.compute.open_volume(found[0].name), tmp_path, "raw", len(CONTENT)) == CONTENT
    host.compute.delete_volume(found[0].name)


@pytest.mark.needs("files")
def test_a_kernel_becomes_a_volume_with_the_same_bytes(host: Host, tmp_path: Path) -> None:
    image = image_file(tmp_path, b"\x7fkernel", format="raw", size=20 * 1024)
    name = host.compute.import_file(image.path, image.sha256, host.deadline())
    assert name == host.compute.import_file(image.path, image.sha256, host.deadline()) == cached_file(image.sha256)
    with host.compute.open_volume(name) as file:
        assert file.read(MIB) == image.path.read_bytes()
    host.compute.delete_volume(name)


@pytest.mark.needs("files")
def test_an_overlay_shows_its_base_and_a_raw_copy_stands_alone(host: Host, tmp_path: Path) -> None:
    base = host.compute.import_image(image_file(tmp_path, CONTENT, format="qcow2"), host.deadline()).name
    overlay = host.volume("boot", base=base)
    copy = host.volume("copy", base=base, format="raw")
    facts = {volume.name: volume for volume in host.compute.volumes()}
    assert (facts[overlay].base, facts[overlay].capacity) == (base, 8 * MIB)
    assert (facts[copy].base, facts[copy].capacity) == (None, 8 * MIB)
    assert content_of(host.compute.open_volume(copy), tmp_path, "raw", len(CONTENT)) == CONTENT
    with pytest.raises(Conflict):
        host.compute.delete_volume(base)
    host.compute.delete_volume(overlay)
    host.compute.delete_volume(base)
    assert content_of(host.compute.open_volume(copy), tmp_path, "raw", len(CONTENT)) == CONTENT


@pytest.mark.needs("files")
def test_a_cached_image_is_listed_with_what_is_built_on_it(host: Host, tmp_path: Path) -> None:
    began = time.time()
    image = image_file(tmp_path, CONTENT, format="qcow2")
    base = host.compute.import_image(image, host.deadline()).name
    (fresh,) = [cached for cached in host.compute.cached() if cached.name == base]
    assert (fresh.whole, fresh.users) == (True, ())
    assert fresh.allocation > 0
    assert began - 2 <= fresh.changed <= time.time() + 2  # file systems round times
    overlay = host.volume(base=base)
    (used,) = [cached for cached in host.compute.cached() if cached.name == base]
    assert used.users == (overlay,)
    host.compute.delete_volume(overlay)
    host.compute.delete_volume(base)
    assert base not in {cached.name for cached in host.compute.cached()}


@pytest.mark.needs("files")
def test_an_import_that_did_not_end_is_listed_as_half_made_and_can_be_deleted(host: Host, tmp_path: Path) -> None:
    image = image_file(tmp_path, CONTENT, format="raw")
    name = cached_image(image.sha256, "raw")
    host.begin_import(name)
    (half,) = [cached for cached in host.compute.cached() if cached.name == name]
    assert (half.whole, half.users) == (False, ())
    host.compute.delete_volume(name)
    assert name not in host.all_volumes()


@pytest.mark.needs("files")
def test_a_kernel_that_an_instance_boots_from_is_not_deleted(host: Host, tmp_path: Path) -> None:
    image = image_file(tmp_path, host.name("kernel").encode(), format="raw", size=20 * 1024)
    kernel = host.compute.import_file(image.path, image.sha256, host.deadline())
    domain = replace(host.domain(), kernel=kernel, initrd=None)
    host.compute.define(domain)
    host.compute.set_aside(domain.name, "r7")
    (cached,) = [cached for cached in host.compute.cached() if cached.name == kernel]
    assert len(cached.users) == 1 and domain.name in cached.users[0]
    with pytest.raises(Conflict):
        host.compute.delete_volume(kernel)
    assert kernel in host.all_volumes()
    host.compute.delete_set_aside(domain.name, "r7")
    host.compute.delete_volume(kernel)
    assert kernel not in host.all_volumes()


@pytest.mark.needs("files")
def test_a_missing_volume_cannot_be_read(host: Host) -> None:
    with pytest.raises(NotFound), host.compute.open_volume(host.mark().volume("nothing")):
        pass


# Definitions


def test_an_instance_is_defined_stopped_with_all_that_was_asked_for(host: Host) -> None:
    domain = host.domain()
    made = host.compute.define(domain)
    for facts in (made, host.seen(domain.name)):
        assert (facts.name, facts.uuid, facts.host) == (domain.name, domain.uuid, host.compute.host)
        assert (facts.state, facts.vcpus, facts.memory) == (State.STOPPED, 1, 256 * MIB)
        assert facts.mark == domain.mark
        assert facts.volumes == (domain.disks[0].volume,)
        assert facts.set_aside is None
        assert (facts.keep, facts.protect, facts.locked) == ((), False, False)


def test_an_instance_remembers_what_outlives_it_and_that_it_is_protected(host: Host) -> None:
    domain = replace(host.domain(), keep=("data", "log"), protect=True)
    host.compute.define(domain)
    host.compute.define(domain)
    host.compute.set_aside(domain.name, "r7")
    (aside,) = [facts for facts in host.compute.instances() if facts.uuid == domain.uuid]
    back = host.compute.bring_back(domain.name, "r7")
    for facts in (aside, back, host.seen(domain.name)):
        assert (facts.keep, facts.protect) == (("data", "log"), True)


def test_what_outlives_an_instance_can_change(host: Host) -> None:
    domain = replace(host.domain(), keep=("data",), protect=True)
    name = host.compute.define(domain).name
    host.compute.start(name)
    for keep in (("data", "log"), ("log",), ("log",), ()):
        host.compute.set_keep(name, keep)
        assert host.seen(name).keep == keep
    host.compute.set_keep(name, ("log",))
    host.compute.power_off(name)
    found = host.seen(name)
    assert (found.keep, found.protect, found.mark) == (("log",), True, domain.mark)


def test_defining_an_instance_again_returns_it(host: Host) -> None:
    domain = host.domain()
    host.compute.define(domain)
    assert host.compute.define(domain).uuid == domain.uuid
    assert [facts.name for facts in host.compute.instances() if facts.uuid == domain.uuid] == [domain.name]


def test_defining_a_running_instance_again_leaves_it_running(host: Host) -> None:
    domain = host.domain()
    host.compute.define(domain)
    host.compute.start(domain.name)
    host.compute.define(domain)
    assert host.seen(domain.name).state is State.RUNNING


def test_a_foreign_name_is_taken(host: Host) -> None:
    host.add_foreign(host.name("web"))
    before = host.seen(host.name("web"))
    with pytest.raises(NameTaken):
        host.compute.define(host.domain("web"))
    assert host.seen(host.name("web")) == before


def test_the_name_of_another_run_is_taken(host: Host) -> None:
    domain = host.domain()
    host.compute.define(domain)
    with pytest.raises(Conflict):
        host.compute.define(replace(domain, mark=host.mark(run="r2")))
    assert host.seen(domain.name).mark == domain.mark


def test_a_uuid_is_taken(host: Host) -> None:
    first = host.domain("one")
    host.compute.define(first)
    with pytest.raises(NameTaken):
        host.compute.define(replace(host.domain("two"), uuid=first.uuid))
    assert host.compute.instance(host.name("two")) is None
    assert host.seen(first.name).mark == first.mark


def test_an_instance_with_a_missing_disk_is_not_defined(host: Host) -> None:
    domain = host.domain(disk=host.mark().volume("nothing"))
    with pytest.raises(NotFound):
        host.compute.define(domain)
    assert host.compute.instance(domain.name) is None


@pytest.mark.parametrize("state", [State.STOPPED, State.RUNNING, State.PAUSED, State.SUSPENDED])
def test_undefine_forgets_an_instance_and_leaves_its_disk(host: Host, state: State) -> None:
    require_state(host, state)
    name = host.made(state=state)
    host.compute.undefine(name)
    host.compute.undefine(name)
    assert host.compute.instance(name) is None
    assert host.mark().volume("boot") in host.ours()
    host.made()  # nothing is left that keeps it from being made again


def test_foreign_instances_are_never_changed(host: Host) -> None:
    name = host.name("other")
    host.add_foreign(name)
    before, compute = host.seen(name), host.compute
    for attempt in (
        lambda: compute.undefine(name),
        lambda: compute.set_aside(name, "r1"),
        lambda: compute.bring_back(name, "r1"),
        lambda: compute.start(name),
        lambda: compute.request_shutdown(name),
        lambda: compute.power_off(name),
        lambda: compute.reboot(name, "hard", host.deadline()),
        lambda: compute.reboot(name, "soft", host.deadline()),
        lambda: compute.pause(name),
        lambda: compute.unpause(name),
        lambda: compute.suspend(name, host.deadline()),
        lambda: compute.resume(name, host.deadline()),
        lambda: compute.note(name, Note.LOCKED, ""),
        lambda: compute.note(name, Note.LOCKED, None),
        lambda: compute.set_keep(name, ("data",)),
    ):
        with pytest.raises(Conflict):
            attempt()
    compute.delete_set_aside(name, "r1")
    assert host.seen(name) == before


def test_what_is_absent_is_not_found(host: Host) -> None:
    name, compute = host.name("nobody"), host.compute
    for attempt in (
        lambda: compute.set_aside(name, "r1"),
        lambda: compute.bring_back(name, "r1"),
        lambda: compute.start(name),
        lambda: compute.request_shutdown(name),
        lambda: compute.power_off(name),
        lambda: compute.reboot(name, "hard", host.deadline()),
        lambda: compute.reboot(name, "soft", host.deadline()),
        lambda: compute.pause(name),
        lambda: compute.unpause(name),
        lambda: compute.suspend(name, host.deadline()),
        lambda: compute.resume(name, host.deadline()),
        lambda: compute.note(name, Note.LOCKED, ""),
        lambda: compute.note(name, Note.LOCKED, None),
        lambda: compute.set_keep(name, ("data",)),
        lambda: compute.addresses(name),
    ):
        with pytest.raises(NotFound):
            attempt()


@pytest.mark.needs("guest")
def test_what_is_absent_has_no_console(host: Host) -> None:
    with pytest.raises(NotFound):
        host.compute.console(host.name("nobody"))


# Setting aside


@pytest.mark.parametrize("state", [State.STOPPED, State.RUNNING, State.PAUSED, State.SUSPENDED])
def test_what_is_set_aside_frees_its_name_and_keeps_its_disk(host: Host, state: State) -> None:
    require_state(host, state)
    name = host.made(state=state)
    host.compute.set_aside(name, "r7")
    host.compute.set_aside(name, "r7")
    assert host.compute.instance(name) is None
    (aside,) = [
        facts for facts in host.compute.instances() if facts.set_aside is not None and facts.mark == host.mark()
    ]
    assert (aside.set_aside, aside.state) == ("r7", State.STOPPED)
    assert aside.name != name
    assert aside.volumes == (host.mark().volume("boot"),)
    assert host.mark().volume("boot") in host.ours()


def test_what_is_set_aside_comes_back_as_it_was(host: Host) -> None:
    name = host.made(state=State.RUNNING)
    before = host.seen(name)
    host.compute.set_aside(name, "r7")
    back = host.compute.bring_back(name, "r7")
    assert back == host.compute.bring_back(name, "r7") == host.seen(name)
    assert back == replace(before, power=State.STOPPED)
    host.compute.start(name)
    assert host.seen(name).state is State.RUNNING


def test_only_the_run_that_set_aside_brings_back_or_deletes(host: Host) -> None:
    name = host.made()
    host.compute.set_aside(name, "r7")
    with pytest.raises(NotFound):
        host.compute.bring_back(name, "r8")
    host.compute.delete_set_aside(name, "r8")
    assert host.compute.bring_back(name, "r7").name == name


def test_deleting_what_is_set_aside_leaves_the_disk_to_the_caller(host: Host) -> None:
    name = host.made()
    host.compute.set_aside(name, "r7")
    host.compute.delete_set_aside(name, "r7")
    host.compute.delete_set_aside(name, "r7")
    with pytest.raises(NotFound):
        host.compute.bring_back(name, "r7")
    assert [facts for facts in host.compute.instances() if facts.mark == host.mark()] == []
    assert host.mark().volume("boot") in host.ours()
    host.compute.delete_volume(host.mark().volume("boot"))


def test_deleting_what_is_set_aside_leaves_what_is_not(host: Host) -> None:
    name = host.made(state=State.RUNNING)
    host.compute.delete_set_aside(name, "r7")
    assert host.seen(name).state is State.RUNNING


def test_nothing_comes_back_over_another_instance(host: Host) -> None:
    name = host.made()
    host.compute.set_aside(name, "r7")
    host.add_foreign(name)
    with pytest.raises(Conflict):
        host.compute.bring_back(name, "r7")
    assert host.seen(name).mark is None
    assert [facts.set_aside for facts in host.compute.instances() if facts.mark == host.mark()] == ["r7"]


# Power


def test_start_and_power_off_are_idempotent(host: Host) -> None:
    name = host.made()
    for call, state in (
        (host.compute.start, State.RUNNING),
        (host.compute.start, State.RUNNING),
        (host.compute.power_off, State.STOPPED),
        (host.compute.power_off, State.STOPPED),
        (host.compute.start, State.RUNNING),
    ):
        call(name)
        assert host.seen(name).state is state


@pytest.mark.parametrize("state", [State.PAUSED, State.SUSPENDED])
def test_an_instance_with_memory_is_not_started(host: Host, state: State) -> None:
    require_state(host, state)
    name = host.made(state=state)
    with pytest.raises(Conflict):
        host.compute.start(name)
    assert host.seen(name).state is state
    host.compute.power_off(name)
    assert host.seen(name).state is State.STOPPED


@pytest.mark.needs("pause")
def test_pause_and_unpause_are_idempotent(host: Host) -> None:
    name = host.made(state=State.RUNNING)
    for call, state in (
        (host.compute.unpause, State.RUNNING),
        (host.compute.pause, State.PAUSED),
        (host.compute.pause, State.PAUSED),
        (host.compute.unpause, State.RUNNING),
    ):
        call(name)
        assert host.seen(name).state is state


@pytest.mark.needs("suspend")
def test_suspend_and_resume_are_idempotent(host: Host) -> None:
    name = host.made(state=State.RUNNING)
    for call, state in (
        (host.compute.resume, State.RUNNING),
        (host.compute.suspend, State.SUSPENDED),
        (host.compute.suspend, State.SUSPENDED),
        (host.compute.resume, State.RUNNING),
    ):
        call(name, host.deadline())
        assert host.seen(name).state is state


@pytest.mark.needs("saved-pause")
def test_what_was_paused_when_it_was_saved_is_paused_again(host: Host) -> None:
    name = host.made(state=State.PAUSED)
    host.compute.suspend(name, host.deadline())
    assert host.seen(name).state is State.SUSPENDED
    for _ in range(2):
        host.compute.resume(name, host.deadline())
        assert host.seen(name).state is State.PAUSED
    host.compute.unpause(name)
    assert host.seen(name).state is State.RUNNING


def test_only_a_guest_with_memory_stands_still(host: Host) -> None:
    name, compute = host.made(), host.compute
    for call in (compute.pause, compute.unpause):
        with pytest.raises(Conflict):
            call(name)
    for move in (compute.suspend, compute.resume):
        with pytest.raises(Conflict):
            move(name, host.deadline())
    assert host.seen(name).state is State.STOPPED


@pytest.mark.needs("suspend")
def test_a_suspended_guest_is_not_paused_and_a_paused_one_not_resumed(host: Host) -> None:
    name = host.made(state=State.SUSPENDED)
    for attempt in (host.compute.pause, host.compute.unpause):
        with pytest.raises(Conflict):
            attempt(name)
    assert host.seen(name).state is State.SUSPENDED
    host.compute.resume(name, host.deadline())
    host.compute.pause(name)
    host.compute.resume(name, host.deadline())
    assert host.seen(name).state is State.PAUSED


@pytest.mark.needs("suspend")
def test_a_suspend_that_nobody_waits_for_leaves_the_guest_running(host: Host) -> None:
    name = host.made(state=State.RUNNING)
    with pytest.raises(DeadlinePassed):
        host.compute.suspend(name, cancelled())
    assert host.seen(name).state is State.RUNNING


@pytest.mark.needs("guest")
def test_a_guest_goes_on_where_it_was(host: Host) -> None:
    """It does not boot again, and its console tells of its whole life."""
    name = host.made(state=State.RUNNING)
    wait_for_console(host, name)
    before = host.compute.console(name)
    for _ in range(2):
        host.compute.suspend(name, host.deadline())
        host.compute.resume(name, host.deadline())
    host.compute.pause(name)
    host.compute.unpause(name)
    after = host.compute.console(name)
    assert after.startswith(before)
    assert after.count(greeting(host, name)) == 1
    host.compute.reboot(name, "hard", host.deadline())
    assert wait_for_console(host, name).count(greeting(host, name)) == 1


@pytest.mark.needs("suspend")
def test_powering_off_a_suspended_instance_gives_its_memory_up(host: Host) -> None:
    name = host.made(state=State.SUSPENDED)
    assert host.seen(name).state is State.SUSPENDED
    host.compute.power_off(name)
    assert host.seen(name).state is State.STOPPED


@pytest.mark.needs("guest")
def test_a_guest_that_is_asked_shuts_down(host: Host) -> None:
    name = host.made(state=State.RUNNING)
    wait_for_console(host, name)
    host.compute.request_shutdown(name)
    assert host.compute.wait_state(name, frozenset({State.STOPPED}), host.deadline()) is State.STOPPED
    host.compute.request_shutdown(name)
    assert host.seen(name).state is State.STOPPED


@pytest.mark.needs("guest")
def test_a_deaf_guest_goes_on(host: Host) -> None:
    name = host.compute.define(host.domain(deaf=True)).name
    host.compute.start(name)
    wait_for_console(host, name)
    host.compute.request_shutdown(name)
    with pytest.raises(DeadlinePassed):
        host.compute.wait_state(name, frozenset({State.STOPPED}), Deadline(1.0))
    with pytest.raises(DeadlinePassed):
        host.compute.reboot(name, "soft", Deadline(1.0))
    assert host.seen(name).state is State.RUNNING


@pytest.mark.parametrize("state", [State.STOPPED, State.RUNNING, State.PAUSED, State.SUSPENDED])
def test_a_hard_reboot_ends_running(host: Host, state: State) -> None:
    require_state(host, state)
    name = host.made(state=state)
    host.compute.reboot(name, "hard", host.deadline())
    assert host.seen(name).state is State.RUNNING


@pytest.mark.parametrize("state", [State.STOPPED, State.PAUSED, State.SUSPENDED])
def test_a_soft_reboot_needs_a_running_guest(host: Host, state: State) -> None:
    require_state(host, state)
    name = host.made(state=state)
    with pytest.raises(Conflict):
        host.compute.reboot(name, "soft", host.deadline())
    assert host.seen(name).state is state


@pytest.mark.needs("guest")
def test_a_soft_reboot_begins_anew(host: Host) -> None:
    name = host.made(state=State.RUNNING)
    wait_for_console(host, name)
    host.compute.reboot(name, "soft", host.deadline())
    assert host.seen(name).state is State.RUNNING
    wait_for_console(host, name)


def test_wait_state_returns_at_once_what_is_true(host: Host) -> None:
    name = host.made()
    both = frozenset({State.STOPPED, State.RUNNING})
    assert host.compute.wait_state(name, both, Deadline(1.0)) is State.STOPPED
    assert host.compute.wait_state(host.name("nobody"), frozenset({State.ABSENT}), Deadline(1.0)) is State.ABSENT


def test_wait_state_ends_with_its_deadline(host: Host) -> None:
    name = host.made()
    with pytest.raises(DeadlinePassed):
        host.compute.wait_state(name, frozenset({State.RUNNING}), Deadline(0.2))
    assert host.seen(name).state is State.STOPPED


def test_wait_state_sees_what_another_thread_does(host: Host) -> None:
    name = host.made()
    timer = threading.Timer(0.2, host.compute.start, [name])
    timer.start()
    try:
        assert host.compute.wait_state(name, frozenset({State.RUNNING}), host.deadline()) is State.RUNNING
    finally:
        timer.join()


# The lock


def test_a_lock_is_remembered_whatever_happens(host: Host) -> None:
    domain = host.domain()
    name = host.compute.define(domain).name
    for _ in range(2):
        host.compute.note(name, Note.LOCKED, "")
        assert host.seen(name).locked
    host.compute.define(domain)
    host.compute.start(name)
    assert host.seen(name).locked
    assert [facts.locked for facts in host.compute.instances() if facts.name == name] == [True]
    host.compute.set_aside(name, "r7")
    back = host.compute.bring_back(name, "r7")
    assert back.locked
    assert (back.mark, back.uuid) == (domain.mark, domain.uuid)
    for _ in range(2):
        host.compute.note(name, Note.LOCKED, None)
        assert not host.seen(name).locked
    assert host.seen(name).mark == domain.mark


def test_a_running_instance_is_locked_and_unlocked(host: Host) -> None:
    name = host.made(state=State.RUNNING)
    host.compute.note(name, Note.LOCKED, "")
    assert host.seen(name).locked
    host.compute.power_off(name)
    host.compute.start(name)
    assert host.seen(name).locked
    host.compute.note(name, Note.LOCKED, None)
    host.compute.power_off(name)
    assert not host.seen(name).locked


# Looking in


@pytest.mark.needs("guest")
def test_the_console_tells_of_the_last_start_only(host: Host) -> None:
    name = host.made()
    assert host.compute.console(name) == ""
    for _ in range(2):
        host.compute.start(name)
        text = wait_for_console(host, name)
        assert text.count(greeting(host, name)) == 1
        host.compute.power_off(name)
    assert greeting(host, name) in host.compute.console(name)


def test_addresses_are_addresses_and_a_stopped_instance_has_none(host: Host) -> None:
    name = host.made()
    assert list(host.compute.addresses(name)) == []
    host.compute.start(name)
    versions = [ipaddress.ip_address(address).version for address in host.compute.addresses(name)]
    assert versions == sorted(versions)


# Snapshot


@pytest.mark.needs("files")
@pytest.mark.parametrize("state", [State.STOPPED, State.RUNNING, State.PAUSED, State.SUSPENDED])
def test_an_export_is_flat_and_leaves_everything_else(host: Host, tmp_path: Path, state: State) -> None:
    require_state(host, state)
    base = host.compute.import_image(image_file(tmp_path, CONTENT, format="qcow2"), host.deadline()).name
    disk, target = host.volume("boot", base=base), host.mark().volume("copy")
    name = host.made(state=state, disk=disk)
    before = host.seen(name)

    (made,) = host.compute.export_disks(name, {disk: target}, deadline=host.deadline())

    assert (made.name, made.base, made.format, made.capacity) == (target, None, "qcow2", 8 * MIB)
    assert made.mark is not None and made.mark.plan == host.plan
    assert host.seen(name) == before
    (after,) = [volume for volume in host.compute.volumes() if volume.name == disk]
    assert after.base == base
    host.compute.undefine(name)
    host.compute.delete_volume(disk)
    host.compute.delete_volume(base)
    assert content_of(host.compute.open_volume(target), tmp_path, "qcow2", len(CONTENT)) == CONTENT


@pytest.mark.needs("files")
def test_an_export_can_be_repeated(host: Host, tmp_path: Path) -> None:
    base = host.compute.import_image(image_file(tmp_path, CONTENT, format="raw"), host.deadline()).name
    disk, target = host.volume("boot", base=base), host.mark().volume("copy")
    name = host.made(disk=disk)
    for _ in range(2):
        host.compute.export_disks(name, {disk: target}, deadline=host.deadline())
    assert content_of(host.compute.open_volume(target), tmp_path, "qcow2", len(CONTENT)) == CONTENT


@pytest.mark.needs("files")
@pytest.mark.parametrize("state", [State.STOPPED, State.RUNNING])
def test_an_export_that_nobody_waits_for_leaves_nothing(host: Host, state: State) -> None:
    name, target = host.made(state=state), host.mark().volume("copy")
    with pytest.raises(DeadlinePassed):
        host.compute.export_disks(name, {host.mark().volume("boot"): target}, deadline=cancelled())
    assert target not in host.ours()
    assert host.seen(name).state is state


@pytest.mark.needs("files")
def test_an_export_cancelled_on_the_way_leaves_nothing_or_is_whole(host: Host, tmp_path: Path) -> None:
    """A small disk may be copied before the host looks up; what it must not leave is half a copy."""
    base = host.compute.import_image(image_file(tmp_path, CONTENT, format="raw"), host.deadline()).name
    disk, target = host.volume("boot", base=base), host.mark().volume("copy")
    name = host.made(state=State.RUNNING, disk=disk)
    try:
        host.compute.export_disks(name, {disk: target}, deadline=cancelled_on_the_way())
    except DeadlinePassed:
        assert target not in host.ours()
        host.compute.export_disks(name, {disk: target}, deadline=host.deadline())
    assert content_of(host.compute.open_volume(target), tmp_path, "qcow2", len(CONTENT)) == CONTENT


@pytest.mark.needs("files")
def test_only_a_disk_of_an_instance_of_ours_is_exported(host: Host) -> None:
    name, disk, other = host.made(), host.mark().volume("boot"), host.volume("boot", "db")
    foreign = host.add_foreign(host.name("other"))
    target, all_before = host.mark().volume("copy"), host.all_volumes()
    for instance, volume, error in (
        (name, other, NotFound),
        (host.name("nobody"), disk, NotFound),
        (host.name("other"), foreign, Conflict),
    ):
        with pytest.raises(error):
            host.compute.export_disks(instance, {volume: target}, deadline=host.deadline())
    assert host.all_volumes() == all_before
