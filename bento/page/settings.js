// The form of file settings, and the request parameters that it makes.

import { find, make } from "./dom.js";
import { percent } from "./format.js";

const PRESETS = {
  eurosat: { bands: "eurosat", level: "L1C", offset: "0" },
  "l1c-old": { bands: "l1c", level: "L1C", offset: "0" },
  "l1c-new": { bands: "l1c", level: "L1C", offset: "-1000" },
  "l2a-harmonised": { bands: "l2a", level: "L2A", offset: "0" },
  "l2a-new": { bands: "l2a", level: "L2A", offset: "-1000" },
};
const SCENE_FIELDS = { stride: "stride", clouds: "clouds", min_valid_fraction: "min-valid" }; // name in the API: id
const DEFAULT_COVERAGE = 0.9;

/** Set up the form; `apply` is called when it is submitted. */
export function setUpSettings(apply) {
  const form = find("settings-form");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    apply();
  });
  form.addEventListener("reset", () => setTimeout(summarise)); // the fields are emptied after this event
  form.addEventListener("change", summarise);
  find("preset").addEventListener("change", () => applyPreset(find("preset").value));
}

/** Return how to read files: {bands, level, scale, offset}, without the fields that are empty. */
export function readSettings() {
  const bands = find("bands").value === "custom" ? find("custom-bands").value.trim() : find("bands").value;
  const settings = { bands, level: find("level").value, scale: number("scale"), offset: number("offset") };
  return Object.fromEntries(Object.entries(settings).filter(([, value]) => value));
}

/** Return the request parameters of tiles. */
export function tileParameters() {
  return { ...readSettings(), ...coverage() };
}

/** Return the request parameters of a scene. */
export function sceneParameters() {
  return { ...tileParameters(), ...readSceneSettings() };
}

/** Return how to map scenes, by the names of the API, without what is at its default. */
function readSceneSettings() {
  const changed = Object.entries(SCENE_FIELDS).filter(([, id]) => !find(id).selectedOptions[0].defaultSelected);
  return { ...Object.fromEntries(changed.map(([name, id]) => [name, find(id).value])), ...(usesWarp() ? { warp: true } : {}) };
}

/** Return whether scenes are resampled to 10 m. */
export function usesWarp() {
  return find("warp").checked;
}

/** Have scenes resampled to 10 m. */
export function warpScenes() {
  find("warp").checked = true;
  summarise();
}

/** Offer the coverages that the model is calibrated for. */
export function offerCoverages(thresholds) {
  const known = Object.keys(thresholds ?? {}).map(Number).sort((a, b) => a - b);
  find("coverage-field").hidden = !known.length;
  const selected = Number(find("coverage").value) || DEFAULT_COVERAGE;
  find("coverage").replaceChildren(...known.map((value) => make("option", { value, selected: value === selected }, percent(value))));
}

/** Open the form and move the focus to its field `id`. */
export function openSettings(id) {
  find("settings").open = true;
  find(id).focus();
}

/** Fill in the form for a known kind of files. */
export function applyPreset(preset) {
  for (const [id, value] of Object.entries({ scale: "", ...PRESETS[preset] })) find(id).value = value;
  summarise();
}

/** Summarise the settings in the heading of the form, which alone is visible while the form is closed. */
function summarise() {
  find("custom-bands-field").hidden = find("bands").value !== "custom";
  const entries = Object.entries(readSettings()).map(([name, value]) => `${name} ${value}`);
  for (const id of Object.values(SCENE_FIELDS)) {
    const [option] = find(id).selectedOptions;
    if (!option.defaultSelected) entries.push(option.textContent.trim().toLowerCase());
  }
  if (usesWarp()) entries.push("resampled to 10 m");
  find("settings-summary").textContent = entries.join(", ") || "from the files' metadata";
}

function coverage() {
  return find("coverage").value && !find("coverage-field").hidden ? { coverage: find("coverage").value } : {};
}

/** Return a number as the API parses it: a decimal comma and a minus sign (U+2212) are replaced. */
function number(id) {
  return find(id).value.trim().replace(",", ".").replace("−", "-");
}
