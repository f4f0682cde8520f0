"""The S3 server of the tests: OpenStack Swift with its S3 interface, on loopback, with one disk in a temporary folder.

Swift is what clouds run. Of the S3 servers that come as packages, it is the only one of that kind which starts in a few
seconds: Ceph wants a cluster, and s3rver or moto are imitations that accept too much.
"""

import getpass
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import pytest

from drivers.s3.bucket import S3Settings
from planvirt.secret import Secret
from tests.drivers.ports import free_ports

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

_HOME = Path(__file__).parents[2] / ".demo" / "swift"
_SERVERS = ("account", "container", "object")
_RINGS = """
from swift.common.ring import RingBuilder
for kind, port in {ports!r}.items():
    ring = RingBuilder(2, 1, 1)
    ring.add_dev({{"region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "device": "disk", "weight": 1.0}})
    ring.rebalance()
    ring.get_ring().save("{folder}/" + kind + ".ring.gz")
"""
_COMMON = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}
devices = {folder}/disks
mount_check = false
log_level = ERROR
"""
_STORAGE = """
[pipeline:main]
pipeline = {kind}-server

[app:{kind}-server]
use = egg:swift#{kind}
"""
_PROXY = """
[pipeline:main]
pipeline = catch_errors healthcheck listing_formats s3api tempauth slo proxy-server

[filter:tempauth]
use = egg:swift#tempauth
user_planvirt_tester = secret .admin

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
""" + "".join(
    f"\n[filter:{name}]\nuse = egg:swift#{name}\n"
    for name in ("catch_errors", "healthcheck", "listing_formats", "slo", "s3api")
)
_PROXY += "max_bucket_listing = 3\n"  # so that every list has several pages


@dataclass
class Swift:
    """A running server with one bucket."""

    port: int
    bucket: str = "images"

    @property
    def secrets(self) -> dict[str, Secret]:
        """What an operator would have in [secrets]."""
        return {"s3_key": Secret("secret")}

    def settings(self, prefix: str, *, port: int | None = None) -> S3Settings:
        """What an operator would write into planvirt.toml, for a part of the bucket."""
        return S3Settings(
            bucket=self.bucket,
            prefix=prefix,
            region="us-east-1",
            endpoint_url=f"http://127.0.0.1:{port or self.port}",
            access_key_id="planvirt:tester",
            secret_access_key_secret="s3_key",  # noqa: S106 - a name
        )

    def contents(self, prefix: str) -> list[str]:
        """What is in a part of the bucket: the keys of objects, and those of unfinished uploads with a star."""
        objects = self.client.list_objects_v2(Bucket=self.bucket, Prefix=prefix).get("Contents", ())
        uploads = self.client.list_multipart_uploads(Bucket=self.bucket, Prefix=prefix).get("Uploads", ())
        found = [item["Key"] for item in objects] + [f"{item['Key']}*" for item in uploads]
        return sorted(each.removeprefix(prefix) for each in found)

    @cached_property
    def client(self) -> "S3Client":
        """A client beside the store."""
        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            region_name="us-east-1",
            aws_access_key_id="planvirt:tester",
            aws_secret_access_key="secret",  # noqa: S106 - of a server that lives for a minute
        )


@contextmanager
def server() -> Iterator[Swift]:
    """Start a server, and stop it."""
    if not (_HOME / "installed.txt").exists():
        pytest.fail(
            "cannot test the S3 store: there is no Swift; run 'scripts/setup-swift.sh .demo/swift', or leave these"
            " tests out with -m 'not real'",
            pytrace=False,
        )
    # Beside its programs and not in /tmp, which may be a file system that keeps no attributes of files.
    with tempfile.TemporaryDirectory(dir=_HOME.parent, prefix="swift-") as temporary, ExitStack() as running:
        folder = Path(temporary)
        (folder / "disks" / "disk").mkdir(parents=True)
        (folder / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = planvirt\n")
        ports = dict(zip(("proxy", *_SERVERS), free_ports(4), strict=True))
        storage = {kind: ports[kind] for kind in _SERVERS}
        _run("-c", _RINGS.format(ports=storage, folder=folder))
        for kind, port in ports.items():
            text = _COMMON.format(port=port, user=getpass.getuser(), folder=folder)
            (folder / f"{kind}.conf").write_text(text + (_STORAGE.format(kind=kind) if kind in storage else _PROXY))
        logs = [folder / f"{kind}.log" for kind in ports]
        for kind, log in zip(ports, logs, strict=True):
            running.enter_context(_started(kind, folder / f"{kind}.conf", log))
        swift = Swift(ports["proxy"])
        _wait(swift, list(ports.values()), logs)
        swift.client.create_bucket(Bucket=swift.bucket)
        yield swift


def _run(*arguments: str) -> None:
    done = subprocess.run([_HOME / "bin" / "python", *arguments], capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        pytest.fail(f"cannot make Swift's rings: {done.stderr}", pytrace=False)


@contextmanager
def _started(kind: str, configuration: Path, log: Path) -> Iterator[None]:
    program = [str(_HOME / "bin" / "python"), str(_HOME / "bin" / f"swift-{kind}-server"), str(configuration)]
    command = ["setpriv", "--pdeathsig", "KILL", *program]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield
    finally:
        process.kill()
        process.wait(30)


def _wait(swift: Swift, ports: list[int], logs: list[Path]) -> None:
    """Until all four answer: what asks the proxy for a bucket asks the others, too."""
    for _ in range(600):
        if all(_answers(port) for port in ports):
            return
        time.sleep(0.05)
    pytest.fail(f"cannot reach Swift on port {swift.port}: {''.join(log.read_text() for log in logs)}", pytrace=False)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthcheck", timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
