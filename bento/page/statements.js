// The form of what is said of all files, as parameters of requests.

import { find, make } from "./dom.js";
import { percent } from "./words.js";

const KINDS = {
  eurosat: { bands: "eurosat", level: "L1C", offset: "0" },
  "l1c-old": { bands: "l1c", level: "L1C", offset: "0" },
  "l1c-new": { bands: "l1c", level: "L1C", offset: "-1000" },
  "l2a-harmonised": { bands: "l2a", level: "L2A", offset: "0" },
  "l2a-new": { bands: "l2a", level: "L2A", offset: "-1000" },
};
const DEFAULT_COVERAGE = 0.9;

/** Set up the form; `use` is called when what it says shall hold for all files. */
export function setUpStatements(use) {
  const form = find("statement-form");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    use();
  });
  form.addEventListener("reset", () => setTimeout(showSaid)); // the fields are emptied after this event
  form.addEventListener("change", showSaid);
  find("kind").addEventListener("change", () => fillIn(find("kind").value));
}

/** Return what the form says of any file: {bands, level, scale, offset}, without what is left open. */
export function statement() {
  const bands = find("bands").value === "own" ? find("own-bands").value.trim() : find("bands").value;
  const said = { bands, level: find("level").value, scale: number("scale"), offset: number("offset") };
  return Object.fromEntries(Object.entries(said).filter(([, value]) => value));
}

/** Return it with what is asked of a tile's answer. */
export function tileQuestion() {
  return { ...statement(), ...coverage() };
}

/** Return it with what is asked of a scene's answer. */
export function sceneQuestion() {
  return { ...tileQuestion(), min_valid_fraction: find("least-valid").value };
}

/** Offer the coverages that the model is calibrated for. */
export function offerCoverages(thresholds) {
  const known = Object.keys(thresholds ?? {}).map(Number).sort((a, b) => a - b);
  find("coverage-field").hidden = !known.length;
  const before = Number(find("coverage").value) || DEFAULT_COVERAGE;
  find("coverage").replaceChildren(...known.map((share) => make("option", { value: share, selected: share === before }, percent(share))));
}

/** Open the form and move the focus to its field `id`. */
export function openStatements(id) {
  find("statements").open = true;
  find(id).focus();
}

/** Say that all files are of a known kind. */
export function fillIn(kind) {
  for (const [id, value] of Object.entries({ scale: "", ...KINDS[kind] })) find(id).value = value;
  showSaid();
}

/** Keep the form's head true, which is all that is seen of it while it is closed. */
function showSaid() {
  find("own-bands-field").hidden = find("bands").value !== "own";
  const entries = Object.entries(statement()).map(([name, value]) => `${name} ${value}`);
  find("said").textContent = entries.length ? `said: ${entries.join(", ")}` : "nothing said";
}

function coverage() {
  return find("coverage").value && !find("coverage-field").hidden ? { coverage: find("coverage").value } : {};
}

/** Return a number as the service reads it: people write a comma or a true minus sign. */
function number(id) {
  return find(id).value.trim().replace(",", ".").replace("−", "-");
}
