"""A value that must not be read by accident, and the eraser for texts that it slipped into all the same."""

from collections.abc import Mapping
from typing import Any, Never

_STARS = "***"
_SHORTEST = 4  # characters; erasing shorter texts would leave little of a message and hide nothing


class Secret:
    """Holds a secret text. Only `reveal` gives it away, and only the code that hands it to its user calls that."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return _STARS

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return format(_STARS, spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(("secret", self._text))

    def __reduce__(self) -> Never:
        raise TypeError("a secret cannot be pickled")

    def reveal(self) -> str:
        """The secret itself."""
        return self._text


def revealed(value: Any) -> Any:
    """The value, or what the secret holds."""
    return value.reveal() if isinstance(value, Secret) else value


def erased(text: str) -> bool:
    """Whether a text seems to have lost a secret. It is good for reading then, and not for use."""
    return _STARS in text


class Redactor:
    """Replaces the secrets it has learnt by stars.

    Once a secret has been handed to a guest or a hypervisor, they may repeat it: a kernel prints its command line on
    the console, an error message quotes the call. Everything that a run keeps, shows or sends goes through here.
    """

    def __init__(self) -> None:
        self._texts: list[str] = []

    @property
    def idle(self) -> bool:
        """Whether no secret is known."""
        return not self._texts

    def learn(self, text: str) -> None:
        """Know a secret from now on, also line by line."""
        for piece in (text, *text.splitlines()):
            if len(piece) >= _SHORTEST and piece not in self._texts:
                self._texts.append(piece)
                self._texts.sort(key=len, reverse=True)  # a secret that holds another one goes first

    def __call__(self, value: Any) -> Any:
        """The value, with every text in it redacted."""
        if self.idle:
            return value
        if isinstance(value, str):
            for text in self._texts:
                value = value.replace(text, _STARS)
            return value
        if isinstance(value, Mapping):
            return {key: self(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self(item) for item in value]
        return value
