"""The schema of the table of tiles: what it lets through, and what it says of what it does not."""

from collections.abc import Callable
from typing import Any

import pytest

from tilewise.datasets.quality.schema import (
    ValidationLimits,
    breaches,
    index_frame,
    index_schema,
    records_of,
    tile_frame,
    tile_schema,
)
from tilewise.datasets.readers.records import TileRecord

SOUND: dict[str, Any] = {
    "name": "a",
    "label": "A",
    "source": "geotiff",
    "level": "L1C",
    "bands": ("B02", "B8A"),
    "crs": "EPSG:32632",
    "bounds": (0.0, 0.0, 640.0, 640.0),
    "sha256": "0" * 64,
    "valid_fraction": 1.0,
    "low": 1,
    "high": 900,
}


def told(change: dict[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    frame = tile_frame([TileRecord(**SOUND), TileRecord(**SOUND | change)])
    return [(breach.check, breach.rows) for breach in breaches(frame, tile_schema(ValidationLimits()))]


def test_sound_rows_pass_and_come_back_as_they_were() -> None:
    records = [
        TileRecord(**SOUND),
        TileRecord(**SOUND | {"crs": "", "bounds": None, "level": "", "given": "B"}),
    ]
    frame = tile_frame(records)
    assert breaches(frame, tile_schema(ValidationLimits())) == []
    assert records_of(frame) == records


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"name": ""}, "name"),
        ({"name": "../a"}, "name"),
        ({"label": ""}, "label"),
        ({"source": "pickle"}, "source"),
        ({"level": "L3"}, "level"),
        ({"bands": ("B8A", "B02")}, "bands"),
        ({"bands": ()}, "bands"),
        ({"bands": ("B02", "B99")}, "bands"),
        ({"sha256": "0" * 63}, "sha256"),
        ({"valid_fraction": 0.4}, "no data"),
        ({"valid_fraction": 1.2}, "no data"),
        ({"high": 70_000}, "range"),
        ({"low": 900}, "range"),
        ({"bounds": None}, "footprint"),
        ({"crs": ""}, "footprint"),
        ({"bounds": (640.0, 0.0, 0.0, 640.0)}, "footprint"),
    ],
)
def test_a_row_that_breaks_a_rule_is_named_with_the_rule(change: dict[str, Any], check: str) -> None:
    assert told(change) == [(check, (1,))]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda index: index.drop_columns("level"), "the column level breaks column_in_dataframe"),
        (lambda index: index.set_column(0, "name", [list(range(len(index)))]), "the column name breaks"),
        (
            lambda index: index.take(list(reversed(range(len(index))))),
            "planes that do not follow one another",
        ),
    ],
)
def test_an_index_of_another_form_says_which_column(
    pack: Any, spoil: Callable[[Any], Any], message: str
) -> None:
    assert breaches(index_frame(pack.index), index_schema(ValidationLimits())) == []
    found = breaches(index_frame(spoil(pack.index)), index_schema(ValidationLimits()))
    assert any(breach.message.startswith(message) for breach in found), found
