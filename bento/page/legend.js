// The colour of each class, as on the maps that the service writes.

const NEUTRAL = "#8a8f98";

let legend = { known: {}, further: [] };
let classes = [];

export function setLegend(found) {
  legend = found;
}

export function setClasses(names) {
  classes = names;
}

export function colourOf(name) {
  if (legend.known[name]) return legend.known[name];
  const index = classes.indexOf(name);
  return index < 0 || !legend.further.length ? NEUTRAL : legend.further[index % legend.further.length];
}
