"""A PostgreSQL of Debian's for the length of a test, on loopback, with the password that its caller must
know."""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

USER = "mlflow"


def programs() -> Path | None:
    """Where PostgreSQL's own programs are (Debian keeps them off the PATH); None: it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda path: int(path.parts[-3]))
    elsewhere = shutil.which("pg_ctl")
    return found[-1].parent if found else Path(elsewhere).parent if elsewhere else None


@contextmanager
def postgres(programs: Path) -> Iterator[str]:
    """Run a server with one empty database, and give its URI as MLflow takes it."""
    with tempfile.TemporaryDirectory(prefix="tilewise-postgres-") as name, socket.socket() as probe:
        folder, password = Path(name), secrets.token_urlsafe(16)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        (folder / "password").write_text(password)
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            for path in (folder, folder / "password"):
                shutil.chown(path, "postgres")
        access = ["--auth=scram-sha-256", f"--pwfile={folder / 'password'}"]
        _run(programs / "initdb", "-D", folder / "data", "-U", USER, "--no-sync", *access)
        options = f"-h 127.0.0.1 -p {port} -k {folder} -F"
        _run(
            programs / "pg_ctl",
            "-D",
            folder / "data",
            "-l",
            folder / "log",
            "-o",
            options,
            "-w",
            "-t",
            60,
            "start",
        )
        try:
            yield f"postgresql+psycopg://{USER}:{password}@127.0.0.1:{port}/postgres"
        finally:
            _run(programs / "pg_ctl", "-D", folder / "data", "-m", "immediate", "stop")


def _run(*command: object) -> None:
    user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    done = subprocess.run(
        [*user, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, cwd="/"
    )
    assert done.returncode == 0, done.stdout.decode()
