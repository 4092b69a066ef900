"""mtl index, mtl search"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from mtl.cli.options import (
    choose_rows,
    decoded,
    device_option,
    int8_option,
    model_option,
    precision_option,
    said_precision,
    settings,
    threads_option,
)
from mtl.display import counted
from mtl.errors import InputError, shown
from mtl.rows.vector_files import json_line


@click.command()
@click.argument("source", type=click.Path(path_type=Path), required=False, metavar="[FILE]")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The index, a folder.")
@model_option
@click.option("--field", default="text", show_default=True, help="Which field of a row holds the text.")
@click.option("--id-field", help="Which field holds the id.  [default: rows are numbered from 0]")
@click.option(
    "--form", type=click.Choice(["fp32", "int8", "binary"]), default="fp32", show_default=True,
    help="How vectors are kept. binary finds candidates by bits, and compares their vectors.",
)  # fmt: skip
@click.option("--append", is_flag=True, help="Add to an index that is there; it has its own model, fields and form.")
@click.option("--replace", is_flag=True, help="Rows whose id is there take the place of the older ones.")
@click.option("--resume", is_flag=True, help="Go on with an addition of the same rows that was interrupted.")
@click.option("--overwrite", is_flag=True, help="Throw away what an interrupted addition has computed.")
@click.option("--delete", "deleted", multiple=True, metavar="ID", help="An id to delete; may be given several times.")
@device_option
@precision_option
@int8_option
@threads_option
def index(
    source: Path | None, output: Path, model: str, field: str, id_field: str | None, form: Any, append: bool,
    replace: bool, resume: bool, overwrite: bool, deleted: tuple[str, ...], device: str, precision: Any,
    int8_least_cosine: float, threads: int | None,
) -> None:  # fmt: skip
    """Make an index of the rows of FILE, add them to one, or delete rows from it by id.

    A change is there as a whole or not at all. What an interrupted one computed is kept, and --resume goes on.
    """
    from mtl.encode.engine import usable
    from mtl.encode.sentence_encoder import SentenceEncoder
    from mtl.index.index import Index, is_index

    if (source is None) is (not deleted):
        raise click.UsageError("expected a FILE of rows to add, or --delete ID")
    if deleted:
        click.echo(f"deleted {counted(Index.open(output).delete(deleted), 'row')}", err=True)
        return
    there = is_index(output)
    if there and not (append or resume):
        raise InputError(f"{output} is an index already; --append adds to it, --resume goes on with an interruption")
    if append and not there:
        raise InputError(f"{output} is no index; without --append, one is made")
    opened = Index.open(output) if there else None
    made_with = opened.state.settings if opened else {"model": model, "field": field, "precision": precision}
    assert source is not None
    rows = choose_rows((), source, made_with["field"])
    encoder = SentenceEncoder.from_pretrained(
        made_with["model"], None, usable(device), made_with["precision"],
        made_with.get("int8_least_cosine", int8_least_cosine),
    )  # fmt: skip
    settings(model=made_with["model"], form=opened.state.form if opened else form, device=device,
             precision=said_precision(encoder), threads=threads or "all")  # fmt: skip
    if opened:
        target = Index.open(output, encoder)
    else:
        target = Index.create(output, encoder, form, field=field, id_field=id_field, model_name=model)
    added = target.add(
        (fields for _, fields in rows), replace=replace, resume=resume, overwrite=overwrite, threads=threads
    )
    click.echo(f"added {counted(added, 'row')} to {output}, which has {len(target):,}", err=True)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="INDEX")
@click.argument("queries", nargs=-1, required=True)
@click.option("-k", "results", type=click.IntRange(1), default=5, show_default=True, help="Results of a query.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each result.")
@click.option("-m", "--model", help="Where the index's model is now.  [default: as when the index was made]")
def search(folder: Path, queries: tuple[str, ...], results: int, as_json: bool, model: str | None) -> None:
    """The rows of INDEX that are the most similar to each of QUERIES, with their scores."""
    from mtl.index.index import Index

    opened = Index.open(folder)
    if model:
        opened = Index.open(folder, opened.load(model))
    texts = [decoded(query) for query in queries]
    for query, hits in zip(texts, opened.search(texts, results), strict=True):
        if as_json:
            for hit in hits:
                click.echo(json_line({"query": query, **dataclasses.asdict(hit)}))
            continue
        click.echo(shown(query, 100))
        for hit in hits:
            click.echo(f"  {hit.score:7.4f}  {hit.id!s:<12} {shown(hit.row[opened.state.settings['field']], 80)}")
