"""exec: run a program in the guest, through its agent."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from drivers.compute import Executed
from drivers.errors import DriverError, NoAgent
from flows.actions.action import Action, Finding
from flows.call import Call
from planvirt.errors import PlanvirtError
from planvirt.secret import Redactor, Secret, erased, revealed
from planvirt.states import State

_LARGEST = 64 << 10  # bytes that are kept of what a program writes, for each of its two streams
_LAST_LINES = 10  # of a program that failed
_LINE = 200  # characters of such a line
_PATIENCE = 60.0  # seconds that the agent has to answer, unless the plan says `within`
_LOOK_EVERY = 0.5  # seconds between two attempts to reach it


class ProgramFailed(DriverError):
    """A program in a guest ended with an exit code that does not count as success."""


def do(call: Call) -> Mapping[str, Any]:
    """Run the program to its end, and return what it wrote. After a crash of planvirt it is run again."""
    words = call.arguments["command"]
    _check_undo(call)
    stdin = str(revealed(call.arguments.get("stdin", ""))).encode()
    attempt = len(_beginnings(call, "begun")) + 1
    call.phase(f"run {words[0]}", **{f"begun-{attempt}": True})
    try:
        ended = _execute(call, [str(revealed(word)) for word in words], stdin)
    except NoAgent:
        call.phase("no agent answers in the guest", **{f"in-vain-{attempt}": True})
        raise
    redact = _redactor([*words, call.arguments.get("stdin")])
    if ended.exit_code not in {int(code) for code in call.arguments.get("exit_codes", (0,))}:
        mend = "mend what it says, or name the exit codes that count as success in the step's 'exit_codes'"
        raise _failure(call, words, ended, redact, mend)
    (stdout, cut), (stderr, also_cut) = _kept(ended.stdout, redact), _kept(ended.stderr, redact)
    truncated = cut or also_cut or ended.truncated
    if truncated:
        call.log(f"it wrote much: only the first {_LARGEST >> 10} KiB are kept")
    return {"exit_code": ended.exit_code, "stdout": stdout, "stderr": stderr, "truncated": truncated}


def probe(_: Call) -> Finding:
    """Nobody can tell what a program has done in a guest."""
    return Finding.NOTHING


def undo(call: Call) -> None:
    """Run the command that the plan gives for it, if it gives one and the guest runs."""
    command = call.arguments.get("undo")
    if not command or _beginnings(call, "begun") == _beginnings(call, "in-vain"):
        return
    words = [str(word) for word in command]
    found = call.facts()
    if found is None or found.power != State.RUNNING:
        call.log(f"{words[0]} is not run: the guest does not run")
        return
    if any(map(erased, words)):
        raise DriverError(
            f"cannot undo exec in {call.instance}: its undo command held what is a secret elsewhere",
            details="the journal, from which a run is undone, keeps no secrets",
            resolution="run the command by hand; let it read the secret from a file of the guest next time",
        )
    call.phase(f"run {words[0]}")
    ended = _execute(call, words, b"")
    if ended.exit_code != 0:
        raise _failure(call, words, ended, Redactor(), f"mend that, then 'planvirt rollback {call.run.id}' goes on")


def _check_undo(call: Call) -> None:
    """Refuse what could not be undone from the journal, before anything is done."""
    if any(isinstance(word, Secret) for word in call.arguments.get("undo") or ()):
        raise PlanvirtError(
            f"cannot exec in {call.instance}: its undo command holds a secret",
            details="a run is undone from the journal, which keeps no secrets",
            resolution="let the undo command read the secret from a file of the guest",
        )


def _beginnings(call: Call, kind: str) -> list[str]:
    """The numbers of the attempts that were "begun", or begun "in-vain" as no agent answered."""
    return [key.removeprefix(f"{kind}-") for key in call.undo if key.startswith(f"{kind}-")]


def _execute(call: Call, words: Sequence[str], stdin: bytes) -> Executed:
    """Run the command as soon as the agent answers: the guest may have been started just now."""
    patience = call.deadline.within(float(call.arguments.get("within", _PATIENCE)))
    while True:
        try:
            return call.compute.execute(call.instance, words, stdin, call.deadline)
        except NoAgent:
            if patience.over:
                raise
            call.deadline.sleep(_LOOK_EVERY)


def _redactor(values: Iterable[Any]) -> Redactor:
    """Knows the secrets of the call. What is cut must be free of them before: half a secret is not recognized."""
    redact = Redactor()
    for value in values:
        if isinstance(value, Secret):
            redact.learn(value.reveal())
    return redact


def _failure(call: Call, words: Sequence[Any], ended: Executed, redact: Redactor, resolution: str) -> ProgramFailed:
    """How a program has failed, with the last that it said."""
    said = ended.stderr if ended.stderr.strip() else ended.stdout
    return ProgramFailed(
        f"cannot run {words[0]} in {call.instance}: it ended with {ended.exit_code}",
        details="\n".join(_last_lines(redact(_text(said)))),
        resolution=resolution,
    )


def _text(data: bytes) -> str:
    """What a program wrote, as text that every journal can keep."""
    return data.decode(errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")


def _kept(data: bytes, redact: Redactor) -> tuple[str, bool]:
    """As much of what a program wrote as is kept, and whether that is less than all."""
    whole = redact(_text(data)).encode()
    return whole[:_LARGEST].decode(errors="ignore"), len(whole) > _LARGEST


def _last_lines(text: str) -> list[str]:
    """The end of a text for people: a guest must not send escape sequences to their terminal."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()][-_LAST_LINES:]
    return ["".join(letter if letter.isprintable() else " " for letter in line[:_LINE]) for line in lines]


ACTION = Action(do=do, probe=probe, undo=undo)
