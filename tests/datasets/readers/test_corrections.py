"""Reviewed labels: what the file may say, and what packing and validation make of it."""

from pathlib import Path

import pytest
from rasters import write_folder

from tilewise.datasets.core.errors import CorrectionsError
from tilewise.datasets.packs.pack import Pack
from tilewise.datasets.packs.packing import write_pack
from tilewise.datasets.packs.splits import SplitPlan
from tilewise.datasets.quality.validate import validate
from tilewise.datasets.readers.corrections import Correction, count_corrections, read_corrections, record
from tilewise.datasets.readers.sources import Source, find_source

HEAD = "name,label,reviewer,why\n"
TILES = {f"{label}/{label}_{n}": 10 * place + n for place, label in enumerate("AB") for n in range(5)}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return find_source(write_folder(tmp_path_factory.mktemp("data") / "tiles", TILES))


def ada(name: str, label: str) -> Correction:
    return Correction(name, label, "Ada", "seen, and sure")


def test_a_pack_has_the_reviewed_classes_and_not_what_was_left_out(source: Source, tmp_path: Path) -> None:
    plan = SplitPlan()
    write_pack([source], tmp_path / "before", plan)
    summary = write_pack([source], tmp_path / "after", plan, corrections=[ada("A_1", "B"), ada("B_2", "_")])
    before, after = Pack(tmp_path / "before"), Pack(tmp_path / "after")
    assert (summary.tiles, summary.relabelled, summary.left_out) == (9, 1, 1)
    assert summary.data_hash != before.summary.data_hash
    rows = {row["name"]: row for row in after.index.to_pylist()}
    assert (rows["A_1"]["label"], rows["A_1"]["given"]) == ("B", "A")
    assert "B_2" not in rows


def test_a_reviewed_label_moves_no_tile_into_another_split(source: Source, tmp_path: Path) -> None:
    splits = []
    for corrections in ([], [ada("A_1", "B"), ada("A_2", "B")]):
        write_pack([source], tmp_path / "pack", SplitPlan(), corrections=corrections)
        pack = Pack(tmp_path / "pack")
        splits.append(dict(zip(pack.names(range(len(pack))), pack.splits.tolist(), strict=True)))
    assert splits[0] == splits[1]


def test_validation_sees_reviewed_classes_and_warns_of_names_that_no_tile_has(source: Source) -> None:
    report = validate([source], SplitPlan(), corrections=[ada("A_1", "B"), ada("C_7", "A")])
    assert report.classes == {"A": 4, "B": 6}
    assert not report.failed
    assert [(f.check, f.examples) for f in report.findings] == [("corrections", ["C_7"])]


def test_a_class_that_no_folder_has_is_refused(source: Source) -> None:
    with pytest.raises(
        CorrectionsError, match=r"A_1 is corrected to 'b', but no folder has that class; .* A, B"
    ):
        count_corrections([source], [ada("A_1", "b")])


def test_a_name_that_two_classes_share_cannot_be_corrected(tmp_path: Path) -> None:
    twins = find_source(write_folder(tmp_path / "data", {"A/1": 1, "B/1": 2}))
    with pytest.raises(
        CorrectionsError, match="a name under two classes cannot be corrected; rename the files"
    ):
        count_corrections([twins], [ada("1", "B")])
    assert [f.check for f in validate([twins], SplitPlan(fractions=(0.5, 0.5, 0))).findings][-1] == "names"


def test_decisions_are_kept_sorted_and_a_later_one_counts(tmp_path: Path) -> None:
    path = tmp_path / "configs" / "corrections.csv"
    record(path, [ada("b", "B"), ada("a", "A")])
    record(path, [Correction("b", "_", "Grace", "cloud, all of it")])
    assert path.read_text() == HEAD + 'a,A,Ada,"seen, and sure"\nb,_,Grace,"cloud, all of it"\n'
    assert [item.name for item in read_corrections(path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "its columns are None; they must be name,label,reviewer,why"),
        ("name,label\na,A\n", "they must be name,label,reviewer,why"),
        (HEAD + "a,A,Ada\n", "line 2: 4 cells are needed"),
        (HEAD + "a,A,Ada,a, b\n", "line 2: 4 cells are needed; put quotes around a text with commas"),
        (HEAD + "a,A,,why\n", "line 2: no reviewer; every cell is filled in"),
        (HEAD + "a,A,Ada,x\na,B,Ada,x\n", "line 3: a occurs twice; keep the right line"),
        (HEAD + "../a,A,Ada,x\n", "line 2: '../a', 'A': a name has no folder"),
    ],
)
def test_a_file_that_says_something_else_is_refused_with_its_line(
    text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "c.csv"
    path.write_text(text)
    with pytest.raises(CorrectionsError) as caught:
        read_corrections(path)
    assert message in str(caught.value)


def test_bytes_that_are_no_text_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorrectionsError, match="not UTF-8"):
        read_corrections(tmp_path / "c.csv")
    with pytest.raises(CorrectionsError, match="`tilewise data correct` creates one"):
        read_corrections(tmp_path / "none.csv")
    assert read_corrections(None) == ()
