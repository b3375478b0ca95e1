// A map of footprints on a graticule, drawn as SVG. Images of a base map are loaded only while it is turned on.

import { draw, find, make } from "./dom.js";
import { boundsOf, fromSquare, metresAcross, ringsOf, toSquare } from "./geometry.js";
import { coordinates } from "./format.js";

const BASE_MAP = "https://tile.openstreetmap.org";
const TILE = 256; // pixels of the base map's pictures
const MAX_ZOOM = 19;
const MAX_SCALE = 2 ** 27; // pixels for the width of the world: about 0.3 m each at the equator
const MIN_SCALE = 256;
const MARGIN = 0.16;
const MIN_SIZE = 7; // pixels; smaller footprints get a marker
const STEPS = [60, 30, 15, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005];
const MIN_SPACING = 84; // pixels between lines of the graticule
const SCALE_BAR_HEIGHT = 48; // pixels at the top

let shapes = [];
let view = { x: 0.5, y: 0.5, scale: MIN_SCALE };
let selected = null;
let onSelect = () => {};

/** Set up the map's keys and buttons; `select` gets the id of a footprint that is clicked. */
export function setUpMap(select) {
  onSelect = select;
  find("zoom-in").addEventListener("click", () => zoom(2));
  find("zoom-out").addEventListener("click", () => zoom(0.5));
  find("fit").addEventListener("click", fit);
  find("base-map").addEventListener("change", redraw);
  find("map").addEventListener("keydown", onKey);
  setUpDragging(find("map"));
  new ResizeObserver(redraw).observe(find("map"));
}

/** Show shapes {id, geometry, title, and colour or image}; where they are new ones, zoom to all of them. */
export function showShapes(found) {
  const before = shapes.map((shape) => shape.id).join();
  shapes = found.filter((shape) => shape.geometry);
  find("map-none").hidden = shapes.length > 0;
  find("map-shown").hidden = !shapes.length;
  if (shapes.map((shape) => shape.id).join() === before) redraw();
  else fit();
}

/** Zoom to the footprints of one file. */
export function showOne(id) {
  selected = id;
  zoomTo(shapes.filter((shape) => shape.id === id), 0.3);
  find("map").focus({ preventScroll: true });
  find("map").scrollIntoView({ block: "nearest" });
}

function fit() {
  selected = null;
  zoomTo(shapes, MARGIN);
}

function zoomTo(some, margin) {
  const box = boundsOf(some.flatMap((shape) => ringsOf(shape.geometry).flat()));
  if (box) {
    const [left, bottom] = toSquare([box[0], box[1]]);
    const [right, top] = toSquare([box[2], box[3]]);
    const { width, height } = size();
    const room = Math.min(width / Math.max(right - left, 1e-9), height / Math.max(bottom - top, 1e-9));
    view = { x: (left + right) / 2, y: (top + bottom) / 2, scale: bounded(room * (1 - 2 * margin)) };
  }
  redraw();
}

function bounded(scale) {
  return Math.max(MIN_SCALE, Math.min(MAX_SCALE, scale));
}

function zoom(factor) {
  view.scale = bounded(view.scale * factor);
  redraw();
}

function move(across, down) {
  view.x = Math.max(0, Math.min(1, view.x + across / view.scale));
  view.y = Math.max(0, Math.min(1, view.y + down / view.scale));
  redraw();
}

function onKey(event) {
  if (event.target !== event.currentTarget || event.ctrlKey || event.metaKey || event.altKey) return;
  const step = 60;
  const known = {
    ArrowLeft: () => move(-step, 0),
    ArrowRight: () => move(step, 0),
    ArrowUp: () => move(0, -step),
    ArrowDown: () => move(0, step),
    "+": () => zoom(2),
    "=": () => zoom(2),
    "-": () => zoom(0.5),
    0: fit,
  };
  if (!known[event.key]) return;
  event.preventDefault();
  known[event.key]();
}

function setUpDragging(map) {
  let last = null;
  map.addEventListener("pointerdown", (event) => {
    if (event.target.closest("button, a") || event.pointerType === "touch") return; // a finger scrolls the page
    last = [event.clientX, event.clientY];
    map.setPointerCapture(event.pointerId);
  });
  map.addEventListener("pointermove", (event) => {
    if (!last) return;
    move(last[0] - event.clientX, last[1] - event.clientY);
    last = [event.clientX, event.clientY];
  });
  for (const end of ["pointerup", "pointercancel"]) map.addEventListener(end, () => (last = null));
}

function size() {
  const box = find("map").getBoundingClientRect();
  return { width: box.width || 400, height: box.height || 300 };
}

function toScreen([x, y], { width, height }) {
  return [(x - view.x) * view.scale + width / 2, (y - view.y) * view.scale + height / 2];
}

function redraw() {
  if (!shapes.length) return;
  const box = size();
  const drawing = find("map-drawing");
  drawing.setAttribute("viewBox", `0 0 ${box.width} ${box.height}`);
  drawing.setAttribute("aria-label", describe());
  drawing.replaceChildren(graticule(box), ...inOrder().map((shape) => drawShape(shape, box)), scaleBar(box));
  drawBaseMap(box);
}

/** The shapes of the selected file last, so that nothing covers them. */
function inOrder() {
  return [...shapes.filter((shape) => shape.id !== selected), ...shapes.filter((shape) => shape.id === selected)];
}

function describe() {
  const files = new Set(shapes.map((shape) => shape.id)).size;
  const [west, south, east, north] = boundsOf(shapes.flatMap((shape) => ringsOf(shape.geometry).flat()));
  return `Footprints of ${files} ${files === 1 ? "file" : "files"}, from ${coordinates(west, south)} to ${coordinates(east, north)}`;
}

function drawShape(shape, box) {
  const rings = ringsOf(shape.geometry).map((ring) => ring.map((point) => toScreen(toSquare(point), box)));
  const group = draw("g", { class: shape.image ? "scene" : "footprint" }, draw("title", {}, shape.title));
  const path = rings.map((ring) => `M${ring.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join("L")}Z`).join("");
  if (shape.image) group.append(drawImage(shape.image, rings[0]));
  group.append(draw("path", { d: path, fill: shape.colour ?? "transparent" }));
  const [left, top, right, bottom] = boundsOf(rings.flat());
  if (Math.max(right - left, bottom - top) < MIN_SIZE) {
    group.append(draw("circle", { cx: (left + right) / 2, cy: (top + bottom) / 2, r: MIN_SIZE, fill: shape.colour ?? "transparent" }));
  }
  if (shape.id === selected) group.classList.add("selected");
  group.addEventListener("click", () => onSelect(shape.id));
  return group;
}

/** Draw a picture on a ring of upper left, lower left, lower right and upper right corner; three of them place it. */
function drawImage(href, [[left, top], lowerLeft, , upperRight]) {
  const across = [upperRight[0] - left, upperRight[1] - top];
  const down = [lowerLeft[0] - left, lowerLeft[1] - top];
  const transform = `matrix(${[...across, ...down, left, top].join(" ")})`;
  return draw("image", { href, width: 1, height: 1, preserveAspectRatio: "none", transform });
}

function graticule(box) {
  const [west, north] = fromSquare([view.x - box.width / 2 / view.scale, view.y - box.height / 2 / view.scale]);
  const [east, south] = fromSquare([view.x + box.width / 2 / view.scale, view.y + box.height / 2 / view.scale]);
  const widest = ((east - west) * MIN_SPACING) / box.width;
  const step = STEPS.findLast((candidate) => candidate >= widest) ?? STEPS[0];
  const group = draw("g", { class: "graticule" });
  for (const longitude of multiples(west, east, step)) {
    const [x] = toScreen(toSquare([longitude, 0]), box);
    group.append(draw("line", { x1: x, x2: x, y1: 0, y2: box.height }), label(x + 4, box.height - 8, name(longitude, step, "E", "W")));
  }
  for (const latitude of multiples(south, north, step)) {
    const [, y] = toScreen(toSquare([0, latitude]), box);
    group.append(draw("line", { x1: 0, x2: box.width, y1: y, y2: y }));
    if (y > SCALE_BAR_HEIGHT) group.append(label(4, y - 4, name(latitude, step, "N", "S")));
  }
  return group;
}

function multiples(from, to, step) {
  const first = Math.ceil(from / step);
  return Array.from({ length: Math.max(0, Math.floor(to / step) - first + 1) }, (_, index) => (first + index) * step);
}

function name(value, step, positive, negative) {
  const digits = Math.max(0, Math.ceil(-Math.log10(step) - 1e-9));
  return `${Math.abs(value).toFixed(digits)}°${Math.abs(value) < step / 2 ? "" : value < 0 ? negative : positive}`;
}

function label(x, y, text) {
  return draw("text", { x, y }, text);
}

/** A bar of a round length on the ground, about a quarter of the map's width. */
function scaleBar(box) {
  const [, latitude] = fromSquare([view.x, view.y]);
  const metres = metresAcross(latitude) / view.scale;
  const longest = metres * box.width * 0.28;
  const power = 10 ** Math.floor(Math.log10(longest));
  const length = [5, 2, 1].find((round) => round * power <= longest) * power;
  const [left, y] = [12, 26];
  const right = left + length / metres;
  const text = length < 1000 ? `${length} m` : `${length / 1000} km`;
  return draw(
    "g",
    { class: "scale-bar" },
    draw("path", { d: `M${left},${y - 5}V${y}H${right}V${y - 5}` }),
    draw("text", { x: left, y: y - 8 }, text),
  );
}

function drawBaseMap(box) {
  const on = find("base-map").checked;
  find("attribution").hidden = !on;
  if (!on) find("base-map-error").hidden = true;
  if (!on) return find("map-tiles").replaceChildren();
  const level = Math.max(0, Math.min(MAX_ZOOM, Math.round(Math.log2(view.scale / TILE))));
  const count = 2 ** level;
  const side = view.scale / count;
  const from = [view.x - box.width / 2 / view.scale, view.y - box.height / 2 / view.scale].map((edge) => Math.floor(edge * count));
  const kept = new Map([...find("map-tiles").children].map((image) => [image.src, image]));
  const shown = [];
  for (let row = from[1]; row * side < (view.y * view.scale + box.height / 2); row++) {
    for (let column = from[0]; column * side < (view.x * view.scale + box.width / 2); column++) {
      if (row < 0 || row >= count) continue;
      const url = `${BASE_MAP}/${level}/${((column % count) + count) % count}/${row}.png`;
      const image = kept.get(url) ?? baseMapImage(url);
      const [x, y] = toScreen([column / count, row / count], box);
      Object.assign(image.style, { left: `${x}px`, top: `${y}px`, width: `${side + 0.5}px`, height: `${side + 0.5}px` });
      shown.push(image);
    }
  }
  find("map-tiles").replaceChildren(...shown);
}

/** OpenStreetMap requires a referrer: https://operations.osmfoundation.org/policies/tiles/ */
function baseMapImage(url) {
  const onerror = (event) => {
    event.target.hidden = true;
    find("base-map-error").hidden = false;
  };
  return make("img", { src: url, alt: "", referrerpolicy: "strict-origin-when-cross-origin", onerror });
}
