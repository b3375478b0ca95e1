"""A table of figures: once as Markdown for the documents, once as JSON for programs."""

from dataclasses import dataclass
from typing import Any

Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class Table:
    """Figures with a title, what they mean, and a header.

    Attributes:
        name: a short key for programs.
        title: for people.
        note: what was measured, and how.
        header: of the columns; a name that ends in ` %` holds shares (0-1), shown in percent.
        rows: as long as the header each.
    """

    name: str
    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def markdown(self) -> str:
        """Return the table under its title."""
        rule = "|".join("---" if place == 0 else "---:" for place in range(len(self.header)))
        lines = [f"### {self.title}", "", self.note, "", f"| {' | '.join(self.header)} |", f"|{rule}|"]
        for row in self.rows:
            cells = (_shown(cell, name) for cell, name in zip(row, self.header, strict=True))
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Return the same as an object."""
        rows = [dict(zip(self.header, row, strict=True)) for row in self.rows]
        return {"title": self.title, "note": self.note, "rows": rows}


def _shown(cell: Cell, column: str) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{100 * cell:.2f}" if column.endswith("%") else f"{cell:.3f}"
    return str(cell)
