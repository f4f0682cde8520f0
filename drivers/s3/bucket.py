"""A bucket: the only place that speaks boto3."""

import contextlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import boto3.session
import botocore.session
from botocore.config import Config as ClientConfig
from botocore.exceptions import BotoCoreError
from botocore.loaders import create_loader

from drivers.errors import NotFound, Unsupported
from drivers.reading import PIECE
from drivers.s3.faults import translated
from planvirt.errors import ConfigError, Conflict
from planvirt.secret import Secret

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client
    from types_boto3_s3.type_defs import CompletedPartTypeDef

_DESCRIPTIONS = create_loader()  # of S3's interface: to read them takes a tenth of a second, so stores share them
_CONNECT_TIMEOUT, _READ_TIMEOUT = 10, 60  # seconds


@dataclass(frozen=True, slots=True)
class S3Settings:
    """The keys of an S3 store in planvirt.toml."""

    bucket: str
    prefix: str = ""
    region: str | None = None
    endpoint_url: str | None = None
    access_key_id: str | None = None
    secret_access_key_secret: str | None = None
    ca_file: str | None = None


@dataclass(frozen=True, slots=True)
class Head:
    """What a server says of an object."""

    size: int
    etag: str


class Bucket:
    """The bucket of a store, connected when it is first used. Every method tells `brief` when it fails."""

    def __init__(self, store: str, settings: S3Settings, secrets: Mapping[str, Secret]) -> None:
        self.name = settings.bucket
        self._store = store
        self._settings = settings
        self._secrets = secrets
        self._lock = threading.Lock()
        self._client: S3Client | None = None

    # Objects

    def put(self, key: str, body: bytes | BinaryIO, brief: str, *, md5: str | None = None) -> None:
        """Write an object; the server compares it with the MD5 sum."""
        with self._translated(brief):
            if md5 is None:
                self._connected().put_object(Bucket=self.name, Key=key, Body=body)
            else:
                self._connected().put_object(Bucket=self.name, Key=key, Body=body, ContentMD5=md5)

    def put_new(self, key: str, text: str, brief: str) -> None:
        """Write an object that is not there yet; Conflict when it is."""
        try:
            with self._translated(brief):
                self._connected().put_object(Bucket=self.name, Key=key, Body=text.encode(), IfNoneMatch="*")
        except Unsupported:  # a server without conditions: look first
            if self.head(key, brief) is not None:
                raise Conflict(brief, details="somebody else has just done so") from None
            self.put(key, text.encode(), brief)

    def get(self, key: str, brief: str) -> bytes | None:
        """A small object, or None."""
        with contextlib.suppress(NotFound), self._translated(brief):
            body = self._connected().get_object(Bucket=self.name, Key=key)["Body"]
            with closing(body):
                return body.read()
        return None

    def head(self, key: str, brief: str) -> Head | None:
        """What the server has of an object, or None."""
        with contextlib.suppress(NotFound), self._translated(brief):
            found = self._connected().head_object(Bucket=self.name, Key=key)
            return Head(found["ContentLength"], found["ETag"].strip('"'))
        return None

    @contextmanager
    def read_from(self, key: str, start: int, brief: str) -> Iterator[Iterator[bytes]]:
        """A large object from an offset on."""
        with self._translated(brief):
            # An empty object has no range.
            asked = self._connected().get_object
            answer = (
                asked(Bucket=self.name, Key=key, Range=f"bytes={start}-") if start else asked(Bucket=self.name, Key=key)
            )
        with closing(answer["Body"]) as body:

            def received() -> Iterator[bytes]:
                while True:
                    with self._translated(brief):
                        piece = body.read(PIECE)
                    if not piece:
                        return
                    yield piece

            yield received()

    def keys(self, prefix: str, brief: str) -> Sequence[str]:
        """All objects whose keys begin so."""
        with self._translated(brief):
            pages = self._connected().get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
            return [item["Key"] for page in pages for item in page.get("Contents", ())]

    def delete(self, keys: Iterable[str], brief: str) -> None:
        """Delete objects, one after the other. A missing one counts as deleted."""
        for key in keys:
            with contextlib.suppress(NotFound), self._translated(brief):
                self._connected().delete_object(Bucket=self.name, Key=key)

    # Uploads in parts

    def begin_upload(self, key: str, brief: str) -> str:
        """Begin an object in parts; returns the upload's id."""
        with self._translated(brief):
            return self._connected().create_multipart_upload(Bucket=self.name, Key=key)["UploadId"]

    def send_part(self, key: str, upload: str, number: int, body: BinaryIO, md5: str, brief: str) -> str:
        """Send a part, which the server compares with the MD5 sum; returns its ETag."""
        with self._translated(brief):
            answer = self._connected().upload_part(
                Bucket=self.name, Key=key, UploadId=upload, PartNumber=number, Body=body, ContentMD5=md5
            )
            return answer["ETag"]

    def complete_upload(self, key: str, upload: str, etags: Sequence[str], brief: str) -> None:
        """Make one object of the parts."""
        parts: list[CompletedPartTypeDef] = [
            {"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)
        ]
        with self._translated(brief):
            self._connected().complete_multipart_upload(
                Bucket=self.name, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
            )

    def abort_uploads(self, prefix: str, brief: str) -> None:
        """Make the server forget the parts of all unfinished objects whose keys begin so."""
        with self._translated(brief):
            pages = self._connected().get_paginator("list_multipart_uploads").paginate(Bucket=self.name, Prefix=prefix)
            found = [(item["Key"], item["UploadId"]) for page in pages for item in page.get("Uploads", ())]
        for key, upload in found:
            with contextlib.suppress(NotFound), self._translated(brief):
                self._connected().abort_multipart_upload(Bucket=self.name, Key=key, UploadId=upload)

    # The connection

    def _translated(self, brief: str) -> AbstractContextManager[None]:
        return translated(brief, self.name)

    def _connected(self) -> "S3Client":
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> "S3Client":
        settings = self._settings
        brief, place = f"cannot open image store {self._store}", f"[stores.{self._store}]"
        if settings.ca_file is not None and not Path(settings.ca_file).is_file():
            details = f"there is no file {settings.ca_file}"
            raise ConfigError(brief, details=details, resolution=f"check ca_file in {place}")
        own = settings.secret_access_key_secret
        key = None if own is None else self._secrets[own].reveal()
        try:
            core = botocore.session.get_session()
            core.register_component("data_loader", _DESCRIPTIONS)
            session = boto3.session.Session(
                settings.access_key_id, key, region_name=settings.region, botocore_session=core
            )
            return session.client(
                "s3",
                endpoint_url=settings.endpoint_url,
                verify=settings.ca_file,
                config=ClientConfig(
                    connect_timeout=_CONNECT_TIMEOUT,
                    read_timeout=_READ_TIMEOUT,
                    retries={"total_max_attempts": 1},  # the plan says how often
                    s3={"addressing_style": "path" if settings.endpoint_url else "auto"},
                    # Every server knows Content-MD5, which uploads bring. What boto3 would add, not every one does.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )
        except (BotoCoreError, ValueError) as error:
            raise ConfigError(
                brief, details=str(error), resolution=f"check {place}, and boto3's own configuration"
            ) from error
