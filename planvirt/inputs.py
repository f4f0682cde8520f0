"""The inputs of a plan: what it declares, what it is given, and the values that come of it."""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from planvirt.document import pointer_join
from planvirt.expressions import is_template
from planvirt.problems import Problems, did_you_mean
from planvirt.schema import describe

MAX_MATCHED = 256  # characters of a text that a pattern is tried on

_KINDS = {"string": "text", "integer": "a whole number", "number": "a number", "boolean": "true or false"}


@dataclass(slots=True)
class Inputs:
    """The values by name; `unknown` are required inputs that were not given, whose value is only a stand-in."""

    values: dict[str, Any] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)


def read_inputs(
    declared: Mapping[str, Any], given: Mapping[str, object], problems: Problems, *, complete: bool
) -> Inputs:
    """The values of all declared inputs. A required one that is not given is a problem if it must be `complete`."""
    result = Inputs()
    for name in given:
        if name not in declared:
            hint = did_you_mean(name, declared) or "the plan has no inputs"
            problems.add("/inputs", f"unknown input '{name}' is given", hint)
    for name, entry in declared.items():
        pointer = pointer_join("/inputs", name)
        rule = entry if isinstance(entry, dict) else {"type": _type_of(entry), "default": entry}
        if "type" not in rule:
            result.values[name] = rule.get("default")
            result.unknown.add(name)
            continue
        _check_rule(rule, pointer, problems)
        at_default = pointer_join(pointer, "default") if isinstance(entry, dict) else pointer
        if "default" in rule:
            _check(name, rule["default"], rule, at_default, problems, own=pointer)
        if name in given:
            result.values[name] = _check(name, given[name], rule, pointer, problems)
        elif "default" in rule:
            result.values[name] = rule["default"]
        else:
            result.values[name] = _stand_in(rule)
            result.unknown.add(name)
            if complete:
                hint = f"give it with '-i {name}=VALUE', or give it a default"
                problems.add(pointer, f"input '{name}' is required", hint, on_key=True)
    return result


def _type_of(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    return {int: "integer", float: "number"}.get(type(value), "string")


def _check_rule(rule: Mapping[str, Any], pointer: str, problems: Problems) -> None:
    """Limits must suit the type, and a pattern must be simple enough to be tried on any text."""
    numeric, text = rule.get("type") in ("integer", "number"), rule.get("type") == "string"
    for keys, fits, kind in (
        (("minimum", "maximum"), numeric, "numbers"),
        (("min_length", "max_length", "pattern"), text, "text"),
    ):
        for key in keys:
            if key in rule and not fits:
                problems.add(pointer_join(pointer, key), f"'{key}' is only for {kind}", on_key=True)
    for low, high in (("minimum", "maximum"), ("min_length", "max_length")):
        if low in rule and high in rule and rule[low] > rule[high]:
            problems.add(pointer_join(pointer, low), f"'{low}' is larger than '{high}'")
    if "pattern" in rule and (fault := _pattern_fault(rule["pattern"])):
        problems.add(pointer_join(pointer, "pattern"), fault)
    for index, choice in enumerate(rule.get("choices", ())):
        if not _fits(choice, str(rule.get("type"))):
            at = pointer_join(pointer_join(pointer, "choices"), index)
            problems.add(at, f"a choice must be {_KINDS[rule['type']]}, not {describe(choice)}")


def _pattern_fault(pattern: str) -> str:
    # Python's matcher backtracks; few quantifiers and alternatives keep the worst case short.
    if re.search(r"\)[*+{]|\(\?[^:]|\\[1-9]", pattern):
        return "the pattern is not simple: no repeated groups, look-around or back-references"
    if len(re.findall(r"[*+?{]", pattern)) > 5 or pattern.count("|") > 8:
        return "the pattern is not simple: at most five repetitions and eight alternatives"
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return f"the pattern is not a regular expression: {error}"
    return ""


def _fits(value: object, kind: str) -> bool:
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    types: dict[str, type] = {"string": str, "integer": int, "boolean": bool}
    return kind in types and type(value) is types[kind]


def _from_text(text: str, kind: str) -> object:
    """What a text on the command line means for the type; the text itself when it means nothing."""
    if kind == "integer" and re.fullmatch(r"[-+]?[0-9]{1,18}", text):
        return int(text)
    if kind == "number" and re.fullmatch(r"[-+]?[0-9]{1,18}(\.[0-9]{1,18})?", text):
        return float(text)
    if kind == "boolean" and text in ("true", "false"):
        return text == "true"
    return text


def _check(
    name: str, value: object, rule: Mapping[str, Any], pointer: str, problems: Problems, *, own: str = ""
) -> Any:
    """The value in its type, or a stand-in for it after a problem.

    `own` is the pointer of the input when the value is its default; a value from the command line has none.
    """
    on_key, own = not own, own or pointer
    kind = str(rule.get("type", "string"))
    if on_key and isinstance(value, str):
        value = _from_text(value, kind)
    if not _fits(value, kind):
        message = f"input '{name}' must be {_KINDS.get(kind, kind)}, not {describe(value)}"
        problems.add(pointer, message, on_key=on_key)
        return _stand_in(rule)
    if not on_key and is_template(value):
        problems.add(pointer, f"the default of input '{name}' cannot be an expression")
        return value
    for key, kinds, holds, words in _LIMITS:
        usable = key in rule and isinstance(value, kinds) and not problems.is_broken(pointer_join(own, key))
        if usable and not holds(value, rule[key]):
            hint = did_you_mean(str(value), map(str, rule[key])) if key == "choices" else ""
            message = f"input '{name}' {words.format(_words(rule[key]))}, not {describe(value)}"
            problems.add(pointer, message, hint, on_key=on_key)
            break
    return value


def _words(limit: object) -> str:
    return ", ".join(map(str, limit)) if isinstance(limit, list) else str(limit)


def _matches(value: Any, pattern: str) -> bool:
    return len(value) <= MAX_MATCHED and not _pattern_fault(pattern) and re.fullmatch(pattern, value) is not None


# What a value must keep to: (the rule's key, the type it is for, whether the value holds, how it is said).
_LIMITS: tuple[tuple[str, Any, Callable[[Any, Any], bool], str], ...] = (
    ("minimum", int | float, operator.ge, "must be at least {}"),
    ("maximum", int | float, operator.le, "must be at most {}"),
    ("min_length", str, lambda value, limit: len(value) >= limit, "must have at least {} characters"),
    ("max_length", str, lambda value, limit: len(value) <= limit, "must have at most {} characters"),
    ("pattern", str, _matches, "must match {}"),
    ("choices", object, lambda value, limit: value in limit, "must be one of {}"),
)


def _stand_in(rule: Mapping[str, Any]) -> Any:
    """A value of the input's type, for checking what does not depend on it."""
    if rule.get("choices"):
        return rule["choices"][0]
    if rule.get("type") in ("integer", "number"):
        return rule.get("minimum", 1)
    return False if rule.get("type") == "boolean" else "input"
