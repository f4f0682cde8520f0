"""The plan file on disk: its text, the repository around it, and the git commit it is from."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from planvirt.errors import Exit, PlanvirtError

MAX_BYTES = 1024 * 1024
_GIT_SECONDS = 10.0


class SourceError(PlanvirtError):
    """The plan file cannot be read at all."""

    exit = Exit.INVALID


@dataclass(frozen=True, slots=True)
class Source:
    """A file and its text, read once."""

    path: Path
    text: str


def read_source(path: Path) -> Source:
    """The file's text, which must be UTF-8 and at most 1 MiB; raises SourceError."""
    brief = f"cannot read {path}"
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise SourceError(
            brief, details="there is no such file", resolution="check the path, or make one with 'planvirt init'"
        ) from error
    except IsADirectoryError as error:
        raise SourceError(brief, details="it is a folder", resolution="name a plan file in it") from error
    except OSError as error:
        raise SourceError(
            brief, details=(error.strerror or str(error)).lower(), resolution="check the file's permissions"
        ) from error
    if len(raw) > MAX_BYTES:
        raise SourceError(brief, details="it is larger than 1 MiB", resolution="split the plan into several files")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SourceError(
            brief, details=f"it is not UTF-8 text (line {line})", resolution="save the file as UTF-8"
        ) from error
    return Source(path, text)


def repository_root(path: Path) -> Path | None:
    """The folder of the git repository that the file really lies in (symbolic links followed); None outside git."""
    real = path.resolve()
    return next((folder for folder in real.parents if (folder / ".git").exists()), None)


def git_commit(path: Path) -> str | None:
    """The commit that is checked out, with "-dirty" when this file differs from it; None outside git.

    The repository is not trusted: its configuration may not start a file system monitor, and git's own ownership check
    stays in force. One process, a few milliseconds.
    """
    if repository_root(path) is None:
        return None
    real = path.resolve()
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    options = ["--no-optional-locks", "-c", "core.fsmonitor=false", "-c", "core.untrackedCache=false"]
    status = ["status", "--porcelain=v2", "--branch", "--untracked-files=all", "--ignored", "--no-ahead-behind"]
    try:
        done = subprocess.run(
            ["git", *options, "-C", str(real.parent), *status, "--", f":(literal){real.name}"],  # noqa: S607
            capture_output=True,
            check=True,
            env=environ,
            text=True,
            timeout=_GIT_SECONDS,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    commit, dirty = None, False
    for line in done.stdout.splitlines():
        if line.startswith("# branch.oid "):
            commit = line.removeprefix("# branch.oid ")
        elif not line.startswith("#"):
            dirty = True
    if commit is None or commit == "(initial)":
        return None
    return f"{commit}-dirty" if dirty else commit
