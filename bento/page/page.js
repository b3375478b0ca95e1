// The page: takes files, sends them to the API, and shows the results.

import { classify, classifyScene, fetchExplanation, fetchLegend, fetchModel, fetchPreview, fetchResult, ApiError, useKey } from "./api.js";
import { classFractions, makeCard, showError, showExplanation, showNoPicture, showPicture, showProgress, showScene, showTile, showWaiting, swatch } from "./cards.js";
import { find, make, save } from "./dom.js";
import { toCsv, toGeoJson } from "./export.js";
import { className, count, percent, sentence } from "./format.js";
import { colourOf, setClasses, setLegend } from "./legend.js";
import { setUpMap, showOne, showShapes } from "./map.js";
import { modelCard } from "./modelcard.js";
import { applyPreset, offerCoverages, openSettings, readSettings, sceneParameters, setUpSettings, tileParameters } from "./settings.js";
import { sizeOf } from "./tiff.js";

const MAX_FILES = 500; // on one page
const MAX_TILES = 32; // in a request
const MAX_BYTES = 16 * 2 ** 20; // in a request
const PARALLEL_REQUESTS = 2;
const TILE_SIZE = 64; // where the model is not known
const VIEWS = [["true", "True colour"], ["false", "False colour"]];
const PICTURE_ERRORS = { band_missing: "The file lacks a band for this picture.", too_large: "Too large for a picture." };
const SETTINGS_HINTS = { // instead of the API's hints, which name its parameters
  bands_unknown: "Choose the bands in the file settings.",
  radiometry_unknown: "Choose the processing level and the offset in the file settings.",
};
const GEOJSON = "application/geo+json";

let items = [];
let lastId = 0;
let model = null;
let stop = new AbortController();

start();

function start() {
  setUpFiles();
  setUpSettings(classifyAll);
  setUpMap(goTo);
  find("download-geojson").addEventListener("click", () => save(new Blob([toGeoJson(items, model)], { type: GEOJSON }), "tilewise.geojson"));
  find("download-csv").addEventListener("click", () => save(new Blob([toCsv(items, model?.classes ?? [])], { type: "text/csv" }), "tilewise.csv"));
  find("clear").addEventListener("click", removeAll);
  find("key-form").addEventListener("submit", onKey);
  loadModel();
}

// The model, and the API key.

async function loadModel() {
  try {
    const [legend, found] = await Promise.all([fetchLegend(), fetchModel()]);
    setLegend(legend);
    model = found;
  } catch (error) {
    if (!requestKey(error)) find("model-card").replaceChildren(make("p", { class: "note bad" }, errorText(error)));
    return;
  }
  setClasses(model.classes);
  offerCoverages(model.prediction_sets?.thresholds);
  find("model-card").replaceChildren(...modelCard(model));
  find("model-warning").hidden = !model.synthetic;
  find("model-warning").textContent = "For demonstration only: this model was trained on synthetic tiles. Its results for real data are meaningless.";
}

async function onKey(event) {
  event.preventDefault();
  useKey(find("key-input").value);
  find("key").hidden = true;
  find("key-input").value = "";
  await loadModel();
  if (find("key").hidden) {
    setStatus("The API key is valid.");
    find("file-input").focus();
    classifyAll();
  }
}

/** Show the field for an API key if `error` is that one is needed; return whether it is. */
function requestKey(error) {
  if (error.status !== 401) return false;
  const shown = !find("key").hidden;
  find("key").hidden = false;
  find("model-card").replaceChildren(make("p", { class: "hint" }, "Enter an API key to see the model."));
  if (!shown) setStatus("This service needs an API key.");
  return true;
}

// Files.

function setUpFiles() {
  const [input, drop] = [find("file-input"), find("drop")];
  input.addEventListener("change", () => {
    addFiles([...input.files]);
    input.value = ""; // so that the same file can be chosen again
  });
  for (const name of ["dragenter", "dragover"]) document.addEventListener(name, (event) => hover(event, true));
  document.addEventListener("dragleave", (event) => event.relatedTarget ?? drop.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    hover(event, false);
    addFiles([...event.dataTransfer.files]);
  });
}

function hover(event, over) {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault(); // else the browser leaves the page to show the file
  find("drop").classList.toggle("over", over);
}

async function addFiles(files) {
  const room = MAX_FILES - items.length;
  if (files.length > room) setStatus(`This page takes at most ${MAX_FILES} files; the others were not added.`);
  const added = files.slice(0, room).map((file) => ({ id: ++lastId, file, state: "waiting", cloudFraction: null, urls: [] }));
  if (!added.length) return;
  items.push(...added);
  find("cards").append(...added.map(makeCard));
  showResults(true);
  await processFiles(added);
}

function showResults(shown) {
  find("results").hidden = !shown;
  find("results-link").hidden = !shown;
}

function removeAll() {
  cancel();
  items.forEach(forgetPictures);
  items = [];
  lastId = 0;
  find("cards").replaceChildren();
  showResults(false);
  setStatus("All files are removed from the page.");
  find("file-input").focus();
}

function classifyAll() {
  cancel();
  items.forEach(forgetPictures);
  for (const item of items) Object.assign(item, { state: "waiting", cloudFraction: null, error: null, result: null, scene: null });
  return processFiles(items);
}

function cancel() {
  stop.abort();
  stop = new AbortController();
}

function forgetPictures(item) {
  item.urls.forEach((url) => URL.revokeObjectURL(url));
  item.urls = [];
}

// Requests.

async function processFiles(some) {
  const signal = stop.signal;
  for (const item of some) {
    showWaiting(item, "Waiting");
    await inspect(item);
  }
  if (signal.aborted) return;
  update();
  const ready = some.filter((item) => item.state === "waiting");
  const tiles = batches(ready.filter((item) => item.kind === "tile")).map((batch) => () => sendTiles(batch, signal));
  const scenes = ready.filter((item) => item.kind === "scene").map((item) => () => sendScene(item, signal));
  await runJobs([...tiles, ...scenes], signal);
  await runJobs(some.filter(hasPicture).map((item) => () => showPictures(item, signal)), signal);
}

/** Find out whether a file is a tile or a scene. A file that is not a TIFF is sent as a tile, for the service's error. */
async function inspect(item) {
  const side = model?.tile_size ?? TILE_SIZE;
  item.size = await sizeOf(item.file);
  item.kind = item.size && (item.size.width !== side || item.size.height !== side) ? "scene" : "tile";
  try {
    await item.file.slice(0, 1).arrayBuffer();
  } catch {
    fail(item, { code: "page", message: "the browser cannot read the file", hint: "folders cannot be added, only files; add a file again if it was moved" });
  }
}

/** Run jobs, a few at once, until they are done or aborted. */
async function runJobs(jobs, signal) {
  const queue = [...jobs];
  const work = async () => {
    while (queue.length && !signal.aborted) await queue.shift()();
  };
  await Promise.all(Array.from({ length: PARALLEL_REQUESTS }, work));
}

function batches(tiles) {
  const found = [];
  let size = Infinity;
  for (const item of tiles) {
    if (size + item.file.size > MAX_BYTES || found.at(-1).length >= MAX_TILES) {
      found.push([]);
      size = 0;
    }
    found.at(-1).push(item);
    size += item.file.size;
  }
  return found;
}

async function sendTiles(batch, signal) {
  try {
    batch.forEach((item) => showWaiting(item, "Classifying"));
    const { results } = await classify(batch.map((item) => item.file), tileParameters(), signal);
    batch.forEach((item, index) => (results[index].error ? fail(item, results[index].error) : accept(item, { result: results[index] })));
  } catch (error) {
    if (signal.aborted) return;
    if (error.status === 413 && batch.length > 1) {
      const half = Math.ceil(batch.length / 2);
      await sendTiles(batch.slice(0, half), signal);
      await sendTiles(batch.slice(half), signal);
    } else batch.forEach((item) => fail(item, error));
  }
}

async function sendScene(item, signal) {
  try {
    showProgress(item, 0);
    const { response, task } = await classifyScene(item.file, sceneParameters(), GEOJSON, (fraction, ahead) => showProgress(item, fraction, ahead), signal);
    accept(item, { scene: await response.json(), task });
  } catch (error) {
    if (!signal.aborted) fail(item, error);
  }
}

function accept(item, found) {
  Object.assign(item, found, { state: "done" });
  showResult(item);
  showActions(item);
  update();
}

function fail(item, error) {
  requestKey(error);
  item.state = "failed";
  item.error = { code: error.code ?? "page", message: error.message, hint: SETTINGS_HINTS[error.code] ?? error.hint ?? "" };
  showError(item, helpFor(item.error.code));
  update();
}

function showResult(item) {
  if (item.kind === "scene") showScene(item);
  else showTile(item, model);
}

/** Return buttons that help where the metadata lack bands or radiometry, or null. */
function helpFor(code) {
  if (code !== "bands_unknown" && code !== "radiometry_unknown") return null;
  const field = code === "bands_unknown" ? "bands" : "level";
  const settings = make("button", { type: "button", onclick: () => openSettings(field) }, "Open the file settings");
  const eurosat = make("button", { type: "button", class: "quiet", onclick: useEurosat }, "Use EuroSAT settings");
  return make("p", { class: "row" }, settings, eurosat);
}

function useEurosat(event) {
  const heading = event.currentTarget.closest("li").querySelector("h4");
  applyPreset("eurosat");
  heading.focus(); // the button is about to be removed
  classifyAll();
}

// Pictures.

function hasPicture(item) {
  return item.state === "done" || ["radiometry_unknown", "no_data"].includes(item.error?.code);
}

async function showPictures(item, signal) {
  for (const [view, caption] of VIEWS) {
    try {
      const { url, cloudFraction } = await fetchPreview(item.file, view, readSettings(), signal);
      item.urls.push(url);
      showPicture(item, caption, url, item.kind === "tile");
      if (view === "true" && cloudFraction !== null) item.cloudFraction = cloudFraction;
    } catch (error) {
      if (signal.aborted) return;
      if (item.state === "done") showNoPicture(item, caption, PICTURE_ERRORS[error.code] ?? errorText(error));
    }
  }
  if (item.state === "done" && item.cloudFraction !== null) {
    showResult(item);
    update();
  }
}

function showActions(item) {
  const button = (text, act) => make("button", { type: "button", class: "quiet", onclick: (event) => act(item, event.currentTarget) }, text, make("span", { class: "visually-hidden" }, ` (${item.file.name})`));
  const georeferenced = item.kind === "scene" || item.result.footprint;
  item.slots["item-actions"].replaceChildren(
    ...(georeferenced ? [button("Show on the map", () => showOne(item.id))] : []),
    item.kind === "scene" ? button("Download the class map", downloadMap) : button("Explain this result", explain),
  );
}

async function explain(item, button) {
  button.setAttribute("aria-busy", "true");
  announce(`Explaining the result of ${item.file.name}.`);
  try {
    const url = await fetchExplanation(item.file, item.result.class, readSettings(), stop.signal);
    item.urls.push(url);
    showExplanation(item, url, item.result.class);
    announce("The explanation is below the result.");
  } catch (error) {
    item.slots.explanation.replaceChildren(make("p", { class: "note bad" }, errorText(error)));
  }
  button.removeAttribute("aria-busy");
}

async function downloadMap(item, button) {
  button.setAttribute("aria-busy", "true");
  try {
    const mediaType = "image/tiff";
    const response = item.task
      ? await fetchResult(item.task, mediaType, stop.signal)
      : (await classifyScene(item.file, sceneParameters(), mediaType, () => {}, stop.signal)).response;
    save(await response.blob(), `${item.file.name.replace(/\.tiff?$/i, "")}.classes.tif`);
  } catch (error) {
    item.slots.explanation.replaceChildren(make("p", { class: "note bad" }, errorText(error)));
  }
  button.removeAttribute("aria-busy");
}

// All files.

function update() {
  const done = items.filter((item) => item.state === "done");
  const failed = items.filter((item) => item.state === "failed");
  const ended = done.length + failed.length;
  find("progress").hidden = ended === items.length;
  find("progress").value = items.length ? ended / items.length : 0;
  if (ended < items.length) {
    setStatus(`${ended} of ${count(items.length, "file")} done.`);
    return;
  }
  setStatus(summary(done, failed));
  showSummary(done, failed);
  showShapes(done.flatMap(shapesOf));
}

function summary(done, failed) {
  if (!done.length) return `${count(failed.length, "file")} could not be classified.`;
  const parts = [`${count(done.length, "file")} classified`];
  if (items.length === 1 && done[0].result) parts[0] = `${done[0].file.name}: ${className(done[0].result.class)}, ${percent(done[0].result.probabilities[done[0].result.class])}`;
  if (failed.length) parts.push(`${count(failed.length, "file")} could not be classified`);
  const warned = done.filter((item) => item.warned).length;
  if (warned) parts.push(`${count(warned, "result needs", "results need")} attention`);
  return `${parts.join(", ")}.`;
}

function showSummary(done, failed) {
  const counts = {};
  for (const item of done.filter((one) => one.kind === "tile")) counts[item.result.class] = (counts[item.result.class] ?? 0) + 1;
  const rows = Object.entries(counts).sort((a, b) => b[1] - a[1]).map(([name, number]) => row(swatch(name), className(name), count(number, "tile")));
  for (const item of done.filter((one) => one.kind === "scene")) {
    const [dominant] = Object.entries(classFractions(item.scene.features));
    rows.push(row(dominant ? swatch(dominant[0]) : null, item.file.name, dominant ? `${className(dominant[0])}, ${percent(dominant[1], 0)}` : "not classified"));
  }
  if (failed.length) rows.push(row(null, "Not classified", count(failed.length, "file")));
  find("summary").replaceChildren(make("table", { class: "summary" }, make("caption", { class: "visually-hidden" }, "All files"), make("tbody", {}, rows)));
}

function row(mark, name, value) {
  return make("tr", {}, make("th", { scope: "row" }, mark, name), make("td", {}, value));
}

function shapesOf(item) {
  if (item.kind === "tile") {
    return [{ id: item.id, geometry: item.result.footprint, colour: colourOf(item.result.class), title: `${item.file.name}: ${className(item.result.class)}` }];
  }
  return item.scene.features.map(({ geometry, properties }) => ({
    id: item.id,
    geometry,
    isWindow: true,
    colour: properties.class ? colourOf(properties.class) : "none",
    title: `${item.file.name}: ${properties.class ? `${className(properties.class)}, ${percent(properties.probability)}` : "not classified"}`,
  }));
}

function goTo(id) {
  const item = items.find((one) => one.id === id);
  item.heading.focus({ preventScroll: true });
  item.heading.closest("li").scrollIntoView({ block: "nearest" });
}

function setStatus(text) {
  if (find("status").textContent !== text) find("status").textContent = text;
}

/** Announce to screen readers what is visible anyway. */
function announce(text) {
  find("announcement").textContent = text;
}

function errorText(error) {
  if (!(error instanceof ApiError)) return "The page failed; try again.";
  return [sentence(error.message), sentence(error.hint)].filter(Boolean).join(" ");
}
