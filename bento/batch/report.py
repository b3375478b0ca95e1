"""The report of a run: a summary for programs (JSON) and spreadsheets (CSV), and an HTML page for people.

The page contains its pictures and styles and loads nothing; a content security policy in its head enforces
that.
"""

import base64
import csv
import io
import json
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, Template
from PIL import Image
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from tilewise.bento.batch.manifest import SceneOutcome, SceneState
from tilewise.bento.results import quicklook
from tilewise.bento.results.maps import UNLIKE, UNLIKE_COLOUR
from tilewise.bento.results.writer import ModelFacts
from tilewise.datasets.core.files import atomic_write
from tilewise.models.class_colours import colours

_HATCH = "repeating-linear-gradient(45deg, rgb({}, {}, {}) 0 4px, #1e2428 4px 5px)".format(*UNLIKE_COLOUR)
SUMMARY, TABLE, PAGE = "summary.json", "summary.csv", "report.html"
_MAX_PICTURES = 60
_PICTURE_WIDTH = 480  # pixels
_WIDTH, _HEIGHT = 900, 220  # of the figure of a time series
_NARROWEST, _BAR, _LABEL = 3, 36, 90  # a bar's widths; the least distance between two dates that are written
_DIGITS = 4
_SAME_PLACE = 0.5  # of the smaller outline; neighbouring granules share about a tenth of theirs


def write_reports(out: Path, outcomes: Sequence[SceneOutcome], model: ModelFacts) -> list[Path]:
    """Write the summary (JSON and CSV) and the HTML page of a run into `out`, each whole or not at all.

    They do not say when they were written, and kept scenes are reported as when they were classified: the
    same command again writes the same bytes.

    Raises:
        OSError: the disk does not take them.
    """
    outcomes = sorted(outcomes, key=lambda outcome: outcome.name)
    texts = {
        SUMMARY: json.dumps(summarise(outcomes, model), indent=1, ensure_ascii=False) + "\n",
        TABLE: tabulate(outcomes, model),
        PAGE: draw_page(out, outcomes, model),
    }
    for name, text in texts.items():
        with atomic_write(out / name) as partial:
            partial.write_text(text, encoding="utf-8", newline="")
    return [out / name for name in texts]


def summarise(outcomes: Sequence[SceneOutcome], model: ModelFacts) -> dict[str, Any]:
    """Return the summary of a run JSON-ready: the model, totals, and every scene."""
    return {
        "model": {
            "name": model.metadata.name,
            "version": model.metadata.version,
            "sha256": model.sha256,
            "synthetic": model.metadata.synthetic,
        },
        "scenes": len(outcomes),
        "failed": sum(outcome.state is SceneState.FAILED for outcome in outcomes),
        **_totals(outcomes),
        "places": len(_places(outcomes)),
        "area_ha": _areas(outcomes, model),
        "time_series": [_describe_series(scenes) for scenes in _series(outcomes)],
        "results": [_describe(outcome) for outcome in outcomes],
    }


def tabulate(outcomes: Sequence[SceneOutcome], model: ModelFacts) -> str:
    """Return the summary of a run as CSV: one row a scene, one column of hectares a class and of UNLIKE."""
    classes = (*model.metadata.classes, UNLIKE)
    text = io.StringIO()
    # Spreadsheets take text that begins with = + - @ for a formula, and file names may begin so.
    writer = csv.writer(text, lineterminator="\n")
    head = [
        "name",
        "source",
        "state",
        "windows",
        "skipped_fraction",
        "broken",
        "outliers",
        "taken",
        "clouds",
        "seconds",
        "model_sha256",
    ]
    writer.writerow([*head, *(inert(f"{name}_ha") for name in classes), "error"])
    for outcome in outcomes:
        row = {**_describe(outcome), "model_sha256": model.sha256}
        areas = [outcome.area_ha.get(name, 0.0) for name in classes]
        writer.writerow([inert(row[column]) for column in head] + [*areas, inert(outcome.error or "")])
    return text.getvalue()


def draw_page(out: Path, outcomes: Sequence[SceneOutcome], model: ModelFacts) -> str:
    """Return the HTML page of a run; its pictures are read from the results in `out`."""
    classified = sum(outcome.state is not SceneState.FAILED for outcome in outcomes)
    pictured = [o.name for o in outcomes if any(file.name.endswith(quicklook.SUFFIX) for file in o.files)]
    return _template().render(
        title=f"{classified:,} of {len(outcomes):,} scenes classified",
        model=model,
        totals=_totals(outcomes),
        failed=[outcome for outcome in outcomes if not outcome.is_complete],
        areas=_area_rows(outcomes, model),
        places=len(_places(outcomes)),
        figures=[_figure(scenes, model) for scenes in _series(outcomes)[:_MAX_PICTURES]],
        figure_size=(_WIDTH, _HEIGHT),
        unlike="rgb({}, {}, {})".format(*UNLIKE_COLOUR),
        classified=classified,
        scenes=[{**_describe(outcome), "largest_class": _largest_class(outcome)} for outcome in outcomes],
        pictures=[
            {
                "name": name,
                "data": _data_uri(out / (name + quicklook.SUFFIX), "PNG"),
                "colour": _data_uri(out / (name + quicklook.COLOUR_SUFFIX), "JPEG"),
            }
            for name in pictured[:_MAX_PICTURES]
        ],
        more_pictures=len(pictured) - _MAX_PICTURES,
    )


def _template() -> Template:
    """Return the page's template, which escapes every value that it shows."""
    folder = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=folder, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template(
        PAGE
    )


def _describe(outcome: SceneOutcome) -> dict[str, Any]:
    return {
        "name": outcome.name,
        "source": outcome.source,
        "state": "failed" if outcome.state is SceneState.FAILED else "done",
        "windows": outcome.windows,
        "skipped": outcome.skipped,
        "skipped_fraction": round(outcome.skipped_fraction, _DIGITS),
        "broken": outcome.broken,
        "outliers": outcome.outliers,
        "taken": outcome.taken,
        "clouds": outcome.clouds or "none",
        "pixels": outcome.pixels,
        "seconds": outcome.seconds,
        "area_ha": outcome.area_ha,
        "files": [file.name for file in outcome.files],
        "error": outcome.error,
    }


def _totals(outcomes: Sequence[SceneOutcome]) -> dict[str, Any]:
    windows, skipped = sum(o.windows for o in outcomes), sum(o.skipped for o in outcomes)
    return {
        "windows": windows,
        "skipped_fraction": round(skipped / max(windows + skipped, 1), _DIGITS),
        "broken": sum(outcome.broken for outcome in outcomes),
        "outliers": sum(outcome.outliers for outcome in outcomes),
        "seconds": round(sum(outcome.seconds for outcome in outcomes), 3),
    }


def _areas(outcomes: Sequence[SceneOutcome], model: ModelFacts) -> dict[str, float]:
    """Return the hectares of every class and of UNLIKE; a place counts once, however many its dates."""
    names = (*model.metadata.classes, UNLIKE)
    areas = {name: sum(o.area_ha.get(name, 0.0) for o in _places(outcomes)) for name in names}
    return {name: round(area, _DIGITS) for name, area in areas.items()}


def _places(outcomes: Sequence[SceneOutcome]) -> list[SceneOutcome]:
    """Return one scene of each place: the one with the most hectares in classes."""
    return [scenes[0] for scenes in _by_place(outcomes)]


def _by_place(outcomes: Sequence[SceneOutcome]) -> list[list[SceneOutcome]]:
    """Return the scenes of each place, first the one with the most hectares in classes.

    Scenes are of one place where they share more than half of the smaller one. Scenes without a known outline
    are places of their own.
    """
    done = [outcome for outcome in outcomes if outcome.state is not SceneState.FAILED]
    places: list[tuple[BaseGeometry | None, list[SceneOutcome]]] = []
    for outcome in sorted(done, key=lambda o: (-_in_classes(o), o.name)):
        outline = shape(outcome.footprint) if outcome.footprint else None
        same = (scenes for other, scenes in places if share_ground(outline, other))
        if found := next(same, None):
            found.append(outcome)
        else:
            places.append((outline, [outcome]))
    return [scenes for _, scenes in places]


def _series(outcomes: Sequence[SceneOutcome]) -> list[list[SceneOutcome]]:
    """Return the scenes of each place that was seen on more than one date, in the order of their dates."""
    dated = (sorted((o for o in scenes if o.taken), key=_when) for scenes in _by_place(outcomes))
    found = [scenes for scenes in dated if len({o.taken for o in scenes}) > 1]
    return sorted(found, key=lambda scenes: scenes[0].name)


def _when(outcome: SceneOutcome) -> tuple[datetime, str]:
    return datetime.fromisoformat((outcome.taken or "").partition("/")[0]), outcome.name


def _describe_series(scenes: Sequence[SceneOutcome]) -> list[dict[str, Any]]:
    return [
        {"name": o.name, "taken": o.taken, "no_data_ha": o.no_data_ha, "area_ha": o.area_ha} for o in scenes
    ]


def _figure(scenes: Sequence[SceneOutcome], model: ModelFacts) -> dict[str, Any]:
    """Return what the page draws of a place's dates: a bar a date, its classes from the ground up.

    Bars stand where their dates are in time, and are as high as their hectares; what has no data is a gap
    with a dashed edge on top. Units are those of an SVG of _WIDTH × _HEIGHT.
    """
    days = [_when(scene)[0].timestamp() / 86_400 for scene in scenes]
    span = days[-1] - days[0]
    room = _WIDTH - 2 * _BAR
    middles = [_BAR + room * (day - days[0]) / span for day in days]
    gaps = [right - left for left, right in pairwise(middles) if right > left]
    width = max(_NARROWEST, min(_BAR, 0.9 * min(gaps)))
    highest = max(sum(scene.area_ha.values()) + (scene.no_data_ha or 0.0) for scene in scenes) or 1.0
    tones = dict(zip(model.metadata.classes, colours(model.metadata.classes), strict=True))
    bars, labelled = [], -float(_LABEL)
    for scene, middle in zip(scenes, middles, strict=True):
        parts = [
            (name, scene.area_ha.get(name, 0.0), "rgb({}, {}, {})".format(*t)) for name, t in tones.items()
        ]
        parts.append((UNLIKE, scene.area_ha.get(UNLIKE, 0.0), "url(#unlike)"))
        parts.append(("no data, cloud, skipped", scene.no_data_ha or 0.0, "none"))
        has_label = middle - labelled >= _LABEL
        labelled = middle if has_label else labelled
        label = (scene.taken or "")[:10]
        boxes = _stack(parts, _HEIGHT / highest)
        bars.append(
            {"x": middle - width / 2, "middle": middle, "date": label, "label": has_label, "boxes": boxes}
        )
    return {"title": scenes[0].name, "width": width, "highest": highest, "bars": bars}


def _stack(parts: Sequence[tuple[str, float, str]], scale: float) -> list[dict[str, Any]]:
    """Return boxes of (name, hectares, fill) upon one another, `scale` units a hectare; y points down."""
    boxes, top = [], float(_HEIGHT)
    for name, hectares, fill in parts:
        if hectares > 0:
            top -= hectares * scale
            height = hectares * scale
            boxes.append({"name": name, "hectares": hectares, "fill": fill, "y": top, "height": height})
    return boxes


def _in_classes(outcome: SceneOutcome) -> float:
    return sum(area for name, area in outcome.area_ha.items() if name != UNLIKE)


def share_ground(one: BaseGeometry | None, other: BaseGeometry | None) -> bool:
    """Return whether two outlines share more than half of the smaller one; False where one is unknown."""
    if one is None or other is None:
        return False
    return bool(one.intersection(other).area > _SAME_PLACE * min(one.area, other.area))


def inert(value: Any) -> Any:
    """Return a cell that spreadsheets take for text or a number, never for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") and value else value


def _area_rows(outcomes: Sequence[SceneOutcome], model: ModelFacts) -> list[dict[str, Any]]:
    """Return name, hectares, percentage and CSS background of every class, and of what is unlike all.

    Empty where no pixel has either.
    """
    areas = _areas(outcomes, model)
    total = sum(areas.values())
    if not total:
        return []
    tones = ["rgb({}, {}, {})".format(*colour) for colour in colours(model.metadata.classes)]
    rows = zip([*model.metadata.classes, UNLIKE], [*tones, _HATCH], strict=True)
    return [
        {
            "name": "Unlike the training data: no class is claimed" if name == UNLIKE else name,
            "hectares": areas[name],
            "percent": 100 * areas[name] / total,
            "background": tone,
        }
        for name, tone in rows
    ]


def _largest_class(outcome: SceneOutcome) -> str:
    classes = [name for name in outcome.area_ha if name != UNLIKE]
    return max(classes, key=lambda name: outcome.area_ha[name], default="–")


def _data_uri(picture: Path, form: str) -> str:
    """Return a smaller copy of a picture as a data URI; an empty text where there is no such file."""
    try:
        with Image.open(picture) as image:
            image.thumbnail((_PICTURE_WIDTH, 4 * _PICTURE_WIDTH))
            small = io.BytesIO()
            image.save(small, format=form, optimize=True)
    except OSError:
        return ""
    return f"data:image/{form.lower()};base64,{base64.b64encode(small.getvalue()).decode()}"
