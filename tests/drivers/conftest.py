"""What the tests of drivers share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.drivers.compute_hosts import HOSTS, Host


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
