"""What can go wrong in a way that the user can mend: one base class, one exit code a kind."""

from dataclasses import dataclass
from enum import IntEnum


class Exit(IntEnum):
    """The exit codes of the program. They are part of the contract with scripts."""

    OK = 0
    FAILED = 1  # also: a run that failed and was rolled back
    INVALID = 2  # the plan, the configuration or the command line is wrong
    ROLLBACK_INCOMPLETE = 3
    CHANGES_PENDING = 4
    KEPT = 5
    CONFLICT = 6


class PlanvirtError(Exception):
    """An error in three parts: what could not be done, the details, and what to do about it.

    Messages are lower case and start with "cannot" where something was attempted. `brief` fits one line.
    """

    exit = Exit.FAILED

    def __init__(self, brief: str, *, details: str = "", resolution: str = "") -> None:
        super().__init__(brief)
        self.brief = brief
        self.details = details
        self.resolution = resolution

    def __str__(self) -> str:
        return self.brief if not self.details else f"{self.brief}: {self.details}"

    def as_dict(self) -> dict[str, str]:
        """The error as it is kept in the journal and printed as JSON."""
        return {"brief": self.brief, "details": self.details, "resolution": self.resolution}


class ConfigError(PlanvirtError):
    """The operator's configuration is wrong."""

    exit = Exit.INVALID


class UsageError(PlanvirtError):
    """The command line asks for something that cannot be."""

    exit = Exit.INVALID


class Conflict(PlanvirtError):
    """Somebody else owns the thing, or it is in a state in which the verb is not allowed. Nothing was touched."""

    exit = Exit.CONFLICT


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing wrong in a plan or configuration file. Line and column count from 1; 0 means the whole file."""

    line: int
    column: int
    pointer: str  # RFC 6901 JSON pointer to the value
    message: str
    hint: str = ""

    def as_dict(self) -> dict[str, str | int]:
        """The problem with the stable keys of `validate --output json`."""
        return {
            "line": self.line,
            "column": self.column,
            "pointer": self.pointer,
            "message": self.message,
            "hint": self.hint,
        }


class InvalidPlan(PlanvirtError):
    """A file has problems; all of them are here."""

    exit = Exit.INVALID

    def __init__(self, path: str, problems: tuple[Problem, ...]) -> None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(
            f"cannot use {path}: {count}",
            details="\n".join(
                f"{path}:{p.line}:{p.column}: {p.message}" + (f" ({p.hint})" if p.hint else "") for p in problems
            ),
            resolution=f"mend the file, then check it with 'planvirt validate {path}'",
        )
        self.path = path
        self.problems = tuple(sorted(problems))
