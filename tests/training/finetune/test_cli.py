"""`tilewise train --recipe finetune`, as a user runs it: from folders of tiles to a file that classifies."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from mlflow.tracking import MlflowClient

import tilewise
from tilewise.cli import main
from tilewise.datasets.packs.pack import Pack
from tilewise.models.model_file import int8_of, open_model
from tilewise.training.evaluate.outputs import run_rows

pytestmark = pytest.mark.slow

CLASSES = ("Forest", "Industrial", "River", "SeaLake")
OTHER = "Highway"


def finetune(*words: object) -> Result:
    return CliRunner().invoke(main, ["train", "--recipe", "finetune", *map(str, words)])


@pytest.fixture(scope="module")
def own_tiles(tiles_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `own` (9 tiles of each class) and `test` (3 of each)."""
    root = tmp_path_factory.mktemp("tiles")
    for name in CLASSES:
        for number, path in enumerate(sorted((tiles_folder / name).glob("*.tif"))):
            folder = root / ("own" if number < 9 else "test") / name
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / path.name)
    return root


@pytest.fixture(scope="module")
def run(
    own_tiles: Path, skilled_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Result]:
    """The folder of a finished run, and what the command printed."""
    out = tmp_path_factory.mktemp("run") / "mine"
    words = [
        "--data",
        own_tiles / "own",
        "--test",
        own_tiles / "test",
        "--model",
        skilled_model,
        "--out",
        out,
    ]
    done = finetune(*words, "--tracking-uri", f"sqlite:///{out.parent}/mlflow.db")
    assert done.exit_code == 0, done.output
    return out, done


def test_a_folder_of_class_folders_becomes_a_model_that_classifies_them(
    run: tuple[Path, Result], own_tiles: Path
) -> None:
    model = tilewise.load(run[0] / "model.onnx")
    assert model.classes == CLASSES
    assert model.metadata.synthetic
    paths = sorted((own_tiles / "test").glob("*/*.tif"))
    right = [model.classify(path).class_name == path.parent.name for path in paths]
    assert np.mean(right) >= 0.75


def test_the_file_beside_it_is_int8_and_answers_alike(run: tuple[Path, Result]) -> None:
    pack, fp32 = Pack(run[0] / "pack"), open_model(run[0] / "model.onnx")
    int8 = open_model(int8_of(fp32.path))
    assert (int8.metadata.precision, int8.metadata.quantised_from) == ("int8", fp32.sha256)
    both = [run_rows(model, pack, np.arange(len(pack))).logits.argmax(1) for model in (fp32, int8)]
    assert (both[0] == both[1]).mean() > 0.9


def test_figures_are_of_tiles_that_were_held_out_and_have_intervals(run: tuple[Path, Result]) -> None:
    report = json.loads((run[0] / "evaluation/report.json").read_text())
    held_out, tested = (report["tables"][name]["rows"] for name in ("kfold", "test"))
    assert [row["tiles"] for row in held_out] == [9, 9, 9, 9, 36]
    assert [row["tiles"] for row in tested] == [3, 3, 3, 3, 12]
    assert all(row["from %"] < row["right %"] <= row["to %"] for row in held_out)
    assert "| all | 36 |" in run[1].stdout
    assert {row["class left out"] for row in report["tables"]["unknown"]["rows"]} == {*CLASSES, "mean"}


def test_few_tiles_are_warned_of_and_levels_without_enough_tiles_are_absent(run: tuple[Path, Result]) -> None:
    warnings = [line for line in run[1].stderr.splitlines() if line.startswith("warning: ")]
    assert "fewer than 25 tiles of Forest (9), Industrial (9), River (9), SeaLake (9)" in warnings[0]
    assert "no prediction sets of 97.5 %, 99 %: 97.5 % needs 39 tiles, there are 36" in warnings[1]
    sets = open_model(run[0] / "model.onnx").metadata.prediction_sets
    assert sets is not None
    assert max(sets.thresholds) == 0.95


def test_tiles_of_the_test_folder_never_train(run: tuple[Path, Result]) -> None:
    pack = Pack(run[0] / "pack")
    assert {split: sum(counts.values()) for split, counts in pack.summary.counts.items()} == {
        "train": 36,
        "test": 12,
    }
    with np.load(run[0] / "features.npz") as stored:
        assert stored["embeddings"].shape[:2] == (8, 36)


def test_the_run_is_tracked_with_its_figures_and_its_model(run: tuple[Path, Result]) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{run[0].parent}/mlflow.db")
    run_id = next(iter(json.loads((run[0] / "mlflow.json").read_text()).values()))
    tracked = client.get_run(run_id)
    assert tracked.data.metrics["kfold/accuracy"] > 0.5
    assert tracked.data.metrics["test/accuracy"] > 0.5
    assert tracked.info.status == "FINISHED"
    assert [each.name for each in client.search_logged_models([tracked.info.experiment_id])] == ["model"]


def test_a_run_is_not_overwritten_unless_asked(run: tuple[Path, Result], own_tiles: Path) -> None:
    before = (run[0] / "model.onnx").read_bytes()
    done = finetune("--data", own_tiles / "own", "--out", run[0], "--no-tracking")
    assert (done.exit_code, (run[0] / "model.onnx").read_bytes()) == (1, before)
    assert "holds a model already; name another --out, or give --overwrite" in done.stderr


def test_a_pack_learns_from_train_and_val_and_tests_on_its_test_split(
    pack_folder: Path, skilled_model: Path, tmp_path: Path
) -> None:
    done = finetune(
        "--data", pack_folder, "--model", skilled_model, "--out", tmp_path / "run", "--no-tracking"
    )
    assert done.exit_code == 0, done.output
    counts = {split: sum(each.values()) for split, each in Pack(pack_folder).summary.counts.items()}
    assert f"### Accuracy: {counts['train'] + counts['val']} tiles" in done.stdout
    assert f"### Accuracy: {counts['test']} tiles" in done.stdout
    assert not (tmp_path / "run/pack").exists()


def test_what_cannot_be_learned_is_said_in_one_line(
    own_tiles: Path, skilled_model: Path, pack_folder: Path, tmp_path: Path
) -> None:
    def error(*words: object) -> str:
        done = finetune(*words, "--out", tmp_path / "run", "--overwrite", "--no-tracking")
        assert done.exit_code == 1, done.output
        return next(line for line in done.stderr.splitlines() if line.startswith("error: "))

    few = tmp_path / "few"
    shutil.copytree(own_tiles / "own", few)
    for path in sorted((few / "River").glob("*.tif"))[4:]:
        path.unlink()
    assert "needs 5 tiles of each class, better 25; there are 4 of River: add some" in error("--data", few)
    for name in CLASSES[1:]:
        shutil.rmtree(few / name)
    assert "1 class to learn from; fine-tuning needs two or more" in error("--data", few)
    own = own_tiles / "own"
    assert "36 names are in --data and in --test" in error("--data", own, "--test", own)
    int8 = int8_of(skilled_model)
    assert "an INT8 file, whose embeddings are rounded" in error("--data", own, "--model", int8)
    assert "a pack has its own test split and bands" in error("--data", pack_folder, "--bands", "l2a")


def test_a_fine_tuned_file_can_be_fine_tuned_again(
    run: tuple[Path, Result], own_tiles: Path, tmp_path: Path
) -> None:
    words = ("--data", own_tiles / "own", "--model", run[0] / "model.onnx", "--out", tmp_path / "again")
    done = finetune(*words, "--no-tracking")
    assert done.exit_code == 0, done.output
    first, second = (open_model(path / "model.onnx").metadata for path in (run[0], tmp_path / "again"))
    assert second.network == first.network
    assert second.temperature == pytest.approx(first.temperature, rel=1e-3)


def test_the_recipe_may_stand_anywhere_and_an_unknown_one_lists_the_choices() -> None:
    runner = CliRunner()
    for words in (["--recipe=finetune", "--help"], ["--help", "--recipe", "finetune"]):
        assert "FOLDER/<Class>/<name>.tif" in runner.invoke(main, ["train", *words]).stdout
    done = runner.invoke(main, ["train", "--recipe", "fine"])
    assert done.exit_code == 2
    assert "--recipe fine: there is no such recipe; use finetune" in done.stderr
    assert "--recipe finetune" in runner.invoke(main, ["train", "--help"]).stdout
