"""Showing a run while it goes on: a live table on a terminal, plain lines elsewhere."""

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flows.context import Event

_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_SIGNS = {
    "done": ("✔", "green"),
    "committed": ("✔", "green"),
    "failed": ("✘", "red"),
    "undo-failed": ("✘", "red"),
    "undone": ("↶", "yellow"),
    "skipped": ("-", "bright_black"),
    "waiting": ("·", "bright_black"),
}
_BUSY = frozenset({"begin", "phase", "undo-phase", "progress", "undo", "commit", "again"})


class Lines:
    """One line an event, for pipes and logs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Print it, unless it only tells how far a copy is."""
        if event.kind == "progress":
            return
        with self._lock:
            print(f"{time.strftime('%H:%M:%S')} {event}", file=sys.stderr)

    def say(self, text: str) -> None:
        """Print a line that belongs to no step."""
        with self._lock:
            print(text, file=sys.stderr, flush=True)


class _Row:
    def __init__(self, step: str, action: str, instance: str) -> None:
        self.step, self.action, self.instance = step, action, instance
        self.kind, self.text = "waiting", ""
        self.began: float | None = None
        self.took: float | None = None


class LiveTable:
    """A line a step, rewritten in place."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rows: dict[str, _Row] = {}
        self._lock = threading.Lock()

    def expect(self, step: str, action: str, instance: str) -> None:
        """Show a step before it begins."""
        self._rows[step] = _Row(step, action, instance)

    def __call__(self, event: Event) -> None:
        """Change the line of the event's step."""
        with self._lock:
            row = self._rows.setdefault(event.step, _Row(event.step, event.action, event.instance))
            if event.kind in ("begin", "undo", "commit") or row.began is None:
                row.began, row.took = time.monotonic(), None
            if event.kind == "progress":
                percent = f"{100 * event.done // event.total} %" if event.total else f"{event.done >> 20} MiB"
                row.text = f"{row.text.split(' — ')[0]} — {percent}"
            else:
                row.text = event.text
            row.kind = event.kind
            if event.kind not in _BUSY:
                row.took = time.monotonic() - row.began

    def say(self, text: str) -> None:
        """Print a line above the table."""
        self._console.print(Text(text, style="yellow"))

    def __rich__(self) -> Table:
        """The table as it is now."""
        table = Table.grid(padding=(0, 2))
        table.add_column(width=1)
        for _ in range(5):
            table.add_column(no_wrap=True, overflow="ellipsis")
        with self._lock:
            for row in self._fitting():
                busy = row.kind in _BUSY
                sign, colour = (self._spin(), "cyan") if busy else _SIGNS.get(row.kind, ("·", "white"))
                seconds = row.took if row.took is not None else time.monotonic() - row.began if row.began else None
                undoing = "undo " if row.kind in ("undo", "undo-phase", "undone", "undo-failed") else ""
                table.add_row(
                    Text(sign, style=colour),
                    Text(f"{undoing}{row.action}"),
                    Text(row.instance, style="bold"),
                    Text("" if row.step == f"{row.action}.{row.instance}" else row.step, style="bright_black"),
                    Text("" if seconds is None else f"{seconds:.1f} s", style="bright_black"),
                    Text(row.text, style="red" if row.kind in ("failed", "undo-failed") else "bright_black"),
                )
        return table

    def _fitting(self) -> list[_Row]:
        """As many rows as the terminal has lines: where it has too few, those that are going on or went wrong first."""
        rows = list(self._rows.values())
        room = max(self._console.height - 3, 3)
        if len(rows) <= room:
            return rows
        first = [row for row in rows if row.kind in _BUSY or row.kind in ("failed", "undo-failed")]
        ended = [row for row in rows if row.kind not in _BUSY and row.kind != "waiting" and row not in first]
        return (first + ended[::-1] + [row for row in rows if row.kind == "waiting"])[:room]

    def _spin(self) -> str:
        return _SPINNER[int(time.monotonic() * 10) % len(_SPINNER)]


@contextmanager
def shown(steps: Sequence[tuple[str, str, str]], *, plain: bool) -> Iterator[Lines | LiveTable]:
    """Show a run of these steps (id, action, instance) until the block ends."""
    console = Console(stderr=True)
    if plain or not console.is_terminal:
        yield Lines()
        return
    table = LiveTable(console)
    for step, action, instance in steps:
        table.expect(step, action, instance)
    with Live(table, console=console, refresh_per_second=8, redirect_stdout=False, transient=True):
        yield table
