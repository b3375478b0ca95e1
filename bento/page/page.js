// The page: files come in, are asked about, and their answers are shown.

import { areaShares, makeCard, showExplanation, showNoPicture, showPicture, showProgress, showRefusal, showScene, showTile, showWaiting, swatch } from "./cards.js";
import { find, make, save } from "./dom.js";
import { colourOf, setClasses, setLegend } from "./legend.js";
import { setUpMap, showOne, showShapes } from "./map.js";
import { modelCard } from "./modelcard.js";
import { askExplanation, askLegend, askModel, askPreview, askResult, classify, classifyScene, Refusal, useKey } from "./service.js";
import { fillIn, offerCoverages, openStatements, sceneQuestion, setUpStatements, statement, tileQuestion } from "./statements.js";
import { toCsv, toGeoJson } from "./tables.js";
import { sizeOf } from "./tiff.js";
import { className, count, percent, sentence } from "./words.js";

const MAX_FILES = 500; // on one page; for more there are the API and the command line
const MAX_TOGETHER = 32; // tiles in a request
const MAX_BYTES_TOGETHER = 16 * 2 ** 20;
const ASKED_AT_ONCE = 2;
const TILE = 64; // where the model has not said
const VIEWS = [["true", "True colour"], ["false", "False colour"]];
const NO_SUCH_PICTURE = { band_missing: "The file lacks a band for this picture.", too_large: "Too large for a picture." };
const GEOJSON = "application/geo+json";

let items = [];
let lastId = 0;
let model = null;
let stop = new AbortController();

start();

function start() {
  setUpFiles();
  setUpStatements(classifyAll);
  setUpMap(goTo);
  find("download-geojson").addEventListener("click", () => save(new Blob([toGeoJson(items, model)], { type: GEOJSON }), "tilewise.geojson"));
  find("download-csv").addEventListener("click", () => save(new Blob([toCsv(items, model?.classes ?? [])], { type: "text/csv" }), "tilewise.csv"));
  find("clear").addEventListener("click", removeAll);
  find("key-form").addEventListener("submit", onKey);
  meetModel();
}

// The model, and the key that it may ask for.

async function meetModel() {
  try {
    const [legend, found] = await Promise.all([askLegend(), askModel()]);
    setLegend(legend);
    model = found;
  } catch (error) {
    if (!askedForKey(error)) find("model-card").replaceChildren(make("p", { class: "note bad" }, said(error)));
    return;
  }
  setClasses(model.classes);
  offerCoverages(model.prediction_sets?.thresholds);
  find("model-card").replaceChildren(...modelCard(model));
  find("model-warning").hidden = !model.synthetic;
  find("model-warning").textContent = "For trying out only: this model was trained on synthetic tiles. What it says of real land means nothing.";
}

async function onKey(event) {
  event.preventDefault();
  useKey(find("key-input").value);
  find("key").hidden = true;
  find("key-input").value = "";
  await meetModel();
  if (find("key").hidden) {
    tell("The key is accepted.");
    find("file-input").focus();
    classifyAll();
  }
}

/** Show the field for a key where `error` says that one is needed. */
function askedForKey(error) {
  if (error.status !== 401) return false;
  const again = find("key").hidden === false;
  find("key").hidden = false;
  find("model-card").replaceChildren(make("p", { class: "hint" }, "The model is described to those who have a key."));
  if (!again) tell("This service asks for an API key.");
  return true;
}

// Files.

function setUpFiles() {
  const [input, drop] = [find("file-input"), find("drop")];
  input.addEventListener("change", () => {
    take([...input.files]);
    input.value = ""; // so that the same file can be chosen again
  });
  for (const name of ["dragenter", "dragover"]) document.addEventListener(name, (event) => hover(event, true));
  document.addEventListener("dragleave", (event) => event.relatedTarget ?? drop.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    hover(event, false);
    take([...event.dataTransfer.files]);
  });
}

function hover(event, over) {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault(); // else the browser leaves the page to show the file
  find("drop").classList.toggle("over", over);
}

async function take(files) {
  const room = MAX_FILES - items.length;
  if (files.length > room) tell(`Only ${MAX_FILES} files fit on this page; the others are left out.`);
  const added = files.slice(0, room).map((file) => ({ id: ++lastId, file, state: "waiting", cloudShare: null, urls: [] }));
  if (!added.length) return;
  items.push(...added);
  find("cards").append(...added.map(makeCard));
  showResults(true);
  await ask(added);
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
  tell("All files are removed from the page.");
  find("file-input").focus();
}

function classifyAll() {
  cancel();
  items.forEach(forgetPictures);
  for (const item of items) Object.assign(item, { state: "waiting", cloudShare: null, error: null, result: null, scene: null });
  return ask(items);
}

function cancel() {
  stop.abort();
  stop = new AbortController();
}

function forgetPictures(item) {
  item.urls.forEach((url) => URL.revokeObjectURL(url));
  item.urls = [];
}

// Asking.

async function ask(some) {
  const signal = stop.signal;
  for (const item of some) {
    showWaiting(item, "Waiting");
    await look(item);
  }
  if (signal.aborted) return;
  update();
  const sound = some.filter((item) => item.state === "waiting");
  const tiles = groups(sound.filter((item) => item.kind === "tile")).map((group) => () => askTiles(group, signal));
  const scenes = sound.filter((item) => item.kind === "scene").map((item) => () => askScene(item, signal));
  await inTurns([...tiles, ...scenes], signal);
  await inTurns(some.filter(hasPicture).map((item) => () => showPictures(item, signal)), signal);
}

/** Find out whether a file is a tile or a scene. What is no TIFF goes with the tiles: the service says what it is. */
async function look(item) {
  const side = model?.tile_size ?? TILE;
  item.size = await sizeOf(item.file);
  item.kind = item.size && (item.size.width !== side || item.size.height !== side) ? "scene" : "tile";
  try {
    await item.file.slice(0, 1).arrayBuffer();
  } catch {
    refuse(item, { code: "page", message: "the browser cannot read it", hint: "give the files in a folder one by one; a file that was moved must be given again" });
  }
}

/** Run jobs, a few at once, until they are no longer wanted. */
async function inTurns(jobs, signal) {
  const waiting = [...jobs];
  const work = async () => {
    while (waiting.length && !signal.aborted) await waiting.shift()();
  };
  await Promise.all(Array.from({ length: ASKED_AT_ONCE }, work));
}

function groups(tiles) {
  const found = [];
  let size = Infinity;
  for (const item of tiles) {
    if (size + item.file.size > MAX_BYTES_TOGETHER || found.at(-1).length >= MAX_TOGETHER) {
      found.push([]);
      size = 0;
    }
    found.at(-1).push(item);
    size += item.file.size;
  }
  return found;
}

async function askTiles(group, signal) {
  try {
    group.forEach((item) => showWaiting(item, "Classifying"));
    const { results } = await classify(group.map((item) => item.file), tileQuestion(), signal);
    group.forEach((item, place) => (results[place].error ? refuse(item, results[place].error) : accept(item, { result: results[place] })));
  } catch (error) {
    if (signal.aborted) return;
    if (error.status === 413 && group.length > 1) {
      const half = Math.ceil(group.length / 2);
      await askTiles(group.slice(0, half), signal);
      await askTiles(group.slice(half), signal);
    } else group.forEach((item) => refuse(item, error));
  }
}

async function askScene(item, signal) {
  try {
    showProgress(item, 0);
    const { response, task } = await classifyScene(item.file, sceneQuestion(), GEOJSON, (share, ahead) => showProgress(item, share, ahead), signal);
    accept(item, { scene: await response.json(), task });
  } catch (error) {
    if (!signal.aborted) refuse(item, error);
  }
}

function accept(item, found) {
  Object.assign(item, found, { state: "done" });
  showAnswer(item);
  showActions(item);
  update();
}

function refuse(item, error) {
  askedForKey(error);
  item.state = "failed";
  item.error = { code: error.code ?? "page", message: error.message, hint: error.hint ?? "" };
  showRefusal(item, helpFor(item.error.code));
  update();
}

function showAnswer(item) {
  if (item.kind === "scene") showScene(item);
  else showTile(item, model);
}

/** Return what leads out of a refusal for want of bands or radiometry. */
function helpFor(code) {
  if (code !== "bands_unknown" && code !== "radiometry_unknown") return null;
  const field = code === "bands_unknown" ? "bands" : "level";
  const sayIt = make("button", { type: "button", onclick: () => openStatements(field) }, "Say it for all files");
  const eurosat = make("button", { type: "button", class: "quiet", onclick: useEurosat }, "They are EuroSAT tiles");
  return make("p", { class: "row" }, sayIt, eurosat);
}

function useEurosat(event) {
  const heading = event.currentTarget.closest("li").querySelector("h4");
  fillIn("eurosat");
  heading.focus(); // the button is about to go
  classifyAll();
}

// Pictures.

function hasPicture(item) {
  return item.state === "done" || ["radiometry_unknown", "no_data"].includes(item.error?.code);
}

async function showPictures(item, signal) {
  for (const [view, caption] of VIEWS) {
    try {
      const { url, cloudShare } = await askPreview(item.file, view, statement(), signal);
      item.urls.push(url);
      showPicture(item, caption, url, item.kind === "tile");
      if (view === "true" && cloudShare !== null) item.cloudShare = cloudShare;
    } catch (error) {
      if (signal.aborted) return;
      if (item.state === "done") showNoPicture(item, caption, NO_SUCH_PICTURE[error.code] ?? said(error));
    }
  }
  if (item.state === "done" && item.cloudShare !== null) {
    showAnswer(item);
    update();
  }
}

function showActions(item) {
  const button = (text, act) => make("button", { type: "button", class: "quiet", onclick: (event) => act(item, event.currentTarget) }, text, make("span", { class: "away" }, ` (${item.file.name})`));
  const lies = item.kind === "scene" || item.result.footprint;
  item.slots.doing.replaceChildren(
    ...(lies ? [button("Show on the map", () => showOne(item.id))] : []),
    item.kind === "scene" ? button("Download the class map", downloadMap) : button("What is this based on?", explain),
  );
}

async function explain(item, button) {
  button.setAttribute("aria-busy", "true");
  whisper(`Working out what the answer to ${item.file.name} is based on.`);
  try {
    const url = await askExplanation(item.file, item.result.class, statement(), stop.signal);
    item.urls.push(url);
    showExplanation(item, url, item.result.class);
    whisper("The explanation is shown below the answer.");
  } catch (error) {
    item.slots.why.replaceChildren(make("p", { class: "note bad" }, said(error)));
  }
  button.removeAttribute("aria-busy");
}

async function downloadMap(item, button) {
  button.setAttribute("aria-busy", "true");
  try {
    const form = "image/tiff";
    const response = item.task
      ? await askResult(item.task, form, stop.signal)
      : (await classifyScene(item.file, sceneQuestion(), form, () => {}, stop.signal)).response;
    save(await response.blob(), `${item.file.name.replace(/\.tiff?$/i, "")}.classes.tif`);
  } catch (error) {
    item.slots.why.replaceChildren(make("p", { class: "note bad" }, said(error)));
  }
  button.removeAttribute("aria-busy");
}

// All together.

function update() {
  const done = items.filter((item) => item.state === "done");
  const failed = items.filter((item) => item.state === "failed");
  const ended = done.length + failed.length;
  find("progress").hidden = ended === items.length;
  find("progress").value = items.length ? ended / items.length : 0;
  if (ended < items.length) {
    tell(`${ended} of ${count(items.length, "file")} done.`);
    return;
  }
  tell(told(done, failed));
  showSummary(done, failed);
  showShapes(done.flatMap(shapesOf));
}

function told(done, failed) {
  if (!done.length) return `${count(failed.length, "file")} could not be classified.`;
  const parts = [`${count(done.length, "file")} classified`];
  if (items.length === 1 && done[0].result) parts[0] = `${done[0].file.name}: ${className(done[0].result.class)}, ${percent(done[0].result.probabilities[done[0].result.class])}`;
  if (failed.length) parts.push(`${count(failed.length, "file")} could not be`);
  const wary = done.filter((item) => item.warned).length;
  if (wary) parts.push(`${count(wary, "answer")} to be wary of`);
  return `${parts.join(", ")}.`;
}

function showSummary(done, failed) {
  const counts = {};
  for (const item of done.filter((one) => one.kind === "tile")) counts[item.result.class] = (counts[item.result.class] ?? 0) + 1;
  const rows = Object.entries(counts).sort((a, b) => b[1] - a[1]).map(([name, number]) => row(swatch(name), className(name), count(number, "tile")));
  for (const item of done.filter((one) => one.kind === "scene")) {
    const [likeliest] = Object.entries(areaShares(item.scene.features));
    rows.push(row(likeliest ? swatch(likeliest[0]) : null, item.file.name, likeliest ? `${className(likeliest[0])}, ${percent(likeliest[1], 0)}` : "no answer"));
  }
  if (failed.length) rows.push(row(null, "Not classified", count(failed.length, "file")));
  find("summary").replaceChildren(make("table", { class: "summary" }, make("caption", { class: "away" }, "All files together"), make("tbody", {}, rows)));
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
    title: `${item.file.name}: ${properties.class ? `${className(properties.class)}, ${percent(properties.probability)}` : "no answer"}`,
  }));
}

function goTo(id) {
  const item = items.find((one) => one.id === id);
  item.heading.focus({ preventScroll: true });
  item.heading.closest("li").scrollIntoView({ block: "nearest" });
}

function tell(text) {
  if (find("status").textContent !== text) find("status").textContent = text;
}

/** Tell those who listen what those who look see anyway. */
function whisper(text) {
  find("whisper").textContent = text;
}

function said(error) {
  if (!(error instanceof Refusal)) return "The page itself has failed at this; try again.";
  return [sentence(error.message), sentence(error.hint)].filter(Boolean).join(" ");
}
