"""The Open Inference Protocol, spoken by a published client and by hand to a real service."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from linear_model import write_linear_model
from servers import Server, served

from tilewise.bento.inference.engine import Engine
from tilewise.datasets.acquire.synthetic import render

TILES = np.stack([render("Forest", 1, 1), render("SeaLake", 2, 1), render("Highway", 3, 1)])
MODEL = "/v2/models/tiny"
KEY = "0123456789abcdef0123"
MAX_TILES = 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_linear_model(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {"TILEWISE_WORKERS": "1", "TILEWISE_API_KEYS": KEY, "TILEWISE_MAX_TILES": str(MAX_TILES)}
    with served(model, tmp_path_factory.mktemp("bentoml"), **settings) as server:
        yield server


@pytest.fixture(scope="module")
def service(server: Server) -> Iterator[httpx.Client]:
    headers = {"x-api-key": KEY}
    with httpx.Client(base_url=server.url, trust_env=False, timeout=30, headers=headers) as client:
        yield client


def tensor(tiles: np.ndarray = TILES, **changes: Any) -> dict[str, Any]:
    form = {"name": "tiles", "datatype": "UINT16", "shape": list(tiles.shape)}
    return {"inputs": [{**form, "data": tiles.ravel().tolist(), **changes}]}


def binary(tiles: np.ndarray = TILES, **more: Any) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of a request in binary form."""
    content = tiles.astype("<u2").tobytes()
    form = {"name": "tiles", "datatype": "UINT16", "shape": list(tiles.shape)}
    head = json.dumps(
        {"inputs": [{**form, "parameters": {"binary_data_size": len(content)}}], **more}
    ).encode()
    return head + content, {"inference-header-content-length": str(len(head))}


def arrays(answer: dict[str, Any]) -> dict[str, np.ndarray]:
    return {one["name"]: np.array(one["data"]).reshape(one["shape"]) for one in answer["outputs"]}


def test_health_needs_no_key_and_all_else_does(server: Server) -> None:
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert httpx.get(server.url + path, trust_env=False).status_code == 200
    for path in ("/v2", MODEL, f"{MODEL}/ready"):
        assert httpx.get(server.url + path, trust_env=False).status_code == 401
    assert httpx.post(f"{server.url}{MODEL}/infer", json=tensor(), trust_env=False).status_code == 401


def test_metadata_names_what_the_model_takes_and_gives(service: httpx.Client) -> None:
    assert service.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    found = service.get(MODEL).json()
    assert found == service.get(f"{MODEL}/versions/0").json()
    assert found["inputs"] == [{"name": "tiles", "datatype": "UINT16", "shape": [-1, 13, 64, 64]}]
    shapes = {one["name"]: one["shape"] for one in found["outputs"]}
    assert shapes == {"probabilities": [-1, 10], "logits": [-1, 10], "embedding": [-1, 13]}
    for path in (f"{MODEL}/ready", f"{MODEL}/versions/0/ready"):
        assert service.get(path).json() == {"name": "tiny", "ready": True}


def test_json_gives_the_outputs_of_the_model(service: httpx.Client, model: Path) -> None:
    answer = service.post(f"{MODEL}/infer", json=tensor() | {"id": "7"}).json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("tiny", "0", "7")
    expected, found = Engine(model).classify(TILES), arrays(answer)
    assert list(found) == ["probabilities", "logits", "embedding"]
    for name, values in found.items():
        np.testing.assert_allclose(values, getattr(expected, name), rtol=1e-4, atol=1e-5)
    nested = service.post(f"{MODEL}/versions/0/infer", json=tensor(data=TILES.tolist())).json()
    np.testing.assert_array_equal(arrays(nested)["logits"], found["logits"])


def test_binary_tensors_give_the_same(service: httpx.Client) -> None:
    body, headers = binary(parameters={"binary_data_output": True}, outputs=[{"name": "logits"}])
    response = service.post(f"{MODEL}/infer", content=body, headers=headers)
    length = int(response.headers["inference-header-content-length"])
    (output,) = json.loads(response.content[:length])["outputs"]
    assert output["parameters"]["binary_data_size"] == len(response.content) - length
    found = np.frombuffer(response.content[length:], "<f4").reshape(output["shape"])
    plain = arrays(service.post(f"{MODEL}/infer", json=tensor()).json())
    np.testing.assert_allclose(found, plain["logits"], rtol=1e-6)


def test_a_band_without_data_is_absent(service: httpx.Client) -> None:
    tiles = TILES.copy()
    tiles[:, 10] = 0
    assert service.post(f"{MODEL}/infer", json=tensor(tiles)).status_code == 200


@pytest.mark.parametrize(
    ("request_", "status", "text"),
    [
        (tensor(name="image"), 422, "send 'tiles' of UINT16"),
        (tensor(datatype="FP32"), 422, "send 'tiles' of UINT16"),
        (tensor(shape=[3, 64, 64, 13]), 422, "send [n, 13, 64, 64]"),
        (tensor(shape=[0, 13, 64, 64], data=[]), 422, "n of 1 or more"),
        (tensor(shape=[MAX_TILES + 1, 13, 64, 64], data=[]), 413, "the limit is 8"),
        (tensor(data=[1, 2]), 422, "its shape says"),
        (tensor(data=[[1], [2, 3]]), 422, "different lengths"),
        (tensor(TILES[:1], data=[70_000] * 53_248), 422, "outside 0-65535"),
        (tensor(TILES[:1], data=[0.5] * 53_248), 422, "float64"),
        (tensor(TILES[:1], data=[True] * 53_248), 422, "bool"),
        (tensor(TILES[:1], data=[0] * 53_248), 422, "no pixel holds data"),
        (tensor(data=None), 400, "follow the JSON"),
        (tensor() | {"outputs": [{"name": "classes"}]}, 422, "there are probabilities, logits, embedding"),
        ({"inputs": []}, 400, "not an inference request: inputs"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refusals_say_what_is_wrong_in_the_form_of_the_protocol(
    service: httpx.Client, request_: dict[str, Any], status: int, text: str
) -> None:
    response = service.post(f"{MODEL}/infer", json=request_)
    assert (response.status_code, list(response.json())) == (status, ["error"])
    assert text in response.json()["error"]


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"[" * 100_000, {}, 400),
        (b"{", {"inference-header-content-length": "9"}, 400),
        (b"{}", {"inference-header-content-length": "-1"}, 400),
        (b" " * (4 * 2**20 + 1), {}, 413),
        (binary()[0][:-2], binary()[1], 400),
    ],
)
def test_hostile_bodies_are_refused(
    service: httpx.Client, content: bytes, headers: dict[str, str], status: int
) -> None:
    response = service.post(f"{MODEL}/infer", content=content, headers=headers)
    assert response.status_code == status
    assert isinstance(response.json()["error"], str)


def test_another_model_or_version_is_not_found(service: httpx.Client) -> None:
    for path in ("/v2/models/none", f"{MODEL}/versions/9", f"{MODEL}/versions/9/ready"):
        response = service.get(path)
        assert response.status_code == 404
        assert isinstance(response.json()["error"], str)


def test_requests_are_counted_by_route_and_tiles_by_class(service: httpx.Client) -> None:
    service.post(f"{MODEL}/infer", json=tensor())
    text = service.get("/metrics").text
    assert 'path="/v2/models/{name}/infer"' in text
    assert "/v2/models/tiny" not in text
    assert "tilewise_tiles_total{" in text


def test_tritons_client_gets_the_outputs_that_it_asks_for(server: Server, model: Path) -> None:
    http = pytest.importorskip("tritonclient.http")
    headers = {"x-api-key": KEY}
    with http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("tiny", headers=headers)
        assert client.get_model_metadata("tiny", headers=headers)["inputs"][0]["name"] == "tiles"
        for as_binary in (True, False):
            tiles = http.InferInput("tiles", list(TILES.shape), "UINT16")
            tiles.set_data_from_numpy(TILES, binary_data=as_binary)
            wanted = [http.InferRequestedOutput("embedding", binary_data=as_binary)]
            answer = client.infer("tiny", [tiles], outputs=wanted, headers=dict(headers), request_id="one")
            expected = Engine(model).classify(TILES).embedding
            np.testing.assert_allclose(answer.as_numpy("embedding"), expected, rtol=1e-5)
            assert answer.as_numpy("logits") is None
        with pytest.raises(Exception, match="there is no model"):
            client.get_model_metadata("none", headers=headers)
