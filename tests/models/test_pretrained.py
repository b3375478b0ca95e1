"""The weights that ship: sound files, small enough, one made from the other, and right about real tiles."""

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tilewise import models
from tilewise.datasets.core.bands import L2A_BANDS, RGB_BANDS, positions
from tilewise.datasets.core.tile import DN
from tilewise.datasets.readers.eurosat import CLASSES, class_of, read_ms
from tilewise.models.model_file import INPUT, ModelFile, int8_of, open_model

NAMES = ("accurate", "fast")
FILES = {name: Path(models.__file__).parent / "pretrained" / name / "model.onnx" for name in NAMES}
VERSIONS = {"accurate": "2.1.0", "fast": "1.4.0"}


@pytest.fixture(scope="module", params=NAMES)
def fp32(request: pytest.FixtureRequest) -> Path:
    return FILES[request.param]


@pytest.fixture(scope="module", params=["fp32", "int8"])
def shipped(request: pytest.FixtureRequest, fp32: Path) -> ModelFile:
    return open_model(fp32 if request.param == "fp32" else int8_of(fp32))


def test_the_files_say_what_they_are_and_belong_together(shipped: ModelFile, fp32: Path) -> None:
    metadata = shipped.metadata
    assert metadata.classes == tuple(sorted(CLASSES))
    assert not metadata.synthetic
    assert metadata.prediction_sets is not None
    assert metadata.outliers is not None
    assert metadata.version == VERSIONS[fp32.parent.name]
    if metadata.precision == "int8":
        assert metadata.quantised_from == open_model(fp32).sha256


def test_all_files_take_less_than_25_megabytes() -> None:
    assert sum(path.stat().st_size for file in FILES.values() for path in (file, int8_of(file))) < 25e6


def test_the_weights_of_fast_are_those_of_release_1_4_0() -> None:
    weights = open_model(FILES["fast"]).metadata.weights
    assert weights == "ffef73bc4ac46a265ce29a51b576616db46b51b9d7f67d29a3c49c92d5d3d541"


def test_the_weights_of_accurate_name_those_they_began_with() -> None:
    ancestry = open_model(FILES["accurate"]).metadata.ancestry
    assert ancestry.startswith(
        "timm/tf_efficientnet_lite0, efficientnet-lite0-57934424.pth, sha256 579344248a93"
    )
    assert ancestry in FILES["accurate"].with_name("README.md").read_text(encoding="utf-8")


def test_the_card_is_of_these_files(fp32: Path) -> None:
    card = fp32.with_name("README.md").read_text(encoding="utf-8")
    digests = [open_model(path).sha256 for path in (fp32, int8_of(fp32))]
    assert re.findall(r"SHA-256 `(\w{64})` \|$", card, re.MULTILINE) == digests[:1]
    assessed = re.findall(r"^- sha256: (\w{64})$", card, re.MULTILINE)
    assert assessed[-1] == digests[1], "the file that serves"
    assert set(assessed) <= set(digests)


@pytest.fixture(scope="module")
def validation_tiles(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[DN, list[str]]:
    """Real tiles of the published validation list, and their classes: none that the network was trained
    on."""
    folder = tmp_path_factory.mktemp("real")
    names = {
        line.split(".")[0] for line in (real_data / "splits/eurosat-spatial-val.txt").read_text().split()
    }
    with zipfile.ZipFile(io.BytesIO((real_data / "EuroSAT_MS.zip").read_bytes())) as archive:
        chosen = [item for item in archive.namelist() if Path(item).stem in names]
        paths = [Path(archive.extract(item, folder)) for item in chosen]
    return np.stack([read_ms(path).pixels for path in paths]), [class_of(path) for path in paths]


@pytest.mark.realdata
@pytest.mark.parametrize("bands", [None, L2A_BANDS, RGB_BANDS], ids=["all", "l2a", "rgb"])
def test_max_real_tiles_are_classified_rightly_through_any_bands(
    shipped: ModelFile, validation_tiles: tuple[DN, list[str]], bands: tuple[str, ...] | None
) -> None:
    tiles, truth = validation_tiles
    seen = tiles
    if bands is not None:
        seen = np.zeros_like(tiles)
        seen[:, positions(bands)] = tiles[:, positions(bands)]
    answered = shipped.session.run(["probabilities"], {INPUT: seen})[0].argmax(1)
    right = np.mean(
        [shipped.metadata.classes[place] == label for place, label in zip(answered, truth, strict=True)]
    )
    assert right > 0.87  # 0.90 was measured: docs/results.md


@pytest.mark.realdata
def test_real_tiles_pass_as_known_and_an_offset_left_in_does_not(
    shipped: ModelFile, validation_tiles: tuple[DN, list[str]]
) -> None:
    tiles, _ = validation_tiles
    outliers = shipped.metadata.outliers
    assert outliers is not None
    known, shifted = (
        shipped.session.run(["outlier_score"], {INPUT: some})[0] for some in (tiles, tiles + 1000)
    )
    assert (known > outliers.threshold).mean() < 0.06
    assert (shifted > outliers.threshold).mean() > 0.95
