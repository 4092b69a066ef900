"""Which models are pinned, and where they are, as a table."""

from __future__ import annotations

from weights.fetch import cached, installed, manifest


def pinned_models() -> str:
    """The pinned models, as ``python -m weights list`` and ``mtl models`` print them."""
    rows = [("name", "dim", "MB", "licence", "revision", "here")]
    for name, entry in manifest().items():
        where = "installed" if installed(entry) else "cached" if cached(entry) else "on the hub"
        rows.append((name, str(entry.dim), f"{entry.size / 1e6:.0f}", entry.licence, entry.revision[:12], where))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
