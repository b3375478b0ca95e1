"""Each gate's figure and limit to the digit, on predictions that are made up: no model is run."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mlflow.entities.model_registry import ModelVersion
from pydantic import ValidationError
from sklearn.metrics import f1_score
from tiny_onnx import metadata, write_model

from tilewise.datasets.core.errors import TrainingError
from tilewise.models.model_file import ModelFile, ModelMetadata, Outliers, PredictionSets, int8_of
from tilewise.training.evaluate.disturbances import DISTURBANCES
from tilewise.training.evaluate.outputs import NO_ZONE, Predictions, open_single_threaded
from tilewise.training.registry import gates
from tilewise.training.registry.gates import (
    GateContext,
    GateResult,
    GateSettings,
    lower_bounds,
    open_context,
    run_gates,
)

CLASSES = ("forest", "lake", "town")
LABELS = [0, 0, 0, 0, 1, 1, 1, 1]
KNOWN = metadata(CLASSES).model_copy(
    update={
        "prediction_sets": PredictionSets(method="made up", thresholds={0.8125: 0.9, 0.9375: 0.5}),
        "outliers": Outliers(method="made up", threshold=5.0, false_alarms=0.05),
    }
)


class Tiles:
    """As much of a pack as the gates read: each tile is its row."""

    root = Path("pack")
    summary = SimpleNamespace(classes=CLASSES, data_hash="abc")

    def __init__(self, count: int) -> None:
        self.count = count

    def rows(self, split: str) -> np.ndarray:
        return np.arange(self.count if split == "test" else 0)

    def fetch(self, rows: np.ndarray) -> np.ndarray:
        return rows


def answers(predicted: list[int], labels: list[int] = LABELS, zones: list[str] | None = None) -> Predictions:
    """Predictions that are sure of one class each; the outlier scores are 0, 1, 2 and so on."""
    count = len(labels)
    return Predictions(
        CLASSES,
        np.eye(3, dtype=np.float32)[predicted],
        np.arange(count, dtype=np.float32),
        np.array(labels),
        np.array(zones or [NO_ZONE] * count),
    )


RIGHT = answers(LABELS)
SIX = answers([0, 0, 0, 1, 1, 1, 1, 0], zones=["east"] * 6 + ["west"] * 2)
FIVE = answers([0, 0, 0, 1, 1, 1, 0, 0])
FOUR = answers([0, 0, 1, 1, 1, 1, 0, 0])
TWO = answers([0, 1, 1, 1, 1, 0, 0, 0])
WRONG = answers([1, 1, 1, 1, 0, 0, 0, 0])
Outputs = dict[str, Predictions]


def context(
    candidate: Outputs,
    champion: Outputs | None = None,
    /,
    known: ModelMetadata = KNOWN,
    path: Path = Path("candidate.onnx"),
    **settings: Any,
) -> GateContext:
    """Candidate and champion that answer so, by the name of a disturbance."""
    cache = {("a", name): predictions for name, predictions in candidate.items()}
    cache |= {("b", name): predictions for name, predictions in (champion or {}).items()}
    made = [ModelFile(path, sha, known, None) for sha in "ab"]  # type: ignore[arg-type] # never run
    tiles: Any = Tiles(len(candidate[""].labels))
    return GateContext(
        made[0],
        made[1] if champion else None,
        tiles,
        GateSettings.model_validate({"min_tiles": 1} | settings),
        cache,
    )


def judged(of: GateContext) -> dict[str, GateResult]:
    return {result.gate: result for result in run_gates(of)}


FLOOR = {"accuracy": 0, "macro_f1": 0, "class_recall": 0, "class_tiles": 4}


@pytest.mark.parametrize(
    ("name", "figure", "settings", "says"),
    [
        ("floor/accuracy", 0.75, lambda x: {"floor": FLOOR | {"accuracy": x}}, "≥ {:g}"),
        ("floor/macro_f1", 0.75, lambda x: {"floor": FLOOR | {"macro_f1": x}}, "≥ {:g}"),
        ("floor/recall/forest", 0.75, lambda x: {"floor": FLOOR | {"class_recall": x}}, "≥ {:g}"),
        (
            "coverage",
            0.75,
            lambda x: {"coverage": {"target": 0.9375, "max_below": 0.9375 - x}},
            "≥ {:g} at the target 0.9375",
        ),
        ("calibration", 0.25, lambda x: {"calibration": x}, "≤ {:g}"),
        ("outliers", 0.25, lambda x: {"outliers": x}, "≤ {:g} of in-distribution tiles flagged"),
        ("robustness/turned", 0.5, lambda x: {"robustness": {"turned": x}}, "≤ {:g} of accuracy lost"),
        (
            "robustness/turned/champion",
            0.375,
            lambda x: {"robustness": {"turned": 1, "more_than_champion": x}},
            "≤ {:g} behind the champion",
        ),
        ("zones/west", 0.25, lambda x: {"zones": {"tiles": 2, "max_below": x}}, "≤ {:g} below all"),
        ("latency", 3.0, lambda x: {"latency": {"milliseconds": x}}, "≤ {:g} ms of CPU time a tile"),
        (
            "latency/champion",
            1.5,
            lambda x: {"latency": {"milliseconds": 9, "times_champion": x}},
            "≤ {:g} ×",
        ),
        ("parity", 0.5, lambda x: {"parity": x}, "≤ {:g} between optimised and plain graph"),
    ],
)
def test_a_figure_at_its_limit_passes_and_one_beyond_does_not(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    figure: float,
    settings: Callable[[float], dict[str, Any]],
    says: str,
) -> None:
    times = {"candidate": {1: 3.0, 16: 1.0}, "champion": {1: 2.0, 16: 0.1}}
    monkeypatch.setattr(gates, "cpu_milliseconds", lambda models: {model: times[model] for model in models})
    monkeypatch.setattr(gates, "graph_difference", lambda model, tiles: 0.5)
    for step in (-0.125, 0.0, 0.125):
        limit = figure + step
        found = judged(context({"": SIX, "turned": TWO}, {"": SIX, "turned": FIVE}, **settings(limit)))
        passes = step <= 0 if says.startswith("≥") else step >= 0
        assert found[name] == GateResult(name, passes, figure, says.format(limit))


@pytest.mark.parametrize(
    ("candidate", "champion", "figure", "margin", "passes"),
    [
        (SIX, SIX, 0, 0, True),
        (SIX, SIX, 0, 0.5, True),
        (WRONG, RIGHT, -1, 1, True),
        (WRONG, RIGHT, -1, 0.9375, False),
        (RIGHT, WRONG, 1, 0.5, True),
    ],
)
def test_the_champion_s_margin_may_be_lost_and_no_more(
    candidate: Predictions, champion: Predictions, figure: float, margin: float, passes: bool
) -> None:
    for name in ("accuracy", "macro_f1"):
        asked = {"accuracy": 1, "macro_f1": 1, "confidence": 0.9, "resamples": 100, name: margin}
        found = judged(context({"": candidate}, {"": champion}, champion=asked))
        limit = f"≥ -{margin:g} against the champion, 90%"
        assert found[f"champion/{name}"] == GateResult(f"champion/{name}", passes, figure, limit)


def test_without_a_champion_nothing_is_compared() -> None:
    asked = {"champion": {"accuracy": 0, "macro_f1": 0}, "robustness": {"turned": 1}}
    assert list(judged(context({"": SIX, "turned": SIX}, **asked))) == ["robustness/turned"]


@pytest.mark.parametrize("resamples", [100, 300])
def test_the_bounds_are_the_quantiles_of_scikit_learn_s_figures_over_as_many_draws(resamples: int) -> None:
    random = np.random.default_rng(1)
    labels = [*random.integers(0, 2, 29).tolist(), 2]  # one town: draws have none, or one, or some
    models = [answers(random.integers(0, 3, 30).tolist(), labels) for _ in range(2)]
    asked = {"accuracy": 0, "macro_f1": 0, "confidence": 0.8, "resamples": resamples}
    of = context({"": models[0]}, {"": models[1]}, champion=asked, seed=7)
    gains: dict[str, list[float]] = {"accuracy": [], "macro_f1": []}
    for draw in np.random.default_rng(7).integers(0, 30, (resamples, 30)):
        truth = models[0].labels[draw]
        first, second = (model.predicted[draw] for model in models)
        seen = np.unique(truth)
        f1 = [f1_score(truth, p, labels=seen, average="macro", zero_division=0) for p in (first, second)]
        gains["accuracy"].append((first == truth).mean() - (second == truth).mean())
        gains["macro_f1"].append(f1[0] - f1[1])
    expected = {name: np.quantile(values, 0.2) for name, values in gains.items()}
    assert lower_bounds(*models, of) == pytest.approx(expected)


@pytest.mark.parametrize(("class_tiles", "judged_classes"), [(4, ["forest", "lake"]), (5, [])])
def test_a_class_is_judged_from_so_many_tiles_on(class_tiles: int, judged_classes: list[str]) -> None:
    found = judged(context({"": SIX}, floor=FLOOR | {"class_tiles": class_tiles}))
    assert list(found)[2:] == [f"floor/recall/{name}" for name in judged_classes]


@pytest.mark.parametrize(("tiles", "zones"), [(2, ["east", "west"]), (3, ["east"]), (6, ["east"]), (7, [])])
def test_a_zone_is_judged_from_so_many_tiles_on_and_tiles_without_one_are_none(
    tiles: int, zones: list[str]
) -> None:
    found = judged(context({"": SIX}, zones={"tiles": tiles, "max_below": 1}))
    assert list(found) == [f"zones/{zone}" for zone in zones]
    assert judged(context({"": FIVE}, zones={"tiles": tiles, "max_below": 1})) == {}


@pytest.mark.parametrize(
    ("target", "figure", "passed"), [(0.8125, 0.75, True), (0.9375, 1.0, True), (0.95, 0.0, False)]
)
def test_coverage_is_that_of_the_threshold_calibrated_for_the_target(
    target: float, figure: float, passed: bool
) -> None:
    """Of eight tiles, two give their label 0.5, the threshold for 0.9375, and six give it more."""
    labels = np.array(LABELS)
    sure = np.where(np.arange(8) < 6, 0.9, 0.5)[:, None]
    probabilities = np.where(np.eye(3)[labels] > 0, sure, (1 - sure) / 2)
    some = Predictions(CLASSES, probabilities, np.zeros(8, np.float32), labels, np.array([NO_ZONE] * 8))
    found = judged(context({"": some}, coverage={"target": target, "max_below": 0.25}))["coverage"]
    assert (found.passed, found.figure) == (passed, figure)
    if not figure:
        assert found.limit == "prediction sets calibrated for 0.95"


def test_what_is_not_calibrated_does_not_pass() -> None:
    asked = {"coverage": {"target": 0.8125, "max_below": 1}, "outliers": 1.0}
    found = judged(context({"": RIGHT}, known=metadata(CLASSES), **asked))
    assert found == {
        "coverage": GateResult("coverage", False, 0.0, "prediction sets calibrated for 0.8125"),
        "outliers": GateResult("outliers", False, 0.0, "a calibrated outlier score"),
    }


@pytest.mark.parametrize(("limit", "passed"), [(0.125, False), (0.25, True), (0.5, True)])
def test_megabytes_are_millions_of_bytes(tmp_path: Path, limit: float, passed: bool) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(bytes(250_000))
    found = judged(context({"": SIX}, path=path, megabytes=limit))
    assert found == {"megabytes": GateResult("megabytes", passed, 0.25, f"≤ {limit:g} MB")}


@pytest.mark.parametrize(("limit", "passed"), [(0.125, False), (0.25, True), (0.5, True)])
def test_the_int8_file_may_lose_its_limit_and_no_more(tmp_path: Path, limit: float, passed: bool) -> None:
    candidate = open_single_threaded(write_model(tmp_path / "model.onnx"))
    text = metadata().model_copy(update={"quantised_from": candidate.sha256}).model_dump_json()
    int8 = open_single_threaded(write_model(int8_of(candidate.path), text))
    cache = {(candidate.sha256, ""): SIX, (int8.sha256, ""): FOUR}
    settings = GateSettings(int8=limit, min_tiles=1)
    tiles: Any = Tiles(8)
    found = judged(GateContext(candidate, None, tiles, settings, cache))
    says = f"≤ {limit:g} of accuracy lost against fp32"
    assert found == {"int8": GateResult("int8", passed, 0.25, says)}


@pytest.mark.parametrize("other", ["", "0" * 64, "f" * 64])
def test_an_int8_file_of_another_model_loses_all(tmp_path: Path, other: str) -> None:
    path = write_model(tmp_path / "model.onnx")
    text = metadata().model_copy(update={"quantised_from": other}).model_dump_json()
    write_model(int8_of(path), text)
    found = judged(context({"": SIX}, path=path, int8=1.0))
    assert found == {
        "int8": GateResult("int8", False, 1.0, "an INT8 file made from this version's fp32 file")
    }


def test_parity_is_that_of_64_tiles_and_the_contract_that_of_five(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "graph_difference", lambda model, tiles: float(len(tiles)))
    monkeypatch.setattr(gates.contract, "violations", lambda model, tiles: [f"tile {n}" for n in tiles])
    found = judged(context({"": answers([0] * 100, [0] * 100)}, parity=64, contract=True))
    assert found["parity"].figure == 64
    assert found["parity"].passed
    says = "tile 0; tile 1; tile 2; tile 3; tile 4"
    assert found["contract"] == GateResult("contract", False, 5, says)


def test_a_service_that_keeps_its_contract_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates.contract, "violations", lambda model, tiles: [])
    found = judged(context({"": SIX}, contract=True))
    assert found == {"contract": GateResult("contract", True, 0, "a running service keeps its contract")}


def test_a_limit_of_zero_is_one_and_gates_that_are_left_out_are_not_applied() -> None:
    assert judged(context({"": SIX})) == {}
    found = judged(context({"": SIX}, outliers=0, calibration=0))
    assert {name: result.passed for name, result in found.items()} == {
        "calibration": False,
        "outliers": False,
    }


def test_exactly_the_minimum_of_tiles_is_enough() -> None:
    assert judged(context({"": SIX}, min_tiles=8, outliers=1))
    with pytest.raises(TrainingError) as caught:
        judged(context({"": SIX}, min_tiles=9, outliers=1))
    assert str(caught.value) == (
        "pack: 8 tiles in the split 'test', the minimum is 9; name another pack, or change the gates file"
    )


def test_the_tiles_are_those_of_the_split_in_the_settings() -> None:
    assert len(context({"": SIX}).rows) == 8
    assert len(context({"": SIX}, split="val").rows) == 0


@pytest.mark.parametrize(
    ("tags", "compared", "told"),
    [({"semver": "1.2.0"}, True, "1.2.0"), ({}, True, "7"), ({"semver": "1.2.0"}, False, "none")],
)
def test_a_version_s_tags_say_what_it_was_measured_on(
    tags: dict[str, str], compared: bool, told: str
) -> None:
    version = ModelVersion(
        "tilewise", "7", 0, tags=[SimpleNamespace(key=k, value=v) for k, v in tags.items()]
    )
    of = context({"": SIX}, {"": SIX} if compared else None)
    assert of.tags(version) == {"data_hash": "abc", "split": "test", "tiles": "8", "champion": told}
    assert of.tags(None)["champion"] == "none"


@pytest.mark.parametrize(
    ("classes", "compared"),
    [(CLASSES, True), ((*CLASSES, "desert"), True), (("forest", "lake", "desert"), False)],
)
def test_a_champion_is_compared_if_it_knows_all_classes_of_the_tiles(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], classes: tuple[str, ...], compared: bool
) -> None:
    weights = np.zeros((14, len(classes)), np.float32)
    champion = write_model(tmp_path / "c.onnx", metadata(classes).model_dump_json(), weights=weights)
    candidate = write_model(tmp_path / "model.onnx")
    tiles: Any = Tiles(8)
    of = open_context(candidate, champion, tiles, GateSettings())
    assert (of.champion is not None) == compared
    told = "the champion lacks classes of these tiles, so the candidate is not compared with it\n"
    assert capsys.readouterr().out == ("" if compared else told)
    assert open_context(candidate, None, tiles, GateSettings()).champion is None


# The settings.

REQUIRED: dict[str, dict[str, Any]] = {
    "champion": {"accuracy": 0.5, "macro_f1": 0.5},
    "floor": {"accuracy": 0.5, "macro_f1": 0.5, "class_recall": 0.5},
    "coverage": {"target": 0.5, "max_below": 0.5},
    "robustness": {},
    "zones": {"max_below": 0.5},
    "latency": {"milliseconds": 1},
}
UNIT = ([0, 1], [-0.1, 1.1])


@pytest.mark.parametrize(
    ("section", "name", "accepted", "refused"),
    [
        ("champion", "confidence", [0.51, 0.99], [0.5, 1]),
        ("champion", "resamples", [100, 100_000], [99, 100_001]),
        ("champion", "accuracy", *UNIT),
        ("champion", "macro_f1", *UNIT),
        ("floor", "accuracy", *UNIT),
        ("floor", "macro_f1", *UNIT),
        ("floor", "class_recall", *UNIT),
        ("floor", "class_tiles", [1], [0]),
        ("coverage", "target", [0.01, 0.99], [0, 1]),
        ("coverage", "max_below", *UNIT),
        ("robustness", "more_than_champion", *UNIT),
        ("zones", "tiles", [1], [0]),
        ("zones", "max_below", *UNIT),
        ("latency", "milliseconds", [0.5], [0]),
        ("latency", "times_champion", [0.5], [0]),
    ],
)
def test_a_setting_beyond_its_bounds_is_refused(
    section: str, name: str, accepted: list[float], refused: list[float]
) -> None:
    for value in accepted:
        settings = GateSettings.model_validate({section: REQUIRED[section] | {name: value}})
        assert getattr(getattr(settings, section), name) == value
    for value in refused:
        with pytest.raises(ValidationError, match=f"{section}.{name}"):
            GateSettings.model_validate({section: REQUIRED[section] | {name: value}})


def test_what_is_left_out_has_its_default() -> None:
    settings = GateSettings.model_validate(REQUIRED).model_dump()
    assert settings["champion"] == REQUIRED["champion"] | {"confidence": 0.95, "resamples": 2000}
    assert settings["floor"] == REQUIRED["floor"] | {"class_tiles": 10}
    assert settings["robustness"] == {"more_than_champion": 1.0}
    assert settings["zones"] == {"tiles": 30, "max_below": 0.5}
    assert settings["latency"] == {"milliseconds": 1, "times_champion": 1.5}
    plain = GateSettings()
    assert (plain.split, plain.min_tiles, plain.seed, plain.contract, plain.approval) == (
        "test",
        100,
        0,
        False,
        True,
    )
    assert GateSettings(min_tiles=1).min_tiles == 1
    with pytest.raises(ValidationError):
        GateSettings(min_tiles=0)


@pytest.mark.parametrize("section", [None, "floor", "robustness"])
def test_settings_stay_as_they_were_read(section: str | None) -> None:
    settings = GateSettings.model_validate(REQUIRED)
    with pytest.raises(ValidationError, match="frozen"):
        setattr(getattr(settings, section) if section else settings, "accuracy" if section else "seed", 1)


def test_disturbances_are_limits_by_name_and_an_unknown_one_is_refused() -> None:
    asked = GateSettings.model_validate(
        {"robustness": {"haze": 1, "turned": 0.5, "more_than_champion": 0.25}}
    )
    assert asked.robustness is not None
    assert asked.robustness.limits == {"haze": 1.0, "turned": 0.5}
    with pytest.raises(ValidationError) as caught:
        GateSettings.model_validate({"robustness": {"rain": 1, "fog": 1, "haze": 1}})
    assert f"fog, rain: the disturbances are {', '.join(DISTURBANCES)}" in str(caught.value)


@pytest.mark.parametrize(
    ("approval", "approver", "objection"),
    [
        (True, "", "a person"),
        (True, "Ada", None),
        (False, "", None),
        (False, "Ada", None),
        ((), "", "a person"),
        ((), "Ada", None),
        (("Ada", "Grace"), "", "one of Ada, Grace"),
        (("Ada", "Grace"), "Edsger", "one of Ada, Grace"),
        (("Ada", "Grace"), "Grace", None),
    ],
)
def test_an_approval_is_by_a_person_or_one_of_these(
    approval: bool | tuple[str, ...], approver: str, objection: str | None
) -> None:
    wanted = f"{objection} must approve; add --approve NAME" if objection else None
    assert GateSettings(approval=approval).objection(approver) == wanted
