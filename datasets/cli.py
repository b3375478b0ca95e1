"""`tilewise data`: from published archives, or from nothing, to a pack that training reads."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from tilewise.datasets import cli_labels
from tilewise.datasets.acquire import fetch as fetching
from tilewise.datasets.acquire import synthetic
from tilewise.datasets.cli_labels import DEFAULT_CORRECTIONS, correct, suspects
from tilewise.datasets.core.console import make_read_options, one_line_errors, read_options, shown, with_options
from tilewise.datasets.core.errors import DriftError, PackError, ValidationFailedError
from tilewise.datasets.packs.pack import CARD, Pack, PackSummary
from tilewise.datasets.packs.packing import write_pack
from tilewise.datasets.packs.splits import SPLITS, SplitMethod, SplitPlan, shown_splits
from tilewise.datasets.packs.statistics import measure, write_statistics
from tilewise.datasets.packs.versions import PackDiff, band_cells, compare, in_words, open_version, verdict, write_diff
from tilewise.datasets.quality.card import write_card
from tilewise.datasets.quality.reviewed import is_empty
from tilewise.datasets.quality.schema import ValidationLimits
from tilewise.datasets.quality.validate import ERROR, ValidationReport, validate_pack, write_report
from tilewise.datasets.quality.validate import validate as run_checks
from tilewise.datasets.readers.corrections import Correction, read_corrections
from tilewise.datasets.readers.sources import Format, Source, find_sources


@click.command()
@click.argument("folder", metavar="PACK", type=click.Path(path_type=Path, file_okay=False), default=Path("data/packed"))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("artifacts/data-card.md"),
    show_default=True,
    help="The Markdown file to write.",
)
@one_line_errors
def card(folder: Path, out: Path) -> None:
    """Write the card of PACK: its tiles, sources, licences, splits, bands, corrections, and what validation says.

    All of it is taken from the pack's own files. Every pixel is compared with its hash on the way; a pack that fails
    has a card, too, which says so (`validate` is the command that stops a pipeline).

    \b
      tilewise data card data/packed --out data-card.md
    """
    pack = Pack(folder)
    with shown() as progress:
        report = validate_pack(folder, progress=progress)
    write_card(pack, report, out)
    click.echo(f"the card is {out}; validation {'failed' if report.failed else 'passed'}")


_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("before")
@click.argument("after", default="data/packed")
@click.option("--pack", type=_FOLDER, default=Path("data/packed"), show_default=True, help="Where revisions have it.")
@click.option("--repo", type=_FOLDER, default=Path(), help="The repository; default: the one of this folder.")
@click.option("--out", type=_FOLDER, help="Also write diff.json, which names every tile, and diff.md here.")
@click.option("--max-psi", type=click.FloatRange(0), help="Exit with 1 where a band, or the classes, drifted further.")
@one_line_errors
def diff(before: str, after: str, pack: Path, repo: Path, out: Path | None, max_psi: float | None) -> None:
    """Show what changed between two versions of the data: tiles, class balance, statistics and drift of each band.

    BEFORE and AFTER are git revisions, whose pack DVC has in its cache or remote, or folders of packs.

    \b
      tilewise data diff HEAD~1 HEAD             # the last commit
      tilewise data diff v1.2.0                  # since a tag, up to data/packed as it is now
      tilewise data diff old/packed new/packed   # two folders
    """
    found = compare(open_version(before, pack, repo), open_version(after, pack, repo))
    _print(found)
    if out:
        write_diff(found, out)
        click.echo(f"every tile is named in {out / 'diff.json'}")
    _judge(found, max_psi)


def _print(found: PackDiff) -> None:
    for side in (found.before, found.after):
        click.echo(f"{side['name']}: {side['tiles']:,} tiles, data hash {side['data_hash'][:12]}")
    for line in in_words(found):
        click.echo(line)
    classes = Table("class", "before", "after", title=f"classes, PSI {found.class_psi:.3f}: {verdict(found.class_psi)}")
    for item in found.classes:
        before, after = f"{item.before} ({item.fraction_before:.1%})", f"{item.after} ({item.fraction_after:.1%})"
        classes.add_row(item.name, before, after)
    bands = Table("band", "mean", "std", "PSI", "KL", "W", title="train split; W: Wasserstein distance; in DN")
    for band in found.bands:
        name, mean, std, _, *drift = band_cells(band)
        bands.add_row(name, mean, std, *drift)
    console = Console(markup=False)
    console.print(classes)
    console.print(bands)


def _judge(found: PackDiff, max_psi: float | None) -> None:
    if max_psi is None:
        return
    band, psi = max(found.max_drift, ("the class balance", found.class_psi), key=lambda item: item[1])
    if psi > max_psi:
        raise DriftError(f"{band} has a PSI of {psi:.3f}, above {max_psi:g}; look at the new tiles before you train")


_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Fetch, make, check and pack labelled Sentinel-2 tiles.

    \b
    From nothing to a pack:
      tilewise data synth                 # synthetic tiles, no download
      tilewise data validate data/raw
      tilewise data pack data/raw
    With the real EuroSAT and its published spatial split:
      tilewise data fetch eurosat-ms
      tilewise data fetch eurosat-splits
      tilewise data pack data/raw/EuroSAT_MS --split lists --lists data/raw/splits
    What a pack is, for whoever gets it or a model of it:
      tilewise data card data/packed --out data-card.md
    Labels that are wrong, and versions:
      tilewise data suspects --predictions answers.csv
      tilewise data correct Forest_12 --label River --reviewer Ada --why "the river fills it"
      tilewise data diff HEAD~1 HEAD
    What a service was asked, labelled and brought back:
      tilewise data review /var/lib/tilewise/predictions
      tilewise data label decisions.csv
    """


def _sources_and_splits(command: Any) -> Any:
    """Add what `validate` and `pack` share: the folders, their format, and how they are divided."""
    options = (
        click.argument("folders", nargs=-1, required=True, type=_FOLDER),
        click.option(
            "--format",
            "form",
            type=click.Choice([f.value for f in Format]),
            help="How files are read; default: what the folder's dataset.json or name says.",
        ),
        read_options,
        click.option(
            "--split",
            "method",
            type=click.Choice([m.value for m in SplitMethod]),
            default="random",
            show_default=True,
            help="How tiles are divided into train, val and test.",
        ),
        click.option("--lists", type=_FOLDER, help="Folder of *train*.txt, *val*.txt, *test*.txt, for --split lists."),
        click.option("--shares", default="0.6,0.2,0.2", show_default=True, help="Shares of train, val and test."),
        click.option("--block-km", default=50.0, show_default=True, help="Side of a block, for --split spatial."),
        click.option("--seed", default=0, show_default=True, help="Changes the draw."),
        click.option(
            "--corrections",
            type=click.Path(path_type=Path, dir_okay=False),
            help=f"CSV of reviewed labels (see `correct`) to apply. Default: {DEFAULT_CORRECTIONS}, if it is there.",
        ),
    )
    return with_options(command, options)


@main.command()
@click.argument("name", type=click.Choice(fetching.FETCHABLE))
@click.option(
    "--from",
    "source",
    metavar="URL-OR-PATH",
    help="Another source than the publisher: a URL or local zip; for the lists, a base URL or local folder.",
)
@click.option("--out", type=_FOLDER, default=Path("data/raw"), show_default=True, help="Where data sets go.")
@one_line_errors
def fetch(name: str, source: str | None, out: Path) -> None:
    """Download a published archive, check and unpack it. An interrupted download goes on where it stopped."""
    with shown() as progress:
        say = partial(print, file=sys.stderr)  # the stream of this moment, which keeps clear of the bars
        folder = fetching.fetch(name, out, source, fetching.Context(progress, say))
    click.echo(f"{name} is in {folder}")


@main.command()
@click.option("--out", type=_FOLDER, default=Path("data/raw/synthetic"), show_default=True)
@click.option("--tiles", default=100, show_default=True, type=click.IntRange(1), help="Tiles of each class.")
@click.option("--seed", default=0, show_default=True, help="The same seed makes the same bytes.")
@click.option("--scene", type=click.Path(path_type=Path), help="Also write one large scene here, to classify.")
@one_line_errors
def synth(out: Path, tiles: int, seed: int, scene: Path | None) -> None:
    """Make synthetic tiles of EuroSAT's ten classes, as GeoTIFFs: plausible, not real, and they say so."""
    with shown() as progress:
        synthetic.synthesise(out, tiles, seed, progress)
    if scene:
        synthetic.synthesise_scene(scene, seed, rows=6, columns=8)
    click.echo(f"{tiles} synthetic tiles of each class are in {out} (not real observations)")


@main.command()
@_sources_and_splits
@click.option(
    "--report",
    type=_FOLDER,
    default=Path("artifacts/validation"),
    show_default=True,
    help="Where validation.json and validation.md go.",
)
@click.option(
    "--max-no-data", default=ValidationLimits.max_no_data, show_default=True, help="Largest share without data."
)
@click.option("--highest-dn", default=ValidationLimits.highest_dn, show_default=True, help="Brightest plausible DN.")
@click.option(
    "--max-imbalance",
    default=ValidationLimits.max_imbalance,
    show_default=True,
    help="Largest ratio between the classes' tile counts.",
)
@one_line_errors
def validate(
    report: Path, max_no_data: float, highest_dn: int, max_imbalance: float, corrections: Path | None, **options: Any
) -> None:
    """Check every tile; print a table, write a report, exit with 1 if anything must not reach training.

    A folder that holds a pack is checked as what it is: its index against the schema, its pixels against their hashes.
    """
    limits = ValidationLimits(max_no_data, highest_dn, ValidationLimits.lowest_contrast, max_imbalance)
    packs = [folder for folder in options["folders"] if (folder / CARD).is_file()]
    with shown() as progress:
        if packs:
            result = validate_pack(_only(packs, options["folders"]), limits, progress)
        else:
            sources, plan = _parse(**options)
            result = run_checks(sources, plan, limits, progress, _corrections(corrections))
    write_report(result, report)
    _print_report(result)
    if result.failed:
        errors = sum(finding.severity == ERROR for finding in result.findings)
        kinds = "1 kind of error" if errors == 1 else f"{errors} kinds of errors"
        raise ValidationFailedError(f"{kinds}; {report / 'validation.md'} lists them")
    click.echo(f"passed; the report is in {report}")


@main.command()
@_sources_and_splits
@click.option("--out", type=_FOLDER, default=Path("data/packed"), show_default=True)
@one_line_errors
def pack(out: Path, corrections: Path | None, **options: Any) -> None:
    """Pack tiles into one memory-mapped array with an index, split and per-band statistics."""
    sources, plan = _parse(**options)
    with shown() as progress:
        summary = write_pack(sources, out, plan, progress, _corrections(corrections))
    _print_pack(summary)
    if summary.relabelled or summary.left_out:
        click.echo(f"corrections: {summary.relabelled} relabelled, {summary.left_out} left out")
    click.echo(f"the pack is in {out}, data hash {summary.data_hash[:12]}")


@main.command()
@click.argument("folder", type=_FOLDER, default=Path("data/packed"))
@click.option("--split", type=click.Choice(SPLITS), default="train", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Also write them as JSON.")
@one_line_errors
def stats(folder: Path, split: str, out: Path | None) -> None:
    """Print per-band statistics of a pack, in DN (reflectance × 10 000)."""
    bands = measure(Pack(folder), split)
    table = Table("band", "tiles", "no data", "mean", "std", "1 %", "50 %", "99 %", title=f"{folder}, {split}")
    for band in bands:
        shown_percentiles = [f"{band.percentiles[p]:.0f}" for p in ("1", "50", "99")]
        row = [band.band, str(band.tiles), f"{band.no_data:.2%}", f"{band.mean:.1f}", f"{band.std:.1f}"]
        table.add_row(*row, *shown_percentiles)
    Console(markup=False).print(table)
    if out:
        write_statistics(bands, out)


main.add_command(card)
main.add_command(diff)
main.add_command(suspects)
main.add_command(correct)
main.add_command(cli_labels.review)
main.add_command(cli_labels.label)
main.add_command(cli_labels.reviewed)


def _corrections(path: Path | None) -> tuple[Correction, ...]:
    """Return the corrections in the file that was named, else in the default one, if it is there."""
    return read_corrections(path or (DEFAULT_CORRECTIONS if DEFAULT_CORRECTIONS.is_file() else None))


def _only(packs: list[Path], folders: tuple[Path, ...]) -> Path:
    if len(folders) > 1:
        raise PackError(f"{packs[0]}: a pack is checked alone; call validate once for each")
    return packs[0]


def _parse(
    folders: tuple[Path, ...],
    form: str | None,
    bands: str | None,
    level: str | None,
    scale: float | None,
    offset: float | None,
    method: str,
    lists: Path | None,
    shares: str,
    block_km: float,
    seed: int,
) -> tuple[list[Source], SplitPlan]:
    overrides = make_read_options(bands, level, scale, offset)
    # Of tiles that people label there may be none yet, which is no error.
    sources = find_sources(tuple(f for f in folders if not is_empty(f)), Format(form) if form else None, overrides)
    return sources, SplitPlan(SplitMethod(method), lists, _parse_shares(shares), seed, block_km)


def _parse_shares(text: str) -> tuple[float, float, float]:
    try:
        train, val, test = (float(word) for word in text.split(","))
    except ValueError:
        raise click.BadParameter(f"three numbers with commas, not {text!r}", param_hint="--shares") from None
    return train, val, test


def _print_report(report: ValidationReport) -> None:
    splits = shown_splits(report.splits)
    table = Table("class", "tiles", *splits, title="tiles")
    for label, count in report.classes.items():
        table.add_row(label, str(count), *(str(report.splits.get(s, {}).get(label, 0)) for s in splits))
    Console(markup=False).print(table)
    if not report.findings:
        return
    found = Table("severity", "check", "count", "what", "for example", title="findings")
    for item in report.findings:
        found.add_row(item.severity, item.check, str(item.count), item.message, ", ".join(item.examples))
    Console(markup=False).print(found)


def _print_pack(summary: PackSummary) -> None:
    splits = shown_splits(summary.counts)
    table = Table("class", *splits, title=f"{summary.tiles:,} tiles in {summary.planes:,} planes")
    for label in summary.classes:
        table.add_row(label, *(str(summary.counts.get(split, {}).get(label, 0)) for split in splits))
    Console(markup=False).print(table)
