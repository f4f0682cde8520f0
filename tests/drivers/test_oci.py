"""The OCI store on Debian's docker-registry, and on that through a proxy: what is in the registry after all that can go
wrong.

docker-registry 2.8 cannot go on with an upload of which a part of a chunk arrived; a registry that can is played by the
proxy, in front of the real one.
"""

import hashlib
import http.client
import io
import itertools
import json
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from drivers.errors import DriverError, NotFound, OutOfSpace, Transient, WrongChecksum
from drivers.image_store import StoredImage
from drivers.oci.auth import RegistryAuth
from drivers.oci.manifest import EMPTY_DIGEST
from drivers.oci.store import OciStore
from planvirt.deadline import Deadline, DeadlinePassed
from planvirt.errors import ConfigError, Conflict
from planvirt.secret import Secret
from tests.drivers.hostile_proxy import (
    Action,
    Cut,
    Exchange,
    HostileProxy,
    cut,
    damaged,
    hostile_proxy,
    lost,
    make_certificate,
    never_there,
    refused,
    saying,
)
from tests.drivers.oci_registry import Registry, registry, registry_with_password, registry_with_tokens
from tests.drivers.ports import free_ports

pytestmark = pytest.mark.real

MIB = 1 << 20
CHUNK = MIB
SMALL = random.Random(1).randbytes(1000)
LARGE = random.Random(2).randbytes(2 * CHUNK + 17)  # three chunks
ROOT = Path(__file__).parents[2]
REPOSITORY = "test/oci"
_seeds = itertools.count(10)
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class Place:
    """A repository, the proxy before it, and stores that reach it either way."""

    def __init__(self, registry: Registry, proxy: HostileProxy) -> None:
        self.registry = registry
        self.proxy = proxy
        self.store = self.opened(registry.port)
        self.far = self.opened(proxy.port)
        self.left_before: set[str] = set()

    def opened(self, port: int, *, chunk: int = CHUNK) -> OciStore:
        """The store, reached at a port."""
        return OciStore("far", self.registry.settings(REPOSITORY, port=port), self.registry.secrets, chunk=chunk)

    def tags(self) -> list[str]:
        """The tags of the repository."""
        return self.registry.tags(REPOSITORY)

    def manifests(self) -> int:
        """How many manifests there are, also such without a tag."""
        return len(self.registry.manifests(REPOSITORY))

    def unfinished(self) -> set[str]:
        """The uploads of this test whose data the registry keeps."""
        return set(self.registry.unfinished(REPOSITORY)) - self.left_before

    def sweep(self) -> None:
        """Delete what is no image, or none any more."""
        for digest in self.registry.manifests(REPOSITORY):
            self.ask("DELETE", f"manifests/sha256:{digest}")

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Ask the registry beside the store."""
        return httpx.request(method, f"http://127.0.0.1:{self.registry.port}/v2/{REPOSITORY}/{path}", **more)

    def put(self, tag: str, manifest: dict[str, Any] | bytes) -> None:
        """Give a tag to a manifest that the store did not write."""
        body = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
        answer = self.ask("PUT", f"manifests/{tag}", content=body, headers={"Content-Type": OCI_MANIFEST})
        assert answer.status_code == 201, answer.text

    def manifest(self, tag: str) -> dict[str, Any]:
        """The manifest with a tag."""
        found: dict[str, Any] = self.ask("GET", f"manifests/{tag}", headers={"Accept": OCI_MANIFEST}).json()
        return found


@pytest.fixture(scope="module")
def one_place(oci_registry: Registry) -> Iterator[Place]:
    with hostile_proxy(oci_registry.port) as proxy:
        yield Place(oci_registry, proxy)


@pytest.fixture
def place(one_place: Place) -> Iterator[Place]:
    """A place without images. Whatever a test leaves of its images must go with their deletion."""
    one_place.left_before = set(one_place.registry.unfinished(REPOSITORY))
    yield one_place
    unused = one_place.proxy.unused
    one_place.proxy.rules.clear()
    for tag in one_place.tags():
        one_place.store.delete(tag)
    left = (one_place.tags(), one_place.manifests())
    one_place.sweep()
    assert left == ([], 0)
    assert unused == []


def create(store: OciStore, id: str = "one") -> StoredImage:
    return store.create(id, name="web", format="raw", properties={"plan": "tier"})


def upload(store: OciStore, content: bytes = LARGE, id: str = "one", deadline: Deadline | None = None) -> StoredImage:
    return store.upload(id, io.BytesIO(content), None, deadline or Deadline())


def fresh() -> bytes:
    """Some content of three chunks that the registry cannot have already: it keeps those of deleted images."""
    return random.Random(next(_seeds)).randbytes(2 * CHUNK + 17)


def read(store: OciStore, id: str = "one") -> bytes:
    with store.open(id) as file:
        return file.read()


class Interrupted(io.BytesIO):
    """Data in whose middle something happens."""

    def __init__(self, content: bytes, at: int, what: Callable[[], object]) -> None:
        super().__init__(content)
        self._at = at
        self._what: Callable[[], object] | None = what

    def read(self, size: int | None = -1) -> bytes:
        if self._what is not None and self.tell() >= self._at:
            what, self._what = self._what, None
            what()
        return super().read(size)


# What is in the registry


def test_what_an_image_is_in_the_registry(place: Place) -> None:
    made = create(place.store)
    nothing = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": EMPTY_DIGEST, "size": 2}
    queued = place.manifest("one")
    annotations = queued["annotations"]
    assert queued == {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/vnd.planvirt.image.v1",
        "config": nothing,
        "layers": [nothing],
        "annotations": annotations,
    }
    assert annotations | {"org.opencontainers.image.created": ""} == {
        "org.opencontainers.image.title": "web",
        "org.opencontainers.image.created": "",
        "vnd.planvirt.image.id": "one",
        "vnd.planvirt.image.format": "raw",
        "vnd.planvirt.image.property.plan": "tier",
    }
    assert upload(place.store).created == made.created
    assert place.manifest("one") == queued | {
        "layers": [
            {
                "mediaType": "application/vnd.planvirt.image.layer.v1.raw",
                "digest": f"sha256:{hashlib.sha256(LARGE).hexdigest()}",
                "size": len(LARGE),
                "annotations": {"org.opencontainers.image.title": "one.raw"},
            }
        ]
    }
    assert (place.tags(), place.manifests()) == (["one"], 1)
    place.store.delete("one")
    assert (place.tags(), place.manifests()) == ([], 0)


def test_a_check_leaves_no_image_and_no_upload(place: Place) -> None:
    place.store.check()
    assert place.tags() == []
    assert place.unfinished() == set()


@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK])
def test_an_image_of_one_chunk_or_two(place: Place, size: int) -> None:
    create(place.store)
    assert upload(place.store, LARGE[:size]).size == size
    assert read(place.store) == LARGE[:size]
    assert place.unfinished() == set()


def test_the_registry_collects_what_was_deleted_and_nothing_else() -> None:
    with registry() as running:
        store = OciStore("far", running.settings(REPOSITORY), running.secrets, chunk=CHUNK)
        create(store, "queued")
        for each, content in (("one", LARGE), ("two", SMALL)):
            create(store, each)
            upload(store, content, each)
        gone = store.get("one")
        store.delete("one")
        assert gone is not None and running.blob(gone.checksum or "").exists()
        running.collect_garbage()
        assert not running.blob(gone.checksum or "").exists()
        assert {image.id for image in store.list()} == {"queued", "two"}
        assert read(store, "two") == SMALL
        upload(store, LARGE, "queued")
        assert read(store, "queued") == LARGE


def test_an_id_that_can_be_no_tag_is_refused(place: Place) -> None:
    with pytest.raises(DriverError, match="as the id of an image"):
        create(place.store, "-one")
    with pytest.raises(DriverError):
        place.store.get("-one")
    assert place.store.find("-one") is None
    place.store.create("_1", name="-one", format="raw", properties={})
    upload(place.store, SMALL, "_1")
    assert (found := place.store.find("-one")) is not None and found.id == "_1"


def test_what_others_keep_in_the_repository_is_left_alone(place: Place) -> None:
    create(place.store)
    upload(place.store)
    place.put("theirs", place.manifest("one") | {"artifactType": "application/vnd.example+json"})
    place.put("copy", place.ask("GET", "manifests/one", headers={"Accept": OCI_MANIFEST}).content)
    assert [image.id for image in place.store.list()] == ["one"]
    for tag in ("theirs", "copy"):
        assert place.store.get(tag) is None
        with pytest.raises(Conflict, match="something else has this tag"):
            create(place.store, tag)
        with pytest.raises(NotFound):
            upload(place.store, SMALL, tag)
        place.store.delete(tag)
    assert place.tags() == ["copy", "one", "theirs"]
    place.store.delete("one")  # with all tags of its manifest: that is how registries delete
    assert place.tags() == ["theirs"]
    place.sweep()


def test_a_broken_manifest_of_ours_is_an_error(place: Place) -> None:
    create(place.store)
    whole = place.manifest("one")
    faults: list[dict[str, Any]] = [
        {"annotations": {}},
        {"layers": []},
        {"annotations": whole["annotations"] | {"org.opencontainers.image.created": "?"}},
    ]
    for broken in faults:
        place.put("one", whole | broken)
        with pytest.raises(DriverError, match="cannot read the record of image one"):
            place.store.list()
    place.sweep()


def test_tags_come_in_pages(place: Place) -> None:
    ids = [f"image-{number}" for number in range(5)]
    for each in ids:
        create(place.store, each)

    def two_at_a_time(exchange: Exchange) -> None:
        """As newer registries do; this one always tells all tags."""

        def page(headers: dict[str, str], body: bytes) -> tuple[dict[str, str], bytes]:
            tags = sorted(json.loads(body)["tags"])
            last = parse_qs(urlsplit(exchange.handler.path).query).get("last", [""])[0]
            some = [tag for tag in tags if tag > last][:2]
            more = f'</v2/{REPOSITORY}/tags/list?n=2&last={some[-1]}>; rel="next"'
            link = {"Link": more} if some[-1] != tags[-1] else {}
            body = json.dumps({"name": REPOSITORY, "tags": some}).encode()
            return {**headers, **link, "Content-Length": str(len(body))}, body

        exchange.pass_on(changed=page)

    place.proxy.on("GET", "/tags/list", two_at_a_time, times=3)
    assert sorted(image.id for image in place.far.list()) == ids


# Uploads through a bad connection

BEGIN = ("POST", "/blobs/uploads/$")
PATCH = ("PATCH", "/blobs/uploads/")
FINISH = ("PUT", "/blobs/uploads/.*digest=")
HEAD = ("HEAD", "/blobs/")
MANIFEST = ("PUT", "/manifests/one")


FAILURES = {
    "no upload begins": (*BEGIN, refused(503, Retry_After="0"), 3, Transient),
    "a chunk is refused": (*PATCH, refused(500), 3, Transient),
    "a chunk is put off": (*PATCH, refused(503, Retry_After="0"), 3, Transient),
    "too many requests": (*PATCH, refused(429, Retry_After="0"), 3, Transient),
    "a chunk gets no answer": (*PATCH, never_there, 3, Transient),
    "a chunk arrives damaged": (*PATCH, damaged, 1, WrongChecksum),
    "a chunk is too large": (*PATCH, refused(413), 1, OutOfSpace),
    "a chunk is forbidden": (*PATCH, refused(403), 1, DriverError),
    "no upload ends": (*FINISH, refused(500, Retry_After="0"), 3, Transient),
    "nothing is said of the content": (*HEAD, refused(503, Retry_After="0"), 3, Transient),
    "the content is too short": (*HEAD, saying(**{"content-length": "3"}), 1, WrongChecksum),
    "no manifest is taken": (*MANIFEST, refused(503, Retry_After="0"), 3, Transient),
    "a manifest is forbidden": (*MANIFEST, refused(403), 1, DriverError),
    "an upload leads away from TLS": (*BEGIN, saying(Location="ftp://elsewhere/"), 1, DriverError),
    "an upload leads nowhere": (*BEGIN, refused(202), 1, DriverError),
}


@pytest.mark.parametrize(("method", "path", "action", "times", "error"), FAILURES.values(), ids=FAILURES)
def test_an_upload_that_fails_leaves_nothing(
    place: Place, method: str, path: str, action: Action, times: int, error: type[DriverError]
) -> None:
    made = create(place.store)
    place.proxy.on(method, path, action, times=times)
    with pytest.raises(DriverError) as caught:
        upload(place.far, fresh())
    assert isinstance(caught.value, error) and isinstance(caught.value, Transient) is (error is Transient)
    assert caught.value.brief.startswith("cannot store image one")
    assert place.store.get("one") == made
    assert (place.tags(), place.manifests()) == (["one"], 1)
    if (method, path) != BEGIN:  # there the registry began something that we never heard of
        assert place.unfinished() == set()
    upload(place.far, SMALL)
    assert read(place.store) == SMALL
    assert (place.tags(), place.manifests()) == (["one"], 1)


PASSING = {
    "no upload begins": (*BEGIN, refused(503), 1),
    "a chunk is put off": (*PATCH, refused(503, Retry_After="0"), 2),
    "a chunk gets no answer": (*PATCH, never_there, 2),
    "an upload ends, but nobody hears it": (*FINISH, lost, 1),
    "nothing is said of the content": (*HEAD, refused(503, Retry_After="0"), 2),
    "a manifest is put off": (*MANIFEST, refused(503, Retry_After="0"), 2),
    "a manifest is written, but nobody hears it": (*MANIFEST, lost, 1),
}


@pytest.mark.parametrize(("method", "path", "action", "times"), PASSING.values(), ids=PASSING)
def test_an_upload_outlives_what_passes(place: Place, method: str, path: str, action: Action, times: int) -> None:
    content = fresh()
    create(place.store)
    place.proxy.on(method, path, action, times=times)
    assert upload(place.far, content).status == "active"
    assert read(place.store) == content
    assert (place.tags(), place.manifests()) == (["one"], 1)


@pytest.mark.parametrize("fault", [cut, lost])
def test_a_registry_that_lost_its_place_is_told_to_the_plan(place: Place, fault: Action) -> None:
    made = create(place.store)
    place.proxy.on(*PATCH, fault)
    with pytest.raises(Transient, match="lost what was uploaded"):
        upload(place.far)
    assert place.store.get("one") == made
    assert upload(place.far).status == "active"
    assert read(place.store) == LARGE


class Resuming:
    """Lets the proxy play a registry that goes on in the middle of a chunk, as the specification has it."""

    def __init__(self, takes: int) -> None:
        self._takes = takes
        self._moved: dict[str, str] = {}

    def cut(self, exchange: Exchange) -> None:
        """Give the first bytes of a chunk to the registry as if they were all, and cut the connection."""
        body = io.BytesIO()
        for piece in exchange.body():
            body.write(piece)
            if body.tell() >= self._takes:
                break
        headers = {"Content-Type": "application/octet-stream", "Host": exchange.handler.headers["Host"]}
        connection = http.client.HTTPConnection("127.0.0.1", exchange.upstream)
        connection.request("PATCH", exchange.handler.path, body.getvalue()[: self._takes], headers)
        location = connection.getresponse().headers["Location"]
        connection.close()
        self._moved[exchange.handler.path] = urlsplit(location)._replace(scheme="", netloc="").geturl()
        raise Cut

    def tell(self, exchange: Exchange) -> None:
        """Say where the upload is."""
        exchange.handler.path = self._moved[exchange.handler.path]
        exchange.pass_on()


@pytest.mark.parametrize("takes", [2, 100_000, CHUNK])
def test_an_upload_goes_on_in_the_middle_of_a_chunk(place: Place, takes: int) -> None:
    create(place.store)
    resuming = Resuming(takes)
    for _ in range(2):
        place.proxy.on(*PATCH, resuming.cut)
        place.proxy.on("GET", "/blobs/uploads/", resuming.tell)
    assert upload(place.far).status == "active"
    assert read(place.store) == LARGE
    assert place.unfinished() == set()


def test_a_registry_that_asks_for_larger_chunks_gets_them(place: Place) -> None:
    create(place.store)
    place.proxy.on(*BEGIN, saying(**{"OCI-Chunk-Min-Length": str(2 * CHUNK)}))
    place.proxy.on(*PATCH, Exchange.pass_on, times=3)
    assert upload(place.far).status == "active"
    assert read(place.store) == LARGE
    assert place.proxy.unused == ["PATCH /blobs/uploads/"]  # as two were enough
    place.proxy.rules.clear()


def test_a_registry_that_is_full_says_so() -> None:
    with registry(largest_file=MIB // 2) as running:
        store = OciStore("far", running.settings(REPOSITORY), running.secrets, chunk=CHUNK)
        create(store)
        with pytest.raises(OutOfSpace, match="file too large"):
            upload(store)
        assert [image.status for image in store.list()] == ["queued"]
        upload(store, SMALL)
        assert read(store) == SMALL


def test_an_upload_ends_in_the_middle_of_a_chunk_when_nobody_waits(place: Place) -> None:
    deadline = Deadline()
    made = create(place.store)
    content = random.Random(3).randbytes(24 * MIB)
    store = place.opened(place.proxy.port, chunk=24 * MIB)
    place.proxy.on(*PATCH, lambda exchange: exchange.pass_on(begun=deadline.cancel))
    with pytest.raises(DeadlinePassed):
        upload(store, content, deadline=deadline)
    assert place.store.get("one") == made
    assert upload(store, content).size == len(content)


def test_an_error_tells_how_long_to_wait(place: Place) -> None:
    place.proxy.on("GET", "/manifests/one", refused(503, Retry_After="7"))
    with pytest.raises(Transient, match="come back in 7 s"):
        place.far.get("one")


# Uploads that die, and uploads that meet

CHILD = """
import io, random, sys
from drivers.oci.repository import OciSettings
from drivers.oci.store import OciStore
from planvirt.deadline import Deadline
store = OciStore("far", OciSettings("127.0.0.1:" + sys.argv[1], sys.argv[2], insecure=True), {}, chunk=1 << 20)
store.upload("one", io.BytesIO(random.Random(2).randbytes((2 << 20) + 17)), None, Deadline())
"""


def killed_at(place: Place, method: str, path: str) -> None:
    """Let another process upload the image, and kill it when it makes that request."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(place.proxy.port), REPOSITORY], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    arrived = threading.Event()

    def kill() -> None:
        process.kill()
        process.wait(30)

    def killing(exchange: Exchange) -> None:
        try:
            if method == "HEAD":
                kill()
            exchange.pass_on(begun=kill)
        finally:
            arrived.set()

    place.proxy.on(method, path, killing)
    assert process.wait(60) == -signal.SIGKILL
    assert arrived.wait(30)


@pytest.mark.parametrize(("method", "path"), [PATCH, HEAD])
@pytest.mark.parametrize("then", ["upload", "delete"])
def test_what_a_dead_upload_left_counts_for_nothing(place: Place, method: str, path: str, then: str) -> None:
    made = create(place.store)
    killed_at(place, method, path)
    assert place.store.get("one") == made
    assert (place.tags(), place.manifests()) == (["one"], 1)
    if then == "upload":
        upload(place.store, SMALL)
        assert read(place.store) == SMALL
        assert (place.tags(), place.manifests()) == (["one"], 1)
    else:
        place.store.delete("one")
        assert (place.tags(), place.manifests()) == ([], 0)


def test_an_upload_that_died_after_its_last_word_has_ended(place: Place) -> None:
    create(place.store)
    killed_at(place, *MANIFEST)
    assert read(place.store) == LARGE
    assert upload(place.store).status == "active"
    assert place.tags() == ["one"]
    place.sweep()  # the record of before has no tag any more, and stays for the registry to collect


@pytest.mark.parametrize("at", [0, CHUNK, len(LARGE)], ids=["at its start", "in its middle", "at its end"])
def test_of_two_uploads_both_have_their_content(place: Place, at: int) -> None:
    create(place.store)
    data = Interrupted(LARGE, at, lambda: upload(place.store))
    assert place.store.upload("one", data, len(LARGE), Deadline()) == place.store.get("one")
    assert read(place.store) == LARGE
    assert (place.tags(), place.manifests()) == (["one"], 1)


@pytest.mark.parametrize("at", [0, CHUNK, len(LARGE)], ids=["at its start", "in its middle", "at its end"])
def test_of_two_uploads_of_other_content_the_later_is_refused(place: Place, at: int) -> None:
    create(place.store)
    with pytest.raises(Conflict):
        place.store.upload("one", Interrupted(LARGE, at, lambda: upload(place.store, SMALL)), None, Deadline())
    assert read(place.store) == SMALL
    assert (place.tags(), place.manifests()) == (["one"], 1)


@pytest.mark.parametrize("at", [0, CHUNK, len(LARGE)], ids=["at its start", "in its middle", "at its end"])
def test_an_image_that_is_deleted_while_it_is_uploaded_stays_away(place: Place, at: int) -> None:
    create(place.store)
    with pytest.raises(NotFound):
        place.store.upload("one", Interrupted(LARGE, at, lambda: place.store.delete("one")), None, Deadline())
    assert (place.tags(), place.manifests()) == ([], 0)


def test_a_deletion_that_nobody_heard_of_is_done(place: Place) -> None:
    create(place.store)
    upload(place.store, SMALL)
    place.proxy.on("DELETE", "/manifests/", lost)
    with pytest.raises(Transient):
        place.far.delete("one")
    assert place.store.get("one") is None
    place.store.delete("one")


def test_an_image_that_becomes_active_while_it_is_deleted_goes_too(place: Place) -> None:
    create(place.store)

    def active(exchange: Exchange) -> None:
        upload(place.store, SMALL)
        exchange.pass_on()

    place.proxy.on("DELETE", "/manifests/", active)
    place.far.delete("one")
    assert (place.tags(), place.manifests()) == ([], 0)


def test_a_registry_that_deletes_nothing_says_what_to_do() -> None:
    with registry(deletes=False) as running:
        store = OciStore("far", running.settings(REPOSITORY), running.secrets)
        create(store)
        upload(store, SMALL)
        with pytest.raises(DriverError) as caught:
            store.delete("one")
        assert "storage, delete, enabled" in caught.value.resolution
        assert read(store) == SMALL


# Reading


def blob_get(exchange_action: Action) -> tuple[str, str, Action]:
    return "GET", "/blobs/sha256", exchange_action


@pytest.mark.parametrize("ends", [0, 1, MIB, len(LARGE) - 1])
def test_reading_goes_on_where_the_connection_was_cut(place: Place, ends: int) -> None:
    create(place.store)
    upload(place.store)
    place.proxy.on(*blob_get(lambda exchange: exchange.pass_on(answer_ends_after=ends)), times=2)
    assert read(place.far) == LARGE


def test_reading_goes_on_where_there_are_no_ranges(place: Place) -> None:
    create(place.store)
    upload(place.store)

    def whole(exchange: Exchange) -> None:
        del exchange.handler.headers["Range"]
        exchange.pass_on()

    place.proxy.on(*blob_get(lambda exchange: exchange.pass_on(answer_ends_after=MIB + 5)))
    place.proxy.on(*blob_get(whole))
    assert read(place.far) == LARGE


def test_reading_gives_up_when_nothing_comes(place: Place) -> None:
    create(place.store)
    upload(place.store)
    place.proxy.on(*blob_get(lambda exchange: exchange.pass_on(answer_ends_after=MIB)))
    place.proxy.on(*blob_get(refused(503)), times=3)
    with pytest.raises(Transient, match="cannot read image one"):
        read(place.far)


def test_content_that_has_changed_is_not_trusted(place: Place) -> None:
    create(place.store)
    content = random.Random(4).randbytes(5000)
    image = upload(place.store, content)
    file = place.registry.blob(image.checksum or "")
    for other in (content[::-1], content[:-1] + b"?"):
        file.write_bytes(other)
        with pytest.raises(WrongChecksum):
            read(place.store)
        with pytest.raises(WrongChecksum):
            place.store.verify("one", Deadline())
    file.unlink()
    with pytest.raises(NotFound), place.store.open("one"):
        pass


def test_a_reader_may_stop_early(place: Place) -> None:
    create(place.store)
    upload(place.store)
    with place.store.open("one") as file:
        assert file.read(10) == LARGE[:10]
    assert read(place.store) == LARGE


# Who we are


def test_a_password_is_told() -> None:
    with registry_with_password() as running:
        store = OciStore("far", running.settings(REPOSITORY, username="planvirt"), running.secrets, chunk=CHUNK)
        store.check()
        create(store)
        upload(store)
        assert read(store) == LARGE
        assert [image.id for image in store.list()] == ["one"]
        for wrong in (
            OciStore("far", running.settings(REPOSITORY), {}),
            OciStore(
                "far", running.settings(REPOSITORY, username="planvirt"), {"registry_password": Secret("hunter22")}
            ),
        ):
            for call in (wrong.check, wrong.list, lambda wrong=wrong: wrong.get("one")):
                with pytest.raises(DriverError) as caught:
                    call()
                assert "password_secret" in caught.value.resolution and not isinstance(caught.value, NotFound)
                assert "hunter22" not in f"{caught.value} {caught.value.resolution} {caught.value.__cause__!r}"


def test_a_token_is_fetched_and_kept() -> None:
    with registry_with_tokens() as (running, authority):
        store = OciStore("far", running.settings(REPOSITORY, username="planvirt"), running.secrets, chunk=CHUNK)
        create(store)
        upload(store)
        assert read(store) == LARGE
        assert authority.given == 1
        store.delete("one")
        assert (store.list(), authority.given) == ([], 1)


def test_a_token_that_is_not_good_any_more_is_fetched_anew() -> None:
    with registry_with_tokens() as (running, authority), hostile_proxy(running.port) as proxy:
        settings = running.settings(REPOSITORY, port=proxy.port, username="planvirt")
        store = OciStore("far", settings, running.secrets, chunk=CHUNK)
        create(store)

        def expired(exchange: Exchange) -> None:
            del exchange.handler.headers["Authorization"]
            exchange.pass_on()

        proxy.on(*PATCH, expired)
        proxy.on("GET", "/blobs/sha256", expired)
        upload(store)
        assert read(store) == LARGE
        assert (authority.given, proxy.unused) == (3, [])


def test_a_token_that_allows_little_is_told() -> None:
    with registry_with_tokens() as (running, authority):
        authority.allows = ("pull",)
        store = OciStore("far", running.settings(REPOSITORY, username="planvirt"), running.secrets)
        assert store.list() == []
        with pytest.raises(DriverError) as caught:
            store.check()
        assert "password_secret" in caught.value.resolution
        wrong = {"registry_password": Secret("hunter22")}
        with pytest.raises(DriverError, match=r"cannot log in to 127\.0\.0\.1") as caught:
            OciStore("far", running.settings(REPOSITORY, username="planvirt"), wrong).list()
        assert "hunter22" not in f"{caught.value} {caught.value.resolution} {caught.value.__cause__!r}"


def test_a_password_is_not_sent_away_from_tls(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    with registry_with_tokens() as (running, authority), hostile_proxy(running.port, certificate=certificate) as proxy:
        settings = replace(
            running.settings(REPOSITORY, port=proxy.port, username="planvirt"),
            insecure=False,
            ca_file=str(tmp_path / "certificate.pem"),
        )
        with pytest.raises(DriverError, match="sends us to http for a token"):
            OciStore("far", settings, running.secrets).check()
        assert authority.given == 0


def test_a_token_is_fetched_before_the_old_one_ends() -> None:
    now = 1000.0
    auth = RegistryAuth(httpx.URL("https://registry"), "images", "me", lambda: "secret", clock=lambda: now)

    def asked(*answers: httpx.Response) -> list[str]:
        """The requests that are made of one, as the answers come."""
        flow = auth.sync_auth_flow(httpx.Request("GET", "https://registry/v2/"))
        return [made(next(flow)), *(made(flow.send(answer)) for answer in answers)]

    def made(request: httpx.Request) -> str:
        return f"{request.url.host} {request.headers.get('authorization', '')[:9]}"

    challenge = {"www-authenticate": 'Bearer realm="https://authority/token",service="registry"'}
    first = httpx.Response(200, json={"access_token": "one", "expires_in": 120})
    second = httpx.Response(200, json={"token": "two"})
    assert asked(httpx.Response(401, headers=challenge), first) == [
        "registry ",
        "authority Basic bWU",
        "registry Bearer on",
    ]
    now += 100
    assert asked() == ["registry Bearer on"]
    now += 15
    assert asked(second) == ["authority Basic bWU", "registry Bearer tw"]
    elsewhere = auth.sync_auth_flow(httpx.Request("GET", "https://elsewhere/"))
    assert "authorization" not in next(elsewhere).headers


@contextmanager
def bystander() -> Iterator[tuple[int, list[str | None]]]:
    """A web server that is not the registry, with LARGE in it; and who its visitors say they are."""
    told: list[str | None] = []

    def answered(exchange: Exchange) -> None:
        told.append(exchange.handler.headers.get("Authorization"))
        exchange.answer(200, LARGE)

    with hostile_proxy(1) as server:
        server.on("GET", "/content", answered, times=100)
        yield server.port, told


def test_a_content_elsewhere_is_read_without_telling_who_we_are() -> None:
    with registry_with_password() as running, hostile_proxy(running.port) as proxy, bystander() as (port, told):
        settings = running.settings(REPOSITORY, port=proxy.port, username="planvirt")
        store = OciStore("far", settings, running.secrets, chunk=CHUNK)
        create(store)
        upload(store)
        proxy.on(*blob_get(refused(307, Location=f"http://127.0.0.1:{port}/content")))
        assert read(store) == LARGE
        assert told == [None]


def test_a_content_elsewhere_without_tls_is_not_read(place: Place, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    create(place.store)
    upload(place.store)
    with hostile_proxy(place.registry.port, certificate=certificate) as proxy, bystander() as (port, told):
        settings = replace(place.registry.settings(REPOSITORY, port=proxy.port), insecure=False)
        store = OciStore("far", replace(settings, ca_file=str(tmp_path / "certificate.pem")), {})
        proxy.on(*blob_get(refused(307, Location=f"http://127.0.0.1:{port}/content")))
        with pytest.raises(DriverError, match="without TLS"):
            read(store)
        assert told == []


# The configuration


def test_a_registrys_certificate_is_verified(place: Place, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    with hostile_proxy(place.registry.port, certificate=certificate) as proxy:
        settings = replace(place.registry.settings(REPOSITORY, port=proxy.port), insecure=False)
        with pytest.raises(DriverError) as caught:
            OciStore("far", settings, {}).check()
        assert not isinstance(caught.value, Transient) and "ca_file" in caught.value.resolution
        store = OciStore("far", replace(settings, ca_file=str(tmp_path / "certificate.pem")), {}, chunk=CHUNK)
        create(store)
        upload(store)
        assert read(store) == LARGE
        (tmp_path / "other.pem").write_text("nothing")
        for wrong in ("other.pem", "nowhere.pem"):
            with pytest.raises(ConfigError, match="cannot open image store far"):
                OciStore("far", replace(settings, ca_file=str(tmp_path / wrong)), {}).check()


def test_a_registry_elsewhere_without_tls_is_refused(place: Place) -> None:
    settings = replace(place.registry.settings(REPOSITORY), registry="registry.invalid")
    with pytest.raises(ConfigError, match="without TLS") as caught:
        OciStore("far", settings, {}).check()
    assert "trust_network" in caught.value.resolution
    with pytest.raises(Transient):  # that name leads nowhere
        OciStore("far", replace(settings, trust_network=True), {}).check()
    for here in ("localhost", "127.0.0.2", "[::1]"):
        (port,) = free_ports(1)
        with pytest.raises(Transient):
            OciStore("far", replace(settings, registry=f"{here}:{port}"), {}).check()


def test_what_is_no_registry_is_an_error(place: Place) -> None:
    create(place.store)
    there = f"</v2/{REPOSITORY}/tags/list?n=500>; rel=next"
    place.proxy.on("GET", "/tags/list", saying(Link=there))
    with pytest.raises(DriverError, match="does not answer as a registry does"):
        place.far.list()
    place.proxy.on("GET", "/tags/list", lambda exchange: exchange.answer(200, b'{"tags": 3}'))
    with pytest.raises(DriverError, match="does not answer as a registry does"):
        place.far.list()
    place.proxy.on("GET", "/tags/list", lambda exchange: exchange.answer(200, b"<html>"))
    with pytest.raises(DriverError, match="does not answer as a registry does"):
        place.far.list()
    place.proxy.on("GET", "/tags/list", lambda exchange: exchange.answer(403, b"<html>"))
    with pytest.raises(DriverError, match="the registry says 403"):
        place.far.list()


# Memory

HUNGRY = """
import io, resource, sys
from drivers.oci.repository import OciSettings
from drivers.oci.store import OciStore
from planvirt.deadline import Deadline

class Large(io.RawIOBase):
    left = 160 << 20
    def read(self, size=-1):
        size = min(size, self.left)
        self.left -= size
        return bytes(size)

store = OciStore("far", OciSettings("127.0.0.1:" + sys.argv[1], sys.argv[2], insecure=True), {}, chunk=8 << 20)
store.create("one", name="web", format="raw", properties={})
store.upload("one", io.BytesIO(b"x"), None, Deadline())
store.create("two", name="web", format="raw", properties={})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store.upload("two", Large(), None, Deadline())
store.verify("two", Deadline())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_large_image_needs_little_memory(place: Place) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HUNGRY, str(place.registry.port), REPOSITORY],
        cwd=ROOT, check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert int(done.stdout) < 40 * 1024  # KiB, for 160 MiB in chunks of 8
    image = place.store.get("two")
    assert image is not None and image.size == 160 * MIB
