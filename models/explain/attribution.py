"""Attribution of a prediction to the pixels and bands of a tile, by Captum (https://captum.ai).

Effects are in log-odds of the class, ln(p / (1 - p)) of its calibrated probability p: they add up, and a
change from 0.99 to 0.999 counts as much as one from 0.5 to 0.91. Pixels are attributed by integrated
gradients (Sundararajan, Taly & Yan 2017, arXiv:1703.01365), or by occlusion where gradients are not
available; bands by ablation. The evidence is in docs/decisions/0012.
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

# Of a probability, between torch and onnxruntime, by precision: integer kernels round sums differently.
MAX_DIFFERENCE = {"fp32": 1e-3, "int8": 5e-2}
_STEPS = 64  # of the integral; `TileExplanation.gap` is their error
_AT_A_TIME = 32  # tiles: bounds the memory of activations
_SPREAD = 1.0  # pixels, of the Gaussian: hides pixel noise and keeps the precision
_PATCH, _STRIDE = 8, 4

Values = npt.NDArray[np.float32]
Forward = Callable[[Tensor], Tensor]


class AttributionMethod(StrEnum):
    """The attribution method for pixels; AUTO: GRADIENTS where available, else OCCLUSION."""

    AUTO = "auto"
    GRADIENTS = "gradients"
    OCCLUSION = "occlusion"


@dataclass(frozen=True, slots=True)
class BandEffect:
    """The effect of removing one band of a tile.

    Attributes:
        log_odds: that the class loses; negative: it gains.
        probability: of the class without the band (0-1).
    """

    log_odds: float
    probability: float


@dataclass(frozen=True, slots=True)
class TileExplanation:
    """A prediction with its attribution.

    Attributes:
        tile: the tile.
        probabilities: float32 (classes,), calibrated.
        class_index: index of the explained class.
        class_name: its name.
        prediction_set: class names, likeliest first; None: the model is not calibrated for it.
        coverage: of the prediction set (0-1).
        outlier_score: larger for out-of-distribution tiles.
        is_outlier: whether the score is above the model's threshold; None: it has none.
        method: GRADIENTS or OCCLUSION.
        heat: float32 (64, 64), log-odds: the contribution of each pixel (GRADIENTS, smoothed), or the loss
            without the 8 × 8 pixels around it (OCCLUSION, the mean of the patches that cover it).
        log_odds: of the class, for the tile.
        mean_log_odds: of the class, for a uniform tile of the same mean: the baseline of the heat.
        gap: GRADIENTS: difference between the sum of contributions and `log_odds - mean_log_odds`; else None.
        bands: the effect of each band that the tile has.
        reason: why AUTO took OCCLUSION; else empty.
    """

    tile: Tile
    probabilities: Values
    class_index: int
    class_name: str
    prediction_set: tuple[str, ...] | None
    coverage: float
    outlier_score: float
    is_outlier: bool | None
    method: AttributionMethod
    heat: Values
    log_odds: float
    mean_log_odds: float
    gap: float | None
    bands: dict[str, BandEffect]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _PixelAttribution:
    """Heat and gap as in `TileExplanation`, and the method that gave them."""

    method: AttributionMethod
    heat: Values
    gap: float | None = None
    reason: str = ""


def explain(
    model: ModelFile,
    tile: Tile,
    class_name: str | None = None,
    method: AttributionMethod = AttributionMethod.AUTO,
    coverage: float = 0.9,
) -> TileExplanation:
    """Explain a model's prediction for a tile.

    Args:
        class_name: the class to explain, one of the model's; None: the predicted one.
        coverage: of the prediction set (0-1).

    Raises:
        TilewiseError: the model has no such class or coverage, the tile has no data, or gradients were
            requested and are not available.
    """
    if not tile.valid_fraction:
        raise NoDataError(
            f"{tile.name}: no pixel has data in all of {', '.join(tile.bands) or 'its bands'}; nothing to "
            f"explain"
        )
    outputs = [output[0] for output in model.session.run(list(OUTPUTS), {INPUT: tile.pixels[None]})]
    probabilities, score = outputs[0], float(outputs[3])
    index = _index_of(model, class_name) if class_name else int(probabilities.argmax())
    whole, mean = (
        float(x) for x in session_forward(model, index)(_stack(tile.pixels, without_pattern(tile.pixels)))
    )
    found = _attribute_pixels(model, tile, index, method)
    outliers = model.metadata.outliers
    return TileExplanation(
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
        bands=ablate_bands(model, tile, index),
        reason=found.reason,
    )


def ablate_bands(model: ModelFile, tile: Tile, index: int) -> dict[str, BandEffect]:
    """Return the effect of removing each of the tile's bands on class `index`, by Captum's ablation.

    A band is removed by setting it to no data, which networks are trained for.
    """
    from captum.attr import FeatureAblation

    forward = session_forward(model, index)
    tiles, indices = _stack(tile.pixels), positions(tile.bands)
    mask = torch.arange(tiles.shape[1])[None, :, None, None]
    lost = FeatureAblation(forward).attribute(
        tiles, baselines=float(NO_DATA), feature_mask=mask, perturbations_per_eval=_AT_A_TIME
    )
    whole, drops = float(forward(tiles)[0]), lost[0, indices, 0, 0].tolist()
    return {
        name: BandEffect(drop, _probability(whole - drop))
        for name, drop in zip(tile.bands, drops, strict=True)
    }


def integrate_gradients(graph: TorchGraph, model: ModelFile, tile: Tile, index: int) -> tuple[Values, float]:
    """Return heat, float32 (64, 64), summed over the bands and not smoothed, and its gap; see
    `TileExplanation`."""
    from captum.attr import IntegratedGradients

    temperature = model.metadata.temperature
    contributions, gap = IntegratedGradients(lambda x: log_odds(graph(x) / temperature, index)).attribute(
        _stack(tile.pixels),
        baselines=_stack(without_pattern(tile.pixels)),
        n_steps=_STEPS,
        internal_batch_size=_AT_A_TIME,
        return_convergence_delta=True,
    )
    return contributions[0].sum(0).float().numpy(), float(gap[0])


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
    """Return the model's graph in torch, checked against onnxruntime on this tile and variants of it.

    Raises:
        ModelFileError: torch cannot run it, or its probabilities differ.
    """
    graph = load_torch_graph(model.path, "logits")
    tiles = np.stack([tile.pixels, without_pattern(tile.pixels), tile.pixels[:, ::-1], tile.pixels // 2])
    with torch.no_grad():
        found = torch.softmax(graph(_stack(*tiles)) / model.metadata.temperature, 1).numpy()
    difference = float(np.abs(found - model.session.run([OUTPUTS[0]], {INPUT: tiles})[0]).max())
    limit = MAX_DIFFERENCE.get(model.metadata.precision, MAX_DIFFERENCE["fp32"])
    if not difference <= limit:
        raise ModelFileError(
            f"{model.path}: torch's probabilities differ by {difference:.2g} from onnxruntime's, the limit "
            f"is "
            f"{limit:g}; use --method occlusion"
        )
    return graph


def session_forward(model: ModelFile, index: int) -> Forward:
    """Return the model as a function for Captum: DN (n, 13, 64, 64) to log-odds of class `index` (n,)."""
    session: ort.InferenceSession = model.session

    def forward(tiles: Tensor) -> Tensor:
        logits = session.run([OUTPUTS[1]], {INPUT: tiles.round().to(torch.uint16).numpy()})[0]
        return log_odds(torch.from_numpy(logits) / model.metadata.temperature, index)

    return forward


def log_odds(logits: Tensor, index: int) -> Tensor:
    """Return ln(p / (1 - p)) of class `index`, (n,), from calibrated logits (n, classes); exact where p is
    nearly 1."""
    others = torch.cat([logits[:, :index], logits[:, index + 1 :]], 1)
    return logits[:, index] - torch.logsumexp(others, 1)


def _attribute_pixels(
    model: ModelFile, tile: Tile, index: int, method: AttributionMethod
) -> _PixelAttribution:
    if method is not AttributionMethod.OCCLUSION:
        try:
            graph = verified_graph(model, tile)
        except ModelFileError as error:
            if method is AttributionMethod.GRADIENTS:
                raise
            reason = str(error).partition(";")[0]
            return _PixelAttribution(AttributionMethod.OCCLUSION, occlude(model, tile, index), reason=reason)
        heat, gap = integrate_gradients(graph, model, tile, index)
        return _PixelAttribution(AttributionMethod.GRADIENTS, smooth(heat), gap)
    return _PixelAttribution(AttributionMethod.OCCLUSION, occlude(model, tile, index))


def _index_of(model: ModelFile, class_name: str) -> int:
    classes = model.metadata.classes
    if class_name not in classes:
        raise TilewiseError(f"{model.path}: has no class {class_name!r}; it has {', '.join(classes)}")
    return classes.index(class_name)


def _prediction_set(model: ModelFile, probabilities: Values, coverage: float) -> tuple[str, ...] | None:
    try:
        found = model.metadata.prediction_set(probabilities.tolist(), coverage)
    except ValueError as error:
        raise TilewiseError(f"{model.path}: no prediction sets of coverage {coverage:g}; {error}") from error
    return None if found is None else tuple(found)


def _probability(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds)) if log_odds > -700 else 0.0


def _stack(*tiles: DN) -> Tensor:
    return torch.from_numpy(np.stack(tiles).astype(np.float32))
