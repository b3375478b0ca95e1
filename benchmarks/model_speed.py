"""How fast networks answer on this CPU: the model file's beside torchvision's and timm's, by engine and batch
size.

    python benchmarks/model_speed.py                  # models/pretrained/accurate/model.onnx, 2 threads
    python benchmarks/model_speed.py --model demo/run/model.onnx --batches 1,64 --networks resnet18

Prints a table in Markdown. Every network takes uint16 tiles of 13 × 64 × 64 pixels and gives probabilities,
those of torchvision and timm with this project's preprocessing, so that only networks differ. **Engines**:
torch eager, torch.compile, onnxruntime with the fp32 file and with an INT8 file (the model's own, else one
that is quantised here on
noise: as fast, and not as accurate), each with one batch over all threads and with a batch for each core by
`tilewise.bento.inference.engine`, as the service's processes answer, and OpenVINO where it is installed.
**GFLOP**: two for each multiplication of the convolutions and matrix products of the fp32 graph. **Share of
peak**: of the fastest of several large products and convolutions in the same precision, measured in this run.
All engines take turns in every round; figures are medians, ± half the range between the quartiles. Threads of
onnxruntime alone spin while they wait, as nothing else should want the cores; the service, which shares its
cores with an event loop, has that switched off. Where other work does want them, --core-seconds counts CPU
time of one thread: two cores that are free do about twice that. It needs the extra `train`.
"""

import argparse
import importlib.util
import io
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper, shape_inference
from torch.fx.experimental.proxy_tensor import make_fx

from tilewise.bento.inference.engine import Engine
from tilewise.datasets.core.errors import TilewiseError
from tilewise.datasets.core.tile import BAND_COUNT, DN, TILE_SIZE
from tilewise.models.explain.graph import TorchGraph
from tilewise.models.export.export import write_graph
from tilewise.models.export.quantise import quantise
from tilewise.models.model_file import INPUT, OUTPUTS, ModelMetadata, int8_instructions, int8_of
from tilewise.models.network.classifier import Classifier, Exported

DEFAULT = Path("models/pretrained/accurate/model.onnx")
NETWORKS = "resnet18,mobilenet_v3_small,shufflenet_v2_x0_5,timm/mobilenetv4_conv_small"
REFERENCE = "resnet18"
FP32, INT8 = "fp32", "INT8"
TARGET_TIMES, TARGET_TILES = 4.0, 10_000
_CLASSES = 10
_CALIBRATION_TILES = 16
_OURS = "this model"
_A_SESSION_A_CORE = "onnxruntime a core"

Clock = Callable[[], float]
"""Seconds, of the clock on the wall or of this process's CPU time."""


@dataclass(frozen=True)
class Subject:
    """A network as a file."""

    name: str
    fp32: Path
    int8: Path
    gflop: float


@dataclass
class Row:
    """A network in an engine, and what it took."""

    subject: Subject
    engine: str
    precision: str
    run: Callable[[DN], object]
    copies: int = 1  # batches that one run answers, each on a core of its own
    rates: dict[int, list[float]] = field(default_factory=dict)

    def median(self, batch: int) -> float:
        """Return tiles a second."""
        return float(np.median(self.rates[batch]))

    def cell(self, batch: int) -> str:
        """Return median and half the range between the quartiles."""
        low, high = np.percentile(self.rates[batch], [25, 75])
        return f"{self.median(batch):,.0f} ± {(high - low) / 2:,.0f}"


def noise(count: int) -> DN:
    return np.random.default_rng(0).integers(1, 4000, (count, BAND_COUNT, TILE_SIZE, TILE_SIZE), np.uint16)


def gflop(path: Path) -> float:
    """Return GFLOP a tile of the graph's convolutions and matrix products."""
    model = onnx.load(str(path))
    for item in [*model.graph.input, *model.graph.output]:
        if item.type.tensor_type.shape.dim:
            item.type.tensor_type.shape.dim[0].dim_value = 1
    del model.graph.value_info[:]
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {
        i.name: [d.dim_value for d in i.type.tensor_type.shape.dim]
        for i in [*graph.value_info, *graph.output]
    }
    shapes |= {i.name: list(i.dims) for i in graph.initializer}
    return sum(2e-9 * _multiplications(node, shapes) for node in graph.node)


def _multiplications(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> float:
    """Return the multiplications of a convolution or matrix product for one tile; 0 for other nodes."""
    if node.op_type == "Conv":
        return float(np.prod(shapes[node.output[0]][1:]) * np.prod(shapes[node.input[1]][1:]))
    if node.op_type in ("Gemm", "MatMul"):
        out, weights = shapes.get(node.output[0], []), shapes.get(node.input[1], [])
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        return float(np.prod(out[1:]) * (weights[-1 if transposed else 0])) if out and weights else 0.0
    return 0.0


def session(path: Path | bytes, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    content = path if isinstance(path, bytes) else path.read_bytes()
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def build(name: str) -> torch.nn.Module:
    """Return a network of torchvision, or of timm if its name begins so, for 13 bands and without its last
    layer."""
    if name.startswith("timm/"):
        import timm

        network = timm.create_model(name.removeprefix("timm/"), in_chans=BAND_COUNT, num_classes=0)
        network.features = network(torch.zeros(2, BAND_COUNT, TILE_SIZE, TILE_SIZE)).shape[1]
        return network
    from tilewise.models.network.backbones import TorchvisionBackbone

    return TorchvisionBackbone(name)


def zoo_subject(name: str, folder: Path) -> tuple[Subject, torch.nn.Module]:
    """Export a network with random weights, and quantise it."""
    torch.manual_seed(0)
    classifier = Classifier(build(name), _CLASSES, [1500.0] * BAND_COUNT, [700.0] * BAND_COUNT).eval()
    path = folder / f"{name.replace('/', '-')}.onnx"
    metadata = ModelMetadata(name=name, version="0", classes=tuple("abcdefghij"), network=name)
    with redirect_stderr(io.StringIO()):
        write_graph(classifier, metadata, path)
    quantise(path, int8_of(path), noise(_CALIBRATION_TILES), method="minmax")
    return Subject(name, path, int8_of(path), gflop(path)), Exported(classifier).eval()


def own_subject(model: Path, folder: Path) -> tuple[Subject, Callable[[torch.Tensor], torch.Tensor]]:
    """Take the model file, and its INT8 file or one made here."""
    int8 = int8_of(model)
    if not int8.is_file():
        int8 = folder / "own.int8.onnx"
        quantise(model, int8, noise(_CALIBRATION_TILES), method="minmax")
    graph = TorchGraph(onnx.load(str(model)), OUTPUTS[0], str(model))
    return Subject(_OURS, model, int8, gflop(model)), graph


def rows_of(subject: Subject, network: Callable[..., object], overrides: argparse.Namespace) -> list[Row]:
    """Return a row for every engine that can run a network."""
    rows = []
    for engine in overrides.engines.split(","):
        for precision, path in ((FP32, subject.fp32), (INT8, subject.int8)):
            try:
                run = _runner(engine, precision, path, network, overrides.threads)
                if run is None:
                    continue
                run(noise(max(overrides.batches)))
            except (
                Exception
            ) as error:  # every engine has its own; one that cannot do a network is left out, by name
                print(
                    f"left out: {subject.name} in {engine} {precision}: {' '.join(str(error).split())[:160]}",
                    flush=True,
                )
                continue
            rows.append(
                Row(subject, engine, precision, run, overrides.threads if engine == _A_SESSION_A_CORE else 1)
            )
    return rows


def _runner(
    engine: str, precision: str, path: Path, network: Callable[..., object], threads: int
) -> Callable[[DN], object] | None:
    if engine == "onnxruntime":
        ready = session(path, threads)
        return lambda tiles: ready.run([OUTPUTS[0]], {INPUT: tiles})
    if engine == _A_SESSION_A_CORE:
        engines, pool = [Engine(path, threads=1) for _ in range(threads)], ThreadPoolExecutor(threads)
        return lambda tiles: list(pool.map(lambda one: one.classify(tiles), engines))
    if engine == "OpenVINO" and importlib.util.find_spec("openvino"):
        return _in_openvino(path, threads)
    if engine.startswith("torch") and precision == FP32:
        return partial(_in_torch, Compiled(network) if engine == "torch.compile" else network)
    return None


def _in_openvino(path: Path, threads: int) -> Callable[[DN], object]:
    """Return the graph in OpenVINO, which takes no tiles of 16 bits: they become floats before it, and that
    counts."""
    import openvino

    graph = onnx.load(str(path))
    graph.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    hints = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(graph.SerializeToString()), "CPU", hints)
    return lambda tiles: compiled([tiles.astype(np.float32)])[0]


class Compiled:
    """A network compiled by torch, whole and anew for each batch size.

    It is traced first: an ONNX graph that is walked operator by operator would be compiled in as many pieces.
    """

    def __init__(self, network: Callable[..., object]) -> None:
        self._network = network
        self._compiled: dict[int, Callable[[torch.Tensor], object]] = {}

    def __call__(self, tiles: torch.Tensor) -> object:
        """Answer as the network does."""
        if len(tiles) not in self._compiled:
            self._compiled[len(tiles)] = torch.compile(make_fx(self._network)(tiles), dynamic=False)
        return self._compiled[len(tiles)](tiles)


def _in_torch(network: Callable[..., object], tiles: DN) -> object:
    with torch.no_grad():
        return network(torch.from_numpy(tiles))


def measure(rows: list[Row], batches: list[int], rounds: int, seconds: float, clock: Clock) -> None:
    """Let all rows take turns, `rounds` times `seconds` for each batch size."""
    for batch in batches:
        tiles = noise(batch)
        for number in range(rounds):
            for row in rows:
                if number == 0:
                    row.rates[batch] = []
                    row.run(tiles)  # compiles and allocates for this size
                row.rates[batch].append(row.copies * _rate(row.run, tiles, seconds, clock))


def _rate(run: Callable[[DN], object], tiles: DN, seconds: float, clock: Clock) -> float:
    """Return tiles for each second of `clock`."""
    run(tiles)
    count, begun = 0, clock()
    while (taken := clock() - begun) < seconds or not count:
        run(tiles)
        count += 1
    return count * len(tiles) / taken if taken else 0.0


def peaks(threads: int, seconds: float, clock: Clock) -> dict[str, float]:
    """Return the most GFLOP/s that was drawn from this machine in each precision."""
    a = torch.rand(1536, 1536)
    with torch.inference_mode():
        product = 2e-9 * 1536**3 * _rate(lambda _: a @ a, noise(1), seconds, clock)
    found = {FP32: [product], INT8: []}
    for channels, size in ((128, 16), (256, 16), (256, 8)):
        work = 2e-9 * 64 * channels * channels * 9 * size * size
        for precision in (FP32, INT8):
            ready = session(_convolution(channels, size, precision), threads)
            x = np.zeros((64, channels, size, size), np.float32 if precision == FP32 else np.uint8)
            x[:] = np.arange(size)
            found[precision].append(work * _rate(partial(_run, ready), x, seconds, clock) / 64)
    return {precision: max(values) for precision, values in found.items()}


def _run(ready: ort.InferenceSession, x: np.ndarray) -> object:
    return ready.run(None, {"x": x})


def _convolution(channels: int, size: int, precision: str) -> bytes:
    """Return a graph of one 3 × 3 convolution."""
    weights = np.random.default_rng(0).integers(-127, 127, (channels, channels, 3, 3)).astype(np.int8)
    scales = {
        "s": np.float32(0.01),
        "z": np.uint8(0),
        "o": np.float32(10.0),
        "ws": np.float32(0.01),
        "wz": np.int8(0),
    }
    kind, result = (TensorProto.FLOAT, "float32") if precision == FP32 else (TensorProto.UINT8, "uint8")
    inputs = ["x", "w"] if precision == FP32 else ["x", "s", "z", "w", "ws", "wz", "o", "z"]
    operator = "Conv" if precision == FP32 else "QLinearConv"
    node = helper.make_node(operator, inputs, ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    constants = {"w": weights.astype(np.float32) if precision == FP32 else weights}
    constants |= {} if precision == FP32 else {name: np.asarray(value) for name, value in scales.items()}
    shape: list[str | int | None] = ["n", channels, size, size]
    graph = helper.make_graph(
        [node],
        result,
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def table(rows: list[Row], batches: list[int], peak: dict[str, float]) -> str:
    """Return the rows in Markdown, their ratios to the fastest fp32 ResNet-18."""
    largest = max(batches)
    reference = max(
        (r.median(largest) for r in rows if r.subject.name == REFERENCE and r.precision == FP32), default=0
    )
    heads = [f"tiles/s, batch {batch}" for batch in batches]
    lines = [
        f"| network | GFLOP a tile | engine | {' | '.join(heads)} | GFLOP/s | share of peak | × ResNet-18 "
        f"fp32 |",
        f"|---|---:|---|{'---:|' * len(batches)}---:|---:|---:|",
    ]
    for row in rows:
        speed = row.median(largest) * row.subject.gflop
        times = f"{row.median(largest) / reference:.1f}" if reference else "–"
        cells = " | ".join(row.cell(batch) for batch in batches)
        lines.append(
            f"| {row.subject.name} | {row.subject.gflop:.3f} | {row.engine} {row.precision} | {cells} "
            f"| {speed:,.0f} | {speed / peak[row.precision]:.0%} | {times} |"
        )
    return "\n".join(lines)


def verdict(rows: list[Row], batches: list[int]) -> str:
    """Return whether the model's INT8 file reaches the targets, in a line."""
    largest = max(batches)
    ours = [
        r
        for r in rows
        if r.subject.name == _OURS and r.engine.startswith("onnxruntime") and r.precision == INT8
    ]
    ours.sort(key=lambda row: -row.median(largest))
    known = [r.median(largest) for r in rows if r.subject.name == REFERENCE and r.precision == FP32]
    if not ours or not known:
        return "no verdict: the model in onnxruntime INT8 and ResNet-18 in fp32 must both be in the table"
    tiles, times = ours[0].median(largest), ours[0].median(largest) / max(known)
    met = "reached" if tiles >= TARGET_TILES and times >= TARGET_TIMES else "NOT reached"
    return (
        f"INT8 at batch {largest} ({ours[0].engine}): {tiles:,.0f} tiles/s and {times:.1f} × fp32 ResNet-18; "
        f"at least {TARGET_TILES:,} and {TARGET_TIMES:g} × are the target: {met}"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", type=Path, default=DEFAULT, help=f"fp32 model file; default: {DEFAULT}")
    parser.add_argument(
        "--networks", default=NETWORKS, help=f"of torchvision, or timm/NAME; default: {NETWORKS}"
    )
    parser.add_argument(
        "--engines", default=f"torch eager,torch.compile,onnxruntime,{_A_SESSION_A_CORE},OpenVINO"
    )
    parser.add_argument("--batches", type=lambda text: [int(n) for n in text.split(",")], default=[1, 8, 64])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--core-seconds", action="store_true", help="count CPU time of one thread")
    parser.add_argument(
        "--rounds", type=int, default=9, help="turns of each engine and batch size; default: 9"
    )
    parser.add_argument("--seconds", type=float, default=0.3, help="of each turn; default: 0.3")
    overrides = parser.parse_args()
    overrides.threads = 1 if overrides.core_seconds else overrides.threads
    return overrides


def _machine_of(overrides: argparse.Namespace) -> str:
    return "one thread, seconds of its CPU time" if overrides.core_seconds else f"{overrides.threads} threads"


def main() -> None:
    """Measure, and print a table."""
    overrides = arguments()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(overrides.threads)
    instructions = ", ".join(sorted(int8_instructions())) or "no INT8 instructions that are known"
    print(
        f"{datetime.now(UTC):%d %B %Y}; {platform.machine()}, {instructions}; {_machine_of(overrides)}; "
        f"torch {torch.__version__}, onnxruntime {ort.__version__}; {overrides.rounds} turns of "
        f"{overrides.seconds:g} s\n",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="tilewise-speed-") as folder:
        try:
            rows = rows_of(*own_subject(overrides.model, Path(folder)), overrides)
        except (TilewiseError, OSError) as error:
            raise SystemExit(f"error: {error}") from error
        for name in filter(None, overrides.networks.split(",")):
            if name.startswith("timm/") and not importlib.util.find_spec("timm"):
                print(f"left out: {name}: timm is not installed", flush=True)
                continue
            rows += rows_of(*zoo_subject(name, Path(folder)), overrides)
        clock: Clock = time.process_time if overrides.core_seconds else time.perf_counter
        peak = peaks(overrides.threads, overrides.seconds, clock)
        measure(rows, overrides.batches, overrides.rounds, overrides.seconds, clock)
    print(
        f"peak: {peak[FP32]:,.0f} GFLOP/s in fp32, {peak[INT8]:,.0f} in "
        f"INT8\n\n{table(rows, overrides.batches, peak)}\n"
    )
    print(verdict(rows, overrides.batches))


if __name__ == "__main__":
    main()
