"""Labels guessed by a model: kept where it is sure and agrees with itself, and never used to judge."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from datasets.bands import L2A_BANDS, positions
from datasets.errors import NoTilesError
from datasets.pack import Pack
from datasets.packing import write_pack
from datasets.sources import find_source
from datasets.splits import Method, SplitPlan
from models.modelfile import open_model
from training.disturbances import DISTURBANCES
from training.pseudo_labels import Guess, guess, main, read_unlabelled, write_sources


@pytest.fixture(scope="module")
def array(pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic tiles without labels and without band 10, as Level-2A is."""
    path = tmp_path_factory.mktemp("unlabelled") / "tiles.npz"
    tiles = pack.fetch(np.arange(0, 120, 8))[:, positions(L2A_BANDS)]
    np.savez(path, tiles=tiles, bands=np.array(L2A_BANDS))
    return path


def test_only_sure_and_agreed_guesses_train_and_every_fourth_tile_stays_unlabelled(
    array: Path, model_file: Path, tmp_path: Path
) -> None:
    unlabelled = read_unlabelled(array)
    guesses = [
        Guess("River", 0.9, True),  # held back, as every fourth is
        Guess("Forest", 0.9, True),
        Guess("River", 0.9, False),
        Guess("River", 0.5, True),
    ]
    unlabelled = type(unlabelled)(unlabelled.tiles[:4], unlabelled.bands)
    assert write_sources(unlabelled, guesses, tmp_path / "guessed", 0.8, open_model(model_file)) == (1, 3)
    source = find_source(tmp_path / "guessed")
    assert [file.label for file in source.files()] == ["Forest"]
    tile = source.read(source.files()[0].path)
    assert np.array_equal(tile.pixels, unlabelled.tiles[1])
    assert tile.bands == L2A_BANDS
    assert find_source(tmp_path / "guessed-unlabelled").split == "unlabelled"


@pytest.mark.parametrize(("least", "sure"), [(0.8, [True, False, False]), (0.0, [True, True, True])])
def test_at_zero_every_guess_is_sure_enough(least: float, sure: list[bool]) -> None:
    guesses = [Guess("River", 0.9, True), Guess("River", 0.9, False), Guess("River", 0.5, True)]
    assert [found.is_sure(least) for found in guesses] == sure


def test_new_guesses_take_the_place_of_earlier_ones_and_of_nothing_else(
    array: Path, model_file: Path, tmp_path: Path
) -> None:
    unlabelled, out = read_unlabelled(array), tmp_path / "guessed"
    model = open_model(model_file)
    for label in ("Forest", "River"):
        write_sources(unlabelled, [Guess(label, 0.9, True)] * 3, out, 0.8, model)
    assert [(file.label, file.name) for file in find_source(out).files()] == [
        ("River", "guessed-River_1"),
        ("River", "guessed-River_2"),
    ]
    precious = tmp_path / "mine" / "Forest" / "a.tif"
    precious.parent.mkdir(parents=True)
    precious.write_bytes(b"of another")
    told = CliRunner().invoke(main, [str(array), "--model", str(model_file), "--out", str(tmp_path / "mine")])
    assert told.exit_code == 1
    assert "mine: exists and holds no guessed labels; name another folder with --out" in told.output
    assert precious.read_bytes() == b"of another"


def test_a_guess_is_the_same_however_the_tile_is_turned(array: Path, model_file: Path) -> None:
    model, tiles = open_model(model_file), read_unlabelled(array).tiles[:4]
    turned = guess(model, np.ascontiguousarray(np.rot90(tiles, 1, (2, 3))))
    for one, other in zip(guess(model, tiles), turned, strict=True):
        assert one.label == other.label
        assert one.confidence == pytest.approx(other.confidence, abs=1e-5)


def test_a_tile_whose_middle_looks_like_another_class_at_twice_the_size_is_not_agreed_on(
    array: Path, model_file: Path
) -> None:
    model, tiles = open_model(model_file), read_unlabelled(array).tiles
    framed = np.repeat(tiles, len(tiles), axis=0)
    framed[:, :, 16:48, 16:48] = np.tile(tiles[:, :, 16:48, 16:48], (len(tiles), 1, 1, 1))
    middles = [found.label for found in guess(model, DISTURBANCES["larger"](tiles))] * len(tiles)
    found = list(zip(guess(model, framed), middles, strict=True))
    assert any(one.agreed for one, _ in found)
    others = [one for one, middle in found if one.label != middle]
    assert len(others) > 5
    assert not any(one.agreed for one in others)


def test_guessed_tiles_train_though_no_list_names_them(
    array: Path, model_file: Path, tiles_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "l2a-guessed"
    answered = CliRunner().invoke(main, [str(array), "--model", str(model_file), "--out", str(out), "--least", "0"])
    assert answered.exit_code == 0, answered.output
    kept, rest = (len(find_source(folder).files()) for folder in (out, tmp_path / "l2a-guessed-unlabelled"))
    assert f"{kept} of 15 tiles are labelled" in answered.output
    assert (kept, rest) == (11, 4), "at 0 every guess trains, but for every fourth tile"
    names = [file.name for file in find_source(tiles_folder).files()]
    for split, part in (("train", names[:50]), ("val", names[50:80]), ("test", names[80:])):
        (tmp_path / f"{split}.txt").write_text("\n".join(part))
    sources = [find_source(folder) for folder in (tiles_folder, out, tmp_path / "l2a-guessed-unlabelled")]
    summary = write_pack(sources, tmp_path / "pack", SplitPlan(Method.LISTS, lists=tmp_path))
    assert sum(summary.counts["train"].values()) == 50 + kept
    assert sum(summary.counts["unlabelled"].values()) == rest
    assert summary.tiles == 135


def test_an_array_of_another_form_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "wrong.npz", tiles=np.zeros((2, 3, 64, 64), np.float32), bands=np.array(["B02", "B03", "B04"]))
    with pytest.raises(NoTilesError, match="they are uint16"):
        read_unlabelled(tmp_path / "wrong.npz")
    (tmp_path / "none.npz").write_bytes(b"no arrays")
    with pytest.raises(NoTilesError, match="no arrays"):
        read_unlabelled(tmp_path / "none.npz")
