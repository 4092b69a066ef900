"""Which models are pinned, and where they are, as a table."""

from __future__ import annotations

from mtl.checkpoints.fetch import cached, in_clone, installed, manifest
from mtl.display import table


def pinned_models() -> str:
    """The pinned models, as ``python -m weights list`` and ``mtl models`` print them."""
    rows: list[list[object]] = [["name", "dim", "MB", "licence", "revision", "here"]]
    for name, entry in manifest().items():
        places = {"installed": installed, "in weights/": in_clone, "cached": cached}
        where = next((name for name, place in places.items() if place(entry)), "on the hub")
        rows.append([name, entry.dim, round(entry.size / 1e6), entry.licence, entry.revision[:12], where])
    return table(rows)
