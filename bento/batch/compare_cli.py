"""`tilewise compare`: what changed between the maps of two dates."""

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.table import Table
from shapely.geometry import shape

from tilewise.bento.batch.report import inert, share_ground
from tilewise.bento.results.compare import ClassMap, Comparison, compare_maps, open_class_map
from tilewise.bento.results.maps import UNLIKE
from tilewise.datasets.core.console import CONTEXT, FOLDER, one_line_errors, out_option, print_table
from tilewise.datasets.core.errors import ResultsError
from tilewise.datasets.core.files import atomic_write

TABLE, SUMMARY = "compare.csv", "compare.json"
_MAPS = click.Path(path_type=Path, exists=True)
_DIGITS = 4


@click.command(context_settings=CONTEXT)
@click.argument("maps_a", metavar="MAPS_A", type=_MAPS)
@click.argument("maps_b", metavar="MAPS_B", type=_MAPS)
@out_option(FOLDER, "Folder of the tables, maps and pictures of changes.")
@click.option(
    "--align",
    "align",
    is_flag=True,
    help="Where two maps have different grids, bring that of MAPS_B to that of MAPS_A by nearest neighbour.",
)
@click.option("--json", "as_json", is_flag=True, help="Print compare.json on standard output, no tables.")
@one_line_errors
def compare(maps_a: Path, maps_b: Path, out: Path, align: bool, as_json: bool) -> None:
    """Compare the class maps MAPS_A (before) with MAPS_B (after): what became what, in hectares.

    Each is a NAME.classes.tif, or a folder of results of `tilewise batch`, whose maps are matched by place:
    two maps that share more than half of their ground. Written into the folder --out:

    \b
      compare.csv, compare.json   hectares from class to class, with uncertainty
      NAME.changes.tif            map: 0 unchanged, 1 + before × classes + after, 65535 not compared
      NAME.changes.qml            its style, which QGIS loads with it
      NAME.changes.png            picture: what changed, in the colour of its new class

    What is no data, cloud, or unlike the training data in either map never counts as change.

    Uncertainty needs NAME.probability.tif beside both maps. expected_ha: hectares for which both classes are
    expected to be right, the sum of the products of both probabilities; sd_ha: its standard deviation, where
    errors go by squares of 640 m. docs/batch.md gives the source and what it leaves out.

    \b
      tilewise compare maps2022 maps2025 --out changes
      tilewise compare maps/a.classes.tif maps/b.classes.tif --out changes --align

    Exit status: 0 compared; 1 maps cannot be compared; 2 usage error; 130 stopped by Ctrl-C.
    """
    pairs, unmatched = match(_maps_in(maps_a), _maps_in(maps_b))
    for class_map in unmatched:
        click.echo(f"note: {class_map.path}: no map of this place on the other side", err=True)
    if not pairs:
        raise ResultsError(f"no map in {maps_a} shares more than half of its ground with one in {maps_b}")
    out.mkdir(parents=True, exist_ok=True)
    found = [compare_maps(before, after, out, align=align) for before, after in pairs]
    summary = json.dumps([describe(comparison) for comparison in found], indent=1, ensure_ascii=False) + "\n"
    for name, text in ((TABLE, tabulate(found)), (SUMMARY, summary)):
        with atomic_write(out / name) as partial:
            partial.write_text(text, encoding="utf-8", newline="")
    if as_json:
        sys.stdout.write(summary)
        return
    for comparison in found:
        _print(comparison)


def _maps_in(place: Path) -> list[ClassMap]:
    paths = sorted(place.glob("*.classes.tif")) if place.is_dir() else [place]
    if not paths:
        raise ResultsError(f"{place} holds no NAME.classes.tif; `tilewise batch --out {place}` writes them")
    return [open_class_map(path) for path in paths]


def match(
    before: Sequence[ClassMap], after: Sequence[ClassMap]
) -> tuple[list[tuple[ClassMap, ClassMap]], list[ClassMap]]:
    """Return pairs of maps of one place, and the maps without a partner.

    Raises:
        ResultsError: several maps of one place are on one side.
    """
    pairs = [(one, other) for one in before for other in after if _same_place(one, other)]
    for index, side in enumerate((before, after)):
        for class_map in side:
            partners = [pair[1 - index].path for pair in pairs if pair[index] is class_map]
            if len(partners) > 1:
                raise ResultsError(
                    f"{class_map.path} shares its ground with {len(partners)} maps "
                    f"({', '.join(map(str, partners))}); give the two files to compare"
                )
    paired = [id(class_map) for pair in pairs for class_map in pair]
    return pairs, [class_map for class_map in (*before, *after) if id(class_map) not in paired]


def _same_place(one: ClassMap, other: ClassMap) -> bool:
    infos = (one.scene_info, other.scene_info)
    outlines = [info.georeference.footprint(info.width, info.height) for info in infos]
    return share_ground(*(shape(outline) if outline else None for outline in outlines))


def describe(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison JSON-ready; `changes` holds every pair of classes that occurs."""
    hectares, expected = comparison.hectares, comparison.expected_ha
    return {
        "before": str(comparison.before.path),
        "after": str(comparison.after.path),
        "notes": list(comparison.notes),
        "compared_ha": _round(hectares.sum()),
        "changed_ha": _round(comparison.changed(hectares)),
        "changed_expected_ha": None if expected is None else _round(comparison.changed(expected)),
        "changed_sd_ha": _round(comparison.changed_sd_ha),
        "not_compared_ha": {"no_data": _round(comparison.no_data_ha), UNLIKE: _round(comparison.unlike_ha)},
        "changes": list(_cells(comparison)),
        "files": [file.name for file in comparison.files],
    }


def _cells(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """Yield before, after, hectares and uncertainty of every pair of classes that occurs."""
    classes = comparison.before.classes
    for row, column in np.argwhere(comparison.hectares > 0):
        expected, sd = (
            None if areas is None else _round(areas[row, column])
            for areas in (comparison.expected_ha, comparison.sd_ha)
        )
        yield {
            "before": classes[row],
            "after": classes[column],
            "ha": _round(comparison.hectares[row, column]),
            "expected_ha": expected,
            "sd_ha": sd,
        }


def _round(area: float | None) -> float | None:
    return None if area is None else round(float(area), _DIGITS)


def tabulate(comparisons: Sequence[Comparison]) -> str:
    """Return all comparisons as CSV: one row for every pair of classes that occurs, changed or not."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["map_before", "map_after", "before", "after", "ha", "expected_ha", "sd_ha"])
    for comparison in comparisons:
        names = [class_map.scene_info.name for class_map in (comparison.before, comparison.after)]
        writer.writerows([inert(value) for value in (*names, *cell.values())] for cell in _cells(comparison))
    return text.getvalue()


def _print(comparison: Comparison) -> None:
    """Print the change matrix and what it sums up to."""
    names = [class_map.scene_info.name for class_map in (comparison.before, comparison.after)]
    if comparison.hectares.any():
        _print_matrix(comparison, f"{names[0]} to {names[1]}, hectares")
    else:
        click.echo(f"{names[0]} to {names[1]}: no pixel has a class in both maps")
    not_compared = describe(comparison)["not_compared_ha"]
    click.echo(
        f"not compared: {not_compared['no_data']:,.1f} ha no data, {not_compared[UNLIKE]:,.1f} ha unlike the "
        "training data"
    )
    for note in comparison.notes:
        click.echo(f"note: {note}", err=True)


def _print_matrix(comparison: Comparison, title: str) -> None:
    classes, hectares = comparison.before.classes, comparison.hectares
    used = [i for i in range(len(classes)) if hectares[i].any() or hectares[:, i].any()]
    table = Table("before ↓  after →", title=title)
    for column in used:
        table.add_column(classes[column], justify="right")
    for row in used:
        table.add_row(classes[row], *(f"{hectares[row, c]:,.1f}" if hectares[row, c] else "" for c in used))
    print_table(table)
    summary = describe(comparison)
    expected, sd = summary["changed_expected_ha"], summary["changed_sd_ha"]
    expectation = (
        "" if expected is None else f"; both maps are expected to be right in {expected:,.1f} ± {sd:,.1f} ha"
    )
    click.echo(f"changed: {summary['changed_ha']:,.1f} of {summary['compared_ha']:,.1f} ha{expectation}")
