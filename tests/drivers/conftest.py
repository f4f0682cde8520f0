"""What the tests of drivers share."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.drivers.compute_hosts import HOSTS, Host

if TYPE_CHECKING:
    from tests.drivers.glance_server import Cloud, Glance
    from tests.drivers.oci_registry import Registry
    from tests.drivers.swift_server import Swift


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*abilities): skip the test on a host that lacks one of them")


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    """A host of each kind that needs no hypervisor."""
    with HOSTS[request.param](tmp_path) as host:
        needed = request.node.get_closest_marker("needs")
        missing = host.lacks & set(needed.args) if needed else set()
        if missing:
            pytest.skip(f"this host has no {', '.join(sorted(missing))}")
        try:
            yield host
        finally:
            host.clean()


@pytest.fixture(scope="session")
def swift() -> Iterator["Swift"]:
    """An S3 server."""
    from tests.drivers.swift_server import server

    with server() as running:
        yield running


@pytest.fixture(scope="session")
def oci_registry() -> Iterator["Registry"]:
    """An OCI registry."""
    from tests.drivers.oci_registry import registry

    with registry() as running:
        yield running


@pytest.fixture(scope="session")
def glance_server() -> Iterator["Glance"]:
    """A Glance that trusts who says who he is."""
    from tests.drivers.glance_server import server

    with server() as running:
        yield running


@pytest.fixture
def glance(glance_server: "Glance") -> "Glance":
    """An empty project of it."""
    return glance_server.elsewhere()


@pytest.fixture(scope="session")
def cloud(glance_server: "Glance") -> Iterator["Cloud"]:
    """The same Glance, asked through Keystone."""
    from tests.drivers.glance_server import cloud

    with cloud(glance_server) as running:
        yield running
