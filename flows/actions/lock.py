"""lock and unlock: a flag on the instance. flows/preview.py and flows/step.py refuse what it forbids."""

from collections.abc import Mapping
from typing import Any

from flows.actions.action import Action, Finding
from flows.call import Call
from planvirt.states import Note


def do_lock(call: Call) -> Mapping[str, Any]:
    """Lock the instance; one that is locked stays so."""
    call.phase("lock", was_locked=_locked(call))
    call.compute.note(call.instance, Note.LOCKED, "")
    return {}


def undo_lock(call: Call) -> None:
    """Unlock what was not locked before."""
    if call.undo.get("was_locked") is False and call.facts() is not None:
        call.phase("unlock")
        call.compute.note(call.instance, Note.LOCKED, None)


def probe_lock(call: Call) -> Finding:
    """Done when it was meant to and is locked."""
    return Finding.DONE if "was_locked" in call.undo and _locked(call) else Finding.NOTHING


def do_unlock(call: Call) -> Mapping[str, Any]:
    """Unlock the instance; one that is not locked stays so."""
    call.phase("unlock", was_locked=_locked(call))
    call.compute.note(call.instance, Note.LOCKED, None)
    return {}


def undo_unlock(call: Call) -> None:
    """Lock what was locked before."""
    if call.undo.get("was_locked") is True and call.facts() is not None:
        call.phase("lock")
        call.compute.note(call.instance, Note.LOCKED, "")


def probe_unlock(call: Call) -> Finding:
    """Done when it was meant to and is not locked."""
    return Finding.DONE if "was_locked" in call.undo and not _locked(call) else Finding.NOTHING


def _locked(call: Call) -> bool:
    return call.found().locked


LOCK = Action(do=do_lock, probe=probe_lock, undo=undo_lock)
UNLOCK = Action(do=do_unlock, probe=probe_unlock, undo=undo_unlock)
