"""`tilewise predict`, `tilewise explain` and `tilewise card`: look into model files."""

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import numpy.typing as npt

from tilewise.datasets.core.console import (
    CONTEXT,
    FILE,
    FOLDER,
    Report,
    model_option,
    one_line_errors,
    out_option,
    read_options,
    shown,
    silent,
)
from tilewise.datasets.core.errors import ModelFileError, NoTilesError, TilewiseError, UnreadableImageError
from tilewise.datasets.core.files import atomic_write
from tilewise.datasets.core.radiometry import ReadOptions
from tilewise.datasets.core.tile import Tile
from tilewise.datasets.packs.pack import Pack
from tilewise.datasets.packs.splits import SPLITS
from tilewise.datasets.quality.suspects import write_predictions
from tilewise.datasets.readers.sources import Format, find_source
from tilewise.models.model_file import INPUT, ModelFile, ModelMetadata, find_model, int8_of, open_model
from tilewise.models.model_item import write_model_item

if TYPE_CHECKING:
    from tilewise.models.explain.attribution import TileExplanation

_PROBABILITY_BATCH = 64


def probabilities_of(
    model: ModelFile, pack: Pack, rows: npt.NDArray[np.int64], progress: Report = silent
) -> npt.NDArray[np.float32]:
    """Return float32 (len(rows), classes): the calibrated probabilities of the tiles in `rows`."""
    parts = []
    for start in range(0, len(rows), _PROBABILITY_BATCH):
        tiles = pack.fetch(rows[start : start + _PROBABILITY_BATCH])
        parts.append(model.session.run(["probabilities"], {INPUT: tiles})[0])
        progress("classifying", min(start + _PROBABILITY_BATCH, len(rows)), len(rows))
    return np.concatenate(parts)


@click.command(context_settings=CONTEXT)
@model_option
@click.option("--data", "data", type=FOLDER, default=Path("data/packed"), show_default=True, help="The pack.")
@click.option(
    "--split",
    "splits",
    type=click.Choice(SPLITS),
    multiple=True,
    default=("val", "test"),
    show_default=True,
    help="Which tiles, repeatable.",
)
@out_option(FILE, "The CSV file to write.", Path("predictions.csv"))
@one_line_errors
def predict(model: str | None, data: Path, splits: tuple[str, ...], out: Path) -> None:
    """Write a model's answers on the tiles of a pack: one row for each tile, with the probability of every
    class.

    The train split is left out by default: a model's answers on its own training tiles show nothing.

    \b
      tilewise predict --model artifacts/runs/first/model.onnx --data data/packed --out answers.csv
    """
    opened, tiles = open_model(find_model(model)), Pack(data)
    rows = np.flatnonzero(np.isin(tiles.splits, splits))
    if not len(rows):
        raise NoTilesError(f"{data}: no tile is in {' or '.join(splits)}; name another --split")
    with shown() as progress:
        probabilities = probabilities_of(opened, tiles, rows, progress)
    names, sources = tiles.names(rows), tiles.sources[rows].tolist()
    labels = [tiles.summary.classes[label] for label in tiles.labels[rows]]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_predictions(
        out, list(zip(sources, names, strict=True)), labels, probabilities, opened.metadata.classes
    )
    click.echo(f"{len(rows):,} answers are in {out}")


_JPEG = (".jpg", ".jpeg")
_PAGE, _PICTURE = (".html", ".htm"), (".png",)
_MAX_BANDS = 3  # in the terminal


@click.command(context_settings=CONTEXT)
@click.argument("tile", type=click.Path(path_type=Path))
@model_option
@out_option(FILE, "PAGE.html, a page that needs no server, or PICTURE.png.")
@click.option("--class", "class_name", help="The class to explain. Default: the most probable one.")
@click.option(
    "--method",
    "method",
    type=click.Choice(["auto", "gradients", "occlusion"]),
    default="auto",
    show_default=True,
    help="Attribution of pixels: by integrated gradients, or by occlusion of patches. auto: gradients where "
    "torch can "
    "run the model file's graph.",
)
@click.option(
    "--coverage",
    "coverage",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.9,
    show_default=True,
    help="Probability that the prediction set contains the true class.",
)
@read_options
@one_line_errors
def explain(
    tile: Path,
    model: str | None,
    out: Path,
    class_name: str | None,
    method: str,
    coverage: float,
    reading: ReadOptions,
) -> None:
    """Show which pixels and bands of TILE the model's answer depends on.

    TILE is a GeoTIFF of 64 × 64 pixels, or a JPEG of EuroSAT RGB. Options state the bands and the radiometry
    of GeoTIFFs that do not; they are known of tiles in a folder called EuroSAT_MS, or one with a
    dataset.json.

    \b
    tilewise explain data/raw/EuroSAT_MS/River/River_1.tif --out why.html
    tilewise explain tile.tif --bands 10m --level L2A --offset -1000 --out why.png
    tilewise explain tile.tif --class Forest --out why-not-forest.html
    """
    _check_suffix(out)
    loaded = _open(find_model(model))
    begun = time.perf_counter()
    explanation = _explain(loaded, read(tile, reading), class_name, method, coverage)
    _write(loaded, explanation, out)
    _print_explanation(explanation, out, time.perf_counter() - begun)


def read(path: Path, options: ReadOptions) -> Tile:
    """Read a tile from a file: a JPEG as EuroSAT RGB, a GeoTIFF as its folder or `options` state.

    Raises:
        TilewiseError: the file cannot be read, or options are given for a JPEG.
    """
    if not path.is_file():
        raise UnreadableImageError(f"{path}: there is no such file; name a tile")
    format = Format.GEOTIFF if options != ReadOptions() else None
    if path.suffix.lower() in _JPEG:
        if format:
            raise TilewiseError(
                f"{path}: a JPEG is read as EuroSAT RGB; leave --bands, --level, --scale and --offset out"
            )
        format = Format.EUROSAT_RGB
    return find_source(path.resolve().parent.parent, format, options).read(path)


def _check_suffix(out: Path) -> None:
    if out.suffix.lower() not in (*_PAGE, *_PICTURE):
        raise TilewiseError(f"{out}: neither a page nor a picture; name a file that ends in .html or .png")


def _open(path: Path) -> ModelFile:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # for hundreds of small inputs, one thread is faster than several
    return open_model(path, options)


def _explain(
    model: ModelFile, tile: Tile, class_name: str | None, method: str, coverage: float
) -> "TileExplanation":
    try:
        import captum  # noqa: F401 - imported here, so that its absence is one line
        import torch

        from tilewise.models.explain.attribution import AttributionMethod, explain
    except ImportError as error:
        raise TilewiseError(f"{error.name} is not installed; pip install 'tilewise[train]'") from error
    torch.set_num_threads(1)
    return explain(model, tile, class_name, AttributionMethod(method), coverage)


def _write(model: ModelFile, found: "TileExplanation", out: Path) -> None:
    from tilewise.models.explain.page import draw_page, draw_picture

    content = draw_page(found, model).encode() if out.suffix.lower() in _PAGE else draw_picture(found, model)
    with atomic_write(out) as partial:
        partial.write_bytes(content)


def _print_explanation(found: "TileExplanation", out: Path, seconds: float) -> None:
    strongest = sorted(found.bands.items(), key=lambda item: -abs(item[1].log_odds))[:_MAX_BANDS]
    effects = ", ".join(f"{name} {effect.log_odds:+.2f}" for name, effect in strongest)
    probability = float(found.probabilities[found.class_index])
    click.echo(f"{found.tile.name}: {found.class_name} {probability:.4f}, pixels by {found.method}")
    click.echo(f"bands, log-odds: {effects}")
    if found.reason:
        click.echo(f"no gradients: {found.reason}")
    click.echo(f"written to {out} in {seconds:.1f} s")


ASSESSMENT = "assessment"  # stem of the files of `tilewise assess --out`, .md and .json

_INTENDED = """\
For Sentinel-2 tiles of 64 × 64 pixels at about 10 m, Level-1C or Level-2A, with any of the bands that it was trained
on: which of the classes covers the tile. A band is known by its name and reflectance by its scale; the service and the
batch command take care of both. Where prediction sets hold several classes, or the outlier score is above its
threshold, a person should look.

Not for: objects smaller than a tile, change from one pixel to the next, other sensors or pixel sizes, and decisions
about people or land that nobody checks."""  # noqa: E501

_LIMITS = """\
- It knows the classes above and no other: wetland, bare rock, snow and cloud are answered with one of them; the
  outlier score is there to say so, and does not always.
- EuroSAT's tiles are of 34 European countries and were chosen to show one class each. Elsewhere, and where land is
  mixed, expect less than the figures below.
- The published split is by longitude: validation tiles are not neighbours of training tiles, but they lie on the same
  continent.
- Labels are of Level-1C. Level-2A was learned from simulation, and from tiles that a network labelled itself where such
  were packed; no labelled Level-2A tiles were at hand to measure it on.
- The same tiles chose the best epoch and calibrated the file, except where a table says that other halves were used."""  # noqa: E501


def write_card(model: ModelFile, assessments: Sequence[Path], out: Path, more: Sequence[Path] = ()) -> None:
    """Write the card of `model` as Markdown.

    Args:
        assessments: folders that `tilewise assess --out` wrote, of this file or of the INT8 file beside it.
        more: Markdown files that are appended as they are, e.g. the speed benchmark's table.

    Raises:
        ModelFileError: an assessment is missing, or of another file.
    """
    metadata = model.metadata
    parts = [
        _head(model),
        "## For what",
        _INTENDED,
        "## Limits",
        _LIMITS,
        "## Data and licences",
        _data(metadata),
    ]
    parts += [_assessment(folder, model) for folder in assessments]
    parts += [_text(path) for path in more]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n\n".join(parts).rstrip() + "\n", encoding="utf-8")


def _head(model: ModelFile) -> str:
    metadata = model.metadata
    sets = (
        ", ".join(f"{100 * c:g}%" for c in metadata.prediction_sets.thresholds)
        if metadata.prediction_sets
        else "none"
    )
    facts = {
        "network": metadata.network,
        "began with": metadata.ancestry or "drawn weights",
        "classes": ", ".join(metadata.classes),
        "bands": ", ".join(metadata.trained_bands) + " (any of them may be absent)",
        "file": f"{model.path.name}, {model.path.stat().st_size / 1e6:.1f} MB, SHA-256 `{model.sha256}`",
        "made": f"{metadata.created}, code revision `{metadata.code_revision[:12]}`",
        "trained on": f"the data `{metadata.data_hash[:12]}`"
        + (" (synthetic)" if metadata.synthetic else ""),
        "temperature": f"{metadata.temperature:.3f}",
        "prediction sets": f"{metadata.prediction_sets.method if metadata.prediction_sets else 'none'}, for "
        f"{sets}",
        "outliers": metadata.outliers.method if metadata.outliers else "not calibrated",
    }
    lines = "\n".join(f"| {name} | {text} |" for name, text in facts.items())
    return f"# {metadata.name} {metadata.version}\n\n| | |\n|---|---|\n{lines}"


def _data(metadata: ModelMetadata) -> str:
    began = (
        f" Training began with published weights ({metadata.ancestry}), whose licence applies too."
        if metadata.ancestry
        else ""
    )
    return (
        f"The weights are licensed {metadata.licence or 'as the data'}. The tiles that trained them are "
        f"EuroSAT's\n"
        "(Helber et al. 2019, doi:10.1109/JSTARS.2019.2918242; MIT) where the data are not said to be "
        "synthetic; they\n"
        f"contain modified Copernicus Sentinel data.{began}"
    )


def _assessment(folder: Path, model: ModelFile) -> str:
    """Return an assessment's Markdown, if it is of this file or of the INT8 file beside it."""
    path = folder / f"{ASSESSMENT}.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        text = path.with_suffix(".md").read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path}: no assessment; `tilewise assess --out {folder}` writes one") from error
    int8 = int8_of(model.path)
    known = {model.sha256, *([hashlib.sha256(int8.read_bytes()).hexdigest()] if int8.is_file() else [])}
    if not isinstance(found, dict) or found.get("sha256") not in known:
        raise ModelFileError(
            f"{path}: is of neither {model.path} nor an INT8 file beside it; assess them again"
        )
    return text


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read; name a Markdown file") from error


@click.command(context_settings=CONTEXT)
@model_option
@click.option(
    "--assessment",
    "assessments",
    type=FOLDER,
    multiple=True,
    help="Folder that `tilewise assess --out` wrote, repeatable: for the INT8 file's.",
)
@click.option(
    "--append", "append", type=FILE, multiple=True, help="Markdown file to put at the end, repeatable."
)
@click.option("--out", "out", type=FILE, help="The card. Default: README.md beside the model file.")
@one_line_errors
def card(
    model: str | None, assessments: tuple[Path, ...], append: tuple[Path, ...], out: Path | None
) -> None:
    """Write the card of a model file: what it is, what it is for, and all its measurements.

    Without --out, the model's STAC item (model.stac.json), for programs, is written too.

    \b
      tilewise assess --model model.onnx --data data/packed --split val --out assessment
      tilewise card --model model.onnx --assessment assessment
    """
    path = find_model(model)
    target = out or path.with_name("README.md")
    write_card(open_model(path), assessments, target, append)
    click.echo(f"the card is {target}")
    if not out:
        click.echo(f"the STAC item is {write_model_item(path)}")
