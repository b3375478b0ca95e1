"""An array file is read as a pack; one that is not valid is refused in one line."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilewise.datasets.core.errors import PackError
from tilewise.datasets.packs.pack import ArrayPack, Pack, open_pack


def written(path: Path, pack: Pack, **other: Any) -> Path:
    arrays = {
        "tiles": pack.fetch(np.arange(len(pack))),
        "labels": pack.labels,
        "splits": pack.splits,
        "classes": np.array(pack.summary.classes),
        "names": np.array(pack.names(np.arange(len(pack)))),
    }
    np.savez(path, **{name: value for name, value in {**arrays, **other}.items() if value is not None})
    return path


def test_an_array_file_answers_as_the_pack_that_it_was_made_of(pack: Pack, tmp_path: Path) -> None:
    found = open_pack(written(tmp_path / "tiles.npz", pack))
    rows = pack.rows("val")
    assert found.summary.classes == pack.summary.classes
    assert found.summary.counts == pack.summary.counts
    assert np.array_equal(found.rows("val"), rows)
    assert np.array_equal(found.fetch(rows), pack.fetch(rows))
    assert found.names(rows) == pack.names(rows)
    assert found.bands(3) == pack.bands(3)
    for mine, its in zip(found.statistics(), pack.statistics(), strict=True):
        assert mine["mean"] == pytest.approx(its["mean"])


def test_classes_and_names_need_not_be_there(pack: Pack, tmp_path: Path) -> None:
    found = open_pack(written(tmp_path / "tiles.npz", pack, classes=None, names=None))
    assert found.summary.classes[3] == "class 3"
    assert found.names([7]) == ["7"]


def test_it_is_sent_to_other_processes_by_name(pack: Pack, tmp_path: Path) -> None:
    sent = pickle.dumps(open_pack(written(tmp_path / "tiles.npz", pack)))
    assert len(sent) < 1000
    assert isinstance(pickle.loads(sent), ArrayPack)  # noqa: S301 - its own


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"splits": None}, "lacks splits"),
        ({"tiles": np.zeros((120, 12, 64, 64), np.uint16)}, "tiles must be uint16"),
        ({"tiles": np.zeros((120, 13, 64, 64), np.float32)}, "tiles must be uint16"),
        ({"labels": np.zeros(3, np.int64)}, "must be equally many"),
        ({"classes": np.array(["a", "b"])}, "labels go up to 9, but it names 2 classes"),
        ({"splits": np.array([{}] * 120, object)}, "cannot|not a readable array file"),
    ],
)
def test_an_unsound_file_is_refused(pack: Pack, tmp_path: Path, other: dict[str, Any], reason: str) -> None:
    with pytest.raises(PackError, match=reason):
        open_pack(written(tmp_path / "tiles.npz", pack, **other))


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tiles.npz").write_bytes(b"not an archive")
    with pytest.raises(PackError, match="not a readable array file"):
        open_pack(tmp_path / "tiles.npz")
