"""The image store in a folder: what it leaves on the disk when uploads die, disks are full and files rot."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from drivers.directory import DirectoryStore
from drivers.errors import DriverError, NotFound, WrongChecksum
from planvirt.deadline import Deadline

MIB = 1 << 20
NOISE = random.Random(1).randbytes(3 * MIB)
ROOT = Path(__file__).parents[2]

PRELUDE = """
import io, os, random, resource, signal, sys
from pathlib import Path
from drivers.directory import DirectoryStore
from drivers.errors import OutOfSpace
from planvirt.deadline import Deadline
store = DirectoryStore("store", Path(sys.argv[1]))
noise = random.Random(1).randbytes(3 << 20)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> DirectoryStore:
    return DirectoryStore("store", root)


def put(store: DirectoryStore, name: str, content: bytes = NOISE) -> Path:
    store.create(name, name="web", format="raw", properties={})
    store.upload(name, io.BytesIO(content), len(content), Deadline())
    path = store.path(name)
    assert path is not None
    return path


def child(code: str, root: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code, str(root), *arguments],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(code: str, root: Path, *arguments: str) -> int:
    process = child(code, root, *arguments)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_opening_a_store_touches_nothing(root: Path, store: DirectoryStore) -> None:
    assert list(store.list()) == []
    assert store.find("web") is None
    assert not root.exists()


def test_images_of_the_same_content_share_one_file(root: Path, store: DirectoryStore) -> None:
    assert put(store, "one") == put(store, "two")
    assert len(files(root / "blobs")) == 1
    store.delete("one")
    assert len(files(root / "blobs")) == 1
    store.delete("two")
    assert files(root / "blobs") == files(root / "tmp") == files(root / "images") == []


def test_zeros_take_no_room(store: DirectoryStore) -> None:
    path = put(store, "one", NOISE + bytes(64 * MIB) + NOISE + bytes(64 * MIB))
    status = path.stat()
    assert status.st_size == 134 * MIB
    assert status.st_blocks * 512 < 8 * MIB


def test_only_the_owner_reads_images(store: DirectoryStore) -> None:
    assert put(store, "one").stat().st_mode & 0o077 == 0


def test_the_operator_may_rename_a_store(root: Path, store: DirectoryStore) -> None:
    put(store, "one")
    (image,) = DirectoryStore("renamed", root).list()
    assert image.store == "renamed"


def test_a_disk_that_does_not_keep_what_is_written_is_found(root: Path, store: DirectoryStore) -> None:
    class Rots(io.BytesIO):
        """Damages what was written of it already, once it has been read to its end."""

        def read(self, size: int | None = -1) -> bytes:
            if self.tell() == len(NOISE):
                (part,) = (root / "tmp").glob("*.part")
                with part.open("r+b") as file:
                    file.write(bytes([NOISE[0] ^ 1]))
            return super().read(size)

    store.create("one", name="web", format="raw", properties={})
    with pytest.raises(WrongChecksum):
        store.upload("one", Rots(NOISE), len(NOISE), Deadline())
    assert files(root / "blobs") == files(root / "tmp") == []
    assert (image := store.get("one")) is not None and image.status == "queued"


def test_a_flipped_bit_is_found(store: DirectoryStore) -> None:
    path = put(store, "one")
    with path.open("r+b") as file:
        file.seek(MIB)
        byte = file.read(1)[0]
        file.seek(MIB)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(WrongChecksum):
        store.verify("one", Deadline())


def test_a_truncated_content_is_found(store: DirectoryStore) -> None:
    os.truncate(put(store, "one"), MIB)
    with pytest.raises(WrongChecksum):
        store.verify("one", Deadline())


def test_a_content_that_is_gone_is_not_found(store: DirectoryStore) -> None:
    put(store, "one").unlink()
    with pytest.raises(NotFound):
        store.verify("one", Deadline())
    with pytest.raises(NotFound), store.open("one"):
        pass


def test_an_upload_heals_a_rotten_content(store: DirectoryStore) -> None:
    os.truncate(put(store, "one"), MIB)
    put(store, "two")
    assert store.verify("one", Deadline()).status == "active"


def test_a_reader_is_not_disturbed_by_a_deletion(store: DirectoryStore) -> None:
    put(store, "one")
    with store.open("one") as file:
        begin = file.read(MIB)
        store.delete("one")
        assert begin + file.read() == NOISE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "\x00\x01",
        '{"id": "one"}',
        '{"id": "two", "name": "web", "format": "raw", "status": "queued"}',
        '{"id": "one", "name": "web", "format": "raw", "status": "odd"}',
        '{"id": "one", "name": "web", "format": "raw", "status": "active"}',
        '{"id": "one", "name": "web", "format": "raw", "status": "active", "size": 1, "checksum": "sha256:../../x"}',
    ],
)
def test_a_damaged_record_is_named_and_not_skipped(root: Path, store: DirectoryStore, text: str) -> None:
    content = put(store, "two")
    record = root / "images" / "one.json"
    record.write_text(text)
    for attempt in (lambda: store.get("one"), store.list, lambda: store.find("web"), lambda: store.delete("two")):
        with pytest.raises(DriverError) as caught:
            attempt()
        assert str(record) in str(caught.value)
    assert content.exists()  # the damaged record may have been about it
    assert (image := store.get("two")) is not None and image.status == "active"
    record.unlink()
    assert [image.id for image in store.list()] == ["two"]


def test_no_room_leaves_nothing_and_says_so(root: Path) -> None:
    code = """
store.create("one", name="web", format="raw", properties={})
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
try:
    store.upload("one", io.BytesIO(noise), len(noise), Deadline())
except OutOfSpace as error:
    assert sys.argv[1] in str(error) and error.resolution
else:
    sys.exit("there was room")
assert store.get("one").status == "queued"
"""
    assert run(code, root) == 0
    assert files(root / "tmp") == files(root / "blobs") == []
    assert put(DirectoryStore("store", root), "one").read_bytes() == NOISE


def test_a_full_disk_leaves_nothing_and_says_so(root: Path) -> None:
    """As above, on a real file system of 2 MiB, where this machine lets us mount one."""
    mounted = subprocess.run(
        ["/usr/bin/unshare", "--user", "--map-root-user", "--mount", "/bin/true"], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("no mounts of our own on this machine")
    root.mkdir()
    code = """
store.create("one", name="web", format="raw", properties={})
store.check()
try:
    store.upload("one", io.BytesIO(noise), len(noise), Deadline())
except OutOfSpace as error:
    assert error.resolution
else:
    sys.exit("there was room")
assert store.get("one").status == "queued", store.get("one")
assert not list(store._tmp.iterdir()), list(store._tmp.iterdir())
store.upload("one", io.BytesIO(noise[:65536]), 65536, Deadline())
assert store.verify("one", Deadline()).size == 65536
(Path(sys.argv[1]) / "filler").write_bytes(noise[: (1 << 20) + (1 << 19)])
try:
    store.check()
except OutOfSpace:
    sys.exit(0)
sys.exit("check saw room")
"""
    script = 'mount -t tmpfs -o size=2m none "$0" && exec "$1" -c "$2" "$0"'
    done = subprocess.run(
        ["/usr/bin/unshare", "--user", "--map-root-user", "--mount", "/bin/sh", "-c", script,
         str(root), sys.executable, PRELUDE + code],
        cwd=ROOT, check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if "mount:" in done.stderr:
        pytest.skip("no mounts of our own on this machine")
    assert done.returncode == 0, done.stderr


DIE_HALF_WAY = """
store.create("one", name="web", format="raw", properties={})
def die(done, total):
    if done >= 2 << 20:
        os.kill(os.getpid(), signal.SIGKILL)
store.upload("one", io.BytesIO(noise), len(noise), Deadline(on_progress=die))
"""


def test_an_upload_that_was_killed_is_no_image_and_can_be_repeated(root: Path, store: DirectoryStore) -> None:
    assert run(DIE_HALF_WAY, root) == -signal.SIGKILL
    image = store.get("one")
    assert image is not None and image.status == "saving"
    assert store.find("one") is None and store.path("one") is None
    assert files(root / "blobs") == []
    assert len(files(root / "tmp")) == 1  # what the dead process wrote
    assert put(store, "one").read_bytes() == NOISE
    assert files(root / "tmp") == []


def test_an_upload_that_was_killed_can_be_deleted(root: Path, store: DirectoryStore) -> None:
    assert run(DIE_HALF_WAY, root) == -signal.SIGKILL
    store.delete("one")
    store.check()
    assert files(root) == ["lock"]


DIE_BETWEEN_CONTENT_AND_RECORD = """
store.create("one", name="web", format="raw", properties={})
class Dying(DirectoryStore):
    def _write(self, image):
        if image.status == "active":
            os.kill(os.getpid(), signal.SIGKILL)
        super()._write(image)
Dying("store", Path(sys.argv[1])).upload("one", io.BytesIO(noise), len(noise), Deadline())
"""


def test_a_content_that_never_got_its_record_is_swept(root: Path, store: DirectoryStore) -> None:
    assert run(DIE_BETWEEN_CONTENT_AND_RECORD, root) == -signal.SIGKILL
    assert len(files(root / "blobs")) == 1
    assert store.find("one") is None
    put(store, "two", b"another")
    assert len(files(root / "blobs")) == 1
    assert store.path("two") is not None


def test_sweeping_spares_a_content_that_others_have(root: Path, store: DirectoryStore) -> None:
    put(store, "shared")
    assert run(DIE_BETWEEN_CONTENT_AND_RECORD, root) == -signal.SIGKILL
    store.check()
    assert store.verify("shared", Deadline()).status == "active"


def test_sweeping_spares_an_upload_that_goes_on(root: Path, store: DirectoryStore) -> None:
    class Paused(io.BytesIO):
        """Stops half-way until it is told to go on."""

        def __init__(self) -> None:
            super().__init__(NOISE)
            self.half_way, self.go_on = threading.Event(), threading.Event()

        def read(self, size: int | None = -1) -> bytes:
            if self.tell() >= MIB:
                self.half_way.set()
                assert self.go_on.wait(30)
            return super().read(size)

    store.create("slow", name="web", format="raw", properties={})
    data = Paused()
    upload = threading.Thread(target=store.upload, args=("slow", data, len(NOISE), Deadline()))
    upload.start()
    assert data.half_way.wait(30)
    put(DirectoryStore("store", root), "quick", b"quick")
    data.go_on.set()
    upload.join()
    assert store.verify("slow", Deadline()).size == len(NOISE)


def test_an_image_deleted_during_its_upload_stays_deleted(root: Path, store: DirectoryStore) -> None:
    class Deletes(io.BytesIO):
        """Deletes the image while it is read."""

        def read(self, size: int | None = -1) -> bytes:
            store.delete("one")
            return super().read(size)

    store.create("one", name="web", format="raw", properties={})
    with pytest.raises(NotFound):
        store.upload("one", Deletes(NOISE), len(NOISE), Deadline())
    assert files(root) == ["lock"]


def test_processes_upload_and_delete_at_the_same_time(root: Path, store: DirectoryStore) -> None:
    put(store, "kept")
    code = """
for turn in range(15):
    name = f"{sys.argv[2]}-{turn}"
    store.create(name, name="web", format="raw", properties={})
    store.upload(name, io.BytesIO(noise), len(noise), Deadline())
    assert store.verify(name, Deadline()).size == len(noise)
    if turn % 3:
        store.delete(name)
"""
    processes = [child(code, root, str(number)) for number in range(4)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert len(store.list()) == 1 + 4 * 5
    assert store.verify("kept", Deadline()).status == "active"
    assert len(files(root / "blobs")) == 1 and files(root / "tmp") == []


def test_a_store_that_is_no_folder_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = DirectoryStore("store", tmp_path / "file")
    for attempt in (store.check, lambda: store.create("one", name="web", format="raw", properties={})):
        with pytest.raises(DriverError) as caught:
            attempt()
        assert str(tmp_path / "file") in str(caught.value) + caught.value.resolution


def test_a_record_is_json_that_a_person_can_read(root: Path, store: DirectoryStore) -> None:
    put(store, "one")
    record = json.loads((root / "images" / "one.json").read_text())
    assert (record["id"], record["name"], record["status"], record["size"]) == ("one", "web", "active", len(NOISE))
