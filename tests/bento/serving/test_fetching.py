"""Tiles by their address: from the hosts that the operator names, where they may be, and from no others."""

import asyncio
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from tilewise.bento.serving.fetching import Fetcher, Origin, parse_hosts
from tilewise.datasets.core.errors import TilewiseError

WAIT_S = 20


class Store(BaseHTTPRequestHandler):
    """Answers with the path, but for some paths."""

    asked: ClassVar[list[tuple[str, str]]] = []

    def do_GET(self) -> None:
        self.asked.append((self.headers["Host"], self.path))
        status, headers = 200, {}
        body = b"bytes of " + self.path.encode()
        if self.path == "/redirect.tif":
            status, headers = 302, {"Location": "/tile.tif"}
        elif self.path == "/missing.tif":
            status = 404
        elif self.path == "/compressed.tif":
            headers = {"Content-Encoding": "gzip"}
        elif self.path == "/large.tif":
            body = b"x" * 5000
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def store() -> Iterator[int]:
    """The port of a server of files on loopback."""
    Store.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


async def free(size: int) -> None:
    """Charge nothing."""


def fetch(
    fetcher: Fetcher, urls: Sequence[str], charge: Callable[[int], Awaitable[None]] = free
) -> list[bytes | str]:
    """What each address gives: bytes, or the sentence that says why it gives none."""
    found = asyncio.run(
        asyncio.wait_for(fetcher.fetch_all([fetcher.admit(url) for url in urls], charge), WAIT_S)
    )
    return [one if isinstance(one, bytes) else str(one) for one in found]


def fetcher_of(hosts: str, max_bytes: int = 4000, **options: object) -> Fetcher:
    return Fetcher(parse_hosts(hosts), max_bytes, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        (None, []),
        ("", []),
        ("Tiles.Example.org", [Origin("https", "tiles.example.org", 443)]),
        ("a.org:8443, http://b", [Origin("https", "a.org", 8443), Origin("http", "b", 80)]),
        ("http://store:9000=10.0.0.0/8", [Origin("http", "store", 9000)]),
    ],
)
def test_hosts_are_read_with_scheme_and_port(text: str | None, origins: list[Origin]) -> None:
    assert list(parse_hosts(text)) == origins


@pytest.mark.parametrize(
    "text", ["ftp://a", "a/path", "a:b", "user@a", "a=10.0.0.1/8", "https://", "a?x=1", "[::1"]
)
def test_what_is_no_host_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(TilewiseError) as refusal:
        parse_hosts(f"good.org,{text}")
    assert str(refusal.value) == (
        f"TILEWISE_URL_HOSTS: {text!r} is no host; write HOST, HOST:PORT or http://HOST:PORT, and for a host "
        "in a network of yours HOST=10.0.0.0/8"
    )


def test_files_are_fetched_in_order_and_each_fails_alone(store: int) -> None:
    base = f"http://127.0.0.1:{store}"
    fetcher = fetcher_of(f"http://127.0.0.1:{store}=127.0.0.0/8")
    found = fetch(
        fetcher,
        [f"{base}/{name}" for name in ("a.tif", "missing.tif", "redirect.tif", "compressed.tif", "b?c=d")],
    )
    by_itself = "the address must answer by itself, without a login or a redirect"
    assert found == [
        b"bytes of /a.tif",
        f"missing.tif: 127.0.0.1 answered with status 404; {by_itself}",
        f"redirect.tif: 127.0.0.1 answered with status 302; {by_itself}",
        "compressed.tif: 127.0.0.1 sends it compressed, which is not read",
        b"bytes of /b?c=d",
    ]
    assert {host for host, _ in Store.asked} == {f"127.0.0.1:{store}"}
    assert "/tile.tif" not in {path for _, path in Store.asked}, "a redirect was followed"


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1:{port}/a.tif",
        "http://127.0.0.1/a.tif",
        "http://localhost:{port}/a.tif",
        "http://127.0.0.1.evil.org:{port}/a.tif",
    ],
)
def test_no_other_scheme_host_or_port_is_fetched_from(store: int, url: str) -> None:
    fetcher = fetcher_of(f"http://127.0.0.1:{store}=127.0.0.0/8")
    with pytest.raises(
        TilewiseError, match=r"^this service does not fetch from \S+:\d+; send the file itself as"
    ):
        fetcher.admit(url.format(port=store))


@pytest.mark.parametrize(
    "url",
    [
        "http://user:secret@127.0.0.1:{port}/a.tif",
        "http://evil.org@127.0.0.1:{port}/a.tif",
        "file:///etc/passwd",
        "http://[::1/a.tif",
        "http://127.0.0.1:{port}/a b",
        "http://127.0.0.1:{port}/a\r\nX-Evil: 1",
        "/etc/passwd",
        "",
    ],
)
def test_what_is_no_address_is_refused(store: int, url: str) -> None:
    fetcher = fetcher_of(f"http://127.0.0.1:{store}=127.0.0.0/8")
    with pytest.raises(TilewiseError, match=r"^its url is no address; write https://HOST/PATH"):
        fetcher.admit(url.format(port=store))


def test_without_hosts_nothing_is_fetched() -> None:
    with pytest.raises(
        TilewiseError, match=r"^this service fetches no addresses; send the file itself as 'content'"
    ):
        fetcher_of("").admit("https://example.org/a.tif")


PLACES = [
    "127.0.0.1",
    "10.1.2.3",
    "169.254.169.254",
    "192.168.0.1",
    "::1",
    "fe80::1",
    "::ffff:127.0.0.1",
    "0.0.0.0",  # noqa: S104 - an address that is refused
]
TRANSLATED = ["64:ff9b::a00:1", "2002:a00:1::", "2001:0:a00:1::", "224.0.0.1"]


@pytest.mark.parametrize("place", PLACES + TRANSLATED)
def test_a_named_host_at_a_place_that_is_not_public_is_not_connected_to(store: int, place: str) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["93.184.216.34", place]

    (told,) = fetch(
        fetcher_of(f"http://tiles.org:{store}", resolve=resolve), [f"http://tiles.org:{store}/a.tif"]
    )
    assert told == (
        "a.tif: tiles.org has an address that this service does not connect to; for a host in a network of "
        "the operator, TILEWISE_URL_HOSTS states the network"
    )
    assert not Store.asked


def test_a_host_outside_the_network_that_the_operator_states_is_not_connected_to(store: int) -> None:
    (told,) = fetch(fetcher_of(f"http://127.0.0.1:{store}=10.0.0.0/8"), [f"http://127.0.0.1:{store}/a.tif"])
    assert str(told).startswith("a.tif: 127.0.0.1 has an address that this service does not connect to")


def test_the_address_that_was_checked_is_the_one_that_is_connected_to(store: int) -> None:
    """A name server that gives another address the second time (DNS rebinding) is asked once."""
    answers = iter([["127.0.0.1"], ["127.0.0.2"]])

    async def resolve(host: str, port: int) -> list[str]:
        return next(answers)

    fetcher = fetcher_of(f"http://tiles.invalid:{store}=127.0.0.1/32", resolve=resolve)
    assert fetch(fetcher, [f"http://tiles.invalid:{store}/a.tif"]) == [b"bytes of /a.tif"]
    assert Store.asked == [(f"tiles.invalid:{store}", "/a.tif")]


@pytest.fixture
def encrypted_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of the same server over TLS, with a trusted certificate of `tiles.invalid`."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=tiles.invalid"
    names = ["-addext", "subjectAltName=DNS:tiles.invalid", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True, timeout=60)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl makes a certificate here")
def test_the_certificate_must_be_that_of_the_named_host(encrypted_store: int) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    names = ("tiles.invalid", "other.invalid")
    hosts = ",".join(f"{name}:{encrypted_store}=127.0.0.0/8" for name in names)
    urls = [f"https://{name}:{encrypted_store}/a.tif" for name in names]
    fetcher = fetcher_of(hosts, resolve=resolve)
    assert fetch(fetcher, urls[:1] * 20)[-1] == b"bytes of /a.tif"  # its connections are open now
    assert fetch(fetcher, urls) == [
        b"bytes of /a.tif",
        "a.tif: other.invalid cannot be asked (ConnectError)",
    ]


def test_files_that_are_too_large_together_are_not_kept(store: int) -> None:
    charged = []

    async def charge(size: int) -> None:
        charged.append(size)

    fetcher = fetcher_of(f"http://127.0.0.1:{store}=127.0.0.0/8", max_bytes=4000)
    small, large = fetch(
        fetcher, [f"http://127.0.0.1:{store}/{name}" for name in ("a.tif", "large.tif")], charge
    )
    assert small == b"bytes of /a.tif"
    assert large == "large.tif: the files of this request are too large together; send fewer"
    assert sum(charged) <= 4000


def test_no_room_ends_the_whole_request(store: int) -> None:
    async def charge(size: int) -> None:
        raise TilewiseError("no room")

    fetcher = fetcher_of(f"http://127.0.0.1:{store}=127.0.0.0/8")
    with pytest.raises(TilewiseError, match="no room"):
        fetch(fetcher, [f"http://127.0.0.1:{store}/a.tif"] * 3, charge)


def test_a_host_that_is_not_there_is_told() -> None:
    async def resolve(host: str, port: int) -> list[str]:
        if host == "nowhere.invalid":
            raise socket.gaierror
        return ["127.0.0.1"]

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    fetcher = fetcher_of(f"http://127.0.0.1:{port}=127.0.0.0/8,http://nowhere.invalid", resolve=resolve)
    refused, unknown = fetch(fetcher, [f"http://127.0.0.1:{port}/a.tif", "http://nowhere.invalid/"])
    assert refused == "a.tif: 127.0.0.1 cannot be asked (ConnectError)"
    assert unknown == "tile: there is no host nowhere.invalid"


def test_a_host_is_asked_at_its_next_address_where_nobody_listens_at_the_first(store: int) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.9", "127.0.0.9", "127.0.0.1"]

    fetcher = fetcher_of(f"http://tiles.test:{store}=127.0.0.0/8", resolve=resolve)
    assert fetch(fetcher, [f"http://tiles.test:{store}/a.tif"]) == [b"bytes of /a.tif"]
    assert Store.asked == [(f"tiles.test:{store}", "/a.tif")]


def test_every_address_of_a_host_must_be_where_it_may_be(store: int) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1", "10.0.0.1"]

    fetcher = fetcher_of(f"http://tiles.test:{store}=127.0.0.0/8", resolve=resolve)
    (told,) = fetch(fetcher, [f"http://tiles.test:{store}/a.tif"])
    assert "has an address that this service does not connect to" in str(told)
    assert Store.asked == []
