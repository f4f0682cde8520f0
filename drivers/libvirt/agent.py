"""Programs in a guest, run through its agent: one message starts a program, others ask whether it has ended."""

import base64
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import libvirt
import libvirt_qemu

from drivers.compute import Executed
from drivers.errors import DriverError, NoAgent, Transient, Unsupported
from drivers.libvirt import instances
from drivers.libvirt.connection import Connection
from drivers.libvirt.faults import code_of, kind_of
from planvirt.deadline import Deadline, DeadlinePassed
from planvirt.errors import Conflict, PlanvirtError
from planvirt.states import State

_LOOK = 0.2  # seconds between two looks at a program
_ANSWER_PATIENCE = 20  # seconds that an agent may take to answer
_SILENCE_PATIENCE = 60.0  # seconds without an answer after which a program that runs is given up
_KILL_PATIENCE = 5.0  # seconds that a program may take to die

# libvirt loses its place in a message that does not fit into the send buffer of its socket to QEMU (208 KiB on Linux),
# and then gets no answer; this leaves room for what the kernel counts in.
_LARGEST = 128 * 1024

_INSTALL = "install and start qemu-guest-agent in the guest"
_RESTART = "restart the guest, or qemu-guest-agent in it"
_SLOW = "see what holds the guest up; the program may have begun there"
_WRITE_LESS = "have the program write less, or into a file in the guest"
_FORGOTTEN = "look in the guest what became of the program: the agent, perhaps started anew, does not know of it"

# fmt: off
# What libvirt has no codes of its own for. The first five are the agent's words; libvirt does not translate them.
_BY_TEXT: tuple[tuple[str, type[PlanvirtError], str], ...] = (
    ("in frozen state", Transient, "thaw the guest's file systems"),
    ("has been disabled", Unsupported, "allow guest-exec in the configuration of the guest's qemu-guest-agent"),
    ("has not been found", Unsupported, "install a newer qemu-guest-agent in the guest"),
    ("Invalid parameter 'pid'", DriverError, _FORGOTTEN),
    ("does not exist", DriverError, _FORGOTTEN),  # the same, from QEMU 9 on
    ("Unable to encode message payload", DriverError, _WRITE_LESS),  # an answer of more than 4 MiB
    # an answer of more than 10 MiB: libvirt does not listen to that agent any more, until it opens its channel anew
    ("No complete agent response found", DriverError, f"{_WRITE_LESS}; then {_RESTART}"),
)
# fmt: on

_NO_ANSWER = {libvirt.VIR_ERR_AGENT_UNRESPONSIVE, libvirt.VIR_ERR_AGENT_UNSYNCED}


def execute(connection: Connection, name: str, command: Sequence[str], stdin: bytes, deadline: Deadline) -> Executed:
    """Run a program in the guest and return when it has ended; it is killed when nobody waits for it any more."""
    deadline.check()
    what = f"run {command[0]} in {name}"
    _require_running(instances.require_ours(connection, name), what)
    agent = _Agent(connection, name, what)
    agent.reach(deadline)
    pid = agent.start(command, stdin, deadline)
    try:
        return agent.wait(pid, deadline)
    except BaseException:
        agent.kill(pid)
        raise


def _require_running(domain: Any, what: str) -> None:
    state = instances.state_of(domain)
    if state is not State.RUNNING:
        raise Conflict(f"cannot {what}: it is {state}")


class _Agent:
    """The agent in a guest. `what` is why it is spoken to, for messages."""

    def __init__(self, connection: Connection, name: str, what: str) -> None:
        self._connection = connection
        self._name = name
        self._what = what

    def reach(self, deadline: Deadline) -> None:
        """Find out that the agent answers: libvirt does not tell a message that was lost from one without an answer."""
        self._ask("guest-ping", deadline)

    def start(self, command: Sequence[str], stdin: bytes, deadline: Deadline) -> int:
        """Start a program; its number in the guest."""
        path, *arguments = command
        how: dict[str, object] = {"path": path, "arg": arguments, "capture-output": True}
        if stdin:
            how["input-data"] = base64.b64encode(stdin).decode()
        return int(self._ask("guest-exec", deadline, **how)["pid"])

    def wait(self, pid: int, deadline: Deadline) -> Executed:
        """Wait until a program has ended. That the agent, or the host, is silent for a while does not end it."""
        silence = Deadline(_SILENCE_PATIENCE)
        while True:
            try:
                status = self._ask("guest-exec-status", deadline, pid=pid)
            except Transient:
                if silence.over:
                    raise
            else:
                silence = Deadline(_SILENCE_PATIENCE)
                if status["exited"]:
                    return _read(status)
            deadline.sleep(_LOOK)

    def kill(self, pid: int) -> None:
        """Kill a program, and wait until it is gone. The error that led here is the one to tell."""
        patience = Deadline(_KILL_PATIENCE)
        with suppress(PlanvirtError, DeadlinePassed):
            self._ask("guest-exec", patience, path="kill", arg=["-9", str(pid)])
            while not self._ask("guest-exec-status", patience, pid=pid)["exited"] and patience.left():
                patience.sleep(_LOOK / 4)

    def _ask(self, command: str, deadline: Deadline, **arguments: object) -> Any:
        text = json.dumps({"execute": command, "arguments": arguments})
        if len(text) > _LARGEST:
            raise DriverError(
                f"cannot {self._what}: its arguments and its input are too large",
                details=f"libvirt carries {_LARGEST} bytes to a guest agent, and they make {len(text)}",
                resolution="have the program fetch its input itself",
            )
        left = deadline.left()
        patience = _ANSWER_PATIENCE if left is None else max(1, min(_ANSWER_PATIENCE, math.ceil(left)))
        domain = instances.require(self._connection, self._name)
        with understood(self._what, begun=command != "guest-ping"):
            return json.loads(libvirt_qemu.qemuAgentCommand(domain, text, patience, 0))["return"]


def _read(status: Any) -> Executed:
    return Executed(
        exit_code=128 + int(status["signal"]) if "signal" in status else int(status["exitcode"]),
        stdout=base64.b64decode(status.get("out-data", "")),
        stderr=base64.b64decode(status.get("err-data", "")),
        truncated=bool(status.get("out-truncated") or status.get("err-truncated")),
    )


@contextmanager
def understood(what: str, *, begun: bool) -> Iterator[None]:
    """Turn what libvirt, or the agent through it, says against a command into planvirt's errors.

    `begun` tells whether the program may have begun when no answer comes.
    """
    try:
        yield
    except libvirt.libvirtError as error:
        kind, resolution = _meaning(error, begun=begun)
        raise kind(f"cannot {what}", details=str(error), resolution=resolution) from error


def _meaning(error: libvirt.libvirtError, *, begun: bool) -> tuple[type[PlanvirtError], str]:
    for words, kind, resolution in _BY_TEXT:
        if words in str(error):
            return kind, resolution
    if code_of(error) not in _NO_ANSWER:
        return kind_of(error), ""
    if begun:
        return Transient, _SLOW
    return NoAgent, _RESTART if "due to an error" in str(error) else _INSTALL
