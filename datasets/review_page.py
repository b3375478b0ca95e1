"""The page on which people label what a service was asked: works from the disk, without a server.

What was chosen stays in the browser until it is saved, so that closing the page loses nothing.
"""

from collections.abc import Sequence

from datasets.bands import LEAVE_OUT
from datasets.contact_sheet import Card, Form, draw_sheet, picture_of
from datasets.served import Served
from datasets.tile import Tile

FILE = "decisions.csv"

_FORM = f"""<form>
<label>Reviewer <input id="reviewer" autocomplete="name" required></label>
<output id="count" aria-live="polite"></output>
<button id="save" type="button">Save {FILE}</button>
<noscript>This browser runs no scripts: fill in label and reviewer in review.csv instead.</noscript>
</form>"""

_SCRIPT = f"""
"use strict";
const groups = [...document.querySelectorAll("fieldset[data-tile]")];
const reviewer = document.getElementById("reviewer");
const key = name => "sentile.review." + name;
const kept = {{
  get(name) {{ try {{ return localStorage.getItem(key(name)); }} catch {{ return null; }} }},
  set(name, value) {{ try {{ localStorage.setItem(key(name), value); }} catch {{ /* a private window */ }} }},
}};
const chosen = group => group.querySelector("input:checked")?.value ?? "";
function show() {{
  const decided = groups.filter(chosen);
  for (const group of groups) group.closest("figure").classList.toggle("decided", decided.includes(group));
  document.getElementById("count").textContent = `${{decided.length}} of ${{groups.length}} decided`;
}}
for (const group of groups) {{
  const before = kept.get(group.dataset.tile);
  for (const input of group.querySelectorAll("input")) input.checked = input.value === before;
  group.addEventListener("change", () => {{ kept.set(group.dataset.tile, chosen(group)); show(); }});
}}
reviewer.value = kept.get("reviewer") ?? "";
reviewer.addEventListener("change", () => kept.set("reviewer", reviewer.value));
const cell = text => `"${{text.replaceAll('"', '""')}}"`;
document.getElementById("save").addEventListener("click", () => {{
  if (!reviewer.reportValidity()) return;
  const rows = groups.filter(chosen).map(group => [group.dataset.tile, chosen(group), reviewer.value, ""]);
  const text = [["name", "label", "reviewer", "why"], ...rows].map(row => row.map(cell).join(",")).join("\\n") + "\\n";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {{type: "text/csv"}}));
  link.download = "{FILE}";
  link.click();
  URL.revokeObjectURL(link.href);
}});
document.querySelector("form").addEventListener("submit", event => event.preventDefault());
show();
"""


def draw_review(tiles: Sequence[tuple[Served, Tile]], classes: Sequence[str]) -> str:
    """Return the page as HTML: a card a tile, with a button for each class and one for what fits none."""
    choices = (*((name, name) for name in classes), (LEAVE_OUT, "none of these"))
    cards = [Card(served.name, picture_of(tile), words_of(served), choices=choices) for served, tile in tiles]
    return draw_sheet(f"{len(cards):,} tiles to label", _advice(), cards, Form(_FORM, _SCRIPT))


def words_of(served: Served) -> tuple[str, ...]:
    """Return what a reviewer should know of a tile, a line each: the answer, why it is here, and where it came from."""
    answer = f"answered {served.answered} ({served.confidence:.2f}), next {served.second} ({served.p_second:.2f})"
    origin = [f"{served.when:%Y-%m-%d %H:%M} UTC", f"model {served.version}"]
    if served.place:
        origin.append(f"{served.place[1]:.4f}, {served.place[0]:.4f}")
    if served.file:
        origin.append(served.file)
    strange = (f"unlike the training data: outlier score {served.outlier_score:.3g}",) if served.outlier else ()
    return (answer, *strange, ", ".join(origin))


def _advice() -> str:
    return (
        "Tiles that a service answered: those flagged as unlike the training data and those least decided, in turn. "
        "Left as the eye sees them, right vegetation in red. Choose what you see, not what was answered; leave open "
        f"what you are not sure of. Save {FILE} and hand it to: python -m datasets label {FILE}"
    )
