"""mtl check"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click

from mtl.cli.options import DEFAULT_MODEL, int8_option, model_option, only_with, precision_option
from mtl.display import table
from mtl.errors import InputError

if TYPE_CHECKING:
    from mtl.encode.precision import Precision


@click.command()
@model_option
@precision_option
@int8_option
@click.option("--training", is_flag=True, help="Try training: one window's gradients on 1, 2, 3 and 4 threads.")
@click.option("--all", "every", is_flag=True, help="Under every instruction set that this machine can run.")
def check(model: str, precision: Precision, int8_least_cosine: float, training: bool, every: bool) -> None:
    """Try out whether a text gets the same bits on this machine, whatever stands beside it.

    Kernel by kernel, then every program that the model can be asked for, on whole texts, then encode and predict. --all
    does so for fp32 and int8, for the model and a DistilBERT's shape, under each instruction set, and prints one table;
    where bf16 is native, it is shown too, though not promised. --training tries the other promise, that no number of
    threads changes a bit of training, on a window of all kinds of task.
    """
    only_with("a check without --all, which tries them one by one", not every, "precision")
    only_with("a check without --training, which has a model of its own", not training, "model", "int8_least_cosine")
    if every:
        check_every_level(model, int8_least_cosine, training)
    elif training:
        from mtl.training.check import trials as of_training

        show(of_training(precision), "training, the same bits")
    else:
        show(of_encoder(model, precision, int8_least_cosine), "the same text, the same bits")


def of_encoder(model: str, precision: Precision, int8_least_cosine: float) -> Iterator[tuple[str, str]]:
    from mtl.check import DISTILBERT_SHAPE, distilbert_shape, trials
    from mtl.encode.sentence_encoder import SentenceEncoder

    name = DEFAULT_MODEL if model == DISTILBERT_SHAPE else model
    encoder = SentenceEncoder.from_pretrained(name, precision=precision, int8_least_cosine=int8_least_cosine)
    return trials(distilbert_shape(encoder) if model == DISTILBERT_SHAPE else encoder)


def show(trials: Iterable[tuple[str, str]], promise: str) -> None:
    """A line for each way that was tried, and what differed in it."""
    wrong = tried = 0
    for what, difference in trials:
        click.echo(f"differ  {what}: {difference}" if difference else f"same    {what}")
        wrong, tried = wrong + bool(difference), tried + 1
    if wrong:
        raise InputError(f"{wrong} of {tried} ways gave other bits; please report them with this machine's processor")
    click.echo(f"{promise}, in {tried} of {tried} ways")


def check_every_level(model: str, int8_least_cosine: float, training: bool) -> None:
    """A line on stderr for each check that has run, and one table at the end."""
    from mtl.check import every_level

    rows: list[list[object]] = [["instruction set", "model", "precision", "ways", "differ", "first that differs"]]
    for level, name, precision, ways, differ in every_level(model, int8_least_cosine, training):
        rows.append([level, name, precision, ways, len(differ), differ[0] if differ else ""])
        click.echo(f"{level}, {name}, {precision}: {len(differ)} of {ways} ways differ", err=True)
    click.echo(table(rows))
    promised = [row for row in rows[1:] if row[2] != "bf16"]
    wrong = sum(bool(row[4]) for row in promised)
    if wrong:
        raise InputError(f"other bits in {wrong} of {len(promised)} checks; please report this machine's processor")
