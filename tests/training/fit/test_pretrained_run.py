"""Runs that start from published weights, as a user starts them: probed, fine-tuned, averaged, exported."""

from pathlib import Path

import pytest
import torch
import yaml

from tilewise.datasets.packs.pack import Pack
from tilewise.models.model_file import INPUT, open_model
from tilewise.training.cli import average, main

pytestmark = pytest.mark.slow

timm = pytest.importorskip("timm")

NETWORK = [
    "--model.backbone=timm/test_efficientnet",
    "--model.pretrained.size=80",
    "--data.batch_size=24",
    "--trainer.precision=32-true",
    "--trainer.max_epochs=1",
    "--tracking.enabled=false",
    "--quantisation.enabled=false",
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("published") / "weights.pth"
    torch.save(timm.create_model("test_efficientnet").state_dict(), path)
    return path


def fit(pack: Path, out: Path, *more: str) -> dict[str, torch.Tensor]:
    main(["fit", *NETWORK, f"--data.pack={pack}", f"--out={out}", *more])
    state: dict[str, torch.Tensor] = torch.load(out / "checkpoints/last.ckpt", weights_only=True)[
        "state_dict"
    ]
    return state


def test_a_run_says_what_its_weights_come_from_and_its_file_takes_tiles(
    weights: Path, pack: Pack, pack_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    fit(pack_folder, out, f"--model.pretrained.weights={weights}")
    weights_elsewhere = yaml.safe_load((out / "config.yaml").read_text())
    weights_elsewhere["model"]["pretrained"]["weights"] = "gone.pth"  # a finished run does without them
    (out / "config.yaml").write_text(yaml.safe_dump(weights_elsewhere))
    main(["export", f"--out={out}", "--tracking.enabled=false", "--quantisation.enabled=false"])
    opened = open_model(out / "model.onnx")
    assert opened.metadata.network == "timm/test_efficientnet"
    assert opened.metadata.ancestry.startswith("timm/test_efficientnet, weights.pth, sha256 ")
    rows = pack.rows("val")
    assert opened.session.run(["probabilities"], {INPUT: pack.fetch(rows)})[0].shape == (len(rows), 10)


def test_a_linear_probe_changes_the_head_alone(weights: Path, pack_folder: Path, tmp_path: Path) -> None:
    named = f"--model.pretrained.weights={weights}"
    probed = fit(pack_folder, tmp_path / "probe", named, "--model.optimisation.frozen_backbone=true")
    again = fit(
        pack_folder,
        tmp_path / "again",
        named,
        "--model.optimisation.frozen_backbone=true",
        "--seed_everything=5",
    )
    backbone = [name for name in probed if ".backbone." in name]
    assert all(torch.equal(probed[name], again[name]) for name in backbone), "statistics of BatchNorm too"
    assert not torch.equal(probed["classifier.head.weight"], again["classifier.head.weight"])


def test_the_mean_of_two_runs_is_a_run(
    weights: Path, pack_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named, runs = f"--model.pretrained.weights={weights}", [tmp_path / "a", tmp_path / "b"]
    states = [
        fit(pack_folder, run, named, f"--seed_everything={n}", f"--data.hold_out.held_out=[{n}]")
        for n, run in enumerate(runs)
    ]
    average.main([*map(str, runs), "--out", str(tmp_path / "mean"), "--tiles", "48"], standalone_mode=False)
    saved = torch.load(tmp_path / "mean/checkpoints/best.ckpt", weights_only=True)
    head = "classifier.head.weight"
    torch.testing.assert_close(saved["state_dict"][head], (states[0][head] + states[1][head]) / 2)
    means = [name for name in saved["state_dict"] if name.endswith("bn1.running_mean")]
    assert not any(
        torch.allclose(saved["state_dict"][name], (states[0][name] + states[1][name]) / 2) for name in means
    ), "statistics are measured, not averaged"
    assert saved["ancestry"].startswith("timm/test_efficientnet")
    assert "statistics of 48 tiles" in capsys.readouterr().out
    main(["test", f"--out={tmp_path / 'mean'}", "--tracking.enabled=false"])
    assert "tested" in capsys.readouterr().out


def test_runs_of_different_networks_have_no_mean(
    weights: Path, pack_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(pack_folder, tmp_path / "a")
    fit(pack_folder, tmp_path / "b", "--model.backbone=timm/test_resnet")
    with pytest.raises(SystemExit) as stopped:
        average.main([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "mean")])
    assert stopped.value.code == 1
    assert f"{tmp_path / 'b' / 'checkpoints/last.ckpt'}: of another network" in capsys.readouterr().err


def test_published_weights_need_a_published_network(
    pack_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["fit", f"--data.pack={pack_folder}", f"--out={tmp_path}", "--model.pretrained.weights=x.pth"])
    assert "error: model.pretrained: published weights need a published network" in capsys.readouterr().err


def test_a_broken_checkpoint_is_one_line(
    weights: Path, pack_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(pack_folder, tmp_path / "a")
    last = tmp_path / "a/checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(SystemExit) as stopped:
        average.main([str(tmp_path / "a"), "--out", str(tmp_path / "mean")])
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: RUN: {last}: no checkpoint of a run, or a broken one")
