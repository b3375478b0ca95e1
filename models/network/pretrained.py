"""Backbones with published weights: any network of timm, and torchgeo's networks for Sentinel-2.

The graph resamples a tile to the side the network works at, so the model file holds it. The first convolution
is adapted by band name (`adapted_kernel`), and the scale that the weights were trained on is folded into it:
serving sees one network that takes the 13 bands of a tile.

Nothing is unpickled: state dicts are read with `weights_only=True`, or as safetensors.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tilewise.datasets.core.bands import BAND_NAMES, BAND_SETS, RGB_BANDS, parse_bands
from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.core.tile import BAND_COUNT, TILE_SIZE

TIMM, TORCHGEO = "timm/", "torchgeo/"
_BANDS_OF = {3: RGB_BANDS, 12: BAND_SETS["l2a"], BAND_COUNT: BAND_NAMES}
_WRAPPERS = ("state_dict", "model", "model_state")
_PREFIXES = ("module.", "backbone.", "encoder.", "model.")
_FILES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
_IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class PretrainedOptions:
    """The weights of a published network, and how a tile is shown to it.

    Attributes:
        weights: a file of a state dict (.pth, .safetensors); a tag of timm such as `in1k`; a weight of
            torchgeo such as `ResNet18_Weights.SENTINEL2_ALL_MOCO`. null: drawn weights.
        size: side in pixels that tiles of 64 pixels are resampled to (bilinear).
        bands: bands of the weights' first convolution, in order; null: torchgeo's own, or by their number
            3 (B04, B03, B02), 12 (all but B10) or 13.
        scale: what the weights were trained on: `photos`, whose pixels vary like ImageNet's; `reflectance`,
            DN / 10000; null: torchgeo's own, or photos.
    """

    weights: str | None = None
    size: int = TILE_SIZE
    bands: list[str] | None = None
    scale: Literal["photos", "reflectance"] | None = None


@dataclass(frozen=True, slots=True)
class Normalisation:
    """What the weights take: (x − mean) / std, with x a reflectance or a photo's pixel (0–1).

    Attributes:
        photos: x is a photo's pixel: each band then varies as much as a photo does.
        mean, std: of x.
    """

    photos: bool = True
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True, slots=True)
class Weights:
    """Published weights.

    Attributes:
        state: tensors by the network's own names, or by others in the same order.
        bands: of the first convolution, canonical names in the order of its channels; empty: as their number
            says.
        normalisation: of its input.
        origin: name, for the model card.
    """

    state: dict[str, Tensor]
    bands: tuple[str, ...]
    normalisation: Normalisation
    origin: str


class PretrainedBackbone(nn.Module):
    """A backbone by name: `timm/NAME` or `torchgeo/NAME`, without its head.

    Its weights are drawn until `load` is called, which training does once: checkpoints have the trained ones.

    Args:
        name: e.g. `timm/tf_efficientnet_lite0`, `torchgeo/resnet18`.
        options: weights and input.

    Raises:
        TrainingError: the library is not installed, or has no such network, or it does not fit.
    """

    def __init__(self, name: str, options: PretrainedOptions = PretrainedOptions()) -> None:
        super().__init__()
        self.name, self.options = name, options
        self.network = _build(name, options.size)
        self._first = _widen(self.network, name)
        self.features = self._count_features()
        _keep_depthwise_in_32_bits(self.network)

    def grid(self, x: Tensor) -> Tensor:
        """Map (batch, 13, 64, 64) to (batch, features, side, side): the grid of features."""
        features: Tensor = self.network.forward_features(self._resampled(x))  # type: ignore[operator]
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 13, 64, 64) to (batch, features)."""
        embedding: Tensor = self.network(self._resampled(x))
        return embedding

    def load(self, scale: Tensor, shift: Tensor) -> str:
        """Load the published weights, and return what they are, for the model card; empty without weights.

        Args:
            scale, shift: float (1, 13, 1, 1): the backbone's input is `dn × scale + shift`.

        Raises:
            TrainingError: they cannot be had, or are of another network.
        """
        if self.options.weights is None:
            return ""
        weights = find_weights(self.name, self.options)
        state = _fitting(self.network, weights, self._first)
        kernel = state[f"{self._first}.weight"]
        bands = _bands_of(kernel, weights)
        folded, bias = fold_scale(kernel, bands, weights.normalisation, scale, shift)
        state |= {f"{self._first}.weight": folded, f"{self._first}.bias": bias + state[f"{self._first}.bias"]}
        self.network.load_state_dict(state, strict=False)
        return weights.origin

    def _resampled(self, x: Tensor) -> Tensor:
        side = self.options.size
        if side == x.shape[-1]:
            return x
        return functional.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)

    @torch.no_grad()
    def _count_features(self) -> int:
        training = self.network.training
        shape = self.eval()(torch.zeros(1, BAND_COUNT, TILE_SIZE, TILE_SIZE)).shape
        self.train(training)
        if len(shape) != 2:
            raise TrainingError(
                f"model.backbone: {self.name} gives {tuple(shape)}, not one vector a tile; choose another"
            )
        return int(shape[1])


def adapted_kernel(kernel: Tensor, bands: Sequence[str]) -> Tensor:
    """Return the kernel (out, 13, h, w) for all bands, from one (out, bands, h, w) for `bands`.

    A band keeps its own filter; the others share the mean filter, divided by their number, so that together
    they weigh as much as one band.
    """
    spare = kernel.mean(1) / max(1, BAND_COUNT - len(bands))
    columns = [kernel[:, bands.index(name)] if name in bands else spare for name in BAND_NAMES]
    return torch.stack(columns, 1)


def fold_scale(
    kernel: Tensor, bands: Sequence[str], normalisation: Normalisation, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Return kernel (out, 13, h, w) and bias (out,) for input that is `dn × scale + shift`.

    Reflectance is exact but at the tile's edge, where a convolution pads with the bands' means instead of 0.
    A photo has no reflectance: each band, which varies by 1, is made to vary as ImageNet's pixels do.

    Args:
        kernel: (out, bands, h, w), of weights that take `normalisation`.
        bands: canonical names, one for each of its input channels.
        scale, shift: float (1, 13, 1, 1).
    """
    wide = adapted_kernel(kernel, bands)
    if normalisation.photos:
        gain = sum(_IMAGENET_STD) / len(_IMAGENET_STD) / normalisation.std
        return wide * gain, torch.zeros(len(wide))
    known = scale > 0  # a band that no training tile had is ignored
    gains = torch.where(known, 1 / (scale.clamp(min=1e-12) * 10_000 * normalisation.std), 0.0)
    offsets = torch.where(known, (-shift * gains) - normalisation.mean / normalisation.std, 0.0)
    return wide * gains, (wide * offsets).sum((1, 2, 3))


def find_weights(name: str, options: PretrainedOptions) -> Weights:
    """Return the weights that the options name: of a file, of timm or of torchgeo.

    Raises:
        TrainingError: there is no such file or weight, or it cannot be downloaded.
    """
    wanted = str(options.weights)
    if wanted.endswith(_FILES) or Path(wanted).is_file():
        found = _of_file(Path(wanted), name)
    elif name.startswith(TORCHGEO):
        found = _of_torchgeo(wanted)
    else:
        found = _of_timm(name.removeprefix(TIMM), wanted)
    bands = parse_bands(options.bands) if options.bands else found.bands
    scale = options.scale
    normalisation = found.normalisation if scale is None else Normalisation(photos=scale == "photos")
    return Weights(found.state, bands, normalisation, found.origin)


def _of_file(path: Path, name: str) -> Weights:
    state = read_state(path)
    photos = Normalisation(std=_timm_std(name)) if name.startswith(TIMM) else Normalisation(photos=False)
    digest = sha256(path.read_bytes()).hexdigest()
    return Weights(state, (), photos, f"{name}, {path.name}, sha256 {digest}")


def _of_timm(name: str, tag: str) -> Weights:
    timm = _library("timm")
    try:
        network = timm.create_model(f"{name}.{tag}", pretrained=True)
    except Exception as error:  # the hub and the network raise many kinds of errors
        raise _unavailable(f"{TIMM}{name}", tag, error) from error
    return Weights(network.state_dict(), (), Normalisation(std=_timm_std(name)), f"{TIMM}{name}, {tag}")


def _of_torchgeo(wanted: str) -> Weights:
    models = _library("torchgeo.models")
    try:
        weight = models.get_weight(wanted)
    except ValueError as error:
        raise TrainingError(f"model.pretrained.weights: torchgeo has no {wanted!r} ({error})") from error
    try:
        state = dict(weight.get_state_dict(progress=False))
    except Exception as error:  # as above
        raise _unavailable("torchgeo", f"{wanted} ({weight.url})", error) from error
    bands = parse_bands(weight.meta["bands"])
    return Weights(state, bands, _torchgeo_normalisation(weight.transforms), f"torchgeo, {wanted}")


def _torchgeo_normalisation(transforms: nn.Module) -> Normalisation:
    """Return what torchgeo's transforms do to DN: its weights take (DN − mean) / std, often DN / 10000."""
    for step in transforms.modules():
        values: Mapping[str, Any] = getattr(step, "flags", None) or vars(step)
        if "mean" in values and "std" in values:
            mean, std = (torch.as_tensor(values[key], dtype=torch.float64).mean() for key in ("mean", "std"))
            return Normalisation(photos=False, mean=float(mean) / 10_000, std=float(std) / 10_000)
    return Normalisation(photos=False)


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a state dict's file, without wrappers and prefixes of names.

    Raises:
        TrainingError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise TrainingError(f"model.pretrained.weights: {path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds of errors for broken archives
        raise TrainingError(
            f"model.pretrained.weights: {path}: no state dict of tensors alone; save `network.state_dict()`"
        ) from error
    for wrapper in _WRAPPERS:
        found = found[wrapper] if isinstance(found, dict) and isinstance(found.get(wrapper), dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise TrainingError(f"model.pretrained.weights: {path}: holds something else than named tensors")
    return {_plain(str(name)): value for name, value in found.items()}


def _plain(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _fitting(network: nn.Module, weights: Weights, first: str) -> dict[str, Tensor]:
    """Return the weights by the network's names, the first convolution as published, without a head."""
    own = {name: tensor for name, tensor in network.state_dict().items() if _counts(name)}
    bias = own.pop(f"{first}.bias")  # published first convolutions often have none
    given = {name: tensor for name, tensor in weights.state.items() if _counts(name)}
    if not own.keys() <= given.keys():  # other names in the same order, as ports of other libraries have
        given = dict(zip(own, given.values(), strict=False))
    for name, tensor in own.items():
        shape, wanted = tuple(given[name].shape) if name in given else (), tuple(tensor.shape)
        if name == f"{first}.weight":
            wanted = (wanted[0], *shape[1:2], *wanted[2:])  # its bands may be others
        if shape != wanted:
            raise TrainingError(
                f"model.pretrained.weights: {weights.origin}: {name} is {shape or 'missing'} there and "
                f"{wanted} here: weights of another network"
            )
    return {name: given[name] for name in own} | {f"{first}.bias": given.get(f"{first}.bias", bias * 0)}


def _bands_of(kernel: Tensor, weights: Weights) -> tuple[str, ...]:
    channels = kernel.shape[1]
    bands = weights.bands or _BANDS_OF.get(channels, ())
    if len(bands) != channels:
        raise TrainingError(
            f"model.pretrained.weights: {weights.origin}: its first layer takes {channels} bands, but "
            f"{len(bands) or 'none'} are known; name them in model.pretrained.bands"
        )
    return bands


def _counts(name: str) -> bool:
    return not name.endswith("num_batches_tracked")


def _build(name: str, size: int) -> nn.Module:
    """Return the network `name` with drawn weights and without its head."""
    options: dict[str, Any] = {"num_classes": 0}
    if "vit_" in name:
        options["img_size"] = size
    library, _, plain = name.partition("/")
    module = {"timm": "timm", "torchgeo": "torchgeo.models"}.get(library)
    if module is None or not plain:
        raise TrainingError(
            f"model.backbone: {name!r} is neither timm/NAME nor torchgeo/NAME nor the path of a class"
        )
    models = _library(module)
    try:
        return cast(
            nn.Module,
            models.create_model(plain, **options)
            if library == "timm"
            else models.get_model(plain, **options),
        )
    except Exception as error:  # both raise many kinds of errors for names and options
        raise TrainingError(f"model.backbone: {name}: {error}") from error


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise TrainingError(f"model.backbone: {package} is not installed: pip install {package}") from error


def _timm_std(name: str) -> float:
    """Return the standard deviation (0-1) that timm divides the pixels of a network's photos by."""
    config = _library("timm").get_pretrained_cfg(name.removeprefix(TIMM))
    std = config.std if config is not None else _IMAGENET_STD
    return float(sum(std) / len(std))


def _unavailable(source: str, weight: str, error: Exception) -> TrainingError:
    return TrainingError(
        f"model.pretrained.weights: {source} cannot fetch {weight}: {type(error).__name__}; bring its file "
        "and name it there"
    )


def _widen(network: nn.Module, name: str) -> str:
    """Replace the first convolution by one for 13 bands, with a bias, and return its name."""
    path, first = next(((p, m) for p, m in network.named_modules() if isinstance(m, nn.Conv2d)), ("", None))
    if first is None:
        raise TrainingError(f"model.backbone: {name} has no convolution to adapt to 13 bands")
    # Its own class: timm has convolutions that pad like TensorFlow's.
    wide = type(first)(
        BAND_COUNT,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
    )
    parent, _, child = path.rpartition(".")
    setattr(network.get_submodule(parent), child, wide)
    return path


def _keep_depthwise_in_32_bits(network: nn.Module) -> None:
    """Compute depthwise convolutions in 32 bits under CPU autocast: in bfloat16 they are 5 times slower."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.forward = partial(_in_32_bits, module.forward)  # type: ignore[method-assign]


def _in_32_bits(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if x.device.type != "cpu":
        return forward(x)
    with torch.autocast("cpu", enabled=False):
        return forward(x.float())
