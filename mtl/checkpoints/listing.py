"""Which models are pinned, and where they are, as a table."""

from __future__ import annotations

from mtl.checkpoints.fetch import cached, installed, manifest
from mtl.display import table


def pinned_models() -> str:
    """The pinned models, as ``python -m weights list`` and ``mtl models`` print them."""
    rows: list[list[object]] = [["name", "dim", "MB", "licence", "revision", "here"]]
    for name, entry in manifest().items():
        where = "installed" if installed(entry) else "cached" if cached(entry) else "on the hub"
        rows.append([name, entry.dim, round(entry.size / 1e6), entry.licence, entry.revision[:12], where])
    return table(rows)
