"""Fetching: tiles by their address, from hosts that the operator names and from no others.

A service that fetches what callers name can be made to ask servers that only it reaches. So: nothing is
fetched unless TILEWISE_URL_HOSTS names the host, scheme and port; no redirects, proxies, credentials or
compressed answers. A name is resolved once, all its addresses must be public (or in the network that the
operator states), and the connection goes to one of these very addresses: another answer of the name server in
the next second (DNS rebinding) changes nothing.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

import httpx

from tilewise.datasets.core.errors import FetchError, TilewiseError

VARIABLE = "TILEWISE_URL_HOSTS"
_PORTS = {"https": 443, "http": 80}
_MAX_URL = 4096
_AT_ONCE = 8  # of one request
_SECONDS = 20.0  # for one file
_CONNECT_SECONDS = 5.0
_MAX_PLACES = 3  # of a host that are tried

_TRANSLATED = [  # IPv6 addresses that stand for IPv4 ones: NAT64, Teredo, 6to4
    ipaddress.IPv6Network(text) for text in ("64:ff9b::/96", "2001::/32", "2002::/16")
]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host in lower case, and port."""

    scheme: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Address:
    """An address that may be fetched from.

    Attributes:
        origin: one that the operator named.
        target: path and query.
        name: the last part of the path, for answers.
    """

    origin: Origin
    target: str
    name: str


async def resolve_host(host: str, port: int) -> list[str]:
    """Return the IP addresses of a host, as the system resolves it; raises OSError if there are none."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def parse_hosts(text: str | None) -> dict[Origin, Network | None]:
    """Return the origins in a list such as `tiles.example.org, http://store:9000=10.0.0.0/8`.

    Returns:
        for each origin, the network that its address lies in; None: it is public.

    Raises:
        TilewiseError: an entry is malformed.
    """
    hosts: dict[Origin, Network | None] = {}
    for entry in filter(None, (part.strip() for part in (text or "").split(","))):
        address, _, network = entry.partition("=")
        try:
            parts = urlsplit(address if "://" in address else f"https://{address}")
            origin = _origin(parts)
            if origin is None or parts.path or parts.query or parts.fragment:
                raise ValueError
            hosts[origin] = ipaddress.ip_network(network) if network else None
        except ValueError:
            raise TilewiseError(
                f"{VARIABLE}: {entry!r} is no host; write HOST, HOST:PORT or http://HOST:PORT, and for a "
                "host in a network of yours HOST=10.0.0.0/8"
            ) from None
    return hosts


def _origin(parts: SplitResult) -> Origin | None:
    """Return the origin of a URL; None where it has none, names a user, or is not of HTTP."""
    try:
        host, port = parts.hostname, parts.port
    except ValueError:  # the port is no number
        return None
    if not host or parts.scheme not in _PORTS or "@" in parts.netloc:
        return None
    return Origin(parts.scheme, host, _PORTS[parts.scheme] if port is None else port)


def _is_public(number: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an IP address is one of the public internet, and translates to no other."""
    translated = any(number.version == net.version and number in net for net in _TRANSLATED)
    return number.is_global and not number.is_multicast and not translated


class Fetcher:
    """Fetches files from named hosts.

    Args:
        hosts: as `parse_hosts` returns them; none: nothing is fetched.
        max_bytes: of all files of a request together.
        resolve: gives the IP addresses of a host.
    """

    def __init__(
        self, hosts: Mapping[Origin, Network | None], max_bytes: int, resolve: Resolve = resolve_host
    ) -> None:
        self._hosts, self._max_bytes, self._resolve = hosts, max_bytes, resolve
        self._tls: ssl.SSLContext | bool = httpx.create_ssl_context() if hosts else True

    def admit(self, url: str) -> Address:
        """Return the address of a URL.

        Raises:
            TilewiseError: it is malformed, or leads to a host that is not named.
        """
        if not self._hosts:
            raise TilewiseError(
                "this service fetches no addresses; send the file itself as 'content', or ask the operator "
                f"to name the host in {VARIABLE}"
            )
        try:
            parts = urlsplit(url)
            origin = _origin(parts) if len(url) <= _MAX_URL and url.isascii() and url.isprintable() else None
        except ValueError:  # such as a bracket that is not closed
            origin = None
        if origin is None or " " in url:
            raise TilewiseError("its url is no address; write https://HOST/PATH, without user and password")
        if origin not in self._hosts:
            raise TilewiseError(
                f"this service does not fetch from {origin.scheme}://{origin.host}:{origin.port}; send the "
                f"file itself as 'content', or ask the operator to name the host in {VARIABLE}"
            )
        name = unquote(parts.path.rpartition("/")[2]) or "tile"
        return Address(origin, (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), name)

    async def fetch_all(
        self, addresses: Sequence[Address], charge: Callable[[int], Awaitable[None]]
    ) -> list[bytes | FetchError]:
        """Return the bytes of each address, or why there are none; some are fetched at once.

        Args:
            addresses: that `admit` returned.
            charge: called with the length of each part that has arrived; it may wait, and what it raises ends
                all.
        """
        meter = _Meter(self._max_bytes, charge)
        slots = asyncio.Semaphore(_AT_ONCE)

        async def fetch(address: Address) -> bytes | FetchError:
            try:
                async with slots, asyncio.timeout(_SECONDS):
                    return await self._fetch(clients[address.origin], address, meter)
            except TimeoutError:
                return FetchError(
                    f"{address.name}: {address.origin.host} took more than {_SECONDS:g} seconds"
                )
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                return FetchError(
                    f"{address.name}: {address.origin.host} cannot be asked ({type(error).__name__})"
                )
            except FetchError as error:
                return error

        async with AsyncExitStack() as stack:
            # One client for each: a connection whose certificate is of one host must not serve another.
            clients = {
                origin: await stack.enter_async_context(self._client())
                for origin in {address.origin for address in addresses}
            }
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(fetch(address)) for address in addresses]
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    def _client(self) -> httpx.AsyncClient:
        timeout = httpx.Timeout(_SECONDS, connect=_CONNECT_SECONDS)
        return httpx.AsyncClient(verify=self._tls, trust_env=False, timeout=timeout)

    async def _fetch(self, client: httpx.AsyncClient, address: Address, meter: "_Meter") -> bytes:
        """Return the bytes of an address; raises FetchError, or an error of httpx."""
        *others, last = (await self._resolve_allowed(address))[:_MAX_PLACES]
        for ip in others:
            try:
                return await self._fetch_from(ip, client, address, meter)
            except (httpx.ConnectError, httpx.ConnectTimeout):  # an IPv6 address where there is no IPv6, say
                continue
        return await self._fetch_from(last, client, address, meter)

    async def _fetch_from(
        self, ip: str, client: httpx.AsyncClient, address: Address, meter: "_Meter"
    ) -> bytes:
        """Do as `_fetch`, from the host at one of its IP addresses."""
        origin = address.origin
        shown = f"[{origin.host}]" if ":" in origin.host else origin.host
        port = "" if origin.port == _PORTS[origin.scheme] else f":{origin.port}"
        request = client.build_request(
            "GET",
            f"{origin.scheme}://{f'[{ip}]' if ':' in ip else ip}:{origin.port}{address.target}",
            headers={"Host": shown + port, "Accept-Encoding": "identity"},
            extensions={"sni_hostname": origin.host},  # whose certificate it must be
        )
        response = await client.send(request, stream=True, follow_redirects=False)
        try:
            if response.status_code != 200:
                raise FetchError(
                    f"{address.name}: {origin.host} answered with status {response.status_code}; the address "
                    "must answer by itself, without a login or a redirect"
                )
            if response.headers.get("content-encoding", "identity") != "identity":
                raise FetchError(f"{address.name}: {origin.host} sends it compressed, which is not read")
            parts = []
            async for part in response.aiter_raw():
                await meter.take(address, len(part))
                parts.append(part)
            return b"".join(parts)
        finally:
            await response.aclose()

    async def _resolve_allowed(self, address: Address) -> list[str]:
        """Return the IP addresses to connect to, the best first.

        Raises:
            FetchError: there is none, or one of them is not where the operator says that the host is.
        """
        origin = address.origin
        try:
            found = await self._resolve(origin.host, origin.port)
        except OSError:
            found = []
        if not found:
            raise FetchError(f"{address.name}: there is no host {origin.host}")
        network = self._hosts[origin]
        for ip in found:
            number = ipaddress.ip_address(ip.partition("%")[0])
            if not (number in network if network else _is_public(number)):
                raise FetchError(
                    f"{address.name}: {origin.host} has an address that this service does not connect to; "
                    f"for a host in a network of the operator, {VARIABLE} states the network"
                )
        return list(dict.fromkeys(found))


@dataclass(slots=True)
class _Meter:
    """Counts the bytes that the addresses of one request give."""

    left: int
    charge: Callable[[int], Awaitable[None]]

    async def take(self, address: Address, size: int) -> None:
        """Take `size` bytes; raises FetchError beyond the limit, and what `charge` raises."""
        if size > self.left:
            raise FetchError(f"{address.name}: the files of this request are too large together; send fewer")
        self.left -= size
        await self.charge(size)
