// What the model says of itself.

import { make } from "./dom.js";
import { swatch } from "./cards.js";
import { className, count, percent } from "./words.js";

const SHARES = /accuracy|f1|precision|recall|coverage|error/;

export function modelCard(model) {
  return [
    make("dl", { class: "facts" }, facts(model).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))),
    make("h3", {}, "Classes"),
    make("ul", { class: "classes" }, model.classes.map((name) => make("li", {}, swatch(name), className(name)))),
    make("h3", {}, "What it is not for"),
    make("ul", {}, limits(model).map((text) => make("li", {}, text))),
    ...metrics(model),
  ];
}

function facts(model) {
  const known = [
    ["Name", `${model.name}, version ${model.version}`],
    ["Network", `${model.network}, ${model.precision}`],
    ["Bands it learnt from", model.trained_bands.join(", ")],
    ["Tile", `${model.tile_size} × ${model.tile_size} pixels at about 10 m`],
    ["Made", model.created ? new Date(model.created).toLocaleString("en-GB", { dateStyle: "long", timeStyle: "short" }) : ""],
    ["Licence of the weights", model.licence],
    ["Tried out beside it", model.candidate ? candidate(model.candidate) : ""],
    ["SHA-256", make("code", {}, model.sha256)],
    ["Data, code", [model.data_hash, model.code_revision].filter(Boolean).map((text) => make("code", {}, text.slice(0, 12))).flatMap((code, place) => (place ? [", ", code] : [code]))],
  ];
  return known.filter(([, value]) => (Array.isArray(value) ? value.length : value));
}

function candidate({ name, version, mode, share }) {
  const what = mode === "canary" ? "answers" : "answers in secret";
  return `${name}, version ${version}: ${what} ${percent(share)} of the requests`;
}

function limits(model) {
  const sets = model.prediction_sets;
  return [
    model.synthetic ? "It was trained on synthetic tiles. It shows how things work; its answers about real land mean nothing." : null,
    `It knows ${count(model.classes.length, "class", "classes")}. Land of any other kind gets one of them all the same.`,
    `It looks at ${model.tile_size * 10} m × ${model.tile_size * 10} m at once: nothing smaller than that has a class of its own.`,
    sets ? `Prediction sets keep their promise, at up to ${percent(Math.max(...Object.keys(sets.thresholds).map(Number)))} coverage, for tiles like those that they were calibrated on (${sets.calibrated_on || "not said"}).` : "It has no prediction sets.",
    model.outliers ? `Of ordinary tiles, ${percent(model.outliers.false_alarms)} are flagged as unusual; of unusual ones, not all are.` : "It does not tell unusual input.",
  ].filter(Boolean);
}

function metrics(model) {
  const found = Object.entries(model.metrics ?? {}).sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true }));
  if (!found.length) return [make("p", { class: "hint" }, "It says no measured figures.")];
  const head = make("tr", {}, make("th", { scope: "col" }, "Figure"), make("th", { scope: "col" }, "Value"));
  const rows = found.map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, metricName(name)), make("td", {}, metricValue(name, value))));
  const table = make("table", { class: "metrics" }, make("caption", { class: "away" }, "Measured figures"), make("thead", {}, head), make("tbody", {}, rows));
  return [make("h3", {}, "Measured"), make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Measured figures" }, table)];
}

/** Return `calibrated/val/macro_f1` as `Macro f1 (calibrated, val)`. */
function metricName(name) {
  const parts = name.split("/");
  return className(parts.at(-1)) + (parts.length > 1 ? ` (${parts.slice(0, -1).join(", ").replaceAll("_", " ")})` : "");
}

function metricValue(name, value) {
  return SHARES.test(name) && value >= 0 && value <= 1 ? percent(value) : String(Number(value.toPrecision(4)));
}
