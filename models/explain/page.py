"""An explanation as one picture: the tile, its heat, its bands and its probabilities side by side."""

import base64
import io
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from PIL import Image

from tilewise.datasets.core.pictures import AGAINST, FOR, Picture, heat_over, true_colour
from tilewise.models.explain.attribution import Explanation, Method
from tilewise.models.model_file import ModelFile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Smaller effects are not painted in full colour: they are next to nothing. Log-odds, of a pixel and of a patch.
MIN_SCALE = {Method.GRADIENTS: 1e-4, Method.OCCLUSION: 0.05}
_ZOOM = 6
_HOW = {
    Method.GRADIENTS: "integrated gradients (Captum), smoothed by a Gaussian of 1 pixel, from the tile's own mean",
    Method.OCCLUSION: "occlusion: patches of 8 × 8 pixels, every 4, replaced by the tile's own mean",
}

_STYLE = """
:root { color-scheme: light dark; --paper: #f6f7f5; --panel: #fff; --ink: #1c2321; --soft: #55605c; --line: #d5dad6;
  --accent: #0b5d4b; --warn: #fff4d6; --warn-ink: #5c4300; --for: RED; --against: BLUE }
@media (prefers-color-scheme: dark) { :root { --paper: #141917; --panel: #1d2421; --ink: #e8edea; --soft: #a9b5b0;
  --line: #36403b; --accent: #6fd3b5; --warn: #3a3013; --warn-ink: #ffe3a0 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere }
h1 { font-size: clamp(1.6rem, 1.2rem + 2vw, 2.3rem); line-height: 1.15; margin: 0 }
h2 { font-size: 1.25rem; margin: 0 0 .6rem } p { margin: .3rem 0 } .soft { color: var(--soft) }
.warn { background: var(--warn); color: var(--warn-ink); border-radius: 10px; padding: .6rem 1rem; margin: 1rem 0 }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1rem;
  margin: 1rem 0 }
section, figure { background: var(--panel); border: 1px solid var(--line); border-radius: 10px; padding: 1rem;
  margin: 0 }
figure img { width: 100%; display: block; image-rendering: pixelated; border-radius: 4px }
figcaption { margin-top: .5rem; color: var(--soft); font-size: .9rem }
.scale { display: grid; grid-template-columns: auto 1fr auto; gap: .5rem; align-items: center }
.scale i { height: .8rem; border-radius: 3px; background: linear-gradient(90deg, var(--against), #8888, var(--for)) }
table { border-collapse: collapse; width: 100% }
th, td { padding: .2rem .4rem; text-align: left; font-weight: normal; border-bottom: 1px solid var(--line) }
thead th { color: var(--soft); font-size: .85rem } .number { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums }
.chart { width: 40%; min-width: 5rem } .half { display: grid; grid-template-columns: 1fr 1fr }
.half div { height: .9rem } .half div:first-child { display: flex; justify-content: flex-end;
  border-right: 1px solid var(--soft) }
.bar { height: .9rem; border-radius: 2px } .in { font-weight: bold }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: 0 } dd { margin: 0 }
dt { color: var(--soft) }
@media (max-width: 30rem) { dl { grid-template-columns: 1fr } dd { margin-bottom: .4rem } }
""".replace("RED", "rgb({}, {}, {})".format(*FOR)).replace("BLUE", "rgb({}, {}, {})".format(*AGAINST))


def draw_page(found: Explanation, model: ModelFile) -> str:
    """Return the page as HTML; a policy in its head keeps it from asking anyone for anything."""
    title = f"{found.class_name}: {found.probabilities[found.class_index]:.1%}"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">",
        f"<title>{escape(title)} – {escape(found.tile.name)}</title><style>{_STYLE}</style></head><body>",
        f"<header><h1>{escape(title)}</h1>",
        f'<p class="soft">What speaks for and against it in {escape(found.tile.name)}, to '
        f"{escape(model.metadata.name)} {escape(model.metadata.version)}</p></header>",
        *(f'<p class="warn">{escape(text)}</p>' for text in warnings_of(found, model)),
        f'<div class="two">{_draw_tile(found)}{_draw_heat(found)}</div>',
        f'<div class="two">{_band_bars(found)}{_probability_bars(found, model)}</div>',
        _draw_facts(found, model),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def warnings_of(found: Explanation, model: ModelFile) -> list[str]:
    """Return what a reader must know before believing the answer."""
    answered = model.metadata.classes[int(found.probabilities.argmax())]
    overrides = []
    if answered != found.class_name:
        overrides.append(f"The model answers {answered}; explained is {found.class_name}, as was asked.")
    if found.is_outlier:
        overrides.append("This tile is unlike the training data: neither the answer nor its reasons can be relied on.")
    if found.tile.valid_fraction < 1:
        overrides.append(f"{1 - found.tile.valid_fraction:.1%} of the pixels hold no data in some band.")
    if model.metadata.synthetic:
        overrides.append("This model was trained on synthetic tiles: a demonstration, no product.")
    return overrides


def scale_of(found: Explanation) -> float:
    """Return the effect, in log-odds, that is painted in full colour."""
    return max(float(np.abs(found.heat).max()), MIN_SCALE[found.method])


def heat_picture(found: Explanation, zoom: int) -> Picture:
    """Return uint8 (zoom · 64, zoom · 64, 3): heat over the tile."""
    return heat_over(found.tile, found.heat / np.float32(scale_of(found)), zoom)


def reading_of(found: Explanation) -> str:
    """Return how the heat is to be read, with its numbers."""
    effect = "a pixel's share" if found.method is Method.GRADIENTS else "what is lost with the patch around a pixel"
    return (
        f"Red speaks for {found.class_name}, blue against it: {effect}, in log-odds. A tile of this one's mean colours "
        f"has {found.mean_log_odds:+.2f}, this tile {found.log_odds:+.2f}; the pattern makes the difference."
    )


def set_of(found: Explanation) -> str:
    """Return the prediction set in words."""
    if found.prediction_set is None:
        return "not calibrated"
    return ", ".join(found.prediction_set) or f"empty: no class is likely enough for {found.coverage:.0%}"


def outlier_of(found: Explanation) -> str:
    """Return the outlier flag in words."""
    flag = {None: "not calibrated", True: "unlike the training data", False: "like the training data"}
    return f"{flag[found.is_outlier]} (score {found.outlier_score:.2f})"


def _draw_tile(found: Explanation) -> str:
    picture = np.kron(true_colour(found.tile), np.ones((_ZOOM, _ZOOM, 1), np.uint8))
    return (
        f'<figure><img alt="The tile in true colour" src="{_data_uri(picture)}">'
        "<figcaption>The tile, B04, B03 and B02 stretched for itself</figcaption></figure>"
    )


def _draw_heat(found: Explanation) -> str:
    limit = scale_of(found)
    return (
        f'<figure><img alt="Heat map of the pixels that speak for and against {escape(found.class_name)}" '
        f'src="{_data_uri(heat_picture(found, _ZOOM))}"><figcaption><div class="scale"><span>{-limit:+.2g}</span><i></i>'
        f"<span>{limit:+.2g}</span></div>{escape(reading_of(found))}</figcaption></figure>"
    )


def _band_bars(found: Explanation) -> str:
    limit = max((abs(effect.log_odds) for effect in found.bands.values()), default=0) or 1.0
    rows = "".join(
        f'<tr><th scope="row">{name}</th><td class="chart">{_draw_effect(effect.log_odds / limit)}</td>'
        f'<td class="number">{effect.log_odds:+.2f}</td><td class="number">{effect.probability:.1%}</td></tr>'
        for name, effect in found.bands.items()
    )
    return (
        "<section><h2>Bands</h2><table><thead><tr><th>band</th><th>against · for</th>"
        f'<th class="number">log-odds</th><th class="number">without it</th></tr></thead><tbody>{rows}</tbody></table>'
        f'<p class="soft">What {escape(found.class_name)} loses when a band is taken away, and its probability then.'
        "</p></section>"
    )


def _draw_effect(share: float) -> str:
    """Return a bar to the right for a share (-1 to 1) above 0, to the left for one below."""
    colour = "var(--for)" if share > 0 else "var(--against)"
    bar = f'<div class="bar" style="width:{100 * abs(share):.1f}%;background:{colour}"></div>'
    left, right = ("", bar) if share > 0 else (bar, "")
    return f'<div class="half"><div>{left}</div><div>{right}</div></div>'


def _probability_bars(found: Explanation, model: ModelFile) -> str:
    rows = "".join(
        f'<tr><th scope="row"{_in_set(name, found)}>{escape(name)}</th><td class="chart"><div class="bar" '
        f'style="width:{100 * probability:.1f}%;background:var(--accent)"></div></td>'
        f'<td class="number">{probability:.1%}</td></tr>'
        for name, probability in sorted(
            zip(model.metadata.classes, map(float, found.probabilities), strict=True), key=lambda item: -item[1]
        )
    )
    return (
        f"<section><h2>Probabilities</h2><table><tbody>{rows}</tbody></table>"
        f'<p class="soft">Prediction set of {found.coverage:.0%}: <span class="in">{escape(set_of(found))}</span></p>'
        "</section>"
    )


def _in_set(name: str, found: Explanation) -> str:
    return ' class="in"' if found.prediction_set and name in found.prediction_set else ""


def _draw_facts(found: Explanation, model: ModelFile) -> str:
    facts = {
        "model": f"{model.metadata.name} {model.metadata.version}, {model.metadata.network}, "
        f"{model.metadata.precision}, SHA-256 {model.sha256[:16]}…",
        "tile": f"{found.tile.level or 'level unknown'}; {', '.join(found.tile.bands)}",
        "familiar": outlier_of(found),
        "pixels": _HOW[found.method] + (f". {found.reason}" if found.reason else ""),
        "bands": "ablation (Captum): each in turn as no data, answered by the model file itself",
    }
    if found.gap is not None:
        facts["exactness"] = f"the pixels' shares add up to the difference but for {abs(found.gap):.2g}"
    rows = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    return f"<section><h2>How this was found</h2><dl>{rows}</dl></section>"


def _data_uri(picture: Picture) -> str:
    content = io.BytesIO()
    Image.fromarray(picture).save(content, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


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


def _add_scale(figure: Figure, axes: "Axes", limit: float) -> None:
    from matplotlib.cm import ScalarMappable

    tones: list[Any] = [_tone(AGAINST), _tone((136, 136, 136)), _tone(FOR)]
    colours = LinearSegmentedColormap.from_list("heat", tones)
    bar = figure.colorbar(ScalarMappable(Normalize(-limit, limit), colours), ax=axes, shrink=0.8)
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
