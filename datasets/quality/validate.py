"""Is a set of tiles fit to train on? Checks that read every file, a report, a verdict that stops a pipeline.

Errors are what must not reach training: unreadable files, tiles that break the schema (`tilewise.datasets.quality.schema`), the same
pixels under two classes or in two splits. Warnings are what a person should look at.
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
    Limits,
    breaches,
    doubtful_schema,
    index_frame,
    index_schema,
    records_of,
    tile_frame,
    tile_schema,
)
from tilewise.datasets.readers.corrections import Correction, tally
from tilewise.datasets.readers.records import TileRecord, Unreadable, content_hash, read_all
from tilewise.datasets.readers.sources import Source, fixed_splits

if TYPE_CHECKING:
    import pandas as pd
    import pandera.pandas as pa

ERROR, WARNING = "error", "warning"
_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """Something a check found: how bad, which check, in words, how often and a few names."""

    severity: str
    check: str
    message: str
    count: int
    examples: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """All findings, and what the data set holds.

    Attributes:
        tiles: readable tiles.
        classes: tiles of each class.
        splits: tiles of each class in each split (empty where the split failed).
        findings: errors first.
    """

    tiles: int
    classes: dict[str, int]
    splits: dict[str, dict[str, int]]
    findings: list[Finding]

    @property
    def failed(self) -> bool:
        """Whether any finding is an error."""
        return any(finding.severity == ERROR for finding in self.findings)


def validate(
    sources: Sequence[Source],
    plan: SplitPlan,
    limits: Limits | None = None,
    progress: Report = silent,
    corrections: Sequence[Correction] = (),
) -> ValidationReport:
    """Read every tile of `sources`, divide them by `plan`, and report what is wrong with them.

    Raises:
        CorrectionsError: the corrections do not fit the tiles.
    """
    corrected = tally(sources, corrections)
    outcomes = list(_records_only(sources, progress, corrections))
    unreadable = [outcome for outcome in outcomes if isinstance(outcome, Unreadable)]
    records = [outcome for outcome in outcomes if isinstance(outcome, TileRecord)]
    frame = tile_frame(records)
    findings = _check_readable(unreadable)
    findings += _check_schema(frame, tile_schema, limits or Limits())
    findings += _check_together(records, limits or Limits())
    findings += _some(WARNING, "corrections", "corrected, but not among these tiles", corrected.unmet)
    try:
        splits, split_findings = _check_splits(records, assign(records, plan, fixed_splits(sources)))
    except SplitError as error:
        splits, split_findings = {}, [_finding(ERROR, "splits", str(error), [])]
    return _report(records, splits, findings + split_findings)


def validate_pack(root: Path, limits: Limits | None = None, progress: Report = silent) -> ValidationReport:
    """Hold a pack's index against the schema, its pixels against their hashes, and its card against both.

    Raises:
        PackError: no pack is in `root`, or it is not whole.
    """
    pack = Pack(root)
    frame = index_frame(pack.index)
    broken = _check_schema(frame, index_schema, limits or Limits())
    if any(finding.severity == ERROR for finding in broken):
        return _report([], {}, broken)  # rows in another form cannot be asked more
    records = records_of(frame)
    splits, split_findings = _check_splits(records, frame["split"].to_list())
    findings = [*broken, *_check_together(records, limits or Limits()), *split_findings]
    return _report(records, splits, findings + _check_whole(pack, records, progress))


def write_report(report: ValidationReport, folder: Path) -> None:
    """Write `validation.json` and `validation.md` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {**asdict(report), "failed": report.failed}
    (folder / "validation.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "validation.md").write_text(as_markdown(report), encoding="utf-8")


def as_markdown(report: ValidationReport) -> str:
    """Return the report as a page."""
    verdict = "failed" if report.failed else "passed"
    lines = ["# Data validation", "", f"{report.tiles:,} readable tiles; validation **{verdict}**.", ""]
    splits = shown_splits(report.splits)
    lines += ["| class | tiles | " + " | ".join(splits) + " |", "|---|---:|" + "---:|" * len(splits)]
    for label, count in report.classes.items():
        shares = " | ".join(str(report.splits.get(split, {}).get(label, 0)) for split in splits)
        lines.append(f"| {label} | {count} | {shares} |")
    lines += ["", "| severity | check | tiles | what |", "|---|---|---:|---|"]
    for item in report.findings:
        examples = f" (e.g. {', '.join(item.examples)})" if item.examples else ""
        lines.append(f"| {item.severity} | {item.check} | {item.count} | {item.message}{examples} |")
    return "\n".join(lines) + "\n"


def _report(
    records: Sequence[TileRecord], splits: dict[str, dict[str, int]], findings: Sequence[Finding]
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
    """Read everything, but keep no pixels: 27,000 tiles would take 2.9 GB."""
    return [
        outcome if isinstance(outcome, Unreadable) else outcome[0]
        for outcome in read_all(sources, progress, "validating", corrections)
    ]


def _check_readable(unreadable: Sequence[Unreadable]) -> list[Finding]:
    reasons: dict[str, list[str]] = defaultdict(list)
    for item in unreadable:
        reasons[item.reason.removeprefix(item.name).split(": ", 1)[-1]].append(item.name)
    return [_finding(ERROR, "readable", reason, names) for reason, names in reasons.items()]


def _check_schema(frame: pd.DataFrame, schema: Callable[[Limits], pa.DataFrameSchema], limits: Limits) -> list[Finding]:
    if frame.empty:
        return []
    held = ((ERROR, schema(limits)), (WARNING, doubtful_schema(limits)))
    found = [(severity, breach) for severity, asked in held for breach in breaches(frame, asked)]
    return [
        Finding(
            severity, b.check, b.message, max(len(b.rows), 1), frame["name"].iloc[list(b.rows[:_EXAMPLES])].to_list()
        )
        for severity, b in found
    ]


def _check_together(records: Sequence[TileRecord], limits: Limits) -> list[Finding]:
    return [finding for check in _CHECKS for finding in check(records, limits)]


def _check_names(records: Sequence[TileRecord], limits: Limits) -> list[Finding]:
    labels: dict[tuple[str, str], set[str]] = defaultdict(set)
    for record in records:
        labels[record.source, record.name].add(record.label)
    twice = [name for (_, name), found in labels.items() if len(found) > 1]
    return _some(WARNING, "names", "a name under two classes: corrections and versions know tiles by name", twice)


def _check_duplicates(records: Sequence[TileRecord], limits: Limits) -> list[Finding]:
    same: dict[str, list[TileRecord]] = defaultdict(list)
    for record in records:
        same[record.sha256].append(record)
    groups = [group for group in same.values() if len(group) > 1]
    torn = [g for g in groups if len({r.label for r in g}) > 1]
    plain = [g for g in groups if g not in torn]
    return [
        *_some(ERROR, "duplicates", "the same pixels under two classes", [_names(g) for g in torn]),
        *_some(WARNING, "duplicates", "the same pixels in two files", [_names(g) for g in plain]),
    ]


def _check_balance(records: Sequence[TileRecord], limits: Limits) -> list[Finding]:
    counts = Counter(record.label for record in records)
    if len(counts) < 2:
        return [_finding(ERROR, "balance", "fewer than two classes: nothing to classify", list(counts))]
    (limit, high), (minimum, low) = counts.most_common(1)[0], counts.most_common()[-1]
    if high / low <= limits.max_imbalance:
        return []
    return [
        _finding(WARNING, "balance", f"{limit} has {high / low:.1f} times the tiles of {minimum}", [limit, minimum])
    ]


_CHECKS: tuple[Callable[[Sequence[TileRecord], Limits], list[Finding]], ...] = (
    _check_names,
    _check_duplicates,
    _check_balance,
)


def _check_splits(
    records: Sequence[TileRecord], splits: Sequence[str]
) -> tuple[dict[str, dict[str, int]], list[Finding]]:
    counts: dict[str, Counter[str]] = {split: Counter() for split in KNOWN_SPLITS}
    for record, split in zip(records, splits, strict=True):
        counts[split][record.label] += 1
    findings = [*_check_leaks(records, splits), *_check_empty(counts)]
    return {split: dict(sorted(counts[split].items())) for split in shown_splits(counts)}, findings


def _check_whole(pack: Pack, records: Sequence[TileRecord], progress: Report) -> list[Finding]:
    """Compare the pixels with the index and the index with the card: what was packed, and nothing else, is there."""
    other = []
    for row, record in enumerate(records):
        progress("comparing pixels with their hashes", row + 1, len(records))
        if content_hash(pack.fetch([row])[0], record.bands) != record.sha256:
            other.append(record.name)
    card = data_hash(records, pack.splits.tolist()) != pack.summary.data_hash
    return [
        *_some(ERROR, "pack", "the pixels are not those that were packed", other),
        *([_finding(ERROR, "pack", "the index is not the one that pack.json was written for", [])] if card else []),
    ]


def _check_leaks(records: Sequence[TileRecord], splits: Sequence[str]) -> list[Finding]:
    seen: dict[str, dict[str, str]] = defaultdict(dict)
    for record, split in zip(records, splits, strict=True):
        seen[record.sha256].setdefault(split, record.name)
    leaks = [" = ".join(names.values()) for names in seen.values() if len(names) > 1]
    overlaps = _overlaps(records, splits)
    return [
        *_some(ERROR, "leakage", "the same pixels in two splits", leaks),
        *_some(WARNING, "leakage", "footprints that overlap across two splits", overlaps),
    ]


def _check_empty(counts: dict[str, Counter[str]]) -> list[Finding]:
    empty = [split for split in ("train", "val") if not counts[split]]
    return _some(ERROR, "splits", "no tile at all", empty)


def _overlaps(records: Sequence[TileRecord], splits: Sequence[str]) -> list[str]:
    """Return "a × b" for tiles of different splits that share ground, by hashing footprints into cells."""
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
    """Whether two footprints share more than an edge: over a pixel (1/64 of a side) in both directions."""
    if not (a.bounds and b.bounds):
        return False
    pixel = (a.bounds[2] - a.bounds[0]) / TILE_SIZE
    wide = min(a.bounds[2], b.bounds[2]) - max(a.bounds[0], b.bounds[0])
    high = min(a.bounds[3], b.bounds[3]) - max(a.bounds[1], b.bounds[1])
    return wide > pixel and high > pixel


def _some(severity: str, check: str, message: str, names: Sequence[str]) -> list[Finding]:
    return [_finding(severity, check, message, names)] if names else []


def _finding(severity: str, check: str, message: str, names: Sequence[str]) -> Finding:
    return Finding(severity, check, message, len(names), list(names[:_EXAMPLES]))


def _names(group: Sequence[TileRecord]) -> str:
    return " = ".join(record.name for record in group)
