"""Images from outside: good ones of every kind pass, everything that leads out of its file or lies is refused."""

import hashlib
import os
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from drivers.errors import NotFound, WrongChecksum
from drivers.image_file import RefusedImage, inspect
from drivers.second_look import objection
from drivers.simulated.disk_file import qcow2
from planvirt.deadline import Deadline, DeadlinePassed

MIB = 1 << 20
GIB = 1 << 30

# Where each field of the header stands, and how wide it is.
FIELDS = {
    "version": (4, "I"), "backing_offset": (8, "Q"), "backing_size": (16, "I"), "cluster_bits": (20, "I"),
    "size": (24, "Q"), "encryption": (32, "I"), "l1_entries": (36, "I"), "l1_offset": (40, "Q"),
    "refcount_offset": (48, "Q"), "refcount_clusters": (56, "I"), "snapshots": (60, "I"), "snapshots_offset": (64, "Q"),
    "incompatible": (72, "Q"), "refcount_order": (96, "I"), "length": (100, "I"),
    "extension": (104, "I"), "extension_length": (108, "I"),
}  # fmt: skip


def qemu_img(*arguments: object) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True)  # noqa: S607 - the one in PATH


def forged(folder: Path, fields: Mapping[str, int], *, size: int = GIB) -> Path:
    """A good image, but for the given fields of its header."""
    data = bytearray(qcow2(size, b"content", None))
    for name, value in fields.items():
        at, width = FIELDS[name]
        struct.pack_into(f">{width}", data, at, value)
    path = folder / "forged.qcow2"
    path.write_bytes(data)
    return path


def plain(path: Path, declared: str | None = None, checksum: str | None = None) -> tuple[str, int]:
    image = inspect(path, checksum=checksum, declared_format=declared)
    assert image.path == path
    assert image.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    return image.format, image.virtual_size


@pytest.mark.parametrize(
    "options",
    [
        "compat=1.1",
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=2M",
        "extended_l2=on",
        "compression_type=zstd",
        "lazy_refcounts=on",
        "refcount_bits=1",
        "refcount_bits=64",
        "preallocation=metadata",
    ],
)
def test_what_qemu_makes_passes(tmp_path: Path, options: str) -> None:
    path = tmp_path / "image"
    qemu_img("create", "-f", "qcow2", "-o", options, path, "1G")
    assert plain(path) == plain(path, "qcow2") == ("qcow2", GIB)


def test_packed_clusters_and_internal_snapshots_pass(tmp_path: Path) -> None:
    raw, path = tmp_path / "raw", tmp_path / "image"
    raw.write_bytes(b"text" * MIB)
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", raw, path)
    qemu_img("snapshot", "-c", "before", path)
    assert plain(path) == ("qcow2", 4 * MIB)


def test_the_unchanged_forgery_passes_so_that_the_forged_fields_are_what_is_refused(tmp_path: Path) -> None:
    assert plain(forged(tmp_path, {})) == ("qcow2", GIB)
    assert plain(forged(tmp_path, {"incompatible": 1})) == ("qcow2", GIB)  # it was not closed well, no more


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"version": 1}, "version 1"),
        ({"version": 4}, "version 4"),
        ({"backing_offset": 512, "backing_size": 11}, "backing file"),
        ({"backing_offset": 512}, "backing file"),
        ({"backing_size": 11}, "backing file"),
        ({"version": 2, "backing_offset": 512, "backing_size": 11}, "backing file"),
        ({"extension": 0xE2792ACA, "extension_length": 5}, "backing file"),
        ({"incompatible": 1 << 2}, "external file"),
        ({"extension": 0x44415441, "extension_length": 8}, "external data file"),
        ({"encryption": 1}, "encrypted"),
        ({"encryption": 2}, "encrypted"),
        ({"extension": 0x0537BE77, "extension_length": 16}, "encrypted"),
        ({"incompatible": 1 << 1}, "corrupt"),
        ({"incompatible": 1 << 5}, "not known"),
        ({"incompatible": 1 << 63}, "not known"),
        ({"incompatible": 1 << 3}, "compression"),
        ({"size": 0}, "not possible"),
        ({"size": (64 << 40) + 512}, "not possible"),
        ({"size": (1 << 64) - 1}, "not possible"),
        ({"cluster_bits": 8}, "clusters"),
        ({"cluster_bits": 22}, "clusters"),
        ({"cluster_bits": (1 << 32) - 1}, "clusters"),
        ({"l1_entries": 0}, "first table"),
        ({"l1_entries": 1}, "first table"),
        ({"l1_entries": (1 << 32) - 1}, "first table"),
        ({"l1_offset": 0}, "outside"),
        ({"l1_offset": 512}, "outside"),
        ({"l1_offset": 1 << 40}, "outside"),
        ({"l1_offset": (1 << 64) - (1 << 16)}, "outside"),
        ({"refcount_offset": 0}, "outside"),
        ({"refcount_offset": 1 << 40}, "outside"),
        ({"refcount_clusters": 0}, "reference counts"),
        ({"refcount_clusters": 1 << 20}, "reference counts"),
        ({"refcount_order": 7}, "reference counts"),
        ({"snapshots": 65537}, "snapshots"),
        ({"snapshots": 1, "snapshots_offset": 1 << 40}, "outside"),
        ({"length": 0}, "header"),
        ({"length": 100}, "header"),
        ({"length": 108}, "header"),
        ({"length": 1 << 31}, "header"),
        ({"extension": 0x12345678, "extension_length": (1 << 32) - 1}, "does not end"),
    ],
)
def test_a_forged_header_is_refused(tmp_path: Path, fields: dict[str, int], words: str) -> None:
    path = forged(tmp_path, fields)
    with pytest.raises(RefusedImage, match=words) as caught:
        inspect(path, checksum=None, declared_format=None)
    assert str(path) in caught.value.brief


def test_real_backing_and_data_files_are_refused(tmp_path: Path) -> None:
    base, overlay, external = tmp_path / "base", tmp_path / "overlay", tmp_path / "external"
    qemu_img("create", "-f", "qcow2", base, "1G")
    qemu_img("create", "-f", "qcow2", "-b", base, "-F", "qcow2", overlay)
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'},data_file_raw=on", external, "1G")
    for path, words in ((overlay, "backing file"), (external, "external file")):
        with pytest.raises(RefusedImage, match=words):
            inspect(path, checksum=None, declared_format="qcow2")
    qemu_img("rebase", "-f", "qcow2", "-b", "", overlay)
    assert plain(overlay) == ("qcow2", GIB)  # it stands alone now


@pytest.mark.parametrize("kept", [4, 60, 72, 103, 110, MIB // 16, 3 * MIB // 16])
def test_a_cut_off_image_is_refused(tmp_path: Path, kept: int) -> None:
    path = forged(tmp_path, {})
    os.truncate(path, kept)
    with pytest.raises(RefusedImage):
        inspect(path, checksum=None, declared_format=None)


@pytest.mark.parametrize("kind", ["vmdk", "vdi", "vhdx", "qed", "vpc", "parallels"])
@pytest.mark.parametrize("declared", [None, "raw", "qcow2"])
def test_other_formats_are_refused_whatever_the_plan_says(tmp_path: Path, kind: str, declared: str | None) -> None:
    path = tmp_path / "image"
    qemu_img("create", "-f", kind, path, "64M")
    with pytest.raises(RefusedImage, match=f"{kind} image"):
        inspect(path, checksum=None, declared_format=declared)


@pytest.mark.parametrize(
    ("begin", "words"),
    [
        (b'# Disk DescriptorFile\nversion=1\nRW 63 FLAT "/etc/shadow" 0\n', "vmdk"),
        (b'# harmless\nversion=1\nRW 63 FLAT "/etc/shadow" 0\n', "vmdk"),
        (b'# harmless\n  \nversion=2\r\nRW 63 FLAT "/etc/shadow" 0\n', "vmdk"),
        (b'\n\nversion=3\ncreateType="custom"\nRW 63 FLAT "/etc/shadow" 0\n', "vmdk"),
        (b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0", "cloop"),
        (b"LUKS\xba\xbe\x00\x02", "luks"),
        (b"QFI\xfb", "cut off"),
        (b"QFI\x00" + bytes(100), "version 0"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\xfd7zXZ\x00", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\n <HTML>not found", "web page"),
        (b"", "0 bytes"),
    ],
)
def test_what_is_no_disk_is_refused(tmp_path: Path, begin: bytes, words: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(begin)
    with pytest.raises(RefusedImage, match=words):
        inspect(path, checksum=None, declared_format="qcow2" if begin.startswith(b"QFI") else "raw")


def test_an_extent_elsewhere_is_refused(tmp_path: Path) -> None:
    qemu_img("create", "-f", "vmdk", "-o", "subformat=monolithicFlat", tmp_path / "image", "1M")
    assert b"FLAT" in (tmp_path / "image").read_bytes()
    with pytest.raises(RefusedImage, match="vmdk image"):
        inspect(tmp_path / "image", checksum=None, declared_format="raw")


def test_a_text_that_qemu_takes_for_the_description_of_a_disk_is_refused(tmp_path: Path) -> None:
    """Without the words that such a text usually begins with."""
    path = tmp_path / "image"
    (tmp_path / "extent").write_bytes(bytes(MIB))
    path.write_text('# harmless\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'
                    'RW 2048 FLAT "extent" 0\n')  # fmt: skip
    told = subprocess.run(["qemu-img", "info", path], check=True, capture_output=True, text=True)  # noqa: S607
    assert "file format: vmdk" in told.stdout
    with pytest.raises(RefusedImage, match="vmdk image"):
        inspect(path, checksum=None, declared_format="raw")


def test_a_flood_of_blanks_is_judged_at_once(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b" \n" * MIB)
    assert plain(path, "raw") == ("raw", 2 * MIB)


DOS = {510: b"\x55\xaa", 446: bytes.fromhex("80000100 0cfeffff 00000000 00100000")}
GPT = {510: b"\x55\xaa", 446: bytes.fromhex("00000200 eeffffff 01000000 ff070000"), 512: b"EFI PART"}
BOOT_SECTOR = {0: b"\xeb\x63\x90", 510: b"\x55\xaa"}
ISO = {32768: b"\1CD001"}
TWO_TABLES = GPT | {462: bytes.fromhex("00000100 0cfeffff 00100000 00100000")}


def put(data: bytes, pieces: Mapping[int, bytes]) -> bytes:
    changed = bytearray(data)
    for at, piece in pieces.items():
        changed[at : at + len(piece)] = piece
    return bytes(changed)


@pytest.mark.parametrize("pieces", [DOS, GPT, BOOT_SECTOR, ISO, ISO | DOS, TWO_TABLES])
def test_disks_with_partitions_and_discs_pass_as_raw(tmp_path: Path, pieces: Mapping[int, bytes]) -> None:
    path = tmp_path / "image"
    path.write_bytes(put(bytes(MIB), pieces))
    assert plain(path) == plain(path, "raw") == ("raw", MIB)


@pytest.mark.parametrize(("pieces", "words"), [(ISO, "qcow2 and as iso"), (DOS, "qcow2 and as gpt")])
def test_a_file_that_is_two_things_at_once_is_refused(tmp_path: Path, pieces: Mapping[int, bytes], words: str) -> None:
    path = forged(tmp_path, {})
    path.write_bytes(put(path.read_bytes(), pieces))
    with pytest.raises(RefusedImage, match=words):
        inspect(path, checksum=None, declared_format="qcow2")


def test_the_second_reader_finds_the_dangerous_by_itself(tmp_path: Path) -> None:
    """It would do so if the first one had not."""
    base, overlay, external, extents = (tmp_path / name for name in ("base", "overlay", "external", "extents"))
    qemu_img("create", "-f", "raw", base, "1M")
    qemu_img("create", "-f", "qcow2", "-b", base, "-F", "raw", overlay)
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'},data_file_raw=on", external, "1G")
    qemu_img("create", "-f", "vmdk", "-o", "subformat=monolithicFlat", extents, "1M")
    assert "backing file" in (objection(overlay.read_bytes()[:65536], "qcow2") or "")
    assert "data file" in (objection(external.read_bytes()[:65536], "qcow2") or "")
    assert objection(extents.read_bytes(), "raw") == "it can be read as raw and as vmdk"
    assert objection(overlay.read_bytes(), "raw") == "it can be read as raw and as qcow2"
    assert objection(b"LUKS\xba\xbe\0\1" + bytes(65528), "raw") == "it can be read as raw and as luks"


def test_what_the_second_reader_stumbles_over_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"text" * 256 + b"\xff" * MIB)
    with pytest.raises(RefusedImage, match="second reader"):
        inspect(path, checksum=None, declared_format="raw")


def test_a_raw_disk_is_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"\xeb\x63\x90" + bytes(MIB))
    assert plain(path) == plain(path, "raw") == ("raw", MIB + 512)  # a guest sees whole sectors


def test_an_absurd_raw_disk_is_refused_before_it_is_read_for_hours() -> None:
    """In memory, as few file systems have such large files."""
    path = Path("/proc/self/fd") / str(os.memfd_create("image"))
    os.truncate(path, (64 << 40) + 512)
    try:
        with pytest.raises(RefusedImage, match="not possible"):
            inspect(path, checksum=None, declared_format="raw", deadline=Deadline(5.0))
    finally:
        os.close(int(path.name))


def test_a_format_that_is_not_the_declared_one_is_refused(tmp_path: Path) -> None:
    """A raw disk whose guest wrote a qcow2 header into it, with a backing file, is the classic way to read the host."""
    path = forged(tmp_path, {"backing_offset": 512, "backing_size": 11})
    with pytest.raises(RefusedImage, match="it is qcow2, but the plan says raw"):
        inspect(path, checksum=None, declared_format="raw")
    path.write_bytes(bytes(MIB))
    with pytest.raises(RefusedImage, match="it is raw, but the plan says qcow2"):
        inspect(path, checksum=None, declared_format="qcow2")


@pytest.mark.parametrize("kind", ["sha256", "sha512"])
def test_checksums_are_compared(tmp_path: Path, kind: str) -> None:
    path = forged(tmp_path, {})
    right = hashlib.new(kind, path.read_bytes()).hexdigest()
    assert plain(path, checksum=f"{kind}:{right}") == ("qcow2", GIB)
    assert plain(path, checksum=f"{kind}:{right.upper()}") == ("qcow2", GIB)
    wrong = right[:-1] + ("0" if right[-1] != "0" else "1")
    for text in (wrong, wrong[::-1]):
        with pytest.raises(WrongChecksum) as caught:
            inspect(path, checksum=f"{kind}:{text}", declared_format=None)
        assert str(path) in caught.value.brief
        assert right[:12] in caught.value.details and text[:12] in caught.value.details
        assert right not in caught.value.details  # shortened


@pytest.mark.parametrize(
    "text", ["", "abc", "md5:" + "0" * 32, "sha256:" + "0" * 63, "sha512:" + "0" * 64, "sha256:xyz"]
)
def test_what_is_no_checksum_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(RefusedImage, match="no checksum"):
        inspect(forged(tmp_path, {}), checksum=text, declared_format=None)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(RefusedImage, match="no regular file"):
            inspect(path, checksum=None, declared_format=None)
    with pytest.raises(NotFound):
        inspect(tmp_path / "nothing", checksum=None, declared_format=None)


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(2 * MIB))

    def grow(done: int, _total: int) -> None:
        if done == MIB:
            os.truncate(path, 4 * MIB)

    with pytest.raises(RefusedImage, match="changed"):
        inspect(path, checksum=None, declared_format="raw", deadline=Deadline(on_progress=grow))


def test_inspection_stops_when_nobody_waits(tmp_path: Path) -> None:
    with pytest.raises(DeadlinePassed):
        inspect(forged(tmp_path, {}), checksum=None, declared_format=None, deadline=Deadline(0.0))
