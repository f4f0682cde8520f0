"""The plans of tests/plans, in a repository of their own with the configuration that they are written for."""

import shutil
from pathlib import Path

from planvirt.config import Config, HostConfig, SecretConfig, StoreConfig

PLANS = Path(__file__).parent.parent / "plans"


def plan_names(kind: str) -> list[str]:
    """The names of all plans in a folder."""
    return sorted(path.stem for path in (PLANS / kind).glob("*.yaml"))


def repository(folder: Path) -> Path:
    """A copy of the plans in something that looks like a git repository."""
    root = folder / "repository"
    shutil.copytree(PLANS, root, symlinks=True)
    (root / ".git").mkdir()
    return root


def plan_config(home: Path) -> Config:
    """Three hosts, two stores, a secret and an allowed environment variable."""
    return Config(
        home=home,
        hosts={name: HostConfig(name) for name in ("local", "kvm1", "kvm2")},
        stores={name: StoreConfig(name) for name in ("local", "glance")},
        secrets={"ops_key": SecretConfig("ops_key", env="OPS_KEY")},
        env=("SIZE", "NOT_SET"),
    )
