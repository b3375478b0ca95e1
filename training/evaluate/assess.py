"""`tilewise assess`: measure a model file on a pack; a report with verdicts, as Markdown and as JSON."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np

from tilewise.datasets.core.console import one_line_errors, shown
from tilewise.datasets.core.files import atomic_write
from tilewise.datasets.packs.groups import GROUPS, group_tiles
from tilewise.datasets.packs.pack import open_pack
from tilewise.models.model_file import open_model
from tilewise.training.evaluate.accuracy import (
    accuracy_table,
    certainty_tables,
    class_table,
    group_table,
    robustness_table,
    rows_of,
    zone_table,
)
from tilewise.training.evaluate.assess_settings import DEFAULT, AssessSettings, Targets, read_assess_settings
from tilewise.training.evaluate.evaluation import Table
from tilewise.training.evaluate.out_of_distribution import (
    ELSEWHERE,
    FILE,
    IN_DISTRIBUTION,
    out_of_distribution_table,
)
from tilewise.training.evaluate.outputs import PackEvaluator
from tilewise.training.tracking import code_revision

MARKDOWN, JSON = "assessment.md", "assessment.json"

Verdict = tuple[str, float, str, str]
"""Name, figure, target and whether it is met: a row of the table of verdicts."""


@dataclass(frozen=True, slots=True)
class Assessment:
    """The report on a model file.

    Attributes:
        command: the command line that repeats it.
        about: facts about the file and the tiles.
        tables: figures; the first is the table of verdicts.
    """

    command: str
    about: dict[str, str]
    tables: tuple[Table, ...]

    def markdown(self) -> str:
        """Return the report as Markdown."""
        facts = "\n".join(f"- {name}: {text}" for name, text in self.about.items())
        head = f"## Assessment of {self.about['model']}\n\n```bash\n{self.command}\n```\n\n{facts}"
        return "\n\n".join([head, *(table.markdown() for table in self.tables)]) + "\n"

    def as_json(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return {"command": self.command, **self.about, "tables": {t.name: t.as_json() for t in self.tables}}

    def write(self, folder: Path) -> list[Path]:
        """Write both forms into `folder` and return their paths."""
        contents = {MARKDOWN: self.markdown(), JSON: json.dumps(self.as_json(), indent=2) + "\n"}
        for name, content in contents.items():
            with atomic_write(folder / name) as partial:
                partial.write_text(content, encoding="utf-8")
        return [folder / name for name in contents]


def assess_model(
    evaluator: PackEvaluator, settings: AssessSettings, clouds: Path | None, command: str
) -> Assessment:
    """Compute every table, and the verdicts on them.

    Args:
        clouds: a folder of scenes with a cloud probability; None: clouds are not measured.
        command: the command line, for the report.
    """
    plain = {source: evaluator.run(evaluator.rows(source), step=source) for source in evaluator.sources}
    accuracy, evaluations = accuracy_table(evaluator, plain)
    labels = evaluator.labels(rows_of(evaluator))
    logits = np.concatenate([plain[source].logits for source in evaluator.sources])
    error, sets = certainty_tables(
        logits, labels, evaluator.model.metadata.classes, settings, evaluator.progress
    )
    groups = group_tiles(evaluator.pack, rows_of(evaluator), GROUPS)
    by_group = group_table(logits, labels, groups, settings.coverages[0])
    detection = out_of_distribution_table(evaluator, plain, settings, clouds)
    tables = (
        accuracy,
        class_table(evaluations),
        zone_table(evaluator, plain, settings),
        error,
        sets,
        by_group,
        detection,
        robustness_table(evaluator, plain),
    )
    return Assessment(command, _about(evaluator), (verdict_table(error, sets, detection, settings), *tables))


def _about(evaluator: PackEvaluator) -> dict[str, str]:
    model, metadata = evaluator.model, evaluator.model.metadata
    return {
        "model": model.path.name,
        "sha256": model.sha256,
        "network": f"{metadata.network}, {metadata.precision}, version {metadata.version}",
        "trained on the data": metadata.data_hash[:12],
        "measured on": f"split {evaluator.split!r} of the data {evaluator.pack.summary.data_hash[:12]}",
        "synthetic": str(evaluator.pack.summary.synthetic).lower(),
        "code revision": code_revision(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def verdict_table(error: Table, sets: Table, detection: Table, settings: AssessSettings) -> Table:
    """Return the table that compares figures with the targets in the settings."""
    rows = [
        _calibration_verdict(error, settings.targets),
        *_coverage_verdicts(sets, settings.targets),
        *_detection_verdicts(detection, settings),
    ]
    note = (
        "The targets in `configs/assess.yaml` against the figures in the tables below. False alarms may "
        "exceed their "
        "target by two standard errors of a fraction of that many tiles."
    )
    return Table("verdicts", "In short", note, ("figure", "found %", "target", "met"), tuple(rows))


def _calibration_verdict(error: Table, targets: Targets) -> Verdict:
    found, limit = _figure(error, 0, "mean %"), targets.calibration_error
    return _verdict("calibration error", found, found <= limit, f"≤ {_percent(limit)}")


def _coverage_verdicts(sets: Table, targets: Targets) -> Iterator[Verdict]:
    for index, row in enumerate(sets.rows):
        if row[0] == "LAC":
            target, covered = _figure(sets, index, "target %"), _figure(sets, index, "covered %")
            met = abs(covered - target) <= targets.coverage_within
            yield _verdict(
                f"coverage at {_percent(target)}", covered, met, f"± {_percent(targets.coverage_within)}"
            )


def _detection_verdicts(detection: Table, settings: AssessSettings) -> Iterator[Verdict]:
    for index, (title, tiles, *_) in enumerate(detection.rows):
        flagged = _figure(detection, index, f"{FILE} %")
        if str(title).startswith(IN_DISTRIBUTION):
            yield _false_alarm_verdict(
                f"false alarms, {title}", flagged, int(tiles or 0), settings.false_alarms
            )
        elif title != ELSEWHERE:
            target = settings.targets.flagged
            yield _verdict(f"flagged, {title}", flagged, flagged >= target, f"≥ {_percent(target)}")


def _false_alarm_verdict(name: str, flagged: float, tiles: int, target: float) -> Verdict:
    """Return whether a fraction of so many tiles is at most the target and two standard errors."""
    limit = target + 2 * math.sqrt(target * (1 - target) / max(tiles, 1))
    asked = f"≤ {_percent(target)}, of {tiles} tiles ≤ {limit:.1%}"
    return _verdict(name, flagged, flagged <= limit, asked)


def _verdict(name: str, found: float, met: bool, target: str) -> Verdict:
    return name, found, target, "yes" if met else "NO"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:g}%"


def _figure(table: Table, row: int, column: str) -> float:
    value = table.rows[row][table.header.index(column)]
    return float(value or 0.0)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--model", type=click.Path(path_type=Path), required=True, help="The model file (ONNX, fp32 or INT8)."
)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Pack of tiles with classes.")
@click.option("--split", default="val", show_default=True, help="Whose tiles are measured.")
@click.option(
    "--clouds", type=click.Path(path_type=Path), help="Folder of scenes with a cloud probability (DN, L1C)."
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for assessment.md and .json; default: print only."
)
@click.option(
    "--settings", type=click.Path(path_type=Path), default=DEFAULT, help="Default: configs/assess.yaml."
)
@one_line_errors
def assess(
    model: Path, data: Path, split: str, clouds: Path | None, out: Path | None, settings: Path
) -> None:
    """Measure a model file: accuracy by source, bands, class and latitude, calibration and prediction sets on
    held-out halves, out-of-distribution detection, and robustness.

    Nothing is trained and the file is not changed. The first table compares figures with targets.
    """
    command = shlex.join(["tilewise", "assess", *sys.argv[2:]])
    with shown() as progress:
        evaluator = PackEvaluator(open_model(model), open_pack(data), split, progress)
        found = assess_model(evaluator, read_assess_settings(settings), clouds, command)
    click.echo(found.markdown())
    if out is not None:
        for path in found.write(out):
            click.echo(f"wrote {path}", err=True)
