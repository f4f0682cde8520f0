"""The contract of compute drivers, on real QEMU with a guest that boots."""

from collections.abc import Iterator

import pytest

from tests.drivers.compute_hosts import Host
from tests.drivers.libvirt_host import Guest, qemu_host
from tests.drivers.test_compute_contract import *  # noqa: F403 - every test of it, with the fixture `host` from here
from tests.drivers.test_devices_contract import *  # noqa: F403
from tests.drivers.test_export_contract import *  # noqa: F403

pytestmark = pytest.mark.real


@pytest.fixture
def host(guest: Guest) -> Iterator[Host]:
    with qemu_host() as qemu:
        compute = qemu.compute

        def add_foreign(name: str) -> str:
            disk = f"{name}-foreign.img"
            with qemu.door() as connection:
                pool = connection.storagePoolLookupByName(qemu.pool)
                volume = pool.createXML(f"<volume><name>{disk}</name><capacity>4096</capacity></volume>", 0)
                connection.defineXML(
                    f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory>"
                    "<os><type arch='x86_64'>hvm</type></os><devices><disk type='file' device='disk'>"
                    f"<source file='{volume.path()}'/><target dev='vda' bus='virtio'/></disk></devices></domain>"
                )
            return disk

        def all_volumes() -> set[str]:
            with qemu.door() as connection:
                pool = connection.storagePoolLookupByName(qemu.pool)
                pool.refresh(0)
                return set(pool.listVolumes())

        def pause(name: str) -> None:
            with qemu.door() as connection:
                connection.lookupByName(name).suspend()

        def suspend(name: str) -> None:
            with qemu.door() as connection:
                connection.lookupByName(name).managedSave(0)

        def begin_import(name: str) -> None:
            with qemu.door() as connection:
                pool = connection.storagePoolLookupByName(qemu.pool)
                pool.createXML(f"<volume><name>{name}</name><capacity>4096</capacity></volume>", 0)

        def boot(host: Host, name: str, deaf: bool) -> dict[str, str]:
            kernel, initrd = guest.imported(compute)
            cmdline = f"console=ttyS0 quiet planvirt.name={name}" + (" planvirt.ignore-acpi" if deaf else "")
            return {"kernel": kernel, "initrd": initrd, "cmdline": cmdline}

        host = Host(
            compute=compute,
            add_foreign=add_foreign,
            all_volumes=all_volumes,
            pause=pause,
            suspend=suspend,
            begin_import=begin_import,
            hold_devices=pause,  # a guest that stands still lets nothing go
            boot=boot,
            greeting="planvirt guest up: {name}",
            patience=60.0,
        )
        try:
            yield host
        finally:
            host.clean()
