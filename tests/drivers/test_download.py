"""Files from a real server that misbehaves: what is kept is whole and right, and what came once does not come twice."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from drivers.download import TooLarge, download, whole_file
from drivers.errors import DriverError, NotFound, OutOfSpace, Transient, WrongChecksum
from drivers.web_request import redirected
from planvirt.deadline import Deadline, DeadlinePassed
from tests.drivers.web_server import File, Web, cut, endless, lie, redirect, refuse, stall, web_server

MIB = 1 << 20
DATA = random.Random(1).randbytes(3 * MIB + 17)
OTHER = random.Random(2).randbytes(3 * MIB + 17)
SHA256 = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
SHA512 = f"sha512:{hashlib.sha512(DATA).hexdigest()}"


@pytest.fixture
def web() -> Iterator[Web]:
    with web_server() as running:
        running.files["/image"] = File(DATA)
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "downloads"


def names(folder: Path) -> list[str]:
    """What is there, without locks; of the checksum only its kind."""
    found = [path for path in folder.iterdir() if path.suffix != ".lock"] if folder.exists() else []
    return sorted(path.name[:6] + path.suffix for path in found)


def fetch(web: Web, folder: Path, checksum: str = SHA256, path: str = "/image", **more: object) -> Path:
    return download(web.url(path), checksum, folder, Deadline(30), **more)  # type: ignore[arg-type] # passed through


@pytest.mark.parametrize("checksum", [SHA256, SHA512])
def test_a_file_is_fetched_once(web: Web, folder: Path, checksum: str) -> None:
    told: list[tuple[int, int]] = []
    deadline = Deadline(30, on_progress=lambda done, total: told.append((done, total)))
    path = download(web.url(), checksum, folder, deadline)
    assert path == whole_file(folder, checksum)
    assert path.read_bytes() == DATA
    assert told[-1] == (len(DATA), len(DATA)) and told == sorted(told)
    assert names(folder) == [checksum[:6]]
    assert fetch(web, folder, checksum, "/another-address-of-it") == path
    assert len(web.requests) == 1


def test_a_file_of_unknown_length_is_fetched(web: Web, folder: Path) -> None:
    web.next.append(lie(Content_Length=None, Connection="close"))
    assert fetch(web, folder).read_bytes() == DATA


def test_a_packed_answer_is_not_asked_for(web: Web, folder: Path) -> None:
    fetch(web, folder)
    assert web.requests[0].headers["accept-encoding"] == "identity"


def test_what_a_cut_connection_has_brought_is_not_fetched_again(web: Web, folder: Path) -> None:
    web.next += [cut(MIB), cut(MIB)]
    for _ in range(2):
        with pytest.raises(Transient, match=r"cannot fetch http://127\.0\.0\.1"):
            fetch(web, folder)
        assert names(folder) == ["sha256.from", "sha256.part"]
    assert fetch(web, folder).read_bytes() == DATA
    assert web.ranges == [None, f"bytes={MIB}-", f"bytes={2 * MIB}-"]
    assert names(folder) == ["sha256"]


@pytest.mark.parametrize(
    "file",
    [
        File(DATA, ranges=False),
        File(DATA, etag=""),
        File(DATA, etag='W/"1"'),
    ],
    ids=["no ranges", "no validator", "weak validator"],
)
def test_where_it_cannot_be_read_on_it_begins_anew(web: Web, folder: Path, file: File) -> None:
    web.files["/image"] = file
    web.next.append(cut(MIB))
    with pytest.raises(Transient):
        fetch(web, folder)
    assert fetch(web, folder).read_bytes() == DATA


def test_a_date_is_enough_to_read_on(web: Web, folder: Path) -> None:
    web.files["/image"] = File(DATA, etag="", modified="Tue, 24 Nov 2026 09:00:00 GMT")
    web.next.append(cut(MIB))
    with pytest.raises(Transient):
        fetch(web, folder)
    assert fetch(web, folder).read_bytes() == DATA
    assert web.ranges == [None, f"bytes={MIB}-"]


@pytest.mark.parametrize("honest", [True, False], ids=["answers with the whole", "sends the rest of the other"])
def test_a_file_that_has_changed_in_between_begins_anew(web: Web, folder: Path, honest: bool) -> None:
    web.files["/image"] = File(OTHER, etag='"0"')
    web.next.append(cut(MIB))
    with pytest.raises(Transient):
        fetch(web, folder)
    web.files["/image"] = File(DATA, etag='"1"')
    if not honest:
        rest = DATA[MIB:]
        web.next.append(
            lambda handler: handler.say(
                206, {"ETag": '"1"', "Content-Range": f"bytes {MIB}-{len(DATA) - 1}/{len(DATA)}"}, rest
            )
        )
    assert fetch(web, folder).read_bytes() == DATA
    assert names(folder) == ["sha256"]


@pytest.mark.parametrize("place", ["bytes 0-9/10", "nonsense", None])
def test_a_part_that_was_not_asked_for_is_not_appended(web: Web, folder: Path, place: str | None) -> None:
    web.next += [cut(MIB), lambda handler: handler.say(206, {"ETag": '"1"', "Content-Range": place}, b"x" * 10)]
    with pytest.raises(Transient):
        fetch(web, folder)
    assert fetch(web, folder).read_bytes() == DATA


def test_nothing_is_put_behind_the_beginning_from_another_address(web: Web, folder: Path) -> None:
    web.files["/other"] = File(OTHER)
    web.next.append(cut(MIB))
    with pytest.raises(Transient):
        fetch(web, folder, path="/other")
    assert fetch(web, folder).read_bytes() == DATA
    assert web.ranges == [None, None]


def test_a_part_that_was_damaged_is_noticed_and_fetched_anew(web: Web, folder: Path) -> None:
    web.next.append(cut(2 * MIB))
    with pytest.raises(Transient):
        fetch(web, folder)
    part = whole_file(folder, SHA256).with_name(whole_file(folder, SHA256).name + ".part")
    with part.open("r+b") as file:
        file.write(bytes(4096))
    assert fetch(web, folder).read_bytes() == DATA
    assert web.ranges == [None, f"bytes={2 * MIB}-", None]


def test_a_part_that_was_whole_needs_no_server(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / f"{whole_file(folder, SHA256).name}.part").write_bytes(DATA)
    assert download("http://127.0.0.1:9/image", SHA256, folder, Deadline(30)).read_bytes() == DATA


@pytest.mark.parametrize("rubbish", [b"", b"{", b"[]", b'{"url": 3, "more": 1}', b"\xff"])
def test_rubbish_about_the_part_is_forgotten(web: Web, folder: Path, rubbish: bytes) -> None:
    folder.mkdir(parents=True)
    name = whole_file(folder, SHA256).name
    (folder / f"{name}.part").write_bytes(OTHER)
    (folder / f"{name}.from").write_bytes(rubbish)
    assert fetch(web, folder).read_bytes() == DATA


def test_a_wrong_file_is_thrown_away(web: Web, folder: Path) -> None:
    web.files["/image"] = File(OTHER)
    with pytest.raises(WrongChecksum) as caught:
        fetch(web, folder, path="/image?key=hunter2")
    error = caught.value
    assert error.brief == f"cannot use {web.url()}?…: its checksum is wrong"
    assert hashlib.sha256(OTHER).hexdigest()[:12] in error.details and SHA256[7:19] in error.details
    assert error.resolution
    assert names(folder) == []
    assert len(web.requests) == 1


@pytest.mark.parametrize("length", [MIB, 0])
def test_a_length_that_is_too_small_is_a_wrong_file(web: Web, folder: Path, length: int) -> None:
    web.next.append(lie(Content_Length=length))
    with pytest.raises(WrongChecksum):
        fetch(web, folder)
    assert names(folder) == []


def test_a_length_that_is_too_large_may_be_a_cut_connection(web: Web, folder: Path) -> None:
    web.next.append(lie(Content_Length=len(DATA) + 1))
    with pytest.raises(Transient):
        fetch(web, folder)
    # All of it came, so what is there is found to be right.
    assert fetch(web, folder).read_bytes() == DATA
    assert len(web.requests) == 1


@pytest.mark.parametrize("length", [1 << 50, 10**19])
def test_an_absurd_length_is_refused_before_anything_comes(web: Web, folder: Path, length: int) -> None:
    web.next.append(lie(Content_Length=length))
    with pytest.raises(TooLarge, match="more than 256 GiB"):
        fetch(web, folder)
    assert names(folder) == []


def test_what_does_not_fit_the_disk_is_refused_before_anything_comes(web: Web, folder: Path) -> None:
    web.next.append(lie(Content_Length=1 << 60))
    with pytest.raises(OutOfSpace) as caught:
        fetch(web, folder, largest=1 << 62)
    assert "are free" in caught.value.details and caught.value.resolution


def test_a_file_that_never_ends_is_given_up(web: Web, folder: Path) -> None:
    web.next.append(endless)
    with pytest.raises(TooLarge):
        fetch(web, folder, largest=8 * MIB)
    assert names(folder) == []


@pytest.mark.parametrize(("status", "kind"), [(404, NotFound), (410, NotFound), (403, DriverError), (401, DriverError)])
def test_a_refusal_is_for_good(web: Web, folder: Path, status: int, kind: type[DriverError]) -> None:
    web.next.append(refuse(status))
    with pytest.raises(kind) as caught:
        fetch(web, folder)
    assert not isinstance(caught.value, Transient)
    assert str(status) in caught.value.details and caught.value.resolution
    assert web.url() in caught.value.brief


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_busy_server_may_be_asked_again(web: Web, folder: Path, status: int) -> None:
    web.next += [cut(MIB), refuse(status, Retry_After="7")]
    for _ in range(2):
        with pytest.raises(Transient) as caught:
            fetch(web, folder)
    assert f"says {status}" in caught.value.details and "come back in 7 s" in caught.value.details
    assert fetch(web, folder).read_bytes() == DATA
    assert web.ranges[-1] == f"bytes={MIB}-"


def test_nobody_there_may_pass(folder: Path) -> None:
    with pytest.raises(Transient, match="refused"):
        download("http://127.0.0.1:9/image", SHA256, folder, Deadline(30))


def test_what_is_no_web_server_may_pass(web: Web, folder: Path) -> None:
    def rubbish(handler: object) -> None:
        handler.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")  # type: ignore[attr-defined] # a Handler
        handler.hang_up()  # type: ignore[attr-defined] # likewise

    web.next.append(rubbish)
    with pytest.raises(Transient):
        fetch(web, folder)


def test_a_server_that_says_nothing_more_is_left(web: Web, folder: Path) -> None:
    web.next.append(stall(MIB))
    with pytest.raises(Transient, match=r"says nothing for 0\.3 s"):
        fetch(web, folder, patience=0.3)
    assert fetch(web, folder).read_bytes() == DATA
    assert web.ranges == [None, f"bytes={MIB}-"]


def test_a_download_ends_at_its_deadline_though_nothing_comes(web: Web, folder: Path) -> None:
    web.next.append(stall(MIB))
    began = time.monotonic()
    with pytest.raises(DeadlinePassed):
        download(web.url(), SHA256, folder, Deadline(0.5))
    assert time.monotonic() - began < 10  # it would be half a minute
    assert fetch(web, folder).read_bytes() == DATA
    assert web.ranges == [None, f"bytes={MIB}-"]


def test_an_interrupted_download_of_unknown_length_is_not_taken_for_whole(web: Web, folder: Path) -> None:
    def trick(handler: object) -> None:
        handler.say(200, {"Content-Length": None, "ETag": '"1"'}, DATA[:MIB])  # type: ignore[attr-defined] # a Handler
        web.arrived.set()
        web.released.wait(30)

    web.next.append(trick)
    interrupted = threading.Event()

    def interrupt() -> None:
        web.arrived.wait(30)
        interrupted.set()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(DeadlinePassed):
        download(web.url(), SHA256, folder, Deadline(30, interrupted=interrupted))
    thread.join()
    assert names(folder) == ["sha256.from", "sha256.part"]
    assert fetch(web, folder).read_bytes() == DATA


def test_redirects_are_followed(web: Web, folder: Path) -> None:
    web.next += [redirect("/here"), redirect(web.url("/there"), 307), redirect("image#part", 301)]
    assert fetch(web, folder, path="/somewhere").read_bytes() == DATA
    assert [request.path for request in web.requests] == ["/somewhere", "/here", "/there", "/image"]


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("http://example.org/image", "example.org: plain http"),
        ("http://169.254.169.254/latest/meta-data/", "169.254.169.254: plain http"),
        ("ftp://example.org/image", "over ftp"),
        ("file:///etc/passwd", "over file"),
        ("https://me:hunter2@example.org/image", "no user name"),
        ("https://", "not a usable address"),
        ("http://[", "not a usable address"),
    ],
)
def test_a_redirect_to_elsewhere_is_refused(web: Web, folder: Path, place: str, words: str) -> None:
    web.next.append(redirect(place))
    with pytest.raises(DriverError, match=words) as caught:
        fetch(web, folder)
    assert not isinstance(caught.value, Transient)
    assert "hunter2" not in str(caught.value)
    assert names(folder) in ([], ["sha256.part"])


@pytest.mark.parametrize("place", ["http://127.0.0.1:8080/x", "https://localhost/x", "http://[::1]/x", "//127.1.2.3/x"])
def test_nobody_outside_leads_to_this_machine(place: str) -> None:
    """There is no outside in a test, so what follows a redirect is asked directly."""
    outside = "https://example.org/image"
    with pytest.raises(DriverError, match="this machine itself"):
        redirected(outside, outside, place)
    assert redirected(outside, outside, "https://mirror.example.org/x") == "https://mirror.example.org/x"
    assert redirected(outside, "http://127.0.0.1:1/x", "y") == "http://127.0.0.1:1/y"


def test_redirects_in_a_circle_end(web: Web, folder: Path) -> None:
    web.next += [redirect("/image")] * 20
    with pytest.raises(DriverError, match="more than 5 times"):
        fetch(web, folder)
    assert len(web.requests) == 6


def test_the_address_that_was_not_found_is_named_after_a_redirect(web: Web, folder: Path) -> None:
    web.next.append(redirect("/gone?key=hunter2"))
    with pytest.raises(NotFound) as caught:
        fetch(web, folder)
    assert caught.value.details == f"the server says 404 Not Found, for {web.url('/gone')}?…"


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/image",
        "https://me:hunter2@example.org/image",
        "ftp://127.0.0.1/image",
        "file:///etc/passwd",
        "https://a..b/image",
        f"https://{'a' * 64}.example/image",
        "https://999.1.1.1/image",
        "https://[1:2]/image",
        "https://xn--a/image",
    ],
)
def test_an_address_that_no_plan_may_have_is_refused_here_as_well(folder: Path, url: str) -> None:
    with pytest.raises(DriverError) as caught:
        download(url, SHA256, folder, Deadline(30))
    assert not isinstance(caught.value, Transient)
    assert caught.value.details and caught.value.resolution
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("checksum", [None, "", "md5:abc", "sha256:" + "0" * 63, "sha256:../../x"])
def test_nothing_is_fetched_that_cannot_be_known(web: Web, folder: Path, checksum: str | None) -> None:
    with pytest.raises(DriverError, match="no checksum"):
        download(web.url(), checksum, folder, Deadline(30))
    assert web.requests == []


def test_this_machine_is_not_asked_through_a_proxy(web: Web, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert fetch(web, folder).read_bytes() == DATA


def test_a_folder_that_cannot_be_written_is_an_error_in_three_parts(web: Web, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DriverError) as caught:
        fetch(web, tmp_path / "file" / "downloads")
    assert caught.value.details and caught.value.resolution


def test_several_that_want_a_file_fetch_it_once(web: Web, folder: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch(web, folder), range(4)))
    assert {path.read_bytes() for path in paths} == {DATA}
    assert len(web.requests) == 1


def test_who_waits_for_another_process_stops_at_the_deadline(web: Web, folder: Path) -> None:
    web.next.append(stall(MIB))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(fetch, web, folder)
        assert web.arrived.wait(30)
        with pytest.raises(DeadlinePassed):
            download(web.url(), SHA256, folder, Deadline(0.3))
        web.released.set()
        assert first.result().read_bytes() == DATA
    assert len(web.requests) == 1


CHILD = """
import sys
from pathlib import Path
from drivers.download import download
from planvirt.deadline import Deadline
download(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Deadline(60))
"""


def test_a_killed_process_leaves_its_part_to_the_next(web: Web, folder: Path) -> None:
    web.next.append(stall(2 * MIB))
    child = subprocess.Popen([sys.executable, "-c", CHILD, web.url(), SHA256, str(folder)])
    assert web.arrived.wait(30)
    part = folder / f"{whole_file(folder, SHA256).name}.part"
    _until(lambda: part.exists() and part.stat().st_size == 2 * MIB)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert fetch(web, folder).read_bytes() == DATA
    assert web.ranges == [None, f"bytes={2 * MIB}-"]
    assert names(folder) == ["sha256"]


def _until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def authority(tmp_path: Path) -> tuple[Path, Path]:
    """An authority of our own, and a certificate for this machine that it has signed, with its key."""
    subprocess.run(["/bin/sh", "-ec", AUTHORITY], cwd=tmp_path, check=True, capture_output=True)
    return tmp_path / "ca.pem", tmp_path / "both.pem"


AUTHORITY = """
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj '/CN=our own' \
  -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign -keyout ca.key -out ca.pem
openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=here -keyout key.pem -out request.pem
printf 'subjectAltName=IP:127.0.0.1\\nauthorityKeyIdentifier=keyid\\n' > extensions
openssl x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out here.pem
cat here.pem key.pem > both.pem
"""


def test_tls_is_verified(authority: tuple[Path, Path], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca, both = authority
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    with web_server(both) as web:
        web.files["/image"] = File(DATA)
        with pytest.raises(DriverError) as caught:
            fetch(web, folder)
        assert not isinstance(caught.value, Transient)
        assert "not trusted" in caught.value.details and "SSL_CERT_FILE" in caught.value.resolution
        assert web.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", str(ca))
        with pytest.raises(DriverError, match="not trusted: Hostname mismatch"):
            download(web.url(host="localhost"), SHA256, folder, Deadline(30))
        web.next.append(cut(MIB))
        with pytest.raises(Transient):
            fetch(web, folder)
        web.next.append(stall(MIB))
        with pytest.raises(DeadlinePassed):
            download(web.url(), SHA256, folder, Deadline(0.5))
        assert fetch(web, folder).read_bytes() == DATA
        assert web.ranges == [None, f"bytes={MIB}-", f"bytes={2 * MIB}-"]
        monkeypatch.setenv("SSL_CERT_FILE", str(folder / "nothing"))
        with pytest.raises(DriverError, match="certificates of authorities"):
            fetch(web, folder, SHA512)


def test_from_https_nothing_leads_to_plain_http(
    authority: tuple[Path, Path], web: Web, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority[0]))
    with web_server(authority[1]) as safe:
        safe.next.append(redirect("http://example.org/image"))
        with pytest.raises(DriverError, match="plain http"):
            fetch(safe, folder)
