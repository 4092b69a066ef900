"""mtl check"""

from __future__ import annotations

import click

from mtl.cli.options import DEFAULT_MODEL, precision_option
from mtl.display import table
from mtl.errors import InputError


@click.command()
@click.option("-m", "--model", default=DEFAULT_MODEL, show_default=True, help="Name, folder, or org/name[@revision].")
@precision_option
@click.option("--all", "every", is_flag=True, help="Under every instruction set that this machine can play.")
def check(model: str, precision: str, every: bool) -> None:
    """Try out whether a text gets the same bits on this machine, whatever stands beside it.

    Kernel by kernel, then every program that the model can be asked for, on whole texts, then encode and predict. --all
    does so for fp32 and int8, for the model and a DistilBERT's shape, under each instruction set, and prints one table;
    where bf16 is native, it is shown too, though not promised.
    """
    from mtl.check import DISTILBERT_SHAPE, distilbert_shape, trials
    from mtl.encode.sentence_encoder import SentenceEncoder

    if every:
        check_every_level(model)
        return
    name = DEFAULT_MODEL if model == DISTILBERT_SHAPE else model
    encoder = SentenceEncoder.from_pretrained(name, precision=precision)  # type: ignore[arg-type]
    if model == DISTILBERT_SHAPE:
        encoder = distilbert_shape(encoder)
    wrong = tried = 0
    for what, difference in trials(encoder):
        click.echo(f"differ  {what}: {difference}" if difference else f"same    {what}")
        wrong, tried = wrong + bool(difference), tried + 1
    if wrong:
        raise InputError(f"{wrong} of {tried} ways gave other bits; please report them with this machine's processor")
    click.echo(f"the same text, the same bits, in {tried} of {tried} ways")


def check_every_level(model: str) -> None:
    """A line on stderr for each check that has run, and one table at the end."""
    from mtl.check import every_level

    rows: list[list[object]] = [["instruction set", "model", "precision", "ways", "differ", "first that differs"]]
    for level, name, precision, ways, differ in every_level(model):
        rows.append([level, name, precision, ways, len(differ), differ[0] if differ else ""])
        click.echo(f"{level}, {name}, {precision}: {len(differ)} of {ways} ways differ", err=True)
    click.echo(table(rows))
    promised = [row for row in rows[1:] if row[2] != "bf16"]
    wrong = sum(bool(row[4]) for row in promised)
    if wrong:
        raise InputError(f"other bits in {wrong} of {len(promised)} checks; please report this machine's processor")
