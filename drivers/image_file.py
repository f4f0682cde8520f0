"""Image files from outside are hostile until looked at: what they really are, and whether they stay in their file.

A hypervisor that opens a crafted image may be led to read any file of the host. So before one sees it, the header is
read here by hand, and everything that points out of the file, or that this module does not know, is refused. What
passes is looked at once more by a reader of others (`drivers/second_look.py`).
"""

import hashlib
import os
import re
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from drivers.compute import LocalImage
from drivers.errors import DriverError, NotFound, WrongChecksum
from drivers.second_look import objection
from planvirt.deadline import Deadline

LARGEST = 64 << 40  # bytes that a guest may see
_CHUNK = 1 << 20
_HEAD = 1 << 16  # more than the header, and all signatures
_QCOW2 = b"QFI\xfb"

# Where it stands, what stands there, what the file then is.
_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"QED\0", "qed"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"LUKS\xba\xbe", "luks"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (0, b"Bochs Virtual HD Image", "bochs"),
    (0, b"OOOM", "cow"),
    (0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop", "cloop"),
)
# A text that names other files. QEMU takes it for one whatever its comments say.
_DESCRIPTOR = re.compile(rb"# *Disk Descriptor|(?:#[^\n]*+\n|\s)*+version=[0-9]", re.IGNORECASE)
_PACKED: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PK\x03\x04", "zip"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
)
_PAGE = re.compile(rb"\s*<(!doctype html|html)", re.IGNORECASE)
_CHECKSUM = re.compile(r"(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})")


class RefusedImage(DriverError):
    """The file is not an image that can be trusted to be what the plan says, and to stay in its file."""


def inspect(
    path: Path,
    *,
    checksum: str | None,
    declared_format: str | None,
    deadline: Deadline | None = None,
    called: str | None = None,
) -> LocalImage:
    """Read the whole file once; compare its checksum and its format with what the plan says, and judge its header.

    `called` is what messages name the file.
    """
    deadline, name = deadline or Deadline(), called or str(path)
    if checksum is not None and _CHECKSUM.fullmatch(checksum.lower()) is None:
        raise RefusedImage(
            f"cannot check {name}: {checksum[:20]!r} is no checksum", resolution="write sha256:HEX or sha512:HEX"
        )
    with _opened(path, name) as file:
        before = os.fstat(file.fileno())
        _check_size(name, before.st_size)
        head = file.read(_HEAD)
        file.seek(0)
        size, sha256, sha512 = _digests(file, before.st_size, deadline, longer=(checksum or "").startswith("sha512:"))
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns, before.st_size) != (after.st_size, after.st_mtime_ns, size):
        raise RefusedImage(f"cannot use {name}: it changed while it was read")
    if checksum is not None:
        _compare(name, checksum.lower(), f"sha512:{sha512}" if sha512 else f"sha256:{sha256}")
    found = _format(name, head, declared_format)
    virtual_size = _qcow2_size(name, head, size) if found == "qcow2" else -(-size // 512) * 512
    if (objected := objection(head, found)) is not None:
        raise RefusedImage(f"cannot use {name}: {objected}", resolution="make a plain, flat image of it")
    return LocalImage(path, sha256, found, virtual_size)


def _opened(path: Path, name: str) -> BinaryIO:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a named pipe must not make us wait
    except FileNotFoundError as error:
        raise NotFound(f"cannot find image file {name}") from error
    except OSError as error:
        raise DriverError(f"cannot open image file {name}", details=str(error)) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise RefusedImage(f"cannot use {name}: it is no regular file")
    return os.fdopen(handle, "rb")


def _check_size(name: str, size: int) -> None:
    """Refuse a file before it is read for hours."""
    if not 0 < size <= LARGEST:
        raise RefusedImage(f"cannot use {name}: a disk of {size} bytes is not possible")


def _digests(file: BinaryIO, total: int, deadline: Deadline, *, longer: bool) -> tuple[int, str, str | None]:
    done, sha256, sha512 = 0, hashlib.sha256(), hashlib.sha512()
    while chunk := file.read(_CHUNK):
        sha256.update(chunk)
        if longer:
            sha512.update(chunk)
        done += len(chunk)
        deadline.progress(done, total)
    return done, sha256.hexdigest(), sha512.hexdigest() if longer else None


def _compare(name: str, expected: str, found: str) -> None:
    if found != expected:
        raise WrongChecksum(
            f"cannot use {name}: its checksum is wrong",
            details=f"it is {found[:19]}…, the plan says {expected[:19]}…",
            resolution="fetch the file again; if its publisher has changed it, change the checksum in the plan",
        )


def _format(name: str, head: bytes, declared: str | None) -> Literal["qcow2", "raw"]:
    """What the file really is, if that is allowed and what was declared."""
    foreign = next((name for at, magic, name in _SIGNATURES if head.startswith(magic, at)), None)
    if foreign is None and _DESCRIPTOR.match(head):
        foreign = "vmdk"
    if foreign is not None:
        raise RefusedImage(
            f"cannot use {name}: it is a {foreign} image",
            resolution=f"convert it with 'qemu-img convert -f {foreign} -O qcow2', if you trust it",
        )
    packed = next((name for magic, name in _PACKED if head.startswith(magic)), None)
    if packed is not None:
        raise RefusedImage(f"cannot use {name}: it is packed with {packed}", resolution="unpack it first")
    if _PAGE.match(head):
        raise RefusedImage(f"cannot use {name}: it is a web page", resolution="check where it was fetched from")
    found: Literal["qcow2", "raw"] = "qcow2" if head.startswith(b"QFI") else "raw"
    if declared is not None and declared != found:
        raise RefusedImage(
            f"cannot use {name}: it is {found}, but the plan says {declared}",
            resolution=f"write 'format: {found}' if you trust the file",
        )
    return found


# The qcow2 header, as docs/interop/qcow2.rst of QEMU describes it.

_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
_EXTERNAL_DATA, _COMPRESSION, _EXTENDED_L2 = 1 << 2, 1 << 3, 1 << 4
_KNOWN_FEATURES = 1 << 0 | _COMPRESSION | _EXTENDED_L2  # bit 0 only asks for a repair of counters
_CORRUPT = 1 << 1
_BACKING_FORMAT_NAME, _DATA_FILE_NAME, _ENCRYPTION = 0xE2792ACA, 0x44415441, 0x0537BE77
_LARGEST_L1 = 32 << 20
_LARGEST_REFCOUNT_TABLE = 8 << 20
_MOST_SNAPSHOTS = 65536


@dataclass(frozen=True, slots=True)
class _Header:
    magic: bytes
    version: int
    backing_offset: int
    backing_size: int
    cluster_bits: int
    size: int
    encryption: int
    l1_entries: int
    l1_offset: int
    refcount_offset: int
    refcount_clusters: int
    snapshots: int
    snapshots_offset: int
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    length: int = _V2.size

    @property
    def cluster(self) -> int:
        return 1 << self.cluster_bits


def _qcow2_size(name: str, head: bytes, file_size: int) -> int:
    """The size of the disk in the image, if nothing is wrong with its header."""
    header = _read_header(head)
    fault = "its header is cut off" if header is None else _fault(header, head, file_size)
    if header is None or fault is not None:
        raise RefusedImage(f"cannot use {name}: {fault}", resolution="make a plain, flat qcow2 image of it")
    return header.size


def _read_header(head: bytes) -> _Header | None:
    if len(head) < _V2.size:
        return None
    header = _Header(*_V2.unpack_from(head))
    if header.version < 3:
        return header
    if len(head) < _V2.size + _V3.size:
        return None
    return _Header(*_V2.unpack_from(head), *_V3.unpack_from(head, _V2.size))


def _fault(header: _Header, head: bytes, file_size: int) -> str | None:
    """What is wrong with a header, in words, beginning with the dangerous."""
    if header.magic != _QCOW2 or header.version not in (2, 3):
        return f"it is qcow2 of version {header.version}, not 2 or 3"
    if header.backing_offset or header.backing_size:
        return "it has a backing file"
    if header.incompatible & _EXTERNAL_DATA:
        return "it keeps its data in an external file"
    if header.encryption:
        return "it is encrypted"
    if header.incompatible & _CORRUPT:
        return "it is marked as corrupt"
    unknown = header.incompatible & ~_KNOWN_FEATURES
    if unknown:
        return f"it needs features that are not known here ({unknown:#x})"
    return _shape_fault(header, file_size) or _extension_fault(header, head)


def _shape_fault(header: _Header, file_size: int) -> str | None:
    """Whether sizes and places in the header can be true."""
    least_bits = 14 if header.incompatible & _EXTENDED_L2 else 9
    if not least_bits <= header.cluster_bits <= 21:
        return f"clusters of 2^{header.cluster_bits} bytes are not possible"
    if not 0 < header.size <= LARGEST:
        return f"a disk of {header.size} bytes is not possible"
    entry = 16 if header.incompatible & _EXTENDED_L2 else 8
    needed = -(-header.size // (header.cluster * (header.cluster // entry)))
    if not needed <= header.l1_entries <= _LARGEST_L1 // 8:
        return f"a first table of {header.l1_entries} entries does not fit the disk"
    if not 0 < header.refcount_clusters * header.cluster <= _LARGEST_REFCOUNT_TABLE or header.refcount_order > 6:
        return "its reference counts make no sense"
    if header.snapshots > _MOST_SNAPSHOTS:
        return f"{header.snapshots} internal snapshots are not possible"
    tables = [
        (header.l1_offset, header.l1_entries * 8),
        (header.refcount_offset, header.refcount_clusters * header.cluster),
    ]
    if header.snapshots:
        tables.append((header.snapshots_offset, 40 * header.snapshots))
    for offset, length in tables:
        if offset < header.cluster or offset % header.cluster or offset + length > file_size:
            return "its tables lie outside the file; it may be cut off"
    return None


def _extension_fault(header: _Header, head: bytes) -> str | None:
    """Whether what follows the header leads out of the file."""
    end = min(header.cluster, len(head))
    if header.version == 3:
        if header.length < _V2.size + _V3.size or header.length % 8 or header.length > end:
            return f"a header of {header.length} bytes is not possible"
        packing = head[104] if header.length > 104 else 0
        if packing > 1 or bool(packing) != bool(header.incompatible & _COMPRESSION):
            return "its way of compression is not known here"
    at = header.length
    while at + 8 <= end:
        kind, length = struct.unpack_from(">II", head, at)
        if kind == 0:
            return None
        if kind == _DATA_FILE_NAME:
            return "it names an external data file"
        if kind == _BACKING_FORMAT_NAME:
            return "it names the format of a backing file"
        if kind == _ENCRYPTION:
            return "it is encrypted"
        at += 8 + -(-length // 8) * 8
    return "its header does not end" if at > end else None
