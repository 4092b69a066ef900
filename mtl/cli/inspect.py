"""mtl inspect"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtl.cli.options import device_option, echo_json, settings, threads_option
from mtl.display import table

if TYPE_CHECKING:
    from mtl.training.inspect import Report


@click.command()
@click.argument("recipe")
@click.option(
    "--near", type=click.FloatRange(0, 1, min_open=True), default=0.95, show_default=True,
    help="The cosine of the model's vectors from which on rows are near; 1 seeks equal ones alone.",
)  # fmt: skip
@click.option(
    "--most", type=click.IntRange(0), default=20_000, show_default=True,
    help="Rows of a split up to which near ones are sought: all are compared with all.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Draw lengths and labels to this .png, .svg or .pdf file."
)
@device_option
@threads_option
def inspect(
    recipe: str, near: float, most: int, as_json: bool, plot: Path | None, device: str, threads: int | None
) -> None:
    """What is in the data of a RECIPE: labels, lengths, what will be cut, duplicates, leaks, and what is odd."""
    from mtl.encode.engine import usable
    from mtl.training.inspect import inspect as look
    from mtl.training.inspect import plot as draw
    from mtl.training.plots import check_picture

    if plot:
        check_picture(plot)
    report = look(recipe, near, most, usable(device), threads)
    settings(model=report.model, max_length=report.limit, near=near)
    if as_json:
        echo_json(report.as_dict())
    else:
        click.echo(tables(report))
    if plot:
        draw(report, plot)
        click.echo(f"picture  {plot}", err=True)


def tables(report: Report) -> str:
    """A table of rows and lengths for each task, one of its labels, and the notes."""
    parts = []
    for name, splits in report.splits.items():
        found = {split: each.as_dict() for split, each in splits.items()}
        columns = ["rows", "unlabelled", "wrong", "empty", "duplicates", "conflicting", "cut_texts"]
        header = [name, *columns, *(f"{key} tokens" for key in ("median", "p95", "most"))]
        parts.append(table([header, *(
            [split, *(each[key] for key in columns), *(each["tokens"][key] for key in ("median", "p95", "most"))]
            for split, each in found.items()
        )]))  # fmt: skip
        labels = list(dict.fromkeys(label for each in splits.values() for label in each.labels))
        if labels:
            rows = [[label, *(each.labels[label] for each in splits.values())] for label in labels]
            parts.append(table([["label", *splits], *rows]))
        numbers = [[split, *each["numbers"].values()] for split, each in found.items() if each["numbers"]]
        if numbers:
            parts.append(table([["number", "mean", "least", "most"], *numbers]))
    parts.append("\n".join(f"note: {note}" for note in report.notes) or "nothing odd was found")
    return "\n\n".join(parts)
