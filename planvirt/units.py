"""Sizes and durations as people write them: "4 GiB" becomes bytes, "1h30m" becomes seconds."""

import re
from decimal import Decimal

SIZE_UNITS: dict[str, int] = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
DURATION_UNITS: dict[str, Decimal] = {
    "d": Decimal(86400),
    "h": Decimal(3600),
    "m": Decimal(60),
    "s": Decimal(1),
    "ms": Decimal("0.001"),
}

MAX_SIZE = 2**63 - 1  # what a hypervisor can be told
MAX_SECONDS = 3650 * 86400

_NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,15})?"
_SIZE = re.compile(rf"({_NUMBER}) ?({'|'.join(SIZE_UNITS)})")
_DURATION_PART = re.compile(rf" ?({_NUMBER}) ?(ms|[dhms])")


class UnitError(ValueError):
    """A text that is not a size or a duration. `hint` is the likely spelling, or empty."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def parse_size(text: str) -> int:
    """The bytes of "4 GiB", "512MiB" or "1.5 GB"; raises UnitError when it is not a whole number of bytes."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UnitError(f"must be a size such as '4 GiB', not '{text}'", suggest_size(text))
    value = Decimal(match[1]) * SIZE_UNITS[match[2]]
    if value != value.to_integral_value():
        raise UnitError(f"'{text}' is not a whole number of bytes")
    if value > MAX_SIZE:
        raise UnitError(f"'{text}' is more than any disk or memory can have")
    return int(value)


def format_size(value: int) -> str:
    """Bytes in the largest binary unit that keeps them whole; `parse_size` reads it back."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if value and value % SIZE_UNITS[unit] == 0:
            return f"{value // SIZE_UNITS[unit]} {unit}"
    return f"{value} B"


def parse_duration(text: str) -> float:
    """The seconds of "90s", "5m", "1h30m", "500ms" or "2d"; units go from large to small, each once at most."""
    order = list(DURATION_UNITS)
    total, last, position = Decimal(0), -1, 0
    while position < len(text):
        part = _DURATION_PART.match(text, position)
        if part is None or order.index(part[2]) <= last:
            break
        last, position = order.index(part[2]), part.end()
        total += Decimal(part[1]) * DURATION_UNITS[part[2]]
    if position < len(text) or last < 0 or text.startswith(" "):
        raise UnitError(f"must be a duration such as '90s' or '1h30m', not '{text}'", suggest_duration(text))
    if total > MAX_SECONDS:
        raise UnitError(f"'{text}' is longer than ten years")
    return float(total)


def format_duration(seconds: float) -> str:
    """Seconds as "1h30m" or "500ms"; `parse_duration` reads it back. Fractions finer than 1 ms are dropped."""
    left = round(seconds * 1000)
    if left == 0:
        return "0s"
    parts = []
    for unit, size in DURATION_UNITS.items():
        count, left = divmod(left, int(size * 1000))
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


def suggest_size(value: object) -> str:
    """The likely spelling of a size that lacks its unit, or has it in other letters; empty when none comes to mind."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]+)?) *([a-zA-Z]*)", str(value).strip())
    if isinstance(value, bool) or match is None:
        return ""
    number, letters = match[1], match[2].lower()
    if not letters:
        unit = _likely_size_unit(float(number))
        return f"did you mean '{number} {unit}'?"
    known = {unit.lower(): unit for unit in SIZE_UNITS}
    short = {"k": "KiB", "m": "MiB", "g": "GiB", "t": "TiB", "byte": "B", "bytes": "B"}
    if unit := known.get(letters) or short.get(letters, ""):
        return f"did you mean '{number} {unit}'?"
    return f"the units are {', '.join(SIZE_UNITS)}"


def _likely_size_unit(number: float) -> str:
    if number < 128:
        return "GiB"
    return "MiB" if number < 2**20 else "B"


def suggest_duration(value: object) -> str:
    """The likely spelling of a duration that lacks its unit, or has it in words; empty when none comes to mind."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]+)?) *([a-zA-Z]*)", str(value).strip())
    if isinstance(value, bool) or match is None:
        return ""
    number, letters = match[1], match[2].lower()
    if not letters:
        return f"did you mean '{number}s'?"
    words = {"sec": "s", "min": "m", "hour": "h", "hr": "h", "day": "d", "milli": "ms", "msec": "ms"}
    for word, unit in words.items():
        if letters.startswith(word):
            return f"did you mean '{number}{unit}'?"
    return f"the units are {', '.join(DURATION_UNITS)}"
