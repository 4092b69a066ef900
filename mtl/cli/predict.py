"""mtl predict"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mtl.cli.options import (
    check_output,
    choose_pairs,
    choose_rows,
    computing_options,
    echo_json,
    field_option,
    input_option,
    not_both,
    only_with,
    overwrite_option,
    quoting_option,
    resume_option,
    said_precision,
    settings,
)
from mtl.display import counted, table
from mtl.errors import escaped, shown
from mtl.rows.read import Quoting, column_names
from mtl.tasks.answer_files import SUFFIXES, resume_answers, write_answers
from mtl.tasks.predictions import answers, fingerprint, said

if TYPE_CHECKING:
    from mtl.encode.precision import Precision


@click.command()
@click.argument("texts", nargs=-1)
@click.option("-m", "--model", required=True, help="A trained run or model folder, or a classifier's name.")
@input_option
@field_option
@quoting_option
@click.option("-o", "--output", type=click.Path(path_type=Path), help=f"Where to write: {', '.join(SUFFIXES)}.")
@resume_option
@overwrite_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object per text, with embedding and logits.")
@computing_options
def predict(
    texts: tuple[str, ...],
    model: str,
    source: Path | None,
    field: str | None,
    quoting: Quoting,
    output: Path | None,
    resume: bool,
    overwrite: bool,
    as_json: bool,
    device: str,
    precision: Precision,
    int8_least_cosine: float,
    threads: int | None,
) -> None:
    """Every task's label and probabilities of TEXTS, of a file's texts, or of the lines on standard input.

    A model that reads pairs takes TEXTS two by two, or two fields of a file, as --field premise,hypothesis. Without
    --output, a table for each text. Of a row, all fields are kept; .jsonl has embeddings and logits too.
    """
    only_with("--output", output, "resume", "overwrite")
    not_both("resume", "overwrite")
    not_both("output", "as_json")
    names = tuple(field.split(",")) if field and "," in field else ()
    if len(names) not in (0, 2):
        raise click.UsageError(f"--field names {len(names)} fields; expected one, or two of a pair")
    rows: Iterator[tuple[Any, Any]] | None = None if names else choose_rows(texts, source, field, quoting)
    if output:
        check_output(output, source, SUFFIXES)
    from mtl.kernels.cores import default_threads
    from mtl.tasks.multitask import MultiTaskModel

    loaded = MultiTaskModel.from_pretrained(model, None, device, precision, int8_least_cosine)
    settings(model=model, device=device, precision=said_precision(loaded.embedder),
             threads=threads or default_threads())  # fmt: skip
    pairs = rows is None or loaded.only_pairs
    if rows is None or pairs:
        rows = choose_pairs(texts, source, names or loaded.pair_fields, quoting)  # type: ignore[arg-type]

    def answered(rows: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, dict[str, Any]]]:
        return answers(loaded, rows, threads, pairs)

    def blank() -> dict[str, Any]:
        header = column_names(source, quoting) if source and str(source) != "-" else ["text"]
        return next(answered([(("", "") if pairs else "", dict.fromkeys(header))]))[1]

    if output and resume:
        about = {"model": fingerprint(loaded), "precision": said_precision(loaded.embedder), "field": field or "text"}
        count, before = resume_answers(output, rows, lambda left: (each for _, each in answered(left)), about,
                                       blank)  # fmt: skip
        done = "nothing is left to do for" if before else "wrote"
        click.echo(f"{done} {output}: {counted(count, 'row')}", err=True)
        return
    found = answered(rows)
    if output:
        count = write_answers(output, (answer for _, answer in found), overwrite, blank)
        click.echo(f"wrote {output}: {counted(count, 'row')}", err=True)
        return
    for text, answer in found:
        if as_json:
            echo_json(answer)
        else:
            click.echo(answer_table(text, answer))


def answer_table(text: Any, answer: dict[str, Any]) -> str:
    """What the tasks say of a text or a pair, as a table."""
    values = answer.get("embedding", ())
    spans = {name: task["spans"] for name, task in answer["tasks"].items() if "spans" in task}
    answer = {**answer, "tasks": {name: task for name, task in answer["tasks"].items() if name not in spans}}
    rows: list[list[object]] = [["task", "says", "label", "probability", "logit"]]
    for name, task in answer["tasks"].items():
        says = "" if isinstance(task["label"], float) else said(task["label"]) or "(none)"
        for (label, score), logit in zip(task["scores"].items(), task["logits"], strict=True):
            rows.append([name, says, label, score, logit])
            name, says = "", ""
    first = f"  embedding ({len(values)},)  {' '.join(f'{value:.4f}' for value in values[:5])} ..."
    lines = table(rows).splitlines() if answer["tasks"] else []  # a model of pairs alone has no heads
    for name, found in spans.items():
        keys = ("text", "label", "score", "start", "end")
        lines += [
            marked(text, found),
            *table([[name, *keys], *(["", *map(span.get, keys)] for span in found)]).splitlines(),
        ]
    head = [shown(text, 100), first] if "embedding" in answer else [shown(part, 100) for part in text]
    return "\n".join([*head, *(f"  {line}" for line in lines), ""])


def marked(text: str, spans: Sequence[Mapping[str, Any]]) -> str:
    """A text in one line, its spans in brackets, and in a colour where there is a terminal."""
    parts, at = [], 0
    for span in spans:
        label = click.style(in_line(f"[{span['text']} {span['label']}]"), bold=True, fg="cyan")
        parts += [in_line(text[at : span["start"]]), label]
        at = span["end"]
    return " ".join("".join([*parts, in_line(text[at:])]).split())


def in_line(text: str) -> str:
    return escaped(re.sub(r"\s", " ", text))
