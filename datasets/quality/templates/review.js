"use strict";
const form = document.querySelector("form");
const groups = [...document.querySelectorAll("fieldset[data-tile]")];
const reviewer = document.getElementById("reviewer");
const key = name => "tilewise.review." + name;
const kept = {
  get(name) { try { return localStorage.getItem(key(name)); } catch { return null; } },
  set(name, value) { try { localStorage.setItem(key(name), value); } catch { /* a private window */ } },
};
const chosen = group => group.querySelector("input:checked")?.value ?? "";
function show() {
  const decided = groups.filter(chosen);
  for (const group of groups) group.closest("figure").classList.toggle("decided", decided.includes(group));
  document.getElementById("count").textContent = `${decided.length} of ${groups.length} decided`;
}
for (const group of groups) {
  const before = kept.get(group.dataset.tile);
  for (const input of group.querySelectorAll("input")) input.checked = input.value === before;
  group.addEventListener("change", () => { kept.set(group.dataset.tile, chosen(group)); show(); });
}
reviewer.value = kept.get("reviewer") ?? "";
reviewer.addEventListener("change", () => kept.set("reviewer", reviewer.value));
const cell = text => `"${text.replaceAll('"', '""')}"`;
document.getElementById("save").addEventListener("click", () => {
  if (!reviewer.reportValidity()) return;
  const rows = groups.filter(chosen).map(group => [group.dataset.tile, chosen(group), reviewer.value, ""]);
  const text = [["name", "label", "reviewer", "why"], ...rows].map(row => row.map(cell).join(",")).join("\n") + "\n";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "text/csv"}));
  link.download = form.dataset.file;
  link.click();
  URL.revokeObjectURL(link.href);
});
form.addEventListener("submit", event => event.preventDefault());
show();
