import json
from pathlib import Path

import numpy as np
import pytest

from tilewise.datasets.core.console import silent
from tilewise.datasets.core.errors import PackError, TrainingError
from tilewise.datasets.packs.pack import Pack
from tilewise.datasets.packs.packing import without_classes
from tilewise.training.evaluate.assess_settings import DEFAULT, read_assess_settings
from tilewise.training.evaluate.leave_out import as_table, make_folds, measure


def test_a_pack_without_classes_is_a_whole_pack_of_the_same_pixels(pack: Pack, tmp_path: Path) -> None:
    summary = without_classes(pack, ("Forest", "River"), tmp_path / "less", ("train", "val"))
    less = Pack(tmp_path / "less")
    assert less.summary == summary
    assert len(less.summary.classes) == 8
    assert set(less.splits) == {"train", "val"}
    assert less.summary.data_hash != pack.summary.data_hash
    names = pack.names(np.arange(len(pack)))
    for row in range(0, len(less), 7):
        there = names.index(less.names([row])[0])
        np.testing.assert_array_equal(less.fetch([row]), pack.fetch([there]))
        assert less.summary.classes[less.labels[row]] == pack.summary.classes[pack.labels[there]]
    assert less.statistics() != pack.statistics()


@pytest.mark.parametrize(
    ("classes", "says"), [(("Forrest",), "no class Forrest; it has AnnualCrop"), (None, "leave out fewer")]
)
def test_what_cannot_be_left_out_is_said(
    pack: Pack, tmp_path: Path, classes: tuple[str, ...] | None, says: str
) -> None:
    with pytest.raises(PackError, match=says):
        without_classes(pack, classes or pack.summary.classes, tmp_path / "less", ("train",))


def test_folds_leave_every_class_out_once_unless_they_are_named(tmp_path: Path) -> None:
    classes = tuple("ABCDE")
    folds = make_folds(classes, (), 2, tmp_path)
    assert sorted(name for fold in folds for name in fold.classes) == list(classes)
    assert [fold.classes for fold in make_folds(classes, ("A,C", "E"), 5, tmp_path)] == [("A", "C"), ("E",)]
    with pytest.raises(TrainingError, match="no class Z"):
        make_folds(classes, ("Z",), 2, tmp_path)
    with pytest.raises(TrainingError, match="5 or fewer"):
        make_folds(classes, (), 6, tmp_path)


def test_means_are_by_source() -> None:
    table = as_table({"ms: A": {"s": 0.9}, "ms: B": {"s": 0.7}, "rgb: A": {"s": 0.6}}, 0.95)
    assert [row[0] for row in table.rows[-2:]] == ["mean, ms", "mean, rgb"]
    assert [row[1] for row in table.rows[-2:]] == pytest.approx([0.8, 0.6])


def test_what_is_done_already_is_taken_up_and_another_recipe_is_refused(pack: Pack, tmp_path: Path) -> None:
    (fold,) = make_folds(pack.summary.classes, ("Forest",), 1, tmp_path)
    fold.folder.mkdir()
    recipe = {"options": ["--trainer.max_epochs", "3"], "data": pack.summary.data_hash}
    fold.recipe.write_text(json.dumps(recipe))
    fold.result.write_text('{"synthetic: Forest": {"file": 0.9}}')
    settings = read_assess_settings(DEFAULT)
    assert measure(fold, pack, ("--trainer.max_epochs", "3"), settings, silent) == {
        "synthetic: Forest": {"file": 0.9}
    }
    with pytest.raises(
        TrainingError, match=r"without-Forest was begun with other options or data .*name another --out"
    ):
        measure(fold, pack, ("--trainer.max_epochs", "4"), settings, silent)
