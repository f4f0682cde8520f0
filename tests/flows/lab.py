"""A workshop with a real hypervisor, and plans for guests that boot in it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.drivers.libvirt_host import Guest, QemuHost
from tests.flows.workshop import Workshop


@dataclass
class Lab:
    """A workshop with a real hypervisor. Names of machines begin with a word of the test's own."""

    shop: Workshop
    host: QemuHost
    guest: Guest
    word: str

    def plan(self, name: str, text: str) -> str:
        """Write a plan. `{boot:ARGUMENTS}` becomes a direct boot of the tiny guest, `{word}` the test's word."""
        boot = (
            f"boot: {{kernel: {self.guest.kernel}, initrd: {self.guest.initrd}, "
            'cmdline: "console=ttyS0 quiet planvirt.name=guest ARGUMENTS"}'
        )
        lines = []
        for line in text.replace("{word}", self.word).splitlines():
            head, found, tail = line.partition("{boot:")
            lines.append(head + boot.replace("ARGUMENTS", tail.partition("}")[0]) if found else line)
        header = f"planvirt: 1\nname: {self.word}-{name}\n"
        images = f"images:\n  tiny: {{source: {self.guest.folder}/disk.qcow2}}\n"
        self.shop.write(f"{name}.yaml", header + images + "\n".join(lines) + "\n")
        return f"{name}.yaml"

    def domains(self) -> set[str]:
        with self.host.door() as connection:
            return {name for domain in connection.listAllDomains() if (name := domain.name()).startswith(self.word)}

    def volumes(self) -> set[str]:
        """Files in the pool, cached images and kernels aside."""
        return {name for name in self.host.files() if not name.startswith("planvirt-")}


@contextmanager
def lab_at(host: QemuHost, folder: Path, prefect_url: str, guest: Guest) -> Iterator[Lab]:
    """A lab in a folder; in the end its machines are gone."""
    shop = Workshop(folder / "workshop", {"PREFECT_API_URL": prefect_url})
    shop.write(
        "planvirt.toml",
        f'[hosts.local]\nuri = "{host.uri}"\naccel = "tcg"\npool = "{host.pool}"\npool_path = "{host.folder}"\n'
        f'[stores.local]\npath = "store"\n[plans]\nallow_paths = ["{guest.folder}"]\n',
    )
    lab = Lab(shop, host, guest, f"t{os.getpid()}")
    yield lab
    for path in sorted(shop.folder.glob("*.yaml")):
        shop.planvirt("destroy", path.name, "--yes")
    with host.door() as connection:
        for name in lab.domains():
            domain = connection.lookupByName(name)
            if domain.isActive():
                domain.destroy()
            domain.undefine()
