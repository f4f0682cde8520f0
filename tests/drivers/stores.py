"""The image stores that the store contract is tested on. Each gives a function that opens the same place once more."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from drivers.directory import DirectoryStore
from drivers.image_store import ImageStore

if TYPE_CHECKING:
    from tests.drivers.glance_server import Glance
    from tests.drivers.oci_registry import Registry
    from tests.drivers.swift_server import Swift

Opener = Callable[[], ImageStore]

_numbers = itertools.count(1)


@contextmanager
def directory(folder: Path) -> Iterator[Opener]:
    yield lambda: DirectoryStore("store", folder / "store")


@contextmanager
def s3(swift: "Swift") -> Iterator[Opener]:
    from drivers.s3.store import S3Store

    settings = swift.settings(f"contract-{next(_numbers)}")
    yield lambda: S3Store("store", settings, swift.secrets)


@contextmanager
def oci(registry: "Registry") -> Iterator[Opener]:
    from drivers.oci.store import OciStore

    settings = registry.settings(f"contract/{next(_numbers)}")
    yield lambda: OciStore("store", settings, registry.secrets)


@contextmanager
def glance(project: "Glance") -> Iterator[Opener]:
    from drivers.glance.store import GlanceStore

    yield lambda: GlanceStore("store", project.settings(), {})


@dataclass(frozen=True)
class Kind:
    """How a kind of store is opened, with what the fixture of that name brings: a folder, or a server that is real."""

    open: Callable[..., AbstractContextManager[Opener]]
    needs: str = "tmp_path"


STORES: dict[str, Kind] = {
    "directory": Kind(directory),
    "s3": Kind(s3, "swift"),
    "oci": Kind(oci, "oci_registry"),
    "glance": Kind(glance, "glance"),
}
