"""The command of `python -m datasets` that tells of a pack on one page."""

from pathlib import Path

import click

from datasets.card import write_card
from datasets.command import one_line_errors
from datasets.pack import Pack
from datasets.progress import shown
from datasets.validate import validate_pack


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
      python -m datasets card data/packed --out data-card.md
    """
    pack = Pack(folder)
    with shown() as progress:
        report = validate_pack(folder, progress=progress)
    write_card(pack, report, out)
    click.echo(f"the card is {out}; validation {'failed' if report.failed else 'passed'}")
