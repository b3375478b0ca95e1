"""A real STAC API on loopback: stac-fastapi with pgstac, on a PostgreSQL of Debian's with PostGIS."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from postgres import postgres, programs

_APP = "stac_fastapi.pgstac.app:create_app"


def missing() -> str:
    """What the server lacks on this machine; "" where it can run."""
    if programs() is None:
        return "PostgreSQL is not installed"
    found = list(Path("/usr/share/postgresql").glob("*/extension/postgis.control"))
    return "" if found else "PostGIS is not installed (apt install postgresql-postgis)"


@contextmanager
def stac_api(folder: Path, collection: str, items: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Serve one collection of items; yield the URL of the landing page."""
    found = programs()
    assert found is not None
    with postgres(found) as uri:
        parts = urlsplit(uri.replace("+psycopg", ""))
        access = {
            "PGHOST": str(parts.hostname),
            "PGPORT": str(parts.port),
            "PGUSER": str(parts.username),
            "PGPASSWORD": str(parts.password),
            "PGDATABASE": "postgres",
        }
        environment = {**os.environ, **access, "ENABLED_EXTENSIONS": "query,sort,fields,filter,pagination"}
        _load(folder, collection, items, environment)
        with _served(folder, environment) as url:
            yield url


def _load(
    folder: Path, collection: str, items: Sequence[Mapping[str, Any]], environment: Mapping[str, str]
) -> None:
    extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
    described = {
        "type": "Collection",
        "stac_version": "1.0.0",
        "id": collection,
        "description": "made for a test",
        "license": "other",
        "extent": extent,
        "links": [],
    }
    (folder / "collections.ndjson").write_text(json.dumps(described) + "\n")
    lines = [json.dumps({**item, "collection": collection}) for item in items]
    (folder / "items.ndjson").write_text("\n".join(lines) + "\n")
    for command in (
        ("migrate",),
        ("load", "collections", "collections.ndjson"),
        ("load", "items", "items.ndjson"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "pypgstac.pypgstac", *command],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def _served(folder: Path, environment: Mapping[str, str]) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "--factory", _APP, "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            stdout=log,
            stderr=log,
        )
        try:
            for _ in range(600):
                assert server.poll() is None, (folder / "log").read_text()
                try:
                    if httpx.get(url, timeout=10).status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.1)
            yield url
        finally:
            server.terminate()
            server.wait(30)
