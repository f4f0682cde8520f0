"""What drivers/image_store.py promises, tried on every store. A new store is one line in stores.STORES."""

import hashlib
import io
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from drivers.errors import NotFound, WrongChecksum
from drivers.image_store import ImageStore, StoredImage
from planvirt.deadline import Deadline, DeadlinePassed
from planvirt.errors import Conflict, PlanvirtError
from tests.drivers.stores import STORES, Opener

MIB = 1 << 20
NOISE = random.Random(1).randbytes(3 * MIB + 17)
OTHER = random.Random(2).randbytes(MIB)
CONTENTS = {
    "nothing": b"",
    "one byte": b"x",
    "noise": NOISE,
    "zeros": bytes(2 * MIB),
    "zeros at the end": OTHER + bytes(MIB + 5),
    "zeros at the start": bytes(MIB + 5) + OTHER,
    "zeros across chunks": OTHER[:-100] + bytes(200_000) + OTHER,
}


@pytest.fixture(
    params=[
        pytest.param(name, marks=() if kind.needs == "tmp_path" else pytest.mark.real) for name, kind in STORES.items()
    ]
)
def opener(request: pytest.FixtureRequest) -> Iterator[Opener]:
    kind = STORES[request.param]
    with kind.open(request.getfixturevalue(kind.needs)) as opener:
        yield opener


@pytest.fixture
def store(opener: Opener) -> ImageStore:
    return opener()


class Dribble(io.RawIOBase):
    """Data that arrives in small pieces, as from a socket; with `breaks` it ends in an error."""

    def __init__(self, data: bytes, *, breaks: bool = False) -> None:
        self._rest = io.BytesIO(data)
        self._breaks = breaks

    def read(self, size: int = -1) -> bytes:
        piece = self._rest.read(min(size, 10_007) if size >= 0 else 10_007)
        if not piece and self._breaks:
            raise ConnectionResetError("the other side is gone")
        return piece


def create(store: ImageStore, id: str = "one", name: str = "web", format: str = "raw") -> StoredImage:
    return store.create(id, name=name, format=format, properties={"plan": "tier"})


def put(store: ImageStore, id: str = "one", content: bytes = NOISE, name: str = "web") -> StoredImage:
    create(store, id, name)
    return store.upload(id, io.BytesIO(content), len(content), Deadline())


def read(store: ImageStore, id: str) -> bytes:
    with store.open(id) as file:
        return file.read()


def assert_without_data(store: ImageStore, id: str = "one") -> None:
    """The image is queued, nobody gets data of it, and it can be uploaded after all."""
    image = store.get(id)
    assert image is not None
    assert (image.status, image.size, image.checksum) == ("queued", None, None)
    assert store.find(id) is None and store.find(image.name) is None
    assert store.path(id) is None
    with pytest.raises(Conflict), store.open(id):
        pass
    store.upload(id, io.BytesIO(OTHER), len(OTHER), Deadline())
    assert read(store, id) == OTHER


def test_a_good_store_passes_its_check(store: ImageStore) -> None:
    store.check()
    assert store.list() == []


def test_a_record_waits_for_data(store: ImageStore, opener: Opener) -> None:
    made = create(store)
    assert (made.id, made.name, made.format, made.store, made.status) == ("one", "web", "raw", store.name, "queued")
    assert made.properties == {"plan": "tier"} and made.created > 0
    assert opener().get("one") == made == store.get("one")
    assert list(store.list()) == [made]
    assert_without_data(store)


def test_creating_again_returns_what_is_there(store: ImageStore) -> None:
    made = create(store)
    assert create(store) == made
    active = store.upload("one", io.BytesIO(NOISE), None, Deadline())
    assert create(store) == active
    for name, kind in (("db", "raw"), ("web", "qcow2")):
        with pytest.raises(Conflict):
            create(store, "one", name, kind)
    assert store.get("one") == active


def test_names_and_properties_are_kept_as_they_are(store: ImageStore, opener: Opener) -> None:
    name, properties = "wéb „1“ ?&=#%2F/../<x>", {"planvirt_plan": "tier", "note": "'ключ' \"=\\ <a&b> 100 %"}
    made = store.create("one", name=name, format="raw", properties=properties)  # a store may look into the data
    assert (made.name, made.format, made.properties) == (name, "raw", properties)
    assert opener().get("one") == made
    active = store.upload("one", io.BytesIO(OTHER), None, Deadline())
    assert (active.name, active.format, active.properties, active.created) == (name, "raw", properties, made.created)
    assert opener().find(name) == active


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("arrives", ["at once", "in pieces"])
def test_an_upload_is_read_back_as_it_was(store: ImageStore, opener: Opener, content: bytes, arrives: str) -> None:
    create(store)
    data = io.BytesIO(content) if arrives == "at once" else Dribble(content)
    image = store.upload("one", data, len(content), Deadline())  # type: ignore[arg-type] # a raw stream reads too
    assert (image.status, image.size) == ("active", len(content))
    assert image.checksum == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert opener().get("one") == image
    assert read(opener(), "one") == content
    assert store.verify("one", Deadline()) == image
    path = store.path("one")
    assert path is None or path.read_bytes() == content


def test_an_upload_tells_of_its_progress(store: ImageStore) -> None:
    told: list[tuple[int, int]] = []
    create(store)
    store.upload("one", io.BytesIO(NOISE), len(NOISE), Deadline(on_progress=lambda *now: told.append(now)))
    assert len(told) > 1 and told == sorted(told)
    assert told[-1] == (len(NOISE), len(NOISE))


def test_an_upload_without_a_record_is_refused(store: ImageStore) -> None:
    with pytest.raises(NotFound):
        store.upload("one", io.BytesIO(NOISE), None, Deadline())
    assert store.get("one") is None


@pytest.mark.parametrize("wrong_by", [-1, 1, -MIB, MIB])
def test_an_upload_of_another_size_leaves_nothing(store: ImageStore, wrong_by: int) -> None:
    create(store)
    with pytest.raises(WrongChecksum):
        store.upload("one", io.BytesIO(NOISE), len(NOISE) + wrong_by, Deadline())
    assert_without_data(store)


def test_an_upload_whose_source_fails_leaves_nothing(store: ImageStore) -> None:
    create(store)
    with pytest.raises(ConnectionResetError):
        store.upload("one", Dribble(NOISE, breaks=True), None, Deadline())  # type: ignore[arg-type] # as above
    assert_without_data(store)


def test_an_upload_cancelled_on_the_way_leaves_nothing(store: ImageStore) -> None:
    create(store)
    deadline: Deadline = Deadline(on_progress=lambda _done, _total: deadline.cancel())
    with pytest.raises(DeadlinePassed):
        store.upload("one", io.BytesIO(NOISE), len(NOISE), deadline)
    assert_without_data(store)


def test_an_upload_that_came_too_late_leaves_nothing(store: ImageStore) -> None:
    create(store)
    with pytest.raises(DeadlinePassed):
        store.upload("one", io.BytesIO(b""), 0, Deadline(0.0))
    assert_without_data(store)


def test_uploading_the_same_again_returns_the_image(store: ImageStore) -> None:
    image = put(store)
    assert store.upload("one", io.BytesIO(NOISE), len(NOISE), Deadline()) == image
    with pytest.raises(Conflict):
        store.upload("one", io.BytesIO(OTHER), len(OTHER), Deadline())
    assert store.get("one") == image
    assert read(store, "one") == NOISE


def test_images_are_found_by_id_or_newest_name(store: ImageStore) -> None:
    first = put(store, "one", NOISE)
    second = put(store, "two", OTHER)
    create(store, "three")
    assert store.find("web") == second
    assert store.find("one") == first
    assert store.find("three") is None
    assert store.find("nobody") is None
    put(store, "four", OTHER, name="one")
    assert store.find("one") == first  # an id comes before a name
    store.delete("two")
    assert store.find("web") == first


def test_images_are_listed_newest_first(store: ImageStore) -> None:
    for each in ("zeta", "alpha", "mid"):
        put(store, each, OTHER)
    create(store, "queued")
    assert [image.id for image in store.list()] == ["queued", "mid", "alpha", "zeta"]


def test_deleting_twice_is_well(store: ImageStore) -> None:
    put(store)
    create(store, "queued")
    for each in ("one", "one", "queued", "never"):
        store.delete(each)
    assert list(store.list()) == []
    assert store.find("web") is None
    with pytest.raises(NotFound), store.open("one"):
        pass
    assert store.path("one") is None
    put(store, "one", OTHER)
    assert read(store, "one") == OTHER


def test_deleting_leaves_the_data_that_another_image_shares(store: ImageStore) -> None:
    put(store, "one")
    other = put(store, "two")
    store.delete("one")
    assert read(store, "two") == NOISE
    assert store.verify("two", Deadline()) == other


def test_what_is_not_there_is_not_found(store: ImageStore) -> None:
    assert store.get("one") is None
    assert store.path("one") is None
    with pytest.raises(NotFound):
        store.verify("one", Deadline())
    with pytest.raises(NotFound), store.open("one"):
        pass


def test_verify_stops_when_nobody_waits(store: ImageStore) -> None:
    put(store)
    with pytest.raises(DeadlinePassed):
        store.verify("one", Deadline(0.0))
    assert store.verify("one", Deadline()).status == "active"


@pytest.mark.parametrize(
    "id", ["", ".", "..", "../one", "a/b", "/etc/passwd", ".hidden", "a\0b", "a\n", "ä", "x" * 129]
)
def test_an_id_never_leads_elsewhere(store: ImageStore, id: str) -> None:
    with pytest.raises(PlanvirtError):
        create(store, id)
    with pytest.raises(PlanvirtError):
        store.get(id)
    with pytest.raises(PlanvirtError):
        store.delete(id)
    assert store.find(id) is None
    assert list(store.list()) == []


@pytest.mark.parametrize("name", ["", "a\nb", "a\0b", "x" * 256])
def test_a_name_is_one_printable_line(store: ImageStore, name: str) -> None:
    with pytest.raises(PlanvirtError):
        create(store, "one", name)
    assert store.get("one") is None


def test_the_same_data_may_be_uploaded_at_once(store: ImageStore, opener: Opener) -> None:
    ids = [f"image-{number}" for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda each: put(opener(), each), ids))
    for each in ids:
        assert store.verify(each, Deadline()).size == len(NOISE)


def test_one_image_may_be_uploaded_twice_at_once(store: ImageStore, opener: Opener) -> None:
    create(store)

    def upload(_: int) -> StoredImage:
        return opener().upload("one", Dribble(NOISE), len(NOISE), Deadline())  # type: ignore[arg-type] # as above

    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(upload, range(4)))
    assert {image.status for image in images} == {"active"}
    assert read(store, "one") == NOISE
