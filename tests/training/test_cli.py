"""The training command line, run as a user would, on a pack of 120 synthetic tiles."""

import csv
import json
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient

from tilewise.models.model_file import open_model
from tilewise.training.cli import main

SMALL = [
    "--model.backbone.init_args.widths=[8,16]",
    "--model.backbone.init_args.depths=[1,1]",
    "--model.backbone.init_args.stem=[8]",
    "--data.batch_size=24",
    "--trainer.precision=32-true",
    "--quantisation.enabled=false",
]


def train(pack: Path, out: Path, *options: str, epochs: int = 2, subcommand: str = "run") -> None:
    tracking = [
        f"--tracking.uri=sqlite:///{out.parent}/mlflow.db",
        f"--tracking.artifacts={out.parent}/mlruns",
    ]
    main(
        [
            subcommand,
            *SMALL,
            f"--data.pack={pack}",
            f"--out={out}",
            f"--trainer.max_epochs={epochs}",
            *tracking,
            *options,
        ]
    )


@pytest.fixture(scope="module")
def run(pack_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of two epochs."""
    out = tmp_path_factory.mktemp("training") / "run"
    train(pack_folder, out)
    return out


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=True)["state_dict"]
    return loaded


def failing(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(str(stopped.value.code)), capsys.readouterr().err


def test_a_run_leaves_checkpoints_figures_pictures_and_a_model(run: Path) -> None:
    for name in (
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "config.yaml",
        "model.onnx",
        "history.csv",
    ):
        assert (run / name).is_file(), name
    content = json.loads((run / "evaluation/metrics.json").read_text())
    assert content["checkpoint"].endswith("best.ckpt")
    assert content["symmetries"] == 1
    assert set(content["groups"]) == {"all", "geotiff/all", "geotiff/l2a", "geotiff/10m", "geotiff/rgb"}
    assert (run / "evaluation/confusion-all.png").is_file()
    with (run / "history.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]


def test_the_help_of_a_subcommand_says_what_that_one_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    assert "Calibrate a checkpoint, the best one by default" in " ".join(capsys.readouterr().out.split())


def test_the_model_says_where_it_comes_from(run: Path) -> None:
    metadata = open_model(run / "model.onnx").metadata
    assert len(metadata.classes) == 10
    assert metadata.synthetic
    assert metadata.version == f"run-{metadata.weights[:8]}", (
        "another run in the same folder is another model"
    )
    assert metadata.metrics["calibrated/val/accuracy"] * 30 == pytest.approx(
        round(metadata.metrics["calibrated/val/accuracy"] * 30)  # of 30 tiles
    )
    assert 0 < metadata.metrics["calibrated/val/calibration_error"] < 1
    assert len(metadata.histograms) == 13
    assert metadata.prediction_sets is not None
    assert metadata.prediction_sets.threshold(0.9) == metadata.prediction_sets.thresholds[0.9]
    assert metadata.outliers is not None
    assert metadata.outliers.threshold > 0
    assert metadata.data_hash


def test_the_tracker_holds_the_figures_the_config_and_the_model(run: Path) -> None:
    client = MlflowClient(f"sqlite:///{run.parent}/mlflow.db")
    run_id = json.loads((run / "mlflow.json").read_text()).popitem()[1]
    found = client.get_run(run_id)
    assert {"train/loss", "val/accuracy", "test/all/accuracy", "test/geotiff/rgb/macro_f1"} <= set(
        found.data.metrics
    )
    assert "calibrated/val/calibration_error" in found.data.metrics
    assert found.data.tags["data_hash"]
    assert found.data.params["data/batch_size"] == "24"
    assert found.data.params["model/optimisation/rate"] == "0.002"
    assert "mlflow.source.git.commit" in found.data.tags
    names = {item.path for item in client.list_artifacts(run_id)}
    assert {"config.yaml", "requirements.txt", "evaluation"} <= names


def test_test_and_export_take_the_best_checkpoint_with_the_runs_own_settings_and_say_so(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads((run / "evaluation/metrics.json").read_text())
    main(["test", "--out", str(run)])
    main(["export", "--out", str(run)])
    output = capsys.readouterr().out
    assert f"tested {run}/checkpoints/best.ckpt" in output
    assert f"exported {run}/checkpoints/best.ckpt to {run}/model.onnx" in output
    assert json.loads((run / "evaluation/metrics.json").read_text()) == before


@pytest.mark.slow
def test_figures_and_answers_do_not_depend_on_batch_size_workers_store_or_precision_of_training(
    run: Path,
) -> None:
    def tested(*options: str) -> tuple[bytes, bytes]:
        main(["test", "--out", str(run), *options])
        return (run / "evaluation/metrics.json").read_bytes(), (
            run / "evaluation/predictions.csv"
        ).read_bytes()

    expected = tested()
    loader = ["--data.loader.workers=2"], ["--data.loader.store=device"]
    other = ["--data.batch_size=7"], *loader, ["--trainer.precision=bf16-mixed"]
    for options in other:
        assert tested(*options) == expected


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    pack_folder: Path, tmp_path: Path
) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        options = (f"--seed_everything={seed}", "--tracking.enabled=false", "--trainer.deterministic=true")
        train(pack_folder, tmp_path / name, *options, epochs=1, subcommand="fit")
    a, b, c = (weights(tmp_path / name / "checkpoints/last.ckpt") for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)


def test_a_resumed_run_ends_where_an_unbroken_one_does(pack_folder: Path, tmp_path: Path) -> None:
    options = ("--tracking.enabled=false", "--checkpoint.save_top_k=-1", "--checkpoint.filename={epoch}")
    train(pack_folder, tmp_path / "whole", *options, epochs=3, subcommand="fit")
    after_one = tmp_path / "whole/checkpoints/epoch=0.ckpt"
    train(pack_folder, tmp_path / "resumed", *options, f"--ckpt_path={after_one}", epochs=3, subcommand="fit")
    whole = weights(tmp_path / "whole/checkpoints/last.ckpt")
    resumed = weights(tmp_path / "resumed/checkpoints/last.ckpt")
    assert not all(torch.equal(whole[key], value) for key, value in weights(after_one).items())
    for key, value in whole.items():
        torch.testing.assert_close(resumed[key], value, rtol=0, atol=0, msg=key)


def test_a_folder_that_holds_a_run_is_not_overwritten(
    run: Path, pack_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, error = failing(capsys, ["fit", *SMALL, f"--data.pack={pack_folder}", f"--out={run}"])
    assert code == 1
    assert f"{run} holds a run already" in error
    assert "--ckpt_path" in error


def test_no_pack_is_one_line_that_says_how_to_make_one(
    in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, error = failing(capsys, ["--data.pack=nowhere", "--tracking.enabled=false"])
    assert code == 1
    assert error.strip() == "error: nowhere: no pack is here; `tilewise data pack` makes one"


def test_no_run_to_test_is_one_line(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, error = failing(capsys, ["test"])
    assert code == 1
    assert error.startswith("error: no run with a best checkpoint")
    assert error.count("\n") == 1


def test_a_misspelt_key_in_a_config_is_refused_by_name(
    pack_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(f"data:\n  pack: {pack_folder}\n  batchsize: 12\n")
    code, error = failing(capsys, ["--config", str(config)])
    assert code == 2
    assert "batchsize" in error
    assert "Traceback" not in error


def test_a_checkpoint_of_another_network_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = "--model.backbone.init_args.widths=[8,24]"
    code, error = failing(capsys, ["test", f"--out={run}", wide])
    assert code == 1
    assert "another network" in error


def test_help_names_the_subcommands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    printed = capsys.readouterr().out
    for name in ("run", "fit", "validate", "test", "export"):
        assert f"\n    {name} " in printed
