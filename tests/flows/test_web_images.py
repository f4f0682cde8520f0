"""Images from a real web server, on simulated hosts: fetched once, by the step that needs them, and judged."""

import hashlib
import io
import subprocess
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from drivers.simulated.disk_file import qcow2
from flows.cli import main
from planvirt.journal.transitions import RunState
from tests.drivers.web_server import File, Web, cut, refuse, web_server
from tests.flows.workshop import Workshop
from tests.flows.yard import Yard

MIB = 1 << 20
GOOD = qcow2(8 * MIB, b"content", None)
HOSTILE = qcow2(8 * MIB, b"", "/etc/passwd")

PLAN = """\
defaults: {{retry: {{attempts: 4, delay: 10ms}}}}
images:
  base: {{source: "{url}", checksum: "{checksum}", format: qcow2}}
instances:
  web: {{image: base, memory: 64 MiB, count: 3}}
  far: {{image: base, memory: 64 MiB, host: kvm2}}
"""


@pytest.fixture
def web() -> Iterator[Web]:
    with web_server() as running:
        running.files["/image"] = File(GOOD)
        yield running


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return Yard(tmp_path / "yard")


def text(web: Web, data: bytes = GOOD, kind: str = "sha256") -> str:
    return PLAN.format(url=web.url(), checksum=f"{kind}:{hashlib.new(kind, data).hexdigest()}")


def error(yard: Yard) -> str:
    """The error of the latest run."""
    (record,) = yard.journal.runs(limit=1)
    assert record.error is not None
    return "\n".join(record.error.values())


def test_one_download_serves_instances_hosts_and_runs(yard: Yard, web: Web) -> None:
    assert yard.run(text(web)) == RunState.SUCCEEDED
    assert len(web.requests) == 1
    assert yard.destroy() == RunState.SUCCEEDED
    assert yard.run(text(web), name="another") == RunState.SUCCEEDED
    assert len(web.requests) == 1


@pytest.mark.parametrize("kind", ["sha256", "sha512"])
def test_a_step_that_is_tried_again_reads_on(yard: Yard, web: Web, kind: str) -> None:
    web.next += [cut(100_000), refuse(503, Retry_After=1), cut(50_000)]
    assert yard.run(text(web, kind=kind)) == RunState.SUCCEEDED
    assert web.ranges == [None, "bytes=100000-", "bytes=100000-", "bytes=150000-"]


def test_what_is_not_the_image_of_the_plan_reaches_no_host(yard: Yard, web: Web) -> None:
    assert yard.run(text(web, b"another")) == RunState.ROLLED_BACK
    assert yard.left() == {}
    assert f"cannot use {web.url()}: its checksum is wrong" in error(yard)


def test_a_hostile_image_with_the_right_checksum_reaches_no_host(yard: Yard, web: Web) -> None:
    web.files["/image"] = File(HOSTILE)
    assert yard.run(text(web, HOSTILE)) == RunState.ROLLED_BACK
    assert yard.left() == {}
    assert f"cannot use {web.url()}: it has a backing file" in error(yard)


def test_an_image_that_is_not_there_fails_at_once(yard: Yard, web: Web) -> None:
    del web.files["/image"]
    assert yard.run(text(web)) == RunState.ROLLED_BACK
    assert yard.left() == {}
    assert "the server says 404" in error(yard)


def test_a_copy_that_has_gone_bad_is_fetched_anew(yard: Yard, web: Web) -> None:
    assert yard.run(text(web)) == RunState.SUCCEEDED
    (copy,) = (path for path in (yard.folder / "cache" / "downloads").iterdir() if path.suffix == "")
    copy.write_bytes(HOSTILE)
    assert yard.destroy() == RunState.SUCCEEDED
    assert yard.run(text(web), name="another") == RunState.SUCCEEDED
    assert copy.read_bytes() == GOOD
    assert len(web.requests) == 2


CONFIGURATION = """\
[hosts.kvm1]
driver = "simulated"
path = "kvm1.json"
[hosts.kvm2]
driver = "simulated"
path = "kvm2.json"
[stores.local]
path = "store"
[plans]
default_host = "kvm1"
"""


def command(yard: Yard, monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str]:
    (yard.folder / "planvirt.toml").write_text(CONFIGURATION)
    monkeypatch.chdir(yard.folder)
    monkeypatch.setenv("PLANVIRT_HOME", str(yard.folder))
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(out):
        code = main([*words, "shop.yaml"])
    return code, out.getvalue()


def test_what_only_reads_fetches_nothing(yard: Yard, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    yard.plan(text(web))
    assert command(yard, monkeypatch, "validate")[0] == 0
    assert command(yard, monkeypatch, "preview")[0] == 0
    code, told = command(yard, monkeypatch, "simulate")
    assert code == 0
    assert "(image base was not read: it is taken to be right, and to be small)" in told
    assert web.requests == []


def test_a_rehearsal_looks_at_what_has_been_fetched(yard: Yard, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    assert yard.run(text(web)) == RunState.SUCCEEDED
    assert yard.destroy() == RunState.SUCCEEDED
    small = text(web).replace("count: 3", "count: 3, disks: [4 MiB]")
    yard.plan(small)
    code, told = command(yard, monkeypatch, "simulate")
    assert code == 1
    assert "image base is larger than the disk" in told
    assert len(web.requests) == 1


@pytest.fixture
def shop(running: Workshop) -> Workshop:
    secret = running.folder / "host-secret"
    secret.write_text("the host's own\n")
    overlay = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(secret), "-F", "raw", "evil.qcow2", "8M"]
    subprocess.run(overlay, cwd=running.folder, check=True)
    return running


def machine(shop: Workshop, image: str) -> None:
    instances = "{web: {image: base, memory: 64 MiB}}"
    shop.write("web.yaml", f"planvirt: 1\nname: web\nimages: {{base: {image}}}\ninstances: {instances}\n")


@pytest.mark.real
def test_a_run_with_a_hostile_file_is_refused_before_anything_is_touched(shop: Workshop) -> None:
    machine(shop, "{source: ./evil.qcow2}")
    ended = shop.planvirt("run", "web.yaml", "--yes")
    assert ended.code == 1
    assert ended.err.splitlines() == [
        f"error: cannot use {shop.folder}/evil.qcow2: it has a backing file",
        "  → make a plain, flat qcow2 image of it",
    ]
    assert shop.planvirt("runs").out == "there are no runs yet\n"
    with shop.simulated.world() as world:
        assert not world.volumes and not world.instances


@pytest.mark.real
def test_a_run_with_a_hostile_file_from_the_web_is_undone(shop: Workshop, web: Web) -> None:
    evil = (shop.folder / "evil.qcow2").read_bytes()
    web.files["/evil"] = File(evil)
    machine(shop, f'{{source: "{web.url("/evil")}", checksum: "sha256:{hashlib.sha256(evil).hexdigest()}"}}')
    ended = shop.planvirt("run", "web.yaml", "--yes")
    assert ended.code == 1
    assert f"error: cannot use {web.url('/evil')}: it has a backing file\n" in ended.out
    assert "Traceback" not in ended.out + ended.err
    with shop.simulated.world() as world:
        assert not world.volumes and not world.instances
