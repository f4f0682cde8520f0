"""Connections on which an upload that fails here ends at the server, too, before anything else is asked of it."""

import contextlib
import socket
from typing import Any

from keystoneauth1.session import TCPKeepAliveAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

_NOTICE = 10.0  # seconds


class SourceFailed(Exception):
    """The body of a request cannot go on. No error of the connection, so that nothing takes it for one."""


class Adapter(TCPKeepAliveAdapter):
    """What requests sends with."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Use connections of our own."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}


class _Connection(HTTPConnection):
    def request(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().request(*args, **kwargs)
        except SourceFailed:
            _end(self.sock)
            raise


class _TLSConnection(HTTPSConnection):
    def request(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().request(*args, **kwargs)
        except SourceFailed:
            _end(self.sock)
            raise


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


def _end(sock: socket.socket | None) -> None:
    """Say that nothing more comes, and wait for what the server says to that: it has tidied up by then."""
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.settimeout(_NOTICE)
            sock.shutdown(socket.SHUT_WR)
            sock.recv(1)
