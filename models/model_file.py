"""The model file: one ONNX graph with its metadata; and its INT8 sibling. Free of torch.

Input `tiles`: uint16 (batch, 13, 64, 64), DN = reflectance × 10 000, 0 = no data, canonical band order.
Outputs: `probabilities` float32 (batch, classes), calibrated; `logits` float32 (batch, classes);
`embedding` float32 (batch, features); `outlier_score` float32 (batch,), larger for out-of-distribution tiles.
Classes, bands, thresholds and provenance are one JSON object in the graph's metadata, under the key
`tilewise`. A file without it, or of another version, is refused.
"""

import base64
import hashlib
import json
import math
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.core.errors import ModelFileError
from tilewise.datasets.core.locations import MODEL_NAME, PACKED_MODEL, PRETRAINED, PRETRAINED_MODEL, RUNS
from tilewise.datasets.core.radiometry import QUANTIFICATION
from tilewise.datasets.core.tile import BAND_COUNT, NO_DATA, TILE_SIZE

CPU_PROVIDER = "CPUExecutionProvider"
METADATA_KEY = "tilewise"
FORMER_METADATA_KEY = "sentile"  # of files written before the project was renamed
SCHEMA_VERSION = 1
INPUT = "tiles"
OUTPUTS = ("probabilities", "logits", "embedding", "outlier_score")
MAX_BYTES = 2**31  # a protobuf cannot be larger
_DIGEST = re.compile(rb'"digest":"([0-9a-f]{64})"')


class ReferenceHistogram(BaseModel):
    """The distribution of one band's DN in training, for measuring drift."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    band: str
    mean: float
    std: float
    counts: tuple[int, ...]


class PredictionSets(BaseModel):
    """The minimum probability of a class in a prediction set, for each calibrated coverage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    thresholds: dict[float, float] = Field(min_length=1)
    calibrated_on: str = ""

    def threshold(self, coverage: float) -> float:
        """Return the minimum probability of a class in a set of at least `coverage` (0-1).

        Raises:
            ValueError: a higher coverage than was calibrated.
        """
        enough = [known for known in self.thresholds if known >= coverage - 1e-9]
        if not enough:
            raise ValueError(f"the highest calibrated coverage is {max(self.thresholds)}")
        return self.thresholds[min(enough)]


class Outliers(BaseModel):
    """The threshold of the outlier score above which a tile is flagged as out of distribution."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    threshold: float
    false_alarms: float


SELF_TEST_SIZE = 8
_SELF_TEST_BYTES = 64 * BAND_COUNT * SELF_TEST_SIZE**2 * 2  # of 64 tiles: no file decompresses to more


class SelfTest(BaseModel):
    """Tiles, and what the model answered on them when it was exported: another answer means a broken model.

    Attributes:
        tiles: uint16 (n, 13, 8, 8), DN, little-endian; compressed by zlib, in base64.
        probabilities: of each tile and class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tiles: str
    probabilities: tuple[tuple[float, ...], ...]

    def enlarged(self) -> npt.NDArray[np.uint16]:
        """Return the tiles as the model takes them: uint16 (n, 13, 64, 64), each pixel repeated.

        Raises:
            ValueError: they are malformed.
        """
        try:
            content = zlib.decompressobj().decompress(base64.b64decode(self.tiles), _SELF_TEST_BYTES)
        except zlib.error as error:
            raise ValueError(str(error)) from error
        pixels = np.frombuffer(content, "<u2").astype(np.uint16)
        step = TILE_SIZE // SELF_TEST_SIZE
        small = pixels.reshape(-1, BAND_COUNT, SELF_TEST_SIZE, SELF_TEST_SIZE)
        return small.repeat(step, axis=2).repeat(step, axis=3)


class ModelMetadata(BaseModel):
    """The JSON object inside a model file.

    Attributes:
        schema_version: of this object; another version is refused.
        name, version: of the model.
        classes: class names, in the order of the outputs.
        bands: the input's bands, in order.
        trained_bands: bands of the training data; the graph ignores the others.
        tile_size: pixels a side.
        quantification: DN of reflectance 1.
        no_data: the DN that means no data.
        temperature: divisor of the logits before softmax (Guo et al. 2017, arXiv:1706.04599).
        prediction_sets: thresholds of prediction sets; None: not calibrated.
        outliers: threshold of the outlier score; None: not calibrated.
        network: name of the architecture.
        ancestry: the published weights that training began with; empty: drawn weights.
        precision: `fp32` or `int8`.
        quantised_from: SHA-256 of the fp32 model file that an `int8` file was made from.
        histogram_edges: DN edges of the reference histograms.
        histograms: of the training data, per band.
        metrics: measured figures, e.g. {"val/accuracy": 0.95}.
        data_hash: of the pack that trained it.
        weights: SHA-256 of the trained weights; the same in files that differ in calibration only.
        synthetic: whether that pack was synthetic: the model is a demonstration.
        code_revision: git revision that trained it (`-dirty`: with uncommitted changes).
        licence: of the weights.
        created: ISO 8601, UTC.
        self_test: checked whenever the model is loaded; None: the file is of a former version.
        digest: SHA-256 of the file's bytes with 64 zeros in its own place; empty: as above.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    schema_version: int = SCHEMA_VERSION
    name: str
    version: str
    classes: tuple[str, ...] = Field(min_length=2)
    bands: tuple[str, ...] = BAND_NAMES
    trained_bands: tuple[str, ...] = BAND_NAMES
    tile_size: int = TILE_SIZE
    quantification: int = QUANTIFICATION
    no_data: int = NO_DATA
    temperature: float = Field(default=1.0, gt=0)
    prediction_sets: PredictionSets | None = None
    outliers: Outliers | None = None
    network: str
    ancestry: str = ""
    precision: str = "fp32"
    quantised_from: str = ""
    histogram_edges: tuple[int, ...] = ()
    histograms: tuple[ReferenceHistogram, ...] = ()
    metrics: dict[str, float] = {}
    data_hash: str = ""
    weights: str = ""
    synthetic: bool = False
    code_revision: str = ""
    licence: str = ""
    created: str = ""
    self_test: SelfTest | None = None
    digest: str = Field(default="", pattern="^([0-9a-f]{64})?$")

    def prediction_set(self, probabilities: Sequence[float], coverage: float) -> list[str] | None:
        """Return the classes that reach the threshold of `coverage`, likeliest first; None if not calibrated.

        Args:
            probabilities: calibrated, one a class (0-1).
            coverage: wanted fraction (0-1) of sets that hold the true class.

        Raises:
            ValueError: a higher coverage than was calibrated.
        """
        if self.prediction_sets is None:
            return None
        threshold = self.prediction_sets.threshold(coverage)
        ranked = sorted(zip(probabilities, self.classes, strict=True), reverse=True)
        return [name for probability, name in ranked if probability >= threshold]


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model file that was opened and validated.

    Attributes:
        path: of the file.
        sha256: of its bytes.
        metadata: the JSON object inside it.
        session: onnxruntime's session, ready to run.
    """

    path: Path
    sha256: str
    metadata: ModelMetadata
    session: ort.InferenceSession


REGISTRY_PREFIX = "models:/"
"""Prefix of a model in MLflow's registry: `models:/NAME@ALIAS` or `models:/NAME/VERSION`."""


def find_model(given: str | Path | None) -> Path:
    """Return the path of the model file to use.

    Args:
        given: the path that the user named, or the name of weights that ship (`accurate`, `fast`); None or
            empty: the newest file that training exported, the one that a bento was built with, or the
            `accurate` weights.

    Raises:
        ModelFileError: `given` is in a registry, which has no path here; or nothing is given, exported or
            shipped.
    """
    if str(given or "").startswith(REGISTRY_PREFIX):
        raise ModelFileError(
            f"{given}: a model file is needed; `mlflow artifacts download -u {given} -d FOLDER` fetches it"
        )
    if given:
        return PRETRAINED.get(str(given), Path(given))
    exported = sorted(RUNS.rglob(MODEL_NAME), key=lambda path: path.stat().st_mtime)
    if exported:
        return exported[-1]
    shipped = next((path for path in (PACKED_MODEL, PRETRAINED_MODEL) if path.is_file()), None)
    if shipped:
        return shipped
    raise ModelFileError(
        f"no model: none is named by --model or TILEWISE_MODEL and {RUNS} holds no {MODEL_NAME}; "
        "`tilewise train` makes one, `make demo` a small one in a minute"
    )


def open_model(
    path: Path, options: ort.SessionOptions | None = None, providers: Sequence[str] = (CPU_PROVIDER,)
) -> ModelFile:
    """Open a model file and validate its metadata and its graph; onnxruntime runs it by `providers`.

    Raises:
        ModelFileError: no such file, not an ONNX file, without the metadata, or with other inputs or outputs.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: there is no such model; `tilewise train` makes one")
    if path.stat().st_size > MAX_BYTES:
        raise ModelFileError(f"{path}: {path.stat().st_size:,} bytes are more than an ONNX file can have")
    content = path.read_bytes()
    digest = check_digest(content, path)
    try:
        session = ort.InferenceSession(content, session_options(options), providers=providers)
        stored = session.get_modelmeta().custom_metadata_map
    except Exception as error:  # onnxruntime's own exceptions share no base but Exception
        raise ModelFileError(f"{path}: not a readable ONNX file; export it again") from error
    metadata = parse_metadata(stored.get(METADATA_KEY, stored.get(FORMER_METADATA_KEY)), path)
    if metadata.digest != digest:
        raise ModelFileError(f"{path}: its digest is not where it belongs; export it again")
    _check_graph(session, metadata, path)
    return ModelFile(path, hashlib.sha256(content).hexdigest(), metadata, session)


def session_options(options: ort.SessionOptions | None = None) -> ort.SessionOptions:
    """Return `options`, or new ones, with what every session of a model file needs."""
    options = options or ort.SessionOptions()
    if not int8_instructions():
        # INT8 products would then be summed in 16 bits, which overflow; this selects the slower kernels that
        # do not.
        options.add_session_config_entry("session.x64quantprecision", "1")
    # Weights in external files are refused: the folder that they would be read from cannot exist.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    return options


def check_digest(content: bytes, path: Path) -> str:
    """Check the bytes of a model file against the digest in its metadata, and return it; empty: it has none.

    Raises:
        ModelFileError: the bytes are not those that were written.
    """
    found = _DIGEST.search(content)
    if found is None:
        return ""
    whole = hashlib.sha256(memoryview(content)[: found.start(1)])
    whole.update(b"0" * 64)
    whole.update(memoryview(content)[found.end(1) :])
    digest = found[1].decode()
    if whole.hexdigest() != digest:
        raise ModelFileError(
            f"{path}: corrupt, its bytes are not those that were exported (SHA-256); copy or export it again"
        )
    return digest


def parse_metadata(text: str | None, path: Path) -> ModelMetadata:
    """Parse the JSON text of a model file's metadata.

    Raises:
        ModelFileError: there is none, or it is malformed or of another version.
    """
    if text is None:
        raise ModelFileError(
            f"{path}: an ONNX file without the metadata {METADATA_KEY!r}, which has its classes and bands; "
            f"export it "
            "with `tilewise export`"
        )
    version = _version_of(text)
    if version != SCHEMA_VERSION:
        raise ModelFileError(
            f"{path}: its metadata are of version {version!r}, this is version {SCHEMA_VERSION}; export it "
            f"again"
        )
    try:
        return ModelMetadata.model_validate_json(text)
    except ValidationError as error:
        first: Any = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelFileError(
            f"{path}: its metadata are malformed at {where}: {first['msg']}; export it again"
        ) from error


def _version_of(text: str) -> object:
    """Return the schema version of the metadata; read first, as another version has other fields."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return "unknown"
    return content.get("schema_version", "unknown") if isinstance(content, dict) else "unknown"


def _check_graph(session: ort.InferenceSession, metadata: ModelMetadata, path: Path) -> None:
    """Refuse a graph whose inputs or outputs differ from the contract, or from the metadata."""
    inputs = [(node.name, node.type, node.shape[1:]) for node in session.get_inputs()]
    outputs = tuple(node.name for node in session.get_outputs())
    wanted = [(INPUT, "tensor(uint16)", [len(BAND_NAMES), TILE_SIZE, TILE_SIZE])]
    if inputs != wanted or outputs[: len(OUTPUTS)] != OUTPUTS:
        raise ModelFileError(
            f"{path}: its graph has the inputs {inputs} and the outputs {outputs}; export it again"
        )
    if (metadata.bands, metadata.tile_size) != (BAND_NAMES, TILE_SIZE):
        raise ModelFileError(
            f"{path}: its metadata have other bands or tile sizes than its graph; export it again"
        )
    shape = session.get_outputs()[0].shape
    if len(shape) != 2 or shape[1] != len(metadata.classes):
        raise ModelFileError(
            f"{path}: its metadata have {len(metadata.classes)} classes, its graph returns {shape}; export "
            f"it again"
        )


_CPU_INFO = Path("/proc/cpuinfo")
# INT8 dot products, by Linux's names: x86 (VNNI, AMX) and Arm (DotProd, I8MM).
_INSTRUCTIONS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of control groups v2: "max 100000" or "150000 100000"


def int8_instructions(cpu_info: Path = _CPU_INFO) -> frozenset[str]:
    """Return the INT8 dot-product instructions of this processor; none where Linux does not list them."""
    try:
        lines = cpu_info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return _INSTRUCTIONS & frozenset(flags.partition(":")[2].split())


def usable_cores() -> int:
    """Return the number of cores that affinity and container quota allow this process, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _quota(cores)))


def _quota(cores: int) -> int:
    try:
        quota, period = _CGROUP_QUOTA.read_text(encoding="ascii").split()
        return cores if quota == "max" else math.ceil(int(quota) / int(period))
    except (OSError, ValueError):
        return cores


FP32, INT8 = "fp32", "int8"
MIN_GAIN = 1.1  # minimum speedup over fp32 for which INT8 is used
_SUFFIX = ".int8.onnx"
_BATCH = 16
_ROUNDS = 7


def int8_of(path: Path) -> Path:
    """Return the path of the INT8 file of the model file `path`, whether it exists or not."""
    return path.with_name(path.name.removesuffix(".onnx") + _SUFFIX)


def is_int8(path: Path) -> bool:
    """Return whether `path` has the name of an INT8 file."""
    return path.name.endswith(_SUFFIX)


def gain(fp32: ort.InferenceSession, int8: ort.InferenceSession) -> float:
    """Return the speedup of `int8` over `fp32` on batches of 16 tiles: medians of seven runs, alternating."""
    tiles = np.random.default_rng(0).integers(1, 4000, (_BATCH, BAND_COUNT, TILE_SIZE, TILE_SIZE), np.uint16)
    seconds: tuple[list[float], list[float]] = ([], [])
    for count in range(_ROUNDS + 1):
        for session, durations in zip((fp32, int8), seconds, strict=True):
            started = perf_counter()
            session.run(list(OUTPUTS), {INPUT: tiles})
            if count:  # the first run allocates
                durations.append(perf_counter() - started)
    return median(seconds[0]) / median(seconds[1])
