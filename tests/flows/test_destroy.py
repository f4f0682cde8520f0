"""What the plan made is destroyed, wherever and however it is by now, and nothing else."""

from dataclasses import replace
from pathlib import Path

import pytest

from flows.preview import Refused
from planvirt.errors import PlanvirtError
from planvirt.journal.transitions import RunState
from planvirt.mark import instance_uuid
from planvirt.states import State
from tests.flows.yard import Yard

WEB = "instances:\n  web: {count: 2, memory: 64 MiB, disks: [1 MiB]}\n"
ONE = "instances:\n  web: {count: 1, memory: 64 MiB, disks: [1 MiB]}\n"
NOTHING = "instances: {}\n"
KEEP_ON_FAILURE = """\
on_failure: keep
instances:
  web: {count: 2, memory: 64 MiB, disks: [1 MiB]}
operations:
  - {action: terminate, instances: [web-1]}
  - {action: stop, instances: [web-2], with: {grace: 1s}}
"""


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return Yard(tmp_path)


# Protection


def test_an_instance_that_has_left_the_plan_stays_protected(yard: Yard) -> None:
    yard.run(WEB.replace("count: 2", "count: 2, protect: true"))
    before = yard.left()
    (first, second) = yard.preview(ONE, destroy=True).conflicts, yard.preview(NOTHING, destroy=True).conflicts
    assert first == ("terminate.web-2: web-2 is protected; declare it without 'protect' to have it terminated",)
    assert len(second) == 2
    with pytest.raises(Refused):
        yard.destroy(ONE)
    assert yard.left() == before


def test_the_plan_can_take_protection_away_and_give_it(yard: Yard) -> None:
    protected = ONE.replace("count: 1", "count: 1, protect: true")
    yard.run(ONE)
    assert yard.preview(protected).conflicts == ()
    assert len(yard.preview(protected, destroy=True).conflicts) == 1
    yard.destroy(ONE)
    yard.run(protected)
    assert yard.preview(ONE, destroy=True).conflicts == ()
    assert yard.destroy(ONE) == RunState.SUCCEEDED


# Hosts


def test_an_instance_on_another_host_than_the_plan_says_is_not_made_a_second_time(yard: Yard) -> None:
    yard.run(ONE)
    moved = ONE.replace("count: 1", "count: 1, host: kvm2")
    assert yard.preview(moved).conflicts == (
        "web-1: it is on host kvm1, the plan says kvm2; moving it is not possible yet: "
        "destroy it there first, or put the host back",
    )
    with pytest.raises(Refused):
        yard.run(moved)
    assert list(yard.left()) == ["kvm1"]


def test_destroy_goes_where_the_instance_is(yard: Yard) -> None:
    yard.run(ONE)
    moved = ONE.replace("count: 1", "count: 1, host: kvm2")
    assert yard.preview(moved, destroy=True).destroys == ("instance web-1 on kvm1 with 1 disk",)
    assert yard.destroy(moved) == RunState.SUCCEEDED
    assert yard.left() == {}


def test_a_name_on_two_hosts_is_destroyed_on_both(yard: Yard) -> None:
    yard.run(ONE)
    hidden = yard.folder / "hidden.json"
    (yard.folder / "kvm1.json").rename(hidden)
    yard.run(ONE.replace("count: 1", "count: 1, host: kvm2"))
    hidden.rename(yard.folder / "kvm1.json")
    assert yard.preview(ONE).conflicts == ()
    assert yard.preview(ONE).undeclared == ("web-1 on kvm2",)
    preview = yard.preview(ONE, destroy=True)
    assert [(step.id, step.instance.host) for step in preview.steps] == [
        ("terminate.web-1-kvm1", "kvm1"),
        ("terminate.web-1-kvm2", "kvm2"),
    ]
    assert yard.destroy(ONE) == RunState.SUCCEEDED
    assert yard.left() == {}


def test_two_names_for_one_host_do_not_make_two_instances(yard: Yard) -> None:
    again = replace(yard.config.hosts["kvm1"], name="kvm2")
    yard.config = replace(yard.config, hosts={"kvm1": yard.config.hosts["kvm1"], "kvm2": again})
    plan = ONE.replace("count: 1", "count: 1, host: kvm2")
    yard.run(plan)
    assert (yard.preview(plan).conflicts, yard.preview(plan).undeclared) == ((), ())
    assert [step.id for step in yard.preview(plan, destroy=True).steps] == ["terminate.web-1"]
    yard.destroy(NOTHING)
    assert yard.left() == {}


def test_a_host_that_the_plan_does_not_name_may_be_down(yard: Yard) -> None:
    yard.kvm2.fail("instances", times=None, error="unreachable")
    assert yard.run(ONE) == RunState.SUCCEEDED
    assert yard.destroy(ONE) == RunState.SUCCEEDED
    with pytest.raises(PlanvirtError):
        yard.run(ONE.replace("count: 1", "count: 1, host: kvm2"))


def test_dependents_go_first(yard: Yard) -> None:
    text = "instances:\n  db: {memory: 64 MiB, disks: [1 MiB]}\n  web: {memory: 64 MiB, disks: [1 MiB], needs: [db]}\n"
    yard.run(text)
    steps = yard.preview(text.replace("{memory", "{host: kvm2, memory"), destroy=True).steps
    assert [(step.id, step.needs) for step in steps] == [("terminate.web", ()), ("terminate.db", ("terminate.web",))]


def test_a_copy_that_somebody_made_of_an_instance_is_left_alone(yard: Yard) -> None:
    yard.run(ONE)
    with yard.kvm1.world() as world:
        machine = world.instances["web-1"]
        world.instances["clone"] = type(machine)("clone", instance_uuid("x", "clone"), machine.mark)
    assert yard.preview(ONE).undeclared == ()
    assert yard.destroy(ONE) == RunState.SUCCEEDED
    assert yard.left() == {"kvm1": ["clone"]}


# Set aside


def set_aside(yard: Yard) -> str:
    """Let a run leave web-1 set aside. Returns its id."""
    yard.run(WEB)
    yard.kvm1.fail("request_shutdown", name="web-2", error="error")
    assert yard.run(KEEP_ON_FAILURE) == RunState.KEPT
    assert yard.kvm1.instance("web-1") is None
    return "r2"


def test_what_a_run_set_aside_is_not_launched_anew(yard: Yard) -> None:
    run = set_aside(yard)
    assert yard.preview(WEB).conflicts == (
        f"web-1: it was set aside by run {run} on host kvm1; 'planvirt rollback {run}' brings it back",
    )
    assert yard.roll_back(run) == RunState.ROLLED_BACK
    assert yard.preview(WEB).conflicts == ()
    found = yard.kvm1.instance("web-1")
    assert found is not None and found.state == State.RUNNING


def test_destroy_deletes_what_a_run_set_aside(yard: Yard) -> None:
    run = set_aside(yard)
    preview = yard.preview(NOTHING, destroy=True)
    assert preview.destroys == (
        f"instance web-1 on kvm1 (set aside by run {run}) with 1 disk",
        "instance web-2 on kvm1 with 1 disk",
    )
    assert preview.changes[0].reason == f"set aside by run {run}"
    assert yard.destroy(NOTHING) == RunState.SUCCEEDED
    assert yard.left() == {}


def test_a_preview_tells_of_what_was_set_aside_and_is_not_in_the_plan(yard: Yard) -> None:
    run = set_aside(yard)
    assert f"web-1 on kvm1 (set aside by run {run})" in yard.preview(NOTHING).undeclared


def test_a_destroy_that_fails_leaves_what_was_set_aside_as_it_was(yard: Yard) -> None:
    set_aside(yard)
    before = yard.left()
    yard.kvm1.fail("set_aside", name="web-2", error="error")
    assert yard.destroy(NOTHING) == RunState.ROLLED_BACK
    assert yard.left() == before


def test_what_was_set_aside_keeps_the_disks_that_outlive_it(yard: Yard) -> None:
    disks = "disks: [1 MiB, {name: data, size: 1 MiB, keep: true}]"
    yard.run(WEB.replace("disks: [1 MiB]", disks))
    yard.kvm1.fail("request_shutdown", name="web-2", error="error")
    assert yard.run(KEEP_ON_FAILURE.replace("disks: [1 MiB]", disks)) == RunState.KEPT
    assert yard.destroy(NOTHING) == RunState.SUCCEEDED
    assert yard.left() == {"kvm1": ["shop.web-1.data", "shop.web-2.data"]}
