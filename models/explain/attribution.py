"""What an answer rests on: which pixels and which bands of a tile speak for a class, by Captum (https://captum.ai).

Effects are in log-odds of the class, ln(p / (1 - p)) of its calibrated probability p: they add up, and a change from
0.99 to 0.999 counts as much as one from 0.5 to 0.91. Pixels are judged by integrated gradients (Sundararajan, Taly &
Yan 2017, arXiv:1703.01365), or by occlusion where gradients cannot be had; bands by taking each away. The evidence
is in docs/decisions/0012.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
from torch import Tensor

from tilewise.datasets.core.bands import positions
from tilewise.datasets.core.errors import ModelFileError, NoDataError, TilewiseError
from tilewise.datasets.core.tile import DN, NO_DATA, Tile
from tilewise.models.explain.graph import TorchGraph, load_torch_graph
from tilewise.models.model_file import INPUT, OUTPUTS, ModelFile
from tilewise.models.occlusion import occlude as occlude_patches
from tilewise.models.occlusion import without_pattern

# Of a probability, between torch and onnxruntime. Integer kernels round sums elsewhere than torch does.
MAX_DIFFERENCE = {"fp32": 1e-3, "int8": 5e-2}
_STEPS = 64  # of the integral; `Explanation.gap` says how well they did
_AT_A_TIME = 32  # tiles: what is held of activations at once
_SPREAD = 1.0  # pixels: neighbours differ by more than people can see a reason for; more would cost precision
_PATCH, _STRIDE = 8, 4

Values = npt.NDArray[np.float32]
Forward = Callable[[Tensor], Tensor]


class Method(StrEnum):
    """How pixels are judged; AUTO is GRADIENTS where they can be had, else OCCLUSION."""

    AUTO = "auto"
    GRADIENTS = "gradients"
    OCCLUSION = "occlusion"


@dataclass(frozen=True, slots=True)
class BandEffect:
    """What a tile's answer is without one band.

    Attributes:
        log_odds: that the class loses; below 0 it gains.
        probability: of the class, without the band (0-1).
    """

    log_odds: float
    probability: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """What an answer rests on.

    Attributes:
        tile: that was answered.
        probabilities: float32 (classes,), calibrated.
        class_index: which of them is explained.
        class_name: what it is called.
        prediction_set: class names; None where the model is not calibrated for it.
        coverage: that was asked of the set (0-1).
        outlier_score: how unlike the training data the tile is.
        is_outlier: whether the score is above the model's threshold; None where it has none.
        method: GRADIENTS or OCCLUSION.
        heat: float32 (64, 64), log-odds: a pixel's share (GRADIENTS, smoothed), or what the class loses with the
            8 × 8 pixels around it (OCCLUSION, the mean of the patches that cover it).
        log_odds: of the class, for the tile.
        mean_log_odds: of the class, for a tile all of whose pixels are the tile's mean: where the heat counts from.
        gap: GRADIENTS: what the pixels' shares do not add up to `log_odds - mean_log_odds` by; else None.
        bands: for each band that is present.
        reason: why it is OCCLUSION where AUTO was asked; else empty.
    """

    tile: Tile
    probabilities: Values
    class_index: int
    class_name: str
    prediction_set: tuple[str, ...] | None
    coverage: float
    outlier_score: float
    is_outlier: bool | None
    method: Method
    heat: Values
    log_odds: float
    mean_log_odds: float
    gap: float | None
    bands: dict[str, BandEffect]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Pixels:
    """What a method found: heat as in `Explanation`, and its gap."""

    method: Method
    heat: Values
    gap: float | None = None
    reason: str = ""


def explain(
    model: ModelFile,
    tile: Tile,
    class_name: str | None = None,
    method: Method = Method.AUTO,
    coverage: float = 0.9,
) -> Explanation:
    """Explain a model's answer to a tile.

    Args:
        class_name: the class to explain, one of the model's; None: the one that it answers.
        coverage: of the prediction set (0-1).

    Raises:
        TilewiseError: the model has no such class or coverage, the tile holds no data, or gradients were asked for and
            cannot be had.
    """
    if not tile.valid_fraction:
        raise NoDataError(
            f"{tile.name}: no pixel holds data in all of {', '.join(tile.bands) or 'its bands'}; nothing to explain"
        )
    outputs = [output[0] for output in model.session.run(list(OUTPUTS), {INPUT: tile.pixels[None]})]
    probabilities, score = outputs[0], float(outputs[3])
    index = _index_of(model, class_name) if class_name else int(probabilities.argmax())
    whole, mean = (float(x) for x in session_forward(model, index)(_stack(tile.pixels, without_pattern(tile.pixels))))
    found = _judge_pixels(model, tile, index, method)
    outliers = model.metadata.outliers
    return Explanation(
        tile=tile,
        probabilities=probabilities,
        class_index=index,
        class_name=model.metadata.classes[index],
        prediction_set=_prediction_set(model, probabilities, coverage),
        coverage=coverage,
        outlier_score=score,
        is_outlier=score > outliers.threshold if outliers else None,
        method=found.method,
        heat=found.heat,
        log_odds=whole,
        mean_log_odds=mean,
        gap=found.gap,
        bands=judge_bands(model, tile, index),
        reason=found.reason,
    )


def judge_bands(model: ModelFile, tile: Tile, index: int) -> dict[str, BandEffect]:
    """Return what becomes of class `index` without each of the tile's bands, by Captum's ablation.

    A band is taken away as no data, which networks are trained to do without.
    """
    from captum.attr import FeatureAblation

    forward = session_forward(model, index)
    tiles, places = _stack(tile.pixels), positions(tile.bands)
    mask = torch.arange(tiles.shape[1])[None, :, None, None]
    lost = FeatureAblation(forward).attribute(
        tiles, baselines=float(NO_DATA), feature_mask=mask, perturbations_per_eval=_AT_A_TIME
    )
    whole, drops = float(forward(tiles)[0]), lost[0, places, 0, 0].tolist()
    return {name: BandEffect(drop, _probability(whole - drop)) for name, drop in zip(tile.bands, drops, strict=True)}


def integrate_gradients(graph: TorchGraph, model: ModelFile, tile: Tile, index: int) -> tuple[Values, float]:
    """Return heat, float32 (64, 64), summed over the bands and not smoothed, and its gap; see `Explanation`."""
    from captum.attr import IntegratedGradients

    temperature = model.metadata.temperature
    shares, gap = IntegratedGradients(lambda x: log_odds(graph(x) / temperature, index)).attribute(
        _stack(tile.pixels),
        baselines=_stack(without_pattern(tile.pixels)),
        n_steps=_STEPS,
        internal_batch_size=_AT_A_TIME,
        return_convergence_delta=True,
    )
    return shares[0].sum(0).float().numpy(), float(gap[0])


def occlude(model: ModelFile, tile: Tile, index: int) -> Values:
    """Return heat, float32 (64, 64), by occlusion: patches are replaced by the tile's mean of each band."""
    forward = session_forward(model, index)
    whole = forward(_stack(tile.pixels)).numpy()

    def drop(tiles: DN) -> Values:
        return np.asarray(whole - forward(_stack(*tiles)).numpy(), np.float32)

    return occlude_patches(tile.pixels, drop, _PATCH, _STRIDE)[1]


def smooth(heat: Values) -> Values:
    """Return `heat` smoothed by a Gaussian; its sum stays nearly the same."""
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(heat, _SPREAD, mode="reflect"), np.float32)


def verified_graph(model: ModelFile, tile: Tile) -> TorchGraph:
    """Return the model's graph in torch, after it answered this tile and parts of it as onnxruntime does.

    Raises:
        ModelFileError: torch cannot run it, or answers otherwise.
    """
    graph = load_torch_graph(model.path, "logits")
    tiles = np.stack([tile.pixels, without_pattern(tile.pixels), tile.pixels[:, ::-1], tile.pixels // 2])
    with torch.no_grad():
        found = torch.softmax(graph(_stack(*tiles)) / model.metadata.temperature, 1).numpy()
    difference = float(np.abs(found - model.session.run([OUTPUTS[0]], {INPUT: tiles})[0]).max())
    limit = MAX_DIFFERENCE.get(model.metadata.precision, MAX_DIFFERENCE["fp32"])
    if not difference <= limit:
        raise ModelFileError(
            f"{model.path}: torch's probabilities differ by {difference:.2g} from onnxruntime's, {limit:g} is the "
            "most; say --method occlusion"
        )
    return graph


def session_forward(model: ModelFile, index: int) -> Forward:
    """Return onnxruntime's answers as a function for Captum: DN (n, 13, 64, 64) to log-odds of class `index` (n,)."""
    session: ort.InferenceSession = model.session

    def forward(tiles: Tensor) -> Tensor:
        logits = session.run([OUTPUTS[1]], {INPUT: tiles.round().to(torch.uint16).numpy()})[0]
        return log_odds(torch.from_numpy(logits) / model.metadata.temperature, index)

    return forward


def log_odds(logits: Tensor, index: int) -> Tensor:
    """Return ln(p / (1 - p)) of class `index`, (n,), from calibrated logits (n, classes); exact where p is nearly 1."""
    others = torch.cat([logits[:, :index], logits[:, index + 1 :]], 1)
    return logits[:, index] - torch.logsumexp(others, 1)


def _judge_pixels(model: ModelFile, tile: Tile, index: int, method: Method) -> _Pixels:
    if method is not Method.OCCLUSION:
        try:
            graph = verified_graph(model, tile)
        except ModelFileError as error:
            if method is Method.GRADIENTS:
                raise
            return _Pixels(Method.OCCLUSION, occlude(model, tile, index), reason=str(error).partition(";")[0])
        heat, gap = integrate_gradients(graph, model, tile, index)
        return _Pixels(Method.GRADIENTS, smooth(heat), gap)
    return _Pixels(Method.OCCLUSION, occlude(model, tile, index))


def _index_of(model: ModelFile, class_name: str) -> int:
    classes = model.metadata.classes
    if class_name not in classes:
        raise TilewiseError(f"{model.path}: has no class {class_name!r}; it has {', '.join(classes)}")
    return classes.index(class_name)


def _prediction_set(model: ModelFile, probabilities: Values, coverage: float) -> tuple[str, ...] | None:
    sets = model.metadata.prediction_sets
    if sets is None:
        return None
    try:
        lowest = sets.threshold(coverage)
    except ValueError as error:
        raise TilewiseError(f"{model.path}: no prediction sets of coverage {coverage:g}; {error}") from error
    named = zip(model.metadata.classes, probabilities, strict=True)
    return tuple(name for name, probability in named if probability >= lowest)


def _probability(odds: float) -> float:
    return 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0


def _stack(*tiles: DN) -> Tensor:
    return torch.from_numpy(np.stack(tiles).astype(np.float32))
