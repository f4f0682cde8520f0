"""The bytes of a simulated volume: small, but a file that qemu-img reads, with the volume's content at its start."""

import hashlib
import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from drivers.errors import WrongChecksum
from planvirt.deadline import Deadline

LARGEST_CONTENT = 1 << 16
_CLUSTER = 1 << 16
_CHUNK = 1 << 20
_COPIED = 1 << 63
_COMPRESSED = 1 << 62
_OFFSET = 0x00FF_FFFF_FFFF_FE00
_L2_COVERS = _CLUSTER * (_CLUSTER // 8)
_BACKING_FORMAT = 0xE2792ACA
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")


def qcow2(capacity: int, content: bytes, base: str | None) -> bytes:
    """A version 3 image of `capacity` bytes that begins with `content`; with `base`, one that has a backing file."""
    l1_entries = max(1, -(-capacity // _L2_COVERS))
    l1_clusters = -(-l1_entries * 8 // _CLUSTER)
    l2_at = (3 + l1_clusters) * _CLUSTER
    data_at = l2_at + _CLUSTER

    extensions = b"" if base is None else struct.pack(">II5s3x", _BACKING_FORMAT, 5, b"qcow2")
    extensions += bytes(8)
    name = (base or "").encode()
    backing_at = _HEADER.size + len(extensions) if name else 0
    header = _HEADER.pack(
        b"QFI\xfb", 3, backing_at, len(name), 16, capacity, 0, l1_entries, 3 * _CLUSTER,
        _CLUSTER, 1, 0, 0, 0, 0, 0, 4, _HEADER.size,
    )  # fmt: skip

    clusters = 3 + l1_clusters + (2 if content else 0)
    file = bytearray(clusters * _CLUSTER)
    file[: len(header)] = header
    file[len(header) : len(header) + len(extensions)] = extensions
    if name:
        file[backing_at : backing_at + len(name)] = name
    struct.pack_into(">Q", file, _CLUSTER, 2 * _CLUSTER)
    struct.pack_into(f">{clusters}H", file, 2 * _CLUSTER, *([1] * clusters))
    if content:
        struct.pack_into(">Q", file, 3 * _CLUSTER, l2_at | _COPIED)
        struct.pack_into(">Q", file, l2_at, data_at | _COPIED)
        file[data_at : data_at + len(content)] = content
    return bytes(file)


def qcow2_content(path: Path) -> bytes | None:
    """What stands at the start of the disk in a flat image that holds nothing else; None for any other file."""
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size:
            return None
        magic, _, backing, _, bits, _, _, l1_entries, l1_at, *_ = _HEADER.unpack(head)
        if magic != b"QFI\xfb" or backing or 1 << bits != _CLUSTER or l1_entries * 8 > LARGEST_CONTENT:
            return None
        l2_at = _only_entry(file, l1_at, l1_entries)
        data_at = l2_at and _only_entry(file, l2_at, _CLUSTER // 8)
        if not data_at:
            return b"" if l2_at == 0 or data_at == 0 else None
        file.seek(data_at)
        return file.read(_CLUSTER).rstrip(b"\0")


def _only_entry(file: BinaryIO, at: int, entries: int) -> int | None:
    """Where the first entry of a table points; None when others point anywhere, or it is compressed."""
    file.seek(at)
    first, *others = struct.unpack(f">{entries}Q", file.read(entries * 8).ljust(entries * 8, b"\0"))
    if any(others) or first & _COMPRESSED:
        return None
    return int(first & _OFFSET)


def raw(capacity: int, content: bytes) -> BinaryIO:
    """A stream of `capacity` bytes: the content, and zeros after it."""
    return io.BufferedReader(_Padded(capacity, content))


def raw_content(chunks: Iterator[bytes]) -> bytes | None:
    """What stands before the zeros at the end of a raw file; None when that is too much to keep."""
    kept = b""
    for chunk in chunks:
        room = LARGEST_CONTENT - len(kept)
        kept += chunk[:room]
        if chunk[room:].strip(b"\0"):
            return None
    return kept.rstrip(b"\0")


def read_file(path: Path, sha256: str, deadline: Deadline) -> tuple[bytes, int]:
    """What a volume keeps of a file: its content if that is small, otherwise its hash; and the file's size."""
    digest = hashlib.sha256()
    size = path.stat().st_size

    def chunks(file: BinaryIO) -> Iterator[bytes]:
        done = 0
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            deadline.progress(done, size)
            yield chunk

    with path.open("rb") as file:
        stream = chunks(file)
        content = raw_content(stream)
        for _ in stream:
            pass
    if digest.hexdigest() != sha256:
        raise WrongChecksum(
            f"cannot import {path}: it has changed since it was checked",
            details=f"sha256 is {digest.hexdigest()[:16]}…, expected {sha256[:16]}…",
        )
    of_a_disk = qcow2_content(path)
    if of_a_disk is not None:
        return of_a_disk, size
    is_qcow2 = content is not None and content.startswith(b"QFI")
    return (digest.digest() if content is None or is_qcow2 else content), size


class _Padded(io.RawIOBase):
    def __init__(self, capacity: int, content: bytes) -> None:
        self._left = capacity
        self._content = io.BytesIO(content[:capacity])

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self._left)
        piece = self._content.read(size)
        buffer[:size] = piece + bytes(size - len(piece))
        self._left -= size
        return size
