"""An explanation as one picture: the tile, its heat, its bands and its probabilities side by side."""

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from datasets.pictures import AGAINST, FOR, true_colour
from models.explain import Explanation
from models.explain_page import heat_picture, outlier_of, reading_of, scale_of, set_of, warnings_of
from models.modelfile import ModelFile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INCHES, _DPI = (11.0, 9.0), 110
_ZOOM = 6
_ACCENT = "#0b5d4b"


def draw_picture(found: Explanation, model: ModelFile) -> bytes:
    """Return a PNG of 1210 × 990 pixels."""
    figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.1)  # type: ignore[union-attr, call-arg]
    (tile, heat), (bands, probabilities) = figure.subplots(2, 2, height_ratios=(1.15, 1))
    figure.suptitle(_plain(_title(found, model)), fontsize=15, fontweight="bold")
    figure.supxlabel(_plain(_foot(found, model)), fontsize=8.5, wrap=True)
    _show(tile, true_colour(found.tile), found.tile.name)
    _show(heat, heat_picture(found, _ZOOM), f"red: for {found.class_name}; blue: against")
    _add_scale(figure, heat, scale_of(found))
    _draw_bands(bands, found)
    _draw_probabilities(probabilities, found, model)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _title(found: Explanation, model: ModelFile) -> str:
    name = f"{model.metadata.name} {model.metadata.version}"
    return f"{found.class_name}: {found.probabilities[found.class_index]:.1%}, says {name}"


def _foot(found: Explanation, model: ModelFile) -> str:
    lines = [
        reading_of(found),
        f"Prediction set of {found.coverage:.0%}: {set_of(found)}. {outlier_of(found).capitalize()}.",
        *warnings_of(found, model),
    ]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Return text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")


def _show(axes: "Axes", picture: np.ndarray, title: str) -> None:
    axes.imshow(picture, interpolation="nearest")
    axes.set_title(_plain(title), fontsize=11)
    axes.set_axis_off()


def _add_scale(figure: Figure, axes: "Axes", most: float) -> None:
    from matplotlib.cm import ScalarMappable

    tones: list[Any] = [_tone(AGAINST), _tone((136, 136, 136)), _tone(FOR)]
    colours = LinearSegmentedColormap.from_list("heat", tones)
    bar = figure.colorbar(ScalarMappable(Normalize(-most, most), colours), ax=axes, shrink=0.8)
    bar.set_label("log-odds")


def _tone(colour: tuple[int, int, int]) -> tuple[float, ...]:
    """Return a colour of bytes as matplotlib takes it, 0-1."""
    return tuple(part / 255 for part in colour)


def _draw_bands(axes: "Axes", found: Explanation) -> None:
    names, effects = list(found.bands), [effect.log_odds for effect in found.bands.values()]
    axes.barh(names, effects, color=[_tone(FOR if effect > 0 else AGAINST) for effect in effects])
    axes.axvline(0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_title("what is lost without a band, log-odds", fontsize=11)
    axes.tick_params(labelsize=9)


def _draw_probabilities(axes: "Axes", found: Explanation, model: ModelFile) -> None:
    ordered = sorted(
        zip(model.metadata.classes, map(float, found.probabilities), strict=True), key=lambda item: item[1]
    )
    names, values = zip(*ordered, strict=True)
    bars = axes.barh([_plain(name) for name in names], values, color=_ACCENT)
    axes.bar_label(bars, [f"{value:.1%}" for value in values], padding=3, fontsize=8)
    axes.set_xlim(0, 1.15)
    axes.set_title("calibrated probability", fontsize=11)
    axes.tick_params(labelsize=9)
