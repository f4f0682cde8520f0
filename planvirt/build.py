"""What the builders of instances and operations share: the plan's data with everything it refers to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from planvirt.config import Config
from planvirt.names import Names
from planvirt.paths import Bounds
from planvirt.plan import Retry
from planvirt.problems import Problems, did_you_mean
from planvirt.render import Renderer


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds for every instance and operation that does not say otherwise."""

    retry: Retry
    timeout: float
    host: str


@dataclass(frozen=True, slots=True)
class Build:
    """One plan on its way from checked data to values. `data` has nothing in it that is wrong in shape."""

    data: Mapping[str, Any]
    names: Names
    config: Config
    bounds: Bounds
    renderer: Renderer
    problems: Problems

    def mapping(self, key: str) -> Mapping[str, Any]:
        """One of the plan's mappings by name; empty when the plan has none."""
        return self.data.get(key) or {}

    def check_store(self, name: str, pointer: str) -> None:
        """Report an image store that the configuration does not have."""
        if name not in self.config.stores:
            hint = did_you_mean(name, self.config.stores) or f"add [stores.{name}] to planvirt.toml"
            self.problems.add(pointer, f"unknown image store '{name}'", hint)

    def check_host(self, name: str, pointer: str) -> None:
        """Report a host that the configuration does not have."""
        if name not in self.config.hosts:
            hint = did_you_mean(name, self.config.hosts) or f"add [hosts.{name}] to planvirt.toml"
            self.problems.add(pointer, f"unknown host '{name}'", hint)
