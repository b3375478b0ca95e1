"""Validate a set of tiles before training: read every file, check it, and report findings.

Errors must not reach training and stop a pipeline: unreadable files, tiles that break the schema
(`tilewise.datasets.quality.schema`), the same pixels under two classes or in two splits. Warnings are for a
person to look at.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from tilewise.datasets.core.console import Report, silent
from tilewise.datasets.core.errors import SplitError
from tilewise.datasets.core.tile import TILE_SIZE
from tilewise.datasets.packs.pack import Pack
from tilewise.datasets.packs.packing import data_hash
from tilewise.datasets.packs.splits import KNOWN_SPLITS, SplitPlan, assign, shown_splits
from tilewise.datasets.quality.schema import (
    ValidationLimits,
    breaches,
    index_frame,
    index_schema,
    records_of,
    tile_frame,
    tile_schema,
    warning_schema,
)
from tilewise.datasets.readers.corrections import Correction, count_corrections
from tilewise.datasets.readers.records import TileRecord, Unreadable, content_hash, read_all
from tilewise.datasets.readers.sources import Source, fixed_splits

if TYPE_CHECKING:
    import pandas as pd
    import pandera.pandas as pa

ERROR, WARNING = "error", "warning"
_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class ValidationFinding:
    """A problem that a check found.

    Attributes:
        severity: `error` or `warning`.
        check: name of the check.
        message: the problem in words.
        count: number of tiles that have it.
        examples: names of a few of them.
    """

    severity: str
    check: str
    message: str
    count: int
    examples: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """All findings, and counts of the data set's tiles.

    Attributes:
        tiles: number of readable tiles.
        classes: {class: tiles}.
        splits: {split: {class: tiles}}; empty where tiles could not be split.
        findings: all findings, errors first.
    """

    tiles: int
    classes: dict[str, int]
    splits: dict[str, dict[str, int]]
    findings: list[ValidationFinding]

    @property
    def failed(self) -> bool:
        """Whether any finding is an error."""
        return any(finding.severity == ERROR for finding in self.findings)


def validate(
    sources: Sequence[Source],
    plan: SplitPlan,
    limits: ValidationLimits | None = None,
    progress: Report = silent,
    corrections: Sequence[Correction] = (),
) -> ValidationReport:
    """Read every tile of `sources`, split them by `plan`, and report every problem.

    Raises:
        CorrectionsError: the corrections do not fit the tiles.
    """
    corrected = count_corrections(sources, corrections)
    outcomes = list(_records_only(sources, progress, corrections))
    unreadable = [outcome for outcome in outcomes if isinstance(outcome, Unreadable)]
    records = [outcome for outcome in outcomes if isinstance(outcome, TileRecord)]
    frame = tile_frame(records)
    findings = _check_readable(unreadable)
    findings += _check_schema(frame, tile_schema, limits or ValidationLimits())
    findings += _check_together(records, limits or ValidationLimits())
    findings += _if_any(WARNING, "corrections", "corrected, but not among these tiles", corrected.unmatched)
    try:
        splits, split_findings = _check_splits(records, assign(records, plan, fixed_splits(sources)))
    except SplitError as error:
        splits, split_findings = {}, [_finding(ERROR, "splits", str(error), [])]
    return _report(records, splits, findings + split_findings)


def validate_pack(
    root: Path, limits: ValidationLimits | None = None, progress: Report = silent
) -> ValidationReport:
    """Check a pack: its index against the schema, pixels against their hashes, `pack.json` against both.

    Raises:
        PackError: no pack is in `root`, or it is incomplete.
    """
    pack = Pack(root)
    frame = index_frame(pack.index)
    broken = _check_schema(frame, index_schema, limits or ValidationLimits())
    if any(finding.severity == ERROR for finding in broken):
        return _report([], {}, broken)  # rows that break the schema cannot be checked further
    records = records_of(frame)
    splits, split_findings = _check_splits(records, frame["split"].to_list())
    findings = [*broken, *_check_together(records, limits or ValidationLimits()), *split_findings]
    return _report(records, splits, findings + _check_content(pack, records, progress))


def write_report(report: ValidationReport, folder: Path) -> None:
    """Write `validation.json` and `validation.md` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {**asdict(report), "failed": report.failed}
    (folder / "validation.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "validation.md").write_text(as_markdown(report), encoding="utf-8")


def as_markdown(report: ValidationReport) -> str:
    """Return the report as Markdown."""
    verdict = "failed" if report.failed else "passed"
    lines = ["# Data validation", "", f"{report.tiles:,} readable tiles; validation **{verdict}**.", ""]
    splits = shown_splits(report.splits)
    lines += ["| class | tiles | " + " | ".join(splits) + " |", "|---|---:|" + "---:|" * len(splits)]
    for label, count in report.classes.items():
        counts = " | ".join(str(report.splits.get(split, {}).get(label, 0)) for split in splits)
        lines.append(f"| {label} | {count} | {counts} |")
    lines += ["", "| severity | check | tiles | what |", "|---|---|---:|---|"]
    for item in report.findings:
        examples = f" (e.g. {', '.join(item.examples)})" if item.examples else ""
        lines.append(f"| {item.severity} | {item.check} | {item.count} | {item.message}{examples} |")
    return "\n".join(lines) + "\n"


def _report(
    records: Sequence[TileRecord], splits: dict[str, dict[str, int]], findings: Sequence[ValidationFinding]
) -> ValidationReport:
    return ValidationReport(
        tiles=len(records),
        classes=dict(sorted(Counter(record.label for record in records).items())),
        splits=splits,
        findings=sorted(findings, key=lambda finding: finding.severity),
    )


def _records_only(
    sources: Sequence[Source], progress: Report, corrections: Sequence[Correction]
) -> list[TileRecord | Unreadable]:
    """Read all tiles without keeping pixels: those of 27,000 tiles would take 2.9 GB."""
    return [
        outcome if isinstance(outcome, Unreadable) else outcome[0]
        for outcome in read_all(sources, progress, "validating", corrections)
    ]


def _check_readable(unreadable: Sequence[Unreadable]) -> list[ValidationFinding]:
    reasons: dict[str, list[str]] = defaultdict(list)
    for item in unreadable:
        reasons[item.reason.removeprefix(item.name).split(": ", 1)[-1]].append(item.name)
    return [_finding(ERROR, "readable", reason, names) for reason, names in reasons.items()]


def _check_schema(
    frame: pd.DataFrame, schema: Callable[[ValidationLimits], pa.DataFrameSchema], limits: ValidationLimits
) -> list[ValidationFinding]:
    if frame.empty:
        return []
    schemas = ((ERROR, schema(limits)), (WARNING, warning_schema(limits)))
    found = [(severity, breach) for severity, checked in schemas for breach in breaches(frame, checked)]
    return [
        ValidationFinding(
            severity,
            b.check,
            b.message,
            max(len(b.rows), 1),
            frame["name"].iloc[list(b.rows[:_EXAMPLES])].to_list(),
        )
        for severity, b in found
    ]


def _check_together(records: Sequence[TileRecord], limits: ValidationLimits) -> list[ValidationFinding]:
    return [finding for check in _CHECKS for finding in check(records, limits)]


def _check_names(records: Sequence[TileRecord], limits: ValidationLimits) -> list[ValidationFinding]:
    labels: dict[tuple[str, str], set[str]] = defaultdict(set)
    for record in records:
        labels[record.source, record.name].add(record.label)
    twice = [name for (_, name), found in labels.items() if len(found) > 1]
    message = "a name under two classes: corrections and versions identify tiles by name"
    return _if_any(WARNING, "names", message, twice)


def _check_duplicates(records: Sequence[TileRecord], limits: ValidationLimits) -> list[ValidationFinding]:
    same: dict[str, list[TileRecord]] = defaultdict(list)
    for record in records:
        same[record.sha256].append(record)
    groups = [group for group in same.values() if len(group) > 1]
    contradictory = [g for g in groups if len({r.label for r in g}) > 1]
    plain = [g for g in groups if g not in contradictory]
    return [
        *_if_any(
            ERROR, "duplicates", "the same pixels under two classes", [_names(g) for g in contradictory]
        ),
        *_if_any(WARNING, "duplicates", "the same pixels in two files", [_names(g) for g in plain]),
    ]


def _check_balance(records: Sequence[TileRecord], limits: ValidationLimits) -> list[ValidationFinding]:
    counts = Counter(record.label for record in records)
    if len(counts) < 2:
        return [_finding(ERROR, "balance", "fewer than two classes: nothing to classify", list(counts))]
    (largest, high), (smallest, low) = counts.most_common(1)[0], counts.most_common()[-1]
    if high / low <= limits.max_imbalance:
        return []
    message = f"{largest} has {high / low:.1f} times the tiles of {smallest}"
    return [_finding(WARNING, "balance", message, [largest, smallest])]


_CHECKS: tuple[Callable[[Sequence[TileRecord], ValidationLimits], list[ValidationFinding]], ...] = (
    _check_names,
    _check_duplicates,
    _check_balance,
)


def _check_splits(
    records: Sequence[TileRecord], splits: Sequence[str]
) -> tuple[dict[str, dict[str, int]], list[ValidationFinding]]:
    counts: dict[str, Counter[str]] = {split: Counter() for split in KNOWN_SPLITS}
    for record, split in zip(records, splits, strict=True):
        counts[split][record.label] += 1
    findings = [*_check_leaks(records, splits), *_check_empty(counts)]
    return {split: dict(sorted(counts[split].items())) for split in shown_splits(counts)}, findings


def _check_content(pack: Pack, records: Sequence[TileRecord], progress: Report) -> list[ValidationFinding]:
    """Compare the pixels with the index, and the index with `pack.json`."""
    other = []
    for row, record in enumerate(records):
        progress("comparing pixels with their hashes", row + 1, len(records))
        if content_hash(pack.fetch([row])[0], record.bands) != record.sha256:
            other.append(record.name)
    foreign = data_hash(records, pack.splits.tolist()) != pack.summary.data_hash
    return [
        *_if_any(ERROR, "pack", "the pixels are not those that were packed", other),
        *(
            [_finding(ERROR, "pack", "the index is not the one that pack.json was written for", [])]
            if foreign
            else []
        ),
    ]


def _check_leaks(records: Sequence[TileRecord], splits: Sequence[str]) -> list[ValidationFinding]:
    seen: dict[str, dict[str, str]] = defaultdict(dict)
    for record, split in zip(records, splits, strict=True):
        seen[record.sha256].setdefault(split, record.name)
    leaks = [" = ".join(names.values()) for names in seen.values() if len(names) > 1]
    overlaps = _overlaps(records, splits)
    return [
        *_if_any(ERROR, "leakage", "the same pixels in two splits", leaks),
        *_if_any(WARNING, "leakage", "footprints that overlap across two splits", overlaps),
    ]


def _check_empty(counts: dict[str, Counter[str]]) -> list[ValidationFinding]:
    empty = [split for split in ("train", "val") if not counts[split]]
    return _if_any(ERROR, "splits", "no tile at all", empty)


def _overlaps(records: Sequence[TileRecord], splits: Sequence[str]) -> list[str]:
    """Return "a × b" for tiles of different splits whose footprints overlap."""
    sides: dict[str, float] = defaultdict(lambda: 1e-9)
    for record in records:
        if record.bounds:
            left, bottom, right, top = record.bounds
            sides[record.crs] = max(sides[record.crs], right - left, top - bottom)
    cells: dict[tuple[str, int, int], list[tuple[TileRecord, str]]] = defaultdict(list)
    for record, split in zip(records, splits, strict=True):
        if record.bounds:
            for cell in _cells(record.bounds, sides[record.crs]):
                cells[(record.crs, *cell)].append((record, split))
    found = {
        f"{a.name} × {b.name}"
        for members in cells.values()
        for (a, split_a), (b, split_b) in combinations(members, 2)
        if split_a != split_b and a.name != b.name and _intersect(a, b)
    }
    return sorted(found)


def _cells(bounds: tuple[float, float, float, float], side: float) -> list[tuple[int, int]]:
    """Return the cells of a grid of `side` CRS units that a footprint touches."""
    left, bottom, right, top = bounds
    columns = range(int(left // side), int(right // side) + 1)
    return [(x, y) for x in columns for y in range(int(bottom // side), int(top // side) + 1)]


def _intersect(a: TileRecord, b: TileRecord) -> bool:
    """Return whether two footprints overlap by more than a pixel (1/64 of a side) in both directions."""
    if not (a.bounds and b.bounds):
        return False
    pixel = (a.bounds[2] - a.bounds[0]) / TILE_SIZE
    wide = min(a.bounds[2], b.bounds[2]) - max(a.bounds[0], b.bounds[0])
    high = min(a.bounds[3], b.bounds[3]) - max(a.bounds[1], b.bounds[1])
    return wide > pixel and high > pixel


def _if_any(severity: str, check: str, message: str, names: Sequence[str]) -> list[ValidationFinding]:
    return [_finding(severity, check, message, names)] if names else []


def _finding(severity: str, check: str, message: str, names: Sequence[str]) -> ValidationFinding:
    return ValidationFinding(severity, check, message, len(names), list(names[:_EXAMPLES]))


def _names(group: Sequence[TileRecord]) -> str:
    return " = ".join(record.name for record in group)
