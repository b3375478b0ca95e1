"""The key of a scene's results: whatever would make other bytes makes another key."""

from dataclasses import replace
from pathlib import Path

import pytest

from tilewise.bento.batch.worker import WorkPlan
from tilewise.bento.inference.windows import GridOptions
from tilewise.bento.results.writer import Output, OutputOptions

PLAN = WorkPlan(
    Path("out"), Path("out/.staging"), Path("model.onnx"), "0" * 64, GridOptions(), OutputOptions(), 1
)


@pytest.mark.parametrize(
    "changes",
    [
        {"grid": GridOptions(stride=32)},
        {"outputs": OutputOptions((Output.WINDOWS,))},
        {"model_sha256": "1" * 64},
    ],
)
def test_another_grid_output_or_model_makes_other_results(changes: dict[str, object]) -> None:
    assert replace(PLAN, **changes).key("scene") != PLAN.key("scene")  # type: ignore[arg-type]


def test_another_scene_makes_other_results_and_where_they_lie_does_not() -> None:
    assert PLAN.key("another") != PLAN.key("scene")
    assert replace(PLAN, out=Path("elsewhere"), threads=4).key("scene") == PLAN.key("scene")
