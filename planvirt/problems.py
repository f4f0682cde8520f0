"""Collects everything that is wrong with one file, each thing at its place."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field

from planvirt.document import Document
from planvirt.errors import Problem


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint that names the known word most like this one, or else all of them when they are few; or empty."""
    names = sorted(set(known))
    if close := _closest(word.lower(), {name.lower(): name for name in names}):
        return f"did you mean '{close}'?"
    return f"known: {', '.join(names)}" if 0 < len(names) <= 32 else ""


def _closest(word: str, names: dict[str, str]) -> str:
    alike = [name for name in names if abs(len(name) - len(word)) <= 3]
    close = difflib.get_close_matches(word, alike, n=1, cutoff=0.65)
    swapped = [name for name in names if sorted(name) == sorted(word)]
    longer = [name for name in names if len(word) > 2 and name.startswith(word)]
    return next((names[name] for name in (*swapped, *close, *longer)), "")


@dataclass(slots=True)
class Problems:
    """The problems of a file so far.

    `tainted` are pointers whose value depends on an input that is not known yet: what is wrong there may be right
    in a real run, so it is not reported. `broken` are pointers that already have a problem: what follows from
    their absence is not reported either.
    """

    document: Document
    found: set[Problem] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    tainted: set[str] = field(default_factory=set)

    def add(self, pointer: str, message: str, hint: str = "", *, on_key: bool = False) -> None:
        """Report a problem at a value, or at its key."""
        self.broken.add(pointer)
        if not self.is_tainted(pointer):
            at = self.document.key_at(pointer) if on_key else self.document.value_at(pointer)
            self.found.add(Problem(*at, pointer, message, hint))

    def is_tainted(self, pointer: str) -> bool:
        """Whether the value or something around it depends on an unknown input."""
        return any(pointer == taint or pointer.startswith(taint + "/") for taint in self.tainted)

    def is_broken(self, pointer: str) -> bool:
        """Whether this very value, or one inside it, already has a problem."""
        return any(pointer == other or other.startswith(pointer + "/") for other in self.broken)

    def sorted(self) -> tuple[Problem, ...]:
        """All problems, in the order of the file."""
        return tuple(sorted(self.found))
