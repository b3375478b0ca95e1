"""The shipped balancer, deploy/haproxy/haproxy.cfg: Debian's HAProxy before a server that is always up."""

import json
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from http.client import HTTPConnection
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import ClassVar

import pytest
from canary import balanced
from monitoring import free_ports
from watched import until

pytestmark = pytest.mark.skipif(not shutil.which("haproxy"), reason="haproxy is not installed")

CONNECTIONS = 256  # at a time, of one address
REQUESTS = 5000  # in ten seconds, of one address
GET = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"
SERVED = b"HTTP/1.1 200 OK\r\n"


class Service(StreamRequestHandler):
    """Stands where the service would: takes whole requests, notes their headers, and answers 200."""

    arrived: ClassVar[list[dict[str, str]]] = []

    def handle(self) -> None:
        with suppress(ConnectionError):  # of a check, which reads no answer to its end
            self._serve()

    def _serve(self) -> None:
        while self.rfile.readline():  # the request line
            headers = dict(self._headers())
            self.rfile.read(int(headers.get("content-length", 0)))
            self.arrived.append(headers)
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    def _headers(self) -> Iterator[tuple[str, str]]:
        for line in iter(self.rfile.readline, b"\r\n"):
            name, _, value = line.decode().partition(":")
            yield name.lower(), value.strip()


@pytest.fixture(scope="module")
def balancer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """Host and port of a balancer whose champion is the service above; there is no candidate."""
    listen, *services = free_ports(3)
    with ExitStack() as stack:
        server = stack.enter_context(ThreadingTCPServer(("127.0.0.1", services[0]), Service))
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        stack.callback(thread.join)
        stack.callback(server.shutdown)
        addresses = [f"127.0.0.1:{port}" for port in (listen, *services)]
        stack.enter_context(balanced(tmp_path_factory.mktemp("balancer"), *addresses))
        yield "127.0.0.1", listen


def connection(balancer: tuple[str, int], address: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(balancer, timeout=30, source_address=(address, 0))


def is_served(caller: socket.socket) -> bool:
    """Ask once; a connection that the balancer refuses is closed without an answer."""
    try:
        caller.sendall(GET)
        return caller.recv(65536).startswith(SERVED)
    except ConnectionError:
        return False


def next_is_served(stack: ExitStack, balancer: tuple[str, int], address: str) -> bool:
    """Connect and ask once; one that the balancer refuses may be closed while it connects."""
    try:
        return is_served(stack.enter_context(connection(balancer, address)))
    except ConnectionError:
        return False


def test_an_address_has_256_connections_and_the_next_one_is_closed(balancer: tuple[str, int]) -> None:
    with ExitStack() as stack:
        callers = [stack.enter_context(connection(balancer, "127.0.0.2")) for _ in range(CONNECTIONS)]
        assert all(map(is_served, callers))
        assert not next_is_served(stack, balancer, "127.0.0.2")
        assert next_is_served(stack, balancer, "127.0.0.3"), "other addresses are served"
        callers[0].close()
        until(lambda: next_is_served(stack, balancer, "127.0.0.2"), "a place became free")


def served_of(caller: socket.socket, requests: int) -> int:
    """Send requests, one behind the other, and return how many of them were served."""
    caller.sendall(GET * requests)
    answers = b""
    while answers.count(b"HTTP/1.1 ") < requests:
        received = caller.recv(65536)
        assert received, "the balancer has closed the connection"
        answers += received
    return answers.count(SERVED)


def test_an_address_has_500_requests_a_second_over_ten_seconds_then_429_while_others_are_served(
    balancer: tuple[str, int],
) -> None:
    served = 0
    with connection(balancer, "127.0.0.4") as caller, connection(balancer, "127.0.0.5") as other:
        while (now := served_of(caller, 500)) == 500 and served < 2 * REQUESTS:
            served += now
        assert is_served(other)
    # HAProxy counts by periods of ten seconds: if a new one begins meanwhile, up to twice as many are served.
    assert REQUESTS <= served + now < 2 * REQUESTS
    refused = HTTPConnection(*balancer, timeout=30, source_address=("127.0.0.4", 0))
    refused.request("GET", "/readyz")
    with refused.getresponse() as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (429, "10")
        assert json.load(answer)["error"].keys() == {"code", "message", "hint"}
    refused.close()


@pytest.mark.slow  # HAProxy waits for ten seconds
def test_a_body_that_does_not_come_ends_at_the_balancer_and_the_service_is_told_the_address(
    balancer: tuple[str, int],
) -> None:
    head = b"POST /scene HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 6.6.6.6\r\nContent-Length: %d\r\n\r\nII*\0"
    Service.arrived.clear()
    with connection(balancer) as slow, connection(balancer) as whole:
        slow.sendall(head % 2**29)
        whole.sendall(head % 4)
        assert whole.recv(65536).startswith(SERVED)
        assert slow.recv(65536).startswith(b"HTTP/1.1 408 ")
    posted = [headers for headers in Service.arrived if "content-length" in headers]
    assert [(one["content-length"], one["x-forwarded-for"]) for one in posted] == [("4", "127.0.0.1")]
