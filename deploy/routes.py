"""Who answers `/classify`: the champion's service and, for a share of the requests, the candidate's.

Balancers do this well, so nothing here carries a request: HAProxy is told new weights by its socket, a Gateway of
Kubernetes by its HTTPRoute.
"""

import json
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from programs import PROJECT, running

from tilewise.datasets.core.errors import TilewiseError

CONFIGURATION = PROJECT / "deploy" / "haproxy" / "haproxy.cfg"
_BACKEND = "tiles"
_PATIENCE_S = 10
_KUBECTL_S = 60


class RouteError(TilewiseError):
    """A balancer that does not take a weight."""


class Route(Protocol):
    """Something that shares requests out."""

    def set_fraction(self, percent: int) -> None:
        """Let the candidate answer `percent` (0-100) of the requests from now on; raises RouteError."""
        ...


class Haproxy:
    """The balancer that runs with `deploy/haproxy/haproxy.cfg`.

    Args:
        path: of its socket.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def set_fraction(self, percent: int) -> None:
        """See `Route`."""
        self._tell(f"set server {_BACKEND}/candidate weight {percent}")
        self._tell(f"set server {_BACKEND}/champion weight {100 - percent}")

    def shares(self) -> dict[str, int]:
        """Return the weight of each server, by name."""
        lines = self._ask(f"show servers state {_BACKEND}").splitlines()
        names = next(line for line in lines if line.startswith("#")).removeprefix("# ").split()
        rows = [dict(zip(names, line.split(), strict=False)) for line in lines if f" {_BACKEND} " in line]
        return {row["srv_name"]: int(row["srv_uweight"]) for row in rows}

    def _tell(self, command: str) -> None:
        overrides = self._ask(command).strip()
        if overrides:  # it is silent where it obeys
            raise RouteError(f"{self.path}: {command!r}: {overrides}; is this HAProxy run with {CONFIGURATION.name}?")

    def _ask(self, command: str) -> str:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(_PATIENCE_S)
                connection.connect(str(self.path))
                connection.sendall(f"{command}\n".encode())
                return b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        except OSError as error:
            raise RouteError(f"{self.path}: HAProxy does not answer ({error}); is it running?") from error


class KubernetesRoute:
    """The HTTPRoute of `deploy/kubernetes/canary`, changed by `kubectl`.

    Args:
        name: of the HTTPRoute.
        namespace: that it is in.
    """

    def __init__(self, name: str, namespace: str) -> None:
        self.name, self.namespace = name, namespace

    def set_fraction(self, percent: int) -> None:
        """See `Route`."""
        place = "/spec/rules/0/backendRefs/{}/weight"
        patch = [
            {"op": "replace", "path": place.format(index), "value": weight}
            for index, weight in enumerate((100 - percent, percent))
        ]
        words = ["kubectl", "--namespace", self.namespace, "patch", "httproute", self.name, "--type", "json"]
        try:
            done = subprocess.run(
                [*words, "--patch", json.dumps(patch)], capture_output=True, text=True, timeout=_KUBECTL_S, check=False
            )
        except (FileNotFoundError, subprocess.TimeoutExpired) as error:
            raise RouteError(f"kubectl cannot set the weight: {error}") from error
        if done.returncode != 0:
            raise RouteError(f"httproute {self.name} does not take the weight: {done.stderr.strip()}")


@contextmanager
def balanced(folder: Path, listen: str, champion: str, candidate: str) -> Iterator[Haproxy]:
    """Run HAProxy on this machine for the length of the block; addresses are HOST:PORT, its files are in `folder`.

    Raises:
        ProgramError: it is not installed, or does not start; the champion must answer before.
    """
    with tempfile.TemporaryDirectory(prefix="tilewise-") as short:  # a socket's path may have 108 bytes
        control = Path(short, "balancer.sock")
        settings = {
            "TILEWISE_LISTEN": listen,
            "TILEWISE_CHAMPION": champion,
            "TILEWISE_CANDIDATE_SERVICE": candidate,
            "TILEWISE_BALANCER": str(control),
        }
        command = ["haproxy", "-db", "-f", str(CONFIGURATION)]
        with running("haproxy", command, folder, f"http://{listen}/readyz", settings):
            yield Haproxy(control)
