"""The schema of the table of tiles, whether it was just read or comes from a pack's index.

Columns are those of `tilewise.datasets.readers.records.TileRecord`: `bands` as text with blanks, `bounds` as
left, bottom, right and top; a pack's index also has `split` and `first_plane`. pandera checks tables against
it (docs/decisions/0010); checks across tiles (duplicates, leakage, footprints) are in
`tilewise.datasets.quality.validate`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.core.errors import TilewiseError
from tilewise.datasets.core.radiometry import Level
from tilewise.datasets.core.tile import TILE_SIZE
from tilewise.datasets.packs.splits import KNOWN_SPLITS
from tilewise.datasets.readers.records import TileRecord
from tilewise.datasets.readers.sources import Format

if TYPE_CHECKING:  # a machine that serves has neither pandas nor pandera
    import pandas as pd
    import pandera.pandas as pa
    from pyarrow import Table

SIDES = ("left", "bottom", "right", "top")
_MAX_DN = 65_535
_FORM = ("COLUMN_NOT_IN_DATAFRAME", "WRONG_DATATYPE")
_MAX_GSD = 1_000.0  # metres or degrees a pixel: above it, a footprint is a mistake


@dataclass(frozen=True)
class ValidationLimits:
    """Limits beyond which a value is reported as a finding.

    Attributes:
        max_no_data: maximum fraction (0–1) of pixels without data in a tile.
        highest_dn: DN above this are not reflectances (EuroSAT's brightest pixel has 28,002).
        lowest_contrast: a tile whose DN are all within this range is flat: a sensor or export fault.
        max_imbalance: maximum ratio of the most to the least frequent class.
    """

    max_no_data: float = 0.5
    highest_dn: int = 30_000
    lowest_contrast: int = 2
    max_imbalance: float = 10.0


@dataclass(frozen=True, slots=True)
class Breach:
    """A rule that a table breaks: the check's name, its message, and the rows (none: all)."""

    check: str
    message: str
    rows: tuple[int, ...]


def tile_frame(records: Sequence[TileRecord]) -> pd.DataFrame:
    """Return records as a table with one row a tile, in order."""
    pandas, _ = _libraries()
    rows = []
    for record in records:
        row = asdict(record)
        bounds = row.pop("bounds") or (None,) * len(SIDES)
        rows.append({**row, "bands": " ".join(record.bands), **dict(zip(SIDES, bounds, strict=True))})
    frame = pandas.DataFrame(rows)
    return frame.astype(dict.fromkeys(SIDES, "float64")) if rows else frame


def index_frame(index: Table) -> pd.DataFrame:
    """Return a pack's index as such a table."""
    frame = index.to_pandas()
    if "bands" in frame:
        frame["bands"] = [" ".join(map(str, bands)) for bands in frame["bands"]]
    return frame


def records_of(frame: pd.DataFrame) -> list[TileRecord]:
    """Return the rows of a valid table as records: the inverse of `tile_frame`."""
    names = [item.name for item in fields(TileRecord) if item.name in frame and item.name != "bands"]
    return [
        TileRecord(
            **{name: row[name] for name in names},
            bands=tuple(row["bands"].split()),
            bounds=tuple(row[side] for side in SIDES) if row["crs"] else None,
        )
        for row in frame.to_dict("records")
    ]


def tile_schema(limits: ValidationLimits) -> pa.DataFrameSchema:
    """Return the schema that every tile must satisfy to be trained on."""
    _, pandera = _libraries()
    column, check = pandera.Column, pandera.Check
    known = set(BAND_NAMES)
    no_data = f"more than {limits.max_no_data:.0%} of the pixels hold no data"
    dn = check.in_range(0, _MAX_DN, name="range", error=f"DN outside 0 to {_MAX_DN:,}")
    columns = {
        "name": column(
            str, check.str_matches(r"^[^/\\\x00]+$", name="name", error="no name, or one with a folder")
        ),
        "label": column(str, check.str_matches(r"^[^/\\\x00]+$", name="label", error="no class")),
        "source": column(str, check.isin(list(Format), name="source", error="an unknown source")),
        "level": column(str, check.isin([*Level, ""], name="level", error="an unknown processing level")),
        "bands": column(
            str, check(_each(lambda text: _in_order(text, known)), name="bands", error="no list of bands")
        ),
        "crs": column(str),
        "sha256": column(
            str, check.str_matches(r"^[0-9a-f]{64}$", name="sha256", error="no SHA-256 of pixels")
        ),
        "valid_fraction": column(
            float,
            [
                check.in_range(0, 1, name="no data", error="a fraction of valid pixels outside 0 to 1"),
                check.ge(1 - limits.max_no_data, name="no data", error=no_data),
            ],
        ),
        "low": column(int, dn),
        "high": column(int, dn),
        "given": column(str, required=False),  # packs made before corrections existed lack it
        **{side: column(float, nullable=True) for side in SIDES},
    }
    return pandera.DataFrameSchema(columns, checks=_between_columns(check, limits))


def index_schema(limits: ValidationLimits) -> pa.DataFrameSchema:
    """Return the schema that every row of a pack's index must satisfy."""
    _, pandera = _libraries()
    planes = pandera.Check(_planes_follow, name="planes", error="planes that do not follow one another")
    split = pandera.Check.isin(
        KNOWN_SPLITS, name="splits", error=f"a split other than {', '.join(KNOWN_SPLITS)}"
    )
    schema = tile_schema(limits).add_columns(
        {"split": pandera.Column(str, split), "first_plane": pandera.Column(int, pandera.Check.ge(0))}
    )
    schema.checks = [*schema.checks, planes]
    return schema


def warning_schema(limits: ValidationLimits) -> pa.DataFrameSchema:
    """Return the schema that every tile should satisfy; a person should look at those that do not."""
    _, pandera = _libraries()
    bright = f"DN above {limits.highest_dn:,}: brighter than any land"
    return pandera.DataFrameSchema(
        {"high": pandera.Column(int, pandera.Check.le(limits.highest_dn, name="range", error=bright))}
    )


def breaches(frame: pd.DataFrame, schema: pa.DataFrameSchema) -> list[Breach]:
    """Check a table against a schema, and return every rule that it breaks, in the schema's order."""
    _, pandera = _libraries()
    try:
        schema.validate(frame, lazy=True)
    except pandera.errors.SchemaErrors as errors:
        return [_breach(error) for error in _first_causes(errors.schema_errors)]
    return []


def _between_columns(check: Any, limits: ValidationLimits) -> list[Any]:
    flat = "all pixels of all bands are the same: no picture"
    bounds = "bounds that are no footprint: all four and a CRS, or none"
    return [
        check(lambda f: f["high"] - f["low"] >= limits.lowest_contrast, name="range", error=flat),
        check(_footprints, name="footprint", error=bounds),
    ]


def _footprints(frame: pd.DataFrame) -> pd.Series[bool]:
    sides = frame[list(SIDES)]
    wide, high = frame["right"] - frame["left"], frame["top"] - frame["bottom"]
    has_crs = frame["crs"] != ""
    bounded = sides.notna().all(axis=1) & (wide > 0) & (high > 0) & (wide < TILE_SIZE * _MAX_GSD)
    return (bounded & has_crs) | (sides.isna().all(axis=1) & ~has_crs)


def _planes_follow(frame: pd.DataFrame) -> pd.Series[bool]:
    planes = frame["bands"].str.split().str.len()
    return frame["first_plane"] == planes.cumsum() - planes


def _each(test: Callable[[str], bool]) -> Callable[[pd.Series[str]], pd.Series[bool]]:
    return lambda column: column.map(test).astype(bool)


def _in_order(text: str, known: set[str]) -> bool:
    """Whether `text` names bands, each once, in the canonical order."""
    names = text.split()
    return bool(names) and set(names) <= known and names == [name for name in BAND_NAMES if name in names]


def _first_causes(errors: Sequence[Any]) -> list[Any]:
    """Leave out checks that could not run because a column has another type or is missing."""
    ran = [error for error in errors if error.reason_code.name != "CHECK_ERROR"]
    return ran if any(error.reason_code.name in _FORM for error in ran) else list(errors)


def _breach(error: Any) -> Breach:
    """Return one of pandera's errors as a breach: of a named check, or of the table's columns (`schema`)."""
    cases = error.failure_cases
    rows = cases["index"].dropna().astype(int) if hasattr(cases, "columns") else ()
    message = getattr(error.check, "error", None)
    if message and error.reason_code.name != "CHECK_ERROR":
        return Breach(error.check.name, message, tuple(sorted(set(rows))))
    column = (
        getattr(error.schema, "name", None) or cases
    )  # pandera reports a missing column as the failure case
    return Breach("schema", f"the column {column} breaks {message or error.check}", tuple(sorted(set(rows))))


def _libraries() -> tuple[Any, Any]:
    """Return pandas and pandera, which take half a second to import and are not installed for serving.

    Raises:
        TilewiseError: they are not installed.
    """
    try:
        import pandas
        import pandera.pandas
    except ImportError as error:
        raise TilewiseError("validation needs pandera; pip install 'tilewise[train]'") from error
    return pandas, pandera.pandas
