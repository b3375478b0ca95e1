"""The input stage of an INT8 file: one step does what the float passes did."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper, numpy_helper

from tilewise.models.export.quantise import InputStage, find_input_stage, fold
from tilewise.models.network.preprocess import MIDDLE, STEPS, Preprocess

MEAN = [1371, 1140, 1074, 995, 1270, 2133, 2532, 2461, 2783, 789, 12, 1946, 1189]
STD = [249, 319, 372, 576, 552, 804, 1023, 1068, 1155, 423, 4, 954, 740]


class First(torch.nn.Module):
    """The input stage and one convolution that hands on what it sees."""

    def __init__(self, std: list[int]) -> None:
        super().__init__()
        self.preprocess = Preprocess(MEAN, std)
        self.convolution = torch.nn.Conv2d(13, 13, 1, groups=13, bias=False)
        torch.nn.init.ones_(self.convolution.weight)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        seen: torch.Tensor = self.convolution(self.preprocess(tiles))
        return seen


def exported(folder: Path, std: list[int]) -> onnx.ModelProto:
    example = torch.ones(2, 13, 64, 64, dtype=torch.uint16)
    program = torch.onnx.export(First(std).eval(), (example,), dynamo=True, verbose=False, opset_version=20)
    assert program is not None
    return program.model_proto


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    return exported(tmp_path_factory.mktemp("input-stage"), STD)


def input_stage_of(graph: onnx.ModelProto) -> InputStage:
    found = find_input_stage(graph.graph)
    assert found is not None
    return found


def run(graph: onnx.ModelProto, tiles: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: tiles})[0])


def with_eight_bits(graph: onnx.ModelProto, input_stage: InputStage) -> onnx.ModelProto:
    """Put QuantizeLinear and DequantizeLinear behind the input stage, as onnxruntime's quantiser does."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    nodes = copy.graph.node
    place = next(n for n, node in enumerate(nodes) if node.op_type == "Conv")
    nodes[place].input[0] = "seen"
    pair = [
        helper.make_node("QuantizeLinear", [input_stage.result, "scale", "zero"], ["bits"]),
        helper.make_node("DequantizeLinear", ["bits", "scale", "zero"], ["seen"]),
    ]
    for node in reversed(pair):
        nodes.insert(place, node)
    copy.graph.initializer.append(numpy_helper.from_array(np.array(1 / STEPS, np.float32), "scale"))
    copy.graph.initializer.append(numpy_helper.from_array(np.array(MIDDLE, np.uint8), "zero"))
    return copy


def test_the_steps_found_are_those_that_the_network_was_trained_with(graph: onnx.ModelProto) -> None:
    input_stage = input_stage_of(graph)
    assert input_stage.step[3] == pytest.approx(STD[3] / STEPS, rel=1e-5)
    assert input_stage.step[0] == pytest.approx(
        MEAN[0] / MIDDLE, rel=1e-5
    )  # wider, so that DN 0 has a number
    assert input_stage.zero[0] == 0


def test_one_step_gives_what_the_float_passes_gave_for_holes_absent_bands_and_bright_pixels(
    graph: onnx.ModelProto,
) -> None:
    tiles = np.random.default_rng(0).integers(1, 9000, (2, 13, 64, 64)).astype(np.uint16)
    tiles[0, 10] = 0
    tiles[1, :, 10:30] = 0
    tiles[1, :, 40:] = 60_000
    input_stage = input_stage_of(graph)
    before = with_eight_bits(graph, input_stage)
    after = with_eight_bits(graph, input_stage)
    fold(after.graph, input_stage)
    assert not {"Mul", "Add", "Clip", "Max"} & {node.op_type for node in after.graph.node}
    difference = np.abs(run(after, tiles) - run(before, tiles))
    assert difference.max() <= 1 / STEPS + 1e-6  # a number half-way between two steps may fall to either
    assert (difference > 0.5 / STEPS).mean() < 0.01
    assert np.abs(run(after, tiles) - run(graph, tiles)).max() <= 0.51 / STEPS


def test_a_band_that_training_never_saw_leaves_the_input_stage_as_it_is(tmp_path: Path) -> None:
    assert find_input_stage(exported(tmp_path, [*STD[:12], 0]).graph) is None
