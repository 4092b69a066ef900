"""mtl index, mtl search"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mtl.cli.options import (
    choose_rows,
    computing_options,
    decoded,
    echo_json,
    model_option,
    not_both,
    only_with,
    said_precision,
    settings,
    written,
)
from mtl.display import counted
from mtl.errors import InputError, printable, shown
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
@computing_options
def index(
    source: Path | None, output: Path, model: str, field: str, id_field: str | None, form: Any, append: bool,
    replace: bool, resume: bool, overwrite: bool, deleted: tuple[str, ...], device: str, precision: Any,
    int8_least_cosine: float, threads: int | None,
) -> None:  # fmt: skip
    """Make an index of the rows of FILE, add them to one, or delete rows from it by id.

    A change is there as a whole or not at all. What an interrupted one computed is kept, and --resume goes on.
    """
    from mtl.encode.sentence_encoder import SentenceEncoder
    from mtl.index.index import Index, is_blank, is_index

    if str(source) == "-":
        raise click.UsageError("- is standard input; expected a FILE of rows to add")
    if (source is None) is (not deleted):
        raise click.UsageError("expected a FILE of rows to add, or --delete ID")
    only_with("a FILE of rows to add", source, "model", "field", "id_field", "form", "append", "replace", "resume",
              "overwrite", "device", "precision", "int8_least_cosine", "threads")  # fmt: skip
    not_both("resume", "overwrite")
    if deleted:
        click.echo(f"deleted {counted(Index.open(output).delete(map(decoded, deleted)), 'row')}", err=True)
        return
    there = is_index(output) and (append or not is_blank(output))
    if there and not (append or resume):
        raise InputError(f"{output} is an index already; --append adds to it, --resume goes on with an interruption")
    if append and not there:
        raise InputError(f"{output} is no index; without --append, one is made")
    opened = Index.open(output) if there else None
    if opened:
        own = {**opened.state.settings, "form": opened.state.form}
        known = {} if precision == "auto" else {"precision": precision}
        check_own(output, own, field=field, id_field=id_field, form=form, int8_least_cosine=int8_least_cosine, **known)
        model = model if written("model") else own["model"]  # where it is now; whether it is the same is checked
        field, form, precision = own["field"], own["form"], own["precision"]
        int8_least_cosine = own.get("int8_least_cosine", int8_least_cosine)
    if model is None:
        raise InputError(f"{output} was made with a model that has no name; expected --model, which says where it is")
    assert source is not None
    rows = choose_rows((), source, field)
    encoder = SentenceEncoder.from_pretrained(model, None, device, precision, int8_least_cosine)
    settings(model=model, form=form, device=device, precision=said_precision(encoder), threads=threads or "all")
    if opened:
        target = Index.open(output, encoder)
    else:
        target = Index.create(output, encoder, form, field=field, id_field=id_field, model_name=model)
    added = target.add(
        (fields for _, fields in rows), replace=replace, resume=resume, overwrite=overwrite, threads=threads
    )
    click.echo(f"added {counted(added, 'row')} to {output}, which has {len(target):,}", err=True)


def check_own(output: Path, own: Mapping[str, Any], **options: object) -> None:
    """That an index was made with the options that are given.

    Raises:
        InputError: it was made with something else.
    """
    for name, value in options.items():
        if (found := written(name)) and name in own and own[name] != value:
            raise InputError(f"{found[0]} is {value}; {output} was made with {own[name]}, which stays")


@click.command()
@click.argument("folder", metavar="INDEX")
@click.argument("queries", nargs=-1, required=True)
@click.option("-k", "results", type=click.IntRange(1), default=5, show_default=True, help="Results of a query.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each result.")
@click.option("-m", "--model", help="Where the index's model is now.  [default: as when the index was made]")
@click.option("--address", help="A Ray cluster that searches what embed-corpus wrote: auto, local, or host:port.")
def search(
    folder: str, queries: tuple[str, ...], results: int, as_json: bool, model: str | None, address: str | None
) -> None:
    """The rows of INDEX that are the most similar to each of QUERIES, with their scores.

    INDEX may also be a folder of files that embed-corpus wrote, or its URL: they are searched one by one.
    """
    from mtl.index.index import Index, is_index

    texts = [decoded(query) for query in queries]
    field: str | None = None
    if address or "://" in folder or (not is_index(Path(folder)) and (Path(folder) / "manifest.json").is_file()):
        from mtl.index.shards import search_corpus

        found = search_corpus(folder, texts, results, model=model, address=address)
    else:
        opened = Index.open(folder)
        if model:
            opened = Index.open(folder, opened.load(model))
        found, field = opened.search(texts, results), opened.state.settings["field"]
    for query, hits in zip(texts, found, strict=True):
        if as_json:
            for hit in hits:
                echo_json({"query": query, **dataclasses.asdict(hit)})
            continue
        click.echo(shown(query, 100))
        for hit in hits:
            said = hit.row[field] if field else json_line(hit.row)
            click.echo(f"  {hit.score:7.4f}  {printable(str(hit.id)):<12} {shown(said, 80)}")
