"""Writes the pages in docs/reference from the program itself: run `.venv/bin/python docs/generate.py` after a change of
the verb table, a schema or the command line. tests/docs/test_reference.py finds pages that are stale.
"""

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from flows.cli import COMMANDS, program
from planvirt.errors import Exit
from planvirt.schemas import config_schema, plan_schema
from planvirt.states import EXISTING, State
from planvirt.verbs import ACTIONS, VERBS, Impact, Verb

REFERENCE = Path(__file__).resolve().parent / "reference"

Schema = Mapping[str, Any]


# Markdown


def page(title: str, introduction: str, *parts: str) -> str:
    """A whole page."""
    notice = "<!-- Written by docs/generate.py. Change the program, then run that again. -->"
    return "\n\n".join([notice, f"# {title}", introduction.strip(), *(part for part in parts if part)]) + "\n"


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells may hold any text."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def code(text: object) -> str:
    """The text in backticks."""
    return f"`{text}`"


def joined(words: Sequence[str], last: str = "or") -> str:
    """The words as in a sentence: a, b or c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def anchor(heading: str) -> str:
    """What a link to a heading ends in."""
    return re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-")


def with_code(text: str) -> str:
    """A message of the program, with its quoted words and its mappings as code."""
    parts = re.split(r"('[^']+'|\{[^}]*\}|\[[a-z]+(?:\.[A-Z]+)?\])", text)
    return "".join(code(part.strip("'")) if place % 2 else part for place, part in enumerate(parts))


def sentence(text: str) -> str:
    """The text with a capital letter and a full stop."""
    return f"{text[:1].upper()}{text[1:].removesuffix('.')}."


# Examples


def flow(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(flow(item) for item in value) + "]"
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9./][A-Za-z0-9 ./:…-]*[A-Za-z0-9…]", value)
    return str(value) if plain and ": " not in value else json.dumps(value, ensure_ascii=False)


def toml(value: Any) -> str:
    """A value as TOML on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


# Schemas


@dataclass(frozen=True, slots=True)
class Book:
    """A schema as sections of a page. `example` writes a value in the language of the file."""

    schema: Schema
    example: Callable[[Any], str]

    def sections(self) -> list[str]:
        """The file itself, and every kind of mapping in it, each after what it is part of."""
        found: list[Schema] = []
        self._walk(self.schema, found)
        return [self._section(schema, found[:place]) for place, schema in enumerate(found)]

    def rows(self, schema: Schema, prefix: str = "") -> Iterator[tuple[str, str, str]]:
        """The keys of a mapping with what each holds and what it is for; with a prefix also those of mappings in it."""
        for key, value in self.keys(schema).items():
            full = self._resolved(value)
            needed = " (required)" if key in schema.get("required", ()) else ""
            yield code(prefix + key) + needed, self._words(value, link=not prefix), str(full.get("description", ""))
            if prefix and full.get("properties"):
                yield from self.rows(full, f"{prefix}{key}.")

    def keys(self, schema: Schema) -> dict[str, Schema]:
        """The keys of a mapping, those that it shares with others first."""
        shared = self.keys(self._target(schema)) if "$ref" in schema else {}
        return shared | dict(schema.get("properties", {}))

    def notes(self, schema: Schema) -> list[str]:
        """What else holds for a mapping, and examples of it."""
        found = [sentence(with_code(message)) for message in schema.get("x-message", {}).values()]
        examples = [code(self.example(each)) for each in schema.get("examples", ())]
        return [*found, f"For example {joined(examples)}."] if examples else found

    def _walk(self, schema: Schema, found: list[Schema]) -> None:
        found.append(schema)
        for value in (*self.keys(schema).values(), *self._kinds(schema)):
            for inner in self._mappings(value):
                if inner not in found:
                    self._walk(inner, found)

    def _kinds(self, schema: Schema) -> Iterator[Schema]:
        """What a mapping is more closely, which one of its keys decides."""
        yield from (branch["then"] for branch in schema.get("allOf", ()) if "$ref" in branch.get("then", ()))

    def _section(self, schema: Schema, earlier: Sequence[Schema]) -> str:
        parts = [f"## {_heading(schema)}", with_code(schema.get("description", ""))]
        twin = next((other for other in earlier if "$ref" in schema and other.get("$ref") == schema["$ref"]), None)
        shown = schema if twin is None else {key: item for key, item in schema.items() if key != "$ref"}
        if twin is not None:
            without = [code(key) for key in twin.get("properties", {}) if key not in schema.get("properties", {})]
            but = f", but not {joined(without)}" if without else ""
            also = ", and these:" if schema.get("properties") else "."
            parts.append(f"It has the keys of {_link(twin)}{but}{also}")
        if self.keys(shown):
            parts.append(table(("key", "value", "meaning"), self.rows(shown)))
        if kinds := [_link(inner) for kind in self._kinds(schema) for inner in self._mappings(kind)]:
            parts.append(f"See {joined(kinds)}.")
        return "\n\n".join(part for part in [*parts, *self.notes(schema)] if part)

    def _target(self, schema: Schema) -> Schema:
        found: Schema = self.schema["$defs"][schema["$ref"].rpartition("/")[2]]
        return found

    def _resolved(self, schema: Schema) -> Schema:
        """The schema with what it refers to; what stands beside the reference wins."""
        return {**self._resolved(self._target(schema)), **schema} if "$ref" in schema else schema

    def _mappings(self, schema: Schema) -> Iterator[Schema]:
        """The mappings with keys of their own that a value is, or holds."""
        if "title" in schema and self.keys(schema):
            yield schema
        elif "$ref" in schema:
            yield from self._mappings(self._target(schema))
        for inner in (schema.get("items"), schema.get("additionalProperties"), *schema.get("anyOf", ())):
            if isinstance(inner, Mapping):
                yield from self._mappings(inner)

    def _words(self, schema: Schema, *, link: bool) -> str:
        full = self._resolved(schema)
        if "enum" in full:
            return joined([code(choice) for choice in full["enum"]])
        words = with_code(str(full.get("x-expected", "text")) + self._each(full))
        places = [_link(inner) for inner in self._mappings(schema)] if link else []
        return f"{words}; see {joined(places, 'and')}" if places else words

    def _each(self, schema: Schema) -> str:
        """What each entry of a list or mapping is, where that can be one of several things."""
        inner = schema.get("items", schema.get("additionalProperties"))
        entry = self._resolved(inner) if isinstance(inner, Mapping) else {}
        return f", each {entry['x-expected']}" if "anyOf" in entry and "x-expected" in entry else ""


def _heading(schema: Schema) -> str:
    return sentence(with_code(schema["title"])).removesuffix(".")


def _link(schema: Schema) -> str:
    return f"[{with_code(schema['title'])}](#{anchor(_heading(schema))})"


PLAN, CONFIG = Book(plan_schema(), flow), Book(config_schema(), toml)


# The pages

_STATES = {
    State.ABSENT: "there is no instance of that name with the plan's mark",
    State.RUNNING: "the guest runs, or is on its way down",
    State.PAUSED: "the guest is stopped in its tracks and keeps its memory",
    State.SUSPENDED: "the guest's memory is saved to disk, and it is off",
    State.STOPPED: "it is defined and off",
    State.ERROR: "the guest crashed, or stands still after a fault of its disk",
}

_IMPACTS = {
    Impact.NONE: "nobody notices",
    Impact.LIVE: "the guest goes on, comes up, or stands still and keeps its memory",
    Impact.REBOOT: "the guest goes down, for good or for a moment",
    Impact.DATA_LOSS: "disks are deleted when the run succeeds; the preview names them",
}


def verbs() -> str:
    """Every verb, from the table that preview and guards read."""
    used = dict.fromkeys(verb.impact for verb in VERBS.values())
    return page(
        "Verbs",
        "What an operation of a plan can do. A verb that meets its instance in another state than these is refused:\n"
        "by the preview where that can be foreseen, else when its step begins, before it touches anything.",
        table(
            ("verb", "what it does", "allowed when", "when locked", "leaves it", "impact", "how it is undone"),
            [
                (
                    code(name),
                    verb.summary,
                    _allowed(verb),
                    "refused" if verb.changing else "allowed",
                    verb.leaves or "as it was",
                    verb.impact,
                    verb.undo,
                )
                for name, verb in VERBS.items()
            ],
        ),
        "## Arguments",
        "What may stand in an operation's `with`.",
        *(_arguments(action) for action in ACTIONS),
        "## States",
        table(("state", "meaning"), [(code(state), words) for state, words in _STATES.items()]),
        "The hypervisor decides what an instance's state is. `wait` can wait for `running`, `stopped` and `paused`.",
        "## Impact",
        table(("word", "meaning"), [(code(impact), _IMPACTS[impact]) for impact in used]),
    )


def _allowed(verb: Verb) -> str:
    if verb.allowed >= EXISTING:
        return "it exists" if verb.allowed == EXISTING else "always"
    return joined([state for state in State if state in verb.allowed])


def _arguments(action: str) -> str:
    schema = PLAN.schema["$defs"][f"with_{action}"]
    rows = [(key.replace("`.", "`"), *rest) for key, *rest in PLAN.rows(schema, ".")]
    body = table(("argument", "value", "meaning"), rows) if rows else schema["description"]
    return "\n\n".join([f"### `{action}`", body, *PLAN.notes(schema)])


def plan() -> str:
    """What a plan file can hold."""
    return page(
        "The plan file",
        "A plan is one YAML document of at most 1 MiB, encoded as UTF-8. Unknown and repeated keys are errors. Plain\n"
        "scalars follow YAML 1.2: `yes`, `on` and `2026-01-01` are text. Sizes and durations carry their units.\n"
        "Where [expressions](expressions.md) may stand, and what they can read, has a page of its own; what an\n"
        "operation's `with` can hold is on the page about [verbs](verbs.md).\n\n"
        "The JSON Schema that this page is made from is what `planvirt schema` prints.",
        *PLAN.sections(),
    )


def config() -> str:
    """What planvirt.toml can hold."""
    return page(
        "planvirt.toml",
        "The operator's file: plans only name what it defines. It is looked for in this order: `--config FILE`\n"
        "(before the command), `$PLANVIRT_CONFIG`, `planvirt.toml` in the current folder and those above it, and the\n"
        "user's configuration folder (`~/.config/planvirt`). Without one there is a host `local` with the URI `auto`,\n"
        "and a directory store `local`. Relative paths start from the file's folder, except `pool_path`, which is a\n"
        "path on the host.\n\n"
        "Everything that planvirt keeps is in `$PLANVIRT_HOME`, or in `~/.local/share/planvirt`.\n\n"
        "The JSON Schema that this page is made from is what `planvirt schema config` prints.",
        *CONFIG.sections(),
    )


_EXITS = {
    Exit.OK: "done; also when there was nothing to do",
    Exit.FAILED: "the command failed; or the run was rolled back, was cancelled, or could not finish its deletions",
    Exit.INVALID: "the plan, the configuration or the command line is wrong; nothing was touched",
    Exit.ROLLBACK_INCOMPLETE: "some of the run could not be undone: `planvirt show RUN` names what is left",
    Exit.CHANGES_PENDING: "`planvirt preview --exit-code`: there is something to do",
    Exit.KEPT: "the run failed, and the plan says `on_failure: keep`",
    Exit.CONFLICT: "the plan does not fit what is there, or another run owns an instance; nothing was touched",
}


def commands() -> str:
    """The command line, and the exit codes."""
    context = click.Context(program, info_name="planvirt")
    return page(
        "Commands",
        "Results go to standard output, progress and errors to standard error. With `--output json` a command prints\n"
        "one JSON document. `planvirt --config FILE COMMAND` uses another configuration than the one that would be\n"
        "found. `planvirt --version` tells the version.",
        *(text for name in COMMANDS for text in _command(context, name)),
        "## Exit codes",
        table(("code", "meaning"), [(code(number.value), words) for number, words in _EXITS.items()]),
    )


def _command(parent: click.Context, name: str) -> Iterator[str]:
    group = parent.command
    found = group.get_command(parent, name) if isinstance(group, click.Group) else None
    if found is None:
        raise LookupError(name)
    context = click.Context(found, info_name=name, parent=parent)
    if isinstance(found, click.Group):
        for inner in found.list_commands(context):
            yield from _command(context, inner)
        return
    usage = " ".join([context.command_path, *found.collect_usage_pieces(context)])
    options = [parameter for parameter in found.params if isinstance(parameter, click.Option)]
    records = [record for option in options if (record := option.get_help_record(context))]
    rows = [(code(names), " ".join(words.split())) for names, words in records]
    yield f"## {context.command_path}"
    yield code(usage)
    yield inspect.cleandoc(found.help or "")
    yield table(("option", "meaning"), rows) if rows else ""


PAGES: dict[str, Callable[[], str]] = {
    "verbs.md": verbs, "plan.md": plan, "config.md": config, "commands.md": commands,
}  # fmt: skip

if __name__ == "__main__":
    REFERENCE.mkdir(exist_ok=True)
    for file, write in PAGES.items():
        (REFERENCE / file).write_text(write())
