"""The names that exist only while a plan runs, and the keys that stand behind each: what validation can rely on."""

RUNTIME_KEYS: dict[str, tuple[str, ...]] = {
    "instance": ("name", "group", "host", "index", "labels"),
    "plan": ("name", "commit"),
    "run": ("id", "date", "started"),
}

# Of one entry of `instances` and of `steps`. The outputs of an operation on several instances are kept by instance.
INSTANCES_KEYS = ("name", "host", "address", "addresses")
STEP_KEYS = ("outputs",)
