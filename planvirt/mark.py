"""The mark on everything planvirt makes: which plan, instance and run made it, from which spec and commit."""

import hashlib
import re
import uuid
from dataclasses import dataclass

_NAMESPACE = uuid.UUID("6b2c8a52-3d0f-5d6e-9a57-0c5f6f1f7a10")
_NO_COMMIT = "nogit"


def instance_uuid(plan: str, instance: str) -> str:
    """The UUID of an instance, known before it exists, so that a repeated call finds its own work."""
    return str(uuid.uuid5(_NAMESPACE, f"{plan}/{instance}"))


def image_id(run: str, step: str) -> str:
    """The id of the image that a step makes, known before the image exists."""
    return str(uuid.uuid5(_NAMESPACE, f"{run}#{step}"))


def nic_mac(instance: str, nic: str | int) -> str:
    """The hardware address, in QEMU's range, of an instance's network interface: the same one whenever it is made.

    `instance` is a UUID, `nic` the place among the interfaces of the definition, or another name.
    """
    digest = hashlib.sha256(f"{instance}/{nic}".encode()).digest()
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])


@dataclass(frozen=True, slots=True)
class Mark:
    """Who made a domain or a volume. `spec` is the instance's spec hash, `commit` the git commit of the plan, or ""."""

    plan: str
    instance: str
    run: str
    spec: str
    commit: str = ""

    def volume(self, disk: str) -> str:
        """The name of a volume of the instance. It carries the whole mark, as libvirt keeps no metadata for volumes."""
        commit = (self.commit or _NO_COMMIT)[:12]
        return f"{self.plan}.{self.instance}.{disk}.{self.run}.{self.spec[:12]}.{commit}.planvirt"


def cached_image(sha256: str, format: str) -> str:
    """The name of the base volume that a host keeps of an image. It belongs to no plan."""
    return f"planvirt-image.{sha256}.{format}"


def cached_file(sha256: str) -> str:
    """The name of the volume that a host keeps of a kernel or initrd."""
    return f"planvirt-file.{sha256}"


_CACHED = re.compile(r"planvirt-(image\.[0-9a-f]{64}\.(qcow2|raw)|file\.[0-9a-f]{64})")


def is_cached(name: str) -> bool:
    """Whether a volume is a cached image or file of planvirt's."""
    return _CACHED.fullmatch(name) is not None


_VOLUME = re.compile(
    r"(?P<plan>[a-z0-9-]+)\.(?P<instance>[a-z0-9-]+)\.(?P<disk>[a-z0-9-]+)\.(?P<run>[a-z0-9-]+)"
    r"\.(?P<spec>[0-9a-f]{12})\.(?P<commit>[0-9a-z]{1,12})\.planvirt"
)


def read_volume_name(name: str) -> tuple[Mark, str] | None:
    """The mark and the disk's name from a volume's name; None when planvirt did not make it."""
    match = _VOLUME.fullmatch(name)
    if match is None:
        return None
    parts = match.groupdict()
    disk = parts.pop("disk")
    if parts["commit"] == _NO_COMMIT:
        parts["commit"] = ""
    return Mark(**parts), disk
