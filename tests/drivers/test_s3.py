"""The S3 store on OpenStack Swift, and on that through a proxy: what is in the bucket after all that can go wrong.

Swift is a real server, and refuses what it does not know. Its records are conditional as those of S3; a server without
conditions is played by the proxy.
"""

import hashlib
import io
import json
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from drivers.errors import DriverError, NotFound, OutOfSpace, Transient, WrongChecksum
from drivers.image_store import StoredImage
from drivers.s3.store import S3Store
from drivers.s3.upload import _EARLY_PARTS, _LATE_PART, PART
from planvirt.deadline import Deadline, DeadlinePassed
from planvirt.errors import ConfigError, Conflict
from planvirt.secret import Secret
from tests.drivers.hostile_proxy import (
    Action,
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
from tests.drivers.ports import free_ports
from tests.drivers.swift_server import Swift

pytestmark = pytest.mark.real

MIB = 1 << 20
SMALLEST_PART = 5 * MIB  # that S3 takes, except at the end
SMALL = random.Random(1).randbytes(MIB + 17)
LARGE = random.Random(2).randbytes(SMALLEST_PART + 17)  # two parts
ROOT = Path(__file__).parents[2]


class Place:
    """A part of the bucket, the proxy before it, and stores that reach it either way."""

    def __init__(self, swift: Swift, proxy: HostileProxy) -> None:
        self.swift = swift
        self.proxy = proxy
        self.prefix = "test-s3/"
        self.store = self.opened(swift.port)
        self.far = self.opened(proxy.port)

    def opened(self, port: int) -> S3Store:
        """The store, reached at a port."""
        return S3Store("far", self.swift.settings(self.prefix, port=port), self.swift.secrets, part=SMALLEST_PART)

    def contents(self) -> list[str]:
        """What is in this part of the bucket, without the names that uploads choose."""
        return [
            key if "/data/" not in f"/{key}" else f"{key.rpartition('/')[0]}/…{'*' if key.endswith('*') else ''}"
            for key in self.swift.contents(self.prefix)
        ]

    def content_key(self, id: str = "one") -> str:
        """The key of an image's content."""
        (key,) = [key for key in self.swift.contents(self.prefix) if key.startswith(f"data/{id}/")]
        return self.prefix + key


QUEUED = ["images/one/queued.json"]
WHOLE = ["data/one/…", "images/one/active.json", "images/one/queued.json"]


@pytest.fixture(scope="module")
def one_place(swift: Swift) -> Iterator[Place]:
    with hostile_proxy(swift.port) as proxy:
        yield Place(swift, proxy)


@pytest.fixture
def place(one_place: Place) -> Iterator[Place]:
    """An empty place. Whatever a test leaves of its images must go with their deletion."""
    yield one_place
    unused = one_place.proxy.unused
    one_place.proxy.rules.clear()
    for each in {key.split("/")[1] for key in one_place.contents()}:
        one_place.store.delete(each)
    assert one_place.contents() == []
    assert unused == []


def create(store: S3Store, id: str = "one") -> StoredImage:
    return store.create(id, name="web", format="raw", properties={"plan": "tier"})


def upload(store: S3Store, content: bytes = LARGE, id: str = "one", deadline: Deadline | None = None) -> StoredImage:
    return store.upload(id, io.BytesIO(content), None, deadline or Deadline())


def read(store: S3Store, id: str = "one") -> bytes:
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


# What is in the bucket


def test_what_an_image_is_in_the_bucket(place: Place) -> None:
    create(place.store)
    assert place.contents() == QUEUED
    upload(place.store)
    assert place.contents() == WHOLE
    body = place.swift.client.get_object(Bucket=place.swift.bucket, Key=f"{place.prefix}images/one/active.json")["Body"]
    with body:
        record = json.load(body)
    assert record | {"created": 0, "content": ""} == {
        "id": "one",
        "name": "web",
        "format": "raw",
        "status": "active",
        "size": len(LARGE),
        "checksum": f"sha256:{hashlib.sha256(LARGE).hexdigest()}",
        "created": 0,
        "properties": {"plan": "tier"},
        "content": "",
    }
    place.store.delete("one")
    assert place.contents() == []


def test_a_check_leaves_nothing(place: Place) -> None:
    place.store.check()
    assert place.contents() == []


@pytest.mark.parametrize("size", [SMALLEST_PART - 1, SMALLEST_PART, SMALLEST_PART + 1, 2 * SMALLEST_PART])
def test_an_image_of_one_part_or_two(place: Place, size: int) -> None:
    content = (LARGE + LARGE)[:size]
    create(place.store)
    assert upload(place.store, content).size == size
    assert read(place.store) == content
    assert place.contents() == WHOLE


def test_the_largest_object_fits_into_ten_thousand_parts() -> None:
    assert _EARLY_PARTS * PART + (10_000 - _EARLY_PARTS) * _LATE_PART >= 5 << 40
    assert 8 * MIB <= PART <= 64 * MIB and _LATE_PART <= 5 << 30


def test_names_and_prefixes_are_data(place: Place) -> None:
    name, properties = "wéb „1“ ?&=#%2F/../<x>", {"a/b": "line\nline", "ключ": '"}', "": ""}
    settings = replace(place.swift.settings(""), prefix=f"/{place.prefix}odd & /ü?#%20//")
    store = S3Store("far", settings, place.swift.secrets)
    made = store.create("one", name=name, format="raw", properties=properties)
    store.upload("one", io.BytesIO(SMALL), None, Deadline())
    assert (made.name, made.properties) == (name, properties)
    found = store.find(name)
    assert found is not None and (found.name, found.properties) == (name, properties)
    assert read(store) == SMALL
    assert place.store.list() == []
    store.delete("one")
    assert place.contents() == []


def test_an_image_whose_id_begins_as_another_ones_is_left_alone(place: Place) -> None:
    for each in ("one", "one-2", "one.json"):
        create(place.store, each)
        upload(place.store, SMALL, each)
    place.store.delete("one")
    assert {image.id for image in place.store.list()} == {"one-2", "one.json"}
    assert read(place.store, "one-2") == read(place.store, "one.json") == SMALL


def test_a_record_that_cannot_be_read_is_an_error(place: Place) -> None:
    create(place.store)
    for text in (b"{", b"[]", b'{"id": "two"}', b'{"id": "one", "name": "x", "format": "raw", "status": "gone"}'):
        place.swift.client.put_object(Bucket=place.swift.bucket, Key=f"{place.prefix}images/one/queued.json", Body=text)
        with pytest.raises(DriverError, match="cannot read the record of image one"):
            place.store.list()


# Uploads through a bad connection

PART_PUT = ("PUT", "/data/one/.*partNumber=1")
COMPLETE = ("POST", "/data/one/.*uploadId=")
HEAD = ("HEAD", "/data/one/")
RECORD = ("PUT", "/images/one/active.json")


def content_for(method: str, path: str) -> bytes:
    """A content of several parts only where those matter."""
    return SMALL if (method, path) in (HEAD, RECORD) else LARGE


FAILURES = {
    "a part is refused": (*PART_PUT, refused(500), 3, Transient),
    "a part is put off": (*PART_PUT, refused(503, Retry_After="0"), 3, Transient),
    "too many requests": (*PART_PUT, refused(429, Retry_After="Tue, 24 Nov 2020 10:00:00 GMT"), 3, Transient),
    "a part is cut off": (*PART_PUT, cut, 3, Transient),
    "a part gets no answer": (*PART_PUT, never_there, 3, Transient),
    "a part arrives damaged": (*PART_PUT, damaged, 3, WrongChecksum),
    "the server is full": (*PART_PUT, refused(507), 1, OutOfSpace),
    "a part is forbidden": (*PART_PUT, refused(403), 1, DriverError),
    "no upload begins": ("POST", "/data/one/.*uploads", refused(503), 1, Transient),
    "an upload begins, but nobody hears it": ("POST", "/data/one/.*uploads", lost, 1, Transient),
    "no upload is completed": (*COMPLETE, refused(500), 3, Transient),
    "nothing is said of the content": (*HEAD, refused(503, Retry_After="0"), 3, Transient),
    "the content is too short": (*HEAD, saying(**{"content-length": "3"}), 1, WrongChecksum),
    "no record is taken": (*RECORD, refused(503, Retry_After="0"), 3, Transient),
    "a record is forbidden": (*RECORD, refused(403), 1, DriverError),
}


@pytest.mark.parametrize(("method", "path", "action", "times", "error"), FAILURES.values(), ids=FAILURES)
def test_an_upload_that_fails_leaves_nothing(
    place: Place, method: str, path: str, action: Action, times: int, error: type[DriverError]
) -> None:
    made = create(place.store)
    place.proxy.on(method, path, action, times=times)
    with pytest.raises(DriverError) as caught:
        upload(place.far, content_for(method, path))
    assert isinstance(caught.value, error) and isinstance(caught.value, Transient) is (error is Transient)
    assert caught.value.brief.startswith("cannot store image one")
    assert place.contents() == QUEUED
    assert place.store.get("one") == made
    upload(place.store, SMALL)
    assert read(place.store) == SMALL
    assert place.contents() == WHOLE


PASSING = {
    "a part is refused": (*PART_PUT, refused(500), 1),
    "a part is put off": (*PART_PUT, refused(503, Retry_After="0"), 2),
    "a part is cut off": (*PART_PUT, cut, 2),
    "a part arrives, but nobody hears it": (*PART_PUT, lost, 2),
    "a part arrives damaged": (*PART_PUT, damaged, 1),
    "an upload is completed, but nobody hears it": (*COMPLETE, lost, 1),
    "nothing is said of the content": (*HEAD, refused(503), 2),
    "the content has another kind of tag": (*HEAD, saying(etag='"another"'), 1),
    "a record is put off": (*RECORD, refused(503), 1),
    "a record is written, but nobody hears it": (*RECORD, lost, 1),
}


@pytest.mark.parametrize(("method", "path", "action", "times"), PASSING.values(), ids=PASSING)
def test_an_upload_outlives_what_passes(place: Place, method: str, path: str, action: Action, times: int) -> None:
    create(place.store)
    place.proxy.on(method, path, action, times=times)
    assert upload(place.far, content_for(method, path)).status == "active"
    assert read(place.store) == content_for(method, path)
    assert place.contents() == WHOLE


@pytest.mark.parametrize("fault", [refused(500), cut, damaged])
def test_a_small_image_is_sent_again_too(place: Place, fault: Action) -> None:
    create(place.store)
    place.proxy.on("PUT", "/data/one/", fault)
    upload(place.far, SMALL)
    assert read(place.store) == SMALL
    assert place.contents() == WHOLE


def test_content_that_is_another_one_than_was_sent_is_found(place: Place) -> None:
    create(place.store)

    def turned(headers: dict[str, str], body: bytes) -> tuple[dict[str, str], bytes]:
        return headers, body[::-1]

    place.proxy.on(*HEAD, saying(etag='"another"'))
    place.proxy.on("GET", "/data/one/", lambda exchange: exchange.pass_on(changed=turned))
    with pytest.raises(WrongChecksum, match="other data than was sent"):
        upload(place.far, SMALL)
    assert place.contents() == QUEUED


def test_a_record_that_may_still_arrive_keeps_its_content(place: Place) -> None:
    create(place.store)
    place.proxy.on(*RECORD, cut, times=3)
    with pytest.raises(Transient):
        upload(place.far, SMALL)
    assert place.contents() == ["data/one/…", "images/one/queued.json"]
    assert upload(place.far, SMALL).size == len(SMALL)
    assert read(place.store) == SMALL
    assert place.contents() == WHOLE


def test_an_upload_ends_in_the_middle_of_a_part_when_nobody_waits(place: Place) -> None:
    deadline = Deadline()
    create(place.store)
    content = random.Random(3).randbytes(24 * MIB)
    store = S3Store("far", place.swift.settings(place.prefix, port=place.proxy.port), place.swift.secrets)
    place.proxy.on("PUT", "/data/one/", lambda exchange: exchange.pass_on(begun=deadline.cancel))
    with pytest.raises(DeadlinePassed):
        upload(store, content, deadline=deadline)
    assert place.contents() == QUEUED
    assert upload(store, content).size == len(content)


def test_an_error_tells_how_long_to_wait(place: Place) -> None:
    place.proxy.on("GET", "/images/one/", refused(503, Retry_After="7"))
    with pytest.raises(Transient, match="come back in 7 s"):
        place.far.get("one")


# Uploads that die, and uploads that meet

CHILD = """
import io, random, sys
from drivers.s3.bucket import S3Settings
from drivers.s3.store import S3Store
from planvirt.deadline import Deadline
from planvirt.secret import Secret
port, prefix = sys.argv[1:]
settings = S3Settings("images", prefix, "us-east-1", "http://127.0.0.1:" + port, "planvirt:tester", "s3_key")
store = S3Store("far", settings, {"s3_key": Secret("secret")}, part=5 << 20)
store.upload("one", io.BytesIO(random.Random(2).randbytes((5 << 20) + 17)), None, Deadline())
"""


def killed_at(place: Place, method: str, path: str) -> None:
    """Let another process upload the image, and kill it when it makes that request."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(place.proxy.port), place.prefix], cwd=ROOT, stderr=subprocess.DEVNULL
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


@pytest.mark.parametrize(
    ("method", "path", "left"),
    [
        (*PART_PUT, ["data/one/…*", *QUEUED]),
        (*COMPLETE, ["data/one/…", *QUEUED]),
        (*HEAD, ["data/one/…", *QUEUED]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("then", ["upload", "delete"])
def test_what_a_dead_upload_left_goes_with_the_next(
    place: Place, method: str, path: str, left: list[str], then: str
) -> None:
    made = create(place.store)
    killed_at(place, method, path)
    assert place.contents() == left
    assert place.store.get("one") == made
    if then == "upload":
        upload(place.store, SMALL)
        assert read(place.store) == SMALL
        assert place.contents() == WHOLE
    else:
        place.store.delete("one")
        assert place.contents() == []


def test_an_upload_that_died_after_its_last_word_has_ended(place: Place) -> None:
    create(place.store)
    killed_at(place, *RECORD)
    assert read(place.store) == LARGE
    assert upload(place.store).status == "active"
    assert place.contents() == WHOLE


@pytest.mark.parametrize("at", [0, SMALLEST_PART, len(LARGE)], ids=["at its start", "in its middle", "at its end"])
def test_of_two_uploads_the_first_to_end_wins(place: Place, at: int) -> None:
    create(place.store)
    data = Interrupted(LARGE, at, lambda: upload(place.store))
    assert place.store.upload("one", data, len(LARGE), Deadline()) == place.store.get("one")
    assert read(place.store) == LARGE
    assert place.contents() == WHOLE


@pytest.mark.parametrize("at", [0, SMALLEST_PART, len(LARGE)], ids=["at its start", "in its middle", "at its end"])
def test_of_two_uploads_of_other_content_the_later_is_refused(place: Place, at: int) -> None:
    create(place.store)
    with pytest.raises(Conflict):
        place.store.upload("one", Interrupted(LARGE, at, lambda: upload(place.store, SMALL)), None, Deadline())
    assert read(place.store) == SMALL
    assert place.contents() == WHOLE


@pytest.mark.parametrize("at", [0, SMALLEST_PART, len(LARGE)], ids=["at its start", "in its middle", "at its end"])
def test_an_image_that_is_deleted_while_it_is_uploaded_stays_away(place: Place, at: int) -> None:
    create(place.store)
    with pytest.raises(NotFound):
        place.store.upload("one", Interrupted(LARGE, at, lambda: place.store.delete("one")), None, Deadline())
    assert place.contents() == []


def test_an_image_that_is_deleted_just_before_it_is_active_stays_away(place: Place) -> None:
    create(place.store)

    def deleted(exchange: Exchange) -> None:
        place.store.delete("one")
        exchange.pass_on()

    place.proxy.on(*RECORD, deleted)
    with pytest.raises(NotFound, match="deleted meanwhile"):
        upload(place.far)
    assert place.contents() == []


@pytest.mark.parametrize("after", ["/active.json", "/queued.json", "/data/one/"])
def test_a_deletion_that_dies_leaves_nothing_active(place: Place, after: str) -> None:
    create(place.store)
    upload(place.store, SMALL)
    place.proxy.on("DELETE", after, lost)
    with pytest.raises(Transient):
        place.far.delete("one")
    image = place.store.get("one")
    assert image is None or image.status == "queued"
    place.store.delete("one")
    assert place.contents() == []


# A server that knows no conditions


def unconditional(exchange: Exchange) -> None:
    if "If-None-Match" in exchange.handler.headers:
        exchange.refuse(501)
    else:
        exchange.pass_on()


def test_a_server_without_conditions_will_do(place: Place) -> None:
    place.proxy.on("PUT", "/queued.json", unconditional, times=2)
    place.proxy.on("PUT", "/active.json", unconditional, times=2)
    create(place.far)
    upload(place.far)
    assert read(place.far) == LARGE
    assert place.contents() == WHOLE


def test_without_conditions_the_first_to_end_wins_too(place: Place) -> None:
    create(place.store)
    place.proxy.on("PUT", "/active.json", unconditional)
    with pytest.raises(Conflict):
        place.far.upload("one", Interrupted(LARGE, 0, lambda: upload(place.store, SMALL)), None, Deadline())
    assert read(place.store) == SMALL
    assert place.contents() == WHOLE


# Reading


@pytest.mark.parametrize("ends", [0, 1, MIB, len(LARGE) - 1])
def test_reading_goes_on_where_the_connection_was_cut(place: Place, ends: int) -> None:
    create(place.store)
    upload(place.store)
    place.proxy.on("GET", "/data/one/", lambda exchange: exchange.pass_on(answer_ends_after=ends), times=2)
    assert read(place.far) == LARGE


def test_reading_gives_up_when_nothing_comes(place: Place) -> None:
    create(place.store)
    upload(place.store)
    place.proxy.on("GET", "/data/one/", lambda exchange: exchange.pass_on(answer_ends_after=MIB))
    place.proxy.on("GET", "/data/one/", refused(503), times=3)
    with pytest.raises(Transient, match="cannot read image one"):
        read(place.far)
    place.proxy.on("GET", "/data/one/", refused(503))
    with pytest.raises(Transient), place.far.open("one"):
        pass


def test_content_that_has_changed_is_not_trusted(place: Place) -> None:
    create(place.store)
    upload(place.store, SMALL)
    for other in (SMALL[::-1], SMALL + b"x", SMALL[:-1]):
        place.swift.client.put_object(Bucket=place.swift.bucket, Key=place.content_key(), Body=other)
        with pytest.raises(WrongChecksum):
            read(place.store)
        with pytest.raises(WrongChecksum):
            place.store.verify("one", Deadline())
    place.swift.client.delete_object(Bucket=place.swift.bucket, Key=place.content_key())
    with pytest.raises(NotFound), place.store.open("one"):
        pass


def test_a_reader_may_stop_early(place: Place) -> None:
    create(place.store)
    upload(place.store)
    with place.store.open("one") as file:
        assert file.read(10) == LARGE[:10]
    assert read(place.store) == LARGE


# The configuration


def test_a_bucket_that_is_not_there(place: Place) -> None:
    settings = replace(place.swift.settings("x"), bucket="nowhere")
    store = S3Store("far", settings, place.swift.secrets)
    for call in (store.check, store.list, lambda: create(store), lambda: store.get("one"), lambda: store.delete("one")):
        with pytest.raises(DriverError, match="there is no bucket nowhere") as caught:
            call()
        assert not isinstance(caught.value, NotFound | Transient)


def test_a_wrong_key_is_told_and_not_shown(place: Place) -> None:
    store = S3Store("far", place.swift.settings(place.prefix), {"s3_key": Secret("hunter22")})
    for call in (store.check, store.list, lambda: create(store)):
        with pytest.raises(DriverError) as caught:
            call()
        told = f"{caught.value} {caught.value.resolution} {caught.value.__cause__!r}"
        assert "hunter22" not in told and "keys" in caught.value.resolution


def test_a_server_that_is_not_there_may_come_back(place: Place) -> None:
    (port,) = free_ports(1)
    with pytest.raises(Transient, match="cannot write to image store far"):
        place.opened(port).check()


def test_keys_come_from_where_boto3_looks(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(place.swift.settings(place.prefix), access_key_id=None, secret_access_key_secret=None)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(DriverError, match="unable to locate credentials"):
        S3Store("far", settings, {}).check()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "planvirt:tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    S3Store("far", settings, {}).check()


def test_a_servers_certificate_is_verified(place: Place, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    with hostile_proxy(place.swift.port, certificate=certificate) as proxy:
        settings = replace(place.swift.settings(place.prefix), endpoint_url=f"https://127.0.0.1:{proxy.port}")
        with pytest.raises(DriverError) as caught:
            S3Store("far", settings, place.swift.secrets).check()
        assert not isinstance(caught.value, Transient) and "ca_file" in caught.value.resolution
        trusting = replace(settings, ca_file=str(tmp_path / "certificate.pem"))
        store = S3Store("far", trusting, place.swift.secrets, part=SMALLEST_PART)
        create(store)
        upload(store)
        assert read(store) == LARGE


def test_a_certificate_that_is_not_there_is_the_operators_matter(place: Place) -> None:
    settings = replace(place.swift.settings(place.prefix), ca_file="/nowhere/ca.pem")
    with pytest.raises(ConfigError, match=r"there is no file /nowhere/ca\.pem"):
        S3Store("far", settings, place.swift.secrets).check()


# Memory

HUNGRY = """
import io, random, resource, sys
from drivers.s3.bucket import S3Settings
from drivers.s3.store import S3Store
from planvirt.deadline import Deadline
from planvirt.secret import Secret

class Large(io.RawIOBase):
    left = 160 << 20
    def read(self, size=-1):
        size = min(size, self.left)
        self.left -= size
        return bytes(size)

port, prefix = sys.argv[1:]
settings = S3Settings("images", prefix, "us-east-1", "http://127.0.0.1:" + port, "planvirt:tester", "s3_key")
store = S3Store("far", settings, {"s3_key": Secret("secret")}, part=8 << 20)
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
        [sys.executable, "-c", HUNGRY, str(place.swift.port), place.prefix],
        cwd=ROOT, check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert int(done.stdout) < 40 * 1024  # KiB, for 160 MiB in parts of 8
    image = place.store.get("two")
    assert image is not None and image.size == 160 * MIB
