"""The Glance store on a real Glance: what stands there afterwards, and what images of others are to it."""

import hashlib
import io
import random
import signal
import socket
import subprocess
import sys
import time
import tracemalloc
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drivers.errors import DriverError, NotFound, OutOfSpace, Transient, WrongChecksum
from drivers.glance.store import GlanceStore
from drivers.image_store import StoredImage
from planvirt.config import StoreConfig
from planvirt.deadline import Deadline
from planvirt.errors import Conflict
from planvirt.journal.transitions import RunState
from tests.drivers.glance_server import QUOTA, Glance
from tests.drivers.ports import free_ports
from tests.flows.yard import Yard

pytestmark = pytest.mark.real

MIB = 1 << 20
NOISE = random.Random(1).randbytes(3 * MIB + 17)
OTHER = random.Random(2).randbytes(MIB)
ID = "5b5f1e0e-52a5-4f5e-8f4e-1f2f3a4b5c6d"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(glance: Glance) -> GlanceStore:
    return GlanceStore("far", glance.settings(), {})


@pytest.fixture(name="id")
def new_id() -> str:
    """An id as planvirt chooses them."""
    return str(uuid.uuid4())


def create(store: GlanceStore, id: str, name: str = "web", **properties: str) -> StoredImage:
    return store.create(id, name=name, format="raw", properties=properties)


def put(store: GlanceStore, id: str, content: bytes = NOISE, name: str = "web") -> StoredImage:
    create(store, id, name)
    return store.upload(id, io.BytesIO(content), len(content), Deadline())


def read(store: GlanceStore, id: str) -> bytes:
    with store.open(id) as file:
        return file.read()


def by_another_tool(glance: Glance, content: bytes, name: str = "web", **attributes: Any) -> str:
    """An image as others make them."""
    body = {"name": name, "disk_format": "raw", "container_format": "bare"} | attributes
    answer = glance.ask("POST", "images", "member", "admin", json=body)
    assert answer.status_code == 201, answer.text
    made: str = answer.json()["id"]
    headers = {"Content-Type": "application/octet-stream"}
    assert glance.ask("PUT", f"images/{made}/file", data=content, headers=headers).status_code == 204
    return made


# What stands in Glance


def test_an_image_is_one_that_openstack_understands(glance: Glance, store: GlanceStore, id: str) -> None:
    marks = {"image_type": "snapshot", "instance_uuid": ID, "planvirt_plan": "tier", "planvirt_commit": ""}
    create(store, id, "web-2026-11-24", **marks)
    image = store.upload(id, io.BytesIO(NOISE), None, Deadline())
    (found,) = glance.images()
    sha256 = hashlib.sha256(NOISE).hexdigest()
    expected = marks | {
        "id": id,
        "name": "web-2026-11-24",
        "status": "active",
        "visibility": "private",
        "owner": glance.project,
        "disk_format": "raw",
        "container_format": "bare",
        "size": len(NOISE),
        "os_hash_value": hashlib.sha512(NOISE).hexdigest(),
        "planvirt_sha256": sha256,
    }
    assert {key: found[key] for key in expected} == expected
    assert (image.id, image.checksum, image.properties) == (id, f"sha256:{sha256}", marks)


@pytest.mark.parametrize("visibility", ["private", "shared", "community"])
def test_the_visibility_is_the_operators_choice(glance: Glance, id: str, visibility: str) -> None:
    store = GlanceStore("far", glance.settings(visibility=visibility), {})
    store.check()
    put(store, id)
    assert [image["visibility"] for image in glance.images()] == [visibility]


def test_properties_are_no_orders(glance: Glance, store: GlanceStore, id: str) -> None:
    orders = {
        "visibility": "public",
        "protected": "true",
        "owner": "somebody",
        "status": "active",
        "hw_qemu_guest_agent": "yes",
        "planvirt_id": "two",
        "planvirt_sha256": "0" * 64,
        "planvirt_x_y": "z",
        "os_glance_importing_to_stores": "local",
        "a/b": "~1",
    }
    made = create(store, id, **orders)
    assert made.properties == orders and made.id == id and made.status == "queued"
    assert put(store, id).properties == orders
    (found,) = glance.images()
    assert (found["visibility"], found["protected"], found["owner"]) == ("private", False, glance.project)
    assert "hw_qemu_guest_agent" not in found
    assert store.get("two") is None
    store.delete(id)
    assert glance.images() == []


@pytest.mark.parametrize("id", [ID, "three"], ids=["a uuid", "another id"])
def test_an_id_can_be_used_again_although_glance_forbids_it(glance: Glance, id: str) -> None:
    store = GlanceStore("far", glance.settings(), {})
    seen = set()
    for content in (NOISE, OTHER, NOISE):
        put(store, id, content)
        assert read(store, id) == content
        (image,) = store.list()
        assert image.id == id
        (found,) = glance.images()
        seen.add(found["id"])
        assert store.get(found["id"]) == image
        store.delete(id)
        assert glance.images() == [] and store.get(id) is None
    assert len(seen) == 3


def test_processes_that_create_one_image_make_one(glance: Glance, store: GlanceStore, id: str) -> None:
    for _ in range(2):  # the second time its UUID is used up
        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(lambda _: create(GlanceStore("far", glance.settings(), {}), id), range(8)))
        assert len(set(map(repr, made))) == 1
        assert len(glance.images()) == 1
        store.delete(id)


def test_projects_do_not_meet(glance: Glance, store: GlanceStore, id: str) -> None:
    neighbour = GlanceStore("far", glance.elsewhere().settings(), {})
    for each in (id, "one"):
        put(neighbour, each, NOISE)
        assert store.get(each) is None and store.find("web") is None
        put(store, each, OTHER)
        assert read(store, each) == OTHER and read(neighbour, each) == NOISE
        store.delete(each)
        assert read(neighbour, each) == NOISE
    assert [image.id for image in neighbour.list()] == ["one", id]


# Images of others


def test_an_image_of_another_tool_has_the_checksum_of_glance(glance: Glance, store: GlanceStore) -> None:
    made = by_another_tool(glance, NOISE, "debian-12", os_distro="debian")
    image = store.find("debian-12")
    assert image is not None and image == store.get(made) == store.find(made)
    assert image.checksum == f"sha512:{hashlib.sha512(NOISE).hexdigest()}"
    assert (image.id, image.size, image.status) == (made, len(NOISE), "active")
    assert read(store, made) == NOISE
    assert store.verify(made, Deadline()) == image


def test_the_same_upload_into_an_image_of_another_tool_is_well(glance: Glance, store: GlanceStore) -> None:
    made = by_another_tool(glance, NOISE)
    with pytest.raises(Conflict):
        store.upload(made, io.BytesIO(OTHER), None, Deadline())
    image = store.upload(made, io.BytesIO(NOISE), None, Deadline())
    assert image.checksum == f"sha256:{hashlib.sha256(NOISE).hexdigest()}"
    assert store.get(made) == image


def test_published_images_can_be_used_and_not_deleted(glance: Glance, store: GlanceStore) -> None:
    publisher = glance.elsewhere()
    made = by_another_tool(publisher, NOISE, f"debian-{glance.project}", visibility="public", planvirt_id="one")
    image = store.find(f"debian-{glance.project}")
    assert image is not None and image.id == made  # what others write into their images is no id of ours
    assert store.get("one") is None
    assert made in [each.id for each in store.list()]
    with pytest.raises(DriverError, match="403"):
        store.delete(made)
    assert read(store, made) == NOISE
    publisher.ask("DELETE", f"images/{made}")


def test_an_administrator_does_not_take_the_images_of_others_for_his_own(glance: Glance) -> None:
    stranger = by_another_tool(glance.elsewhere(), NOISE)
    store = GlanceStore("far", glance.settings("member", "admin"), {})
    assert store.find("web") is None
    assert stranger not in [image.id for image in store.list()]
    put(store, "one", OTHER)
    assert read(store, "one") == OTHER
    assert (image := store.find("web")) is not None and image.id == "one"


def test_a_name_is_never_a_query(glance: Glance, store: GlanceStore) -> None:
    names = [
        "in:web",
        "eq:web",
        "in:a,b",
        "web",
        'we"b',
        "we\\b",
        "a&status=queued",
        "a#b",
        "../web",
        "%77eb",
        "Web",
        "ä ü",
    ]
    for number, name in enumerate(names):
        put(store, f"image-{number}", bytes([number]), name)
    for number, name in enumerate(names):
        found = store.find(name)
        assert found is not None and found.id == f"image-{number}"
    for name in ("in:web,Web", "neq:web", "2026-01-01T00:00:00Z", "we_b", "*", "%"):
        assert store.find(name) is None


def test_lists_have_as_many_pages_as_needed(glance: Glance) -> None:
    store = GlanceStore("far", glance.settings(), {}, page=2)
    for number in range(5):
        put(store, f"image-{number}", b"x", name="web" if number else "old")
    assert [image.id for image in store.list()] == [f"image-{number}" for number in (4, 3, 2, 1, 0)]
    found = store.find("old")
    assert found is not None and found.id == "image-0"


# States that planvirt does not make


def test_a_protected_image_stays(glance: Glance, store: GlanceStore, id: str) -> None:
    put(store, id)
    change = [{"op": "replace", "path": "/protected", "value": True}]
    headers = {"Content-Type": "application/openstack-images-v2.1-json-patch"}
    assert glance.ask("PATCH", f"images/{id}", json=change, headers=headers).status_code == 200
    with pytest.raises(Conflict, match="protected") as caught:
        store.delete(id)
    assert f"openstack image set --unprotected {id}" in caught.value.resolution
    assert read(store, id) == NOISE


def test_a_deactivated_image_is_there_and_cannot_be_read(glance: Glance, store: GlanceStore, id: str) -> None:
    image = put(store, id)
    assert glance.ask("POST", f"images/{id}/actions/deactivate", "admin").status_code == 204
    assert store.get(id) == image
    for attempt in (lambda: read(store, id), lambda: store.verify(id, Deadline())):
        with pytest.raises(Conflict, match="deactivated"):
            attempt()
    assert glance.ask("POST", f"images/{id}/actions/reactivate", "admin").status_code == 204
    assert read(store, id) == NOISE


@contextmanager
def somebody_uploading(glance: Glance, id: str, content: bytes) -> Iterator[socket.socket]:
    """An upload whose first bytes have arrived."""
    with socket.create_connection(("127.0.0.1", glance.port), timeout=30) as connection:
        headers = glance.headers() | {"Content-Type": "application/octet-stream", "Content-Length": str(len(content))}
        lines = [
            f"PUT /v2/images/{id}/file HTTP/1.1",
            "Host: x",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + content[:MIB])
        while glance.ask("GET", f"images/{id}").json()["status"] != "saving":
            time.sleep(0.02)
        yield connection


def test_an_upload_that_somebody_has_begun_is_a_conflict_in_the_end(glance: Glance, id: str) -> None:
    store = GlanceStore("far", glance.settings(), {}, patience=0.3)
    assert create(store, id).status == "queued"
    with somebody_uploading(glance, id, NOISE):
        image = store.get(id)
        assert image is not None and (image.status, image.size, image.checksum) == ("saving", None, None)
        assert store.find(id) is None and store.find("web") is None
        with pytest.raises(Conflict, match="saving") as caught:
            store.upload(id, io.BytesIO(NOISE), None, Deadline())
        assert f"openstack image delete {id}" in caught.value.resolution
        store.delete(id)
        assert store.get(id) is None
        assert put(store, id, OTHER).status == "active"
    assert read(store, id) == OTHER


def test_the_upload_of_somebody_else_is_waited_for(glance: Glance, store: GlanceStore, id: str) -> None:
    create(store, id)
    with somebody_uploading(glance, id, NOISE) as connection, ThreadPoolExecutor(1) as pool:
        ours = pool.submit(store.upload, id, io.BytesIO(NOISE), None, Deadline())
        connection.sendall(NOISE[MIB:])
        assert ours.result(30).size == len(NOISE)
    assert read(store, id) == NOISE


# Uploads that end badly


def assert_queued(glance: Glance, store: GlanceStore, id: str) -> None:
    """There is a record without data, no data on the server's disk, and the image can be uploaded after all."""
    image = store.get(id)
    assert image is not None and (image.status, image.size, image.checksum) == ("queued", None, None)
    assert [each["status"] for each in glance.images()] == ["queued"]
    for _ in range(100):  # the file goes a moment after the answer
        if glance.contents() == []:
            break
        time.sleep(0.02)
    assert glance.contents() == []
    store.upload(id, io.BytesIO(OTHER), None, Deadline())
    assert read(store, id) == OTHER


def test_an_image_beyond_the_quota_leaves_nothing(glance: Glance, store: GlanceStore, id: str) -> None:
    class Zeros(io.RawIOBase):
        left = QUOTA + MIB

        def read(self, size: int = -1) -> bytes:
            self.left -= (size := min(size, self.left))
            return bytes(size)

    create(store, id)
    with pytest.raises(OutOfSpace, match="quota") as caught:
        store.upload(id, Zeros(), None, Deadline())  # type: ignore[arg-type] # a raw stream reads too
    assert caught.value.resolution
    assert_queued(glance, store, id)


def test_data_of_another_format_leaves_nothing(glance: Glance, store: GlanceStore, id: str) -> None:
    store.create(id, name="web", format="qcow2", properties={})
    with pytest.raises(DriverError, match="does not match"):
        store.upload(id, io.BytesIO(NOISE), None, Deadline())
    image = store.get(id)
    assert image is not None and image.status == "queued"
    header = b"QFI\xfb" + (3).to_bytes(4, "big") + bytes(12) + (16).to_bytes(4, "big") + MIB.to_bytes(8, "big")
    flat = header.ljust(100, b"\0") + (104).to_bytes(4, "big") + bytes(4 * 65536 - 104)
    assert store.upload(id, io.BytesIO(flat), None, Deadline()).size == len(flat)


def test_a_format_that_glance_does_not_know_is_refused(glance: Glance, store: GlanceStore, id: str) -> None:
    with pytest.raises(DriverError, match="floppy"):
        store.create(id, name="web", format="floppy", properties={})
    assert glance.images() == []


def test_an_image_deleted_in_the_middle_of_its_upload_is_gone(glance: Glance, store: GlanceStore, id: str) -> None:
    create(store, id)

    def deleting(done: int, _total: int) -> None:
        if done > 2 * MIB:
            store.delete(id)

    with pytest.raises(NotFound):
        store.upload(id, io.BytesIO(NOISE), None, Deadline(on_progress=deleting))
    assert store.get(id) is None and glance.images() == []


def test_an_upload_that_was_killed_can_be_repeated(glance: Glance, store: GlanceStore, id: str) -> None:
    code = """
import io, os, signal, sys
from drivers.glance.service import GlanceSettings
from drivers.glance.store import GlanceStore
from planvirt.deadline import Deadline
store = GlanceStore("far", GlanceSettings(url=sys.argv[1], headers=eval(sys.argv[2])), {})
def die(done, total):
    if done >= 2 << 20:
        os.kill(os.getpid(), signal.SIGKILL)
store.upload(sys.argv[3], io.BytesIO(bytes(4 << 20)), None, Deadline(on_progress=die))
"""
    create(store, id)
    done = subprocess.run(
        [sys.executable, "-c", code, glance.url, repr(glance.headers()), id], cwd=ROOT, check=False, timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    assert store.find(id) is None and store.find("web") is None
    assert put(store, id, OTHER).status == "active"
    assert read(store, id) == OTHER
    assert glance.contents() == [len(OTHER)]


def test_memory_does_not_grow_with_the_image(glance: Glance, store: GlanceStore, id: str) -> None:
    class Zeros(io.RawIOBase):
        left = 24 * MIB

        def read(self, size: int = -1) -> bytes:
            self.left -= (size := min(size, self.left))
            return bytes(size)

    create(store, id)
    tracemalloc.start()
    try:
        store.upload(id, Zeros(), None, Deadline())  # type: ignore[arg-type] # as above
        store.verify(id, Deadline())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 * MIB


# Data that rots


def content_file(glance: Glance, id: str) -> Path:
    return glance.folder / "images" / id


def test_a_flipped_bit_is_found(glance: Glance, store: GlanceStore, id: str) -> None:
    put(store, id)
    with content_file(glance, id).open("r+b") as file:
        file.write(bytes([NOISE[0] ^ 1]))
    with pytest.raises(WrongChecksum):
        store.verify(id, Deadline())
    with pytest.raises(WrongChecksum):
        read(store, id)


def test_a_flipped_bit_in_an_image_of_another_tool_is_found(glance: Glance, store: GlanceStore) -> None:
    made = by_another_tool(glance, NOISE)
    with content_file(glance, made).open("r+b") as file:
        file.write(bytes([NOISE[0] ^ 1]))
    with pytest.raises(WrongChecksum, match="sha512"):
        store.verify(made, Deadline())


def test_data_that_is_gone_is_not_found(glance: Glance, store: GlanceStore, id: str) -> None:
    put(store, id)
    content_file(glance, id).unlink()
    with pytest.raises((NotFound, DriverError)):
        store.verify(id, Deadline())
    store.delete(id)
    assert glance.images() == []


# The check


def test_a_check_leaves_nothing_not_even_what_a_killed_one_left(glance: Glance, store: GlanceStore) -> None:
    body = {"name": "planvirt check", "disk_format": "raw", "container_format": "bare"}
    mine = glance.ask("POST", "images", json=body).json()["id"]  # a name alone does not make it ours
    glance.ask("POST", "images", json=body | {"planvirt_check": "queued"})
    store.check()
    assert [image["id"] for image in glance.images()] == [mine]


@pytest.mark.parametrize(
    ("roles", "change", "words", "resolution"),
    [
        (("reader",), {}, "add_image", "role member"),
        ((), {"visibility": "public"}, "publicize_image", "another visibility"),
        ((), {"headers": {}}, "401", "check who"),
    ],
)
def test_a_check_says_what_is_missing(
    glance: Glance, roles: tuple[str, ...], change: dict[str, Any], words: str, resolution: str
) -> None:
    store = GlanceStore("far", glance.settings(*roles, **change), {})
    with pytest.raises(DriverError, match=words) as caught:
        store.check()
    assert resolution in caught.value.resolution
    assert glance.images() == []


def test_a_server_that_is_not_there_may_come_back(glance: Glance) -> None:
    (port,) = free_ports(1)
    store = GlanceStore("far", glance.settings(port=port), {})
    with pytest.raises(Transient, match=f"127.0.0.1:{port}: connection refused"):
        store.check()


def test_another_path_of_the_server_is_no_image_service(glance: Glance) -> None:
    store = GlanceStore("far", glance.settings(url=f"{glance.url}/elsewhere"), {})
    with pytest.raises(DriverError) as caught:
        store.check()
    assert "url" in caught.value.resolution


@pytest.mark.parametrize("ending", ["/", "/v2", "/v2/"])
def test_a_url_may_have_the_version(glance: Glance, ending: str) -> None:
    GlanceStore("far", glance.settings(url=f"{glance.url}{ending}"), {}).check()


# Plans


@pytest.fixture
def yard(glance: Glance, tmp_path: Path) -> Yard:
    """Simulated hosts, with this Glance as their store."""
    yard = Yard(tmp_path)
    settings = {"url": glance.url, "headers": glance.headers()}
    yard.config = replace(yard.config, stores={"local": StoreConfig("local", "glance", settings=settings)})
    return yard


SNAPSHOT = """
instances:
  web: {memory: 1 GiB, disks: [64 MiB], boot: {kernel: ./vmlinuz}}
operations:
  - {id: image, action: snapshot, instances: [web], with: {upload: {store: local, name: nightly}}}
"""


def test_a_snapshot_becomes_an_image_that_machines_start_from(glance: Glance, yard: Yard) -> None:
    (yard.folder / "vmlinuz").write_bytes(b"kernel")
    assert yard.run(SNAPSHOT) is RunState.SUCCEEDED
    (image,) = glance.images()
    assert (image["name"], image["status"], image["disk_format"]) == ("nightly", "active", "qcow2")
    assert image["image_type"] == "snapshot" and image["planvirt_instance"] == "web"
    assert image["virtual_size"] == 64 * MIB
    copy = f"instances:\n  copy: {{image: 'local/{image['id']}', memory: 1 GiB}}\n"
    assert yard.run(copy, name="other") is RunState.SUCCEEDED
    assert any("copy" in left for left in yard.left()["kvm1"])


def test_a_run_that_fails_takes_its_image_back(glance: Glance, yard: Yard) -> None:
    (yard.folder / "vmlinuz").write_bytes(b"kernel")
    late = "  - {id: never, action: wait, instances: [web], with: {console: never}, timeout: 100ms}\n"
    assert yard.run(SNAPSHOT + late) is RunState.ROLLED_BACK
    assert glance.images() == [] and glance.contents() == []
