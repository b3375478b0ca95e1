// Text for numbers, results and warnings.

const MIN_PROBABILITY = 0.5; // below it, a result without a prediction set gets a warning
const SEVERE_FRACTION = 0.5; // of pixels without data, or with cloud
const CLOUD_FRACTION = 0.2; // of 400 clear EuroSAT tiles, 2 are as bright as cloud in a larger fraction

/** Return the display name of a class: `HerbaceousVegetation` as `Herbaceous vegetation`. */
export function className(name) {
  const words = name.replace(/[_-]+/g, " ").replace(/([a-z])([A-Z])/g, "$1 $2").toLowerCase();
  return words.charAt(0).toUpperCase() + words.slice(1);
}

export function percent(fraction, digits = 1) {
  if (fraction > 0 && fraction < 0.0005) return "< 0.1 %";
  if (fraction < 1 && fraction > 0.9995) return "> 99.9 %";
  return `${(100 * fraction).toFixed(digits).replace(/\.0$/, "")} %`;
}

export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

export function bytes(number) {
  return number < 2 ** 20 ? `${Math.max(1, Math.round(number / 1024))} KiB` : `${(number / 2 ** 20).toFixed(1)} MiB`;
}

export function list(words, last = "or") {
  if (words.length < 2) return words.join("");
  return `${words.slice(0, -1).join(", ")} ${last} ${words.at(-1)}`;
}

/** Return text as a sentence: with a capital and a full stop. */
export function sentence(text) {
  const trimmed = (text ?? "").trim();
  if (!trimmed) return "";
  return trimmed.charAt(0).toUpperCase() + trimmed.slice(1) + (/[.!?…]$/.test(trimmed) ? "" : ".");
}

/** Return the warnings {severe, text} about the result of a tile. */
export function tileWarnings(result, cloudFraction, model) {
  const found = [];
  if (result.outlier?.flag) {
    found.push({
      severe: true,
      text: "Out of distribution. This tile differs from the training data: cloud or snow, bands in another order, a wrong "
        + "scale, or a land cover that the model does not know. The class is probably wrong.",
    });
  }
  found.push(...dataWarnings(result.valid_fraction, cloudFraction));
  found.push(...setWarnings(result));
  const missing = (model?.trained_bands ?? []).filter((band) => !result.bands.includes(band));
  if (missing.length) {
    found.push({ text: `Missing bands. The file lacks ${count(missing.length, "band")} of the model: ${missing.join(", ")}.` });
  }
  return found;
}

/** Return the warnings about a scene. */
export function sceneWarnings(windows, cloudFraction) {
  const found = [];
  const classified = windows.filter((window) => window.properties.class !== null);
  const empty = windows.length - classified.length;
  if (!classified.length) found.push({ severe: true, text: "No window has enough valid pixels to be classified." });
  else if (empty) found.push({ text: `No data. ${count(empty, "window")} of ${windows.length} ${empty === 1 ? "has" : "have"} too few valid pixels to be classified.` });
  found.push(...dataWarnings(1, cloudFraction));
  const undecided = classified.filter(({ properties }) => (properties.prediction_set?.classes.length ?? 1) !== 1).length;
  if (undecided) found.push({ text: `Uncertain. For ${count(undecided, "window")} of ${classified.length}, the prediction set has several classes, or none.` });
  const outliers = classified.filter(({ properties }) => properties.outlier?.flag).length;
  if (outliers) found.push({ severe: outliers > classified.length / 4, text: `Out of distribution. ${count(outliers, "window")} of ${classified.length} ${outliers === 1 ? "differs" : "differ"} from the training data.` });
  return found;
}

function dataWarnings(validFraction, cloudFraction) {
  const found = [];
  if (validFraction < 0.9995) {
    found.push({
      severe: validFraction < SEVERE_FRACTION,
      text: `No data in ${percent(1 - validFraction)} of the pixels. Only the other pixels were classified.`,
    });
  }
  if (cloudFraction !== null && cloudFraction >= CLOUD_FRACTION) {
    found.push({
      severe: cloudFraction >= SEVERE_FRACTION,
      text: `Possible cloud: ${percent(cloudFraction, 0)} of the pixels are as bright as cloud. Bright roofs and sand are, too.`,
    });
  }
  return found;
}

function setWarnings(result) {
  const set = result.prediction_set;
  const highest = Math.max(...Object.values(result.probabilities));
  if (!set) return highest < MIN_PROBABILITY ? [{ text: `Uncertain. The most probable class has only ${percent(highest)}.` }] : [];
  if (set.classes.length > 1) {
    return [{ text: `Uncertain. The prediction set has ${set.classes.length} classes.` }];
  }
  return set.classes.length ? [] : [{ text: "Uncertain. No class is probable enough to be in the prediction set." }];
}

/** Return the prediction set as a sentence. */
export function setSentence(set) {
  if (!set.classes.length) return `Prediction set (${percent(set.coverage)} coverage): none.`;
  return `Prediction set (${percent(set.coverage)} coverage): ${list(set.classes.map(className))}.`;
}

/** Return coordinates as text: `53.21° N, 9.31° W`. */
export function coordinates(longitude, latitude, digits = 3) {
  const side = (value, positive, negative) => `${Math.abs(value).toFixed(digits)}° ${value < 0 ? negative : positive}`;
  return `${side(latitude, "N", "S")}, ${side(longitude, "E", "W")}`;
}
