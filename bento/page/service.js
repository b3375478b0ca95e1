// What is asked of the service, and how it refuses. Addresses are relative: the page may lie behind a path.

const MAX_TRIES = 4;
const LONGEST_PAUSE_S = 15;
const LOOK_AGAIN_MS = 700;

let key = "";

/** Send `text` as the API key from now on. */
export function useKey(text) {
  key = text.trim();
}

/** A refusal of the service, or that it cannot be reached: what is wrong, and the way out. */
export class Refusal extends Error {
  constructor(code, message, hint = "", status = 0) {
    super(message);
    this.code = code;
    this.hint = hint;
    this.status = status;
  }
}

export async function askModel() {
  return (await ask("model")).json();
}

/** Return the colours of classes: {known: {class: colour}, further: [colour]}. */
export async function askLegend() {
  return (await ask("page/legend.json")).json();
}

/** Return {model, results} for tiles that are sent together. */
export async function classify(files, said, signal) {
  const form = new FormData();
  for (const file of files) form.append("tiles", file, file.name);
  for (const [name, value] of Object.entries(said)) form.append(name, value);
  return (await ask("classify", { method: "POST", body: form, signal })).json();
}

/** Return {url, cloudShare} of a picture. */
export async function askPreview(file, view, said, signal) {
  const response = await sendTiff("preview", file, { ...said, view }, "image/png", signal);
  const cloud = response.headers.get("tilewise-cloud-fraction");
  return { url: URL.createObjectURL(await response.blob()), cloudShare: cloud === null ? null : Number(cloud) };
}

/** Return the address of a picture of what the answer to a tile rests on. */
export async function askExplanation(file, className, said, signal) {
  const response = await sendTiff("explain", file, { ...said, class: className }, "image/png", signal);
  return URL.createObjectURL(await response.blob());
}

/** Return {content, task}: a scene's answer in the form `accept`; `report` is told how far a long one is (0-1). */
export async function classifyScene(file, said, accept, report, signal) {
  const response = await sendTiff("scene", file, said, accept, signal);
  if (response.status !== 202) return { response, task: null };
  const task = (await response.json()).id;
  try {
    await finished(task, report, signal);
  } catch (error) {
    if (signal.aborted) ask(`tasks/${task}`, { method: "DELETE" }).catch(() => {});
    throw error;
  }
  return { response: await askResult(task, accept, signal), task };
}

/** Return the answer of a task that is done, in another form. */
export function askResult(task, accept, signal) {
  return ask(`tasks/${task}/result`, { headers: { Accept: accept }, signal });
}

async function finished(task, report, signal) {
  for (;;) {
    const found = await (await ask(`tasks/${task}`, { signal })).json();
    report(found.progress, found.ahead);
    if (found.status === "failed") throw new Refusal(found.error.code, found.error.message, found.error.hint);
    if (found.status === "done") return;
    await pause(LOOK_AGAIN_MS, signal);
  }
}

function sendTiff(path, file, said, accept, signal) {
  const query = new URLSearchParams({ name: file.name, ...said });
  const headers = { "Content-Type": "image/tiff", Accept: accept };
  return ask(`${path}?${query}`, { method: "POST", body: file, headers, signal });
}

/** Return the answer to a request; it is repeated while the service says that it has no room just now. */
async function ask(path, options = {}) {
  for (let attempt = 1; ; attempt++) {
    const response = await reach(path, options);
    if (response.ok) return response;
    const again = Number(response.headers.get("retry-after"));
    const full = response.status === 503 || response.status === 429;
    if (!full || !again || attempt >= MAX_TRIES) throw await refusalOf(response);
    await pause(Math.min(again, LONGEST_PAUSE_S) * 1000, options.signal);
  }
}

async function reach(path, options) {
  const headers = { Accept: "application/json", ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  try {
    return await fetch(path, { ...options, headers, credentials: "same-origin", redirect: "error" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Refusal("unreachable", "the service cannot be reached", "see whether it runs, then try again");
  }
}

async function refusalOf(response) {
  const body = await response.json().catch(() => null);
  const error = body?.error;
  if (!error?.message) return new Refusal("http", `the service answers with status ${response.status}`, "", response.status);
  return new Refusal(error.code, error.message, error.hint, response.status);
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
