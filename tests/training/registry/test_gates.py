"""Each gate lets a sound model pass and stops one that lacks what it asks for."""

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import recall_score
from tiny_onnx import write_model

from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.packs.pack import Pack
from tilewise.models.export.quantise import rewrite_metadata
from tilewise.models.model_file import Outliers, PredictionSets, int8_of, open_model
from tilewise.training.evaluate.disturbances import DISTURBANCES
from tilewise.training.evaluate.outputs import cpu_milliseconds, open_single_threaded
from tilewise.training.registry.gates import (
    DEFAULT,
    GATES,
    GateContext,
    GateResult,
    GateSettings,
    lower_bounds,
    read_gate_settings,
    run_gates,
)

MakeModel = Callable[..., Path]


def judge(
    judged: Path, candidate: Path, serving: Path | None = None, /, **gates: object
) -> dict[str, GateResult]:
    """Return the results of the gates in the settings, by name."""
    settings = GateSettings.model_validate(gates)
    opened = open_single_threaded(serving) if serving else None
    context = GateContext(open_single_threaded(candidate), opened, Pack(judged), settings)
    return {result.gate: result for result in run_gates(context)}


CHAMPION = {"accuracy": 0.01, "macro_f1": 0.02, "resamples": 500}
FLOOR = {"accuracy": 0.6, "macro_f1": 0.6, "class_recall": 0.05, "class_tiles": 5}


def test_every_gate_of_the_shipped_file_is_known() -> None:
    settings = read_gate_settings(DEFAULT)
    assert all(getattr(settings, name) for name in GATES)


def test_a_model_that_answers_the_same_as_the_champion_passes(judged: Path, make_model: MakeModel) -> None:
    found = judge(judged, make_model(), make_model(), champion=CHAMPION)
    assert {name: finding.passed for name, finding in found.items()} == {
        "champion/accuracy": True,
        "champion/macro_f1": True,
    }
    assert found["champion/accuracy"].figure == 0


def test_a_much_worse_model_is_stopped_by_the_champion_and_by_the_floor(
    judged: Path, make_model: MakeModel
) -> None:
    found = judge(judged, make_model(noise=1.5), make_model(), champion=CHAMPION, floor=FLOOR)
    assert not found["champion/accuracy"].passed
    assert not found["champion/macro_f1"].passed
    assert not found["floor/accuracy"].passed


def test_a_much_better_model_passes_and_its_gain_is_sure(judged: Path, make_model: MakeModel) -> None:
    found = judge(judged, make_model(), make_model(noise=1.5), champion=CHAMPION)
    assert found["champion/accuracy"].passed
    assert found["champion/accuracy"].figure > 0


def test_the_bootstrap_is_paired(judged: Path, make_model: MakeModel) -> None:
    """Two models that miss the same tiles differ in nothing, however few tiles there are."""
    settings = GateSettings.model_validate({"champion": CHAMPION})
    model = open_single_threaded(make_model(noise=0.3))
    context = GateContext(model, model, Pack(judged), settings)
    assert lower_bounds(context.predictions(model), context.predictions(model), context) == {
        "accuracy": 0,
        "macro_f1": 0,
    }


def test_the_bootstrap_repeats(judged: Path, make_model: MakeModel) -> None:
    first, second = (judge(judged, make_model(noise=0.3), make_model(), champion=CHAMPION) for _ in range(2))
    assert first == second


def test_recall_is_judged_for_classes_with_enough_tiles_only(judged: Path, make_model: MakeModel) -> None:
    asked = FLOOR | {"class_recall": 1.0}
    found = judge(judged, make_model(noise=1.5), floor=asked)
    assert any(not finding.passed for name, finding in found.items() if name.startswith("floor/recall/"))
    found = judge(judged, make_model(noise=1.5), floor=asked | {"class_tiles": 1000})
    assert not [name for name in found if name.startswith("floor/recall/")]


def test_prediction_sets_must_be_there_and_cover(judged: Path, make_model: MakeModel) -> None:
    asked = {"target": 0.9, "max_below": 0.1}
    assert judge(judged, make_model(), coverage=asked)["coverage"].passed
    assert not judge(judged, make_model(prediction_sets=None), coverage=asked)["coverage"].passed
    hopeful = PredictionSets(method="none", thresholds={0.9: 0.999})
    assert not judge(judged, make_model(prediction_sets=hopeful), coverage=asked)["coverage"].passed


def test_a_model_that_flags_known_tiles_is_stopped(judged: Path, make_model: MakeModel) -> None:
    assert judge(judged, make_model(), outliers=0.1)["outliers"].passed
    alarmed = Outliers(method="mean", threshold=0.0, false_alarms=0.05)
    found = judge(judged, make_model(outliers=alarmed), outliers=0.1)["outliers"]
    assert not found.passed
    assert found.figure == 1
    assert not judge(judged, make_model(outliers=None), outliers=0.1)["outliers"].passed


def test_a_sharpened_model_is_stopped_by_calibration(judged: Path, make_model: MakeModel) -> None:
    sound, blurred = (judge(judged, make_model(noise=n), calibration=0.25)["calibration"] for n in (0.0, 1.5))
    assert sound.passed
    assert not blurred.passed


def test_robustness_is_measured_for_each_disturbance_and_against_the_champion(
    judged: Path, make_model: MakeModel
) -> None:
    asked = dict.fromkeys(DISTURBANCES, 1.0) | {"haze": 0.0, "more_than_champion": 0.0}
    found = judge(judged, make_model(), make_model(), robustness=asked)
    assert {f"robustness/{name}" for name in DISTURBANCES} <= set(found)
    assert found["robustness/turned"].figure == 0, "a model of band means cannot see a turn"
    assert not found["robustness/haze"].passed
    assert found["robustness/haze/champion"].passed


def test_zones_are_judged_against_all(judged: Path, make_model: MakeModel) -> None:
    found = judge(judged, make_model(), zones={"tiles": 10, "max_below": 0.0})
    assert len(found) > 1
    assert any(finding.passed for finding in found.values())
    assert any(not finding.passed for finding in found.values())


def test_latency_size_and_parity(judged: Path, make_model: MakeModel) -> None:
    asked = {"latency": {"milliseconds": 1000, "times_champion": 1000}, "megabytes": 1, "parity": 1e-4}
    found = judge(judged, make_model(), make_model(), **asked)
    assert set(found) == {"latency", "latency/champion", "megabytes", "parity"}
    assert all(finding.passed for finding in found.values())
    tight = {"latency": {"milliseconds": 1e-9}, "megabytes": 1e-9}
    assert not any(finding.passed for finding in judge(judged, make_model(), **tight).values())


def test_the_int8_file_is_judged_where_there_is_one(judged: Path, make_model: MakeModel) -> None:
    candidate = make_model()
    assert judge(judged, candidate, int8=0.01) == {}
    shutil.copyfile(candidate, int8_of(candidate))  # as good as it can be, and made from no file
    stale = judge(judged, candidate, int8=0.01)["int8"]
    assert (stale.passed, stale.limit) == (False, "an INT8 file made from this version's fp32 file")
    shutil.copyfile(make_model(noise=1.5), int8_of(candidate))
    opened = open_model(int8_of(candidate))
    changed = opened.metadata.model_copy(update={"quantised_from": open_model(candidate).sha256})
    rewrite_metadata(int8_of(candidate), changed)
    lossy = judge(judged, candidate, int8=0.01)["int8"]
    assert not lossy.passed
    assert lossy.figure > 0.01
    assert judge(judged, candidate, int8=1.0)["int8"].passed


def test_a_list_of_approvers_is_for_these_alone() -> None:
    asked = GateSettings.model_validate({"approval": ["Ada", "Grace"]})
    assert asked.objection("Grace") is None
    assert asked.objection("Edsger") == "one of Ada, Grace must approve; add --approve NAME"
    assert GateSettings(approval=True).objection("") == "a person must approve; add --approve NAME"
    assert GateSettings(approval=False).objection("") is None


def test_too_few_tiles_decide_nothing(judged: Path, make_model: MakeModel) -> None:
    with pytest.raises(TrainingError, match="120 tiles in the split 'test', the minimum is 1000"):
        judge(judged, make_model(), min_tiles=1000, megabytes=1)


def test_a_model_of_other_classes_is_refused(judged: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="does not know the classes AnnualCrop"):
        judge(judged, write_model(tmp_path / "model.onnx"), calibration=0.5)


def test_disturbances_leave_no_data_alone_and_make_none_but_stripes_and_bands() -> None:
    tiles = np.full((1, 13, 64, 64), 300, np.uint16)
    tiles[:, :, :8] = 0
    for name in ("gain", "haze", "noise"):
        changed = DISTURBANCES[name](tiles)
        assert ((changed == 0) == (tiles == 0)).all(), name
        assert (changed != tiles).any(), name
    assert (DISTURBANCES["striped"](tiles)[:, :, 8] == 0).all()
    assert (DISTURBANCES["rgb_bands"](tiles) > 0).any((0, 2, 3)).sum() == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("split: [", "cannot be read"),
        ("flor: {accuracy: 1}", "flor: Extra inputs"),
        ("floor: {accuracy: 2, macro_f1: 0, class_recall: 0}", "floor.accuracy"),
        ("floor: {accuracy: 0, macro_f1: 0, class_recall: 1.5}", "floor.class_recall"),
        ("zones: {max_below: -0.1}", "zones.max_below"),
        ("robustness: {rain: 0.1}", "rain: the disturbances are gain"),
    ],
)
def test_a_gates_file_with_a_mistake_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "gates.yaml"
    path.write_text(text)
    with pytest.raises(TrainingError, match=says):
        read_gate_settings(path)


def test_latency_is_cpu_time_and_not_the_time_that_a_busy_machine_takes(make_model: MakeModel) -> None:
    class Waiting:
        def run(self, *_: object) -> None:
            time.sleep(0.002)

    waiting = replace(open_single_threaded(make_model()), session=Waiting())
    assert cpu_milliseconds({"model": waiting})["model"][1] < 1


def test_recall_is_that_of_each_class_alone(judged: Path, make_model: MakeModel) -> None:
    candidate = make_model(noise=1.5)
    found = judge(judged, candidate, floor=FLOOR | {"class_tiles": 1})
    context = GateContext(open_single_threaded(candidate), None, Pack(judged), GateSettings())
    predictions = context.predictions(context.candidate)
    recalls = recall_score(predictions.labels, predictions.probabilities.argmax(1), average=None)
    figures = [found[f"floor/recall/{name}"].figure for name in predictions.classes]
    assert figures == pytest.approx(recalls)


def test_a_model_runs_once_for_each_disturbance(judged: Path, make_model: MakeModel) -> None:
    model = open_single_threaded(make_model())
    context = GateContext(model, None, Pack(judged), GateSettings())
    plain, hazy = context.predictions(model), context.predictions(model, "haze")
    assert context.predictions(model) is plain
    assert context.predictions(model, "haze") is hazy
    assert (plain.probabilities != hazy.probabilities).any()
