"""The verbs, each with do, probe and undo. The table of what is allowed when is planvirt.verbs."""

from flows.actions import launch, power, snapshot, terminate, wait
from flows.actions.action import Action

ACTIONS: dict[str, Action] = {
    "launch": launch.ACTION,
    "start": power.START,
    "stop": power.STOP,
    "reboot": power.REBOOT,
    "snapshot": snapshot.ACTION,
    "terminate": terminate.ACTION,
    "wait": wait.ACTION,
}
