"""boto3's errors in planvirt's words, in one place."""

from collections.abc import Iterator
from contextlib import contextmanager

import botocore.exceptions as faults

from drivers.again import Busy, Damaged, retry_after
from drivers.errors import DriverError, NotFound, OutOfSpace, Transient, Unsupported, WrongChecksum
from planvirt.errors import Conflict, PlanvirtError

_FULL = {"EntityTooLarge", "InsufficientStorage", "QuotaExceeded", "StorageFull", "XMinioStorageFull"}
_PASSING = {
    "ConditionalRequestConflict",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
}
_DAMAGED = {"BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch"}


@contextmanager
def translated(brief: str, bucket: str) -> Iterator[None]:
    """Tell of the server's and the connection's trouble with a bucket."""
    try:
        yield
    except faults.ClientError as error:
        raise _refused(brief, bucket, error) from error
    except faults.BotoCoreError as error:
        raise _failed(brief, error) from error


def _refused(brief: str, bucket: str, error: faults.ClientError) -> PlanvirtError:
    """What an answer of the server means. A conflict is that something is there which was to be new."""
    code, message = error.response["Error"].get("Code", ""), error.response["Error"].get("Message", "")
    answer = error.response["ResponseMetadata"]
    status = answer["HTTPStatusCode"]
    details = f"the server says {code}: {message}" if message else f"the server says {code}"
    if code == "NoSuchBucket":
        details = f"there is no bucket {bucket}"
        return DriverError(brief, details=details, resolution="make the bucket, or name another one")
    if code in _FULL or status in (413, 507):
        return OutOfSpace(brief, details=details, resolution="make room there, or choose another store")
    if code in _DAMAGED:
        return Damaged(brief, details=details, resolution="see what is between this machine and the server")
    if status == 416:
        return WrongChecksum(brief, details="the content ends too early")
    if status == 412:
        return Conflict(brief, details=details)
    if code in _PASSING or status in (429, 500, 502, 503, 504):
        pause = retry_after(answer["HTTPHeaders"].get("retry-after"))
        asks = "" if pause is None else f", and to come back in {pause:g} s"
        return Busy(brief, details=details + asks, after=pause)
    if status == 404:
        return NotFound(brief, details=details)
    if status == 501:
        return Unsupported(brief, details=details)
    if status in (401, 403):
        wanted = "check the store's keys, what they may do in the bucket, and this machine's clock"
        return DriverError(brief, details=details, resolution=wanted)
    return DriverError(brief, details=details)


def _failed(brief: str, error: faults.BotoCoreError) -> DriverError:
    """What it means that there was no answer."""
    details = str(error)
    if isinstance(error, faults.SSLError) and "CERTIFICATE_VERIFY_FAILED" in details:
        return DriverError(brief, details=details, resolution="name the authority's certificate as the store's ca_file")
    if isinstance(error, faults.NoCredentialsError | faults.PartialCredentialsError):
        wanted = "give the store an access_key_id and a secret_access_key_secret, or set up boto3's own"
        return DriverError(brief, details=details.lower(), resolution=wanted)
    if isinstance(error, faults.HTTPClientError | faults.ConnectionError | faults.IncompleteReadError):
        return Transient(brief, details=details)
    return DriverError(brief, details=details)
