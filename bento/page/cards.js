// The card of each file. Its slots are fixed, and are filled as results arrive, so that the focus is not lost.

import { make } from "./dom.js";
import { middleOf } from "./geometry.js";
import { colourOf } from "./legend.js";
import { bytes, className, coordinates, count, percent, sceneShares, sceneWarnings, sentence, setSentence, tileWarnings } from "./format.js";

const MIN_BARS = 3;
const SMALL_FRACTION = 0.01;
const OPACITY = 65; // percent, of a class map over the picture
const MAX_ROWS = 400; // of the table of windows
const SLOTS = ["pictures", "answer", "warnings", "facts", "item-actions", "explanation"];

/** Return the card of a file, and set `item.card`, `item.heading` and `item.slots`. */
export function makeCard(item) {
  item.slots = Object.fromEntries(SLOTS.map((name) => [name, make("div", { class: name })]));
  item.heading = make("h4", { id: `name-${item.id}`, tabindex: "-1" }, make("span", { class: "number" }, `${item.id}`), item.file.name);
  const { pictures, ...rest } = item.slots;
  item.card = make("li", { class: "card", id: `file-${item.id}`, "aria-labelledby": `name-${item.id}` }, item.heading, pictures, make("div", { class: "details-column" }, Object.values(rest)));
  showWaiting(item, "Waiting");
  return item.card;
}

export function showWaiting(item, text) {
  item.card.hidden = false;
  for (const slot of Object.values(item.slots)) slot.replaceChildren();
  item.slots.answer.append(make("p", { class: "hint" }, `${text}…`));
}

export function showProgress(item, fraction, ahead) {
  const text = ahead ? `${count(ahead, "scene")} ahead in the queue` : "Classifying the scene";
  item.slots.answer.replaceChildren(make("p", { class: "hint" }, `${text}…`), make("progress", { max: 1, value: fraction, "aria-label": `Progress of ${item.file.name}` }));
}

/** Show why a file was not classified; `help` is an element with actions, or null. */
export function showError(item, help) {
  for (const slot of Object.values(item.slots)) slot.replaceChildren();
  const { message, hint } = item.error;
  const parts = [make("strong", {}, "Not classified. "), sentence(message)];
  item.slots.answer.append(make("div", { class: "note bad" }, make("p", {}, parts), hint ? make("p", {}, hint) : null, help));
  showFacts(item, []);
}

/** Show the class map of a scene at `url`, with a slider for its opacity; its true-colour picture comes below it. */
export function showMap(item, url) {
  item.overlay = make("img", { src: url, class: "overlay", alt: `Class map of ${item.file.name}` });
  item.stack = make("div", { class: "stack" }, item.overlay);
  const id = `opacity-${item.id}`;
  const slider = make("input", { id, type: "range", min: 0, max: 100, step: 5, value: OPACITY, oninput: () => setOpacity(item, slider.value) });
  const label = make("label", { for: id }, "Opacity of the map", make("span", { class: "visually-hidden" }, ` (${item.file.name})`));
  item.slots.pictures.classList.add("large");
  item.slots.pictures.append(make("figure", {}, item.stack, make("div", { class: "opacity" }, label, slider), make("figcaption", {}, "Class map over true colour")));
  setOpacity(item, OPACITY);
}

function setOpacity(item, percentage) {
  item.overlay.style.opacity = percentage / 100;
}

export function showPicture(item, caption, url) {
  const pixelated = item.kind === "tile";
  const image = make("img", { src: url, alt: `${caption} picture of ${item.file.name}`, class: pixelated ? "pixels" : "" });
  if (item.stack && caption === "True colour") item.stack.prepend(image);
  else item.slots.pictures.append(make("figure", {}, image, make("figcaption", {}, caption)));
}

export function showNoPicture(item, caption, reason) {
  item.slots.pictures.append(make("figure", { class: "none" }, make("p", { class: "hint" }, reason), make("figcaption", {}, caption)));
}

export function showTile(item, model) {
  const { result } = item;
  item.slots.answer.replaceChildren(
    answerLine(result.class, result.probabilities[result.class]),
    ...(result.prediction_set ? [make("p", { class: "set" }, setSentence(result.prediction_set))] : []),
    bars("Probabilities", result.probabilities),
  );
  showWarnings(item, tileWarnings(result, item.cloudFraction, model));
  const middle = middleOf(result.footprint);
  showFacts(item, [
    ["Location", middle ? coordinates(...middle) : "not georeferenced"],
    ["Level", result.level ?? "unknown"],
    ["Bands", result.bands.length > 6 ? `${result.bands.length} of Sentinel-2's 13` : result.bands.join(", ")],
    ["Valid pixels", percent(result.valid_fraction)],
    ["Like the training data", result.outlier ? (result.outlier.flag ? "no" : "yes") : null],
  ]);
}

export function showScene(item) {
  const { features, bands, level, pixels } = item.scene;
  const { classes, unlike, none } = sceneShares(pixels);
  const dominant = Object.entries(classes)[0];
  item.slots.answer.replaceChildren(
    ...(dominant ? [answerLine(...dominant, `${dominant[1] > 0.5 ? "Mostly" : "Most common:"} ${className(dominant[0]).toLowerCase()}`), bars("Fraction of the classified area", classes)] : []),
    make("ul", { class: "rest", "aria-label": "Without a class" }, restLine("hatch", "Unlike the training data", unlike), restLine("empty", "Cloud or no data", none)),
    windowTable(features),
  );
  showWarnings(item, sceneWarnings(item.scene));
  const middle = middleOf(features.find((feature) => feature.geometry)?.geometry);
  showFacts(item, [
    ["Windows", count(features.length, "window")],
    ["Location", middle ? `near ${coordinates(...middle, 2)}` : null],
    ["Level", level],
    ["Bands", bands.length > 6 ? `${bands.length} of Sentinel-2's 13` : bands.join(", ")],
  ]);
}

function restLine(kind, name, fraction) {
  if (!fraction) return null;
  return make("li", {}, make("span", { class: `swatch ${kind}`, "aria-hidden": "true" }), `${name}: ${percent(fraction)} of the scene`);
}

export function showWarnings(item, warnings) {
  const entries = warnings.map(({ severe, text }) => {
    const [first, ...rest] = text.split(/(?<=[.:]) /);
    return make("li", { class: severe ? "note bad" : "note warn" }, make("strong", {}, `${first} `), rest.join(" "));
  });
  item.warned = warnings.length > 0;
  item.slots.warnings.replaceChildren(...(entries.length ? [make("ul", { "aria-label": `Warnings about ${item.file.name}` }, entries)] : []));
}

export function showExplanation(item, url, name) {
  item.slots.explanation.replaceChildren(
    make("figure", { class: "wide" },
      make("img", { src: url, class: "pixels", alt: `Heat map of ${item.file.name}: the parts that support or oppose ${className(name)}` }),
      make("figcaption", {}, `Red parts support “${className(name)}”: its probability drops when they are hidden. Blue parts oppose it.`)),
  );
}

function answerLine(name, fraction, text = className(name)) {
  return make("p", { class: "class" }, swatch(name), make("span", {}, text), make("span", { class: "percent" }, percent(fraction)));
}

/** Return a box in the colour of a class; of no class: hatched, for what is unlike the training data. */
export function swatch(name) {
  if (!name) return make("span", { class: "swatch hatch", "aria-hidden": "true" });
  const box = make("span", { class: "swatch", "aria-hidden": "true" });
  box.style.backgroundColor = colourOf(name);
  return box;
}

/** Return bars with their values as text, the longest first; those below 1 % are collapsed. */
function bars(title, fractions) {
  const ranked = Object.entries(fractions).sort((a, b) => b[1] - a[1]);
  const shown = Math.max(MIN_BARS, ranked.filter(([, fraction]) => fraction >= SMALL_FRACTION).length);
  const rest = ranked.slice(shown);
  const first = rest.length > 1 ? ranked.slice(0, shown) : ranked;
  const more = make("details", {}, make("summary", {}, `${rest.length} more below ${percent(SMALL_FRACTION)}`), barList(`${title}, the rest`, rest));
  return make("div", {}, barList(title, first), rest.length > 1 ? more : null);
}

function barList(title, ranked) {
  const rows = ranked.map(([name, fraction]) => {
    const bar = make("span", { class: "fill" });
    bar.style.width = `${100 * fraction}%`;
    bar.style.backgroundColor = colourOf(name);
    return make("li", {}, make("span", { class: "name" }, className(name)), make("span", { class: "track", "aria-hidden": "true" }, bar), make("span", { class: "value" }, percent(fraction)));
  });
  return make("ol", { class: "bars", "aria-label": title }, rows);
}

function windowTable(features) {
  const rows = features.slice(0, MAX_ROWS).map(({ properties }) => {
    const named = properties.class && !properties.outlier?.flag;
    return make("tr", {},
      make("td", {}, `${properties.row}, ${properties.column}`),
      make("td", {}, named ? className(properties.class) : properties.class ? "unlike the training data" : "not classified"),
      make("td", {}, named ? percent(properties.probability) : "–"),
      make("td", {}, percent(properties.valid_fraction, 0)));
  });
  const head = ["Row, column", "Class", "Probability", "Valid"].map((name) => make("th", { scope: "col" }, name));
  const table = make("table", {}, make("thead", {}, make("tr", {}, head)), make("tbody", {}, rows));
  const title = features.length > MAX_ROWS ? `The first ${MAX_ROWS} windows` : "All windows";
  return make("details", {}, make("summary", {}, title), make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title }, table));
}

function showFacts(item, facts) {
  const size = item.size ? `${item.size.width} × ${item.size.height} pixels, ${bytes(item.file.size)}` : bytes(item.file.size);
  const known = [...facts, ["File", size]].filter(([, value]) => value);
  item.slots.facts.replaceChildren(make("dl", {}, known.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))));
}
