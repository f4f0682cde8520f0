"""YAML to plain data that remembers where in the file each value stands.

Built from parser events, so that nesting and aliases are bounded before anything grows. Plain scalars follow YAML 1.2:
`yes`, `on` and `2026-01-01` are text.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from planvirt.errors import Problem

MAX_DEPTH = 40
MAX_NODES = 50_000

_CORE = "tag:yaml.org,2002:"
_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]{1,300}|0o[0-7]{1,100}|0x[0-9a-fA-F]{1,100}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?")
_SCALAR_TAGS = {"str": None, "null": _NULL, "bool": _BOOL, "int": _INT, "float": _FLOAT}

Position = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Document:
    """The data of a file, and line and column (from 1) of each value and of each mapping key by JSON pointer."""

    data: Any = None
    values: dict[str, Position] = field(default_factory=dict)
    keys: dict[str, Position] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()

    def value_at(self, pointer: str) -> Position:
        """Where the value stands; for one that is not in the file, where the nearest mapping or list around it is."""
        while pointer and pointer not in self.values:
            pointer = pointer.rpartition("/")[0]
        return self.values.get(pointer, (0, 0))

    def key_at(self, pointer: str) -> Position:
        """Where the key of the value stands; the value itself for an item of a list."""
        return self.keys.get(pointer) or self.value_at(pointer)


@dataclass(slots=True)
class _Node:
    """One node of the file. `items` holds (key, value) pairs of a mapping, (None, value) pairs of a list."""

    kind: str  # "scalar", "mapping", "list" or "alias"
    at: Position
    value: Any = None
    items: list[tuple["_Node | None", "_Node"]] = field(default_factory=list)


class _Refused(Exception):
    def __init__(self, at: Position, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.problem = Problem(*at, "", message, hint)


def pointer_join(pointer: str, token: str | int) -> str:
    """The JSON pointer one step further."""
    return f"{pointer}/{str(token).replace('~', '~0').replace('/', '~1')}"


def parse(text: str) -> Document:
    """Read one YAML document. A file that cannot be read comes back without data, with the problems that it has."""
    try:
        root = _Composer(text).compose()
        builder = _Builder()
        data = builder.build(root, "")
    except _Refused as refused:
        return Document(problems=(refused.problem,))
    except yaml.reader.ReaderError as error:
        return Document(problems=(_reader_problem(error, text),))
    except yaml.MarkedYAMLError as error:
        return Document(problems=(_syntax_problem(error, text),))
    if builder.problems:
        return Document(problems=tuple(sorted(builder.problems)))
    return Document(data, builder.values, builder.keys)


class _Composer:
    """Makes nodes of parser events."""

    def __init__(self, text: str) -> None:
        self._events: Iterator[Any] = yaml.parse(text, Loader=yaml.CSafeLoader)
        self._anchors: dict[str, _Node] = {}
        self._open: list[_Node] = []
        self._count = 0

    def compose(self) -> _Node:
        roots: list[_Node] = []
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent) and roots:
                raise _Refused(_at(event), "a plan is one YAML document, and a second one starts here")
            if isinstance(event, yaml.NodeEvent):
                self._count += 1
                if self._count > MAX_NODES:
                    raise _Refused(_at(event), f"the file has more than {MAX_NODES} values")
                self._add(event, roots)
            elif isinstance(event, yaml.CollectionEndEvent):
                self._close()
        if not roots or (roots[0].kind == "scalar" and roots[0].value is None):
            raise _Refused((1, 1), "the file is empty", "start with 'planvirt: 1'")
        return roots[0]

    def _add(self, event: Any, roots: list[_Node]) -> None:
        node = self._node(event)
        parent = self._open[-1] if self._open else None
        if parent is None:
            roots.append(node)
        elif parent.kind == "list":
            parent.items.append((None, node))
        elif parent.value is None:
            parent.value = node  # a key that waits for its value
        else:
            parent.items.append((parent.value, node))
            parent.value = None
        if node.kind in ("mapping", "list"):
            self._open.append(node)
            if len(self._open) > MAX_DEPTH:
                raise _Refused(node.at, f"values are nested more than {MAX_DEPTH} deep")

    def _close(self) -> None:
        self._open.pop()

    def _node(self, event: Any) -> _Node:
        at = _at(event)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(str(event.anchor), at)
        if isinstance(event, yaml.ScalarEvent):
            node = _Node("scalar", at, _scalar(event, at))
        else:
            kind, tag = ("mapping", "map") if isinstance(event, yaml.MappingStartEvent) else ("list", "seq")
            if event.tag not in (None, "!", _CORE + tag):
                raise _Refused(at, f"the tag '{_tag_text(event.tag)}' is not allowed", "write plain values")
            node = _Node(kind, at)
        if event.anchor:
            self._anchors[event.anchor] = node
        return node

    def _alias(self, name: str, at: Position) -> _Node:
        target = self._anchors.get(name)
        if target is None:
            raise _Refused(at, f"the alias '*{name}' has no anchor '&{name}' before it")
        if any(target is node for node in self._open):
            raise _Refused(at, f"the alias '*{name}' stands inside its own anchor")
        return _Node("alias", at, target)


class _Builder:
    """Makes data of nodes, counting what aliases unfold to, and notes where everything stands."""

    def __init__(self) -> None:
        self.values: dict[str, Position] = {}
        self.keys: dict[str, Position] = {}
        self.problems: set[Problem] = set()
        self._count = 0

    def build(self, node: _Node, pointer: str, depth: int = 0) -> Any:
        self._count += 1
        if self._count > MAX_NODES:
            raise _Refused(node.at, f"the aliases in this file unfold to more than {MAX_NODES} values")
        if depth > MAX_DEPTH:
            raise _Refused(node.at, f"values are nested more than {MAX_DEPTH} deep")
        self.values[pointer] = node.at
        if node.kind == "alias":
            return self.build(node.value, pointer, depth + 1)
        if node.kind == "mapping":
            return self._mapping(node, pointer, depth)
        if node.kind == "list":
            return [
                self.build(item, pointer_join(pointer, index), depth + 1) for index, (_, item) in enumerate(node.items)
            ]
        return node.value

    def _mapping(self, node: _Node, pointer: str, depth: int) -> dict[str, Any]:
        data: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value in node.items:
            key = self._key(key_node, pointer)
            if key is None or key_node is None:
                continue
            here = pointer_join(pointer, key)
            if key in data:
                message = f"duplicate key '{_short(key)}', first given on line {lines[key]}"
                self.problems.add(Problem(*key_node.at, here, message, "remove one of the two"))
                continue
            lines[key] = key_node.at[0]
            self.keys[here] = key_node.at
            data[key] = self.build(value, here, depth + 1)
        return data

    def _key(self, node: _Node | None, pointer: str) -> str | None:
        if node is None:
            return None
        if node.kind == "alias":
            target: _Node = node.value
            return self._key(target, pointer)
        if node.kind == "scalar" and isinstance(node.value, str) and node.value != "<<":
            return node.value
        message, hint = _bad_key(node)
        self.problems.add(Problem(*node.at, pointer, message, hint))
        return None


def _bad_key(node: _Node) -> tuple[str, str]:
    """What is wrong with a key, and the hint."""
    if node.kind == "mapping":
        return "a key must be text, not a mapping", 'put an expression in quotes: "{{ ... }}"'
    if node.kind == "list":
        return "a key must be text, not a list", ""
    if node.value == "<<":
        return "merge keys ('<<') are not supported", "use 'profiles' for what instances share"
    text = "null" if node.value is None else _short(str(node.value).lower())
    return f"a key must be text, not {text}", f"write '{text}' in quotes"


def _scalar(event: Any, at: Position) -> Any:
    tag, text = event.tag, event.value
    if tag is None:
        return _plain(text) if event.implicit[0] else text
    if tag == "!":
        return text
    kind = tag.removeprefix(_CORE)
    if kind not in _SCALAR_TAGS or not tag.startswith(_CORE):
        raise _Refused(at, f"the tag '{_tag_text(tag)}' is not allowed", "write plain values")
    pattern = _SCALAR_TAGS[kind]
    if pattern is None:
        return text
    if not pattern.fullmatch(text):
        raise _Refused(at, f"the value does not fit its tag '{_tag_text(tag)}'")
    return float(text) if kind == "float" and math.isfinite(float(text)) else _plain(text)


def _plain(text: str) -> Any:
    """What an unquoted scalar means in the core schema of YAML 1.2; infinity and not-a-number stay text."""
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text, base)
    if _FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return text


def _at(event: Any) -> Position:
    return event.start_mark.line + 1, event.start_mark.column + 1


def _tag_text(tag: str) -> str:
    return _short("!!" + tag.removeprefix(_CORE) if tag.startswith(_CORE) else tag)


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


_INDENT = "check the indentation of this line"

# libyaml's words, in the order they are tried, and ours: (its problem, our message, our hint).
_WORDS = (
    ("mapping values are not allowed", "a ':' is not expected here", "quote a text that contains ': '"),
    ("could not find expected ':'", "a ':' is missing after a key", ""),
    ("did not find expected ',' or ']'", "a list that starts with '[' is not closed", ""),
    ("did not find expected ',' or '}'", "a mapping that starts with '{' is not closed", "quote an expression"),
    ("found unexpected end of stream", "a quoted text is not closed", ""),
    ("did not find expected key", "a key is expected here", _INDENT),
    ("did not find expected '-' indicator", "a list item '- ' is expected here", _INDENT),
    ("block sequence entries are not allowed", "a list item is not expected here", "start the list on the next line"),
    ("did not find expected node content", "a value is expected here", ""),
    ("unknown escape character", "an unknown escape in a quoted text", "use single quotes, or double the backslash"),
)


def _syntax_problem(error: yaml.MarkedYAMLError, text: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line, mark.column) if mark else (0, 0)
    lines = text.splitlines()
    rest = lines[line][column:] if line < len(lines) else ""
    problem = error.problem or "malformed YAML"
    if "expected node content" in problem and not text.encode()[mark.index if mark else 0 :].strip():
        return Problem(line + 1, column + 1, "", "the file ends where a value is expected", "close what is open")
    if rest.startswith("\t"):
        return Problem(line + 1, column + 1, "", "a tab is not allowed here", "indent with spaces")
    if "cannot start any token" in problem:
        message = f"a value cannot start with '{rest[:1]}'"
        return Problem(line + 1, column + 1, "", message, "put the value in quotes")
    for theirs, message, hint in _WORDS:
        if theirs in problem:
            start = error.context_mark
            since = f" (it starts on line {start.line + 1})" if "not closed" in message and start else ""
            return Problem(line + 1, column + 1, "", message + since, hint)
    return Problem(line + 1, column + 1, "", f"malformed YAML: {problem}")


def _reader_problem(error: yaml.reader.ReaderError, text: str) -> Problem:
    # The position counts bytes of the UTF-8 text that the C parser was given.
    before = text.encode()[: error.position].decode(errors="ignore")
    line = before.count("\n") + 1
    column = len(before) - (before.rfind("\n") + 1) + 1
    return Problem(line, column, "", "a control character is not allowed in YAML", "remove it")
