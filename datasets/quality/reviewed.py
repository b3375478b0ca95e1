"""Keep the tiles that a service answered and people labelled, with each label's reviewer and origin.

    data/reviewed/dataset.json           the card: its tiles train, whatever the split plan
    data/reviewed/reviewed.csv           one row a decision, including that a tile cannot be used (`_`)
    data/reviewed/<Class>/served_….tif   GeoTIFFs that declare their bands and radiometry

DVC versions the bytes: the folder is an output of the pipeline that only grows (dvc.yaml), so `dvc.lock`
records which labels a model learned.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import rasterio

from tilewise.datasets.core.bands import LEAVE_OUT, positions
from tilewise.datasets.core.errors import ReviewError
from tilewise.datasets.core.files import atomic_write
from tilewise.datasets.core.radiometry import Level
from tilewise.datasets.core.tile import NO_DATA, Tile
from tilewise.datasets.packs.splits import SPLITS
from tilewise.datasets.readers.sources import CARD_NAME, DatasetCard, Format

DEFAULT = Path("data/reviewed")
TABLE = "reviewed.csv"
_SUFFIX = ".tif"
_LEVEL_NAMES = {Level.L1C: "Level-1C", Level.L2A: "Level-2A"}


@dataclass(frozen=True, slots=True)
class Decision:
    """A person's decision on one tile: its class, or `_` (cannot be used); the reviewer; a reason or ""."""

    name: str
    label: str
    reviewer: str
    why: str

    @property
    def usable(self) -> bool:
        """Whether the tile can be trained on."""
        return self.label != LEAVE_OUT


@dataclass(frozen=True, slots=True)
class AnswerOrigin:
    """The answer that a reviewed tile was served with; all are text, as in the table.

    Attributes:
        served: time of the answer, ISO 8601, UTC.
        request_id: the request's identifier.
        answered, confidence: the class that was answered and its probability (0–1).
        outlier_score: empty where the model had no threshold.
        model, version, model_sha256: the model that answered.
        sha256: hash of the tile's bands' names and DN (`tilewise.datasets.readers.records.content_hash`).
    """

    served: str
    request_id: str
    answered: str
    confidence: str
    outlier_score: str
    model: str
    version: str
    model_sha256: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Reviewed:
    """One row of the table: a decision, when it was applied (ISO 8601, UTC), and the origin of its tile."""

    decision: Decision
    reviewed: str
    origin: AnswerOrigin


_DECISION = tuple(item.name for item in fields(Decision))
_ORIGIN = tuple(item.name for item in fields(AnswerOrigin))
COLUMNS = (*_DECISION, "reviewed", *_ORIGIN)


def begin(root: Path) -> None:
    """Make the folder with its card and an empty table, where they are missing."""
    root.mkdir(parents=True, exist_ok=True)
    if not (root / CARD_NAME).is_file():
        _card().write(root)
    if not (root / TABLE).is_file():
        _write_table(root, {})


def is_empty(root: Path) -> bool:
    """Return whether `root` is a folder of reviewed tiles without any tile yet."""
    return (root / TABLE).is_file() and not any(root.glob(f"*/*{_SUFFIX}"))


def read_reviewed(root: Path) -> dict[str, Reviewed]:
    """Return all decisions by the tiles' names; empty where there is no such folder.

    Raises:
        ReviewError: a table with other columns.
    """
    path = root / TABLE
    if not path.is_file():
        return {}
    rows = read_table(path, COLUMNS)
    return {
        row["name"]: Reviewed(
            Decision(*(row[name] for name in _DECISION)),
            row["reviewed"],
            AnswerOrigin(*(row[name] for name in _ORIGIN)),
        )
        for row in rows
    }


def reviewed_since(root: Path, moment: datetime) -> int:
    """Return how many usable tiles were labelled later than `moment`."""
    found = read_reviewed(root).values()
    return sum(row.decision.usable and datetime.fromisoformat(row.reviewed) > moment for row in found)


def take_up(root: Path, decisions: Iterable[tuple[Decision, AnswerOrigin, Tile]]) -> int:
    """Add labelled tiles and their decisions to `root`; a later decision on a tile replaces the earlier one.

    Tiles are written before the table, so that a run that is stopped halfway can be repeated.

    Returns:
        Number of decisions that are new or changed.
    """
    begin(root)
    known = read_reviewed(root)
    moment = datetime.now(UTC).isoformat(timespec="seconds")
    changed = 0
    for decision, origin, tile in decisions:
        before = known.get(decision.name)
        if before is not None and before.decision == decision:
            continue
        if decision.usable:
            write_tile(tile, root / decision.label / f"{decision.name}{_SUFFIX}")
        _remove_elsewhere(root, decision)
        known[decision.name] = Reviewed(decision, moment, origin)
        changed += 1
    _write_table(root, known)
    return changed


def write_tile(tile: Tile, path: Path) -> None:
    """Write a tile of known level as a GeoTIFF that declares its bands and radiometry, whole or not at all.

    uint16 DN of the present bands in canonical order, 0 = no data, with the tile's georeference if it has
    one.
    """
    assert tile.level is not None  # noqa: S101 - `tilewise.datasets.quality.review` leaves others out
    height, width = tile.pixels.shape[1:]
    profile: dict[str, Any] = {"count": len(tile.bands), "height": height, "width": width}
    profile |= {
        "dtype": "uint16",
        "nodata": NO_DATA,
        "compress": "deflate",
        "predictor": 2,
        "interleave": "band",
    }
    if tile.georeference:
        profile |= {"crs": tile.georeference.crs, "transform": tile.georeference.transform}
    with atomic_write(path) as partial, rasterio.open(partial, "w", driver="GTiff", **profile) as dataset:
        dataset.write(tile.pixels[positions(tile.bands)])
        dataset.descriptions = tile.bands
        dataset.update_tags(
            PROCESSING_LEVEL=_LEVEL_NAMES[tile.level], QUANTIFICATION_VALUE="10000", RADIO_ADD_OFFSET="0"
        )


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a CSV that has `columns` and perhaps others; cells without blanks around them.

    Raises:
        ReviewError: there is no such file, it lacks a column, or it is not a CSV in UTF-8.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise ReviewError(
                    f"{path}: it has no column {', '.join(missing)}; its first line names the columns"
                )
            return [{name: (row[name] or "").strip() for name in columns} for row in reader]
    except FileNotFoundError:
        raise ReviewError(f"{path}: there is no such file; `tilewise data review` prints its path") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ReviewError(f"{path}: not a CSV in UTF-8 ({error}); save the table as one") from None


def as_csv(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """Return a table as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _write_table(root: Path, known: Mapping[str, Reviewed]) -> None:
    """Write the table, sorted by name, whole or not at all."""
    rows = [
        {**asdict(row.decision), "reviewed": row.reviewed, **asdict(row.origin)}
        for _, row in sorted(known.items())
    ]
    with atomic_write(root / TABLE) as partial:
        partial.write_text(as_csv(COLUMNS, rows), encoding="utf-8")


def _remove_elsewhere(root: Path, decision: Decision) -> None:
    """Remove the tile from the folder of its former class."""
    for path in root.glob(f"*/{decision.name}{_SUFFIX}"):
        if not decision.usable or path.parent.name != decision.label:
            path.unlink()


def _card() -> DatasetCard:
    return DatasetCard(
        name="reviewed",
        format=Format.GEOTIFF,
        licence="that of the images that were sent to the service",
        origin="answered by a service, labelled by people; reviewed.csv says by whom and when",
        notes="Chosen because a model was unsure of them: on them, any model looks worse than it is.",
        extra={"split": SPLITS[0]},
    )
