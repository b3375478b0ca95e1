// The map of a scene as a picture to keep: the class map over true colour, as it is shown, with a title and a legend.

import { className, percent, sceneShares } from "./format.js";
import { colourOf } from "./legend.js";

const [PAPER, INK, FAINT] = ["#ffffff", "#1e1e1e", "#6e6e6e"];
const [MARGIN, LINE, BOX, LEGEND] = [16, 24, 16, 300]; // pixels
const HATCH = { fill: "#afafaf", stroke: "#1e1e1e" };

/** Return a PNG of the map of a scene that is shown. */
export async function drawMap(item, model) {
  await Promise.all([...item.stack.children].map((image) => image.decode()));
  const { naturalWidth: width, naturalHeight: height } = item.overlay;
  const entries = entriesOf(item.scene.pixels);
  const canvas = document.createElement("canvas");
  canvas.width = width + LEGEND + 3 * MARGIN;
  canvas.height = Math.max(height, LINE * (entries.length + 2)) + 2 * MARGIN + LINE;
  const pen = canvas.getContext("2d");
  pen.fillStyle = PAPER;
  pen.fillRect(0, 0, canvas.width, canvas.height);
  drawPictures(pen, item, MARGIN, MARGIN + LINE, width, height);
  write(pen, item.file.name, MARGIN, MARGIN + 8, "600 16px sans-serif", INK);
  entries.forEach((entry, index) => drawEntry(pen, entry, width + 2 * MARGIN, MARGIN + LINE * (index + 1)));
  write(pen, model ? `${model.name} ${model.version}` : "", width + 2 * MARGIN, MARGIN + LINE * (entries.length + 1) + 8, "12px sans-serif", FAINT);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

function drawPictures(pen, item, x, y, width, height) {
  for (const image of item.stack.children) {
    pen.globalAlpha = image === item.overlay ? Number(item.overlay.style.opacity) : 1;
    pen.imageSmoothingEnabled = image !== item.overlay;
    pen.drawImage(image, x, y, width, height);
  }
  pen.globalAlpha = 1;
}

/** Return the lines of the legend: {name, value, colour}; no colour is hatched. */
function entriesOf(pixels) {
  const { classes, unlike, none } = sceneShares(pixels);
  const found = Object.entries(classes).map(([name, fraction]) => ({ name: className(name), value: percent(fraction), colour: colourOf(name) }));
  if (unlike) found.push({ name: "Unlike the training data", value: `${percent(unlike)} of all`, colour: null });
  if (none) found.push({ name: "Cloud or no data", value: `${percent(none)} of all`, colour: PAPER });
  return found;
}

function drawEntry(pen, { name, value, colour }, x, y) {
  pen.fillStyle = colour ?? HATCH.fill;
  pen.fillRect(x, y, BOX, BOX);
  pen.lineWidth = 1;
  pen.strokeStyle = colour ? FAINT : HATCH.stroke;
  pen.strokeRect(x + 0.5, y + 0.5, BOX - 1, BOX - 1);
  if (!colour) {
    pen.beginPath();
    for (let offset = BOX / 4; offset < 2 * BOX; offset += BOX / 2) {
      pen.moveTo(x + Math.min(offset, BOX), y + Math.max(0, offset - BOX));
      pen.lineTo(x + Math.max(0, offset - BOX), y + Math.min(offset, BOX));
    }
    pen.stroke();
  }
  write(pen, name, x + BOX + 8, y + 8, "14px sans-serif", INK);
  write(pen, value, x + LEGEND, y + 8, "14px sans-serif", FAINT, "right");
}

function write(pen, text, x, y, font, colour, align = "left") {
  Object.assign(pen, { font, fillStyle: colour, textAlign: align, textBaseline: "middle" });
  pen.fillText(text, x, y);
}
