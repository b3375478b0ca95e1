"""What is told of a whole run: a summary for programs and spreadsheets, and a page for people.

The page holds its pictures and styles itself and asks no server for anything; a policy in its head makes sure of that.
"""

import base64
import csv
import io
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from tilewise.bento.batch.manifest import SceneOutcome, State
from tilewise.bento.results import quicklook
from tilewise.bento.results.maps import colours, whole
from tilewise.bento.results.writer import ModelFacts

SUMMARY, TABLE, PAGE = "summary.json", "summary.csv", "report.html"
_MAX_PICTURES = 60
_PICTURE = 480  # pixels wide
_DIGITS = 4

_STYLE = """
:root { color-scheme: light; --ink: #1e2428; --faint: #66727a; --line: #dde3e6; --bad: #a32018; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem }
p, dd { margin: 0 } .faint { color: var(--faint) } .bad { color: var(--bad) }
.wide { overflow-x: auto } table { border-collapse: collapse; width: 100% }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap }
td.why { white-space: normal; overflow-wrap: anywhere; min-width: 20rem }
.number { text-align: right; font-variant-numeric: tabular-nums }
.bar { display: flex; height: 1.4rem; border-radius: 3px; overflow: hidden; margin: .4rem 0 }
.tone { display: inline-block; width: .9em; height: .9em; margin-right: .4em }
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem }
figure { margin: 0; border: 1px solid var(--line); border-radius: 4px; padding: .6rem }
figure img { width: 100%; display: block } figcaption { overflow-wrap: anywhere }
"""


def write_reports(out: Path, outcomes: Sequence[SceneOutcome], model: ModelFacts) -> list[Path]:
    """Write the summary (JSON and CSV) and the page of a run into `out`, each whole or not at all.

    They say nothing of when they were written, and scenes that were kept are told as they were when they were done:
    the same command again writes the same bytes.

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
        with whole(out / name) as partial:
            partial.write_text(text, encoding="utf-8", newline="")
    return [out / name for name in texts]


def summarise(outcomes: Sequence[SceneOutcome], model: ModelFacts) -> dict[str, Any]:
    """Return a run, JSON-ready: totals, the model, and every scene."""
    return {
        "model": {
            "name": model.metadata.name,
            "version": model.metadata.version,
            "sha256": model.sha256,
            "synthetic": model.metadata.synthetic,
        },
        "scenes": len(outcomes),
        "failed": sum(outcome.state is State.FAILED for outcome in outcomes),
        **_totals(outcomes),
        "area_ha": _areas(outcomes, model),
        "results": [_describe(outcome) for outcome in outcomes],
    }


def tabulate(outcomes: Sequence[SceneOutcome], model: ModelFacts) -> str:
    """Return a run as CSV: one row a scene, one column of hectares a class."""
    classes = model.metadata.classes
    text = io.StringIO()
    # Spreadsheets take a text that begins with = + - @ for a formula; names of files may begin so.
    writer = csv.writer(text, lineterminator="\n")
    head = ["name", "source", "state", "windows", "skipped_fraction", "broken", "outliers", "seconds", "model_sha256"]
    writer.writerow([*head, *(_inert(f"{name}_ha") for name in classes), "error"])
    for outcome in outcomes:
        told = {**_describe(outcome), "model_sha256": model.sha256}
        areas = [outcome.area_ha.get(name, 0.0) for name in classes]
        writer.writerow([_inert(told[column]) for column in head] + [*areas, _inert(outcome.error or "")])
    return text.getvalue()


def draw_page(out: Path, outcomes: Sequence[SceneOutcome], model: ModelFacts) -> str:
    """Return the page as HTML; pictures are taken from the results in `out`."""
    failed = [outcome for outcome in outcomes if not outcome.is_sound]
    totals = _totals(outcomes)
    done = sum(outcome.state is not State.FAILED for outcome in outcomes)
    title = f"{done:,} of {len(outcomes):,} scenes classified"
    metadata = model.metadata
    synthetic = '<p class="bad">This model was trained on synthetic tiles: a demonstration, no product.</p>'
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">",
        f"<title>{title}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        f'<p class="faint">{escape(metadata.name)} {escape(metadata.version)}, SHA-256 {model.sha256[:16]}…, '
        f"{totals['windows']:,} windows, {100 * totals['skipped_fraction']:.1f} % skipped, {totals['seconds']:,.1f} s</p>",
        synthetic if metadata.synthetic else "",
        _draw_failures(failed),
        "<h2>Area</h2>",
        _draw_areas(outcomes, model),
        "<h2>Scenes</h2>",
        _draw_table(outcomes),
        "<h2>Maps</h2>",
        _draw_maps(out, outcomes),
        "</body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _describe(outcome: SceneOutcome) -> dict[str, Any]:
    return {
        "name": outcome.name,
        "source": outcome.source,
        "state": "failed" if outcome.state is State.FAILED else "done",
        "windows": outcome.windows,
        "skipped": outcome.skipped,
        "skipped_fraction": round(outcome.skipped_fraction, _DIGITS),
        "broken": outcome.broken,
        "outliers": outcome.outliers,
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
    areas = {name: sum(o.area_ha.get(name, 0.0) for o in outcomes) for name in model.metadata.classes}
    return {name: round(area, _DIGITS) for name, area in areas.items()}


def _inert(value: Any) -> Any:
    """Return a cell of a spreadsheet that is nothing but text or a number."""
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") and value else value


def _draw_failures(failed: Sequence[SceneOutcome]) -> str:
    if not failed:
        return ""
    rows = "".join(
        f'<tr><td>{escape(outcome.name)}</td><td class="why bad">'
        f"{escape(outcome.error or f'{outcome.broken} blocks could not be decoded and are no data')}</td></tr>"
        for outcome in failed
    )
    return f'<h2>{len(failed)} with failures</h2><div class="wide"><table>{rows}</table></div>'


def _draw_areas(outcomes: Sequence[SceneOutcome], model: ModelFacts) -> str:
    areas = _areas(outcomes, model)
    total = sum(areas.values())
    if not total:
        return '<p class="faint">No pixel has a class.</p>'
    tones = {name: "rgb({}, {}, {})".format(*tone) for name, tone in zip(areas, colours(list(areas)), strict=True)}
    bar = "".join(f'<div style="width:{100 * areas[n] / total:.3f}%;background:{tones[n]}"></div>' for n in areas)
    rows = "".join(
        f'<tr><td><i class="tone" style="background:{tones[name]}"></i>{escape(name)}'
        f'</td><td class="number">{area:,.1f} ha</td><td class="number">{100 * area / total:.1f} %</td></tr>'
        for name, area in areas.items()
    )
    return f'<div class="bar">{bar}</div><div class="wide"><table>{rows}</table></div>'


def _draw_table(outcomes: Sequence[SceneOutcome]) -> str:
    heads = ("windows", "skipped", "broken blocks", "unfamiliar", "seconds", "largest class")
    rows = []
    for outcome in outcomes:
        largest = max(outcome.area_ha, key=lambda name: outcome.area_ha[name], default="–")
        state = '<span class="bad">failed</span>' if outcome.state is State.FAILED else "done"
        numbers = (
            f"{outcome.windows:,}",
            f"{100 * outcome.skipped_fraction:.1f} %",
            f"{outcome.broken:,}",
            f"{outcome.outliers:,}",
            f"{outcome.seconds:,.1f}",
        )
        cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
        rows.append(f"<tr><td>{escape(outcome.name)}</td><td>{state}</td>{cells}<td>{escape(largest)}</td></tr>")
    head = "".join(f'<th class="number">{name}</th>' for name in heads[:-1])
    return (
        f'<div class="wide"><table><tr><th>scene</th><th>state</th>{head}<th>{heads[-1]}</th></tr>'
        f"{''.join(rows)}</table></div>"
    )


def _draw_maps(out: Path, outcomes: Sequence[SceneOutcome]) -> str:
    pictured = [o for o in outcomes if any(file.name.endswith(quicklook.SUFFIX) for file in o.files)]
    if not pictured:
        return '<p class="faint">No pictures were asked for.</p>'
    figures = "".join(_draw_map(out, outcome.name) for outcome in pictured[:_MAX_PICTURES])
    more = len(pictured) - _MAX_PICTURES
    note = f'<p class="faint">{more:,} more maps lie in the folder.</p>' if more > 0 else ""
    return f'<div class="maps">{figures}</div>{note}'


def _draw_map(out: Path, name: str) -> str:
    picture = _data_uri(out / (name + quicklook.SUFFIX))
    alternative = f"Class map of {escape(name)}"
    return f'<figure><img alt="{alternative}" src="{picture}"><figcaption>{escape(name)}</figcaption></figure>'


def _data_uri(picture: Path) -> str:
    """Return a smaller copy of a picture as part of the page; an empty one if it has vanished."""
    try:
        with Image.open(picture) as image:
            image.thumbnail((_PICTURE, 4 * _PICTURE))
            small = io.BytesIO()
            image.save(small, format="PNG", optimize=True)
    except OSError:
        return "data:,"
    return f"data:image/png;base64,{base64.b64encode(small.getvalue()).decode()}"
