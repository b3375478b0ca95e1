"""The OpenAPI document is valid, complete and true: its examples are run, and it checks real responses."""

import ast
import copy
import json
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from geotiffs import jpeg, tile_file
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from servers import ROOT, served
from starlette.routing import Route
from tiny_onnx import calibrated, write_model

from tilewise.bento.api.app import BENTOML_PATHS, document, make_app
from tilewise.bento.api.replies import ERROR_CODES, code_of_status
from tilewise.bento.api.schemas import EXAMPLE_URL
from tilewise.bento.errors import CODES
from tilewise.bento.settings import Settings
from tilewise.datasets.acquire.synthetic import synthesise_scene, synthesise_tile
from tilewise.datasets.readers.eurosat import CLASSES

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
MAX_BYTES = 2 * 2**20
METHODS = {"get", "post", "delete", "put", "patch"}
TILE = synthesise_tile("Forest", 3, 1)
SAMPLES = [
    (path, method, sample["source"])
    for path, item in document()["paths"].items()
    for method in METHODS & item.keys()
    for sample in item[method]["x-codeSamples"]
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with all optional metadata, so that every field of the responses is seen."""
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    return write_model(
        path, calibrated(CLASSES).model_dump_json(), weights=np.zeros((14, len(CLASSES)), np.float32)
    )


@pytest.fixture(scope="module")
def service(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    settings = {
        "TILEWISE_WORKERS": "1",
        "TILEWISE_MAX_BYTES": str(MAX_BYTES),
        "TILEWISE_MAX_SCENE_BYTES": str(2 * MAX_BYTES),
        "TILEWISE_CANDIDATE": str(model),
    }
    with (
        served(model, tmp_path_factory.mktemp("bentoml"), **settings) as server,
        httpx.Client(base_url=server.url, trust_env=False, timeout=30) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the examples send."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "tile.tif").write_bytes(tile_file(TILE))
    np.save(folder / "tiles.npy", np.stack([TILE.pixels] * 2))
    synthesise_scene(folder / "scene.tif", seed=1, rows=2, columns=3)
    return folder


# Valid.


def test_it_is_openapi() -> None:
    assert [error.message for error in OpenAPIV31SpecValidator(document()).iter_errors()] == []
    untitled = copy.deepcopy(document())
    del untitled["info"]["title"]
    assert list(OpenAPIV31SpecValidator(untitled).iter_errors()), "the validator looks at what it is given"


def test_the_service_gives_it_and_nothing_of_bentomls_own(service: httpx.Client) -> None:
    assert service.get("/openapi.json").json() == document()
    for path in ("/docs.json", "/static_content/swagger-ui.css"):
        assert service.get(path).json()["error"]["code"] == "not_found"


def test_its_references_lead_somewhere() -> None:
    targets = set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document())))
    assert "components/headers/Retry-After" in targets
    for target in targets:
        found: Any = document()
        for step in target.split("/"):
            found = found[step]
        assert found


# Complete.


def test_it_names_every_route_and_there_is_a_route_for_all_that_it_names() -> None:
    described = {
        (path, method.upper())
        for path, item in document()["paths"].items()
        for method in METHODS & item.keys()
    }
    routes = [route for route in make_app(Settings()).routes if isinstance(route, Route)]
    served_ = {(route.path, method) for route in routes for method in route.methods or () if method != "HEAD"}
    shown = {(r.path, m) for r in routes if r.include_in_schema for m in r.methods or () if m != "HEAD"}
    assert shown <= described
    assert described - served_ == {(path, "GET") for path in BENTOML_PATHS}


def codes_in_the_sources() -> set[str]:
    """Every code that an error is made with."""
    found = {code for _, code in CODES}
    for path in (ROOT / "bento").rglob("*.py"):
        if "client" in path.parts or path.stem == "schemas":  # the latter has examples
            continue
        found |= {
            code_of_status(int(status)) for status in re.findall(r"HTTPException\(\s*(\d+)", path.read_text())
        }
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                index = {"refuse": 1, "_refuse": 1, "error_body": 0}.get(name, 99)
                found |= {a.value for a in node.args[index : index + 1] if isinstance(a, ast.Constant)}
            if isinstance(node, ast.Dict):
                body = dict(zip([getattr(key, "value", None) for key in node.keys], node.values, strict=True))
                if body.keys() == {"code", "message", "hint"} and isinstance(body["code"], ast.Constant):
                    found.add(body["code"].value)
    return found


def test_it_lists_every_code_that_an_error_can_have_and_no_other() -> None:
    assert set(ERROR_CODES) == codes_in_the_sources()
    for code, error in ERROR_CODES.items():
        assert f"| `{code}` | {error.status} |" in document()["info"]["description"]


def test_every_status_of_a_refusal_has_a_code_of_its_own() -> None:
    for path in (ROOT / "bento").rglob("*.py"):
        for status in re.findall(r"HTTPException\(\s*(\d+)", path.read_text()):
            assert code_of_status(int(status)) in ERROR_CODES, (
                f"{path.name} refuses with {status}, without a code"
            )


# True.


def closed(schema: Any) -> Any:
    """A schema that forbids fields which it does not name."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    shut = {key: closed(value) for key, value in schema.items()}
    if "properties" in shut and isinstance(shut["properties"], dict):
        shut.setdefault("additionalProperties", False)
    return shut


def check(content: Any, schema: dict[str, Any]) -> None:
    """Validate `content` by a schema of the document, with undocumented fields forbidden."""
    components = {"components": {"schemas": closed(document()["components"]["schemas"])}}
    Draft202012Validator(closed(schema) | components).validate(content)


def resolved(part: dict[str, Any]) -> dict[str, Any]:
    found: Any = part
    if "$ref" in part:
        found = document()
        for step in part["$ref"].removeprefix("#/").split("/"):
            found = found[step]
    return copy.deepcopy(found)


def promised(path: str, method: str, status: int) -> dict[str, Any]:
    """The document's description of a response; KeyError where it has none."""
    return resolved(document()["paths"][path][method]["responses"][str(status)])


def check_answer(path: str, method: str, status: int, headers: httpx.Headers, body: bytes) -> None:
    """Validate a response by the document."""
    promise = promised(path, method, status)
    assert headers["tilewise-api-version"] == document()["info"]["version"]
    assert headers["x-request-id"]
    if status != 204:
        kind = headers["content-type"].partition(";")[0]
        schema = promise["content"][kind]["schema"]
        if "json" in kind:
            check(json.loads(body), schema)
        else:
            assert body
    for name in set(promise.get("headers", {})) & {"Location", "Retry-After", "Allow"}:
        assert name in headers, name


def test_its_own_examples_have_the_forms_that_it_promises() -> None:
    seen = 0
    answers = [
        answer
        for item in document()["paths"].values()
        for method in METHODS & item.keys()
        for answer in item[method]["responses"].values()
    ]
    for answer in answers:
        for content in resolved(answer).get("content", {}).values():
            for example in content.get("examples", {}).values():
                check(resolved(example)["value"], content["schema"])
                seen += 1
    assert seen > len(ERROR_CODES)


def curl(line: str, url: str, folder: Path) -> tuple[int, httpx.Headers, bytes]:
    """Run an example in `folder`; return the answer's status, headers and body."""
    words = shlex.split(line.replace(EXAMPLE_URL, url))
    assert words[0] == "curl"
    if "-o" not in words:
        words += ["-o", "body"]
    done = subprocess.run(
        [*words, "-sS", "--noproxy", "*", "-D", "head"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    head = (folder / "head").read_text().splitlines()
    headers = httpx.Headers(
        [(n.strip(), v.strip()) for n, _, v in (h.partition(":") for h in head[1:]) if n.strip()]
    )
    output = folder / words[words.index("-o") + 1]
    body = output.read_bytes() if output.exists() else b""
    output.unlink(missing_ok=True)
    return int(head[0].split()[1]), headers, body


@needs_curl
@pytest.mark.parametrize(
    ("path", "method", "line"),
    [sample for sample in SAMPLES if "{task_id}" not in sample[0]],
    ids=lambda text: text,
)
def test_each_example_does_what_it_promises(
    service: httpx.Client, folder: Path, path: str, method: str, line: str
) -> None:
    status, headers, body = curl(line, str(service.base_url).rstrip("/"), folder)
    assert status == (202 if "respond-async" in line else 200), body
    check_answer(path, method, status, headers, body)


@needs_curl
def test_each_example_about_a_task_does_what_it_promises(service: httpx.Client, folder: Path) -> None:
    url = str(service.base_url).rstrip("/")
    scene = (folder / "scene.tif").read_bytes()
    sent = service.post(
        "/scene", content=scene, headers={"content-type": "image/tiff", "prefer": "respond-async"}
    )
    task_id = sent.json()["id"]
    until = time.monotonic() + 30
    while service.get(f"/tasks/{task_id}").json()["status"] != "done" and time.monotonic() < until:
        time.sleep(0.1)
    samples = [sample for sample in SAMPLES if "{task_id}" in sample[0]]
    for path, method, line in sorted(samples, key=lambda sample: sample[1] == "delete"):
        status, headers, body = curl(line.replace("{task_id}", task_id), url, folder)
        assert status == (204 if method == "delete" else 200), body
        check_answer(path, method, status, headers, body)
    assert service.get(f"/tasks/{task_id}").json()["error"]["code"] == "not_found"


FORM = {"tiles": ("tile.tif", tile_file(TILE), "image/tiff")}
TIFF = {"content-type": "image/tiff"}
REFUSED: list[tuple[str, str, dict[str, Any], int, str]] = [
    (
        "post",
        "/classify",
        {"content": b"x", "headers": {"content-type": "text/plain"}},
        415,
        "unsupported_type",
    ),
    (
        "post",
        "/classify",
        {"content": b"x", "headers": {"content-type": "multipart/form-data"}},
        400,
        "bad_request",
    ),
    ("post", "/classify", {"files": FORM, "headers": {"tilewise-api-version": "2"}}, 400, "api_version"),
    ("post", "/classify", {"content": bytes(MAX_BYTES + 1), "headers": TIFF}, 413, "too_large"),
    ("post", "/classify", {"content": jpeg(), "headers": TIFF}, 415, "unreadable_image"),
    ("post", "/classify", {"files": FORM, "data": {"level": "L3"}}, 422, "invalid"),
    ("post", "/classify", {"files": FORM, "data": {"bands": "B99"}}, 422, "unknown_band"),
    ("get", "/classify", {}, 405, "method"),
    ("get", "/explain", {}, 405, "method"),
    ("post", "/explain", {"files": FORM, "headers": {"accept": "text/html"}}, 406, "not_acceptable"),
    ("post", "/explain", {"content": jpeg(), "headers": TIFF}, 415, "unreadable_image"),
    ("post", "/explain", {"files": FORM, "params": {"size": "99"}}, 422, "invalid"),
    ("post", "/scene", {"content": b"x", "headers": TIFF | {"accept": "text/html"}}, 406, "not_acceptable"),
    ("post", "/scene", {"content": jpeg(), "headers": TIFF}, 415, "unreadable_image"),
    ("post", "/scene", {"content": bytes(2 * MAX_BYTES + 1), "headers": TIFF}, 413, "too_large"),
    ("post", "/scene", {"json": {}}, 415, "unsupported_type"),
    ("put", "/scene", {}, 405, "method"),
    ("get", "/tasks/none", {}, 404, "not_found"),
    ("get", "/tasks/none/result", {}, 404, "not_found"),
    ("delete", "/tasks/none", {}, 404, "not_found"),
    ("post", "/tasks/none", {}, 405, "method"),
    ("post", "/preview", {"content": jpeg(), "headers": TIFF}, 415, "unreadable_image"),
    ("post", "/preview", {"files": FORM, "params": {"view": "sideways"}}, 422, "invalid"),
    ("delete", "/model", {}, 405, "method"),
    ("post", "/metrics", {}, 405, "method"),
    ("post", "/livez", {}, 405, "method"),
    ("delete", "/readyz", {}, 405, "method"),
    ("patch", "/schema.json", {}, 405, "method"),
    ("post", "/openapi.json", {}, 405, "method"),
    ("options", "/", {}, 405, "method"),
]


@pytest.mark.parametrize(
    ("method", "path", "request_", "status", "code"), REFUSED, ids=[f"{r[0]} {r[1]} {r[4]}" for r in REFUSED]
)
def test_what_is_refused_is_refused_as_it_says(
    service: httpx.Client, method: str, path: str, request_: dict[str, Any], status: int, code: str
) -> None:
    response = service.request(method, path, **request_)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    check(response.json(), {"$ref": "#/components/schemas/ErrorResponse"})
    described = path.replace("none", "{task_id}")
    documented = document()["paths"][described]
    where = method if method in documented else next(iter(METHODS & documented.keys()))
    check_answer(described, where, status, response.headers, response.content)


@pytest.mark.parametrize("path", ["/no/such/thing", "/classify/", "/healthz/", "/static_content/", "/%00"])
def test_where_there_is_nothing_the_answer_says_so_in_the_one_form(service: httpx.Client, path: str) -> None:
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"):
        response = service.request(method, path)
        assert response.status_code == 404, method
        check(response.json(), {"$ref": "#/components/schemas/ErrorResponse"})
        assert response.json()["error"]["code"] == "not_found"
