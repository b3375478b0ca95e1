"""The smoke of a service: a sound one passes, and what is wrong with another is said."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner
from smoke import main
from tiny_onnx import metadata, write_model


class Nonsense(BaseHTTPRequestHandler):
    """Answers everything with 200 and an object that says nothing, and knows no tiles."""

    def do_GET(self) -> None:
        self._say(200, b"{}")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._say(500, b"{}")

    def _say(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Keep the tests quiet."""


@pytest.fixture
def nonsense() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Nonsense)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_sound_service_is_started_asked_and_ended(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.onnx", metadata().model_dump_json())
    done = CliRunner().invoke(
        main, ["--model", str(model), "--seconds", "1", "--connections", "4", "--max-p99", "30"]
    )
    assert done.exit_code == 0, done.output
    assert "contract: kept" in done.output
    assert "failed: none" in done.output


def test_each_thing_that_is_wrong_is_said(nonsense: str) -> None:
    done = CliRunner().invoke(main, ["--url", nonsense, "--seconds", "0.5", "--connections", "1"])
    assert done.exit_code == 1
    assert "contract: broken" in done.stdout
    for message in (
        "GET /model lacks sha256",
        "returns 500 for valid tiles",
        "does not count requests",
        "failed with 500",
    ):
        assert message in done.stderr


def test_a_service_that_is_not_there_and_options_that_do_not_go_together_are_said() -> None:
    gone = CliRunner().invoke(main, ["--url", "http://127.0.0.1:9"])
    assert gone.exit_code == 1
    assert "http://127.0.0.1:9: the service does not respond" in gone.stderr
    assert "name one of" in CliRunner().invoke(main, ["--url", "a", "--model", "b"]).output
