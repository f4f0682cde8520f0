"""What Glance's and Keystone's refusals mean in planvirt's words, in one place."""

import html
import re

import requests
from keystoneauth1 import exceptions

from drivers.again import Busy, retry_after
from drivers.errors import DriverError, NotFound, OutOfSpace, Transient
from planvirt.errors import Conflict, PlanvirtError

_PASSING = {408, 429, 500, 502, 503, 504}
_LONGEST = 300  # characters of what a server says


class Forbidden(DriverError):
    """The server knows who asks, and does not let him do that."""


def refused(brief: str, response: requests.Response) -> PlanvirtError:
    """What an answer of the image service that is no success means."""
    status = response.status_code
    details = f"the server says {status} {_said(response)}".rstrip()
    if status in _PASSING or (status == 413 and "Retry-After" in response.headers):
        return _busy(brief, details, response)
    if status in (413, 507):
        return OutOfSpace(brief, details=details, resolution="make room there, or choose another store")
    if status == 401:
        return DriverError(brief, details=details, resolution="check who the store's configuration says that it is")
    if status == 403:
        return Forbidden(brief, details=details, resolution="give the store's user the role member in its project")
    if status in (404, 410):
        return NotFound(brief, details=details)
    if status == 409:
        return Conflict(brief, details=details)
    if status < 400:
        place = response.headers.get("Location")
        details = f"{details} and to go to {place}" if place else details
        return DriverError(brief, details=details, resolution="name the image service itself as the store's url")
    return DriverError(brief, details=details)


def _busy(brief: str, details: str, response: requests.Response | None) -> Busy:
    pause = None if response is None else retry_after(response.headers.get("Retry-After"))
    asks = "" if pause is None else f", and to come back in {pause:g} s"
    return Busy(brief, details=details + asks, after=pause)


def failed(brief: str, error: exceptions.ClientException) -> PlanvirtError:
    """What it means that there was no answer of the image service: on the way there, or at Keystone."""
    details = cause(error)
    if isinstance(error, exceptions.SSLError):
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            wanted = "name the authority's certificate as the store's ca_file"
            return DriverError(brief, details=details, resolution=wanted)
        return Transient(brief, details=details)
    if isinstance(error, exceptions.ConnectionError):
        return Transient(brief, details=details)
    if isinstance(error, exceptions.HttpError):
        return _refused_by_keystone(brief, error)
    if isinstance(error, exceptions.CatalogException):
        wanted = "check the store's region and interface, or name the image service as its url"
        return DriverError(brief, details="Keystone's catalog has no image service for it", resolution=wanted)
    return DriverError(brief, details=details, resolution="check the store's auth_url")


def _refused_by_keystone(brief: str, error: exceptions.HttpError) -> PlanvirtError:
    details = f"Keystone says {error.http_status} {_line(error.message or '')}".rstrip()
    if error.http_status in _PASSING:
        return _busy(brief, details, error.response)
    if error.http_status == 401:
        wanted = "check the store's user, password and project, or its application credential"
        return DriverError(brief, details=details, resolution=wanted)
    return DriverError(brief, details=details, resolution="check the store's auth_url")


def _said(response: requests.Response) -> str:
    """The server's own words, which come as JSON, as a page or as text."""
    try:
        text = response.text
        if text.startswith("{"):
            text = str(response.json().get("message", ""))
    except (requests.RequestException, ValueError):
        text = ""
    return _line(re.sub(r"<(head|title)>.*?</\1>", " ", text, flags=re.DOTALL)) or response.reason or ""


def cause(error: Exception) -> str:
    """What has really happened, below the layers of libraries; with the server's name if that is known."""
    inner: BaseException = error
    while (below := inner.__cause__ or inner.__context__ or getattr(inner, "reason", None)) is not None:
        if not isinstance(below, Exception):
            break
        inner = below
    place = re.search(r"https?://([^/\s]+)", str(error))
    text = (isinstance(inner, OSError) and inner.strerror) or str(inner) or type(inner).__name__
    text = text[:1].lower() + text[1:]
    return _line(f"{place[1]}: {text}" if place and inner is not error else text)


def _line(text: str) -> str:
    """The text without marks of HTML, on one line that is not too long."""
    plain = " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())
    return plain if len(plain) <= _LONGEST else f"{plain[: _LONGEST - 1]}…"
