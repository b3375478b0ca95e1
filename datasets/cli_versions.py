"""The command of `python -m datasets` that compares versions of the data."""

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from datasets.command import one_line_errors
from datasets.diff import PackDiff, band_cells, compare, in_words, verdict, write_diff
from datasets.errors import DriftError
from datasets.versions import open_version

_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("before")
@click.argument("after", default="data/packed")
@click.option("--pack", type=_FOLDER, default=Path("data/packed"), show_default=True, help="Where revisions have it.")
@click.option("--repo", type=_FOLDER, default=Path(), help="The repository; default: the one of this folder.")
@click.option("--out", type=_FOLDER, help="Also write diff.json, which names every tile, and diff.md here.")
@click.option("--most-psi", type=click.FloatRange(0), help="Exit with 1 where a band, or the classes, drifted further.")
@one_line_errors
def diff(before: str, after: str, pack: Path, repo: Path, out: Path | None, most_psi: float | None) -> None:
    """Show what changed between two versions of the data: tiles, class balance, statistics and drift of each band.

    BEFORE and AFTER are git revisions, whose pack DVC has in its cache or remote, or folders of packs.

    \b
      python -m datasets diff HEAD~1 HEAD             # the last commit
      python -m datasets diff v1.2.0                  # since a tag, up to data/packed as it is now
      python -m datasets diff old/packed new/packed   # two folders
    """
    found = compare(open_version(before, pack, repo), open_version(after, pack, repo))
    _print(found)
    if out:
        write_diff(found, out)
        click.echo(f"every tile is named in {out / 'diff.json'}")
    _judge(found, most_psi)


def _print(found: PackDiff) -> None:
    for side in (found.before, found.after):
        click.echo(f"{side['said']}: {side['tiles']:,} tiles, data hash {side['data_hash'][:12]}")
    for line in in_words(found):
        click.echo(line)
    classes = Table("class", "before", "after", title=f"classes, PSI {found.class_psi:.3f}: {verdict(found.class_psi)}")
    for item in found.classes:
        classes.add_row(item.name, f"{item.before} ({item.share_before:.1%})", f"{item.after} ({item.share_after:.1%})")
    bands = Table("band", "mean", "std", "PSI", "KL", "W", title="train split; W: Wasserstein distance; in DN")
    for band in found.bands:
        name, mean, std, _, *drift = band_cells(band)
        bands.add_row(name, mean, std, *drift)
    console = Console(markup=False)
    console.print(classes)
    console.print(bands)


def _judge(found: PackDiff, most_psi: float | None) -> None:
    if most_psi is None:
        return
    band, psi = max(found.most_drift, ("the class balance", found.class_psi), key=lambda item: item[1])
    if psi > most_psi:
        raise DriftError(f"{band} has a PSI of {psi:.3f}, above {most_psi:g}; look at the new tiles before you train")
