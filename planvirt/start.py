"""Where the program starts: it makes sure that `flows` and `drivers` are planvirt's own before it uses them.

The two names are general. In an environment that is shared with another project, that project's packages may stand in
their place, and nothing would make sense.
"""

import importlib
import importlib.util
import sys
from pathlib import Path


def main() -> int:
    """Run the command line and return its exit code."""
    if stranger := _stranger():
        name, place = stranger
        print(
            f"error: cannot start planvirt: its package '{name}' is hidden by another one\n  {place}\n"
            "  → install planvirt in an environment of its own, for example with pipx",
            file=sys.stderr,
        )
        return 2
    # By name, so that nothing in this package imports upwards.
    program = importlib.import_module("flows.cli")
    return int(program.main())


def _stranger() -> tuple[str, str] | None:
    """A package that is not planvirt's, with the place where it was found."""
    ours = Path(__file__).resolve().parent.parent
    for name in ("drivers", "flows"):
        spec = importlib.util.find_spec(name)
        origin = None if spec is None or spec.origin is None else Path(spec.origin).resolve()
        if origin is None or origin.parent.parent != ours:
            return name, str(origin or "(not found)")
    return None
