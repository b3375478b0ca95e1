// The size of a TIFF, from its first directory (TIFF 6.0, and BigTIFF: https://www.awaresystems.be/imaging/tiff/bigtiff.html).
// It only decides between tile and scene; the service does not trust it.

const WIDTH = 256;
const HEIGHT = 257;
const MAX_ENTRIES = 4096;
const SHORT = 3;
const LONG = 4;
const LONG8 = 16;

/** Return {width, height} in pixels, or null where the file is not a TIFF. */
export async function sizeOf(file) {
  try {
    const head = await viewOf(file, 0, 16);
    const little = head.getUint16(0) === 0x4949;
    if (!little && head.getUint16(0) !== 0x4d4d) return null;
    const version = head.getUint16(2, little);
    if (version !== 42 && version !== 43) return null;
    const big = version === 43;
    return await sizeInDirectory(file, offsetAt(head, big ? 8 : 4, big, little), big, little);
  } catch {
    return null; // shorter than its own header says
  }
}

async function sizeInDirectory(file, start, big, little) {
  const [counted, length] = big ? [8, 20] : [2, 12];
  const first = await viewOf(file, start, counted);
  const entries = big ? offsetAt(first, 0, big, little) : first.getUint16(0, little);
  if (entries > MAX_ENTRIES) return null;
  const directory = await viewOf(file, start + counted, entries * length);
  const found = {};
  for (let offset = 0; offset < entries * length; offset += length) {
    const tag = directory.getUint16(offset, little);
    if (tag === WIDTH) found.width = valueOf(directory, offset, big, little);
    if (tag === HEIGHT) found.height = valueOf(directory, offset, big, little);
  }
  return found.width && found.height ? found : null;
}

function valueOf(view, offset, big, little) {
  const kind = view.getUint16(offset + 2, little);
  const at = offset + (big ? 12 : 8);
  if (kind === SHORT) return view.getUint16(at, little);
  if (kind === LONG) return view.getUint32(at, little);
  return kind === LONG8 ? offsetAt(view, at, true, little) : 0;
}

function offsetAt(view, at, big, little) {
  return big ? Number(view.getBigUint64(at, little)) : view.getUint32(at, little);
}

async function viewOf(file, start, length) {
  return new DataView(await file.slice(start, start + length).arrayBuffer());
}
