// Numbers and answers in plain words.

const SURE = 0.5; // a likeliest class below this is not likely
const MUCH_MISSING = 0.5;
const CLOUDY = 0.2; // of 400 clear EuroSAT tiles, 2 are as bright as cloud in more than this share

/** Return how a class is called: `HerbaceousVegetation` as `Herbaceous vegetation`. */
export function className(name) {
  const words = name.replace(/[_-]+/g, " ").replace(/([a-z])([A-Z])/g, "$1 $2").toLowerCase();
  return words.charAt(0).toUpperCase() + words.slice(1);
}

export function percent(share, digits = 1) {
  if (share > 0 && share < 0.0005) return "< 0.1 %";
  if (share < 1 && share > 0.9995) return "> 99.9 %";
  return `${(100 * share).toFixed(digits).replace(/\.0$/, "")} %`;
}

export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

export function bytes(number) {
  return number < 2 ** 20 ? `${Math.max(1, Math.round(number / 1024))} KiB` : `${(number / 2 ** 20).toFixed(1)} MiB`;
}

export function listed(words, last = "or") {
  if (words.length < 2) return words.join("");
  return `${words.slice(0, -1).join(", ")} ${last} ${words.at(-1)}`;
}

/** Return what is wrong, as a sentence. */
export function sentence(text) {
  const trimmed = (text ?? "").trim();
  if (!trimmed) return "";
  return trimmed.charAt(0).toUpperCase() + trimmed.slice(1) + (/[.!?…]$/.test(trimmed) ? "" : ".");
}

/** Return {grave, text} for all that a person should be wary of in the answer to a tile. */
export function tileWarnings(result, cloudShare, model) {
  const found = [];
  if (result.outlier?.flag) {
    found.push({
      grave: true,
      text: "Unusual input. This tile is unlike those that the model learnt from: cloud or snow, wrongly named bands or a "
        + "wrong scale, or a kind of land that it does not know. The answer may well be wrong.",
    });
  }
  found.push(...dataWarnings(result.valid_fraction, cloudShare));
  found.push(...setWarnings(result));
  const missing = (model?.trained_bands ?? []).filter((band) => !result.bands.includes(band));
  if (missing.length) {
    found.push({ text: `Without ${count(missing.length, "band")} that the model knows: ${missing.join(", ")}.` });
  }
  return found;
}

/** Return the same for a scene. */
export function sceneWarnings(windows, cloudShare) {
  const found = [];
  const answered = windows.filter((window) => window.properties.class !== null);
  const empty = windows.length - answered.length;
  if (!answered.length) found.push({ grave: true, text: "No window has enough data for an answer." });
  else if (empty) found.push({ text: `No data. ${count(empty, "window")} of ${windows.length} without enough data for an answer.` });
  found.push(...dataWarnings(1, cloudShare));
  const torn = answered.filter(({ properties }) => (properties.prediction_set?.classes.length ?? 1) !== 1).length;
  if (torn) found.push({ text: `Undecided. For ${count(torn, "window")} of ${answered.length} more than one class is possible, or none is likely.` });
  const odd = answered.filter(({ properties }) => properties.outlier?.flag).length;
  if (odd) found.push({ grave: odd > answered.length / 4, text: `Unusual input. ${count(odd, "window")} of ${answered.length} are unlike what the model learnt from.` });
  return found;
}

function dataWarnings(validShare, cloudShare) {
  const found = [];
  if (validShare < 0.9995) {
    found.push({
      grave: validShare < MUCH_MISSING,
      text: `No data in ${percent(1 - validShare)} of the pixels. The answer rests on the others.`,
    });
  }
  if (cloudShare !== null && cloudShare >= CLOUDY) {
    found.push({
      grave: cloudShare >= MUCH_MISSING,
      text: `Maybe cloud: ${percent(cloudShare, 0)} of the picture is as bright as cloud. Bright roofs and sand are, too.`,
    });
  }
  return found;
}

function setWarnings(result) {
  const set = result.prediction_set;
  const likeliest = Math.max(...Object.values(result.probabilities));
  if (!set) return likeliest < SURE ? [{ text: `Undecided. Even the likeliest class has only ${percent(likeliest)}.` }] : [];
  if (set.classes.length > 1) {
    return [{ text: `Undecided. ${set.classes.length} classes are possible; see the prediction set.` }];
  }
  return set.classes.length ? [] : [{ text: "Undecided. No class is likely enough to be in the prediction set." }];
}

/** Return the prediction set as a sentence. */
export function setSentence(set) {
  if (!set.classes.length) return `At ${percent(set.coverage)} coverage, no class is likely enough.`;
  return `At ${percent(set.coverage)} coverage: ${listed(set.classes.map(className))}.`;
}

/** Return a place as people read it: `53.21° N, 9.31° W`. */
export function place(longitude, latitude, digits = 3) {
  const side = (value, positive, negative) => `${Math.abs(value).toFixed(digits)}° ${value < 0 ? negative : positive}`;
  return `${side(latitude, "N", "S")}, ${side(longitude, "E", "W")}`;
}
