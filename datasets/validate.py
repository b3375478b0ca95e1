"""Is a set of tiles fit to train on? Checks that read every file, a report, a verdict that stops a pipeline.

Errors are what must not reach training: unreadable files, tiles in the wrong form, the same pixels under two
classes or in two splits. Warnings are what a person should look at.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path

from datasets.errors import SplitError
from datasets.progress import Report, silent
from datasets.records import TileRecord, Unreadable, read_all
from datasets.sources import Source
from datasets.splits import SPLITS, SplitPlan, assign
from datasets.tile import TILE_SIZE

ERROR, WARNING = "error", "warning"
_EXAMPLES = 5


@dataclass(frozen=True)
class Limits:
    """Where a value becomes a finding.

    Attributes:
        most_no_data: largest share (0–1) of pixels without data in a tile.
        highest_dn: DN above this is no reflectance (EuroSAT's brightest pixel has 28,002).
        lowest_contrast: a tile whose DN all lie within this range is flat: a sensor or export fault.
        most_imbalance: largest ratio of the most to the least frequent class.
    """

    most_no_data: float = 0.5
    highest_dn: int = 30_000
    lowest_contrast: int = 2
    most_imbalance: float = 10.0


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
    sources: Sequence[Source], plan: SplitPlan, limits: Limits | None = None, progress: Report = silent
) -> ValidationReport:
    """Read every tile of `sources`, divide them by `plan`, and report what is wrong with them."""
    outcomes = list(_records_only(sources, progress))
    unreadable = [outcome for outcome in outcomes if isinstance(outcome, Unreadable)]
    records = [outcome for outcome in outcomes if isinstance(outcome, TileRecord)]
    findings = _check_readable(unreadable)
    for check in _CHECKS:
        findings += check(records, limits or Limits())
    splits, split_findings = _check_splits(records, plan)
    findings += split_findings
    return ValidationReport(
        tiles=len(records),
        classes=dict(sorted(Counter(record.label for record in records).items())),
        splits=splits,
        findings=sorted(findings, key=lambda finding: finding.severity),
    )


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
    lines += ["| class | tiles | " + " | ".join(SPLITS) + " |", "|---|---:|" + "---:|" * len(SPLITS)]
    for label, count in report.classes.items():
        shares = " | ".join(str(report.splits.get(split, {}).get(label, 0)) for split in SPLITS)
        lines.append(f"| {label} | {count} | {shares} |")
    lines += ["", "| severity | check | tiles | what |", "|---|---|---:|---|"]
    for item in report.findings:
        examples = f" (e.g. {', '.join(item.examples)})" if item.examples else ""
        lines.append(f"| {item.severity} | {item.check} | {item.count} | {item.message}{examples} |")
    return "\n".join(lines) + "\n"


def _records_only(sources: Sequence[Source], progress: Report) -> list[TileRecord | Unreadable]:
    """Read everything, but keep no pixels: 27,000 tiles would take 2.9 GB."""
    return [
        outcome if isinstance(outcome, Unreadable) else outcome[0]
        for outcome in read_all(sources, progress, "validating")
    ]


def _check_readable(unreadable: Sequence[Unreadable]) -> list[Finding]:
    reasons: dict[str, list[str]] = defaultdict(list)
    for item in unreadable:
        reasons[item.reason.removeprefix(item.name).split(": ", 1)[-1]].append(item.name)
    return [_finding(ERROR, "readable", reason, names) for reason, names in reasons.items()]


def _check_no_data(records: Sequence[TileRecord], limits: Limits) -> list[Finding]:
    bad = [r.name for r in records if 1 - r.valid_share > limits.most_no_data]
    return _some(ERROR, "no data", f"more than {limits.most_no_data:.0%} of the pixels hold no data", bad)


def _check_range(records: Sequence[TileRecord], limits: Limits) -> list[Finding]:
    bright = [r.name for r in records if r.high > limits.highest_dn]
    flat = [r.name for r in records if r.high - r.low < limits.lowest_contrast]
    return [
        *_some(WARNING, "range", f"DN above {limits.highest_dn:,}: brighter than any land", bright),
        *_some(ERROR, "range", "all pixels of all bands are the same: no picture", flat),
    ]


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
    (most, high), (least, low) = counts.most_common(1)[0], counts.most_common()[-1]
    if high / low <= limits.most_imbalance:
        return []
    return [_finding(WARNING, "balance", f"{most} has {high / low:.1f} times the tiles of {least}", [most, least])]


_CHECKS: tuple[Callable[[Sequence[TileRecord], Limits], list[Finding]], ...] = (
    _check_no_data,
    _check_range,
    _check_duplicates,
    _check_balance,
)


def _check_splits(records: Sequence[TileRecord], plan: SplitPlan) -> tuple[dict[str, dict[str, int]], list[Finding]]:
    try:
        splits = assign(records, plan)
    except SplitError as error:
        return {}, [_finding(ERROR, "splits", str(error), [])]
    counts: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for record, split in zip(records, splits, strict=True):
        counts[split][record.label] += 1
    findings = [*_check_leaks(records, splits), *_check_empty(counts)]
    return {split: dict(sorted(found.items())) for split, found in counts.items()}, findings


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
