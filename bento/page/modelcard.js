// The model's metadata.

import { make } from "./dom.js";
import { swatch } from "./cards.js";
import { className, count, percent } from "./format.js";

const FRACTIONS = /accuracy|f1|precision|recall|coverage|error/;

export function modelCard(model) {
  return [
    make("dl", { class: "facts" }, facts(model).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))),
    make("h3", {}, "Classes"),
    make("ul", { class: "classes" }, model.classes.map((name) => make("li", {}, swatch(name), className(name)))),
    make("h3", {}, "Limits"),
    make("ul", {}, limits(model).map((text) => make("li", {}, text))),
    ...metrics(model),
  ];
}

function facts(model) {
  const known = [
    ["Name", `${model.name}, version ${model.version}`],
    ["Network", `${model.network}, ${model.precision}`],
    ["Training bands", model.trained_bands.join(", ")],
    ["Tile", `${model.tile_size} × ${model.tile_size} pixels at about 10 m`],
    ["Created", model.created ? new Date(model.created).toLocaleString("en-GB", { dateStyle: "long", timeStyle: "short" }) : ""],
    ["Licence of the weights", model.licence],
    ["Candidate", model.candidate ? candidate(model.candidate) : ""],
    ["SHA-256", make("code", {}, model.sha256)],
    ["Data, code", [model.data_hash, model.code_revision].filter(Boolean).map((text) => make("code", {}, text.slice(0, 12))).flatMap((code, index) => (index ? [", ", code] : [code]))],
  ];
  return known.filter(([, value]) => (Array.isArray(value) ? value.length : value));
}

function candidate({ name, version, mode, fraction }) {
  const role = mode === "canary" ? "answers" : "is compared on";
  return `${name}, version ${version}: ${role} ${percent(fraction)} of the requests`;
}

function limits(model) {
  const sets = model.prediction_sets;
  return [
    model.synthetic ? "It was trained on synthetic tiles, for demonstration only. Its results for real data are meaningless." : null,
    `It has ${count(model.classes.length, "class", "classes")}. Any other land cover is assigned to one of them.`,
    `It classifies ${model.tile_size * 10} m × ${model.tile_size * 10} m as a whole; it does not detect smaller objects.`,
    sets ? `The coverage of prediction sets (at most ${percent(Math.max(...Object.keys(sets.thresholds).map(Number)))}) holds for tiles like the calibration data (${sets.calibrated_on || "unknown"}).` : "It has no prediction sets.",
    model.outliers ? `Of normal tiles, ${percent(model.outliers.false_alarms)} are flagged as out of distribution. Not every unusual tile is flagged.` : "It does not detect tiles out of distribution.",
  ].filter(Boolean);
}

function metrics(model) {
  const found = Object.entries(model.metrics ?? {}).sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true }));
  if (!found.length) return [make("p", { class: "hint" }, "It has no metrics.")];
  const head = make("tr", {}, make("th", { scope: "col" }, "Metric"), make("th", { scope: "col" }, "Value"));
  const rows = found.map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, metricName(name)), make("td", {}, metricValue(name, value))));
  const table = make("table", { class: "metrics" }, make("caption", { class: "visually-hidden" }, "Metrics"), make("thead", {}, head), make("tbody", {}, rows));
  return [make("h3", {}, "Metrics"), make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Metrics" }, table)];
}

/** Return `calibrated/val/macro_f1` as `Macro F1 (calibrated, val)`. */
function metricName(name) {
  const parts = name.split("/");
  return className(parts.at(-1)).replace(/\bf1\b/, "F1") + (parts.length > 1 ? ` (${parts.slice(0, -1).join(", ").replaceAll("_", " ")})` : "");
}

function metricValue(name, value) {
  return FRACTIONS.test(name) && value >= 0 && value <= 1 ? percent(value) : String(Number(value.toPrecision(4)));
}
