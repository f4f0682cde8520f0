"""Renders the expressions of one part of a plan. Structure never comes from an expression, only scalars do."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from planvirt.document import pointer_join
from planvirt.expressions import (
    RUNTIME_ROOTS,
    ExpressionError,
    Template,
    is_template,
    read_template,
    render,
)
from planvirt.inputs import Inputs
from planvirt.plan import Deferred
from planvirt.problems import Problems
from planvirt.references import may_defer
from planvirt.schema import Fault, check_shape, describe
from planvirt.schemas import plan_schema
from planvirt.section import Section

_GONE = object()


@dataclass(frozen=True, slots=True)
class Renderer:
    """Knows the values that expressions read before the plan runs."""

    inputs: Inputs
    env: Mapping[str, str]
    problems: Problems

    def section(self, raw: Section, definition: str, scope: Mapping[str, Any] | None = None) -> Section:
        """The section with its expressions rendered, and checked again for what came of them.

        `definition` is the entry of the schema's `$defs`, or empty for data of any shape. A value with a problem is
        left out.
        """
        names = {"inputs": self.inputs.values, "env": self.env, **(scope or {})}
        rendered: set[str] = set()
        data = self._tree(raw.data, "", raw, names, rendered)
        if rendered and definition:
            faults = check_shape(_plain(data), plan_schema(), definition)
            for fault in faults:
                pointer = raw.where(fault.pointer)
                known = self.problems.is_broken(pointer) if fault.missing else pointer in self.problems.broken
                if not known:
                    self.problems.add(pointer, fault.message, fault.hint, on_key=fault.on_key)
            data = prune(data, faults)
        return Section(data if isinstance(data, dict) else {}, raw.base, self.problems, raw.origins)

    def _tree(self, value: Any, local: str, raw: Section, names: Mapping[str, Any], rendered: set[str]) -> Any:
        if isinstance(value, Mapping):
            pairs = (
                (key, self._tree(item, pointer_join(local, key), raw, names, rendered)) for key, item in value.items()
            )
            return {key: item for key, item in pairs if item is not _GONE}
        if isinstance(value, list):
            items = [
                self._tree(item, pointer_join(local, index), raw, names, rendered) for index, item in enumerate(value)
            ]
            return [None if item is _GONE else item for item in items]
        if not is_template(value):
            return value
        pointer = raw.where(local)
        if pointer in self.problems.broken:
            return _GONE
        rendered.add(local)
        return self._scalar(value, pointer, names)

    def _scalar(self, text: str, pointer: str, names: Mapping[str, Any]) -> Any:
        template = read_template(text)
        if self._depends_on_unknown(template):
            self.problems.tainted.add(pointer)
        if any(reference.root in RUNTIME_ROOTS for reference in template.references) and may_defer(pointer):
            return self._deferred(template, pointer, names)
        try:
            value = render(template, names)
        except ExpressionError as error:
            self.problems.add(pointer, str(error), error.resolution)
            return _GONE
        if not isinstance(value, str | int | float | bool):
            message = f"the expression must give a single value, not {describe_kind(value)}"
            self.problems.add(pointer, message, "lists and mappings must stand in the plan itself")
            return _GONE
        return value

    def _depends_on_unknown(self, template: Template) -> bool:
        return any(
            reference.root == "inputs" and reference.path[1:2] and reference.path[1] in self.inputs.unknown
            for reference in template.references
        )

    def _deferred(self, template: Template, pointer: str, names: Mapping[str, Any]) -> Deferred:
        runtime: list[str] = []
        known: dict[str, Any] = {}
        for reference in template.references:
            if reference.root in RUNTIME_ROOTS:
                runtime.append(".".join(reference.path[:2]))
            elif reference.root in names:
                known[reference.root] = _only(names[reference.root], reference.path[1:], known.get(reference.root))
        line, column = self.problems.document.value_at(pointer)
        return Deferred(template.text, tuple(dict.fromkeys(runtime)), line, column, known)


def _only(value: Any, keys: tuple[str, ...], before: Any) -> Any:
    """The part of a mapping that an expression reads: one key of it, beside those read before."""
    if not isinstance(value, Mapping) or not keys:
        return value
    return {**(before or {}), **({keys[0]: value[keys[0]]} if keys[0] in value else {})}


def describe_kind(value: Any) -> str:
    """The kind of a value that is no scalar."""
    return "nothing" if value is None else describe(value) if isinstance(value, dict | list) else "something else"


def _plain(value: Any) -> Any:
    """The data with templates for what is not known yet, and without the items that are left out."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.text if isinstance(value, Deferred) else value


def prune(data: Any, faults: tuple[Fault, ...]) -> Any:
    """A copy of the data without what is at fault; list items become None, so that the others keep their place."""
    pruned = _copy(data)
    # From the back, as a fault inside a value that is already gone has nothing left to take away.
    for fault in sorted(faults, key=lambda fault: fault.pointer, reverse=True):
        if fault.missing:
            continue  # what is there can still be looked at
        tokens = [token.replace("~1", "/").replace("~0", "~") for token in fault.pointer.split("/")[1:]]
        if not tokens:
            continue
        parent = pruned
        for token in tokens[:-1]:
            parent = _step(parent, token)
        if isinstance(parent, dict):
            parent.pop(tokens[-1], None)
        elif isinstance(parent, list) and tokens[-1].isdigit() and int(tokens[-1]) < len(parent):
            parent[int(tokens[-1])] = None
    return pruned


def _step(value: Any, token: str) -> Any:
    if isinstance(value, dict):
        return value.get(token)
    if isinstance(value, list) and token.isdigit() and int(token) < len(value):
        return value[int(token)]
    return None


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value
