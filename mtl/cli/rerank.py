"""mtl rerank"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
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
from mtl.rows.read import Quoting, TextRow
from mtl.tasks.answer_files import write_answers

if TYPE_CHECKING:
    from mtl.encode.precision import Precision


def unranked(row: TextRow) -> TextRow:
    """The row itself, if there is room in it for its rank.

    Raises:
        InputError: it has a field of that name.
    """
    if taken := {"rank", "score"} & row[1].keys():
        raise InputError(f"a row has a field {min(taken)!r} already; rename it: {shown(row[0])}")
    return row


def pair(query: str, row: TextRow) -> tuple[str, str]:
    return query, row[0]


def the_best(scored: Iterable[tuple[TextRow, Any]], top_k: int | None) -> list[tuple[str, dict[str, Any], Any]]:
    """The rows of the best scores, the best first, of equal ones the first: each as its text, its fields and its score.

    With ``top_k`` no more than twice so many, and a thousand, are held at once.
    """
    best: list[tuple[str, Any, Any]] = []

    def order() -> None:
        best.sort(key=lambda row: -row[2])  # which keeps equals as they came
        best[:] = [(text, dict(fields), score) for text, fields, score in best[:top_k]]  # not its batch

    for (text, fields), score in scored:
        best.append((text, fields, score))
        if top_k and len(best) >= 2 * top_k + 1024:
            order()
    order()
    return best


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
    from mtl.kernels.cores import default_threads
    from mtl.tasks.multitask import MultiTaskModel

    loaded = MultiTaskModel.from_pretrained(model, None, device, precision, int8_least_cosine)
    name = loaded.ranker(task)
    settings(model=model, task=name, device=device, precision=said_precision(loaded.embedder),
             threads=threads or default_threads())  # fmt: skip
    scored = loaded.predict_rows(map(unranked, rows), partial(pair, decoded(query)), threads, pairs=True)
    best = the_best(((row, s) for part, answers in scored for row, s in zip(part, answers.scores[name][:, 0],
                     strict=True)), top_k)  # fmt: skip
    found: list[dict[str, Any]] = [
        {**fields, "rank": rank, "score": float(str(score))} for rank, (_, fields, score) in enumerate(best, 1)
    ]
    if output:
        count = write_answers(output, found, overwrite)
        click.echo(f"wrote {output}: {counted(count, 'row')}", err=True)
    elif as_json:
        for row in found:
            echo_json(row)
    else:
        lines = [[row["rank"], row["score"], shown(text, 80)] for row, (text, *_) in zip(found, best, strict=True)]
        click.echo(table([["rank", "score", "text"], *lines]))
