// Text for numbers, results and warnings.

const MIN_PROBABILITY = 0.5; // below it, a result without a prediction set gets a warning
const SEVERE_FRACTION = 0.5; // of pixels without data, or with cloud
const SEVERE_UNLIKE = 0.25; // of a scene
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
      text: "Unlike the training data. Cloud or snow, bands in another order, a wrong scale, or a land cover that the model "
        + "does not know. The class is probably wrong, and is left out of the sums.",
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

/**
 * Return the fractions (0-1) of a scene's class map: `classes` of the classified part, the largest first; `unlike` the
 * training data and `none` (cloud, no data) of the whole scene.
 */
export function sceneShares({ out_of_distribution: unlike, no_class: none, ...counts }) {
  const classified = Object.values(counts).reduce((sum, number) => sum + number, 0);
  const total = classified + unlike + none;
  const ranked = Object.entries(counts).filter(([, number]) => number).sort((a, b) => b[1] - a[1]);
  return { classes: Object.fromEntries(ranked.map(([name, number]) => [name, number / classified])), unlike: unlike / total, none: none / total };
}

/** Return the warnings about a scene. */
export function sceneWarnings({ features, pixels }) {
  const { classes, unlike, none } = sceneShares(pixels);
  const found = [];
  if (!Object.keys(classes).length) found.push({ severe: true, text: "No class. No part of the scene could be classified." });
  if (unlike) {
    found.push({
      severe: unlike > SEVERE_UNLIKE,
      text: `Unlike the training data: ${percent(unlike)} of the scene, hatched on the map. It has no class and is left out of the sums.`,
    });
  }
  if (none) found.push({ text: `Cloud or no data: ${percent(none)} of the scene. It has no class and is left out of the sums.` });
  const classified = features.filter(({ properties }) => properties.class && !properties.outlier?.flag);
  const undecided = classified.filter(({ properties }) => (properties.prediction_set?.classes.length ?? 1) !== 1).length;
  if (undecided) found.push({ text: `Uncertain. For ${count(undecided, "window")} of ${classified.length}, several classes are possible, or none.` });
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
    return [{ text: `Uncertain. ${set.classes.length} classes are possible.` }];
  }
  return set.classes.length ? [] : [{ text: "Uncertain. No class is probable enough." }];
}

/** Return the prediction set as a sentence. */
export function setSentence(set) {
  const possible = set.classes.length ? list(set.classes.map(className)) : "none";
  return `Possible classes: ${possible}. Of such lists, ${percent(set.coverage)} hold the true class.`;
}

/** Return coordinates as text: `53.21° N, 9.31° W`. */
export function coordinates(longitude, latitude, digits = 3) {
  const side = (value, positive, negative) => `${Math.abs(value).toFixed(digits)}° ${value < 0 ? negative : positive}`;
  return `${side(latitude, "N", "S")}, ${side(longitude, "E", "W")}`;
}
