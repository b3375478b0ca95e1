"""Write the data card of a pack: its tiles, sources, licences, splits, bands, corrections and validation.

After Gebru et al. 2021, "Datasheets for Datasets", arXiv:1803.09010. Everything on it is in the pack's own
files (`tilewise.datasets.packs.pack`) or is computed from them, so that a pack without its sources has a card
too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rasterio.errors import RasterioError
from rasterio.warp import transform_bounds

from tilewise.datasets.core.errors import PackError
from tilewise.datasets.core.files import atomic_write
from tilewise.datasets.packs.pack import INDEX, Pack
from tilewise.datasets.packs.splits import SplitMethod, shown_splits

if TYPE_CHECKING:
    from tilewise.datasets.quality.validate import ValidationReport
    from tilewise.datasets.readers.records import Bounds

_MAX_NAMED = 50  # relabelled tiles
_PERCENTILES = ("1", "50", "99")
_HOW_SPLIT = {
    SplitMethod.RANDOM: "at random. Tiles of the same place may be in several splits: test figures flatter.",
    SplitMethod.SPATIAL: "by spatial blocks. Tiles of one block are in one split.",
    SplitMethod.LISTS: "by published lists of names.",
}
_EXTENT = ("west", "south", "east", "north")


def write_card(pack: Pack, report: ValidationReport, out: Path) -> None:
    """Write the data card of `pack` as Markdown, whole or not at all.

    Args:
        pack: the pack.
        report: its validation (`tilewise.datasets.quality.validate.validate_pack`).
        out: path of the card.

    Raises:
        PackError: the index or the statistics are incomplete.
    """
    parts = [
        _head(pack, report),
        "## Sources and licences",
        _sources(pack),
        "## Classes and splits",
        _classes(pack),
        "## Extent",
        _extents(pack),
        "## Bands",
        _bands(pack),
        "## Corrections",
        _corrections(pack),
        "## Validation",
        _validation(report),
    ]
    with atomic_write(out) as partial:
        partial.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _head(pack: Pack, report: ValidationReport) -> str:
    summary = pack.summary
    nature = "**synthetic**: all or some are computed, not observed" if summary.synthetic else "observations"
    facts = [
        ("tiles", f"{summary.tiles:,} of 64 × 64 pixels, {nature}"),
        ("values", f"DN = reflectance × 10 000, uint16, 0 = no data; {summary.planes:,} planes of one band"),
        ("classes", f"{len(summary.classes)}: {', '.join(summary.classes)}"),
        ("data hash", f"`{summary.data_hash}` (of pixels, names, classes and splits)"),
        ("corrections", f"{summary.relabelled:,} relabelled, {summary.left_out:,} left out"),
        ("validation", _verdict(report)),
    ]
    return f"# Data card of {pack.root.resolve().name}\n\n{_table(('', ''), facts)}"


def _sources(pack: Pack) -> str:
    unknown = "not declared by the folder that was packed"
    rows = [
        (
            item.name,
            item.format,
            item.licence or unknown,
            "; ".join(filter(None, (item.origin or unknown, item.notes))),
        )
        for item in pack.summary.origins
    ]
    outdated = "The pack was made before folders' licences were kept; pack again to have them here."
    table = _table(("folder", "format", "licence", "origin"), rows) if rows else outdated
    return f"{table}\n\n{_formats(pack)}"


def _formats(pack: Pack) -> str:
    """Return the number of tiles of each format, processing level and set of bands."""
    counts = Counter(
        (source, level, " ".join(bands)) for source, level, bands in _rows(pack, "source", "level", "bands")
    )
    rows = [
        (source, level or "unknown", bands, f"{n:,}") for (source, level, bands), n in sorted(counts.items())
    ]
    return _table(("format", "level", "bands", "tiles"), rows, numbers=1)


def _classes(pack: Pack) -> str:
    counts = pack.summary.counts
    splits, rows = shown_splits(counts), []
    for label in pack.summary.classes:
        each = [counts.get(split, {}).get(label, 0) for split in splits]
        rows.append((label, *(f"{count:,}" for count in (*each, sum(each)))))
    totals = [sum(counts.get(split, {}).values()) for split in splits]
    rows.append(("all", *(f"{count:,}" for count in (*totals, sum(totals)))))
    table = _table(("class", *splits, "all"), rows, numbers=len(splits) + 1)
    return f"{table}\n\nThe tiles were divided {_how_split(pack.summary.split_method)}"


def _how_split(method: str) -> str:
    return _HOW_SPLIT[SplitMethod(method)] if method in list(SplitMethod) else f"by `{method}`."


def _extents(pack: Pack) -> str:
    """Return the extent of the tiles of each CRS, in degrees."""
    extents: dict[str, list[Bounds]] = defaultdict(list)
    for crs, left, bottom, right, top in _rows(pack, "crs", "left", "bottom", "right", "top"):
        extents["" if None in (left, bottom, right, top) else crs].append((left, bottom, right, top))
    rows = [
        (crs or "none", f"{len(found):,}", *_extent(crs, found)) for crs, found in sorted(extents.items())
    ]
    return _table(("CRS", "tiles", *_EXTENT), rows, numbers=1 + len(_EXTENT))


def _extent(crs: str, found: Sequence[Bounds]) -> tuple[str, ...]:
    if not crs:
        return ("",) * len(_EXTENT)
    left, bottom, right, top = zip(*found, strict=True)
    try:
        degrees = transform_bounds(crs, "EPSG:4326", min(left), min(bottom), max(right), max(top))
    except RasterioError:  # a CRS that this PROJ does not know must not prevent the card
        return ("?",) * len(_EXTENT)
    return tuple(f"{value:.2f}" for value in degrees)


def _bands(pack: Pack) -> str:
    rows = [
        (
            band["band"],
            f"{band['tiles']:,}",
            f"{band['no_data']:.2%}",
            *(f"{band[name]:,.0f}" for name in ("mean", "std", "low")),
            *(f"{band['percentiles'][percentile]:,.0f}" for percentile in _PERCENTILES),
            f"{band['high']:,.0f}",
        )
        for band in pack.statistics()
    ]
    headers = ("band", "tiles", "no data", "mean", "std", "min", *(f"{p} %" for p in _PERCENTILES), "max")
    caption = "Valid pixels of the train split, in DN; percentiles are interpolated in a histogram."
    return f"{caption}\n\n{_table(headers, rows, numbers=len(headers) - 1)}"


def _corrections(pack: Pack) -> str:
    summary = pack.summary
    if not summary.relabelled and not summary.left_out:
        return "None: every tile has the class of its folder."
    text = f"Reviewed labels: {summary.relabelled:,} files have another class, {summary.left_out:,} are out."
    if "given" not in pack.index.column_names:
        return text
    rows = sorted({row for row in _rows(pack, "name", "given", "label") if row[1] and row[1] != row[2]})
    more = f"\n\nand {len(rows) - _MAX_NAMED:,} more." if len(rows) > _MAX_NAMED else ""
    return f"{text}\n\n{_table(('tile', 'folder', 'class now'), rows[:_MAX_NAMED])}{more}" if rows else text


def _validation(report: ValidationReport) -> str:
    text = f"Index, pixels and card against the schema and their hashes: {_verdict(report)}."
    rows = [(item.severity, item.check, f"{item.count:,}", item.message) for item in report.findings]
    return f"{text}\n\n{_table(('severity', 'check', 'tiles', 'what'), rows)}" if rows else text


def _rows(pack: Pack, *columns: str) -> Iterator[tuple[Any, ...]]:
    """Return the named columns of the index, tile by tile.

    Raises:
        PackError: the index lacks one.
    """
    lacking = set(columns) - set(pack.index.column_names)
    if lacking:
        raise PackError(f"{pack.root / INDEX}: has no {', '.join(sorted(lacking))}; pack again")
    return zip(*(pack.index[name].to_pylist() for name in columns), strict=True)


def _verdict(report: ValidationReport) -> str:
    return "**failed**" if report.failed else "passed"


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """Return a table of Markdown whose last `numbers` columns are right-aligned."""
    rule = ["---"] * (len(headers) - numbers) + ["---:"] * numbers
    return "\n".join(_row(cells) for cells in (headers, rule, *([*map(_cell, row)] for row in rows)))


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    """Escape a text, such as a folder's name, so that it neither ends the cell nor is markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
