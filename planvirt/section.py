"""One rendered part of a plan, read key by key; every value knows where in the file it stands."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from planvirt.document import pointer_join
from planvirt.plan import Deferred, Retry
from planvirt.problems import Problems
from planvirt.units import UnitError, parse_duration, parse_size

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Section:
    """A mapping of the plan. `origins` maps pointers within it to pointers of the file, where they differ."""

    data: Mapping[str, Any]
    base: str
    problems: Problems
    origins: Mapping[str, str] = field(default_factory=dict)

    def at(self, *tokens: str | int) -> str:
        """The file's pointer to a value of this section."""
        local = ""
        for token in tokens:
            local = pointer_join(local, token)
        return self.where(local)

    def where(self, local: str) -> str:
        """The file's pointer for a pointer within the section."""
        head = local
        while head:
            if head in self.origins:
                return self.origins[head] + local[len(head) :]
            head = head.rpartition("/")[0]
        return self.base + local

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key that needs no conversion."""
        return self.data.get(key, default)

    def inner(self, *tokens: str | int) -> "Section":
        """The mapping under a key; empty when there is none."""
        value: Any = self.data
        for token in tokens:
            value = value[token] if isinstance(token, int) else value.get(token)
        local = ""
        for token in tokens:
            local = pointer_join(local, token)
        origins = {key[len(local) :]: target for key, target in self.origins.items() if key.startswith(local + "/")}
        return Section(value or {}, self.where(local), self.problems, origins)

    def size(self, key: str) -> int | None:
        """The bytes of a size."""
        return self._convert(key, parse_size)

    def duration(self, key: str) -> float | None:
        """The seconds of a duration."""
        return self._convert(key, parse_duration)

    def positive_duration(self, key: str, default: float) -> float:
        """The seconds of a duration that must not be zero."""
        value = self.duration(key)
        if value == 0.0:
            self.problems.add(self.at(key), f"{key} must be longer than zero")
        return value or default

    def retry(self, base: Retry) -> Retry:
        """The section's `retry`, key by key over another one."""
        inner = self.inner("retry")
        delay, limit = inner.duration("delay"), inner.duration("max_delay")
        return Retry(
            attempts=inner.get("attempts", base.attempts),
            delay=base.delay if delay is None else delay,
            backoff=float(inner.get("backoff", base.backoff)),
            max_delay=base.max_delay if limit is None else limit,
            jitter=float(inner.get("jitter", base.jitter)),
        )

    def _convert(self, key: str, parse: Callable[[str], T]) -> T | None:
        value = self.data.get(key)
        if value is None or isinstance(value, Deferred):
            return None
        try:
            return parse(value)
        except UnitError as error:
            self.problems.add(self.at(key), f"{key} {error}", error.hint)
            return None
