"""A registry's answers, and httpx's errors, in planvirt's words, in one place."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from drivers.again import Busy, retry_after
from drivers.errors import DriverError, NotFound, OutOfSpace, Transient, Unsupported, WrongChecksum

_FULL = ("no space left on device", "file too large", "disk quota exceeded")  # what a registry says with a 500
_DAMAGED = {"DIGEST_INVALID", "SIZE_INVALID"}
_LOST = {"BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "MANIFEST_BLOB_UNKNOWN", "RANGE_INVALID"}


@contextmanager
def translated(brief: str) -> Iterator[None]:
    """Tell of the connection's trouble."""
    try:
        yield
    except (httpx.UnsupportedProtocol, httpx.TooManyRedirects, httpx.InvalidURL) as error:
        raise DriverError(brief, details=f"the registry leads to where nothing can be: {error}") from error
    except httpx.TransportError as error:
        details = str(error) or type(error).__name__
        if "CERTIFICATE_VERIFY_FAILED" in details:
            wanted = "name the authority's certificate as the store's ca_file"
            raise DriverError(brief, details=details, resolution=wanted) from error
        raise Transient(brief, details=details) from error
    except httpx.HTTPError as error:
        raise DriverError(brief, details=str(error)) from error


def refused(brief: str, answer: httpx.Response) -> DriverError:
    """What an answer means that is none of those hoped for. Its body is read already."""
    status = answer.status_code
    codes, details = _said(answer)
    if status in (413, 507) or any(words in answer.text.lower() for words in _FULL):
        return OutOfSpace(brief, details=details, resolution="make room there, or choose another store")
    if status == 429 or status >= 500:
        pause = retry_after(answer.headers.get("retry-after"))
        asks = "" if pause is None else f", and to come back in {pause:g} s"
        return Busy(brief, details=details + asks, after=pause)
    if codes & _LOST or status == 416:  # also for a moment, while another upload brings the same content
        return Transient(brief, details=f"the registry has lost what was uploaded: {details}")
    if codes & _DAMAGED:
        return WrongChecksum(brief, details=details, resolution="see what is between this machine and the registry")
    if status == 404:
        return NotFound(brief, details=details)
    if status == 405 or "UNSUPPORTED" in codes:
        return Unsupported(brief, details=details)
    if status in (401, 403):
        wanted = "check the store's username and password_secret, and what they may do in the repository"
        return DriverError(brief, details=details, resolution=wanted)
    return DriverError(brief, details=details)


def _said(answer: httpx.Response) -> tuple[set[str], str]:
    """The codes of the errors in an answer, and the answer in words."""
    try:
        errors: list[Any] = json.loads(answer.text)["errors"]
        codes = {str(error["code"]) for error in errors}
        words = "; ".join(f"{error['code']}: {error.get('message', '')}{_detail(error)}" for error in errors)
    except (ValueError, KeyError, TypeError):
        return set(), f"the registry says {answer.status_code} {answer.reason_phrase}".rstrip()
    return codes, f"the registry says {answer.status_code} {words}"


def _detail(error: dict[str, Any]) -> str:
    detail = error.get("detail")
    return f" ({detail})" if isinstance(detail, str) else ""
