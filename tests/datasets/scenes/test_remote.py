"""Scenes in buckets and behind signed addresses: real servers on loopback, read by GDAL's own handlers."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import numpy as np
import planetary_computer.settings
import pytest
from range_server import serving_files
from rasterio.windows import Window
from rasters import L1C_TAGS, write_tiff
from scene_files import CORNER, smooth, stac_item, write_json
from signing_server import VALID_S, signatures, signing_storage

from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.core.errors import FetchError, SceneError, UnreadableImageError
from tilewise.datasets.scenes import SceneOptions, SceneSource, find_scenes

PIXELS = smooth(13, 256)
AS_THEY_ARE = SceneOptions(clouds=None)
WHOLE = Window(0, 0, 256, 256)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    blocks = {"tiled": True, "blockxsize": 128, "blockysize": 128}
    write_tiff(tmp_path / "scene.tif", PIXELS, BAND_NAMES, L1C_TAGS, CORNER, **blocks)
    return tmp_path


@pytest.fixture
def s3(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A real S3 server with the scene in the bucket `archive`, and credentials in the environment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, value in {
        "AWS_ACCESS_KEY_ID": "reader",
        "AWS_SECRET_ACCESS_KEY": "s3cret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_S3_ENDPOINT": f"127.0.0.1:{port}",
        "AWS_HTTPS": "NO",
        "AWS_VIRTUAL_HOSTING": "FALSE",
    }.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                httpx.get(f"http://127.0.0.1:{port}")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
        client.create_bucket(Bucket="archive")
        client.upload_file(str(folder / "scene.tif"), "archive", "2024/scene.tif")
        yield client
    finally:
        server.terminate()
        server.wait(20)


def item_of(folder: Path, href: str) -> SceneSource:
    bands = [{"name": band} for band in BAND_NAMES]
    path = write_json(folder / "item.json", stac_item({"data": {"href": href, "eo:bands": bands}}))
    (source,) = find_scenes([path], AS_THEY_ARE)
    return source


def test_a_bucket_of_s3_is_read_with_the_users_credentials(folder: Path, s3: Any) -> None:
    source = item_of(folder, "s3://archive/2024/scene.tif")
    with source.open() as scene:
        np.testing.assert_array_equal(scene.read(WHOLE), PIXELS)
    before = source.fingerprint()
    assert source.fingerprint() == before
    write_tiff(folder / "other.tif", smooth(13, 256, 1), BAND_NAMES, L1C_TAGS, CORNER, compress="deflate")
    s3.upload_file(str(folder / "other.tif"), "archive", "2024/other.tif")
    assert item_of(folder, "s3://archive/2024/other.tif").fingerprint() != before
    with pytest.raises(UnreadableImageError, match=r"none\.tif: it cannot be read from its bucket"):
        item_of(folder, "s3://archive/2024/none.tif").fingerprint()


def test_a_bucket_of_google_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "archive").mkdir()
    (folder / "scene.tif").rename(folder / "archive" / "scene.tif")
    with serving_files(folder) as server:
        monkeypatch.setenv("CPL_GS_ENDPOINT", f"{server.url}/")
        monkeypatch.setenv("GS_NO_SIGN_REQUEST", "YES")
        with item_of(folder, "gs://archive/scene.tif").open() as scene:
            np.testing.assert_array_equal(scene.read(WHOLE), PIXELS)
        assert any(path == "/archive/scene.tif" and wanted for _, path, wanted in server.asked)


def test_metadata_in_a_bucket_are_refused_with_the_way_out() -> None:
    (source,) = find_scenes(["s3://archive/item.json"])
    with pytest.raises(SceneError, match=r"s3://archive/item\.json: metadata are read from disk or by http"):
        source.open().__enter__()


@pytest.fixture
def storage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with signing_storage(folder) as url:
        monkeypatch.setenv("http_proxy", url)
        monkeypatch.setenv("PC_SDK_SAS_URL", f"{url}/token")
        planetary_computer.settings.Settings.get.cache_clear()
        planetary_computer.sas.TOKEN_CACHE.clear()
        yield url
    planetary_computer.settings.Settings.get.cache_clear()
    planetary_computer.sas.TOKEN_CACHE.clear()


def test_a_signature_that_expires_while_a_scene_is_read_is_renewed(folder: Path, storage: str) -> None:
    source = item_of(folder, "http://archive.blob.core.windows.net/l2a/scene.tif")
    with source.open() as scene:
        top = scene.read(Window(0, 0, 256, 128))
        given = signatures(folder)
        time.sleep(VALID_S + 1)  # the address that the file was opened with is refused from now on
        bottom = scene.read(Window(0, 128, 256, 128))
        assert signatures(folder) > given
    np.testing.assert_array_equal(np.concatenate([top, bottom], axis=1), PIXELS)
    assert "sig=" not in repr(source)  # a signature is no part of what a scene is
    assert source.fingerprint()


def test_a_signer_that_does_not_answer_is_named(folder: Path, storage: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("PC_SDK_SAS_URL", f"{storage}/nothing")
    source = item_of(folder, "http://archive.blob.core.windows.net/l2a/scene.tif")
    with pytest.raises(FetchError, match="the Planetary Computer gives no signature"), source.open():
        pass
