"""exec: programs in a guest, what they wrote, how they are undone, and what is never told of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drivers.compute import Compute, Executed
from drivers.errors import DriverError, NoAgent, Transient
from drivers.simulated import SimulatedCompute
from flows.actions import ACTIONS
from flows.actions.action import Finding
from flows.call import Call, RunFacts
from flows.rollback import leftovers
from flows.world import World
from planvirt.config import Config, SecretConfig
from planvirt.deadline import Deadline
from planvirt.errors import PlanvirtError
from planvirt.journal.transitions import RunState
from planvirt.mark import instance_uuid
from planvirt.secret import Secret
from tests.flows.aftermath import killed_everywhere, made, picture, with_faults
from tests.flows.yard import Yard

PLAN = """\
instances:
  web: {memory: 64 MiB, disks: [1 MiB]}
"""
UNDONE = (
    PLAN + "operations:\n  - {id: go, action: exec, instances: [web], with: {command: [set-up], undo: [clean-up]}}\n"
)
FAIL = "  - {id: fail, action: exec, instances: [web], with: {command: [broken]}}\n"
KIB = 1 << 10


def execute(given: str, more: str = "") -> str:
    return PLAN + f"operations:\n  - {{id: go, action: exec, instances: [web], with: {{{given}}}{more}}}\n"


def programs(yard: Yard, **ends: Mapping[str, Any]) -> None:
    """What programs come to in the guest, by their names."""
    listed = {name.replace("_", "-"): end for name, end in ends.items()}
    with yard.kvm1.world() as world:
        world.guests["web"] = {"programs": {"broken": {"exit_code": 1}, **listed}}


def ran(yard: Yard) -> list[str]:
    return [event.split()[1] for event in yard.kvm1.events() if event.startswith("execute ")]


def outputs(yard: Yard) -> Mapping[str, Any]:
    return yard.journal.step(f"r{yard.runs}", "go.web").outputs


def error(yard: Yard) -> Mapping[str, str]:
    found = yard.journal.step(f"r{yard.runs}", "go.web").error
    assert found is not None
    return found


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return made(tmp_path / "yard", PLAN, programs)


# What a program comes to


def test_what_a_program_wrote_is_an_output(yard: Yard) -> None:
    programs(yard, uname={"stdout": "Linux\n", "stderr": "hm\n"})
    assert yard.run(execute("command: [uname, -a]")) == RunState.SUCCEEDED
    assert outputs(yard) == {"exit_code": 0, "stdout": "Linux\n", "stderr": "hm\n", "truncated": False}
    assert ran(yard) == ["uname"]


def test_later_steps_can_read_it(yard: Yard) -> None:
    programs(yard, uname={"stdout": "Linux\n"})
    text = execute("command: [uname]") + (
        "  - {id: then, action: exec, instances: [web], when: \"{{ 'Linux' in steps.go.outputs.stdout }}\", "
        "with: {command: [next]}}\n"
        '  - {id: never, action: exec, instances: [web], when: "{{ steps.go.outputs.exit_code == 1 }}", '
        "with: {command: [other]}}\n"
    )
    assert yard.run(text) == RunState.SUCCEEDED
    assert ran(yard) == ["uname", "next"]


def test_an_exit_code_that_is_not_allowed_fails_the_step(yard: Yard) -> None:
    programs(yard, check={"exit_code": 3, "stdout": "fine so far\n", "stderr": "first\n\nno \x1b[31mdisk\n"})
    assert yard.run(execute("command: [check]", ", retry: {attempts: 3, delay: 1ms}")) == RunState.ROLLED_BACK
    assert error(yard)["brief"] == "cannot run check in web: it ended with 3"
    assert error(yard)["details"] == "first\nno  [31mdisk"
    assert ran(yard) == ["check"]


def test_without_errors_the_last_lines_of_the_output_are_told(yard: Yard) -> None:
    programs(yard, check={"exit_code": 1, "stdout": "".join(f"line {number}\n" for number in range(100))})
    yard.run(execute("command: [check]"))
    assert error(yard)["details"].splitlines() == [f"line {number}" for number in range(90, 100)]


@pytest.mark.parametrize(("code", "state"), [(3, RunState.SUCCEEDED), (0, RunState.ROLLED_BACK)])
def test_the_plan_says_which_exit_codes_are_success(yard: Yard, code: int, state: RunState) -> None:
    programs(yard, check={"exit_code": code})
    assert yard.run(execute("command: [check], exit_codes: [2, 3]")) == state
    if state == RunState.SUCCEEDED:
        assert outputs(yard)["exit_code"] == 3


def test_what_a_program_wrote_is_kept_up_to_a_limit_and_that_is_told(yard: Yard) -> None:
    programs(yard, talk={"stdout": "x" + "ä" * 40 * KIB, "stderr": "y" * 64 * KIB})
    assert yard.run(execute("command: [talk]")) == RunState.SUCCEEDED
    found = outputs(yard)
    assert found["stdout"] == "x" + "ä" * (32 * KIB - 1)
    assert found["stderr"] == "y" * 64 * KIB
    assert found["truncated"] is True
    assert any("only the first 64 KiB are kept" in line for line in yard.heard)


def test_a_guest_that_does_not_run_is_refused(yard: Yard) -> None:
    prepared = yard.prepare(execute("command: [uname]"))
    yard.kvm1.power_off("web")
    assert yard.carry_out(prepared) == RunState.ROLLED_BACK
    assert ran(yard) == []


# What is undone


def test_the_undo_command_is_run_when_a_later_step_fails(yard: Yard) -> None:
    before = picture(yard)
    assert yard.run(UNDONE + FAIL) == RunState.ROLLED_BACK
    assert ran(yard) == ["set-up", "broken", "clean-up"]
    assert picture(yard) == before


def test_the_undo_command_is_run_for_a_program_that_failed(yard: Yard) -> None:
    programs(yard, set_up={"exit_code": 1})
    assert yard.run(UNDONE) == RunState.ROLLED_BACK
    assert ran(yard) == ["set-up", "clean-up"]


def test_without_an_undo_command_nothing_is_run(yard: Yard) -> None:
    assert yard.run(execute("command: [set-up]") + FAIL) == RunState.ROLLED_BACK
    assert ran(yard) == ["set-up", "broken"]


def test_an_undo_command_that_fails_is_tried_again_and_told(yard: Yard) -> None:
    programs(yard, clean_up={"exit_code": 9, "stderr": "busy\n"})
    assert yard.run(UNDONE + FAIL) == RunState.ROLLBACK_INCOMPLETE
    assert ran(yard) == ["set-up", "broken", "clean-up", "clean-up", "clean-up"]
    record = yard.journal.step("r2", "go.web")
    assert record.undo_error is not None
    assert record.undo_error["brief"] == "cannot run clean-up in web: it ended with 9"
    assert record.undo_error["details"] == "busy"
    assert leftovers(RunState.ROLLBACK_INCOMPLETE, yard.journal.steps("r2")) == ["exec of web"]


def test_a_guest_that_does_not_run_any_more_has_nothing_to_undo(yard: Yard) -> None:
    kept = UNDONE.replace("instances:\n", "on_failure: keep\ninstances:\n", 1)
    assert yard.run(kept + FAIL) == RunState.KEPT
    yard.kvm1.power_off("web")
    assert yard.roll_back("r2") == RunState.ROLLED_BACK
    assert "clean-up" not in ran(yard)


def test_an_undo_waits_for_the_agent_of_a_guest_that_another_undo_has_started(yard: Yard) -> None:
    with yard.kvm1.world() as world:
        world.guests["web"] = {"boot_seconds": 0.7}
    text = (
        UNDONE
        + "  - {action: stop, instances: [web]}\n  - {id: no, action: rescue, instances: [web], with: {image: x}}\n"
    )
    prepared = yard.prepare(
        text.replace("instances:\n", "images:\n  x: {source: ./base.raw, format: raw}\ninstances:\n", 1)
    )
    yard.kvm1.fail("rescue", error="error")
    assert yard.carry_out(prepared) == RunState.ROLLED_BACK
    assert ran(yard) == ["set-up", "clean-up"]


def test_a_guest_that_is_booting_is_waited_for(yard: Yard) -> None:
    with yard.kvm1.world() as world:
        world.guests["web"] = {"boot_seconds": 0.7}
    reboot = "operations:\n  - {action: reboot, instances: [web], with: {kind: hard}}\n"
    assert yard.run(UNDONE.replace("operations:\n", reboot)) == RunState.SUCCEEDED
    assert ran(yard) == ["set-up"]


def test_what_never_reached_an_agent_is_not_undone(yard: Yard) -> None:
    with yard.kvm1.world() as world:
        world.guests["web"] = {"agent": False}
    text = UNDONE.replace("undo: [", "within: 10ms, undo: [").replace(
        "[web], with", "[web], retry: {attempts: 2, delay: 1ms}, with"
    )
    assert yard.run(text) == RunState.ROLLED_BACK
    assert error(yard)["brief"] == "cannot run set-up in web: its guest agent does not answer"
    assert ran(yard) == []


@pytest.mark.sweep
@pytest.mark.parametrize("at", ["before", "after"])
def test_a_fault_at_any_call_is_undone(yard: Yard, at: str) -> None:
    before = picture(yard)
    for trial in with_faults(yard, UNDONE + FAIL, at=at):  # type: ignore[arg-type] # one of two words
        assert (trial.state, picture(trial.yard)) == (RunState.ROLLED_BACK, before), trial.where
        if "set-up" in ran(trial.yard):
            assert ran(trial.yard)[-1] == "clean-up", trial.where


@pytest.mark.sweep
def test_an_undo_that_fails_twice_succeeds_in_the_end(yard: Yard) -> None:
    for trial in with_faults(yard, UNDONE + FAIL, times=2):
        assert trial.state == RunState.ROLLED_BACK, trial.where
        if "set-up" in ran(trial.yard):
            assert ran(trial.yard)[-1] == "clean-up", trial.where


@pytest.mark.sweep
@pytest.mark.parametrize("forward", [False, True], ids=["back", "forward"])
@pytest.mark.parametrize("before_it", [True, False], ids=["before", "after"])
def test_killed_at_every_word(yard: Yard, before_it: bool, forward: bool) -> None:
    for trial in killed_everywhere(yard, UNDONE, before=before_it, forward=forward):
        if trial.state == RunState.SUCCEEDED:
            assert ran(trial.yard)[-1] == "set-up", trial.where
        elif "set-up" in ran(trial.yard):
            assert ran(trial.yard)[-1] == "clean-up", trial.where


# What the driver hears


class Guest(SimulatedCompute):
    """A host whose guest remembers what it was told to run, and answers with what comes next."""

    def __init__(self, path: Path, answers: Sequence[Executed | Exception]) -> None:
        host = SimulatedCompute.in_file("kvm1", path)
        super().__init__("kvm1", host._worlds)
        self.answers = list(answers)
        self.told: list[tuple[list[str], bytes]] = []

    def execute(self, name: str, command: Sequence[str], stdin: bytes, deadline: Deadline) -> Executed:  # noqa: ARG002 - the interface's
        self.told.append((list(command), stdin))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Hosts(World):
    """The world with this one host in it."""

    def __init__(self, config: Config, compute: Compute) -> None:
        super().__init__(config)
        self._compute = compute

    def host(self, name: str) -> Compute:  # noqa: ARG002 - there is just one
        return self._compute


def call(yard: Yard, guest: Guest, known: dict[str, Any] | None = None, **arguments: Any) -> Call:
    return Call(
        RunFacts("r9", "shop", "", ""), "go.web", "web", instance_uuid("shop", "web"), "kvm1", arguments,
        Hosts(yard.config, guest), Deadline(20.0), {} if known is None else known,
        record=lambda _phase, _undo: None, log=lambda _: None,
    )  # fmt: skip


def test_a_guest_is_told_words_and_input_with_secrets_revealed(yard: Yard) -> None:
    guest = Guest(yard.folder / "kvm1.json", [Executed(0, b"\xff\0ok", b"")])
    word = Secret("swordfish")
    found = ACTIONS["exec"].do(call(yard, guest, command=["login", "a b", word], stdin=Secret("pässword")))
    assert guest.told == [(["login", "a b", "swordfish"], "pässword".encode())]
    assert found["stdout"] == "\ufffd\ufffdok"


def test_half_a_secret_does_not_stay_at_the_cut(yard: Yard) -> None:
    said = b"x" * (64 * KIB - 5) + b"swordfish" + b"y"
    guest = Guest(yard.folder / "kvm1.json", [Executed(0, said, b"")])
    found = ACTIONS["exec"].do(call(yard, guest, command=["login", Secret("swordfish")]))
    assert found["stdout"] == "x" * (64 * KIB - 5) + "***y"


def test_a_driver_that_cut_is_told_too(yard: Yard) -> None:
    guest = Guest(yard.folder / "kvm1.json", [Executed(0, b"x", b"", truncated=True)])
    assert ACTIONS["exec"].do(call(yard, guest, command=["talk"]))["truncated"] is True


def test_an_undo_waits_until_the_agent_answers(yard: Yard) -> None:
    guest = Guest(yard.folder / "kvm1.json", [NoAgent("cannot"), Executed(0, b"", b"")])
    ACTIONS["exec"].undo(call(yard, guest, {"begun-1": True}, command=["set-up"], undo=["clean-up"]))
    assert [words for words, _ in guest.told] == [["clean-up"], ["clean-up"]]


def test_an_undo_is_run_when_one_attempt_reached_the_guest(yard: Yard) -> None:
    answers: list[Executed | Exception] = [NoAgent("cannot"), Transient("cannot"), Executed(0, b"", b"")]
    guest, undo = Guest(yard.folder / "kvm1.json", answers), dict[str, Any]()
    given = {"command": ["set-up"], "undo": ["clean-up"], "within": 0.0}
    for kind in (NoAgent, Transient):
        with pytest.raises(kind):
            ACTIONS["exec"].do(call(yard, guest, undo, **given))
        assert ACTIONS["exec"].probe(call(yard, guest, undo, **given)) == Finding.NOTHING
    ACTIONS["exec"].undo(call(yard, guest, undo, **given))
    assert [words for words, _ in guest.told] == [["set-up"], ["set-up"], ["clean-up"]]


def test_an_undo_command_that_lost_a_secret_is_not_run(yard: Yard) -> None:
    guest = Guest(yard.folder / "kvm1.json", [])
    with pytest.raises(DriverError, match="held what is a secret"):
        ACTIONS["exec"].undo(call(yard, guest, {"begun-1": True}, command=["a"], undo=["sh", "-c", "rm -r /***/x"]))
    assert guest.told == []


def test_an_undo_command_with_a_secret_is_refused_before_anything_is_done(yard: Yard) -> None:
    guest = Guest(yard.folder / "kvm1.json", [])
    with pytest.raises(PlanvirtError, match="undo command holds a secret"):
        ACTIONS["exec"].do(call(yard, guest, command=["a"], undo=["b", Secret("swordfish")]))
    assert guest.told == []


# What is never told


@pytest.mark.parametrize("code", [0, 1])
def test_a_secret_is_seen_nowhere(yard: Yard, code: int) -> None:
    yard.config = replace(yard.config, secrets={"word": SecretConfig("word", env="NOBODY_SETS_THIS")})
    yard.secrets = {"word": Secret("swordfish"), "long": Secret("hunter2-marlin")}
    said = {"exit_code": code, "stdout": "you said swordfish\n", "stderr": "swordfish? token=swordfish\n"}
    programs(yard, login=said)
    text = execute('command: [login, "--word={{ secrets.word }}"], stdin: "{{ secrets.word }}\\n", undo: [log-out]')
    state = yard.run(text)
    assert state == (RunState.SUCCEEDED if code == 0 else RunState.ROLLED_BACK)
    if code == 0:
        assert outputs(yard)["stdout"] == "you said ***\n"
    else:
        assert error(yard)["details"] == "***? token=***"
        assert ran(yard) == ["login", "log-out"]
    kept = [path for path in yard.folder.iterdir() if path.name.startswith("journal")]
    assert kept and not [path for path in kept if b"swordfish" in path.read_bytes()]
    assert not [line for line in yard.heard if "swordfish" in line]


def test_a_program_whose_name_is_a_secret_is_not_named(yard: Yard) -> None:
    yard.config = replace(yard.config, secrets={"word": SecretConfig("word", env="NOBODY_SETS_THIS")})
    yard.secrets = {"word": Secret("swordfish")}
    programs(yard, swordfish={"exit_code": 1})
    assert yard.run(execute('command: ["{{ secrets.word }}"]')) == RunState.ROLLED_BACK
    assert error(yard)["brief"] == "cannot run *** in web: it ended with 1"
    assert not [line for line in yard.heard if "swordfish" in line]
