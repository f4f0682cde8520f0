"""The image stores that the store contract is tested on. Each gives a function that opens the same place once more."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from drivers.directory import DirectoryStore
from drivers.image_store import ImageStore

Opener = Callable[[], ImageStore]


@contextmanager
def directory(folder: Path) -> Iterator[Opener]:
    yield lambda: DirectoryStore("store", folder / "store")


STORES: dict[str, Callable[[Path], AbstractContextManager[Opener]]] = {
    "directory": directory,
}
