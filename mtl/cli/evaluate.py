"""mtl evaluate"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import click

from mtl.cli.options import device_option, only_with, threads_option
from mtl.errors import InputError


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
@click.option("--rerank", help="A cross-encoder that orders the first results of each query of --retrieval anew.")
@click.option("--depth", type=click.IntRange(1, 100), default=100, show_default=True, help="How many of them.")
@click.option("--fields", help="The fields of the --sts file: A,B,SCORE.  [default: its own three]")
@click.option(
    "--bootstrap", type=click.IntRange(0), default=1000, show_default=True,
    help="Draw the recipe's rows so often for an interval of each metric; 0: none.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="What --bootstrap draws by.")
@click.option("--against", help="Another model with the recipe's tasks: the differences, on the same rows and draws.")
@click.option("--split", type=click.Choice(["train", "dev", "test"]), default="test", show_default=True)
@click.option(
    "--plot", type=click.Path(path_type=Path),
    help="Draw scores and cosines, and a map of the vectors, to this .png, .svg or .pdf file.",
)  # fmt: skip
@device_option
@threads_option
def evaluate(
    model: str,
    recipe: str | None,
    sts: Path | None,
    retrieval: Path | None,
    rerank: str | None,
    depth: int,
    fields: str | None,
    bootstrap: int,
    seed: int,
    against: str | None,
    split: str,
    plot: Path | None,
    device: str,
    threads: int | None,
) -> None:
    """A trained model's metrics and confusion matrices on a recipe's data; any model's on pairs or a search.

    On a recipe's data metrics have intervals, by which two runs can be told apart: --against is made for that.
    """
    if [recipe, sts, retrieval].count(None) != 2 or (fields and not sts):
        raise click.UsageError("expected one of --recipe, --sts and --retrieval; --fields goes with --sts")
    if against and not (recipe and bootstrap):
        raise click.UsageError("--against goes with --recipe, and --bootstrap above 0")
    only_with("--recipe", recipe, "bootstrap", "seed")
    only_with("--recipe and --retrieval", not sts, "split")
    only_with("--retrieval", retrieval, "rerank")
    only_with("--rerank", rerank, "depth")
    if plot and retrieval:
        raise click.UsageError("--plot goes with --recipe and --sts; a search has no picture")
    if retrieval:
        show_retrieval(model, retrieval, split, device, threads, rerank, depth)
    elif sts:
        show_sts(model, sts, fields.split(",") if fields else [], device, threads, plot)
    else:
        show_evaluation(model, str(recipe), split, device, threads, plot, bootstrap, seed, against)


def show_retrieval(
    model: str, folder: Path, split: str, device: str, threads: int | None, rerank: str | None, depth: int
) -> None:
    """How well a model's vectors find what is relevant, and how well a cross-encoder orders it then."""
    from mtl.cli.terminal import metrics_table
    from mtl.encode.sentence_encoder import SentenceEncoder
    from mtl.tasks.multitask import MultiTaskModel
    from mtl.training.embeddings import reranked, searched

    reranker = MultiTaskModel.from_pretrained(rerank, device=device) if rerank else None
    if reranker:
        reranker.ranker()  # what is wrong with it is said before the search
    name = folder.resolve().name
    found = searched(SentenceEncoder.from_pretrained(model, device=device), folder, split, threads=threads)
    metrics = {name: found.metrics}
    if reranker:
        metrics[f"{name}, reranked"] = reranked(found, reranker, depth, threads).metrics
    click.echo(metrics_table(metrics))


def show_sts(
    model: str, path: Path, fields: Sequence[str], device: str, threads: int | None, picture: Path | None
) -> None:
    """How the cosines of a model's vectors follow the scores of pairs of texts; it may be drawn."""
    from mtl.cli.terminal import metrics_table, say
    from mtl.encode.sentence_encoder import SentenceEncoder
    from mtl.training.embeddings import sts

    found, notes = sts(SentenceEncoder.from_pretrained(model, device=device), path, fields, threads, picture)
    for note in notes:
        say(note)
    click.echo(metrics_table({path.stem: found}))
    if picture:
        click.echo(f"picture  {picture}")


def show_evaluation(
    model: str,
    recipe: str,
    split: str,
    device: str,
    threads: int | None,
    picture: Path | None,
    samples: int,
    seed: int,
    against: str | None,
) -> None:
    """A model's metrics, their intervals and confusion matrices on one split of a recipe's data; its vectors may be
    drawn."""
    from mtl.cli.terminal import intervals_table, say, show_metrics
    from mtl.tasks.kinds import KINDS
    from mtl.tasks.multitask import MultiTaskModel
    from mtl.training.evaluate import as_held_out, bootstrap, split_of
    from mtl.training.metrics import all_logits, confusions, measure
    from mtl.training.plots import check_picture, plot_vectors
    from mtl.training.recipe import as_recipe

    if picture:
        check_picture(picture)
    loaded = MultiTaskModel.from_pretrained(model, device=device)
    read, notes = as_held_out(as_recipe(recipe)[0], model, split)
    if against and (differs := as_held_out(read, against, split)[1]):
        expected = f"by which {model} is measured; expected runs of one seed, or {split} = a file"
        raise InputError(f"{differs[0]}, {expected}")
    data, more = split_of(loaded, read, split)
    for note in notes + more:
        say(note)
    if picture and not any(loaded.tasks[name].handler.has_picture for name in data):
        kinds = ", ".join(kind.name for kind in KINDS.values() if kind.has_picture)
        raise InputError(f"--plot has nothing to draw: no task of the recipe is {kinds}")
    started = time.perf_counter()
    logits = all_logits(loaded, data, threads)
    labels = {name: task.labels for name, task in loaded.tasks.items()}
    metrics = measure(loaded.tasks, logits, data, closely=True)
    show_metrics(split, metrics, confusions(loaded.tasks, logits, data), labels)
    if samples and (found := bootstrap([loaded], [logits], [data], samples, seed)):
        title = f"95 % intervals: percentiles of {samples:,} bootstrap samples of the rows, seed {seed}"
        click.echo(f"\n{title}\n{intervals_table(found, 'value')}")
    if against:
        other = MultiTaskModel.from_pretrained(against, device=device)
        theirs, _ = split_of(other, read, split)
        both = [logits, all_logits(other, theirs, threads)]
        found = bootstrap([loaded, other], both, [data, theirs], samples, seed)
        click.echo(f"\n{model} less {against}, on the same samples\n{intervals_table(found, 'difference')}")
    texts, seconds = sum(map(len, data.values())), time.perf_counter() - started
    click.echo(f"\n{texts} texts in {seconds:.1f} s", err=True)
    if picture:
        plot_vectors(loaded, data, picture, threads)
        click.echo(f"vectors  {picture}")
