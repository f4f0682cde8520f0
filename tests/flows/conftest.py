"""A workshop for each test, and one Prefect server for all that need it."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.flows.workshop import Workshop

if TYPE_CHECKING:
    from tests.drivers.libvirt_host import Guest
    from tests.flows.lab import Lab


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    """A simulated host and a folder store; no Prefect server."""
    return Workshop(tmp_path / "workshop")


@pytest.fixture(scope="session")
def prefect_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Prefect server, started and ended as a user would."""
    from flows.server import local_server

    owner = Workshop(tmp_path_factory.mktemp("prefect"))
    began = owner.planvirt("up")
    assert began.code == 0, began
    server = local_server(owner.home)
    assert server is not None
    yield server.url
    ended = owner.planvirt("down")
    assert ended.code == 0, ended
    assert local_server(owner.home) is None


@pytest.fixture
def running(tmp_path: Path, prefect_url: str) -> Workshop:
    """A workshop whose runs go to the Prefect server."""
    return Workshop(tmp_path / "workshop", {"PREFECT_API_URL": prefect_url})


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> "Guest":
    """The tiny guest, built once for all who boot it."""
    from tests.drivers.libvirt_host import build_guest

    return build_guest(tmp_path_factory.mktemp("guest") / "guest")


@pytest.fixture
def lab(tmp_path: Path, prefect_url: str, guest: "Guest") -> Iterator["Lab"]:
    """A workshop with this machine's QEMU."""
    from tests.drivers.libvirt_host import qemu_host
    from tests.flows.lab import lab_at

    with qemu_host() as host, lab_at(host, tmp_path, prefect_url, guest) as lab:
        yield lab
