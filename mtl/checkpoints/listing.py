"""Which models are pinned, and where they are, as a table; which families of encoders are read, and how we know."""

from __future__ import annotations

import textwrap
import tomllib
from pathlib import Path

from mtl.checkpoints.fetch import archive_parts, manifest, places
from mtl.display import table

FAMILIES = Path(__file__).with_name("families") / "models.toml"


def pinned_models() -> str:
    """The pinned models, as ``python -m weights list`` and ``mtl models`` print them."""
    rows: list[list[object]] = [["name", "dim", "MB", "licence", "revision", "here"]]
    for name, entry in manifest().items():
        elsewhere = "in installed parts" if archive_parts(entry) else "on the hub"
        where = next((where for where, folder in places(entry) if folder), elsewhere)
        rows.append([name, entry.dim, round(entry.size / 1e6), entry.licence, entry.revision[:12], where])
    return table(rows)


def known_families() -> str:
    """Each family of encoders, how reading it was checked, and models of it, as ``mtl models --families`` prints it."""
    lines = []
    for name, entry in tomllib.loads(FAMILIES.read_text(encoding="utf-8")).items():
        said = {
            "checked": entry["checked"],
            "their own weights were tried": ", ".join(entry.get("tried", ["none"])),
            "of the same form": ", ".join(entry["alike"]),
        }
        lines.append(name)
        for what, text in said.items():
            lines += textwrap.wrap(f"{what}: {text}", 112, initial_indent="  ", subsequent_indent="    ",
                                   break_on_hyphens=False)  # fmt: skip
    return "\n".join(lines)
