// The page: takes files, sends them to the API, and shows the results.

import { classify, classifyScene, fetchExplanation, fetchLegend, fetchModel, fetchPreview, fetchSamples, useKey } from "./api.js";
import { makeCard, showError, showExplanation, showMap, showNoPicture, showPicture, showProgress, showScene, showTile, showWaiting, swatch } from "./cards.js";
import { find, make, save } from "./dom.js";
import { toCsv, toGeoJson } from "./export.js";
import { className, count, percent, sceneShares } from "./format.js";
import { cornersOf } from "./geometry.js";
import { colourOf, setClasses, setLegend } from "./legend.js";
import { setUpMap, showOne, showShapes } from "./map.js";
import { modelCard } from "./modelcard.js";
import { drawMap } from "./picture.js";
import { errorText, groupNote, groupsOf, plainError } from "./problems.js";
import { applyPreset, offerCoverages, openSettings, readSettings, sceneParameters, setUpSettings, tileParameters, usesWarp, warpScenes } from "./settings.js";
import { sizeOf } from "./tiff.js";

const MAX_FILES = 500; // on one page
const MAX_TILES = 32; // in a request
const MAX_BYTES = 16 * 2 ** 20; // in a request
const PARALLEL_REQUESTS = 2;
const TILE_SIZE = 64; // where the model is not known
const VIEWS = [["true", "True colour"], ["false", "False colour"]];
const PICTURE_ERRORS = { band_missing: "The file lacks a band for this picture.", too_large: "Too large for a picture." };
const HATCH = "url(#hatch)"; // the pattern in the page
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
  find("sample").addEventListener("click", addSamples);
  find("download-geojson").addEventListener("click", () => save(geoJsonOf(items), "tilewise.geojson"));
  find("download-csv").addEventListener("click", () => save(csvOf(items), "tilewise.csv"));
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

async function addSamples({ currentTarget: button }) {
  button.setAttribute("aria-busy", "true");
  try {
    addFiles(await fetchSamples());
  } catch (error) {
    setStatus(errorText(error));
  }
  button.removeAttribute("aria-busy");
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
  find("problems").replaceChildren();
  showResults(false);
  setStatus("All files are removed from the page.");
  find("file-input").focus();
}

function classifyAll() {
  cancel();
  items.forEach(forgetPictures);
  for (const item of items) Object.assign(item, { state: "waiting", cloudFraction: null, error: null, result: null, scene: null, stack: null });
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

/** Return a URL of a file or picture, which is valid until the item's pictures are forgotten. */
function urlOf(item, blob) {
  const url = URL.createObjectURL(blob);
  item.urls.push(url);
  return url;
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

/** Find out whether a file is a tile or a scene. A file that is no TIFF is sent as a tile. */
async function inspect(item) {
  const side = model?.tile_size ?? TILE_SIZE;
  item.size = await sizeOf(item.file);
  const larger = item.size && (item.size.width !== side || item.size.height !== side);
  item.kind = larger ? "scene" : "tile";
  try {
    await item.file.slice(0, 1).arrayBuffer();
  } catch {
    fail(item, { code: "unreadable_here", message: "" });
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
    const found = await classifyScene(item.file, sceneParameters(), (fraction, ahead) => showProgress(item, fraction, ahead), signal);
    item.mapUrl = urlOf(item, found.picture);
    accept(item, found);
    showMap(item, item.mapUrl);
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
  item.error = plainError(error, item.file.name);
  showError(item, helpFor([item]));
  update();
}

function showResult(item) {
  if (item.kind === "scene") showScene(item);
  else showTile(item, model);
}

/** Return buttons that help items with the same error, where settings can: of bands, radiometry or pixel size. Else null. */
function helpFor([first]) {
  const { code } = first.error;
  const buttons = {
    bands_unknown: () => [settingsButton("bands"), retryButton("Use EuroSAT settings", first, () => applyPreset("eurosat"))],
    radiometry_unknown: () => [settingsButton("level"), retryButton("Use EuroSAT settings", first, () => applyPreset("eurosat"))],
    tile_shape: () => (first.kind === "scene" && !usesWarp() ? [retryButton("Resample scenes to 10 m", first, warpScenes)] : []),
  };
  const found = buttons[code]?.() ?? [];
  return found.length ? make("p", { class: "row" }, found) : null;
}

function settingsButton(field) {
  return make("button", { type: "button", onclick: () => openSettings(field) }, "Open the settings");
}

function retryButton(text, item, change) {
  const retry = () => {
    change();
    item.card.hidden = false;
    item.heading.focus(); // the button is about to be removed
    classifyAll();
  };
  return make("button", { type: "button", class: "quiet", onclick: retry }, text);
}

// Pictures.

function hasPicture(item) {
  if (!item.size && !isPicture(item)) return false;
  return item.state === "done" || ["radiometry_unknown", "no_data"].includes(item.error?.code);
}

/** Return whether browsers themselves can show a file. */
function isPicture(item) {
  return /\.(jpe?g|png)$/i.test(item.file.name);
}

async function showPictures(item, signal) {
  if (isPicture(item)) return showPicture(item, "The file", urlOf(item, item.file));
  const warp = item.kind === "scene" && usesWarp() ? { warp: true } : {};
  for (const [view, caption] of VIEWS) {
    try {
      const { url, cloudFraction } = await fetchPreview(item.file, view, { ...readSettings(), ...warp }, signal);
      item.urls.push(url);
      showPicture(item, caption, url);
      if (view === "true" && item.kind === "tile") item.cloudFraction = cloudFraction;
    } catch (error) {
      if (signal.aborted) return;
      if (item.state === "done") showNoPicture(item, caption, PICTURE_ERRORS[error.code] ?? errorText(error, item.file.name));
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
    ...(item.kind === "tile" && item.size ? [button("Explain this result", explain)] : []),
    ...(item.kind === "scene" ? [downloads(item, button)] : []),
  );
}

/** Return the buttons that download the map of a scene. */
function downloads(item, button) {
  const stem = item.file.name.replace(/\.tiff?$/i, "");
  const forms = {
    GeoTIFF: () => save(item.map, `${stem}.classes.tif`),
    GeoJSON: () => save(geoJsonOf([item]), `${stem}.geojson`),
    CSV: () => save(csvOf([item]), `${stem}.csv`),
    PNG: async () => save(await drawMap(item, model), `${stem}.png`),
  };
  const buttons = Object.entries(forms).map(([name, act]) => button(name, act));
  return make("div", { class: "row downloads", role: "group", "aria-label": `Download the map of ${item.file.name}` }, make("span", { class: "hint" }, "Download the map:"), buttons);
}

function geoJsonOf(some) {
  return new Blob([toGeoJson(some, model)], { type: GEOJSON });
}

function csvOf(some) {
  return new Blob([toCsv(some, model?.classes ?? [])], { type: "text/csv" });
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
    item.slots.explanation.replaceChildren(make("p", { class: "note bad" }, errorText(error, item.file.name)));
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
  showProblems(failed);
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

/** Tell an error of several files once, in place of their cards. */
function showProblems(failed) {
  const groups = groupsOf(failed);
  for (const item of groups.flat()) item.card.hidden = true;
  const opened = new Set([...find("problems").querySelectorAll("details[open]")].map((list) => list.dataset.code));
  find("problems").replaceChildren(...groups.map((group) => groupNote(group, helpFor(group), opened.has(group[0].error.code))));
}

function showSummary(done, failed) {
  const tiles = done.filter((item) => item.kind === "tile");
  const like = tiles.filter((item) => !item.result.outlier?.flag);
  const counts = {};
  for (const item of like) counts[item.result.class] = (counts[item.result.class] ?? 0) + 1;
  const rows = Object.entries(counts).sort((a, b) => b[1] - a[1]).map(([name, number]) => row(swatch(name), className(name), count(number, "tile")));
  if (like.length < tiles.length) rows.push(row(swatch(null), "Unlike the training data", count(tiles.length - like.length, "tile")));
  for (const item of done.filter((one) => one.kind === "scene")) {
    const [dominant] = Object.entries(sceneShares(item.scene.pixels).classes);
    rows.push(row(dominant ? swatch(dominant[0]) : null, item.file.name, dominant ? `${className(dominant[0])}, ${percent(dominant[1], 0)}` : "not classified"));
  }
  if (failed.length) rows.push(row(null, "Not classified", count(failed.length, "file")));
  find("summary").replaceChildren(make("table", { class: "summary" }, make("caption", { class: "visually-hidden" }, "All files"), make("tbody", {}, rows)));
}

function row(mark, name, value) {
  return make("tr", {}, make("th", { scope: "row" }, mark, name), make("td", {}, value));
}

function shapesOf(item) {
  if (item.kind === "scene") {
    const corners = cornersOf(item.scene.features);
    return corners ? [{ id: item.id, geometry: { type: "Polygon", coordinates: [[...corners, corners[0]]] }, image: item.mapUrl, title: item.file.name }] : [];
  }
  const { class: name, outlier, footprint } = item.result;
  const title = `${item.file.name}: ${outlier?.flag ? "unlike the training data" : className(name)}`;
  return [{ id: item.id, geometry: footprint, colour: outlier?.flag ? HATCH : colourOf(name), title }];
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
