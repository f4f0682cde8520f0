"""The hosts and stores of the configuration, each opened once, when it is first asked for."""

import os
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from drivers.compute import Compute, LocalImage
from drivers.image_store import ImageStore
from drivers.registry import open_compute, open_store
from flows.secret_sources import ConfiguredSecrets
from planvirt.config import Config
from planvirt.deadline import Deadline
from planvirt.errors import ConfigError
from planvirt.problems import did_you_mean
from planvirt.secret import Redactor, Secret

_GLANCE = 0.25  # seconds


def connects(address: str, port: int) -> bool:
    """Whether something takes a connection there."""
    try:
        with socket.create_connection((address, port), timeout=1.0):
            return True
    except OSError:
        return False


def _missing(table: str, name: str, known: Iterable[str]) -> str:
    hint = did_you_mean(name, known)
    return "\n".join(part for part in (hint, f"add [{table}.{name}] to planvirt.toml") if part)


class World:
    """What a run may touch. Safe to use from several threads; closing it closes every connection.

    `answers` tells whether a guest's port does: a guest that exists only on paper cannot be asked.
    """

    def __init__(
        self,
        config: Config,
        *,
        answers: Callable[[str, int], bool] = connects,
        secrets: Mapping[str, Secret] | None = None,
    ) -> None:
        self.config = config
        self.answers = answers
        self._secrets = ConfiguredSecrets(config, os.environ, Redactor()) if secrets is None else secrets
        self._lock = threading.Lock()
        self._hosts: dict[str, Compute] = {}
        self._stores: dict[str, ImageStore] = {}
        self._images: dict[str, LocalImage] = {}
        self._image_locks: dict[str, threading.Lock] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            for host in self._hosts.values():
                host.close()
            self._hosts.clear()

    def host(self, name: str) -> Compute:
        """The driver of a host. Raises ConfigError when the configuration has no such host."""
        with self._lock:
            if name not in self._hosts:
                if name not in self.config.hosts:
                    raise ConfigError(
                        f"cannot find host {name}: the configuration has none of that name",
                        resolution=_missing("hosts", name, self.config.hosts),
                    )
                self._hosts[name] = open_compute(self.config.hosts[name], self.config.home)
            return self._hosts[name]

    def store(self, name: str) -> ImageStore:
        """An image store. Raises ConfigError when the configuration has no such store."""
        with self._lock:
            if name not in self._stores:
                if name not in self.config.stores:
                    raise ConfigError(
                        f"cannot find image store {name}: the configuration has none of that name",
                        resolution=_missing("stores", name, self.config.stores),
                    )
                self._stores[name] = open_store(self.config.stores[name], self.config.home, self._secrets)
            return self._stores[name]

    def checked_image(
        self, reference: str, check: Callable[[], LocalImage], deadline: Deadline | None = None
    ) -> LocalImage:
        """The image that `check` yields, asked once: hashing a large file for every instance would take long.

        Whoever comes meanwhile waits for it, until the deadline.
        """
        with self._lock:
            lock = self._image_locks.setdefault(reference, threading.Lock())
        while not lock.acquire(timeout=_GLANCE):
            if deadline is not None:
                deadline.check()
        try:
            if reference not in self._images:
                self._images[reference] = check()
            return self._images[reference]
        finally:
            lock.release()

    def has_checked(self, reference: str) -> bool:
        """Whether the image has been looked at already."""
        with self._lock:
            return reference in self._images

    @property
    def cache(self) -> Path:
        """A folder for files that can be made again."""
        return self.config.home / "cache"
