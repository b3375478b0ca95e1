// The model's metadata.

import { make } from "./dom.js";
import { swatch } from "./cards.js";
import { className, count, percent } from "./format.js";

// Of several names for one figure the last in the alphabet counts: that of the file that is served.
const METRIC = /^(?:calibrated\/|int8\/)?(val|test)\/(accuracy|macro_f1|calibration_error)$/;
const SPLITS = { val: "validation tiles", test: "test tiles" };
const METRICS = {
  accuracy: "Tiles classified correctly",
  macro_f1: "F1 score, mean of the classes",
  calibration_error: "Mean error of the stated probabilities",
};

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
    sets ? `How often the list of possible classes holds the true one is known for tiles like those of its calibration (${sets.calibrated_on || "unknown"}).` : "It gives no list of possible classes.",
    model.outliers ? `Of ordinary tiles, ${percent(model.outliers.false_alarms)} are marked as unlike the training data by mistake. Not every unusual tile is marked.` : "It does not notice tiles unlike its training data.",
  ].filter(Boolean);
}

/** Return a table of the metrics that a reader can use: of tiles that were kept out of training. */
function metrics(model) {
  const rows = Object.entries(model.metrics ?? {}).sort().flatMap(([name, value]) => {
    const [, split, metric] = METRIC.exec(name) ?? [];
    return split ? [[`${METRICS[metric]}, ${SPLITS[split]}`, percent(value)]] : [];
  });
  if (!rows.length) return [make("p", { class: "hint" }, "It has no figures of accuracy.")];
  const shown = Object.entries(Object.fromEntries(rows)).map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, value)));
  const head = make("tr", {}, make("th", { scope: "col" }, "Figure"), make("th", { scope: "col" }, "Value"));
  const table = make("table", { class: "metrics" }, make("caption", { class: "visually-hidden" }, "Accuracy"), make("thead", {}, head), make("tbody", {}, shown));
  return [make("h3", {}, "Accuracy"), make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Accuracy" }, table)];
}
