"""Served tiles become labelled tiles: chosen by doubt, labelled by people, packed like others."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import opened_browser
from click.testing import CliRunner, Result
from rasters import write_folder
from tiny_onnx import calibrated, write_model

from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.uploads import Upload, classify_batch
from tilewise.bento.monitoring.prediction_log import LogOptions, PredictionLog
from tilewise.bento.request_context import RequestContext
from tilewise.datasets.acquire.synthetic import synthesise_tile
from tilewise.datasets.cli import main
from tilewise.datasets.core.bands import RGB_BANDS
from tilewise.datasets.core.errors import ReviewError
from tilewise.datasets.core.radiometry import ReadOptions
from tilewise.datasets.core.tile import Tile, place_bands
from tilewise.datasets.packs.pack import Pack
from tilewise.datasets.quality.review import choose, write_review
from tilewise.datasets.quality.served import by_doubt, read_log
from tilewise.datasets.readers.eurosat import CLASSES
from tilewise.datasets.readers.geotiff import read_tile

STRANGE = 9_000  # DN of tiles brighter than anything trained on
HOSTILE = "=cmd()<img src=x onerror=alert(1)>.tif"
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A linear model that knows the synthetic classes, more or less, and flags what is bright."""
    labels = np.repeat(np.arange(len(CLASSES)), 6)
    tiles = np.stack(
        [synthesise_tile(CLASSES[label], n + 1, seed=5).pixels for n, label in enumerate(labels)]
    )
    means = np.column_stack([tiles.mean(axis=(2, 3)), np.ones(len(tiles))])
    weights = 8 * np.linalg.lstsq(means, np.eye(len(CLASSES))[labels], rcond=None)[0]
    card = calibrated(CLASSES)
    assert card.outliers is not None
    card = card.model_copy(update={"outliers": card.outliers.model_copy(update={"threshold": 8_000.0})})
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    return Engine(write_model(path, card.model_dump_json(), weights=weights.astype(np.float32)), threads=1)


@pytest.fixture(scope="module")
def served() -> list[Tile]:
    """Six ordinary tiles, one of them sent twice, and two that are brighter than any other."""
    ordinary = [
        synthesise_tile(label, 90, 1) for label in ("Forest", "River", "SeaLake", "Highway", "Pasture")
    ]
    ordinary[0] = replace(ordinary[0], name=HOSTILE)
    bright = [
        replace(tile, name=f"bright{n}.tif", pixels=tile.pixels % 100 + np.uint16(STRANGE + 500 * n))
        for n, tile in enumerate(ordinary[1:3])
    ]
    return [*ordinary, ordinary[1], *bright]


@pytest.fixture(scope="module")
def keep(engine: Engine) -> Write:
    """Answer tiles and keep the answers, as a service does."""

    def write(folder: Path, tiles: list[Tile], options: LogOptions | None = None) -> Path:
        folder.mkdir(exist_ok=True)
        log = PredictionLog(folder, options or LogOptions(names=True, tiles=True))
        request_context = RequestContext("r-1")
        log.observe(
            classify_batch(
                engine,
                [Upload(tile.name, tile, engine=engine, request_context=request_context) for tile in tiles],
            )
        )
        log.close()
        return folder

    return write


@pytest.fixture(scope="module")
def log(keep: Write, served: list[Tile], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return keep(tmp_path_factory.mktemp("service") / "predictions", served)


def do(*words: object, fails: bool = False) -> Result:
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == int(fails), done.output
    return done


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def decide(path: Path, *rows: tuple[str, str], reviewer: str = "Ada") -> Path:
    """Write what a person decided: (name, label) each."""
    path.write_text(
        "name,label,reviewer,why\n" + "".join(f"{name},{label},{reviewer},\n" for name, label in rows)
    )
    return path


# What is shown.


def test_strange_and_undecided_tiles_come_first_in_turn(log: Path, in_folder: Path) -> None:
    output = do("review", log).output
    assert "8 answers, 7 different tiles, 0 of them labelled already" in output
    assert "2 flagged as unlike the training data, 5 by how uncertain the answer was" in output
    rows = rows_of(in_folder / "artifacts/review/review.csv")
    assert float(rows[0]["outlier_score"]) > STRANGE + 500 > float(rows[2]["outlier_score"]) > STRANGE
    found = {tile.name: tile for tile in read_log(log).tiles}
    margins = [found[row["name"]].margin for row in (rows[1], *rows[3:])]
    assert margins == sorted(margins)


def test_the_page_holds_pictures_and_choices_and_asks_nobody(log: Path, in_folder: Path) -> None:
    do("review", log, "--limit", "3")
    page = (in_folder / "artifacts/review/review.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert page.count('type="radio"') == 3 * (len(CLASSES) + 1)
    assert "default-src 'none'" in unescape(page)
    assert "http" not in page.split("</head>")[1].replace("http-equiv", "")
    assert "<img src=x" not in page


def test_a_tile_under_review_is_the_one_that_was_sent(log: Path, served: list[Tile], in_folder: Path) -> None:
    do("review", log)
    name = next(tile.name for tile in read_log(log).tiles if tile.file == HOSTILE)
    kept = read_tile(in_folder / f"artifacts/review/tiles/{name}.tif", ReadOptions())
    assert np.array_equal(kept.pixels, served[0].pixels)
    assert (kept.bands, kept.level, kept.georeference) == (
        served[0].bands,
        served[0].level,
        served[0].georeference,
    )
    row = next(row for row in rows_of(in_folder / "artifacts/review/review.csv") if row["name"] == name)
    assert row["file"] == f"'{HOSTILE}"  # a spreadsheet takes it for text


def test_a_tile_of_unknown_level_is_shown_only_once_somebody_says_it(keep: Write, in_folder: Path) -> None:
    bands = tuple(sorted(RGB_BANDS))
    rgb = Tile("rgb", place_bands(np.full((3, 64, 64), 900, np.uint16), bands), bands, None)
    log = keep(in_folder / "log", [rgb])
    assert "state theirs with --level" in do("review", log, fails=True).stderr
    assert "1 tiles to label" in do("review", log, "--level", "L2A").output
    (path,) = (in_folder / "artifacts/review/tiles").iterdir()
    assert read_tile(path, ReadOptions()).level == "L2A"


def test_scores_of_two_models_are_compared_by_their_ranks(log: Path) -> None:
    tiles = list(read_log(log).tiles)
    flagged = [tile for tile in tiles if tile.outlier]
    other = [replace(tile, sha256=f"{n:064}", model_sha256="b", outlier_score=n / 10, outlier=n == 9)
             for n, tile in enumerate([tiles[0]] * 10)]  # fmt: skip
    strangest = [tile for tile in by_doubt([*tiles, *other]) if tile.outlier]
    assert len(strangest) == 3
    assert strangest[0].model_sha256 == "b"  # above 9 of 10 of its own, the others above 6 and 5 of 7
    assert strangest[1].sha256 == max(flagged, key=lambda tile: tile.outlier_score or 0).sha256


# What is decided.


def test_labelled_tiles_pack_like_any_others_and_train(log: Path, in_folder: Path) -> None:
    tiles = {f"{label}/{label}_{n}": len(label) * n for label in ("Forest", "River") for n in (1, 2, 3)}
    write_folder(in_folder / "tiles", tiles)
    do("review", log)
    first, second, third, *_ = (row["name"] for row in rows_of(in_folder / "artifacts/review/review.csv"))
    decisions = decide(in_folder / "decisions.csv", (first, "River"), (second, "Forest"), (third, "_"))
    output = do("label", decisions).output
    assert "3 decisions, 3 of them new or changed, 1 that a tile cannot be used" in output
    assert sorted(path.parent.name for path in (in_folder / "data/reviewed").glob("*/*.tif")) == [
        "Forest",
        "River",
    ]
    do("pack", "tiles", "data/reviewed", "--fractions", "0.3,0.4,0.3", "--out", "pack")
    pack = Pack(in_folder / "pack")
    rows = {row["name"]: row for row in pack.index.to_pylist()}
    assert (rows[first]["label"], rows[first]["split"]) == ("River", "train")
    assert (rows[second]["label"], rows[second]["split"]) == ("Forest", "train")
    assert third not in rows
    assert rows[second]["crs"].startswith("EPSG:")
    do("validate", "data/reviewed", "tiles", "--fractions", "0.3,0.4,0.3")


def test_who_decided_when_and_which_model_had_answered_what_is_kept(
    log: Path, engine: Engine, in_folder: Path
) -> None:
    do("review", log)
    offered = rows_of(in_folder / "artifacts/review/review.csv")[0]
    do("label", decide(in_folder / "decisions.csv", (offered["name"], "River")))
    (row,) = rows_of(in_folder / "data/reviewed/reviewed.csv")
    assert (row["name"], row["label"], row["reviewer"]) == (offered["name"], "River", "Ada")
    assert (row["model"], row["version"], row["model_sha256"]) == ("tiny", "0", engine.sha256)
    assert (row["answered"], row["request_id"]) == (offered["answered"], "r-1")
    assert row["reviewed"] >= row["served"]
    assert json.loads((in_folder / "data/reviewed/dataset.json").read_text())["extra"] == {"split": "train"}
    assert "Ada" in do("reviewed").output


def test_a_later_decision_takes_the_place_of_an_earlier_one_and_the_same_one_changes_nothing(
    log: Path, in_folder: Path
) -> None:
    do("review", log)
    name = rows_of(in_folder / "artifacts/review/review.csv")[0]["name"]
    do("label", decide(in_folder / "1.csv", (name, "River")))
    before = (in_folder / "data/reviewed/reviewed.csv").read_bytes()
    assert "0 of them new or changed" in do("label", in_folder / "1.csv").output
    assert (in_folder / "data/reviewed/reviewed.csv").read_bytes() == before
    do("label", decide(in_folder / "2.csv", (name, "Forest"), reviewer="Grace"))
    assert [path.parent.name for path in (in_folder / "data/reviewed").glob("*/*.tif")] == ["Forest"]
    do("label", decide(in_folder / "3.csv", (name, "_")))
    assert not list((in_folder / "data/reviewed").glob("*/*.tif"))


def test_what_is_labelled_or_packed_is_not_asked_again(log: Path, in_folder: Path) -> None:
    do("review", log)
    names = [row["name"] for row in rows_of(in_folder / "artifacts/review/review.csv")]
    do("label", decide(in_folder / "d.csv", (names[0], "River"), (names[1], "_")))
    do("pack", "data/reviewed", "--out", "elsewhere")
    assert "7 different tiles, 2 of them labelled already" in do("review", log).output
    left = [row["name"] for row in rows_of(in_folder / "artifacts/review/review.csv")]
    assert set(left) == set(names[2:])
    assert (
        "1 of them labelled already" in do("review", log, "--data", "elsewhere", "--reviewed", "none").output
    )


def test_a_filled_in_table_is_taken_up_and_not_written_over(log: Path, in_folder: Path) -> None:
    do("review", log)
    table = in_folder / "artifacts/review/review.csv"
    rows = rows_of(table)
    rows[0]["label"] = "River"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert (
        "1 decisions wait in it; apply them with `tilewise data label" in do("review", log, fails=True).stderr
    )
    assert "has no reviewer; name one with --reviewer NAME" in do("label", table, fails=True).stderr
    assert "1 decisions, 1 of them new" in do("label", table, "--reviewer", "Ada").output
    do("review", log)


def test_a_folder_without_a_label_yet_is_no_error(in_folder: Path) -> None:
    write_folder(in_folder / "tiles", {"A/1": 1, "A/2": 2, "B/3": 3, "B/4": 4})
    do("reviewed", "data/reviewed")
    do("pack", "tiles", "data/reviewed", "--fractions", "0.5,0.5,0")
    assert Pack(in_folder / "data/packed").summary.tiles == 4


# What is refused.


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{name},Rivr,Ada,", "no model knows a class 'Rivr'; the classes are AnnualCrop"),
        (
            "served_0,River,Ada,",
            "served_0 is not under review in artifacts/review; name its review with --review",
        ),
        ("{name},../River,Ada,", "names and classes have no folders"),
        ("{name},River,,", "has no reviewer"),
        ("{name},River,Ada,\n{name},Forest,Ada,", "is decided on twice; keep the right line"),
        ("{name},,Ada,", "no row has a label"),
    ],
)
def test_a_decision_that_fits_nothing_is_refused_before_anything_is_written(
    row: str, message: str, log: Path, in_folder: Path
) -> None:
    do("review", log, "--limit", "1")
    name = rows_of(in_folder / "artifacts/review/review.csv")[0]["name"]
    (in_folder / "d.csv").write_text("name,label,reviewer,why\n" + row.format(name=name) + "\n")
    assert message in do("label", in_folder / "d.csv", fails=True).stderr
    assert not (in_folder / "data/reviewed").exists()


def test_a_new_class_is_taken_once_it_is_meant(log: Path, in_folder: Path) -> None:
    do("review", log, "--limit", "1")
    name = rows_of(in_folder / "artifacts/review/review.csv")[0]["name"]
    do("label", decide(in_folder / "d.csv", (name, "Snow")), "--new-class", "Snow")
    assert (in_folder / f"data/reviewed/Snow/{name}.tif").is_file()


def test_a_log_that_cannot_be_reviewed_says_why(
    log: Path, keep: Write, served: list[Tile], in_folder: Path
) -> None:
    with pytest.raises(ReviewError, match="no prediction log; TILEWISE_PREDICTIONS="):
        read_log(in_folder)
    bare = keep(in_folder / "bare", served[:2], LogOptions())
    assert "none with its tile" in do("review", bare, fails=True).stderr
    (bare / "predictions-0.parquet").write_bytes(b"PAR1")
    assert "not a valid Parquet file" in do("review", bare, fails=True).stderr
    pq.write_table(pa.table({"a": [1]}), bare / "predictions-0.parquet")
    assert "not a prediction log of version 1" in do("review", bare, fails=True).stderr
    (in_folder / "mine").mkdir()
    (in_folder / "mine/file").touch()
    assert "exists and is not a review" in do("review", log, "--out", "mine", fails=True).stderr


def test_a_row_whose_bytes_are_no_tile_is_left_out_and_told(log: Path, in_folder: Path) -> None:
    table = pa.concat_tables([pq.read_table(path) for path in log.glob("*.parquet")])
    short = [tile[:-2] if place == 0 else tile for place, tile in enumerate(table["tile"].to_pylist())]
    column = table.schema.get_field_index("tile")
    (in_folder / "log").mkdir()
    pq.write_table(
        table.set_column(column, "tile", pa.array(short, pa.binary())),
        in_folder / "log/predictions-1.parquet",
    )
    assert "1 hold bytes that are not a tile, and were left out" in do("review", "log").output


def test_tiles_that_the_service_deletes_meanwhile_are_not_laid_out(
    keep: Write, served: list[Tile], in_folder: Path
) -> None:
    log = keep(in_folder / "log", served[:2])
    (oldest,) = log.glob("*.parquet")
    keep(log, served[2:4])
    found = read_log(log)
    chosen = choose(found, (), None, 9)
    oldest.unlink()
    laid_out = write_review(chosen, log, in_folder / "review", in_folder / "reviewed")
    assert {tile.file for tile in laid_out} == {tile.name for tile in served[2:4]}
    assert [row["name"] for row in rows_of(in_folder / "review/review.csv")] == [
        tile.name for tile in laid_out
    ]


# The page, in a browser.


def test_what_is_chosen_on_the_page_is_saved_for_the_next_pack(log: Path, in_folder: Path) -> None:
    do("review", log, "--limit", "2")
    first, second = (row["name"] for row in rows_of(in_folder / "artifacts/review/review.csv"))
    with opened_browser() as browser:
        page = browser.new_page()
        page.goto((in_folder / "artifacts/review/review.html").as_uri())
        page.locator(f'[data-tile="{first}"] >> text=River').click()
        page.reload()  # what was chosen is still there
        page.locator(f'[data-tile="{second}"] >> text="none of these"').click()
        assert page.locator("#count").inner_text() == "2 of 2 decided"
        page.locator("#reviewer").fill('Ada "A." Lovelace')
        with page.expect_download() as saving:
            page.locator("#save").click()
        saving.value.save_as(in_folder / "decisions.csv")
    do("label", in_folder / "decisions.csv")
    rows = {row["name"]: row for row in rows_of(in_folder / "data/reviewed/reviewed.csv")}
    assert (rows[first]["label"], rows[first]["reviewer"]) == ("River", 'Ada "A." Lovelace')
    assert rows[second]["label"] == "_"
