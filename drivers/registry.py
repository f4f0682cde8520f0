"""Which driver answers to which name in planvirt.toml. To add one: a file, a line here, a line in its contract test."""

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from drivers.compute import Compute
from drivers.image_store import ImageStore
from planvirt.config import HostConfig, StoreConfig
from planvirt.errors import ConfigError
from planvirt.secret import Secret

Secrets = Mapping[str, Secret]  # the operator's, by name; each is read when it is asked for

ENTRY_POINTS = "planvirt.drivers"  # other packages' drivers: NAME for a compute driver, store.NAME for an image store


def _libvirt(config: HostConfig, home: Path) -> Compute:
    from drivers.libvirt.driver import LibvirtCompute

    return LibvirtCompute(config, home)


def _simulated(config: HostConfig, home: Path) -> Compute:
    from drivers.simulated import SimulatedCompute

    return SimulatedCompute.in_file(config.name, config.path or home / f"simulated-{config.name}.json")


def _directory(config: StoreConfig, home: Path, _: Secrets) -> ImageStore:
    from drivers.directory import DirectoryStore

    return DirectoryStore(config.name, config.path or home / "stores" / config.name)


def _s3(config: StoreConfig, _: Path, secrets: Secrets) -> ImageStore:
    with _extra("s3"):
        from drivers.s3.store import S3Store
    return S3Store.configured(config, secrets)


def _oci(config: StoreConfig, _: Path, secrets: Secrets) -> ImageStore:
    from drivers.oci.store import OciStore

    return OciStore.configured(config, secrets)


def _glance(config: StoreConfig, _: Path, secrets: Secrets) -> ImageStore:
    with _extra("glance"):
        from drivers.glance.store import GlanceStore
    return GlanceStore.configured(config, secrets)


COMPUTE: dict[str, Callable[[HostConfig, Path], Compute]] = {"libvirt": _libvirt, "simulated": _simulated}
STORES: dict[str, Callable[[StoreConfig, Path, Secrets], ImageStore]] = {
    "directory": _directory,
    "glance": _glance,
    "oci": _oci,
    "s3": _s3,
}


def open_compute(config: HostConfig, home: Path) -> Compute:
    """The driver of a host. It connects when it is first used."""
    factory = COMPUTE.get(config.driver) or _strangers("").get(config.driver)
    if factory is None:
        raise _unknown("host", config.name, config.driver, [*COMPUTE, *_strangers("")])
    driver: Compute = _called(factory, config, home)
    return driver


def open_store(config: StoreConfig, home: Path, secrets: Secrets) -> ImageStore:
    """The driver of an image store. It touches nothing, not even its secrets, until it is first used."""
    factory = STORES.get(config.driver) or _strangers("store.").get(config.driver)
    if factory is None:
        raise _unknown("store", config.name, config.driver, [*STORES, *_strangers("store.")])
    driver: ImageStore = _called(factory, config, home, secrets)
    return driver


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Say which extra brings a library that is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library in ("drivers", "planvirt"):
            raise
        raise ConfigError(
            f"cannot open a store of the kind {name}",
            details=f"the library {library} is not installed",
            resolution=f"install planvirt with it: pip install 'planvirt[{name}]'",
        ) from error


def _strangers(prefix: str) -> Mapping[str, EntryPoint]:
    """What other packages bring, by the name that planvirt.toml uses."""
    found = {}
    for point in entry_points(group=ENTRY_POINTS):
        kind, dot, name = point.name.rpartition(".")
        if kind + dot == prefix:
            found[name] = point
    return found


def _called(factory: Any, config: HostConfig | StoreConfig, *rest: object) -> Any:
    if isinstance(factory, EntryPoint):
        try:
            factory = factory.load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"cannot load driver {config.driver!r}",
                details=str(error),
                resolution="reinstall the package that brings it",
            ) from error
    return factory(config, *rest)


def _unknown(kind: str, name: str, driver: str, known: list[str]) -> ConfigError:
    near = difflib.get_close_matches(driver, known, n=1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    return ConfigError(
        f"cannot use {kind} {name}: there is no driver {driver!r}",
        resolution=f"{meant}the drivers for a {kind} are {', '.join(sorted(known))}",
    )
