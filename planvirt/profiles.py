"""Takes an instance's values together from its profiles and itself, and remembers which came from where."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from planvirt.document import pointer_join
from planvirt.problems import Problems, did_you_mean
from planvirt.section import Section

# Mappings whose keys are taken together; of everything else the later value replaces the earlier one whole.
_MERGED = ("labels", "retry", "resize")


@dataclass(slots=True)
class _Merged:
    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def put(self, key: str, value: Any, pointer: str) -> None:
        local = pointer_join("", key)
        if key in _MERGED and isinstance(value, dict):
            inner = {**self.data.get(key, {}), **value}
            for name in value:
                self.origins[pointer_join(local, name)] = pointer_join(pointer, name)
            self.origins.setdefault(local, pointer)
            self.data[key] = inner
        else:
            self.data[key] = value
            self.origins[local] = pointer

    def take(self, other: "_Merged") -> None:
        for key, value in other.data.items():
            local = pointer_join("", key)
            if key in _MERGED and isinstance(value, dict):
                self.data[key] = {**self.data.get(key, {}), **value}
                self.origins.setdefault(local, other.origins[local])
                inner = {at: to for at, to in other.origins.items() if at.startswith(local + "/")}
                self.origins.update(inner)
            else:
                self.data[key] = value
                self.origins[local] = other.origins[local]


def with_profiles(
    entry: Mapping[str, Any], pointer: str, profiles: Mapping[str, Any], known: frozenset[str], problems: Problems
) -> Section:
    """The entry with what its `use` brings in. An unknown profile, or one that uses itself, is a problem."""
    merged = _merge(entry, pointer, profiles, known, problems, ())
    return Section(merged.data, pointer, problems, merged.origins)


def _merge(
    entry: Mapping[str, Any],
    pointer: str,
    profiles: Mapping[str, Any],
    known: frozenset[str],
    problems: Problems,
    within: tuple[str, ...],
) -> _Merged:
    merged = _Merged()
    at = pointer_join(pointer, "use")
    used = entry.get("use")
    places = [(used, at)] if isinstance(used, str) else [(n, pointer_join(at, i)) for i, n in enumerate(used or ())]
    for name, place in places:
        if name is None:
            continue
        if name in within:
            chain = " uses ".join((*within[within.index(name) :], name))
            problems.add(place, f"a profile uses itself: {chain}", "break the circle")
        elif name not in known:
            hint = did_you_mean(name, known) or "the plan has no profiles"
            problems.add(place, f"unknown profile '{name}'", hint)
        elif isinstance(profiles.get(name), dict):
            inside = pointer_join("/profiles", name)
            merged.take(_merge(profiles[name], inside, profiles, known, problems, (*within, name)))
    for key, value in entry.items():
        if key != "use":
            merged.put(key, value, pointer_join(pointer, key))
    return merged
