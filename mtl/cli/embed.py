"""mtl embed, mtl embed-corpus"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from mtl.cli.allocator import share_memory
from mtl.cli.options import (
    check_output,
    choose_rows,
    encoding_options,
    field_option,
    input_option,
    load_encoder,
    not_both,
    only_with,
    overwrite_option,
    quoting_option,
    resume_option,
    settings,
)
from mtl.errors import shown
from mtl.rows.outputs import open_output
from mtl.rows.read import Quoting, TextRow, column_names
from mtl.rows.vector_files import WITH_ROWS, WRITERS, OutputPrecision, Vectors

if TYPE_CHECKING:
    from mtl.encode.precision import Precision

WINDOW = 2048  # texts of an output that are finished and kept at once
SHOWN = 10  # texts up to which a table shows all cosines


def print_table(parts: Iterable[tuple[Sequence[TextRow], Vectors]]) -> None:
    """Each text with its vector's first values; for a few texts, all their cosines too."""
    from mtl.search import similarity

    rows, first = 0, None
    for texts, vectors in parts:
        if not rows:
            click.echo(f"{'text':<48} first of {vectors.shape[1]} values")
        for (text, _), vector in zip(texts, vectors, strict=True):
            click.echo(f"{shown(text, 46):<48} {' '.join(f'{value:8.4f}' for value in vector[:5])} ...")
        first = vectors if first is None else first
        rows += len(vectors)
    click.echo(f"shape ({rows}, {0 if first is None else first.shape[1]}) float32")
    if first is not None and 2 <= rows <= SHOWN:
        click.echo("\ncosine" + "".join(f"{i:8d}" for i in range(rows)))
        for i, row in enumerate(similarity(first, first)):
            click.echo(f"{i:6d}" + "".join(f"{value:8.4f}" for value in row))


@click.command()
@click.argument("texts", nargs=-1)
@input_option
@field_option
@quoting_option
@click.option("-o", "--output", type=click.Path(path_type=Path), help=f"Where to write: {', '.join(WRITERS)}.")
@click.option("--prompt-name", help="Which of the model's prompts to put before every text.")
@click.option(
    "--output-precision", type=click.Choice(get_args(OutputPrecision)), default="float32", show_default=True,
    help="Number format of the output; int8 and uint8 have 256 steps over the range of all vectors in each dimension, "
    "and write these ranges as OUTPUT.ranges.npy.",
)  # fmt: skip
@resume_option
@overwrite_option
@encoding_options
def embed(
    texts: tuple[str, ...],
    model: str,
    source: Path | None,
    field: str | None,
    quoting: Quoting,
    output: Path | None,
    output_precision: OutputPrecision,
    resume: bool,
    overwrite: bool,
    device: str,
    precision: Precision,
    int8_least_cosine: float,
    **options: Any,
) -> None:
    """Vectors of TEXTS, of a file's texts, or of the lines on standard input.

    Without --output, a table. An output appears under its name only when it is whole; one that was interrupted
    is kept as OUTPUT.partial, some 2,000 texts at a time, and --resume goes on with it; OUTPUT.made.json says what
    the output was made with, by which --resume knows it again. Of a row, .jsonl, .csv and .parquet keep all fields.
    """
    share_memory()
    only_with("--output", output, "resume", "overwrite", "output_precision")
    not_both("resume", "overwrite")
    whole = output is not None and output.suffix in WITH_ROWS
    rows = choose_rows(texts, source, field, quoting, whole)
    if output:
        check_output(output, source, tuple(WRITERS))
    from mtl.encode.precision import number_format

    encoder = load_encoder(model, device, precision, int8_least_cosine, options)
    if output is None:
        print_table(encoder.encode_rows(rows, itemgetter(0), window=WINDOW, **options))
        return
    made_with = {key: options[key] for key in ("normalize", "truncate_dim", "overflow")} | {
        "model": model,
        **number_format(encoder.precision, encoder.int8_least_cosine),
        "prompt": encoder.prompt_for(options["prompt"], options["prompt_name"]),
        "max_length": encoder.length_limit(options["max_length"]),
        **encoder.fingerprint,
    }
    dim = options["truncate_dim"] or encoder.dim
    names = column_names(source, quoting) if whole and source and str(source) != "-" else []
    with open_output(output, dim, output_precision, made_with, resume, overwrite, source, names) as target:
        for part in encoder.encode_rows(target.remaining(rows), itemgetter(0), window=WINDOW, **options):
            target.write(*part)
        target.finish()
        said = f"nothing is left to do for {output}" if target.complete else f"wrote {output}"
        click.echo(f"{said}: {target.shape} {target.dtype}", err=True)


@click.command("embed-corpus")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("-o", "--output", required=True, help="A folder, by path or URL; what is there already stays.")
@click.option("--field", "--column", default="text", show_default=True, help="Which column holds the text.")
@click.option("--id-column", default="id", show_default=True, help="Which column holds the ids.")
@click.option("--number-rows", is_flag=True, help="No column holds ids: number each file's rows from 1.")
@quoting_option
@click.option("--keep", multiple=True, metavar="COLUMN", help="A column to keep; may be given several times.")
@click.option(
    "--output-precision", type=click.Choice(["float32", "float16", "scaled-int8"]),
    default="float32", show_default=True,
    help="Number format of the vectors; scaled-int8 has a column embedding_scale, with which to multiply each.",
)  # fmt: skip
@click.option("--vectors", type=click.Choice(["float32", "float16", "int8"]), hidden=True)  # its older name
@click.option("--address", help="A Ray cluster: auto, host:port, or local for one of this machine.  [default: no Ray]")
@click.option("--actors", type=click.IntRange(1), help="Encoders on the cluster.  [default: as many as have room]")
@encoding_options
def embed_corpus(
    inputs: tuple[str, ...], id_column: str, number_rows: bool, vectors: str | None, **options: Any
) -> None:
    """Embed the texts of INPUT files and folders, by path or URL, into a folder of Parquet files, one for each.

    Inputs are .parquet, .jsonl, .ndjson, .csv and .tsv; all but the first may end in .gz, .bz2 or .zst behind that. An
    output appears when it is whole. After an interruption, the same command does what is missing.
    """
    share_memory()
    not_both("id_column", "number_rows")
    not_both("output_precision", "vectors")
    from mtl.rows.corpus import embed_corpus as embed

    options |= {"vectors": vectors} if vectors else {}
    settings(model=options["model"], precision=options["precision"],
             output_precision=vectors or options["output_precision"],
             overflow=options["overflow"], address=options["address"] or "none")  # fmt: skip
    click.echo(embed(inputs, id_column=None if number_rows else id_column, **options), err=True)
