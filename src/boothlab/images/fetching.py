"""One file from one web address: TLS verified, few redirects, no private hosts, limits on bytes and time."""

import http.client
import ipaddress
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

import certifi
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import Retry, Timeout, parse_url

import boothlab
from boothlab.errors import one_line

CHUNK = 1 << 16
REDIRECTS = frozenset({301, 302, 303, 307, 308})
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that may be another one next time."""
UNTYPED = frozenset({"", "application/octet-stream", "binary/octet-stream"})
"""Content types that say nothing: file stores send them with images too."""
USER_AGENT = f"boothlab/{boothlab.__version__} (research image downloader)"
_LONGEST_REASON = 160


class FetchError(Exception):
    """A file that was not fetched. `wait_s`: how long the server asks to wait.

    `retry`: it may work when tried again; `final`: not even another time, nor with other limits.
    """

    def __init__(
        self, reason: str, *, retry: bool = False, wait_s: float | None = None, final: bool | None = None
    ) -> None:
        super().__init__(one_line(reason)[:_LONGEST_REASON])
        self.reason = str(self)
        self.retry = retry
        self.wait_s = wait_s
        self.final = not retry if final is None else final


@dataclass(frozen=True)
class FetchLimits:
    """What one fetch may cost: bytes of the body; seconds for each answer of the network and for the whole; redirects.

    `allow_private` lets addresses through that are not of the public internet, such as 127.0.0.1.
    """

    max_bytes: int = 20 << 20
    timeout_s: float = 20.0
    deadline_s: float = 60.0
    max_redirects: int = 3
    allow_private: bool = False


class Fetcher:
    """Fetches with kept connections, from any number of threads. `per_host` connections to a host are kept."""

    def __init__(self, limits: FetchLimits, per_host: int = 2) -> None:
        self.limits = limits
        # The certificates that ship with certifi: a bare machine may have none of its own.
        context = ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE") or certifi.where())
        self._pools = urllib3.PoolManager(num_pools=64, maxsize=per_host, ssl_context=context, retries=False)
        plain, encrypted = _connections(limits)
        self._pools.pool_classes_by_scheme = {
            "http": type("HTTPPool", (urllib3.HTTPConnectionPool,), {"ConnectionCls": plain}),
            "https": type("HTTPSPool", (urllib3.HTTPSConnectionPool,), {"ConnectionCls": encrypted}),
        }

    def fetch(self, url: str, pace: Callable[[str], None], stopped: threading.Event) -> bytes:
        """The body behind an address, redirects followed. `pace(host)` is called before a redirect to another host.

        Raises FetchError; `stopped` ends the fetch with one, too.
        """
        deadline = time.monotonic() + self.limits.deadline_s
        for _ in range(self.limits.max_redirects + 1):
            host = host_of(url)
            with _network_errors(host):
                response = self._pools.request(
                    "GET",
                    url,
                    redirect=False,
                    preload_content=False,
                    decode_content=False,
                    timeout=Timeout(connect=self.limits.timeout_s, read=self.limits.timeout_s),
                    headers={"User-Agent": USER_AGENT, "Accept": "image/*", "Accept-Encoding": "identity"},
                )
                try:
                    if response.status not in REDIRECTS:
                        return self._body(response, deadline, stopped)
                    target = _redirected(url, response.headers.get("Location", ""))
                finally:
                    response.close()
            if host_of(target) != host:
                pace(host_of(target))
            url = target
        raise FetchError(f"more than {self.limits.max_redirects} redirects", final=False)

    def _body(self, response: urllib3.BaseHTTPResponse, deadline: float, stopped: threading.Event) -> bytes:
        if response.status != 200:
            text = f"HTTP {response.status} {response.reason or ''}".strip()
            wait_s = _retry_after(response.headers.get("Retry-After"))
            raise FetchError(text, retry=response.status in RETRIED, wait_s=wait_s)
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if not kind.startswith("image/") and kind not in UNTYPED:
            raise FetchError(f"the server says it is {kind}, not an image")
        coding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if coding != "identity":
            raise FetchError(f"sent with the encoding {coding}, which was not asked for")
        declared = response.headers.get("Content-Length", "").strip()
        size = int(declared) if declared.isascii() and declared.isdigit() and len(declared) < 20 else None
        limit = self.limits.max_bytes
        if size is not None and size > limit:
            raise FetchError(f"larger than the limit of {limit} bytes ({size} announced)", final=False)
        body = bytearray()
        while chunk := response.read1(CHUNK, decode_content=False):
            body += chunk
            if len(body) > limit:
                raise FetchError(f"larger than the limit of {limit} bytes", final=False)
            if stopped.is_set():
                raise FetchError("interrupted", retry=True)
            if time.monotonic() > deadline:
                raise FetchError(f"not finished after {self.limits.deadline_s:g} seconds", retry=True)
        if size is not None and len(body) < size:
            raise FetchError(f"cut short ({len(body)} of {size} bytes)", retry=True)
        return bytes(body)


def host_of(url: str) -> str:
    """The host and port of an address, in lower case. Raises FetchError if it is no plain http(s) address."""
    try:
        parts = parse_url(url)
        port = parts.port
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        raise FetchError("not a valid address") from error
    if parts.scheme not in ("http", "https") or not parts.host:
        raise FetchError("not an http or https address")
    if parts.auth:
        raise FetchError("an address with a user name in it")
    return parts.host.lower() + (f":{port}" if port else "")


def _redirected(url: str, location: str) -> str:
    if not location:
        raise FetchError("a redirect to nowhere")
    try:
        target = urljoin(url, location)
    except ValueError as error:
        raise FetchError("a redirect to an invalid address") from error
    try:
        host_of(target)
    except FetchError as error:
        raise FetchError(f"a redirect to what is {error.reason}") from error
    if url.lower().startswith("https:") and not target.lower().startswith("https:"):
        raise FetchError("a redirect from https to http")
    return target


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, given as seconds or as a date; None if there is none, or none that is valid."""
    if value is None:
        return None
    try:
        return max(0.0, float(Retry().parse_retry_after(value)))
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError, TypeError):
        return None


@contextmanager
def _network_errors(host: str) -> Iterator[None]:
    """Turn what the network does wrong into a FetchError that says which of it."""
    try:
        yield
    except FetchError:
        raise
    except (urllib3.exceptions.NameResolutionError, socket.gaierror) as error:
        raise FetchError(f"the host {host} has no address", retry=True) from error
    except (urllib3.exceptions.SSLError, ssl.SSLError) as error:
        untrusted = "CERTIFICATE_VERIFY_FAILED" in str(error) or "match" in str(error)
        raise FetchError(f"no trusted TLS connection ({error})", retry=not untrusted) from error
    except (urllib3.exceptions.TimeoutError, TimeoutError) as error:
        raise FetchError("the server does not answer in time", retry=True) from error
    except (urllib3.exceptions.LocationParseError, UnicodeError) as error:
        raise FetchError("not a valid address") from error
    except urllib3.exceptions.NewConnectionError as error:
        raise FetchError("no connection", retry=True) from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        # urllib3 gives the end of a body before its time the type that any broken connection has.
        cut = isinstance(error.__cause__, http.client.IncompleteRead)
        raise FetchError("cut short" if cut else "the connection broke", retry=True) from error
    except ValueError as error:  # http.client's, about a status line or headers that make no sense
        raise FetchError("an answer that is no valid HTTP", retry=True) from error


def is_public(address: str) -> bool:
    """Whether an IP address is of the public internet; one that hides another (IPv4 in IPv6) is judged by that."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if inner is None and found in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return inner.is_global and not inner.is_multicast
    return found.is_global and not found.is_multicast


def _connections(limits: FetchLimits) -> tuple[type[HTTPConnection], type[HTTPSConnection]]:
    """Connections that look at whom they reached before anything is sent, and end an answer that never gets going."""

    class Guard:
        sock: socket.socket | None

        def _new_conn(self) -> socket.socket:
            made: socket.socket = super()._new_conn()  # type: ignore[misc]
            # The peer and not the name: a name may have another address by the time of the connection.
            if not limits.allow_private and not is_public(str(made.getpeername()[0])):
                made.close()
                raise FetchError(
                    "an address of a private network; fetch.allow_private=true lets those through", final=False
                )
            return made

        def getresponse(self) -> Any:
            # A time-out counts from byte to byte only: headers could drip in for days.
            timer = threading.Timer(limits.deadline_s, _shut, (self.sock,))
            timer.daemon = True
            timer.start()
            try:
                return super().getresponse()  # type: ignore[misc]
            finally:
                timer.cancel()

    return type("Http", (Guard, HTTPConnection), {}), type("Https", (Guard, HTTPSConnection), {})


def _shut(sock: socket.socket | None) -> None:
    with suppress(OSError):
        if sock is not None:
            sock.shutdown(socket.SHUT_RDWR)
