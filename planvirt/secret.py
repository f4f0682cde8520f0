"""A value that must not be read by accident: its text is three stars wherever it is printed, logged or stored."""

from typing import Any, Never


class Secret:
    """Holds a secret text. Only `reveal` gives it away, and only the code that hands it to its user calls that."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return "***"

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return format("***", spec)

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
