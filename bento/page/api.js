// Requests to the API, and its errors. Paths are relative: a reverse proxy may serve the page below a path.

const MAX_TRIES = 4;
const MAX_PAUSE_S = 15;
const MIN_POLL_MS = 100;
const MAX_POLL_MS = 1000;
const SAMPLES = ["sample-tile.tif", "sample-patchwork.tif"];
const SCENE_FORMS = { scene: "application/geo+json", picture: "image/png", map: "image/tiff" };

let key = "";

/** Send `text` as the API key from now on. */
export function useKey(text) {
  key = text.trim();
}

/** An error response of the service, or a failed connection: what is wrong, and how to fix it. */
export class ApiError extends Error {
  constructor(code, message, hint = "", status = 0) {
    super(message);
    this.code = code;
    this.hint = hint;
    this.status = status;
  }
}

export async function fetchModel() {
  return (await send("model")).json();
}

/** Return the colours of classes: {known: {class: colour}, further: [colour]}. */
export async function fetchLegend() {
  return (await send("page/legend.json")).json();
}

/** Return {model, results} of tiles that are sent together. */
export async function classify(files, parameters, signal) {
  const form = new FormData();
  for (const file of files) form.append("tiles", file, file.name);
  for (const [name, value] of Object.entries(parameters)) form.append(name, value);
  return (await send("classify", { method: "POST", body: form, signal })).json();
}

/** Return the sample files of the page. */
export function fetchSamples() {
  return Promise.all(SAMPLES.map(async (name) => new File([await (await send(`page/${name}`)).blob()], name, { type: "image/tiff" })));
}

/** Return {url, cloudFraction} of a picture. */
export async function fetchPreview(file, view, parameters, signal) {
  const response = await sendFile("preview", file, { ...parameters, view }, { Accept: "image/png" }, signal);
  const cloud = response.headers.get("tilewise-cloud-fraction");
  return { url: URL.createObjectURL(await response.blob()), cloudFraction: cloud === null ? null : Number(cloud) };
}

/** Return the URL of a heat map that explains the class of a tile. */
export async function fetchExplanation(file, className, parameters, signal) {
  const response = await sendFile("explain", file, { ...parameters, class: className }, { Accept: "image/png" }, signal);
  return URL.createObjectURL(await response.blob());
}

/**
 * Return {scene, picture, map} of a scene: its windows as GeoJSON, and its class map as a PNG and a GeoTIFF (blobs).
 * It is a task of the service, whatever its size, so that all three come from one run; `report` gets the progress (0-1).
 */
export async function classifyScene(file, parameters, report, signal) {
  const response = await sendFile("scene", file, parameters, { Accept: SCENE_FORMS.scene, Prefer: "respond-async" }, signal);
  const task = `tasks/${(await response.json()).id}`;
  try {
    await waitForTask(task, report, signal);
    const fetched = Object.values(SCENE_FORMS).map((form) => send(`${task}/result`, { headers: { Accept: form }, signal }));
    const [scene, picture, map] = await Promise.all(fetched);
    return { scene: await scene.json(), picture: await picture.blob(), map: await map.blob() };
  } finally {
    send(task, { method: "DELETE" }).catch(() => {}); // the page has the results, or wants them no more
  }
}

async function waitForTask(task, report, signal) {
  for (let wait = MIN_POLL_MS; ; wait = Math.min(2 * wait, MAX_POLL_MS)) {
    const found = await (await send(task, { signal })).json();
    report(found.progress, found.ahead);
    if (found.status === "failed") throw new ApiError(found.error.code, found.error.message, found.error.hint);
    if (found.status === "done") return;
    await pause(wait, signal);
  }
}

function sendFile(path, file, parameters, headers, signal) {
  const query = new URLSearchParams({ name: file.name, ...parameters });
  return send(`${path}?${query}`, {
    method: "POST", signal, body: file, headers: { "Content-Type": "image/tiff", ...headers },
  });
}

/** Return the response to a request; repeat it while the service is overloaded. */
async function send(path, options = {}) {
  for (let attempt = 1; ; attempt++) {
    const response = await connect(path, options);
    if (response.ok) return response;
    const seconds = Number(response.headers.get("retry-after"));
    const overloaded = response.status === 503 || response.status === 429;
    if (!overloaded || !seconds || attempt >= MAX_TRIES) throw await errorOf(response);
    await pause(Math.min(seconds, MAX_PAUSE_S) * 1000, options.signal);
  }
}

async function connect(path, options) {
  const headers = { Accept: "application/json", ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  try {
    return await fetch(path, { ...options, headers, credentials: "same-origin", redirect: "error" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError("unreachable", "the service cannot be reached", "check your connection, then try again");
  }
}

async function errorOf(response) {
  const body = await response.json().catch(() => null);
  const error = body?.error;
  if (!error?.message) return new ApiError("http", `the service responded with status ${response.status}`, "", response.status);
  return new ApiError(error.code, error.message, error.hint, response.status);
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
