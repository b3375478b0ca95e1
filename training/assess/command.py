"""`python -m training assess`: what a model file is worth, measured on a pack."""

import shlex
import sys
from pathlib import Path

import click

from datasets.arrays import open_pack
from datasets.command import one_line_errors
from datasets.progress import shown
from models.modelfile import open_model
from training.assess.outputs import Case
from training.assess.report import assess as measure
from training.assess.settings import DEFAULT, read_settings


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--model", type=click.Path(path_type=Path), required=True, help="The model file (ONNX, fp32 or INT8).")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Pack of tiles with classes.")
@click.option("--split", default="val", show_default=True, help="Whose tiles are measured.")
@click.option("--clouds", type=click.Path(path_type=Path), help="Folder of scenes with a cloud probability (DN, L1C).")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for assessment.md and .json; default: print only.")
@click.option("--settings", type=click.Path(path_type=Path), default=DEFAULT, help="Default: configs/assess.yaml.")
@one_line_errors
def assess(model: Path, data: Path, split: str, clouds: Path | None, out: Path | None, settings: Path) -> None:
    """Measure a model file: accuracy by source, bands, class and latitude, calibration and prediction sets on held-out
    halves, what is flagged as unknown, and robustness.

    Nothing is trained and the file is not changed. What was asked and what was found is the first table.
    """
    command = shlex.join(["python", "-m", "training", "assess", *sys.argv[2:]])
    with shown() as progress:
        found = measure(
            Case(open_model(model), open_pack(data), split, progress), read_settings(settings), clouds, command
        )
    click.echo(found.markdown())
    if out is not None:
        for path in found.write(out):
            click.echo(f"wrote {path}", err=True)
