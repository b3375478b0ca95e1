// Results as GeoJSON (RFC 7946) and as CSV (RFC 4180).

import { boundsOf, ringsOf } from "./geometry.js";

/** Return one feature for each tile, refused file, and window of a scene. */
export function toGeoJson(items, model) {
  const features = items.flatMap(featuresOf);
  return JSON.stringify({ type: "FeatureCollection", model: identity(model), features }, null, 1);
}

/** Return the same as rows. */
export function toCsv(items, classes) {
  const columns = [
    "file", "kind", "row", "column", "class", "probability", ...classes.map((name) => `p_${name}`), "prediction_set",
    "coverage", "outlier_score", "outlier_flag", "valid_fraction", "cloud_fraction", "level", "bands", "west", "south", "east",
    "north", "error_code", "error",
  ];
  const rows = items.flatMap(featuresOf).map((feature) => {
    const values = rowOf(feature, classes);
    return columns.map((column) => cell(values[column])).join(",");
  });
  return [columns.join(","), ...rows, ""].join("\r\n");
}

function featuresOf(item) {
  if (item.state === "failed") {
    const { code, message, hint } = item.error;
    return [feature(null, { file: item.file.name, kind: item.kind, error: { code, message, hint } })];
  }
  if (item.state !== "done") return [];
  const common = { file: item.file.name, kind: item.kind, cloud_fraction: item.cloudFraction };
  if (item.kind === "scene") {
    return item.scene.features.map(({ geometry, properties }) => feature(geometry, { ...common, ...properties, bands: item.scene.bands, level: item.scene.level }));
  }
  const { name, footprint, ...rest } = item.result;
  return [feature(footprint, { ...common, ...rest, probability: item.result.probabilities[item.result.class] })];
}

function feature(geometry, properties) {
  return { type: "Feature", geometry, properties };
}

function rowOf({ geometry, properties }, classes) {
  const [west, south, east, north] = boundsOf(ringsOf(geometry).flat()) ?? [];
  const probabilities = Object.fromEntries(classes.map((name) => [`p_${name}`, properties.probabilities?.[name]]));
  return {
    ...properties,
    ...probabilities,
    prediction_set: properties.prediction_set?.classes.join(" "),
    coverage: properties.prediction_set?.coverage,
    outlier_score: properties.outlier?.score,
    outlier_flag: properties.outlier?.flag,
    bands: properties.bands?.join(" "),
    west, south, east, north,
    error_code: properties.error?.code,
    error: properties.error?.message,
  };
}

/** Quote a value; mark text as text where a spreadsheet would take it for a formula. */
function cell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "string") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function identity(model) {
  return model && { name: model.name, version: model.version, sha256: model.sha256 };
}
