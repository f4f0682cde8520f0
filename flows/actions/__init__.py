"""The verbs, each with do, probe and undo. The table of what is allowed when is planvirt.verbs."""

from flows.actions import launch, lock, pause, power, sleep, snapshot, suspend, terminate, wait
from flows.actions.action import Action

ACTIONS: dict[str, Action] = {
    "launch": launch.ACTION,
    "start": power.START,
    "stop": power.STOP,
    "reboot": power.REBOOT,
    "pause": pause.PAUSE,
    "unpause": pause.UNPAUSE,
    "suspend": suspend.SUSPEND,
    "resume": suspend.RESUME,
    "snapshot": snapshot.ACTION,
    "terminate": terminate.ACTION,
    "lock": lock.LOCK,
    "unlock": lock.UNLOCK,
    "wait": wait.ACTION,
    "sleep": sleep.ACTION,
}
