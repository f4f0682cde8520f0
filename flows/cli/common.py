"""What several commands share: options, the configuration, and two ways to print."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from planvirt.config import Config, load_config
from planvirt.errors import UsageError

_NARROWEST = 8  # characters of a column

F = TypeVar("F", bound=Callable[..., Any])

_STATE_COLOURS = {
    "running": "green", "done": "green", "succeeded": "green", "active": "green", "committed": "green", "ok": "green",
    "failed": "red", "undo_failed": "red", "rollback_incomplete": "red", "error": "red",
    "undone": "yellow", "rolled_back": "yellow", "kept": "yellow", "undoing": "yellow", "rolling_back": "yellow",
    "skipped": "bright_black", "pending": "bright_black", "cancelled": "yellow",
}  # fmt: skip


def output_option(command: F) -> F:
    """`--output text|json`."""
    return click.option(
        "--output", "-o", type=click.Choice(["text", "json"]), default="text", help="How to print the result."
    )(command)


def inputs_option(command: F) -> F:
    """`-i NAME=VALUE`, as often as needed."""
    return click.option(
        "--input", "-i", "inputs", multiple=True, metavar="NAME=VALUE", help="A value for an input of the plan."
    )(command)


def read_inputs(pairs: Sequence[str]) -> dict[str, str]:
    """The `-i` options as a mapping. Raises UsageError for one without '='."""
    values: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"cannot read input '{pair}'", resolution="write it as NAME=VALUE, such as -i replicas=3")
        values[name] = value
    return values


def configuration(explicit: str | None) -> Config:
    """The operator's configuration."""
    return load_config(Path(explicit) if explicit else None, Path.cwd(), os.environ)


def print_json(document: object) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False, default=str))


def print_table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; states in colour on a terminal."""
    lines = [tuple(heading), *(tuple(row) for row in rows)]
    widths = _fitting([max(len(line[column]) for line in lines) for column in range(len(heading))])
    for number, line in enumerate(lines):
        cells = []
        last = max((column for column, cell in enumerate(line) if cell), default=0)
        for column, cell in enumerate(line[: last + 1]):
            shown = cell if len(cell) <= widths[column] else f"{cell[: widths[column] - 1]}…"
            padded = shown.ljust(widths[column]) if column < last else shown
            colour = _STATE_COLOURS.get(cell)
            cells.append(click.style(padded, bold=True) if number == 0 else click.style(padded, fg=colour))
        click.echo("  ".join(cells))


def _fitting(widths: list[int]) -> list[int]:
    """The widths, with the widest columns narrowed until a line fits the terminal; in a pipe all is shown."""
    if not sys.stdout.isatty():
        return widths
    room = shutil.get_terminal_size().columns - 2 * (len(widths) - 1)
    while sum(widths) > room and max(widths) > _NARROWEST:
        widths[widths.index(max(widths))] -= 1
    return widths


def took(started: float | None, ended: float | None) -> str:
    """How long something lasted, for people."""
    return "-" if started is None or ended is None else f"{ended - started:.1f} s"


def plural(count: int, word: str) -> str:
    """A number with its word."""
    return f"1 {word}" if count == 1 else f"{count} {word}s"


def size(count: int | None) -> str:
    """A number of bytes for people."""
    if count is None:
        return "-"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
