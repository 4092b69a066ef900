"""mtl evaluate"""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option(
    "-m", "--model", required=True, help="A trained run or model folder; for --sts and --retrieval any model."
)
@click.option("-r", "--recipe", help="The recipe that names the data.")
@click.option("--sts", type=click.Path(path_type=Path), help="Instead of a recipe: a file of two texts and a score.")
@click.option(
    "--retrieval", type=click.Path(path_type=Path),
    help="Instead of a recipe: a folder with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv (BEIR).",
)  # fmt: skip
@click.option("--fields", help="The fields of the --sts file: A,B,SCORE.  [default: its own three]")
@click.option("--split", type=click.Choice(["train", "dev", "test"]), default="test", show_default=True)
@click.option(
    "--plot", type=click.Path(path_type=Path),
    help="Draw scores and cosines, and a map of the vectors, to this .png, .svg or .pdf file.",
)  # fmt: skip
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: all cores]")
def evaluate(
    model: str,
    recipe: str | None,
    sts: Path | None,
    retrieval: Path | None,
    fields: str | None,
    split: str,
    plot: Path | None,
    device: str,
    threads: int | None,
) -> None:
    """A trained model's metrics and confusion matrices on a recipe's data; any model's on pairs or a search."""
    from mtl.training.evaluate import show_evaluation, show_retrieval, show_sts

    if [recipe, sts, retrieval].count(None) != 2 or (fields and not sts):
        raise click.UsageError("expected one of --recipe, --sts and --retrieval; --fields goes with --sts")
    if plot and retrieval:
        raise click.UsageError("--plot goes with --recipe and --sts; a search has no picture")
    if retrieval:
        show_retrieval(model, retrieval, split, device, threads)
    elif sts:
        show_sts(model, sts, fields.split(",") if fields else [], device, threads, plot)
    else:
        show_evaluation(model, str(recipe), split, device, threads, plot)
