"""Table 1 of Karras et al. (2022) in Markdown, printed from the designs themselves."""

from collections.abc import Mapping

from ..designs import PARTS, Design, edm, iddpm, ve, vp


def table(columns: Mapping[str, Design] | None = None) -> str:
    """Designs side by side, one row a choice.

    Arguments:
        columns: designs by name; the four of the paper unless given.
    """
    if columns is None:
        columns = {"VP": vp(), "VE": ve(), "iDDPM": iddpm(), "EDM": edm()}
    rows = {name: design.rows() for name, design in columns.items()}
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in next(iter(rows.values()), {}):
        if name in PARTS:
            lines.append(f"| **{PARTS[name]}** |" + " |" * len(columns))
        cells = " | ".join(f"`{row[name]}`" for row in rows.values())
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)
