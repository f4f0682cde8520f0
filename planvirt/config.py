"""The operator's configuration, planvirt.toml: where hosts, stores and secrets are. A plan only names them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class HostConfig:
    """A hypervisor. `uri` is "auto" for qemu:///system where it answers, else qemu:///session.

    `pool` is the storage pool that planvirt keeps its volumes in; it is made at `pool_path` when it does not exist.
    """

    name: str
    driver: str = "libvirt"
    uri: str = "auto"
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    pool: str = "planvirt"
    pool_path: Path | None = None
    path: Path | None = None  # the file of a simulated host


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """An image store. `path` is the folder of a directory store."""

    name: str
    driver: str = "directory"
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class SecretConfig:
    """Where a secret comes from: an environment variable or a file. Exactly one is given."""

    name: str
    env: str | None = None
    file: Path | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """All of planvirt.toml, with its defaults filled in. `home` is where planvirt keeps its data."""

    home: Path
    path: Path | None = None
    hosts: Mapping[str, HostConfig] = field(default_factory=dict)
    stores: Mapping[str, StoreConfig] = field(default_factory=dict)
    secrets: Mapping[str, SecretConfig] = field(default_factory=dict)
    default_host: str = "local"
    default_store: str = "local"
    journal_url: str = ""
    env: tuple[str, ...] = ()  # environment names a plan may read
    allow_paths: tuple[Path, ...] = ()  # folders outside the plan's repository that a plan may use files of
    extra: Mapping[str, Any] = field(default_factory=dict)
