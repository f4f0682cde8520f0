"""What the tests of the libvirt driver share."""

from collections.abc import Iterator

import pytest

from tests.drivers.libvirt_host import Guest, QemuHost, build_guest, qemu_host


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Guest:
    """The tiny guest, built once."""
    return build_guest(tmp_path_factory.mktemp("guest"))


@pytest.fixture
def qemu() -> Iterator[QemuHost]:
    """This machine's QEMU with an empty pool."""
    with qemu_host() as host:
        yield host
