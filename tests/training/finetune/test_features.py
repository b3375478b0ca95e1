"""Which tiles stay together, and embeddings that are kept between runs."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tilewise.datasets.packs.pack import ArrayPack, Pack
from tilewise.models.model_file import open_model
from tilewise.training.finetune import features


def located(pack: Pack, centres: np.ndarray) -> Pack:
    """Return the pack with tiles of 640 m at these centres (m), in UTM."""
    index = pack.index
    for side, values in zip(("left", "bottom"), centres.T - 320, strict=True):
        index = index.set_column(index.schema.get_field_index(side), side, pa.array(values))
    for side, values in zip(("right", "top"), centres.T + 320, strict=True):
        index = index.set_column(index.schema.get_field_index(side), side, pa.array(values))
    crs = pa.array(["EPSG:32632"] * len(pack))
    pack.index = index.set_column(index.schema.get_field_index("crs"), "crs", crs)
    return pack


def test_neighbours_stay_together_in_the_widest_blocks_that_can_be_divided(pack_folder: Path) -> None:
    pack = Pack(pack_folder)
    random = np.random.default_rng(0)
    towns = random.integers(0, 8, len(pack)) * 30_000  # eight places 30 km apart
    centres = np.stack([400_000 + towns, np.full(len(pack), 5_000_000)], axis=1)
    centres = centres + random.uniform(0, 2000, centres.shape)
    rows = np.arange(len(pack))
    groups, shared = features.places(located(pack, centres), rows, folds=3)
    assert shared.startswith("blocks of ")
    for town in np.unique(towns):
        assert len(np.unique(groups[towns == town])) <= 4, "at most four blocks meet in one place"
    assert len(np.unique(groups)) < len(pack) / 3


def test_tiles_too_close_together_or_without_coordinates_are_said_to_be_neighbours(pack_folder: Path) -> None:
    pack, rows = Pack(pack_folder), np.arange(30)
    centres = np.full((len(pack), 2), 500_000.0)
    groups, shared = features.places(located(pack, centres), rows, folds=3)
    assert len(np.unique(groups)) == 30
    assert "too close together" in shared
    crs = pa.array([""] * len(pack))
    pack.index = pack.index.set_column(pack.index.schema.get_field_index("crs"), "crs", crs)
    assert "no coordinates" in features.places(pack, rows, folds=3)[1]


def test_an_array_file_has_no_coordinates(tmp_path: Path) -> None:
    path = tmp_path / "tiles.npz"
    tiles = np.ones((6, 13, 64, 64), np.uint16)
    np.savez(path, tiles=tiles, labels=np.arange(6) % 2, splits=np.full(6, "train"))
    groups, shared = features.places(ArrayPack(path), np.arange(6), folds=2)
    assert (len(np.unique(groups)), "no coordinates" in shared) == (6, True)


def test_embeddings_of_eight_symmetries_are_kept_until_tiles_or_model_change(
    pack: Pack, skilled_model: Path, model_file: Path, tmp_path: Path
) -> None:
    cache, rows, done = tmp_path / "features.npz", np.arange(70), []
    model = open_model(skilled_model)
    first = features.embed(model, pack, rows, cache, done.append)
    assert (first.shape[:2], done) == ((8, 70), [64, 70])
    np.testing.assert_allclose(
        first[0], model.session.run(["embedding"], {"tiles": pack.fetch(rows)})[0], rtol=1e-4, atol=1e-5
    )
    done.clear()
    np.testing.assert_array_equal(features.embed(model, pack, rows, cache, done.append), first)
    assert done == [70], "read, not computed"
    assert features.embed(model, pack, rows[:-1], cache, done.append).shape[1] == 69
    other = features.embed(open_model(model_file), pack, rows[:-1], cache, done.append)
    assert other.shape[2] != first.shape[2]
    cache.write_bytes(cache.read_bytes()[:100])
    assert features.embed(model, pack, rows, cache, done.append).shape == first.shape, (
        "a broken file is not read"
    )


@pytest.mark.parametrize(("tiles", "views"), [(10, 8), (1024, 8), (2000, 4), (9000, 1)])
def test_many_tiles_are_seen_in_fewer_views(tiles: int, views: int) -> None:
    assert features.views_of_each(tiles) == views
