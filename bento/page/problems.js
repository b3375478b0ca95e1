// Errors in the words of the page: the API's hints name its parameters and commands. Files with the same error are told once.

import { make } from "./dom.js";
import { count, sentence } from "./format.js";

const MAX_NAMES = 5; // shown before the rest is collapsed

const MESSAGES = { // by code, where the API's message is about the request and not about the file
  bad_request: "the service does not understand the file",
  head_too_large: "the name of the file is too long",
  internal: "the service failed",
  model: "the service's model cannot be used",
  not_found: "the service no longer has the result",
  gone: "the service no longer has the result",
  storage_full: "the service has no space for another scene",
  task_lost: "the service stopped before the scene was done",
  too_large: "the file is larger than this service takes",
  too_slow: "the file arrived too slowly",
  unreadable_here: "the browser cannot read the file",
  unsupported_type: "the service does not take files of this kind",
};
const HINTS = {
  band_missing: "The file lacks a band that is needed.",
  bands_unknown: "Choose the bands in the settings.",
  internal: "Try again later; if it fails again, tell the operator of the service.",
  invalid: "Change it in the settings.",
  model: "Tell the operator of the service.",
  no_data: "There is nothing to classify.",
  overloaded: "Try again in a minute.",
  radiometry_unknown: "Choose the processing level and the offset in the settings.",
  storage_full: "Try again in a minute.",
  task_lost: "Try again, or cut out a part of the scene.",
  tile_shape: "A tile has 64 × 64 pixels; a scene needs a position and pixels of about 10 m.",
  timeout: "Try again later, with fewer files.",
  too_large: "Cut out a part of it, or choose less detail in the settings.",
  too_many_tasks: "Try again in a minute.",
  too_slow: "Try again over a faster connection.",
  unauthorized: "Enter an API key above.",
  unreadable_here: "Folders cannot be added, only files. Add a file again if it was moved.",
  unreachable: "Check your connection, then try again.",
};

/** Return {code, message, hint} of an error as people read it, without the file's name, which messages may begin with. */
export function plainError(error, name) {
  const code = error.code ?? "page";
  const own = error.message.startsWith(`${name}: `);
  const message = own ? error.message.slice(name.length + 2) : (MESSAGES[code] ?? error.message);
  return { code, message: code === "page" ? "the page failed" : message, hint: HINTS[code] ?? "" };
}

/** Return an error as one text. */
export function errorText(error, name = "") {
  const { message, hint } = plainError(error, name);
  return [sentence(message), hint].filter(Boolean).join(" ");
}

/** Return the groups of two or more failed items with the same code. */
export function groupsOf(failed) {
  const groups = {};
  for (const item of failed) (groups[item.error.code] ??= []).push(item);
  return Object.values(groups).filter((group) => group.length > 1);
}

/** Return one note about all items of a group, with all names if `open`; `help` is an element with actions, or null. */
export function groupNote(group, help, open) {
  const messages = new Set(group.map((item) => item.error.message));
  const same = messages.size === 1;
  const names = group.map((item) => make("li", {}, same ? item.file.name : `${item.file.name}: ${item.error.message}`));
  const [first, rest] = [names.slice(0, MAX_NAMES), names.slice(MAX_NAMES)];
  return make("div", { class: "note bad problem" },
    make("p", {}, make("strong", {}, `${count(group.length, "file")} not classified. `), same ? sentence([...messages][0]) : null),
    group[0].error.hint ? make("p", {}, group[0].error.hint) : null,
    make("ul", {}, first),
    rest.length ? make("details", { "data-code": group[0].error.code, open }, make("summary", {}, `${rest.length} more`), make("ul", {}, rest)) : null,
    help);
}
