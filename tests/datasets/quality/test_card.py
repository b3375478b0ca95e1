"""The card of a pack: everything that whoever gets the pack must know, from the pack alone."""

import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from rasters import write_folder

from tilewise.datasets.cli import main
from tilewise.datasets.packs.pack import CARD, INDEX, PLANES, Pack
from tilewise.datasets.packs.packing import write_pack
from tilewise.datasets.packs.splits import SplitPlan
from tilewise.datasets.readers.corrections import Correction
from tilewise.datasets.readers.sources import find_source


def card_of(pack: Path, out: Path) -> tuple[int, str, str]:
    """Return the exit status, what was printed, and the card."""
    result = CliRunner().invoke(main, ["card", str(pack), "--out", str(out)])
    return result.exit_code, result.output, out.read_text() if out.exists() else ""


@pytest.fixture(scope="module")
def synthetic(pack_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The card of the synthetic pack."""
    out = tmp_path_factory.mktemp("card") / "new" / "card.md"
    status, output, text = card_of(pack_folder, out)
    assert status == 0
    assert f"the card is {out}; validation passed" in output
    return text


def test_a_card_tells_tiles_hash_licence_and_verdict(synthetic: str, pack: Pack) -> None:
    assert f"`{pack.summary.data_hash}`" in synthetic
    assert "| tiles | 120 of 64 × 64 pixels, **synthetic**" in synthetic
    assert (
        "| tilewise-synthetic | geotiff | CC0-1.0 | computed by tilewise.datasets.acquire.synthetic"
        in synthetic
    )
    assert "| validation | passed |" in synthetic


def test_a_card_counts_each_class_in_each_split(synthetic: str, pack: Pack) -> None:
    counts = pack.summary.counts
    forest = [counts[split].get("Forest", 0) for split in ("train", "val", "test")]
    assert f"| Forest | {forest[0]} | {forest[1]} | {forest[2]} | 12 |" in synthetic
    assert "| all | 70 | 30 | 20 | 120 |" in synthetic
    assert "The tiles were divided at random." in synthetic


def test_a_card_tells_the_values_of_each_band_and_where_tiles_lie(synthetic: str, pack: Pack) -> None:
    band = pack.statistics()[7]
    assert f"| {band['band']} | 70 | 0.00% | {band['mean']:,.0f} | {band['std']:,.0f} |" in synthetic
    places = re.findall(r"\| EPSG:326(\d\d) \| 40 \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|", synthetic)
    assert [zone for zone, *_ in places] == ["31", "32", "33"]
    for zone, *place in places:
        west, south, east, north = map(float, place)
        assert 6 * int(zone) - 186 < west < east < 6 * int(zone) - 180
        assert 40 < south < north < 50


def test_a_card_names_the_tiles_that_people_relabelled(tmp_path: Path) -> None:
    root = write_folder(
        tmp_path / "mine", {f"{label}/{label}_{n}": ord(label) + n for label in "AK" for n in range(5)}
    )
    corrections = [Correction("A_1", "K", "Ada", "looks like K"), Correction("A_2", "_", "Ada", "cloud")]
    write_pack([find_source(root)], tmp_path / "pack", SplitPlan(), corrections=corrections)
    _, _, text = card_of(tmp_path / "pack", tmp_path / "card.md")
    assert "1 files have another class, 1 are out" in text
    assert "| A_1 | A | K |" in text
    assert "| mine | geotiff | not declared by the folder that was packed |" in text


def test_names_of_folders_are_no_markup(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "mine", {f"a|<b>/{n}": n for n in range(5)})
    write_pack([find_source(root)], tmp_path / "pack", SplitPlan())
    _, _, text = card_of(tmp_path / "pack", tmp_path / "card.md")
    assert "| a\\|&lt;b> | 3 | 1 | 1 | 5 |" in text


def test_a_pack_from_before_licences_were_kept_has_a_card_that_says_so(
    pack_folder: Path, tmp_path: Path
) -> None:
    old = shutil.copytree(pack_folder, tmp_path / "old")
    fields = json.loads((old / CARD).read_text())
    del fields["origins"]
    (old / CARD).write_text(json.dumps(fields))
    status, _, text = card_of(old, tmp_path / "card.md")
    assert status == 0
    assert "made before folders' licences were kept; pack again" in text


def test_the_card_of_a_damaged_pack_says_that_validation_failed(pack_folder: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(pack_folder, tmp_path / "damaged")
    with (damaged / PLANES).open("r+b") as planes:
        planes.write(b"\xff\x7f")
    status, output, text = card_of(damaged, tmp_path / "card.md")
    assert (status, "validation failed" in output) == (0, True)
    assert "| error | pack | 1 | the pixels are not those that were packed |" in text


def test_without_a_whole_pack_there_is_no_card(pack_folder: Path, tmp_path: Path) -> None:
    status, output, text = card_of(tmp_path, tmp_path / "card.md")
    assert (status, text) == (1, "")
    assert "no pack is here; `tilewise data pack` makes one" in output
    lacking = shutil.copytree(pack_folder, tmp_path / "lacking")
    pq.write_table(pq.read_table(lacking / INDEX).drop_columns(["crs"]), lacking / INDEX)
    status, output, text = card_of(lacking, tmp_path / "card.md")
    assert (status, text) == (1, "")
    assert "index.parquet: has no crs; pack again" in output
