"""Labels guessed by a model and by colours: kept where most opinions agree, and never used to judge."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tilewise.datasets.acquire.synthetic import synthesise_tile
from tilewise.datasets.core.bands import BAND_SETS, L2A_BANDS, positions
from tilewise.datasets.core.errors import NoTilesError
from tilewise.datasets.core.tile import DN, only_bands
from tilewise.datasets.packs.pack import Pack
from tilewise.datasets.packs.packing import write_pack
from tilewise.datasets.packs.splits import SplitMethod, SplitPlan
from tilewise.datasets.quality.reviewed import write_tile
from tilewise.datasets.readers.sources import find_source
from tilewise.models.model_file import ModelFile, open_model
from tilewise.training.fit.pseudo_labels import (
    PARCELS,
    Colours,
    Guess,
    guess,
    main,
    read_unlabelled,
    vote,
    write_sources,
)


@pytest.fixture(scope="module")
def array(pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic tiles without labels and without band 10, as Level-2A is."""
    path = tmp_path_factory.mktemp("unlabelled") / "tiles.npz"
    tiles = pack.fetch(np.arange(0, 120, 8))[:, positions(L2A_BANDS)]
    np.savez(path, tiles=tiles, bands=np.array(L2A_BANDS))
    return path


@pytest.fixture(scope="module")
def colours(pack: Pack) -> Colours:
    return Colours(pack)


def test_only_guesses_that_enough_opinions_agree_on_train_and_every_fourth_tile_stays_unlabelled(
    array: Path, model_file: Path, tmp_path: Path
) -> None:
    unlabelled = read_unlabelled(array)
    guesses = [
        Guess("River", 4),  # held back, as every fourth is
        Guess("Forest", 3),
        Guess("River", 2),
        Guess("River", 1),
    ]
    unlabelled = type(unlabelled)(unlabelled.tiles[:4], unlabelled.bands)
    assert write_sources(unlabelled, guesses, tmp_path / "guessed", 3, open_model(model_file)) == (1, 3)
    source = find_source(tmp_path / "guessed")
    assert [file.label for file in source.files()] == ["Forest"]
    tile = source.read(source.files()[0].path)
    assert np.array_equal(tile.pixels, unlabelled.tiles[1])
    assert tile.bands == L2A_BANDS
    assert find_source(tmp_path / "guessed-unlabelled").split == "unlabelled"


def test_new_guesses_take_the_place_of_earlier_ones_and_of_nothing_else(
    array: Path, model_file: Path, pack_folder: Path, tmp_path: Path
) -> None:
    unlabelled, out = read_unlabelled(array), tmp_path / "guessed"
    model = open_model(model_file)
    for label in ("Forest", "River"):
        write_sources(unlabelled, [Guess(label, 4)] * 3, out, 3, model)
    assert [(file.label, file.name) for file in find_source(out).files()] == [
        ("River", "guessed-River_1"),
        ("River", "guessed-River_2"),
    ]
    precious = tmp_path / "mine" / "Forest" / "a.tif"
    precious.parent.mkdir(parents=True)
    precious.write_bytes(b"of another")
    settings = ["--model", str(model_file), "--labelled", str(pack_folder), "--out", str(tmp_path / "mine")]
    told = CliRunner().invoke(main, [str(array), *settings])
    assert told.exit_code == 1
    assert "mine: exists and holds no guessed labels; name another folder with --out" in told.output
    assert precious.read_bytes() == b"of another"


def test_a_guess_is_the_same_however_the_tile_is_turned(
    array: Path, model_file: Path, colours: Colours
) -> None:
    model, tiles = open_model(model_file), read_unlabelled(array).tiles[:4]
    turned = np.ascontiguousarray(np.rot90(tiles, 1, (2, 3)))
    assert guess(model, colours, tiles) == guess(model, colours, turned)


@pytest.mark.parametrize(
    ("answers", "label", "agreeing"),
    [
        (("Forest", "Forest", "Forest", "Forest"), "Forest", 4),
        (("Pasture", "Forest", "Forest", "River"), "Forest", 2),
        (("Forest", "Pasture", "River", "SeaLake"), "Forest", 1),
        (("Forest", "Forest", "River", "River"), "Forest", 2),
        (("River", "River", "Forest", "Forest"), "River", 4),  # a river is not seen in its parts
        (("River", "Forest", "Forest", "Forest"), "Forest", 3),
        (("River", "Forest", "River", "Forest"), "River", 2),
    ],
)
def test_the_label_is_what_max_say_and_of_equals_what_the_tile_as_it_is_does(
    answers: tuple[str, ...], label: str, agreeing: int
) -> None:
    assert vote(answers, PARCELS) == Guess(label, agreeing)


def test_what_three_opinions_give_the_tile_as_it_is_or_its_colours_give(
    array: Path, model_file: Path, colours: Colours
) -> None:
    model, tiles = open_model(model_file), read_unlabelled(array).tiles
    as_it_is = [model.metadata.classes[k] for k in eight_ways(model, tiles).argmax(1)]
    everything = model.metadata.classes
    found = list(zip(guess(model, colours, tiles, everything), as_it_is, colours.guess(tiles), strict=True))
    agreed = [one.label in (own, other) for one, own, other in found if one.agreeing >= 3]
    assert agreed, "some tiles are plain"
    assert all(agreed)
    assert all(one.label == own for one, own, _ in found if one.agreeing == 1)


def eight_ways(model: ModelFile, tiles: DN) -> np.ndarray:
    """Return the mean probabilities over turns, mirrors and both sets of bands, asked tile by tile."""
    ways = [np.rot90(each, k, (2, 3)) for each in (tiles, tiles[:, :, ::-1]) for k in range(4)]
    views = [
        only_bands(np.ascontiguousarray(way), BAND_SETS[view]) for way in ways for view in ("l2a", "10m")
    ]
    return np.mean([model.session.run(["probabilities"], {"tiles": view})[0] for view in views], axis=0)


def test_guessed_tiles_train_though_no_list_names_them(
    array: Path, model_file: Path, pack_folder: Path, tiles_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "l2a-guessed"
    settings = [
        "--model",
        str(model_file),
        "--labelled",
        str(pack_folder),
        "--out",
        str(out),
        "--agreeing",
        "1",
    ]
    answered = CliRunner().invoke(main, [str(array), *settings])
    assert answered.exit_code == 0, answered.output
    kept, rest = (len(find_source(folder).files()) for folder in (out, tmp_path / "l2a-guessed-unlabelled"))
    assert f"{kept} of 15 tiles are labelled" in answered.output
    assert (kept, rest) == (11, 4), "with one opinion every guess trains, but for every fourth tile"
    names = [file.name for file in find_source(tiles_folder).files()]
    for split, part in (("train", names[:50]), ("val", names[50:80]), ("test", names[80:])):
        (tmp_path / f"{split}.txt").write_text("\n".join(part))
    sources = [find_source(folder) for folder in (tiles_folder, out, tmp_path / "l2a-guessed-unlabelled")]
    summary = write_pack(sources, tmp_path / "pack", SplitPlan(SplitMethod.LISTS, lists=tmp_path))
    assert sum(summary.counts["train"].values()) == 50 + kept
    assert sum(summary.counts["unlabelled"].values()) == rest
    assert summary.tiles == 135


def test_classes_that_are_none_are_refused_before_any_tile_is_looked_at(
    array: Path, model_file: Path, pack_folder: Path, tmp_path: Path
) -> None:
    overrides = [str(array), "--model", str(model_file), "--out", str(tmp_path / "guessed"), "--labelled"]
    told = CliRunner().invoke(main, [*overrides, str(pack_folder), "--parcels", "Forest,Wheat"])
    assert told.exit_code == 1
    assert "--parcels: no class is called Wheat; they are AnnualCrop," in told.output
    for label in ("Forest", "River"):
        for number in range(1, 5):
            tile = synthesise_tile(label, number, 0)
            write_tile(tile, tmp_path / "two" / label / f"{tile.name}.tif")
    write_pack([find_source(tmp_path / "two")], tmp_path / "pack", SplitPlan(SplitMethod.RANDOM))
    told = CliRunner().invoke(main, [*overrides, str(tmp_path / "pack")])
    assert told.exit_code == 1
    assert "its classes are not those of" in told.output
    assert not (tmp_path / "guessed").exists()


def test_an_array_of_another_form_is_refused(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "wrong.npz",
        tiles=np.zeros((2, 3, 64, 64), np.float32),
        bands=np.array(["B02", "B03", "B04"]),
    )
    with pytest.raises(NoTilesError, match="they are uint16"):
        read_unlabelled(tmp_path / "wrong.npz")
    (tmp_path / "none.npz").write_bytes(b"no arrays")
    with pytest.raises(NoTilesError, match="no arrays"):
        read_unlabelled(tmp_path / "none.npz")
