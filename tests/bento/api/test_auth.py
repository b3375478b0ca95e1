"""API keys: which callers are admitted, which are not, and which paths are open to all."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from geotiffs import tile_file
from hardened import FILED_KEY, KEY, OTHER_KEY
from servers import ROOT, Server
from starlette.requests import Request

from tilewise.bento.api.auth import KeyCheck, parse_keys, read_keys
from tilewise.bento.api.tiles import sticky_key
from tilewise.bento.settings import Settings
from tilewise.datasets.acquire.synthetic import synthesise_tile
from tilewise.datasets.core.errors import TilewiseError

TILE = tile_file(synthesise_tile("Forest", 1, 2))
TIFF = {"content-type": "image/tiff"}


def ask(server: Server, path: str, method: str = "GET", **headers: str) -> httpx.Response:
    return httpx.request(method, server.url + path, headers=headers, trust_env=False, timeout=20)


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz", "/", "/page/page.css", "/openapi.json"])
def test_health_the_page_and_the_description_are_open_to_all(guarded: Server, path: str) -> None:
    assert ask(guarded, path).status_code == 200


@pytest.mark.parametrize(
    "path", ["/model", "/metrics", "/nothing", "/livez/", "//livez", "/page/../model", "/tasks/1"]
)
def test_everything_else_needs_a_key(guarded: Server, path: str) -> None:
    response = ask(guarded, path)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == 'Bearer realm="tilewise"'
    error = response.json()["error"]
    assert set(error) == {"code", "message", "hint"}
    assert error["code"] == "unauthorized"
    assert "Authorization: Bearer" in error["hint"]


def test_an_open_path_is_open_for_reading_alone(guarded: Server) -> None:
    assert ask(guarded, "/", "POST").status_code == 401
    assert ask(guarded, "/openapi.json", "DELETE").status_code == 401


@pytest.mark.parametrize("key", [KEY, OTHER_KEY, FILED_KEY])
def test_a_key_opens_in_either_header(guarded: Server, key: str) -> None:
    for headers in (
        {"authorization": f"Bearer {key}"},
        {"authorization": f"bearer  {key}"},
        {"x-api-key": key},
    ):
        assert ask(guarded, "/model", **headers).status_code == 200
    response = httpx.post(
        f"{guarded.url}/classify",
        content=TILE,
        headers={**TIFF, "x-api-key": key},
        trust_env=False,
        timeout=30,
    )
    assert response.json()["results"][0]["class"] == "Forest"


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": KEY[:-1]},
        {"x-api-key": KEY + "x"},
        {"x-api-key": KEY.upper()},
        {"x-api-key": ""},
        {"x-api-key": f"alice:{KEY}"},
        {"x-api-key": f"{KEY},{OTHER_KEY}"},
        {"authorization": KEY},
        {"authorization": f"Basic {KEY}"},
        {"authorization": "Bearer"},
        {"authorization": "Bearer wrong", "x-api-key": KEY},  # who says a bearer's key means it
        {"cookie": f"x-api-key={KEY}"},
    ],
)
def test_what_is_not_quite_a_key_opens_nothing(guarded: Server, headers: dict[str, str]) -> None:
    assert ask(guarded, "/model", **headers).status_code == 401


def test_a_key_in_the_query_opens_nothing(guarded: Server) -> None:
    assert ask(guarded, f"/model?key={KEY}&api_key={KEY}&x-api-key={KEY}").status_code == 401


def test_bytes_that_are_no_text_in_a_key_are_refused(guarded: Server) -> None:
    response = httpx.get(
        f"{guarded.url}/model", headers={"x-api-key": b"\xff\xfe\x80" * 9}, trust_env=False, timeout=30
    )
    assert response.status_code == 401


def test_a_body_without_a_key_is_refused_before_it_is_read(guarded: Server) -> None:
    response = httpx.post(
        f"{guarded.url}/classify", content=bytes(3_000_000), headers=TIFF, trust_env=False, timeout=30
    )
    assert response.status_code == 401


def test_no_key_is_ever_logged(guarded: Server) -> None:
    ask(guarded, "/model", **{"x-api-key": KEY})
    ask(guarded, f"/model?key={OTHER_KEY}", authorization=f"Bearer {FILED_KEY}")
    log = guarded.log.read_text()
    assert log
    assert not any(key in log for key in (KEY, OTHER_KEY, FILED_KEY))


def test_without_keys_everything_is_open(client: httpx.Client) -> None:
    assert client.get("/model").status_code == 200
    assert client.get("/metrics").status_code == 200


def test_callers_have_the_names_that_they_were_given_or_one_of_their_keys_hash() -> None:
    named, plain = parse_keys([f"alice:{KEY}", OTHER_KEY])
    keys = KeyCheck(None, [named, plain])  # type: ignore[arg-type] - serves nothing
    assert keys.caller_of({"x-api-key": KEY}) == "alice"
    name = keys.caller_of({"x-api-key": OTHER_KEY})
    assert name is not None
    assert name.startswith("key-")
    assert OTHER_KEY not in name
    assert keys.caller_of({"x-api-key": "x"}) is None


def test_a_caller_may_have_two_keys_while_they_are_changed_over() -> None:
    keys = KeyCheck(None, parse_keys([f"alice:{KEY}", f"alice:{OTHER_KEY}"]))  # type: ignore[arg-type] - as above
    assert {keys.caller_of({"x-api-key": key}) for key in (KEY, OTHER_KEY)} == {"alice"}


@pytest.mark.parametrize(
    "entry", ["short", "name:short", "a name:" + KEY, ":" + KEY, KEY + " " + KEY, "ü" * 20, "x" * 300]
)
def test_a_key_that_is_weak_or_cannot_be_sent_is_refused_and_not_shown(entry: str) -> None:
    with pytest.raises(TilewiseError, match="openssl rand") as refused:
        parse_keys([KEY, entry])
    assert "API key 2" in str(refused.value)
    assert entry not in str(refused.value)


def test_a_file_of_keys_that_holds_none_or_cannot_be_read_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "keys"
    empty.write_text("# none yet\n")
    with pytest.raises(TilewiseError, match="has no API key"):
        read_keys(None, str(empty))
    with pytest.raises(TilewiseError, match="cannot be read"):
        read_keys(KEY, str(tmp_path / "missing"))


def test_settings_do_not_show_keys() -> None:
    assert KEY not in repr(Settings(api_keys=KEY))


def test_a_caller_keeps_to_one_model_wherever_it_calls_from() -> None:
    scope = {"type": "http", "headers": [], "client": ("10.0.0.1", 5), "state": {"caller": "alice"}}
    assert sticky_key(Request(scope)) == "alice"
    assert sticky_key(Request({**scope, "headers": [(b"tilewise-key", b"field-7")]})) == "field-7"
    assert sticky_key(Request({**scope, "state": {}})) == "10.0.0.1"


@pytest.mark.parametrize("setting", ["TILEWISE_API_KEYS", "TILEWISE_CORS_ORIGINS"])
def test_a_service_with_keys_or_origins_that_make_no_sense_does_not_start_open(setting: str) -> None:
    environment = os.environ | {setting: "nonsense"}
    done = subprocess.run(
        [sys.executable, "-c", "import tilewise.bento.service"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
