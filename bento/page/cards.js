// What is shown of each file. A card has fixed places that are filled as answers come, so that the focus is not lost.

import { make } from "./dom.js";
import { middleOf } from "./geometry.js";
import { colourOf } from "./legend.js";
import { bytes, className, count, percent, place, sceneWarnings, sentence, setSentence, tileWarnings } from "./words.js";

const MIN_BARS = 3;
const SMALL_SHARE = 0.01;
const PLACES = ["pictures", "answer", "warnings", "facts", "doing", "why"];

/** Return the card of a file, and set `item.slots`, its places. */
export function makeCard(item) {
  item.slots = Object.fromEntries(PLACES.map((name) => [name, make("div", { class: name })]));
  item.heading = make("h4", { id: `name-${item.id}`, tabindex: "-1" }, make("span", { class: "number" }, `${item.id}`), item.file.name);
  const { pictures, ...rest } = item.slots;
  const card = make("li", { class: "card", id: `file-${item.id}`, "aria-labelledby": `name-${item.id}` }, item.heading, pictures, make("div", { class: "told" }, Object.values(rest)));
  showWaiting(item, "Waiting");
  return card;
}

export function showWaiting(item, text) {
  for (const slot of Object.values(item.slots)) slot.replaceChildren();
  item.slots.answer.append(make("p", { class: "hint" }, `${text}…`));
}

export function showProgress(item, share, ahead) {
  const text = ahead ? `${count(ahead, "scene")} before this one` : "Classifying the scene";
  item.slots.answer.replaceChildren(make("p", { class: "hint" }, `${text}…`), make("progress", { max: 1, value: share, "aria-label": `Progress of ${item.file.name}` }));
}

/** Show why there is no answer; `help` is an element that leads out, or null. */
export function showRefusal(item, help) {
  for (const slot of Object.values(item.slots)) slot.replaceChildren();
  const { message, hint } = item.error;
  const parts = [make("strong", {}, "Not classified. "), sentence(withoutName(message, item.file.name))];
  item.slots.answer.append(make("div", { class: "note bad" }, make("p", {}, parts), hint ? make("p", {}, sentence(hint)) : null, help));
  showFacts(item, []);
}

/** Messages begin with the file's name, which stands above them already. */
function withoutName(message, name) {
  return message.startsWith(`${name}: `) ? message.slice(name.length + 2) : message;
}

export function showPicture(item, caption, url, round) {
  item.slots.pictures.classList.toggle("large", !round);
  const image = make("img", { src: url, alt: `${caption} picture of ${item.file.name}`, class: round ? "pixels" : "" });
  item.slots.pictures.append(make("figure", {}, image, make("figcaption", {}, caption)));
}

export function showNoPicture(item, caption, why) {
  item.slots.pictures.append(make("figure", { class: "none" }, make("p", { class: "hint" }, why), make("figcaption", {}, caption)));
}

export function showTile(item, model) {
  const { result } = item;
  item.slots.answer.replaceChildren(
    answerLine(result.class, result.probabilities[result.class]),
    ...(result.prediction_set ? [make("p", { class: "set" }, setSentence(result.prediction_set))] : []),
    bars("Probabilities", result.probabilities),
  );
  showWarnings(item, tileWarnings(result, item.cloudShare, model));
  const middle = middleOf(result.footprint);
  showFacts(item, [
    ["Place", middle ? place(...middle) : "the file does not say"],
    ["Level", result.level ?? "nobody says"],
    ["Bands", result.bands.length > 6 ? `${result.bands.length} of Sentinel-2's 13` : result.bands.join(", ")],
    ["Valid pixels", percent(result.valid_fraction)],
    ["How unusual", result.outlier ? unusualness(result.outlier, model) : null],
  ]);
}

export function showScene(item) {
  const { features, bands, level } = item.scene;
  const shares = areaShares(features);
  const likeliest = Object.entries(shares)[0];
  item.slots.answer.replaceChildren(
    ...(likeliest ? [answerLine(...likeliest, `${likeliest[1] > 0.5 ? "Mostly" : "Most often"} ${className(likeliest[0]).toLowerCase()}`), bars("Share of the windows", shares)] : []),
    windowTable(features),
  );
  showWarnings(item, sceneWarnings(features, item.cloudShare));
  const middle = middleOf(features.find((feature) => feature.geometry)?.geometry);
  showFacts(item, [
    ["Windows", count(features.length, "window")],
    ["Place", middle ? `near ${place(...middle, 2)}` : null],
    ["Level", level],
    ["Bands", bands.length > 6 ? `${bands.length} of Sentinel-2's 13` : bands.join(", ")],
  ]);
}

export function showWarnings(item, warnings) {
  const entries = warnings.map(({ grave, text }) => {
    const [first, ...rest] = text.split(/(?<=[.:]) /);
    return make("li", { class: grave ? "note bad" : "note warn" }, make("strong", {}, `${first} `), rest.join(" "));
  });
  item.warned = warnings.length > 0;
  item.slots.warnings.replaceChildren(...(entries.length ? [make("ul", { "aria-label": `Warnings about ${item.file.name}` }, entries)] : []));
}

export function showExplanation(item, url, name) {
  item.slots.why.replaceChildren(
    make("figure", { class: "wide" },
      make("img", { src: url, class: "pixels", alt: `Picture of ${item.file.name} with what speaks for and against ${className(name)}` }),
      make("figcaption", {}, `Red: what speaks for “${className(name)}”. Its probability drops where that is taken away. Blue: what speaks against it.`)),
  );
}

/** Return the share of answered windows (0-1) of each class, the largest first. */
export function areaShares(features) {
  const counts = {};
  for (const { properties } of features) if (properties.class) counts[properties.class] = (counts[properties.class] ?? 0) + 1;
  const total = Object.values(counts).reduce((sum, number) => sum + number, 0);
  return Object.fromEntries(Object.entries(counts).sort((a, b) => b[1] - a[1]).map(([name, number]) => [name, number / total]));
}

function answerLine(name, share, text = className(name)) {
  return make("p", { class: "class" }, swatch(name), make("span", {}, text), make("span", { class: "share" }, percent(share)));
}

export function swatch(name) {
  const box = make("span", { class: "swatch", "aria-hidden": "true" });
  box.style.backgroundColor = colourOf(name);
  return box;
}

/** Return bars with their values as text, the longest first; those that hardly show are folded away. */
function bars(title, shares) {
  const ranked = Object.entries(shares).sort((a, b) => b[1] - a[1]);
  const shown = Math.max(MIN_BARS, ranked.filter(([, share]) => share >= SMALL_SHARE).length);
  const rest = ranked.slice(shown);
  const few = rest.length > 1 ? ranked.slice(0, shown) : ranked;
  const more = make("details", {}, make("summary", {}, `${rest.length} more below ${percent(SMALL_SHARE)}`), barList(`${title}, the rest`, rest));
  return make("div", {}, barList(title, few), rest.length > 1 ? more : null);
}

function barList(title, ranked) {
  const rows = ranked.map(([name, share]) => {
    const bar = make("span", { class: "fill" });
    bar.style.width = `${100 * share}%`;
    bar.style.backgroundColor = colourOf(name);
    return make("li", {}, make("span", { class: "name" }, className(name)), make("span", { class: "track", "aria-hidden": "true" }, bar), make("span", { class: "value" }, percent(share)));
  });
  return make("ol", { class: "bars", "aria-label": title }, rows);
}

function windowTable(features) {
  const rows = features.map(({ properties }) => make("tr", {},
    make("td", {}, `${properties.row}, ${properties.column}`),
    make("td", {}, properties.class ? className(properties.class) : "no answer"),
    make("td", {}, properties.class ? percent(properties.probability) : "–"),
    make("td", {}, percent(properties.valid_fraction, 0))));
  const head = ["Row, column", "Class", "Probability", "Valid"].map((name) => make("th", { scope: "col" }, name));
  const table = make("table", {}, make("thead", {}, make("tr", {}, head)), make("tbody", {}, rows));
  return make("details", {}, make("summary", {}, "All windows"), make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "All windows" }, table));
}

function unusualness({ score, flag }, model) {
  const threshold = model?.outliers?.threshold;
  if (!threshold) return flag ? "flagged" : "not flagged";
  return `${(score / threshold).toFixed(2)} × the limit`;
}

function showFacts(item, facts) {
  const size = item.size ? `${item.size.width} × ${item.size.height} pixels, ${bytes(item.file.size)}` : bytes(item.file.size);
  const known = [...facts, ["File", size]].filter(([, value]) => value);
  item.slots.facts.replaceChildren(make("dl", {}, known.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))));
}
