"""Fetch a picture over http(s) from the public internet, with limits on address, time and size.

The URL comes from the author of the message, so it must not reach into the network in which this program runs. The
addresses are checked after the name was resolved and for every redirect, and the socket connects to these same
addresses. A name that changes its address between check and use therefore gains nothing. Proxies from the environment
are not used, because the checked address would be the proxy's.

These networks are refused: those of IANA's special-purpose registries for IPv4 and IPv6 that are not globally reachable
or hold no hosts, and the metadata addresses of clouds. A network is refused completely even if parts of it are global,
because nobody serves pictures from there. The module uses the standard library only.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from vl2.errors import UserError

_REFUSED_IPV4 = (
    "0.0.0.0/8",  # this network
    "10.0.0.0/8",  # private
    "100.64.0.0/10",  # shared by customers of a provider; 100.100.100.200 is Alibaba's metadata
    "127.0.0.0/8",  # loopback
    "168.63.129.16/32",  # Azure's host, from every virtual machine; otherwise a public network
    "169.254.0.0/16",  # link-local; 169.254.169.254 is most clouds' metadata
    "172.16.0.0/12",  # private
    "192.0.0.0/24",  # IETF protocol assignments; 192.0.0.192 is Oracle's metadata
    "192.0.2.0/24",  # documentation
    "192.88.99.0/24",  # relays of 6to4, deprecated
    "192.168.0.0/16",  # private
    "198.18.0.0/15",  # benchmarking
    "198.51.100.0/24",  # documentation
    "203.0.113.0/24",  # documentation
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, and broadcast
)
# All global unicast addresses are assigned from this network. Outside of it are loopback, private (fc00::/7, with
# Amazon's metadata at fd00:ec2::254 and Google's at fd20:ce::254), link-local, site-local (fec0::/10), multicast,
# segment routing (5f00::/16), discard (100::/64), local NAT64 (64:ff9b:1::/48) and deprecated forms of IPv4.
_GLOBAL_IPV6 = "2000::/3"
_REFUSED_IPV6 = (
    "2001::/23",  # IETF protocol assignments: Teredo, benchmarking, ORCHID
    "2001:db8::/32",  # documentation
    "2002::/16",  # 6to4
    "3fff::/20",  # documentation
)
# IPv6 networks with an embedded IPv4 address, which then decides.
_WRAPPED_IPV4 = (
    "::ffff:0:0/96",  # mapped
    "64:ff9b::/96",  # NAT64
)
# ISATAP: an IPv4 address after 0:5efe or 200:5efe, in any network. Always refused.
_ISATAP, _ISATAP_MASK = 0x0000_5EFE, 0xFDFF_FFFF

_IPV4 = tuple(map(ipaddress.IPv4Network, _REFUSED_IPV4))
_IPV6 = tuple(map(ipaddress.IPv6Network, _REFUSED_IPV6))
_GLOBAL = ipaddress.IPv6Network(_GLOBAL_IPV6)
_WRAPPED = tuple(map(ipaddress.IPv6Network, _WRAPPED_IPV4))


def is_public(address: str) -> bool:
    """Tell whether an IP address is on the public internet. An IPv4 address embedded in IPv6 is checked itself."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in network for network in _IPV4)
    if any(ip in network for network in _WRAPPED):
        return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)))
    if (int(ip) >> 32) & _ISATAP_MASK == _ISATAP:
        return False
    return ip in _GLOBAL and not any(ip in network for network in _IPV6)


MAX_REDIRECTS = 3

_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK_BYTES = 1 << 16
_HEADERS = {"User-Agent": "vl2", "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity", "Connection": "close"}

MAX_URL_CHARS = 16_384  # signed URLs have some two thousand
MAX_HOST_CHARS = 253


class Cancellation:
    """Cancel a fetch that runs in another thread. The fetch then fails with an error."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._actions: list[Callable[[], None]] = []
        self.is_cancelled = False

    def cancel(self) -> None:
        with self._lock:
            self.is_cancelled = True
            actions, self._actions = self._actions, []
        for act in actions:
            act()

    @contextlib.contextmanager
    def calling(self, act: Callable[[], None]) -> Iterator[None]:
        """Register a function to call on cancellation. It is called at once if that has already happened."""
        with self._lock:
            is_late = self.is_cancelled
            self._actions.append(act)
        if is_late:
            act()
        try:
            yield
        finally:
            with self._lock, contextlib.suppress(ValueError):
                self._actions.remove(act)


def fetch(
    url: str,
    *,
    max_bytes: int,
    timeout_s: float = 20.0,
    allow_private: bool = False,
    cancellation: Cancellation | None = None,
) -> bytes:
    """Return the body at a URL, following at most three redirects. Raise UserError for every failure."""
    deadline = time.monotonic() + timeout_s
    cancellation = cancellation or Cancellation()
    at = url
    for _ in range(MAX_REDIRECTS + 1):
        if cancellation.is_cancelled:
            raise _error(at, "it was cancelled")
        try:
            answer = _fetch_once(_split(at), deadline, max_bytes, allow_private, cancellation)
        except _Refused as refusal:
            raise _error(at, str(refusal)) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            if time.monotonic() >= deadline or isinstance(error, TimeoutError):
                raise _error(at, f"no complete answer within {timeout_s:g} s") from None
            raise _error(at, _describe(error)) from None
        if isinstance(answer, bytes):
            return answer
        at = urljoin(at, answer)
    raise _error(url, f"more than {MAX_REDIRECTS} redirects")


class _Refused(Exception):
    """A limit of this module was exceeded; the message says which."""


class _Guard:
    """Close a connection at the deadline, however slowly the other side sends."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._socket: socket.socket | None = None
        self._timer: threading.Timer | None = None

    def watch(self, connection: socket.socket) -> None:
        self.close()  # the previous socket failed to connect
        # Watch a duplicate, which stays valid when TLS detaches the socket that it wraps.
        self._socket = connection.dup()
        self._timer = threading.Timer(max(0.0, self._deadline - time.monotonic()), self.cut)
        self._timer.daemon = True
        self._timer.start()

    def cut(self) -> None:
        with contextlib.suppress(OSError):
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            self._socket.close()


def _fetch_once(
    parts: SplitResult, deadline: float, max_bytes: int, allow_private: bool, cancellation: Cancellation
) -> bytes | str:
    """Return the body, or the target URL of a redirect as a string."""
    guard = _Guard(deadline)
    connection = _connection(parts, deadline, allow_private, guard, cancellation)
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~") + (
        f"?{quote(parts.query, safe='/%:@!$&()*+,;=~?')}" if parts.query else ""
    )
    try:
        with cancellation.calling(guard.cut):
            connection.request("GET", target, headers=_HEADERS)
            response = connection.getresponse()
            if response.status in _REDIRECTS:
                location = response.getheader("Location")
                if not location:
                    raise _Refused(f"it answers {response.status} without saying where to go")
                return location
            if response.status != 200:
                raise _Refused(f"it answers {response.status} {response.reason}".rstrip())
            return _read_body(response, deadline, max_bytes)
    finally:
        guard.close()
        connection.close()


def _read_body(response: http.client.HTTPResponse, deadline: float, max_bytes: int) -> bytes:
    if response.length is not None and response.length > max_bytes:
        raise _Refused(f"it has {response.length} bytes, more than the limit of {max_bytes}")
    expected = response.length
    body = bytearray()
    while chunk := response.read1(_CHUNK_BYTES):
        body += chunk
        if len(body) > max_bytes:
            raise _Refused(f"it has more than the limit of {max_bytes} bytes")
        if time.monotonic() >= deadline:
            raise TimeoutError
    if time.monotonic() >= deadline:
        raise TimeoutError
    if expected is not None and len(body) < expected:
        raise _Refused(f"the connection was lost after {len(body)} of {expected} bytes")
    return bytes(body)


def _connection(
    parts: SplitResult, deadline: float, allow_private: bool, guard: _Guard, cancellation: Cancellation
) -> http.client.HTTPConnection:
    host = parts.hostname or ""
    timeout_s = max(0.001, deadline - time.monotonic())
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(host, parts.port or 443, timeout=timeout_s, context=context)
    else:
        # Always pass the port: without one, the end of an IPv6 address would be read as the port.
        connection = http.client.HTTPConnection(host, parts.port or 80, timeout=timeout_s)

    def connect(address: tuple[str, int], *_: object) -> socket.socket:
        return _connect_checked(address, deadline, allow_private, guard, cancellation)

    # http.client opens its connections with this attribute, and adds TLS to the socket that it returns.
    setattr(connection, "_create_connection", connect)  # noqa: B010 (a plain assignment does not type-check)
    return connection


def _connect_checked(
    address: tuple[str, int], deadline: float, allow_private: bool, guard: _Guard, cancellation: Cancellation
) -> socket.socket:
    host, port = address
    if not allow_private:
        _check_public([host] if _is_address(host) else [])  # works even if this machine cannot resolve IPv6
    found = _resolve(host, port, deadline, cancellation)
    if not allow_private:
        _check_public([str(place[0]) for *_, place in found])
    failure: OSError | None = None
    for family, kind, protocol, _, place in found:
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            guard.watch(connection)
            if cancellation.is_cancelled:
                raise OSError("it was cancelled")
            connection.connect(place)
            return connection
        except OSError as error:
            failure = error
            connection.close()
    raise failure or OSError("the name has no address")


def _check_public(addresses: Sequence[str]) -> None:
    for address in addresses:
        if not is_public(address):
            # One private address is enough to refuse the name: trying the others would reveal which of them exist.
            raise _Refused(f"its address {address} is not on the public internet")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _resolve(host: str, port: int, deadline: float, cancellation: Cancellation) -> list[tuple[Any, ...]]:
    """Return the addresses of a name. The system's resolver takes no deadline, so it runs in a thread of its own."""
    answers: queue.SimpleQueue[list[tuple[Any, ...]] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as error:  # raised again in the calling thread
            answers.put(error)

    threading.Thread(target=ask, name="vl2-resolve", daemon=True).start()
    try:
        with cancellation.calling(lambda: answers.put(OSError("it was cancelled"))):
            answer = answers.get(timeout=max(0.001, deadline - time.monotonic()))
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _split(url: str) -> SplitResult:
    if len(url) > MAX_URL_CHARS:
        raise _Refused(f"it has {len(url)} characters, the limit is {MAX_URL_CHARS}")
    parts = urlsplit(url)  # ValueError if malformed
    if parts.scheme not in ("http", "https"):
        raise _Refused(f"only http and https are allowed, not {parts.scheme or 'no scheme'}")
    if not parts.hostname:
        raise _Refused("it names no host")
    if parts.username is not None or parts.password is not None:
        raise _Refused("names and passwords are not allowed in it")
    _ = parts.port  # ValueError if it is not a valid port
    if len(parts.hostname) > MAX_HOST_CHARS:  # the IDNA encoding below takes quadratic time
        raise ValueError("label empty or too long")
    parts.hostname.encode("idna")  # UnicodeError, a ValueError, if it is not a valid name
    return parts


def _describe(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return "its host is not known"
    if isinstance(error, ssl.SSLError):
        return f"no secure connection ({error.reason or 'TLS error'})"
    if isinstance(error, OSError):
        return error.strerror or "the connection failed"
    return f"it is no usable URL or answer ({' '.join(str(error).split())[:100] or type(error).__name__})"


def _error(url: str, why: str) -> UserError:
    shown = "".join(c if c.isprintable() else "?" for c in url[:81])
    return UserError(f"cannot fetch {shown if len(shown) <= 80 else shown[:77] + '...'}: {' '.join(why.split())}")
