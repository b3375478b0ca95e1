"""The command line around model files."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from datasets.command import make_statement, one_line_errors, statement_options
from datasets.errors import ModelFileError, SentileError, UnreadableImageError
from datasets.radiometry import Statement
from datasets.sources import Format, find_source
from datasets.tile import Tile

if TYPE_CHECKING:
    from models.explain import Explanation
    from models.modelfile import ModelFile

RUNS = Path("artifacts/runs")
PRETRAINED = Path(__file__).parent / "pretrained"
_JPEG = (".jpg", ".jpeg")
_PAGE, _PICTURE = (".html", ".htm"), (".png",)
_MOST_TOLD = 3  # bands, in the terminal


@click.group()
def main() -> None:
    """Look into model files: what an answer rests on, and what a model was measured to do."""


@main.command()
@click.argument("tile", type=click.Path(path_type=Path))
@click.option("--model", envvar="SENTILE_MODEL", help="Model file; default: the newest exported one.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Where to write: PAGE.html, a page that needs no server, or PICTURE.png.",
)
@click.option("--class", "class_name", help="The class to explain; default: the one that the model answers.")
@click.option(
    "--method",
    type=click.Choice(["auto", "gradients", "occlusion"]),
    default="auto",
    show_default=True,
    help="How pixels are judged: by integrated gradients, or by taking patches away. auto: gradients where torch can "
    "run the model file's graph.",
)
@click.option(
    "--coverage",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.9,
    show_default=True,
    help="Share of tiles whose prediction set shall hold the true class.",
)
@statement_options
@one_line_errors
def explain(
    tile: Path,
    model: str | None,
    out: Path,
    class_name: str | None,
    method: str,
    coverage: float,
    bands: str | None,
    level: str | None,
    scale: float | None,
    offset: float | None,
) -> None:
    """Show which pixels and which bands of TILE drove the model's answer.

    TILE is a GeoTIFF of 64 × 64 pixels, or a JPEG of EuroSAT RGB. What a GeoTIFF does not say of its bands and
    radiometry is said by options; of tiles in a folder called EuroSAT_MS, or one that has a dataset.json, it is known.

    \b
    python -m models explain data/raw/EuroSAT_MS/River/River_1.tif --out why.html
    python -m models explain tile.tif --bands 10m --level L2A --offset -1000 --out why.png
    python -m models explain tile.tif --class Forest --out why-not-forest.html
    """
    _check_suffix(out)
    said = make_statement(bands, level, scale, offset)
    loaded = _open(find_model(model))
    began = time.perf_counter()
    found = _explain(loaded, read(tile, said), class_name, method, coverage)
    _write(loaded, found, out)
    _tell(found, out, time.perf_counter() - began)


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--assessment",
    "assessments",
    type=click.Path(path_type=Path, file_okay=False),
    multiple=True,
    help="Folder that `python -m training assess --out` wrote; say it again for the INT8 file's.",
)
@click.option("--append", type=click.Path(path_type=Path), multiple=True, help="Markdown to put at the end.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Default: README.md beside MODEL.")
@one_line_errors
def card(model: Path, assessments: tuple[Path, ...], append: tuple[Path, ...], out: Path | None) -> None:
    """Write the card of MODEL: what it is, what it is for, and every figure that was measured of it.

    \b
    python -m training assess --model model.onnx --data data/packed --split val --out assessment
    python -m models card model.onnx --assessment assessment
    """
    from models.card import write_card
    from models.modelfile import open_model

    target = out or model.with_name("README.md")
    write_card(open_model(model), assessments, target, append)
    click.echo(f"the card is {target}")


def find_model(said: str | None) -> Path:
    """Return the model file to use: the one that was said, else the newest exported one, else the one that ships.

    Raises:
        ModelFileError: it is in a registry, or there is none.
    """
    if said and said.startswith("models:/"):
        raise ModelFileError(
            f"{said}: explanations need a model file; `mlflow artifacts download -u {said} -d FOLDER` fetches it"
        )
    if said:
        return Path(said)
    exported = sorted(RUNS.rglob("model.onnx"), key=lambda path: path.stat().st_mtime)
    known = [*exported[-1:], *PRETRAINED.glob("model.onnx")]
    if not known:
        raise ModelFileError(
            f"no model: {RUNS} holds none; `python -m training` makes one, `make demo` a small one, --model names one"
        )
    return known[0]


def read(path: Path, said: Statement) -> Tile:
    """Return a tile from a file: a JPEG as EuroSAT RGB, a GeoTIFF as its folder or `said` tells.

    Raises:
        SentileError: of the readers, or options are given for a JPEG.
    """
    if not path.is_file():
        raise UnreadableImageError(f"{path}: there is no such file; name a tile")
    form = Format.GEOTIFF if said != Statement() else None
    if path.suffix.lower() in _JPEG:
        if form:
            raise SentileError(
                f"{path}: a JPEG is read as EuroSAT RGB; leave --bands, --level, --scale and --offset out"
            )
        form = Format.EUROSAT_RGB
    return find_source(path.resolve().parent.parent, form, said).read(path)


def _check_suffix(out: Path) -> None:
    if out.suffix.lower() not in (*_PAGE, *_PICTURE):
        raise SentileError(f"{out}: neither a page nor a picture; name a file that ends in .html or .png")


def _open(path: Path) -> "ModelFile":
    import onnxruntime as ort

    from models.modelfile import open_model

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # a few hundred small answers: waiting for other threads takes longer
    return open_model(path, options)


def _explain(model: "ModelFile", tile: Tile, class_name: str | None, method: str, coverage: float) -> "Explanation":
    try:
        import captum  # noqa: F401 - asked for here, where its absence can be told in one line
        import torch

        from models.explain import Method, explain
    except ImportError as error:
        raise SentileError(f"{error.name} is not installed; pip install 'sentile[train]'") from error
    torch.set_num_threads(1)
    return explain(model, tile, class_name, Method(method), coverage)


def _write(model: "ModelFile", found: "Explanation", out: Path) -> None:
    from models.explain_page import draw_page
    from models.explain_picture import draw_picture

    content = draw_page(found, model).encode() if out.suffix.lower() in _PAGE else draw_picture(found, model)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, out)  # noqa: PTH105 - the one call that is atomic on every system
    finally:
        partial.unlink(missing_ok=True)


def _tell(found: "Explanation", out: Path, seconds: float) -> None:
    strongest = sorted(found.bands.items(), key=lambda item: -abs(item[1].log_odds))[:_MOST_TOLD]
    told: dict[str, Any] = {name: f"{effect.log_odds:+.2f}" for name, effect in strongest}
    probability = float(found.probabilities[found.class_index])
    click.echo(f"{found.tile.name}: {found.class_name} {probability:.4f}, pixels by {found.method}")
    click.echo(f"bands, log-odds: {', '.join(f'{name} {effect}' for name, effect in told.items())}")
    if found.reason:
        click.echo(f"no gradients: {found.reason}")
    click.echo(f"written to {out} in {seconds:.1f} s")
