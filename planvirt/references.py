"""Checks, before anything is rendered, that every name an expression reads exists and may be read there."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from planvirt.config import Config
from planvirt.document import pointer_join
from planvirt.expressions import (
    ROOTS,
    RUNTIME_ROOTS,
    ExpressionError,
    Reference,
    is_template,
    read_template,
)
from planvirt.names import Names
from planvirt.problems import Problems, did_you_mean
from planvirt.scope import INSTANCES_KEYS, RUNTIME_KEYS, STEP_KEYS

_RENDERED = ("defaults", "images", "profiles", "instances", "operations", "finally")
_DEFERRED = re.compile(
    r"/(?:instances|profiles)/[^/]+/(?:image|boot/cmdline)|/(?:operations|finally)/\d+/(?:when|with/.+)"
)
_NO_SECRETS = re.compile(r"/(?:instances|profiles)/[^/]+/image|/(?:operations|finally)/\d+/when")
_PER_COPY = re.compile(r"/(?:instances|profiles)/([^/]+)/(.+)")


def may_defer(pointer: str) -> bool:
    """Whether the value at a place of the file may wait until the plan runs."""
    return _DEFERRED.fullmatch(pointer) is not None


@dataclass(frozen=True, slots=True)
class Checker:
    """What the names of a plan are checked against."""

    data: Mapping[str, Any]
    names: Names
    config: Config
    env: Mapping[str, str]
    problems: Problems

    def check(self) -> None:
        """Report every expression that is malformed, or that reads what is not there."""
        for key in _RENDERED:
            for pointer, text in _scalars(self.data.get(key), f"/{key}"):
                try:
                    template = read_template(text)
                except ExpressionError as error:
                    self.problems.add(pointer, str(error), error.resolution)
                    continue
                for reference in template.references:
                    if not _is_rest_of_dashed(reference, text):
                        self._reference(reference, pointer)

    def check_outputs(self, operations: Mapping[str, tuple[str, ...]]) -> None:
        """Report outputs that are read of an operation on several instances without saying of which one."""
        if self.names.open_groups:
            return  # how many there are is not known
        for key in _RENDERED:
            for pointer, text in _scalars(self.data.get(key), f"/{key}"):
                if pointer in self.problems.broken:
                    continue
                for reference in read_template(text).references:
                    if reference.root == "steps" and len(operations.get(reference.path[1], ())) > 1:
                        self._output(reference.path, operations[reference.path[1]], pointer)

    def _output(self, path: tuple[str, ...], instances: tuple[str, ...], pointer: str) -> None:
        own = f"steps.{path[1]}" if "-" not in path[1] else f"steps['{path[1]}']"
        named = path[3] if len(path) > 3 else ""
        if named not in instances:
            hint = did_you_mean(named, instances) if len(path) > 4 else f"write {own}.outputs['{instances[0]}']"
            message = f"step '{path[1]}' is on {len(instances)} instances, and '{named}' is none of them"
            self.problems.add(pointer, message, hint)

    def _reference(self, reference: Reference, pointer: str) -> None:
        root, key = reference.root, reference.path[1] if len(reference.path) > 1 else None
        if root not in ROOTS:
            self.problems.add(pointer, f"unknown name '{root}' in an expression", did_you_mean(root, ROOTS))
        elif root in RUNTIME_ROOTS:
            self._runtime(reference, pointer)
        elif root == "inputs":
            self._key(key, "input", self.data.get("inputs") or {}, pointer)
        elif root == "env":
            self._env(key, pointer)
        else:
            self._copy_name(root, key, pointer)

    def _runtime(self, reference: Reference, pointer: str) -> None:
        root, path = reference.root, reference.path
        key = path[1] if len(path) > 1 else None
        if not may_defer(pointer):
            hint = "use it in 'image', 'boot.cmdline', 'with' or 'when'"
            self.problems.add(pointer, f"'{'.'.join(path[:2])}' is only known while the plan runs", hint)
        elif root == "secrets":
            if _NO_SECRETS.fullmatch(pointer):
                self.problems.add(pointer, "a secret cannot be used here", "use it in 'boot.cmdline' or 'with'")
            else:
                hint = "add [secrets.NAME] to planvirt.toml"
                self._key(key, "secret", self.config.secrets, pointer, hint)
        elif root == "steps":
            self._step(path, pointer)
        elif root == "instances":
            self._instance(path, pointer)
        elif root == "instance" and not pointer.startswith(("/operations/", "/finally/", "/instances/", "/profiles/")):
            self.problems.add(pointer, "there is no 'instance' here")
        elif key is not None and key not in RUNTIME_KEYS[root]:
            self.problems.add(pointer, f"{root} has no '{key}'", did_you_mean(key, RUNTIME_KEYS[root]))

    def _key(self, key: str | None, noun: str, known: Mapping[str, Any], pointer: str, otherwise: str = "") -> None:
        if key is None:
            message = f"'{noun}s' must be followed by a name that is written out"
            self.problems.add(pointer, message, f"write {noun}s.NAME")
        elif key not in known:
            self.problems.add(pointer, f"unknown {noun} '{key}'", did_you_mean(key, known) or otherwise)

    def _env(self, key: str | None, pointer: str) -> None:
        if key is None:
            self.problems.add(pointer, "'env' must be followed by a name that is written out", "write env.NAME")
        elif key not in self.config.env:
            hint = "let the operator add it to 'env' under [plans] in planvirt.toml"
            message = f"the environment variable '{key}' is not allowed in plans"
            self.problems.add(pointer, message, hint)
        elif key not in self.env:
            self.problems.add(pointer, f"the environment variable '{key}' is not set")

    def _copy_name(self, root: str, key: str | None, pointer: str) -> None:
        """`each` and `index` exist only in the copies that `for_each` and `count` make."""
        match = _PER_COPY.fullmatch(pointer)
        if match is None:
            hint = "write instance.index" if root == "index" else "use it in an instance with 'for_each'"
            self.problems.add(pointer, f"there is no '{root}' here", hint)
            return
        source = "for_each" if root == "each" else "count"
        if pointer.startswith("/instances/"):
            entry = (self.data.get("instances") or {}).get(match[1])
            if not isinstance(entry, dict) or source not in entry or match[2].startswith(("for_each", "count")):
                message = f"there is no '{root}' here"
                self.problems.add(pointer, message, f"'{root}' needs '{source}' in the instance")
                return
        if root == "each" and key not in (None, "key", "value"):
            self.problems.add(pointer, f"each has no '{key}'", did_you_mean(str(key), ("key", "value")))

    def _step(self, path: tuple[str, ...], pointer: str) -> None:
        operations = {**self.names.operations, **self.names.final_operations}
        key = path[1] if len(path) > 1 else None
        if key is not None and key not in operations:
            longer = next((name for name in operations if name.startswith(key + "-")), None)
            hint = f"write steps['{longer}'], as its name has a dash" if longer else did_you_mean(key, operations)
            self.problems.add(pointer, f"unknown step '{key}'", hint or "the plan has no operations")
            return
        self._key(key, "step", operations, pointer)
        if key is None:
            return
        final = self.names.final_operations.get(key)
        if len(path) < 3 or path[2] not in STEP_KEYS:
            self.problems.add(pointer, f"step '{key}' must be followed by 'outputs'", f"write steps.{key}.outputs")
        elif final is not None and not _comes_after(pointer, final):
            self.problems.add(pointer, f"step '{key}' comes only after this one", "it stands under 'finally'")

    def _instance(self, path: tuple[str, ...], pointer: str) -> None:
        key = path[1] if len(path) > 1 else None
        if key is None:
            self._key(None, "instance", {}, pointer)
            return
        if key not in self.names.instances:
            members = self.names.expand(key)
            if members == ():
                return  # a member of a group whose size is not known yet
            longer = next((name for name in self.names.instances if name.startswith(key + "-")), None)
            if longer:
                what = f"'{key}' is a group of instances" if members else f"unknown instance '{key}'"
                self.problems.add(pointer, what, f"write instances['{longer}'], as its name has a dash")
            else:
                self.problems.add(pointer, f"unknown instance '{key}'", did_you_mean(key, self.names.instances))
        elif len(path) > 2 and path[2] not in INSTANCES_KEYS:
            hint = did_you_mean(path[2], INSTANCES_KEYS)
            self.problems.add(pointer, f"an instance has no '{path[2]}'", hint)


def _comes_after(pointer: str, final: str) -> bool:
    """Whether a place belongs to a final operation after that one."""
    return pointer.startswith("/finally/") and int(pointer.split("/")[2]) > int(final.split("/")[2])


def _is_rest_of_dashed(reference: Reference, text: str) -> bool:
    """Whether a name is only the end of `steps.take-image`, which is reported already."""
    if reference.root in ROOTS:
        return False
    return re.search(rf"\b(steps|instances)\.[\w-]*-{re.escape(reference.root)}\b", text) is not None


def _scalars(value: Any, pointer: str) -> Iterator[tuple[str, str]]:
    """Every text with an expression, and where it is."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _scalars(item, pointer_join(pointer, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _scalars(item, pointer_join(pointer, index))
    elif is_template(value):
        yield pointer, value
