"""Checks data against a JSON Schema and says what is wrong in the user's words.

The schemas carry those words: `title` names a mapping ("an instance"), `x-expected` says what a value must be,
`x-noun` what an enumeration lists, and `x-message` replaces the message of a keyword that has no better one.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from planvirt.document import pointer_join
from planvirt.problems import did_you_mean
from planvirt.units import suggest_duration, suggest_size

_TYPES = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "object": "a mapping",
    "array": "a list",
    "null": "null",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with the shape of data. `on_key` when the key is wrong rather than its value.

    `missing` when the mapping lacks something, so that nothing in particular can be left out to go on without it.
    """

    pointer: str
    message: str
    hint: str = ""
    on_key: bool = False
    missing: bool = False


def check_shape(data: Any, schema: Mapping[str, Any], definition: str = "") -> tuple[Fault, ...]:
    """All faults of the data, against the whole schema or one entry of its `$defs`."""
    import jsonschema  # takes a tenth of a second

    validator = _validator_class()(schema)
    if definition:
        validator = validator.evolve(schema={"$ref": f"#/$defs/{definition}", "$defs": schema["$defs"]})
    errors: Iterable[jsonschema.ValidationError] = validator.iter_errors(data)
    faults = (fault for error in errors for fault in _faults(error, schema, _pointer(error)))
    return _without_echoes(tuple(dict.fromkeys(faults)))


def _without_echoes(faults: tuple[Fault, ...]) -> tuple[Fault, ...]:
    """Drop "needs the key 'name'" where a misspelt 'nam' is already reported."""
    misspelt = {
        (fault.pointer.rpartition("/")[0], fault.hint) for fault in faults if fault.message.startswith("unknown key")
    }
    return tuple(
        fault
        for fault in faults
        if not fault.missing or (fault.pointer, _meant(fault.message.rpartition(" needs the key ")[2])) not in misspelt
    )


def _meant(quoted: str) -> str:
    return f"did you mean {quoted}?"


@cache
def _validator_class() -> Any:
    """Draft 2020-12, but `$` means the very end of a text and 1.0 is not a whole number."""
    from jsonschema import Draft202012Validator, ValidationError, validators

    def pattern(_validator: Any, expression: str, instance: Any, _schema: Any) -> Iterator[ValidationError]:
        anchored = expression[:-1] + r"\Z" if expression.endswith("$") else expression
        if isinstance(instance, str) and not re.search(anchored, instance):
            yield ValidationError("does not match")

    checker = Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _checker, value: isinstance(value, int) and not isinstance(value, bool)
    )
    extend: Any = validators.extend
    return extend(Draft202012Validator, {"pattern": pattern}, type_checker=checker)


def _pointer(error: Any) -> str:
    pointer = ""
    for token in error.absolute_path:
        pointer = pointer_join(pointer, token)
    return pointer


def _faults(error: Any, root: Mapping[str, Any], pointer: str) -> Iterator[Fault]:
    keyword, schema, value = error.validator, error.schema, error.instance
    own = schema.get("x-message", {}).get(keyword)
    if own is not None:
        yield Fault(pointer, own, on_key=True, missing=True)
    elif keyword in ("additionalProperties", "unevaluatedProperties"):
        yield from _unknown_keys(value, schema, root, pointer)
    elif keyword == "required":
        key = next(key for key in error.validator_value if f"'{key}' is a required" in error.message)
        yield Fault(pointer, f"{_title(schema, root)} needs the key '{key}'", on_key=True, missing=True)
    elif error.parent is None and "propertyNames" in error.relative_schema_path:
        here = pointer_join(pointer, value)
        yield Fault(here, f"'{shorten(value)}' must be {_expected(schema)}", _name_hint(value), on_key=True)
    elif keyword in ("anyOf", "oneOf"):
        yield from _branch(error, root, pointer)
    elif keyword == "enum":
        yield _not_listed(value, schema, schema["enum"], pointer)
    else:
        yield _wrong_value(value, schema, pointer)


def _branch(error: Any, root: Mapping[str, Any], pointer: str) -> Iterator[Fault]:
    """The faults of the alternative that was meant, which is the one of the value's own type."""
    branches: dict[int, list[Any]] = {}
    for inner in error.context:
        branches.setdefault(inner.schema_path[0], []).append(inner)
    if isinstance(error.instance, dict | list):
        for inners in branches.values():
            if not any(_is_type_error(inner) for inner in inners):
                for inner in inners:
                    yield from _faults(inner, root, _pointer(inner))
                return
    yield _wrong_value(error.instance, error.schema, pointer)


def _is_type_error(inner: Any) -> bool:
    """Whether the alternative is not even of the value's type (an alternative of alternatives counts as well)."""
    if inner.relative_path:
        return False
    if inner.validator in ("anyOf", "oneOf") and inner.context:
        return all(_is_type_error(other) for other in inner.context)
    return inner.validator in ("type", "const", "enum")


def _unknown_keys(value: Any, schema: Any, root: Mapping[str, Any], pointer: str) -> Iterator[Fault]:
    known = _known_keys(schema, root)
    for key in value:
        if key not in known:
            message = f"unknown key '{shorten(key)}' in {_title(schema, root)}"
            yield Fault(pointer_join(pointer, key), message, did_you_mean(key, known), on_key=True)


def _known_keys(schema: Mapping[str, Any], root: Mapping[str, Any]) -> set[str]:
    known = set(schema.get("properties", {}))
    if "$ref" in schema:
        known |= _known_keys(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    return known


def _title(schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    """The name of a mapping; a part that several definitions share has none of its own."""
    if "title" in schema:
        return str(schema["title"])
    shared = [name for name, other in root["$defs"].items() if other is schema]
    users = (other for other in root["$defs"].values() if other.get("$ref", "").rpartition("/")[2] in shared)
    return next((str(other["title"]) for other in users if "title" in other), "this mapping")


def _not_listed(value: Any, schema: Mapping[str, Any], choices: list[Any], pointer: str) -> Fault:
    noun = schema.get("x-noun", "value")
    if isinstance(value, str) and ("{{" in value or "{%" in value):
        return Fault(pointer, f"the {noun} must be plain text, not an expression", f"known: {', '.join(choices)}")
    if isinstance(value, str):
        return Fault(pointer, f"unknown {noun} '{shorten(value)}'", did_you_mean(value, choices))
    listed = ", ".join(str(choice) for choice in choices)
    return Fault(pointer, f"{subject(pointer)} must be one of {listed}, not {describe(value)}")


def _wrong_value(value: Any, schema: Mapping[str, Any], pointer: str) -> Fault:
    expected = _expected(schema)
    hint = ""
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        if expected.startswith(("a size", "a size or")):
            hint = suggest_size(value)
        elif expected.startswith("a duration"):
            hint = suggest_duration(value)
        elif expected.startswith("a name of"):
            hint = _name_hint(value)
        elif expected == "true or false" and str(value).lower() in ("yes", "no", "on", "off"):
            hint = f"did you mean '{'true' if str(value).lower() in ('yes', 'on') else 'false'}'?"
        elif expected.startswith("text") and not isinstance(value, str):
            hint = f'put it in quotes: "{value}"'
    if value is None:
        hint = "give it a value, or remove the key"
    return Fault(pointer, f"{subject(pointer)} must be {expected}, not {describe(value)}", hint)


def _expected(schema: Mapping[str, Any]) -> str:
    if "x-expected" in schema:
        return str(schema["x-expected"])
    kinds = schema.get("type", [])
    return " or ".join(_TYPES[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds)) or "something else"


def _name_hint(value: object) -> str:
    """The nearest name that would be allowed."""
    letters = [letter if letter.isascii() and letter.isalnum() else "-" for letter in str(value).lower()]
    name = "".join(letters).strip("-")[:63]
    return f"did you mean '{name}'?" if name and name[0].isalpha() and name != value else ""


def subject(pointer: str) -> str:
    """What a message calls the value: its key, or its place in the list."""
    head, _, last = pointer.rpartition("/")
    last = last.replace("~1", "/").replace("~0", "~")
    if not pointer:
        return "the file"
    if last.isdigit():
        return f"item {int(last) + 1} of {head.rpartition('/')[2] or 'the list'}"
    return shorten(last)


def describe(value: Any) -> str:
    """The value in a message: itself when it is short, never a whole structure."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return f"'{shorten(value)}'" if value else "an empty text"
    return shorten(json.dumps(value))


def shorten(text: str) -> str:
    """The text on one line, cut after forty characters."""
    line = " ".join(text.split()) if text.strip() != text or "\n" in text else text
    return line if len(line) <= 40 else line[:37] + "..."
