"""What the commands about images share: times, progress, and questions."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

import click

from planvirt.deadline import Deadline


def when(seconds: float) -> str:
    """A moment, for people."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


@contextmanager
def progress(label: str) -> Iterator[Deadline]:
    """A deadline without an end that shows on a terminal how far the work is; on standard error."""
    if not sys.stderr.isatty():
        yield Deadline()
        return
    with click.progressbar(length=0, label=label, file=sys.stderr, show_pos=False) as bar:
        yield Deadline(on_progress=_moving(bar.update, lambda total: setattr(bar, "length", total)))


def _moving(update: Callable[[int], None], resize: Callable[[int], None]) -> Callable[[int, int], None]:
    """Tell a bar by how much the work has come on. What begins anew, as a file that is read twice, starts over."""
    at = 0

    def tell(done: int, total: int) -> None:
        nonlocal at
        resize(total)
        update(done - at)
        at = done

    return tell
