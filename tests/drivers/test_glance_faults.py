"""The Glance store through a proxy that does what networks and servers do at their worst, before a real Glance."""

import hashlib
import io
import json
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from drivers.again import Busy
from drivers.errors import DriverError, Transient, WrongChecksum
from drivers.glance.store import GlanceStore
from drivers.image_store import StoredImage
from planvirt.deadline import Deadline, DeadlinePassed
from tests.drivers.glance_server import Glance
from tests.drivers.hostile_proxy import Action, Cut, Exchange, HostileProxy, hostile_proxy, make_certificate

pytestmark = pytest.mark.real

MIB = 1 << 20
NOISE = random.Random(1).randbytes(3 * MIB + 17)
SHA256, SHA512 = (f"{name}:{hashlib.new(name, NOISE).hexdigest()}" for name in ("sha256", "sha512"))


@pytest.fixture
def proxy(glance: Glance) -> Iterator[HostileProxy]:
    """What happens to requests as a test says; it must happen."""
    with hostile_proxy(glance.port) as proxy:
        yield proxy
        assert proxy.unused == []


@pytest.fixture
def store(glance: Glance) -> GlanceStore:
    """The store without the proxy."""
    return GlanceStore("near", glance.settings(), {})


@pytest.fixture
def far(glance: Glance, proxy: HostileProxy) -> GlanceStore:
    """The store through the proxy, with one image that is queued."""
    far = GlanceStore("far", glance.settings(port=proxy.port), {}, grace=1.0)
    far.create("one", name="web", format="raw", properties={"planvirt_plan": "tier", "note": "x"})
    return far


def upload(store: GlanceStore, size: int | None = len(NOISE), deadline: Deadline | None = None) -> StoredImage:
    return store.upload("one", io.BytesIO(NOISE), size, deadline or Deadline())


def read(store: GlanceStore) -> bytes:
    with store.open("one") as file:
        return file.read()


def assert_queued(glance: Glance, store: GlanceStore) -> None:
    """There is one record without data, no data on the server's disk, and the next upload succeeds."""
    image = store.get("one")
    assert image is not None and (image.status, image.size, image.checksum) == ("queued", None, None)
    assert (image.name, image.properties) == ("web", {"planvirt_plan": "tier", "note": "x"})
    assert [each["status"] for each in glance.images()] == ["queued"]
    assert glance.contents() == []
    assert upload(store).checksum == SHA256
    assert read(store) == NOISE
    assert glance.contents() == [len(NOISE)]


def answers(status: int, headers: Mapping[str, str] | None = None) -> Action:
    return lambda exchange: exchange.refuse(status, headers)


def passes(**what: Any) -> Action:
    return lambda exchange: exchange.pass_on(**what)


def changes(change: Callable[[dict[str, Any]], object]) -> Action:
    """Let the server's answer, which is JSON, be another one."""

    def changed(headers: dict[str, str], body: bytes) -> tuple[dict[str, str], bytes]:
        answer = json.loads(body)
        change(answer)
        text = json.dumps(answer).encode()
        return {name: value for name, value in headers.items() if name.lower() != "content-length"}, text

    return passes(changed=changed)


# Uploads


@pytest.mark.parametrize(
    ("action", "words", "size"),
    [
        (answers(500), "500", None),
        (answers(503, {"Retry-After": "30"}), "503 .*come back in 30 s", len(NOISE)),
        (answers(413, {"Retry-After": "5"}), "413 .*come back in 5 s", None),
        (passes(stop_after=MIB), "cannot store image one: 127.0.0.1:", None),
        (passes(stop_after=MIB), "cannot store image one: 127.0.0.1:", len(NOISE)),
        (passes(stop_after=0), "cannot store image one: 127.0.0.1:", None),
    ],
    ids=["500", "503", "413 for a while", "cut in the middle", "cut in the middle, known size", "cut at once"],
)
def test_what_may_pass_leaves_nothing(
    glance: Glance,
    proxy: HostileProxy,
    store: GlanceStore,
    far: GlanceStore,
    action: Action,
    words: str,
    size: int | None,
) -> None:
    proxy.on("PUT", "/file$", action)
    with pytest.raises(Transient, match=words):
        upload(far, size)
    assert_queued(glance, store)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 413, 415, 507])
def test_what_does_not_pass_leaves_nothing(
    glance: Glance, proxy: HostileProxy, store: GlanceStore, far: GlanceStore, status: int
) -> None:
    proxy.on("PUT", "/file$", answers(status))
    with pytest.raises(DriverError):
        upload(far)
    assert_queued(glance, store)


def test_a_lost_answer_is_looked_up(glance: Glance, proxy: HostileProxy, far: GlanceStore) -> None:
    proxy.on("PUT", "/file$", passes(lose_answer=True))
    image = upload(far)
    assert (image.status, image.checksum) == ("active", SHA256)
    assert glance.contents() == [len(NOISE)]


def test_a_gateway_that_waits_no_longer_has_not_failed(glance: Glance, proxy: HostileProxy, far: GlanceStore) -> None:
    def impatient(exchange: Exchange) -> None:
        with suppress(Cut):
            exchange.pass_on(lose_answer=True)
        exchange.answer(504)

    proxy.on("PUT", "/file$", impatient)
    assert upload(far).checksum == SHA256
    assert glance.contents() == [len(NOISE)]


@pytest.mark.parametrize("size", [None, len(NOISE)], ids=["unknown size", "known size"])
def test_damage_on_the_way_is_found(
    glance: Glance, proxy: HostileProxy, store: GlanceStore, far: GlanceStore, size: int | None
) -> None:
    proxy.on("PUT", "/file$", passes(damaged=True))
    with pytest.raises(WrongChecksum, match="other data than was sent"):
        upload(far, size)
    assert_queued(glance, store)


@pytest.mark.parametrize("lost", [False, True], ids=["answered", "answer lost"])
def test_a_part_that_is_taken_for_the_whole_is_found(
    glance: Glance, proxy: HostileProxy, store: GlanceStore, far: GlanceStore, lost: bool
) -> None:
    def shortens(exchange: Exchange) -> None:
        kept = b"".join(exchange.body())[: MIB // 2]
        (image,) = glance.images()
        headers = {"Content-Type": "application/octet-stream"}
        answer = glance.ask("PUT", f"images/{image['id']}/file", data=kept, headers=headers)
        assert answer.status_code == 204
        if lost:
            raise Cut
        exchange.answer(204)

    proxy.on("PUT", "/file$", shortens)
    with pytest.raises(Transient if lost else WrongChecksum):
        upload(far, None)
    assert_queued(glance, store)


@pytest.mark.parametrize(
    "lie",
    [
        lambda image: image.update(os_hash_value="0" * 128),
        lambda image: image.update(size=image["size"] + 1),
        lambda image: image.update(size=0),
    ],
    ids=["hash", "larger", "smaller"],
)
def test_a_server_that_says_something_else_is_not_believed(
    glance: Glance, proxy: HostileProxy, store: GlanceStore, far: GlanceStore, lie: Callable[[dict[str, Any]], object]
) -> None:
    def lies(exchange: Exchange) -> None:
        exchange.pass_on()
        proxy.on("GET", r"/v2/images/[0-9a-f-]{36}$", changes(lie), times=2)

    proxy.on("PUT", "/file$", lies)
    with pytest.raises(WrongChecksum):
        upload(far)
    assert_queued(glance, store)


@pytest.mark.parametrize(
    "image",
    [
        {"os_hash_algo": "sha384", "os_hash_value": hashlib.sha384(NOISE).hexdigest()},
        {"os_hash_algo": "whirlpool", "os_hash_value": "0" * 128},
        {"os_hash_algo": None, "os_hash_value": None},
    ],
    ids=["another hash", "a hash that is not known here", "md5 only"],
)
def test_data_is_read_back_where_the_servers_hash_is_another_one(
    glance: Glance, proxy: HostileProxy, store: GlanceStore, far: GlanceStore, image: dict[str, Any]
) -> None:
    reads: list[str] = []

    def noted(exchange: Exchange) -> None:
        reads.append(exchange.handler.path)
        exchange.pass_on()

    def answered(exchange: Exchange) -> None:
        exchange.pass_on()
        proxy.on("GET", r"/v2/images/[0-9a-f-]{36}$", changes(lambda body: body.update(image)))
        proxy.on("GET", "/file$", noted)

    proxy.on("PUT", "/file$", answered)
    assert upload(far).checksum == SHA256
    assert len(reads) == 1
    assert read(store) == NOISE


def test_a_checksum_that_cannot_be_noted_does_not_cost_the_image(
    glance: Glance, proxy: HostileProxy, store: GlanceStore, far: GlanceStore
) -> None:
    proxy.on("PATCH", "/v2/images/", answers(403))
    image = upload(far)
    assert (image.status, image.checksum) == ("active", SHA512)
    assert store.get("one") is not None and read(store) == NOISE
    assert upload(store).checksum == SHA256  # the same again notes it after all


def test_a_checksum_is_noted_at_the_second_try(proxy: HostileProxy, far: GlanceStore) -> None:
    proxy.on("PATCH", "/v2/images/", answers(503))
    assert upload(far).checksum == SHA256


def test_an_upload_that_the_server_answers_too_late_leaves_nothing(
    glance: Glance, proxy: HostileProxy, store: GlanceStore, far: GlanceStore
) -> None:
    over = threading.Event()

    def slow(exchange: Exchange) -> None:
        for _ in exchange.body():
            pass
        over.wait(30)
        raise Cut

    proxy.on("PUT", "/file$", slow)
    try:
        with pytest.raises(DeadlinePassed):
            upload(far, deadline=Deadline(1.0))
    finally:
        over.set()
    assert_queued(glance, store)


def test_an_upload_that_the_server_finishes_too_late_leaves_nothing(
    glance: Glance, proxy: HostileProxy, store: GlanceStore, far: GlanceStore
) -> None:
    over = threading.Event()

    def slow(exchange: Exchange) -> None:
        exchange.pass_on(changed=lambda headers, body: (headers, body) if over.wait(30) else (headers, b""))

    proxy.on("PUT", "/file$", slow)
    try:
        with pytest.raises(DeadlinePassed):
            upload(far, deadline=Deadline(1.5))
    finally:
        over.set()
    assert_queued(glance, store)


# Records and lists


@pytest.mark.parametrize("status", [500, 503])
def test_a_busy_server_may_be_asked_again(glance: Glance, proxy: HostileProxy, far: GlanceStore, status: int) -> None:
    attempts: list[Callable[[], object]] = [
        lambda: far.create("two", name="db", format="raw", properties={}),
        lambda: far.get("one"),
        lambda: far.find("web"),
        far.list,
        lambda: far.delete("one"),
        far.check,
    ]
    for attempt in attempts:
        proxy.on("GET", "/v2/images", answers(status, {"Retry-After": "7"}))
        with pytest.raises(Busy, match="in 7 s") as caught:
            attempt()
        assert caught.value.after == 7
    assert [image["status"] for image in glance.images()] == ["queued"]


def test_a_record_that_was_made_although_the_answer_was_lost_is_found(
    glance: Glance, proxy: HostileProxy, far: GlanceStore
) -> None:
    proxy.on("POST", "/v2/images$", passes(lose_answer=True))
    with pytest.raises(Transient):
        far.create("two", name="db", format="raw", properties={})
    made = far.create("two", name="db", format="raw", properties={})
    assert far.get("two") == made
    assert len(glance.images()) == 2


def test_a_deletion_whose_answer_was_lost_is_repeated(glance: Glance, proxy: HostileProxy, far: GlanceStore) -> None:
    proxy.on("DELETE", "/v2/images", passes(lose_answer=True))
    with pytest.raises(Transient):
        far.delete("one")
    far.delete("one")
    assert glance.images() == []


def test_a_list_that_changes_while_it_is_read_may_be_read_again(glance: Glance, proxy: HostileProxy) -> None:
    store = GlanceStore("far", glance.settings(port=proxy.port), {}, page=1)
    for each in ("one", "two", "three"):
        store.create(each, name="web", format="raw", properties={})

    def late(exchange: Exchange) -> None:
        glance.ask("DELETE", f"images/{glance.images()[0]['id']}")
        exchange.pass_on()

    proxy.on("GET", "marker=", late)
    with pytest.raises(Transient, match="deleted while"):
        store.list()
    assert [image.id for image in store.list()] == ["two", "one"]


@pytest.mark.parametrize(
    "answer",
    [b"", b"<html>Welcome</html>", b"[]", b'{"images": [{}]}', b'{"images": [{"id": "../one", "status": "x"}]}'],
)
def test_an_answer_that_makes_no_sense_is_an_error(proxy: HostileProxy, far: GlanceStore, answer: bytes) -> None:
    proxy.on("GET", "/v2/images", lambda exchange: exchange.answer(200, answer))
    with pytest.raises(DriverError) as caught:
        far.list()
    assert not isinstance(caught.value, Transient) and "url" in caught.value.resolution


def test_a_redirection_is_not_followed(glance: Glance, proxy: HostileProxy, far: GlanceStore) -> None:
    elsewhere = {"Location": f"{glance.url}/v2/images"}
    for method, attempt in (("GET", far.check), ("PUT", lambda: upload(far))):
        proxy.on(method, "/v2/images", lambda exchange: exchange.refuse(301, elsewhere), times=1)
        if method == "PUT":
            proxy.rules[-1].path = "/file$"
        with pytest.raises(DriverError, match=f"go to {glance.url}") as caught:
            attempt()
        assert "url" in caught.value.resolution


# Downloads


def put(store: GlanceStore) -> StoredImage:
    return upload(store)


def test_a_download_goes_on_where_it_was_cut(proxy: HostileProxy, far: GlanceStore) -> None:
    asked: list[str | None] = []

    def cut(exchange: Exchange) -> None:
        asked.append(exchange.handler.headers["Range"])
        exchange.pass_on(answer_ends_after=MIB)

    image = put(far)
    proxy.on("GET", "/file$", cut, times=2)
    assert read(far) == NOISE
    assert asked == [None, f"bytes={MIB}-"]
    proxy.on("GET", "/file$", cut)
    assert far.verify("one", Deadline()) == image


def test_a_server_that_begins_at_the_start_again_may_be_asked_again(proxy: HostileProxy, far: GlanceStore) -> None:
    def whole(exchange: Exchange) -> None:
        del exchange.handler.headers["Range"]
        exchange.pass_on()

    put(far)
    proxy.on("GET", "/file$", passes(answer_ends_after=MIB))
    proxy.on("GET", "/file$", whole, times=4)
    with pytest.raises(Transient, match="cannot go on"):
        read(far)
    del proxy.rules[-1]
    assert read(far) == NOISE


def test_a_server_that_cannot_be_reached_any_more_may_be_asked_again(proxy: HostileProxy, far: GlanceStore) -> None:
    put(far)
    proxy.on("GET", "/file$", passes(answer_ends_after=MIB))
    proxy.on("GET", "/file$", answers(503), times=4)
    with pytest.raises(Transient, match="503"):
        read(far)
    del proxy.rules[-1]
    assert read(far) == NOISE


def test_damage_on_the_way_back_is_found(proxy: HostileProxy, far: GlanceStore) -> None:
    put(far)
    proxy.on("GET", "/file$", passes(changed=lambda headers, body: (headers, b"?" + body[1:])), times=2)
    with pytest.raises(WrongChecksum):
        read(far)
    with pytest.raises(WrongChecksum):
        far.verify("one", Deadline())
    assert read(far) == NOISE


# TLS


def test_tls_is_verified(glance: Glance, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    with hostile_proxy(glance.port, certificate=certificate) as proxy:
        url = f"https://127.0.0.1:{proxy.port}"
        with pytest.raises(DriverError, match="certificate") as caught:
            GlanceStore("far", glance.settings(url=url), {}).check()
        assert not isinstance(caught.value, Transient) and "ca_file" in caught.value.resolution
        store = GlanceStore("far", glance.settings(url=url, ca_file=str(tmp_path / "certificate.pem")), {})
        store.check()
        store.create("one", name="web", format="raw", properties={})
        assert upload(store, None).checksum == SHA256
        assert read(store) == NOISE
        store.delete("one")
        store.create("one", name="web", format="raw", properties={"planvirt_plan": "tier", "note": "x"})
        with pytest.raises(WrongChecksum):
            upload(store, len(NOISE) + 1)
        assert_queued(glance, store)
