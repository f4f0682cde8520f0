"""Connections: what cannot be reached, and what to do about it."""

import threading
from pathlib import Path

import pytest

from drivers.errors import HostUnreachable, Transient, Unsupported
from drivers.libvirt.connection import Connection
from drivers.libvirt.driver import LibvirtCompute
from planvirt.config import HostConfig
from planvirt.deadline import Deadline
from planvirt.mark import Mark

NODE = """
<node>
  <domain type='test'>
    <name>from-file</name>
    <memory>65536</memory>
    <os><type>hvm</type></os>
  </domain>
</node>
"""


_SOCKET = "check the socket that the host's uri in planvirt.toml names, and that its daemon runs"


@pytest.mark.parametrize(
    ("uri", "resolution"),
    [
        (
            "qemu+unix:///system?socket=/nonexistent/socket",
            _SOCKET,
        ),
        ("test:///nonexistent.xml", "check that the file exists and holds libvirt's <node> document"),
        (
            "qemu+tcp://127.0.0.1:1/system",
            "check that the host answers: 'virsh -c qemu+tcp://127.0.0.1:1/system version'",
        ),
    ],
)
def test_unreachable(uri: str, resolution: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    compute = LibvirtCompute(HostConfig("host", uri=uri), tmp_path)
    with pytest.raises(HostUnreachable) as caught:
        compute.capabilities()
    assert isinstance(caught.value, Transient)
    assert caught.value.brief == f"cannot reach host host at {uri.partition('?')[0]}"
    assert caught.value.details
    assert caught.value.resolution == resolution
    assert "libvirt" not in capfd.readouterr().err  # it would print each error; its XML parser still does


def test_one_connection_for_many_threads() -> None:
    connection, found = Connection("test:///default"), set()
    threads = [threading.Thread(target=lambda: found.add(id(connection.get()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 1
    connection.close()


def test_a_connection_that_died_is_replaced() -> None:
    connection = Connection("test:///default")
    first = connection.get()
    first.close()
    assert connection.get().isAlive()
    connection.close()


def test_a_hypervisor_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "host.xml"
    file.write_text(NODE)
    compute = LibvirtCompute(HostConfig("host", uri=f"test://{file}", pool_path=tmp_path / "pool"), tmp_path)
    assert [facts.name for facts in compute.instances()] == ["from-file"]
    facts = compute.facts()
    assert (facts.hypervisor, facts.accel) == ("TEST", "none")
    compute.close()


def test_the_test_hypervisor_says_what_it_cannot_do(tmp_path: Path) -> None:
    compute = LibvirtCompute(HostConfig("host", uri="test:///default", pool_path=tmp_path / "pool"), tmp_path)
    can = compute.capabilities()
    assert "launch" in can.verbs and "snapshot" not in can.verbs
    assert not (can.console or can.live_snapshot or can.quiesce or can.image_formats)
    disk = Mark("p", "i", "r", "a" * 64).volume("boot")
    for attempt in (
        lambda: compute.import_file(tmp_path, "0" * 64, Deadline(1)),
        lambda: compute.console("test"),
        lambda: compute.open_volume(disk),
        lambda: compute.execute("test", ["true"], b"", Deadline(1)),
        lambda: compute.export_disks("test", {disk: disk}, deadline=Deadline(1)),
    ):
        with pytest.raises(Unsupported):
            attempt()
    compute.close()
