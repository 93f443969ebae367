"""Fetching what a URL in a request leads to, and nothing that the requester could not reach anyway.

A server that fetches URLs for others lends them its place in the network. So a host is looked up once, every address
must be public, the connection goes to the very address that was checked, and redirects are checked like the first URL.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 3
_CHUNK = 64 * 1024
# IPv4 addresses in IPv6 ones, as gateways translate them.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class FetchError(ValueError):
    """What a URL leads to is not allowed, or cannot be had."""


@dataclass(frozen=True)
class FetchPolicy:
    """What may be fetched.

    Attributes:
        domains: hosts, private ones too; None: any public one.
        local_path: folder that ``file://`` may lead into; None: none.
        seconds: for one fetch, redirects and all.
        max_bytes: of what is fetched.
    """

    domains: frozenset[str] | None = None
    local_path: Path | None = None
    seconds: float = 30.0
    max_bytes: int = 64 * 2**20


def fetch(url: str, policy: FetchPolicy) -> bytes:
    """What a URL leads to.

    Raises:
        FetchError: it is not allowed, not there, too large or too slow.
    """
    if url.startswith("file:"):
        return _local(url, policy)
    deadline = time.monotonic() + policy.seconds
    for _ in range(_MAX_REDIRECTS + 1):
        parts, host, port = _parse(url)
        address = _address(host, port, policy)
        try:
            answer = _get(parts, host, port, address, deadline, policy)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, FetchError):
                raise
            raise FetchError(f"the URL at {host} cannot be fetched ({type(error).__name__})") from error
        if isinstance(answer, bytes):
            return answer
        url = urljoin(url, answer)
    raise FetchError("the URL redirects too often")


def _parse(url: str) -> tuple[SplitResult, str, int]:
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme, 0)
        host = (parts.hostname or "").rstrip(".").encode("idna").decode("ascii") if parts.hostname else ""
    except (ValueError, UnicodeError) as error:
        raise FetchError("the URL is malformed") from error
    if parts.scheme not in _PORTS:
        raise FetchError(f"URLs may begin with http:, https: or data:, not with {parts.scheme or 'nothing'}:")
    if not host or parts.username is not None or parts.password is not None:
        raise FetchError("the URL has no host, or a password")
    return parts, host, port


def _address(host: str, port: int, policy: FetchPolicy) -> str:
    """The address to connect to."""
    if policy.domains is not None and host not in policy.domains:
        raise FetchError(f"nothing may be fetched from {host}")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise FetchError(f"the host {host} is not known") from error
    addresses = [str(entry[4][0]).partition("%")[0] for entry in found]
    if policy.domains is None and not all(map(is_public, addresses)):
        raise FetchError(f"the host {host} is not public; --allowed-media-domains can allow it")
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an address is one that everybody can reach, seen through the ways to write IPv4 in IPv6."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in _NAT64:
            inner.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        if not all(item.is_global for item in inner if item is not None):
            return False
    return ip.is_global and not ip.is_multicast


class _Pinned(http.client.HTTPConnection):
    """A connection to an address that was checked, whatever the name means by now."""

    def __init__(self, host: str, port: int, address: str, seconds: float, secure: bool) -> None:
        super().__init__(host, port, timeout=seconds)
        self._address, self._secure = address, secure

    def connect(self) -> None:
        sock = socket.create_connection((self._address, self.port), self.timeout)
        self.sock = ssl.create_default_context().wrap_socket(sock, server_hostname=self.host) if self._secure else sock


def _get(parts: SplitResult, host: str, port: int, address: str, deadline: float, policy: FetchPolicy) -> bytes | str:
    """The body, or where a redirect leads."""
    connection = _Pinned(host, port, address, _left(deadline), parts.scheme == "https")
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers={"Accept": "*/*", "Accept-Encoding": "identity"})
        answer = connection.getresponse()
        if answer.status in _REDIRECTS and answer.getheader("Location"):
            return str(answer.getheader("Location"))
        if answer.status != 200:
            raise FetchError(f"{host} answered with status {answer.status}")
        if int(answer.getheader("Content-Length") or 0) > policy.max_bytes:
            raise FetchError(f"what the URL leads to is larger than {policy.max_bytes} bytes")
        body = bytearray()
        while chunk := answer.read(_CHUNK):
            body += chunk
            if len(body) > policy.max_bytes:
                raise FetchError(f"what the URL leads to is larger than {policy.max_bytes} bytes")
            if connection.sock is not None:
                connection.sock.settimeout(_left(deadline))
            else:
                _left(deadline)
        return bytes(body)
    finally:
        connection.close()


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise FetchError("fetching the URL took too long")
    return left


def _local(url: str, policy: FetchPolicy) -> bytes:
    if policy.local_path is None:
        raise FetchError("files of the server are not open to requests; --allowed-local-media-path can allow a folder")
    parts = urlsplit(url)
    root = policy.local_path.resolve()
    path = Path(unquote(parts.path)).resolve()
    if parts.netloc not in ("", "localhost") or not path.is_relative_to(root):
        raise FetchError("the file is not in the folder that is open to requests")
    try:
        if not path.is_file() or path.stat().st_size > policy.max_bytes:
            raise FetchError("there is no such file, or it is too large")
        return path.read_bytes()
    except OSError as error:
        raise FetchError("the file cannot be read") from error
