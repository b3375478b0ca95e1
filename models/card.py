"""The card of a model: what it is, what it was measured to do, what it is not for. Written from files, not by hand.

After Mitchell et al. 2019, "Model Cards for Model Reporting", arXiv:1810.03993.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from datasets.errors import ModelFileError
from models.modelfile import ModelFile, ModelMetadata
from models.precision import int8_of

ASSESSMENT = "assessment"  # what `python -m training assess --out` calls its files, .md and .json

_INTENDED = """\
For Sentinel-2 tiles of 64 × 64 pixels at about 10 m, Level-1C or Level-2A, with any of the bands that it was trained
on: which of the classes covers the tile. A band is known by its name and reflectance by its scale; the service and the
batch command take care of both. Where prediction sets hold several classes, or the outlier score is above its
threshold, a person should look.

Not for: objects smaller than a tile, change from one pixel to the next, other sensors or pixel sizes, and decisions
about people or land that nobody checks."""

_LIMITS = """\
- It knows the classes above and no other: wetland, bare rock, snow and cloud are answered with one of them; the
  outlier score is there to say so, and does not always.
- EuroSAT's tiles are of 34 European countries and were chosen to show one class each. Elsewhere, and where land is
  mixed, expect less than the figures below.
- The published split is by longitude: validation tiles are not neighbours of training tiles, but they lie on the same
  continent.
- Labels are of Level-1C. Level-2A was learned from simulation, and from tiles that a network labelled itself where such
  were packed; no labelled Level-2A tiles were at hand to measure it on.
- The same tiles chose the best epoch and calibrated the file, except where a table says that other halves were used."""


def write_card(model: ModelFile, assessments: Sequence[Path], out: Path, more: Sequence[Path] = ()) -> None:
    """Write the card of `model` as Markdown.

    Args:
        assessments: folders that `python -m training assess --out` wrote, of this file or of the INT8 file beside it.
        more: Markdown files that are appended as they are, e.g. the speed benchmark's table.

    Raises:
        ModelFileError: an assessment is missing, or of another file.
    """
    metadata = model.metadata
    parts = [_head(model), "## For what", _INTENDED, "## Limits", _LIMITS, "## Data and licences", _data(metadata)]
    parts += [_assessment(folder, model) for folder in assessments]
    parts += [_text(path) for path in more]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n\n".join(parts).rstrip() + "\n", encoding="utf-8")


def _head(model: ModelFile) -> str:
    metadata = model.metadata
    sets = ", ".join(f"{c:.0%}" for c in metadata.prediction_sets.thresholds) if metadata.prediction_sets else "none"
    facts = {
        "network": metadata.network,
        "classes": ", ".join(metadata.classes),
        "bands": ", ".join(metadata.trained_bands) + " (any of them may be absent)",
        "file": f"{model.path.name}, {model.path.stat().st_size / 1e6:.1f} MB, SHA-256 `{model.sha256}`",
        "made": f"{metadata.created}, code revision `{metadata.code_revision[:12]}`",
        "trained on": f"the data `{metadata.data_hash[:12]}`" + (" (synthetic)" if metadata.synthetic else ""),
        "temperature": f"{metadata.temperature:.3f}",
        "prediction sets": f"{metadata.prediction_sets.method if metadata.prediction_sets else 'none'}, for {sets}",
        "outliers": metadata.outliers.method if metadata.outliers else "not calibrated",
    }
    lines = "\n".join(f"| {name} | {text} |" for name, text in facts.items())
    return f"# {metadata.name} {metadata.version}\n\n| | |\n|---|---|\n{lines}"


def _data(metadata: ModelMetadata) -> str:
    return (
        f"The weights are licensed {metadata.licence or 'as the data'}. The tiles that trained them are EuroSAT's\n"
        "(Helber et al. 2019, doi:10.1109/JSTARS.2019.2918242; MIT) where the data are not said to be synthetic; they\n"
        "contain modified Copernicus Sentinel data."
    )


def _assessment(folder: Path, model: ModelFile) -> str:
    """Return an assessment's Markdown, if it is of this file or of the INT8 file beside it."""
    path = folder / f"{ASSESSMENT}.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        text = path.with_suffix(".md").read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path}: no assessment; `python -m training assess --out {folder}` writes one") from error
    int8 = int8_of(model.path)
    known = {model.sha256, *([hashlib.sha256(int8.read_bytes()).hexdigest()] if int8.is_file() else [])}
    if not isinstance(found, dict) or found.get("sha256") not in known:
        raise ModelFileError(f"{path}: is of neither {model.path} nor an INT8 file beside it; assess them again")
    return text


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read; name a Markdown file") from error
