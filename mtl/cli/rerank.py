"""mtl rerank"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mtl.cli.options import (
    check_output,
    choose_rows,
    computing_options,
    decoded,
    echo_json,
    field_option,
    input_option,
    not_both,
    only_with,
    overwrite_option,
    quoting_option,
    said_precision,
    settings,
)
from mtl.display import counted, table
from mtl.errors import InputError, shown
from mtl.rows.read import Quoting
from mtl.tasks.answer_files import write_answers

if TYPE_CHECKING:
    from mtl.encode.precision import Precision


@click.command()
@click.argument("texts", nargs=-1)
@click.option("-m", "--model", required=True, help="A cross-encoder: name, folder, or org/name[@revision].")
@click.option("-q", "--query", required=True, help="What the texts are ranked for.")
@input_option
@field_option
@quoting_option
@click.option("-k", "--top-k", type=click.IntRange(1), help="No more than so many.  [default: all]")
@click.option("--task", help="Which of several tasks that give a pair one score.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where to write: .jsonl.")
@overwrite_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object per text.")
@computing_options
def rerank(
    texts: tuple[str, ...],
    model: str,
    query: str,
    source: Path | None,
    field: str | None,
    quoting: Quoting,
    top_k: int | None,
    task: str | None,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
    device: str,
    precision: Precision,
    int8_least_cosine: float,
    threads: int | None,
) -> None:
    """TEXTS, a file's texts, or the lines on standard input, by how well each goes with a query: the best first.

    Each text is read together with the query. Of a row all fields are kept, with its "rank" and "score" behind them.
    """
    only_with("--output", output, "overwrite")
    not_both("output", "as_json")
    rows = choose_rows(texts, source, field, quoting)
    if output:
        check_output(output, source, (".jsonl",))
    import numpy as np

    from mtl.kernels.cores import default_threads
    from mtl.tasks.multitask import MultiTaskModel

    loaded = MultiTaskModel.from_pretrained(model, None, device, precision, int8_least_cosine)
    name = loaded.ranker(task)
    settings(model=model, task=name, device=device, precision=said_precision(loaded.embedder),
             threads=threads or default_threads())  # fmt: skip
    listed = list(rows)
    for text, fields in listed:
        if taken := {"rank", "score"} & fields.keys():
            raise InputError(f"a row has a field {min(taken)!r} already; rename it: {shown(text)}")
    ranked = loaded.rank(decoded(query), [text for text, _ in listed], top_k, task=name, threads=threads)
    found: list[dict[str, Any]] = [
        {**listed[hit["corpus_id"]][1], "rank": rank, "score": float(str(np.float32(hit["score"])))}
        for rank, hit in enumerate(ranked, 1)
    ]
    if output:
        count = write_answers(output, found, overwrite)
        click.echo(f"wrote {output}: {counted(count, 'row')}", err=True)
    elif as_json:
        for row in found:
            echo_json(row)
    else:
        lines = [[row["rank"], row["score"], shown(listed[hit["corpus_id"]][0], 80)]
                 for row, hit in zip(found, ranked, strict=True)]  # fmt: skip
        click.echo(table([["rank", "score", "text"], *lines]))
