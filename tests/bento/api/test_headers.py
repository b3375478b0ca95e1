"""Headers of every response: what browsers may do with it, and which other origins may send requests."""

import httpx
import pytest
from hardened import KEY, ORIGIN, say
from servers import Server

from tilewise.bento.api.middleware import cors_options
from tilewise.datasets.core.errors import TilewiseError

ALWAYS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def assert_safe(headers: httpx.Headers) -> None:
    for name, value in ALWAYS.items():
        assert headers.get_list(name) == [value], name
    assert "geolocation=()" in headers["permissions-policy"]
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "server" not in headers


@pytest.mark.parametrize(
    "path", ["/model", "/livez", "/metrics", "/nothing", "/", "/page/page.css", "/openapi.json"]
)
def test_every_answer_has_them_also_those_of_bentoml(client: httpx.Client, path: str) -> None:
    assert_safe(client.get(path).headers)


def test_refusals_have_them(client: httpx.Client, guarded: Server) -> None:
    assert_safe(client.post("/classify", content=b"x").headers)
    assert_safe(client.delete("/model").headers)
    assert_safe(httpx.get(f"{guarded.url}/model", trust_env=False, timeout=30).headers)


def test_what_is_no_http_is_refused_with_them_and_in_the_one_shape(unguarded: Server) -> None:
    answer = say(unguarded.url, b"\x16\x03\x01 no HTTP at all\r\n\r\n")
    assert answer.status == 400
    assert_safe(httpx.Headers(list(answer.headers.items())))
    assert answer.error["code"] == "bad_request"


def test_answers_are_kept_by_no_cache_and_run_nothing(client: httpx.Client) -> None:
    headers = client.get("/model").headers
    assert headers["cache-control"] == "no-store"
    assert "script-src" not in headers["content-security-policy"]


def test_the_page_runs_its_own_scripts_and_no_others(client: httpx.Client) -> None:
    (policy,) = client.get("/").headers.get_list("content-security-policy")
    assert "script-src 'self'" in policy


def test_by_default_no_other_page_may_ask(client: httpx.Client) -> None:
    response = client.get("/model", headers={"origin": ORIGIN})
    assert not [name for name in response.headers if name.startswith("access-control-")]
    asked = {"origin": ORIGIN, "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in client.options("/classify", headers=asked).headers


def test_a_page_that_is_named_may_ask_and_needs_no_key_to_ask_whether_it_may(guarded: Server) -> None:
    asked = {
        "origin": ORIGIN,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    response = httpx.options(f"{guarded.url}/classify", headers=asked, trust_env=False)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in response.headers["access-control-allow-headers"].lower()
    assert "access-control-allow-credentials" not in response.headers
    answer = httpx.get(
        f"{guarded.url}/model", headers={"origin": ORIGIN, "x-api-key": KEY}, trust_env=False, timeout=30
    )
    assert answer.headers["access-control-allow-origin"] == ORIGIN


def test_another_page_may_not(guarded: Server) -> None:
    for origin in ("https://evil.example", f"{ORIGIN}.evil.example", "null", "http://maps.example"):
        headers = {"origin": origin, "x-api-key": KEY}
        answer = httpx.get(f"{guarded.url}/model", headers=headers, trust_env=False, timeout=30)
        assert answer.headers.get("access-control-allow-origin") is None
        headers = {"origin": origin, "access-control-request-method": "POST"}
        assert httpx.options(f"{guarded.url}/classify", headers=headers, trust_env=False).status_code == 400


def test_even_all_origins_never_come_with_credentials() -> None:
    assert cors_options("*")["allow_credentials"] is False


@pytest.mark.parametrize(
    "origin", ["maps.example", "ftp://x", "https://", "https://x/path", "https://*.example"]
)
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(TilewiseError, match="not an origin"):
        cors_options(f"{ORIGIN}, {origin}")
