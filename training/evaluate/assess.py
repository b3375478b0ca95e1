"""`tilewise assess`: what a model file is worth, measured on a pack."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np

from tilewise.datasets.core.console import one_line_errors, shown
from tilewise.datasets.packs.pack import open_pack
from tilewise.models.model_file import open_model
from tilewise.training.evaluate.accuracy import (
    accuracy_table,
    certainty_tables,
    class_table,
    robustness_table,
    rows_of,
    zone_table,
)
from tilewise.training.evaluate.out_of_distribution import FILE, out_of_distribution_table
from tilewise.training.evaluate.outputs import DEFAULT, AssessSettings, Case, Table, read_settings
from tilewise.training.tracking import code_revision

MARKDOWN, JSON = "assessment.md", "assessment.json"


@dataclass(frozen=True, slots=True)
class Assessment:
    """What was measured.

    Attributes:
        command: the command line that measures it again.
        about: what the file and the tiles are.
        tables: of figures; the first holds the verdicts.
    """

    command: str
    about: dict[str, str]
    tables: tuple[Table, ...]

    def markdown(self) -> str:
        """Return the report for people."""
        facts = "\n".join(f"- {name}: {text}" for name, text in self.about.items())
        head = f"## Assessment of {self.about['model']}\n\n```bash\n{self.command}\n```\n\n{facts}"
        return "\n\n".join([head, *(table.markdown() for table in self.tables)]) + "\n"

    def as_json(self) -> dict[str, Any]:
        """Return the report for programs."""
        return {"command": self.command, **self.about, "tables": {t.name: t.as_json() for t in self.tables}}

    def write(self, folder: Path) -> list[Path]:
        """Write both forms into `folder` and return where."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / MARKDOWN, folder / JSON]
        paths[0].write_text(self.markdown(), encoding="utf-8")
        paths[1].write_text(json.dumps(self.as_json(), indent=2) + "\n", encoding="utf-8")
        return paths


def measure_model(case: Case, settings: AssessSettings, clouds: Path | None, command: str) -> Assessment:
    """Measure everything."""
    plain = {source: case.ask(case.rows(source), step=source) for source in case.sources}
    accuracy, evaluations = accuracy_table(case, plain)
    labels = case.labels(rows_of(case))
    logits = np.concatenate([plain[source].logits for source in case.sources])
    error, sets = certainty_tables(logits, labels, case.model.metadata.classes, settings, case.progress)
    unknown_tiles = out_of_distribution_table(case, plain, settings, clouds)
    tables = (
        accuracy,
        class_table(evaluations),
        zone_table(case, plain, settings),
        error,
        sets,
        unknown_tiles,
        robustness_table(case, plain),
    )
    return Assessment(command, _about(case), (_verdicts(error, sets, unknown_tiles, settings), *tables))


def _about(case: Case) -> dict[str, str]:
    metadata = case.model.metadata
    return {
        "model": case.model.path.name,
        "sha256": case.model.sha256,
        "network": f"{metadata.network}, {metadata.precision}, version {metadata.version}",
        "trained on the data": metadata.data_hash[:12],
        "measured on": f"split {case.split!r} of the data {case.pack.summary.data_hash[:12]}",
        "synthetic": str(case.pack.summary.synthetic).lower(),
        "code revision": code_revision(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def _verdicts(error: Table, sets: Table, unknown_tiles: Table, settings: AssessSettings) -> Table:
    targets, rows = settings.targets, []
    found = _figure(error, 0, "mean %")
    rows.append(
        _verdict("calibration error", found, found <= targets.calibration_error, f"≤ {targets.calibration_error:.1%}")
    )
    for place, row in enumerate(sets.rows):
        if row[0] == "LAC":
            asked, covered = _figure(sets, place, "asked %"), _figure(sets, place, "covered %")
            met = abs(covered - asked) <= targets.coverage_within
            rows.append(_verdict(f"coverage at {asked:.0%}", covered, met, f"± {targets.coverage_within:.1%}"))
    for place, row in enumerate(unknown_tiles.rows):
        flagged, known = _figure(unknown_tiles, place, f"{FILE} %"), str(row[0]).startswith("known: ")
        limit = settings.false_alarms + 2 * np.sqrt(
            settings.false_alarms * (1 - settings.false_alarms) / int(row[1] or 1)
        )
        if known:
            rows.append(
                _verdict(f"false alarms, {row[0]}", flagged, flagged <= limit, f"about ≤ {settings.false_alarms:.0%}")
            )
        elif ": known" not in str(row[0]):
            rows.append(_verdict(f"flagged, {row[0]}", flagged, flagged >= targets.flagged, f"≥ {targets.flagged:.0%}"))
    note = "What is asked (`configs/assess.yaml`) against what was found in the tables below."
    return Table("verdicts", "In short", note, ("figure", "found %", "asked", "met"), tuple(rows))


def _verdict(name: str, found: float, met: bool, asked: str) -> tuple[str, float, str, str]:
    return name, found, asked, "yes" if met else "NO"


def _figure(table: Table, row: int, column: str) -> float:
    value = table.rows[row][table.header.index(column)]
    return float(value or 0.0)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--model", type=click.Path(path_type=Path), required=True, help="The model file (ONNX, fp32 or INT8).")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Pack of tiles with classes.")
@click.option("--split", default="val", show_default=True, help="Whose tiles are measured.")
@click.option("--clouds", type=click.Path(path_type=Path), help="Folder of scenes with a cloud probability (DN, L1C).")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for assessment.md and .json; default: print only.")
@click.option("--settings", type=click.Path(path_type=Path), default=DEFAULT, help="Default: configs/assess.yaml.")
@one_line_errors
def assess(model: Path, data: Path, split: str, clouds: Path | None, out: Path | None, settings: Path) -> None:
    """Measure a model file: accuracy by source, bands, class and latitude, calibration and prediction sets on held-out
    halves, what is flagged as unknown, and robustness.

    Nothing is trained and the file is not changed. What was asked and what was found is the first table.
    """
    command = shlex.join(["tilewise", "assess", *sys.argv[2:]])
    with shown() as progress:
        found = measure_model(
            Case(open_model(model), open_pack(data), split, progress), read_settings(settings), clouds, command
        )
    click.echo(found.markdown())
    if out is not None:
        for path in found.write(out):
            click.echo(f"wrote {path}", err=True)
