"""mtl mine"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtl.cli.options import (
    check_output,
    computing_options,
    model_option,
    not_both,
    overwrite_option,
    resume_option,
    said_precision,
    settings,
)

if TYPE_CHECKING:
    from mtl.encode.precision import Precision


@click.command()
@click.argument("pairs", type=click.Path(path_type=Path))
@click.option("--corpus", required=True, type=click.Path(path_type=Path), help="A file of texts to find negatives in.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Where to write: .jsonl.")
@model_option
@click.option("--guide", help="A model that knows better: what it finds as near as the positive is left out.")
@click.option("-n", "--negatives", type=click.IntRange(1), default=5, show_default=True, help="Negatives of a pair.")
@click.option("--skip-top", type=click.IntRange(0), default=0, show_default=True, help="Leave out the nearest so many.")
@click.option(
    "--margin", type=click.FloatRange(0),
    help="By how much less similar to the query than the positive.  [default: it may be more similar]",
)  # fmt: skip
@click.option("--fields", help="The fields of a pair: QUERY,POSITIVE.  [default: the file's own two]")
@click.option("--field", default="text", show_default=True, help="Which field of the corpus holds the text.")
@resume_option
@overwrite_option
@computing_options
def mine(
    pairs: Path, corpus: Path, output: Path, model: str, guide: str | None, negatives: int, skip_top: int,
    margin: float | None, fields: str | None, field: str, resume: bool, overwrite: bool, device: str,
    precision: Precision, int8_least_cosine: float, threads: int | None,
) -> None:  # fmt: skip
    """Find hard negatives of PAIRS, a query and what answers it, by exact search in a corpus: a row for each.

    A row has the pair's two texts and "negative": a contrastive task with these as its text_field trains on it. A
    query's own positives, and what equals them, are never taken.
    """
    not_both("resume", "overwrite")
    check_output(output, pairs, (".jsonl",))
    check_output(output, corpus, (".jsonl",))
    from mtl.encode.sentence_encoder import SentenceEncoder
    from mtl.index.mine import mine as run

    loaded = [SentenceEncoder.from_pretrained(name, None, device, precision, int8_least_cosine)
              for name in (model, guide) if name]  # fmt: skip
    settings(model=model, guide=guide or "none", negatives=negatives, skip_top=skip_top, margin=margin,
             measure=loaded[0].similarity_fn_name, device=device, precision=said_precision(loaded[0]))  # fmt: skip
    found = run(
        pairs, corpus, output, loaded[0], guide=loaded[1] if guide else None, negatives=negatives, skip_top=skip_top,
        margin=margin, fields=fields.split(",") if fields else (), field=field, resume=resume, overwrite=overwrite,
        threads=threads,
    )  # fmt: skip
    click.echo(str(found), err=True)
