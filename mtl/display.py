"""How things are shown to a user: numbers with their noun, rows in columns, versions."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata

from mtl.errors import escaped


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 text, 2 texts."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def version_of(package: str) -> str:
    """A package's version; "unknown" of one that runs from its source tree and is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def table(rows: Sequence[Sequence[object]]) -> str:
    """Rows of cells in columns that line up; the first row is the header."""
    cells = [[f"{cell:.4f}" if isinstance(cell, float) else escaped(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [all(isinstance(row[i], (int, float)) for row in rows[1:]) for i in range(len(widths))]
    lines = [
        "  ".join(c.rjust(w) if right else c.ljust(w) for c, w, right in zip(row, widths, numeric, strict=True))
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)
