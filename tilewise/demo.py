"""`tilewise demo`: the whole path on synthetic data, from tiles to a trained network to maps."""

import importlib.util
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click

from tilewise.datasets.core.console import CONTEXT, FOLDER, one_line_errors, out_option
from tilewise.datasets.core.errors import TilewiseError
from tilewise.datasets.core.locations import CONFIGS, PRETRAINED_MODEL

_PARTS = ("raw", "scenes", "packed", "run", "maps", "maps-shipped", "mlflow.db", "mlruns")


class Step(NamedTuple):
    """A step of the demo: what it does, and the arguments of `tilewise` that do it."""

    title: str
    arguments: tuple[str, ...]


@click.command(context_settings=CONTEXT)
@out_option(FOLDER, "Folder of everything that the demo writes.", Path("demo"))
@click.option(
    "--tiles", "tiles", default=200, show_default=True, type=click.IntRange(10), help="Tiles of each class."
)
@click.option(
    "--epochs", "epochs", default=15, show_default=True, type=click.IntRange(1), help="Epochs of training."
)
@click.option("--overwrite", "overwrite", is_flag=True, help="Replace the results of an earlier demo.")
@one_line_errors
def demo(out: Path, tiles: int, epochs: int, overwrite: bool) -> None:
    """Train on synthetic tiles and map a synthetic scene: 2 to 3 minutes on two cores, without a download.

    It makes tiles and a scene, packs the tiles, trains, tests and exports a small network, and classifies the
    scene with it and with the weights that ship. Training needs `pip install 'tilewise[train]'`; without it,
    the demo classifies with the weights that ship.

    \b
      tilewise demo
      tilewise demo --out /tmp/demo --tiles 50 --epochs 3
    """
    _clear(out, overwrite)
    can_train = importlib.util.find_spec("pytorch_lightning") is not None
    steps = list(_steps(out, tiles, epochs, can_train))
    begun = time.monotonic()
    for number, step in enumerate(steps, 1):
        click.echo(f"{number}/{len(steps)} {step.title}")
        _run(step)
    if not can_train:
        click.echo(
            "no network was trained: PyTorch Lightning is not installed; pip install 'tilewise[train]'"
        )
    _print_end(out, time.monotonic() - begun, can_train)


def _clear(out: Path, overwrite: bool) -> None:
    """Remove an earlier demo, and nothing else."""
    present = [out / name for name in _PARTS if (out / name).exists()]
    if present and not overwrite:
        raise TilewiseError(f"{out} holds a demo already; replace it with --overwrite, or name another --out")
    for path in present:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _steps(out: Path, tiles: int, epochs: int, can_train: bool) -> Iterator[Step]:
    raw, packed, run, scenes = out / "raw", out / "packed", out / "run", out / "scenes"
    synth = ("--out", f"{raw / 'synthetic'}", "--tiles", f"{tiles}", "--scene", f"{scenes / 'scene.tif'}")
    yield Step("making synthetic tiles and a scene", ("data", "synth", *synth))
    if can_train:
        yield Step("packing the tiles", ("data", "pack", f"{raw}", "--out", f"{packed}"))
        config = (
            "--config",
            f"{CONFIGS / 'experiments' / 'demo.yaml'}",
            "--data.pack",
            f"{packed}",
            "--out",
            f"{run}",
        )
        tracking = (
            "--tracking.uri",
            f"sqlite:///{out / 'mlflow.db'}",
            "--tracking.artifacts",
            f"{out / 'mlruns'}",
        )
        train = ("train", *config, *tracking, "--trainer.max_epochs", f"{epochs}")
        yield Step("training, testing and exporting a small network", train)
        maps = ("--out", f"{out / 'maps'}", "--model", f"{run / 'model.onnx'}")
        yield Step("classifying the scene with it", ("batch", f"{scenes}", *maps))
    shipped = ("--out", f"{out / 'maps-shipped'}", "--model", f"{PRETRAINED_MODEL}")
    yield Step(
        "classifying the scene with the weights that ship, trained on real tiles",
        ("batch", f"{scenes}", *shipped),
    )


def _run(step: Step) -> None:
    done = subprocess.run([sys.executable, "-m", "tilewise", *step.arguments], check=False)
    if done.returncode:
        raise TilewiseError(f"{step.title} failed with exit status {done.returncode}; its error is above")


def _print_end(out: Path, seconds: float, trained: bool) -> None:
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    maps = out / ("maps" if trained else "maps-shipped")
    tile = out / "raw" / "synthetic" / "Forest" / "Forest_1.tif"
    click.echo(
        f"\nThe demo took {seconds:.0f} s and {size / 1e6:.0f} MB in {out}, and downloaded nothing. What "
        f"next:"
    )
    lines = [
        (
            "look at the maps",
            f"open {maps / 'report.html'} in a browser, {maps / 'scene.classes.tif'} in QGIS",
        ),
        ("classify a tile", f"tilewise classify {tile}"),
        ("serve a model", "tilewise serve, then open http://localhost:3000"),
        ("ask the service", f"curl -F tiles=@{tile} http://localhost:3000/classify"),
    ]
    if trained:
        lines.insert(3, ("serve the demo's model", f"tilewise serve --model {out / 'run' / 'model.onnx'}"))
    for title, text in lines:
        click.echo(f"  {title + ':':<24}{text}")
