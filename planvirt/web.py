"""Addresses of the web that an image may come from: encrypted, or on this machine, and without a password in them."""

import ipaddress
import re

_ADDRESS = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<who>[^/?#]*@)?(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[!-~]*|\?[!-~]*)?",
    re.IGNORECASE,
)
_BEGIN = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://.*", re.DOTALL)
_LONGEST = 2000


class AddressRefused(Exception):
    """An address that nothing is fetched from."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def is_address(text: str) -> bool:
    """Whether the text is meant as an address, be it a right one or not."""
    return _BEGIN.fullmatch(text) is not None


def check_address(text: str) -> None:
    """Raise AddressRefused, without repeating a password, if nothing may be fetched from there."""
    match = _ADDRESS.fullmatch(text)
    scheme = text.partition(":")[0].lower()
    if scheme not in ("http", "https"):
        raise AddressRefused(f"nothing can be fetched over {scheme}", "give an address that starts with 'https://'")
    if "@" in text.partition("://")[2].partition("/")[0].partition("?")[0]:
        hint = "take them out; an image that needs them can be kept in a store"
        raise AddressRefused("an address must hold no user name and no password", hint)
    fits = match is not None and len(text) <= _LONGEST and "#" not in text and 0 < int(match["port"] or 1) < 1 << 16
    if match is None or not fits or not _is_host(match["host"]):
        raise AddressRefused("this is not a usable address", "write it as 'https://HOST/PATH', escaped as in a browser")
    if scheme == "http" and not is_loopback(text):
        hint = f"try 'https{text[4:]}'" if "?" not in text else "try it with 'https://'"
        raise AddressRefused("plain http is only for this machine itself", hint)


def is_loopback(text: str) -> bool:
    """Whether an address is of this machine itself, by its spelling: no name is looked up."""
    match = _ADDRESS.fullmatch(text)
    host = "" if match is None else match["host"].lower().strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_host(text: str) -> bool:
    """Whether the text can be a host's name or number."""
    try:
        if text.startswith("[") or text.rpartition(".")[2].isdecimal():
            ipaddress.ip_address(text.strip("[]"))
            return True
    except ValueError:
        return False
    return all(0 < len(label) < 64 for label in text.split("."))


def shown(text: str) -> str:
    """The address as messages have it: a query may hold a key that opens a bucket."""
    return text if "?" not in text else f"{text.partition('?')[0]}?…"
