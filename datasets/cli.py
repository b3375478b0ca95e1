"""`tilewise data`: from published archives, or from synthetic tiles, to a pack that training reads."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from tilewise.datasets.acquire import fetch as fetching
from tilewise.datasets.acquire import synthetic
from tilewise.datasets.cli_labels import DEFAULT_CORRECTIONS
from tilewise.datasets.core.console import (
    CONTEXT,
    FILE,
    FOLDER,
    READ_OPTIONS,
    Entry,
    LazyGroup,
    make_read_options,
    one_line_errors,
    out_option,
    print_table,
    shown,
    with_options,
)
from tilewise.datasets.core.errors import DriftError, PackError, ValidationFailedError
from tilewise.datasets.packs.pack import CARD, Pack, PackSummary
from tilewise.datasets.packs.packing import write_pack
from tilewise.datasets.packs.splits import SPLITS, SplitMethod, SplitPlan, shown_splits
from tilewise.datasets.packs.statistics import measure, write_statistics
from tilewise.datasets.packs.versions import (
    PackDiff,
    band_cells,
    compare,
    in_words,
    open_version,
    verdict,
    write_diff,
)
from tilewise.datasets.quality.card import write_card
from tilewise.datasets.quality.reviewed import is_empty
from tilewise.datasets.quality.schema import ValidationLimits
from tilewise.datasets.quality.validate import ERROR, ValidationReport, validate_pack, write_report
from tilewise.datasets.quality.validate import validate as run_checks
from tilewise.datasets.readers.corrections import Correction, read_corrections
from tilewise.datasets.readers.sources import Format, Source, find_sources

_CLI, _LABELS = "tilewise.datasets.cli", "tilewise.datasets.cli_labels"
SECTIONS = {
    "Get tiles": {
        "fetch": Entry(f"{_CLI}:fetch", "Download a published archive, check and unpack it."),
        "synth": Entry(f"{_CLI}:synth", "Make synthetic tiles, and a scene."),
    },
    "Check and pack": {
        "validate": Entry(f"{_CLI}:validate", "Check every tile; exit with 1 if there are errors."),
        "pack": Entry(f"{_CLI}:pack", "Pack tiles into one array with an index and splits."),
        "stats": Entry(f"{_CLI}:stats", "Print statistics of each band of a pack."),
        "card": Entry(f"{_CLI}:card", "Write the card of a pack."),
        "diff": Entry(f"{_CLI}:diff", "Compare two versions of a pack: tiles, classes, drift."),
    },
    "Correct labels": {
        "suspects": Entry(f"{_LABELS}:suspects", "List tiles whose label is probably wrong.", "train"),
        "correct": Entry(f"{_LABELS}:correct", "Record the correct class of tiles."),
    },
    "Label tiles from a service": {
        "review": Entry(f"{_LABELS}:review", "Make a page of tiles to label."),
        "label": Entry(f"{_LABELS}:label", "Add the labels that people gave."),
        "reviewed": Entry(f"{_LABELS}:reviewed", "Print how many tiles people have labelled."),
    },
}


@click.group(cls=LazyGroup, sections=SECTIONS, context_settings=CONTEXT)
def main() -> None:
    """Fetch, make, check, pack, review and compare labelled Sentinel-2 tiles.

    \b
    From nothing to a pack:
      tilewise data synth                 # synthetic tiles, no download
      tilewise data validate data/raw
      tilewise data pack data/raw
    With the real EuroSAT and its published spatial split:
      tilewise data fetch eurosat-ms
      tilewise data fetch eurosat-splits
      tilewise data pack data/raw/EuroSAT_MS --split lists --lists data/raw/splits
    Document a pack:
      tilewise data card data/packed --out data-card.md
    Find and correct wrong labels, compare versions:
      tilewise data suspects --predictions answers.csv
      tilewise data correct Forest_12 --label River --reviewer Ada --why "the river fills it"
      tilewise data diff HEAD~1 HEAD
    Label tiles that a service classified:
      tilewise data review /var/lib/tilewise/predictions
      tilewise data label decisions.csv
    """


def _sources_and_splits(command: Any) -> Any:
    """Add the options of `validate` and `pack`: the folders, their format, and the split."""
    options = (
        click.argument("folders", nargs=-1, required=True, type=FOLDER),
        click.option(
            "--format",
            "format",
            type=click.Choice([f.value for f in Format]),
            help="Format of the files. Default: as the folder's dataset.json or its name states.",
        ),
        *READ_OPTIONS,
        click.option(
            "--split",
            "method",
            type=click.Choice([m.value for m in SplitMethod]),
            default="random",
            show_default=True,
            help="How tiles are divided into train, val and test.",
        ),
        click.option(
            "--lists",
            "lists",
            type=FOLDER,
            help="Folder of *train*.txt, *val*.txt, *test*.txt, for --split lists.",
        ),
        click.option(
            "--fractions",
            "fractions",
            default="0.6,0.2,0.2",
            show_default=True,
            help="Fractions of train, val and test.",
        ),
        click.option(
            "--block-km",
            "block_km",
            default=50.0,
            show_default=True,
            help="Side of a block, for --split spatial.",
        ),
        click.option("--seed", "seed", default=0, show_default=True, help="Seed of the random split."),
        click.option(
            "--corrections",
            "corrections",
            type=FILE,
            help=f"CSV of reviewed labels (see `correct`) to apply. Default: {DEFAULT_CORRECTIONS}, if it "
            f"exists.",
        ),
    )
    return with_options(command, options)


@click.command(context_settings=CONTEXT)
@click.argument("name", type=click.Choice(fetching.FETCHABLE))
@click.option(
    "--from",
    "source",
    metavar="URL-OR-PATH",
    help="A source other than the publisher: a URL or local zip; for the lists, a base URL or local folder.",
)
@out_option(FOLDER, "Folder of data sets.", Path("data/raw"))
@one_line_errors
def fetch(name: str, source: str | None, out: Path) -> None:
    """Download a published archive, check and unpack it. An interrupted download is continued.

    \b
      tilewise data fetch eurosat-ms
    """
    with shown() as progress:
        log = partial(print, file=sys.stderr)  # the stream that rich redirects while it shows bars
        folder = fetching.fetch(name, out, source, fetching.Context(progress, log))
    click.echo(f"{name} is in {folder}")


@click.command(context_settings=CONTEXT)
@out_option(FOLDER, "Folder of the tiles.", Path("data/raw/synthetic"))
@click.option(
    "--tiles", "tiles", default=100, show_default=True, type=click.IntRange(1), help="Tiles of each class."
)
@click.option("--seed", "seed", default=0, show_default=True, help="The same seed makes the same bytes.")
@click.option("--scene", "scene", type=FILE, help="Also write one large scene to this file, to classify.")
@one_line_errors
def synth(out: Path, tiles: int, seed: int, scene: Path | None) -> None:
    """Make synthetic tiles of EuroSAT's ten classes, as GeoTIFFs that are marked as synthetic.

    \b
      tilewise data synth --tiles 200 --scene scenes/scene.tif
    """
    with shown() as progress:
        synthetic.synthesise(out, tiles, seed, progress)
    if scene:
        synthetic.synthesise_scene(scene, seed, rows=6, columns=8)
    click.echo(f"{tiles} synthetic tiles of each class are in {out} (not real observations)")


@click.command(context_settings=CONTEXT)
@_sources_and_splits
@out_option(FOLDER, "Folder of the report: validation.json and validation.md.", Path("artifacts/validation"))
@click.option(
    "--max-no-data",
    "max_no_data",
    default=ValidationLimits.max_no_data,
    show_default=True,
    help="Largest fraction of pixels without data.",
)
@click.option(
    "--highest-dn",
    "highest_dn",
    default=ValidationLimits.highest_dn,
    show_default=True,
    help="Highest plausible DN.",
)
@click.option(
    "--max-imbalance",
    "max_imbalance",
    default=ValidationLimits.max_imbalance,
    show_default=True,
    help="Largest ratio between the classes' tile counts.",
)
@one_line_errors
def validate(
    out: Path,
    max_no_data: float,
    highest_dn: int,
    max_imbalance: float,
    corrections: Path | None,
    **options: Any,
) -> None:
    """Check every tile; print a table, write a report, exit with 1 if there are errors.

    Of a folder with a pack, the index is checked against the schema, and the pixels against their hashes.

    \b
      tilewise data validate data/raw
      tilewise data validate data/packed
    """
    limits = ValidationLimits(max_no_data, highest_dn, ValidationLimits.lowest_contrast, max_imbalance)
    packs = [folder for folder in options["folders"] if (folder / CARD).is_file()]
    with shown() as progress:
        if packs:
            result = validate_pack(_only(packs, options["folders"]), limits, progress)
        else:
            sources, plan = _parse(**options)
            result = run_checks(sources, plan, limits, progress, _corrections(corrections))
    write_report(result, out)
    _print_report(result)
    if result.failed:
        errors = sum(finding.severity == ERROR for finding in result.findings)
        kinds = "1 kind of error" if errors == 1 else f"{errors} kinds of errors"
        raise ValidationFailedError(f"{kinds}; {out / 'validation.md'} lists them")
    click.echo(f"passed; the report is in {out}")


@click.command(context_settings=CONTEXT)
@_sources_and_splits
@out_option(FOLDER, "Folder of the pack.", Path("data/packed"))
@one_line_errors
def pack(out: Path, corrections: Path | None, **options: Any) -> None:
    """Pack tiles into one memory-mapped array with an index, splits and statistics of each band.

    \b
      tilewise data pack data/raw
      tilewise data pack data/raw/EuroSAT_MS --split lists --lists data/raw/splits --out data/eurosat
    """
    sources, plan = _parse(**options)
    with shown() as progress:
        summary = write_pack(sources, out, plan, progress, _corrections(corrections))
    _print_pack(summary)
    if summary.relabelled or summary.left_out:
        click.echo(f"corrections: {summary.relabelled} relabelled, {summary.left_out} left out")
    click.echo(f"the pack is in {out}, data hash {summary.data_hash[:12]}")


@click.command(context_settings=CONTEXT)
@click.argument("folder", metavar="[PACK]", type=FOLDER, default=Path("data/packed"))
@click.option(
    "--split", "split", type=click.Choice(SPLITS), default="train", show_default=True, help="Which tiles."
)
@click.option("--out", "out", type=FILE, help="Also write the statistics to this JSON file.")
@one_line_errors
def stats(folder: Path, split: str, out: Path | None) -> None:
    """Print statistics of each band of PACK (default: data/packed), in DN (reflectance × 10 000)."""
    bands = measure(Pack(folder), split)
    table = Table(
        "band", "tiles", "no data", "mean", "std", "1 %", "50 %", "99 %", title=f"{folder}, {split}"
    )
    for band in bands:
        shown_percentiles = [f"{band.percentiles[p]:.0f}" for p in ("1", "50", "99")]
        row = [band.band, str(band.tiles), f"{band.no_data:.2%}", f"{band.mean:.1f}", f"{band.std:.1f}"]
        table.add_row(*row, *shown_percentiles)
    print_table(table)
    if out:
        write_statistics(bands, out)


@click.command(context_settings=CONTEXT)
@click.argument("folder", metavar="[PACK]", type=FOLDER, default=Path("data/packed"))
@out_option(FILE, "The Markdown file to write.", Path("artifacts/data-card.md"))
@one_line_errors
def card(folder: Path, out: Path) -> None:
    """Write the card of PACK: its tiles, sources, licences, splits, bands, corrections, and what validation
    says.

    The card is made from the pack's own files, and every pixel is compared with its hash. A pack that fails
    validation gets a card that says so; `validate` is the command that stops a pipeline.

    \b
      tilewise data card data/packed --out data-card.md
    """
    pack = Pack(folder)
    with shown() as progress:
        report = validate_pack(folder, progress=progress)
    write_card(pack, report, out)
    click.echo(f"the card is {out}; validation {'failed' if report.failed else 'passed'}")


@click.command(context_settings=CONTEXT)
@click.argument("before")
@click.argument("after", default="data/packed")
@click.option(
    "--data", "data", type=FOLDER, default=Path("data/packed"), show_default=True, help="Pack in revisions."
)
@click.option(
    "--repo", "repo", type=FOLDER, default=Path(), help="The repository. Default: that of this folder."
)
@click.option(
    "--out", "out", type=FOLDER, help="Also write diff.json, which names every tile, and diff.md there."
)
@click.option(
    "--max-psi",
    "max_psi",
    type=click.FloatRange(0),
    help="Exit with 1 where a band, or the classes, drifted further.",
)
@one_line_errors
def diff(before: str, after: str, data: Path, repo: Path, out: Path | None, max_psi: float | None) -> None:
    """Show what changed between two versions of the data: tiles, class balance, statistics and drift of each
    band.

    BEFORE and AFTER are folders of packs, or git revisions whose pack is in DVC's cache or remote.

    \b
      tilewise data diff HEAD~1 HEAD             # the last commit
      tilewise data diff v1.2.0                  # since a tag, up to data/packed as it is now
      tilewise data diff old/packed new/packed   # two folders
    """
    found = compare(open_version(before, data, repo), open_version(after, data, repo))
    _print_diff(found)
    if out:
        write_diff(found, out)
        click.echo(f"every tile is named in {out / 'diff.json'}")
    _check_drift(found, max_psi)


def _print_diff(found: PackDiff) -> None:
    for side in (found.before, found.after):
        click.echo(f"{side['name']}: {side['tiles']:,} tiles, data hash {side['data_hash'][:12]}")
    for line in in_words(found):
        click.echo(line)
    classes = Table(
        "class", "before", "after", title=f"classes, PSI {found.class_psi:.3f}: {verdict(found.class_psi)}"
    )
    for item in found.classes:
        classes.add_row(
            item.name,
            f"{item.before} ({item.fraction_before:.1%})",
            f"{item.after} ({item.fraction_after:.1%})",
        )
    bands = Table(
        "band", "mean", "std", "PSI", "KL", "W", title="train split; W: Wasserstein distance; in DN"
    )
    for band in found.bands:
        name, mean, std, _, *drift = band_cells(band)
        bands.add_row(name, mean, std, *drift)
    print_table(classes)
    print_table(bands)


def _check_drift(found: PackDiff, max_psi: float | None) -> None:
    if max_psi is None:
        return
    band, psi = max(found.max_drift, ("the class balance", found.class_psi), key=lambda item: item[1])
    if psi > max_psi:
        raise DriftError(
            f"{band} has a PSI of {psi:.3f}, above {max_psi:g}; look at the new tiles before you train"
        )


def _corrections(path: Path | None) -> tuple[Correction, ...]:
    """Return the corrections in the named file, or else in the default one, if it exists."""
    return read_corrections(path or (DEFAULT_CORRECTIONS if DEFAULT_CORRECTIONS.is_file() else None))


def _only(packs: list[Path], folders: tuple[Path, ...]) -> Path:
    if len(folders) > 1:
        raise PackError(f"{packs[0]}: a pack is checked alone; run validate once for each")
    return packs[0]


def _parse(
    folders: tuple[Path, ...],
    format: str | None,
    bands: str | None,
    level: str | None,
    scale: float | None,
    offset: float | None,
    method: str,
    lists: Path | None,
    fractions: str,
    block_km: float,
    seed: int,
) -> tuple[list[Source], SplitPlan]:
    reading = make_read_options(bands, level, scale, offset)
    # A folder of reviewed tiles may be empty as yet, which is no error.
    filled = tuple(folder for folder in folders if not is_empty(folder))
    sources = find_sources(filled, Format(format) if format else None, reading)
    return sources, SplitPlan(SplitMethod(method), lists, _parse_fractions(fractions), seed, block_km)


def _parse_fractions(text: str) -> tuple[float, float, float]:
    try:
        train, val, test = (float(word) for word in text.split(","))
    except ValueError:
        raise click.BadParameter(
            f"three numbers with commas, not {text!r}", param_hint="--fractions"
        ) from None
    return train, val, test


def _print_report(report: ValidationReport) -> None:
    splits = shown_splits(report.splits)
    table = Table("class", "tiles", *splits, title="tiles")
    for label, count in report.classes.items():
        table.add_row(label, str(count), *(str(report.splits.get(s, {}).get(label, 0)) for s in splits))
    print_table(table)
    if not report.findings:
        return
    found = Table("severity", "check", "count", "what", "for example", title="findings")
    for item in report.findings:
        found.add_row(item.severity, item.check, str(item.count), item.message, ", ".join(item.examples))
    print_table(found)


def _print_pack(summary: PackSummary) -> None:
    splits = shown_splits(summary.counts)
    table = Table("class", *splits, title=f"{summary.tiles:,} tiles in {summary.planes:,} planes")
    for label in summary.classes:
        table.add_row(label, *(str(summary.counts.get(split, {}).get(label, 0)) for split in splits))
    print_table(table)
