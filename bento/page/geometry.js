// Footprints: GeoJSON polygons in longitude and latitude, on the square of Web Mercator (0-1, from the north-west).

const MAX_NORTH = 85.0511287;
const EQUATOR_M = 40_075_016.686;

/** Return the outer rings of a GeoJSON Polygon or MultiPolygon. */
export function ringsOf(geometry) {
  if (!geometry) return [];
  return geometry.type === "Polygon" ? [geometry.coordinates[0]] : geometry.coordinates.map((polygon) => polygon[0]);
}

/** Return [west, south, east, north] of points (longitude, latitude), or null where there are none. */
export function boundsOf(points) {
  if (!points.length) return null;
  const box = [Infinity, Infinity, -Infinity, -Infinity];
  for (const [x, y] of points) {
    box[0] = Math.min(box[0], x);
    box[1] = Math.min(box[1], y);
    box[2] = Math.max(box[2], x);
    box[3] = Math.max(box[3], y);
  }
  return box;
}

/**
 * Return the corners (longitude, latitude) of a scene from its windows: upper left, lower left, lower right, upper right.
 * Null where a window at a corner has no outline, or lies across the antimeridian.
 */
export function cornersOf(features) {
  const corner = (down, across) => features.reduce((best, feature) => (ahead(feature, best, down, across) ? feature : best));
  const found = [corner(-1, -1), corner(1, -1), corner(1, 1), corner(-1, 1)];
  if (!found.every(({ geometry }) => geometry?.type === "Polygon")) return null;
  return found.map(({ geometry }, index) => geometry.coordinates[0][index]);
}

/** Return whether a window lies further towards a corner of the scene than another. */
function ahead({ properties: a }, { properties: b }, down, across) {
  return down * (a.row - b.row) + across * (a.column - b.column) > 0;
}

export function middleOf(geometry) {
  const box = boundsOf(ringsOf(geometry).flat());
  return box && [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2];
}

export function toSquare([longitude, latitude]) {
  const north = Math.max(-MAX_NORTH, Math.min(MAX_NORTH, latitude)) * (Math.PI / 180);
  return [longitude / 360 + 0.5, 0.5 - Math.log(Math.tan(Math.PI / 4 + north / 2)) / (2 * Math.PI)];
}

export function fromSquare([x, y]) {
  return [(x - 0.5) * 360, (Math.atan(Math.sinh((0.5 - y) * 2 * Math.PI)) * 180) / Math.PI];
}

/** Return metres on the ground for the whole width of the square, at a latitude. */
export function metresAcross(latitude) {
  return EQUATOR_M * Math.cos((latitude * Math.PI) / 180);
}
