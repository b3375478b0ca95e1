// The card of each file. Its slots are fixed, and are filled as results arrive, so that the focus is not lost.

import { make } from "./dom.js";
import { middleOf } from "./geometry.js";
import { colourOf } from "./legend.js";
import { bytes, className, coordinates, count, percent, sceneWarnings, sentence, setSentence, tileWarnings } from "./format.js";

const MIN_BARS = 3;
const SMALL_FRACTION = 0.01;
const SLOTS = ["pictures", "answer", "warnings", "facts", "item-actions", "explanation"];

/** Return the card of a file, and set `item.heading` and `item.slots`. */
export function makeCard(item) {
  item.slots = Object.fromEntries(SLOTS.map((name) => [name, make("div", { class: name })]));
  item.heading = make("h4", { id: `name-${item.id}`, tabindex: "-1" }, make("span", { class: "number" }, `${item.id}`), item.file.name);
  const { pictures, ...rest } = item.slots;
  const card = make("li", { class: "card", id: `file-${item.id}`, "aria-labelledby": `name-${item.id}` }, item.heading, pictures, make("div", { class: "details-column" }, Object.values(rest)));
  showWaiting(item, "Waiting");
  return card;
}

export function showWaiting(item, text) {
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
  const parts = [make("strong", {}, "Not classified. "), sentence(withoutName(message, item.file.name))];
  item.slots.answer.append(make("div", { class: "note bad" }, make("p", {}, parts), hint ? make("p", {}, sentence(hint)) : null, help));
  showFacts(item, []);
}

/** Messages begin with the file's name, which is already in the heading. */
function withoutName(message, name) {
  return message.startsWith(`${name}: `) ? message.slice(name.length + 2) : message;
}

export function showPicture(item, caption, url, pixelated) {
  item.slots.pictures.classList.toggle("large", !pixelated);
  const image = make("img", { src: url, alt: `${caption} picture of ${item.file.name}`, class: pixelated ? "pixels" : "" });
  item.slots.pictures.append(make("figure", {}, image, make("figcaption", {}, caption)));
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
    ["Outlier score", result.outlier ? outlierScore(result.outlier, model) : null],
  ]);
}

export function showScene(item) {
  const { features, bands, level } = item.scene;
  const fractions = classFractions(features);
  const dominant = Object.entries(fractions)[0];
  item.slots.answer.replaceChildren(
    ...(dominant ? [answerLine(...dominant, `${dominant[1] > 0.5 ? "Mostly" : "Most common:"} ${className(dominant[0]).toLowerCase()}`), bars("Fraction of the windows", fractions)] : []),
    windowTable(features),
  );
  showWarnings(item, sceneWarnings(features, item.cloudFraction));
  const middle = middleOf(features.find((feature) => feature.geometry)?.geometry);
  showFacts(item, [
    ["Windows", count(features.length, "window")],
    ["Location", middle ? `near ${coordinates(...middle, 2)}` : null],
    ["Level", level],
    ["Bands", bands.length > 6 ? `${bands.length} of Sentinel-2's 13` : bands.join(", ")],
  ]);
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

/** Return the fraction (0-1) of the classified windows in each class, the largest first. */
export function classFractions(features) {
  const counts = {};
  for (const { properties } of features) if (properties.class) counts[properties.class] = (counts[properties.class] ?? 0) + 1;
  const total = Object.values(counts).reduce((sum, number) => sum + number, 0);
  return Object.fromEntries(Object.entries(counts).sort((a, b) => b[1] - a[1]).map(([name, number]) => [name, number / total]));
}

function answerLine(name, fraction, text = className(name)) {
  return make("p", { class: "class" }, swatch(name), make("span", {}, text), make("span", { class: "percent" }, percent(fraction)));
}

export function swatch(name) {
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
  const rows = features.map(({ properties }) => make("tr", {},
    make("td", {}, `${properties.row}, ${properties.column}`),
    make("td", {}, properties.class ? className(properties.class) : "not classified"),
    make("td", {}, properties.class ? percent(properties.probability) : "–"),
    make("td", {}, percent(properties.valid_fraction, 0))));
  const head = ["Row, column", "Class", "Probability", "Valid"].map((name) => make("th", { scope: "col" }, name));
  const table = make("table", {}, make("thead", {}, make("tr", {}, head)), make("tbody", {}, rows));
  return make("details", {}, make("summary", {}, "All windows"), make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "All windows" }, table));
}

function outlierScore({ score, flag }, model) {
  const threshold = model?.outliers?.threshold;
  if (!threshold) return flag ? "flagged" : "not flagged";
  return `${(score / threshold).toFixed(2)} × the threshold`;
}

function showFacts(item, facts) {
  const size = item.size ? `${item.size.width} × ${item.size.height} pixels, ${bytes(item.file.size)}` : bytes(item.file.size);
  const known = [...facts, ["File", size]].filter(([, value]) => value);
  item.slots.facts.replaceChildren(make("dl", {}, known.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))));
}
