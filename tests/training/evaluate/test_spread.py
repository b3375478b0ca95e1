"""Several runs of one recipe: what is printed of them, and what is refused."""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from tilewise.training.evaluate.spread import FIGURES, spread


def run_of(folder: Path, seed: int, accuracy: float, tiles: int = 50) -> str:
    """Leave what a tested run leaves."""
    (folder / "evaluation").mkdir(parents=True)
    settings = {
        "seed_everything": seed,
        "model": {"compile": True},
        "trainer": {"default_root_dir": str(folder)},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    groups = {"all": {"tiles": tiles, **dict.fromkeys(FIGURES, accuracy)}}
    (folder / "evaluation/metrics.json").write_text(json.dumps({"groups": groups}))
    return str(folder)


def test_mean_deviation_and_range_are_told_and_what_the_runs_differ_in(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / str(seed), seed, share) for seed, share in enumerate((0.90, 0.91, 0.95))]
    done = CliRunner().invoke(spread, runs)
    assert done.exit_code == 0, done.output
    assert "3 runs, which differ in: seed_everything." in done.output
    assert "| all | 50 | 92.00 ± 2.65 (90.00 - 95.00) |" in done.output


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("one", "two different runs at least"),
        ("same", "two different runs at least"),
        ("untested", "tilewise train test --out"),
        ("garbled", "not what `tilewise train test` writes"),
        ("other tiles", "different numbers of tiles: [50, 51]"),
        ("no settings", "is no folder of a run"),
        ("other ways", "tested with different model.symmetries: [1, 8]"),
    ],
)
def test_what_is_no_spread_is_refused_in_one_line(spoil: str, message: str, tmp_path: Path) -> None:
    first = run_of(tmp_path / "first", 0, 0.9)
    second = run_of(tmp_path / "second", 1, 0.9, 51 if spoil == "other tiles" else 50)
    metrics = tmp_path / "second/evaluation/metrics.json"
    if spoil == "untested":
        metrics.unlink()
    if spoil == "garbled":
        metrics.write_text("[]")
    if spoil == "other ways":
        metrics.write_text(json.dumps({"symmetries": 8, **json.loads(metrics.read_text())}))
    if spoil == "no settings":
        (tmp_path / "second/config.yaml").unlink()
    done = CliRunner().invoke(spread, {"one": [first], "same": [first, first]}.get(spoil, [first, second]))
    assert done.exit_code == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
