"""Explanations as a self-contained HTML page, and as one PNG: tile, heat map, bands and probabilities."""

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from PIL import Image

from tilewise.datasets.core.pictures import AGAINST, FOR, Picture, heat_over, true_colour
from tilewise.models.explain.attribution import AttributionMethod, TileExplanation
from tilewise.models.model_file import ModelFile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Smaller effects are not painted in full colour: they are negligible. Log-odds, of a pixel and of a patch.
MIN_SCALE = {AttributionMethod.GRADIENTS: 1e-4, AttributionMethod.OCCLUSION: 0.05}
_ZOOM = 6
_METHODS = {
    AttributionMethod.GRADIENTS: (
        "integrated gradients (Captum), smoothed by a Gaussian of 1 pixel, from the tile's own mean"
    ),
    AttributionMethod.OCCLUSION: (
        "occlusion: patches of 8 × 8 pixels, every 4, replaced by the tile's own mean"
    ),
}
_TEMPLATE = "page.html"
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, keep_trailing_newline=True
)


def draw_page(found: TileExplanation, model: ModelFile) -> str:
    """Return the page as HTML; its content security policy keeps it from loading anything."""
    return _ENVIRONMENT.get_template(_TEMPLATE).render(
        title=f"{found.class_name}: {found.probabilities[found.class_index]:.1%}",
        found=found,
        model=model.metadata,
        warnings=warnings_of(found, model),
        for_colour=FOR,
        against_colour=AGAINST,
        tile_picture=_data_uri(np.kron(true_colour(found.tile), np.ones((_ZOOM, _ZOOM, 1), np.uint8))),
        heat_picture=_data_uri(heat_picture(found, _ZOOM)),
        scale=scale_of(found),
        legend=legend_of(found),
        band_scale=max((abs(effect.log_odds) for effect in found.bands.values()), default=0) or 1.0,
        probabilities=_ranked(found, model)[::-1],
        prediction_set=set_of(found),
        facts=_facts(found, model),
    )


def _ranked(found: TileExplanation, model: ModelFile) -> list[tuple[str, float]]:
    """Return the classes with their probabilities, the likeliest last."""
    named = zip(model.metadata.classes, map(float, found.probabilities), strict=True)
    return sorted(named, key=lambda item: item[1])


def warnings_of(found: TileExplanation, model: ModelFile) -> list[str]:
    """Return the warnings about the prediction and its explanation."""
    predicted = model.metadata.classes[int(found.probabilities.argmax())]
    warnings = []
    if predicted != found.class_name:
        warnings.append(f"The model predicts {predicted}; this explains {found.class_name}, as requested.")
    if found.is_outlier:
        warnings.append(
            "This tile is out of distribution: neither the prediction nor its explanation is reliable."
        )
    if found.tile.valid_fraction < 1:
        warnings.append(f"{1 - found.tile.valid_fraction:.1%} of the pixels have no data in some band.")
    if model.metadata.synthetic:
        warnings.append("This model was trained on synthetic tiles: a demonstration only.")
    return warnings


def scale_of(found: TileExplanation) -> float:
    """Return the effect, in log-odds, that is painted in full colour."""
    return max(float(np.abs(found.heat).max()), MIN_SCALE[found.method])


def heat_picture(found: TileExplanation, zoom: int) -> Picture:
    """Return uint8 (zoom · 64, zoom · 64, 3): heat over the tile."""
    return heat_over(found.tile, found.heat / np.float32(scale_of(found)), zoom)


def legend_of(found: TileExplanation) -> str:
    """Return the legend of the heat map, with its numbers."""
    effect = (
        "the contribution of a pixel"
        if found.method is AttributionMethod.GRADIENTS
        else "the loss without the patch around a pixel"
    )
    return (
        f"Red is evidence for {found.class_name}, blue against it: {effect}, in log-odds. A uniform tile of "
        f"the same "
        f"mean has {found.mean_log_odds:+.2f}, this tile {found.log_odds:+.2f}; its pattern makes the "
        f"difference."
    )


def set_of(found: TileExplanation) -> str:
    """Return the prediction set in words."""
    if found.prediction_set is None:
        return "not calibrated"
    return ", ".join(found.prediction_set) or f"empty: no class is likely enough for {found.coverage:.0%}"


def outlier_of(found: TileExplanation) -> str:
    """Return the outlier flag in words."""
    flag = {None: "not calibrated", True: "out of distribution", False: "in distribution"}
    return f"{flag[found.is_outlier]} (score {found.outlier_score:.2f})"


def _facts(found: TileExplanation, model: ModelFile) -> dict[str, str]:
    facts = {
        "model": f"{model.metadata.name} {model.metadata.version}, {model.metadata.network}, "
        f"{model.metadata.precision}, SHA-256 {model.sha256[:16]}…",
        "tile": f"{found.tile.level or 'level unknown'}; {', '.join(found.tile.bands)}",
        "outlier": outlier_of(found),
        "pixels": _METHODS[found.method] + (f". {found.reason}" if found.reason else ""),
        "bands": "ablation (Captum): each in turn set to no data, by the model file itself",
    }
    if found.gap is not None:
        facts["exactness"] = (
            f"the contributions of the pixels add up to the difference but for {abs(found.gap):.2g}"
        )
    return facts


def _data_uri(picture: Picture) -> str:
    content = io.BytesIO()
    Image.fromarray(picture).save(content, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


_INCHES, _DPI = (11.0, 9.0), 110
_ACCENT = "#0b5d4b"


def draw_picture(found: TileExplanation, model: ModelFile) -> bytes:
    """Return a PNG of 1210 × 990 pixels."""
    figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.1)  # type: ignore[union-attr, call-arg]
    (tile, heat), (bands, probabilities) = figure.subplots(2, 2, height_ratios=(1.15, 1))
    figure.suptitle(_plain(_title(found, model)), fontsize=15, fontweight="bold")
    figure.supxlabel(_plain(_footer(found, model)), fontsize=8.5, wrap=True)
    _show(tile, true_colour(found.tile), found.tile.name)
    _show(heat, heat_picture(found, _ZOOM), f"red: for {found.class_name}; blue: against")
    _add_scale(figure, heat, scale_of(found))
    _draw_bands(bands, found)
    _draw_probabilities(probabilities, found, model)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _title(found: TileExplanation, model: ModelFile) -> str:
    name = f"{model.metadata.name} {model.metadata.version}"
    return f"{found.class_name}: {found.probabilities[found.class_index]:.1%} by {name}"


def _footer(found: TileExplanation, model: ModelFile) -> str:
    lines = [
        legend_of(found),
        f"Prediction set of {found.coverage:.0%}: {set_of(found)}. {outlier_of(found).capitalize()}.",
        *warnings_of(found, model),
    ]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Return text with the signs escaped that matplotlib takes for a formula."""
    return text.replace("$", r"\$")


def _show(axes: "Axes", picture: np.ndarray, title: str) -> None:
    axes.imshow(picture, interpolation="nearest")
    axes.set_title(_plain(title), fontsize=11)
    axes.set_axis_off()


def _add_scale(figure: Figure, axes: "Axes", limit: float) -> None:
    from matplotlib.cm import ScalarMappable

    colours: list[Any] = [_rgb(AGAINST), _rgb((136, 136, 136)), _rgb(FOR)]
    colour_map = LinearSegmentedColormap.from_list("heat", colours)
    bar = figure.colorbar(ScalarMappable(Normalize(-limit, limit), colour_map), ax=axes, shrink=0.8)
    bar.set_label("log-odds")


def _rgb(colour: tuple[int, int, int]) -> tuple[float, ...]:
    """Return a colour of bytes as matplotlib takes it, 0-1."""
    return tuple(part / 255 for part in colour)


def _draw_bands(axes: "Axes", found: TileExplanation) -> None:
    names, effects = list(found.bands), [effect.log_odds for effect in found.bands.values()]
    axes.barh(names, effects, color=[_rgb(FOR if effect > 0 else AGAINST) for effect in effects])
    axes.axvline(0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_title("loss without the band, log-odds", fontsize=11)
    axes.tick_params(labelsize=9)


def _draw_probabilities(axes: "Axes", found: TileExplanation, model: ModelFile) -> None:
    names, values = zip(*_ranked(found, model), strict=True)
    bars = axes.barh([_plain(name) for name in names], values, color=_ACCENT)
    axes.bar_label(bars, [f"{value:.1%}" for value in values], padding=3, fontsize=8)
    axes.set_xlim(0, 1.15)
    axes.set_title("calibrated probability", fontsize=11)
    axes.tick_params(labelsize=9)
