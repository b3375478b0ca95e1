"""Doubtful labels: wrong ones are found, pictured, and only corrected by a person."""

import csv
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tilewise.datasets.cli import main
from tilewise.datasets.core.errors import PredictionsError
from tilewise.datasets.packs.pack import Pack
from tilewise.datasets.quality.contact_sheet import SheetTile, render_sheet
from tilewise.datasets.quality.suspects import find_suspects, read_predictions, write_predictions
from tilewise.datasets.readers.corrections import read_corrections

WRONG = ("Forest_3", "River_5", "SeaLake_9")


def answers(pack: Pack, path: Path, rows: list[int] | None = None, sure: float = 0.91) -> Path:
    """Answer with each tile's own label, but for tiles in WRONG with the class after theirs."""
    chosen = list(range(len(pack))) if rows is None else rows
    classes = pack.summary.classes
    names = pack.names(chosen)
    shown = [
        (pack.labels[row] + (name in WRONG)) % len(classes) for row, name in zip(chosen, names, strict=True)
    ]
    shares = np.full((len(chosen), len(classes)), (1 - sure) / (len(classes) - 1))
    shares[np.arange(len(chosen)), shown] = sure
    keys = list(zip(pack.sources[chosen].tolist(), names, strict=True))
    write_predictions(path, keys, [classes[pack.labels[row]] for row in chosen], shares, classes)
    return path


def test_labels_that_answers_speak_against_are_found_and_no_others(pack: Pack, tmp_path: Path) -> None:
    found = find_suspects(pack, read_predictions([answers(pack, tmp_path / "p.csv")]))
    assert sorted(suspect.name for suspect in found) == sorted(WRONG)
    forest = next(suspect for suspect in found if suspect.name == "Forest_3")
    assert (forest.given, forest.suggested) == ("Forest", "HerbaceousVegetation")
    assert forest.p_suggested == pytest.approx(0.91)
    assert forest.quality == pytest.approx((0.01 - 0.91 + 1) / 2)


def test_answers_of_several_runs_are_joined(pack: Pack, tmp_path: Path) -> None:
    half = len(pack) // 2
    halves = (list(range(half)), list(range(half, len(pack))))
    parts = [answers(pack, tmp_path / f"{i}.csv", rows) for i, rows in enumerate(halves)]
    assert len(find_suspects(pack, read_predictions(parts))) == len(WRONG)
    doubled = read_predictions([parts[0], answers(pack, tmp_path / "again.csv", halves[0], sure=0.73)])
    assert doubled.probabilities.max(axis=1) == pytest.approx(np.full(half, 0.82))


def test_the_page_shows_each_suspect_with_the_command_that_decides(pack_folder: Path, tmp_path: Path) -> None:
    predictions = answers(Pack(pack_folder), tmp_path / "p.csv")
    done = CliRunner().invoke(
        main,
        [
            "suspects",
            str(pack_folder),
            "--predictions",
            str(predictions),
            "--out",
            str(tmp_path),
            "--limit",
            "2",
        ],
    )
    assert done.exit_code == 0, done.output
    assert "3 doubtful labels; look at" in done.stdout
    assert "are in the train split" in done.stdout
    rows = list(csv.DictReader((tmp_path / "suspects.csv").open()))
    assert {row["name"] for row in rows} == set(WRONG)
    page = (tmp_path / "suspects.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert f"tilewise data correct {rows[0]['name']} --label {rows[0]['suggested']}" in page
    assert "<script" not in page


def test_what_a_person_decides_is_written_down(in_folder: Path) -> None:
    words = ["correct", "Forest_3", "Forest_4", "--label", "River", "--reviewer", "Ada", "--why", "a river"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert "Forest_3, Forest_4: River, in configs/corrections.csv; commit it and pack again" in done.stdout
    assert [item.label for item in read_corrections(in_folder / "configs/corrections.csv")] == [
        "River",
        "River",
    ]
    unsigned = CliRunner().invoke(main, [*words[:6], " ", *words[7:]])
    assert unsigned.exit_code == 1
    assert "no reviewer; every cell is filled in" in unsigned.stderr


def test_hostile_names_stay_text_in_page_and_shell() -> None:
    name = "<img src=x onerror=alert(1)>'; rm -rf ~"
    page = render_sheet("title", "advice", [SheetTile(name, b"", ("line",), ("python", "correct", name))])
    seen: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.append(tag)

        def handle_data(self, data: str) -> None:
            if data.startswith("python correct"):
                assert data.startswith("""python correct '<img src=x onerror=alert(1)>'"'"'; rm -rf ~'""")

    Reader().feed(page)
    assert seen.count("img") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,true_class,answered,confidence\na,A,A,0.9\n", "no table of probabilities"),
        ("name,source,p_A,p_B\na,s,x,0.1\n", "a cell that is no number"),
        ("name,source,p_A,p_B\na,s,-0.1,1.1\n", "probabilities below 0"),
        ("name,source,p_A,p_B\na,s,nan,nan\n", "probabilities below 0"),
        ("name,source,p_A,p_B\n", "no answers; `tilewise predict` writes some"),
    ],
)
def test_a_table_that_is_none_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(PredictionsError, match=message):
        read_predictions([tmp_path / "p.csv"])


def test_answers_that_do_not_fit_the_pack_are_refused(pack: Pack, tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("name,source,p_A,p_B\na,s,0.1,0.9\n")
    with pytest.raises(PredictionsError, match="none of the answered tiles is in it"):
        find_suspects(pack, read_predictions([tmp_path / "other.csv"]))
    (tmp_path / "few.csv").write_text("name,source,p_A,p_B\nForest_1,geotiff,0.1,0.9\n")
    with pytest.raises(PredictionsError, match=r"the answers have no AnnualCrop.*ask its own model"):
        find_suspects(pack, read_predictions([tmp_path / "few.csv"]))
    with pytest.raises(PredictionsError, match="its classes are"):
        read_predictions([tmp_path / "few.csv", answers(pack, tmp_path / "p.csv")])
    with pytest.raises(PredictionsError, match="there is no such file"):
        read_predictions([tmp_path / "nothing.csv"])
