"""The command line: mtl embed, predict, train, evaluate, check, models."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product, tee
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from mtl.disk import reason
from mtl.display import counted, preview, table
from mtl.encode.files import INPUTS, TextRow, import_pyarrow, kind_of, read_rows, text_rows, texts_of
from mtl.encode.formats import WRITERS, OutputPrecision, Vectors, json_line
from mtl.encode.outputs import open_output, refuse_input_as_output
from mtl.encode.predictions import SUFFIXES as ANSWERS
from mtl.encode.predictions import answers, said, write_answers
from mtl.encode.tokenizer import Overflow
from mtl.errors import InputError, MtlError, one_line

if TYPE_CHECKING:
    from mtl.encode.precision import Precision
    from mtl.encode.sentence_encoder import SentenceEncoder

DEFAULT_MODEL = "all-MiniLM-L6-v2"
INPUT_HELP = f"A file of texts: {', '.join(INPUTS)}, or these with .gz behind; - is standard input."
PRECISIONS = ("fp32", "bf16", "fp16", "int8", "auto")
WINDOW = 2048  # texts of an output that are finished and kept at once
SHOWN = 10  # texts up to which a table shows all cosines


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mtl")
@click.option("--debug", is_flag=True, help="Show the traceback of an error that nobody foresaw.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """A sentence transformer and multi-task model in plain PyTorch."""
    context.ensure_object(dict)["debug"] = debug
    logging.basicConfig(format="%(message)s")


precision_option = click.option(
    "--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True,
    help="What to compute in; fp16 is for a GPU, int8 for a CPU, auto is bf16 where it is native, else fp32.",
)  # fmt: skip
ENCODING = [
    click.option(
        "-m", "--model", default=DEFAULT_MODEL, show_default=True, help="Name, folder, or org/name[@revision]."
    ),
    click.option("--normalize", is_flag=True, help="Scale vectors to length 1."),
    click.option("--truncate-dim", type=click.IntRange(1), help="Keep only the first dimensions."),
    click.option("--prompt", help="Put before every text, as it stands.  [default: the model's own]"),
    click.option(
        "--overflow", type=click.Choice(get_args(Overflow)), default="warn", show_default=True, help="Long texts."
    ),
    click.option("--max-length", type=click.IntRange(1), help="Tokens per text.  [default: the model's own]"),
    click.option("--batch-tokens", type=click.IntRange(1), help="Tokens computed at once."),
    click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: all cores]"),
    click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ..."),
    precision_option,
]


def encoding_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of how texts become vectors."""
    for option in reversed(ENCODING):
        command = option(command)
    return command


def settings(**values: object) -> None:
    """The effective settings, on stderr, before long work starts."""
    click.echo("  ".join(f"{name}={value}" for name, value in values.items()), err=True)


def decoded(argument: str) -> str:
    """A command line's argument as Unicode, whatever bytes it had."""
    return argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def choose_rows(texts: tuple[str, ...], source: Path | None, field: str | None) -> Iterator[TextRow]:
    """From the arguments, a file, or standard input, which is also called "-": exactly one of them."""
    if texts and source:
        raise click.UsageError("texts and --input are given; expected one of the two")
    from_file = source is not None and str(source) != "-"
    if field and not from_file:
        raise click.UsageError("--field goes with --input FILE")
    if texts:
        for path in {text for text in texts if kind_of(Path(text)) in INPUTS and is_file(text)}:
            click.echo(f"note: {path} is taken as a text; --input {path} reads the file", err=True)
        return ((text, {"text": text}) for text in map(decoded, texts))
    if source is not None and from_file:
        if kind_of(source) not in INPUTS:
            expected = f"expected one of {', '.join(INPUTS)}, or .gz behind it"
            raise click.UsageError(f"{source} ends in {source.suffix!r}; {expected}")
        if not source.is_file():
            raise InputError(f"{source} is no file")
        return texts_of(read_rows(source), str(source), field or "text")
    if sys.stdin is None or (source is None and sys.stdin.isatty()):
        raise click.UsageError('no texts; expected arguments ("..."), --input FILE, or lines on standard input')
    return texts_of(text_rows(sys.stdin.buffer, "standard input"), "standard input")


def is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # it is no name at all
        return False


def check_output(output: Path, source: Path | None, suffixes: Sequence[str]) -> None:
    """Whether a file may be written there, before anything long begins.

    Raises:
        UsageError: another ending than the formats that there are.
        InputError: it cannot be written there, or is the input itself.
    """
    if output.suffix not in suffixes:
        raise click.UsageError(f"{output} ends in {output.suffix!r}; expected one of {', '.join(suffixes)}")
    if output.is_dir():
        raise InputError(f"{output} is a folder; expected the name of a file")
    if not os.access(output.parent, os.W_OK):
        raise InputError(f"{output} cannot be written: {output.parent} is no folder that we may write to")
    if output.suffix == ".parquet":
        import_pyarrow(output)
    refuse_input_as_output(None if str(source) == "-" else source, output)


def load_encoder(model: str, device: str, precision: str, options: dict[str, Any]) -> SentenceEncoder:
    """The model, once all settings that are in effect were shown."""
    from mtl.encode.cores import default_threads
    from mtl.encode.engine import usable
    from mtl.encode.sentence_encoder import SentenceEncoder

    encoder = SentenceEncoder.from_pretrained(model, None, usable(device), precision)  # type: ignore[arg-type]
    settings(model=model, dim=encoder.dim, max_length=options["max_length"] or encoder.tokenizer.max_length,
             overflow=options["overflow"], device=device, precision=encoder.precision,
             threads=options["threads"] or default_threads())  # fmt: skip
    return encoder


def with_vectors(
    model: SentenceEncoder, rows: Iterable[TextRow], options: dict[str, Any]
) -> Iterator[tuple[list[TextRow], Vectors]]:
    """Texts beside their vectors, a window at a time."""
    to_encode, to_pair = tee(rows)  # holds no more than the windows that are under way
    for vectors in model.encode_stream((text for text, _ in to_encode), window=WINDOW, **options):
        yield [next(to_pair) for _ in range(len(vectors))], vectors


def print_table(parts: Iterable[tuple[Sequence[TextRow], Vectors]]) -> None:
    """Each text with its vector's first values; for a few texts, all their cosines too."""
    rows, first = 0, None
    for texts, vectors in parts:
        if not rows:
            click.echo(f"{'text':<48} first of {vectors.shape[1]} values")
        for (text, _), vector in zip(texts, vectors, strict=True):
            click.echo(f"{preview(text, 46):<48} {' '.join(f'{value:8.4f}' for value in vector[:5])} ...")
        first = vectors if first is None else first
        rows += len(vectors)
    click.echo(f"shape ({rows}, {0 if first is None else first.shape[1]}) float32")
    if first is not None and 2 <= rows <= SHOWN:
        units = first / (first**2).sum(axis=1, keepdims=True) ** 0.5
        click.echo("\ncosine" + "".join(f"{i:8d}" for i in range(rows)))
        for i, row in enumerate(units @ units.T):
            click.echo(f"{i:6d}" + "".join(f"{value:8.4f}" for value in row))


@cli.command()
@click.argument("texts", nargs=-1)
@click.option(
    "-i",
    "--input",
    "source",
    type=click.Path(path_type=Path),
    help=f"A file of texts: {', '.join(INPUTS)}, or .gz of these; - for lines on standard input.",
)
@click.option("--field", help="Which field of a row holds the text.  [default: text]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help=f"Where to write: {', '.join(WRITERS)}.")
@click.option("--prompt-name", help="Which of the model's prompts to put before every text.")
@click.option(
    "--output-precision", type=click.Choice(get_args(OutputPrecision)), default="float32", show_default=True,
    help="Number format of the output; int8 and uint8 have 256 steps over the range of all vectors in each dimension, "
    "and write these ranges as OUTPUT.ranges.npy.",
)  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on with what there is of the output: nothing, a part, or all of it.")
@click.option("--overwrite", is_flag=True, help="Replace an output, or a part of one, that is there already.")
@encoding_options
def embed(
    texts: tuple[str, ...],
    model: str,
    source: Path | None,
    field: str | None,
    output: Path | None,
    output_precision: OutputPrecision,
    resume: bool,
    overwrite: bool,
    device: str,
    precision: str,
    **options: Any,
) -> None:
    """Vectors of TEXTS, of a file's texts, or of the lines on standard input.

    Without --output, a table. An output appears under its name only when it is whole; one that was interrupted
    is kept as OUTPUT.partial, some 2,000 texts at a time, and --resume goes on with it; OUTPUT.made.json says what
    the output was made with, by which --resume knows it again. Of a row, .jsonl, .csv and .parquet keep all fields.
    """
    if output is None and (resume or overwrite or output_precision != "float32"):
        raise click.UsageError("--resume, --overwrite and --output-precision go with --output")
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite are given; expected one of the two")
    rows = choose_rows(texts, source, field)
    if output:
        check_output(output, source, tuple(WRITERS))
    encoder = load_encoder(model, device, precision, options)
    if output is None:
        print_table(with_vectors(encoder, rows, options))
        return
    made_with = {key: options[key] for key in ("normalize", "truncate_dim", "overflow")} | {
        "model": model,
        "precision": encoder.precision,
        "prompt": encoder.prompt_for(options["prompt"], options["prompt_name"]),
        "max_length": encoder.length_limit(options["max_length"]),
        **encoder.fingerprint,
    }
    dim = options["truncate_dim"] or encoder.dim
    with open_output(output, dim, output_precision, made_with, resume, overwrite) as target:
        for part in with_vectors(encoder, target.remaining(rows), options):
            target.write(*part)
        target.finish()
        said = f"nothing is left to do for {output}" if target.complete else f"wrote {output}"
        click.echo(f"{said}: {target.shape} {target.dtype}", err=True)


@cli.command("embed-corpus")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("-o", "--output", required=True, help="A folder, by path or URL; what is there already stays.")
@click.option("--column", default="text", show_default=True, help="Which column holds the text.")
@click.option("--id-column", default="id", show_default=True, help="Which column holds the ids.")
@click.option("--number-rows", is_flag=True, help="No column holds ids: number each file's rows from 1.")
@click.option("--keep", multiple=True, metavar="COLUMN", help="A column to keep; may be given several times.")
@click.option(
    "--vectors", type=click.Choice(["float32", "float16", "int8"]), default="float32", show_default=True,
    help="Their numbers; int8 has a column embedding_scale, with which to multiply each vector.",
)  # fmt: skip
@click.option("--address", help="A Ray cluster: auto, host:port, or local for one of this machine.  [default: no Ray]")
@click.option("--actors", type=click.IntRange(1), help="Encoders on the cluster.  [default: as many as have room]")
@encoding_options
def embed_corpus(inputs: tuple[str, ...], id_column: str, number_rows: bool, **options: Any) -> None:
    """Embed the texts of INPUT files and folders, by path or URL, into a folder of Parquet files, one for each.

    Inputs are .parquet, .jsonl, .csv and .tsv; all but the first may end in .gz behind that. An output appears when
    it is whole. After an interruption, the same command does what is missing.
    """
    from mtl.corpus.embed import embed_corpus as embed

    settings(model=options["model"], precision=options["precision"], vectors=options["vectors"],
             overflow=options["overflow"], address=options["address"] or "none")  # fmt: skip
    click.echo(embed(inputs, id_column=None if number_rows else id_column, **options), err=True)


@cli.command()
@click.argument("texts", nargs=-1)
@click.option("-m", "--model", required=True, help="A trained run or model folder, or a classifier's name.")
@click.option("-i", "--input", "source", type=click.Path(path_type=Path), help=INPUT_HELP)
@click.option("--field", help="Which field of a row holds the text.  [default: text]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help=f"Where to write: {', '.join(ANSWERS)}.")
@click.option("--overwrite", is_flag=True, help="Replace an output that is there already.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per text, with embedding and logits.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@precision_option
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: all cores]")
def predict(
    texts: tuple[str, ...],
    model: str,
    source: Path | None,
    field: str | None,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
    device: str,
    precision: Precision,
    threads: int | None,
) -> None:
    """Every task's label and probabilities of TEXTS, of a file's texts, or of the lines on standard input.

    Without --output, a table for each text. Of a row, all fields are kept; .jsonl has embeddings and logits too.
    """
    if overwrite and output is None:
        raise click.UsageError("--overwrite goes with --output")
    rows = choose_rows(texts, source, field)
    if output:
        check_output(output, source, ANSWERS)
    from mtl.encode.cores import default_threads
    from mtl.encode.engine import usable
    from mtl.encode.multitask import MultiTaskModel

    loaded = MultiTaskModel.from_pretrained(model, device=usable(device), precision=precision)
    settings(model=model, device=device, precision=loaded.embedder.precision, threads=threads or default_threads())
    found = answers(loaded, rows, threads)
    if output:
        count = write_answers(output, (answer for _, answer in found), overwrite)
        click.echo(f"wrote {output}: {counted(count, 'row')}", err=True)
        return
    for text, answer in found:
        click.echo(json_line(answer) if as_json else answer_table(text, answer))


def answer_table(text: str, answer: dict[str, Any]) -> str:
    """What the tasks say of a text, as a table."""
    values = answer["embedding"]
    rows: list[list[object]] = [["task", "says", "label", "probability", "logit"]]
    for name, task in answer["tasks"].items():
        says = "" if "value" in task["scores"] else said(task["label"]) or "(none)"
        for (label, score), logit in zip(task["scores"].items(), task["logits"], strict=True):
            rows.append([name, says, label, score, logit])
            name, says = "", ""
    first = f"  embedding ({len(values)},)  {' '.join(f'{value:.4f}' for value in values[:5])} ..."
    lines = table(rows).splitlines() if answer["tasks"] else []  # a model of pairs alone has no heads
    return "\n".join([preview(text, 100), first, *(f"  {line}" for line in lines), ""])


@cli.command()
@click.argument("recipe", default="demo")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The run's folder.  [default: runs/<recipe>]")
@click.option("--resume", is_flag=True, help="Go on with the run in the output folder.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: all cores]")
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard's files too.")
def train(recipe: str, output: Path | None, resume: bool, device: str, threads: int | None, tensorboard: bool) -> None:
    """Train the tasks of a RECIPE: a .toml file, or one that comes with the package (demo, the default; demo-pairs)."""
    from mtl.training.session import train as train_in_folder

    train_in_folder(recipe, output, resume=resume, device=device, threads=threads, tensorboard=tensorboard)


@cli.command()
@click.option(
    "-m", "--model", required=True, help="A trained run or model folder; for --sts and --retrieval any model."
)
@click.option("-r", "--recipe", help="The recipe that names the data.")
@click.option("--sts", type=click.Path(path_type=Path), help="Instead of a recipe: a file of two texts and a score.")
@click.option(
    "--retrieval", type=click.Path(path_type=Path),
    help="Instead of a recipe: a folder with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv (BEIR).",
)  # fmt: skip
@click.option("--fields", help="The fields of the --sts file: A,B,SCORE.  [default: its own three]")
@click.option("--split", type=click.Choice(["train", "dev", "test"]), default="test", show_default=True)
@click.option(
    "--plot", type=click.Path(path_type=Path),
    help="Draw scores and cosines, and a map of the vectors, to this .png, .svg or .pdf file.",
)  # fmt: skip
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: all cores]")
def evaluate(
    model: str,
    recipe: str | None,
    sts: Path | None,
    retrieval: Path | None,
    fields: str | None,
    split: str,
    plot: Path | None,
    device: str,
    threads: int | None,
) -> None:
    """A trained model's metrics and confusion matrices on a recipe's data; any model's on pairs or a search."""
    from mtl.training.evaluate import show_evaluation, show_retrieval, show_sts

    if [recipe, sts, retrieval].count(None) != 2 or (fields and not sts):
        raise click.UsageError("expected one of --recipe, --sts and --retrieval; --fields goes with --sts")
    if plot and retrieval:
        raise click.UsageError("--plot goes with --recipe and --sts; a search has no picture")
    if retrieval:
        show_retrieval(model, retrieval, split, device, threads)
    elif sts:
        show_sts(model, sts, fields.split(",") if fields else [], device, threads, plot)
    else:
        show_evaluation(model, str(recipe), split, device, threads, plot)


@cli.command()
@click.option("-m", "--model", default=DEFAULT_MODEL, show_default=True, help="Name, folder, or org/name[@revision].")
@precision_option
@click.option("--all", "every", is_flag=True, help="Under every instruction set that this machine can play.")
def check(model: str, precision: str, every: bool) -> None:
    """Try out whether a text gets the same bits on this machine, whatever stands beside it.

    Kernel by kernel, then whole texts. --all does so for fp32 and int8, for the model and a DistilBERT's shape, under
    each instruction set, and prints one table; where bf16 is native, it is shown too, though not promised.
    """
    from mtl.encode.check import DISTILBERT_SHAPE, distilbert_shape, trials
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
    """Run the check in processes of their own, one for each instruction set, model and precision."""
    import torch

    from mtl.encode.check import DISTILBERT_SHAPE, levels
    from mtl.encode.precision import native_bf16

    rows: list[list[object]] = [["instruction set", "model", "precision", "ways", "differ", "first that differs"]]
    for level, environment in levels().items():
        bf16 = ("bf16",) if not environment and native_bf16(torch.device("cpu")) else ()
        for name, precision in product((model, DISTILBERT_SHAPE), ("fp32", "int8", *bf16)):
            command = [sys.executable, "-m", "mtl", "check", "--model", name, "--precision", precision]
            done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
            lines = done.stdout.splitlines()
            differ = [line for line in lines if line.startswith("differ")]
            if done.returncode and not differ:
                raise InputError(f"the check of {name} in {precision} under {level} failed: {done.stderr.strip()}")
            ways = len(differ) + sum(line.startswith("same ") for line in lines)
            rows.append([level, name, precision, ways, len(differ), differ[0][8:] if differ else ""])
            click.echo(f"{level}, {name}, {precision}: {len(differ)} of {ways} ways differ", err=True)
    click.echo(table(rows))
    promised = [row for row in rows[1:] if row[2] != "bf16"]
    wrong = sum(bool(row[4]) for row in promised)
    if wrong:
        raise InputError(f"other bits in {wrong} of {len(promised)} checks; please report this machine's processor")


@cli.command()
def models() -> None:
    """The models that --model knows by name; it also takes any folder, and any org/name[@revision] on the hub."""
    from weights.listing import pinned_models

    click.echo(pinned_models())


def discard_output() -> None:
    """Have what is still to be written to standard output go nowhere, so that Python does not fail on it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. Exit codes: 0, 1 (failed), 2 (usage), 130 (interrupted); an error is one line."""
    settings: dict[str, Any] = {}
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # for what a terminal has no letters for
        cli.main(arguments, prog_name="mtl", standalone_mode=False, obj=settings)
        if sys.stdout:
            sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except MtlError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        discard_output()
        sys.exit(1)
    except OSError as error:
        click.echo(f"error: {error.filename or 'standard output'}: {reason(error)}", err=True)
        discard_output()
        sys.exit(1)
    except Exception as error:
        if settings.get("debug"):
            traceback.print_exc()
        kind = type(error).__name__
        hint = "please report it, with what `mtl --debug ...` shows"
        click.echo(f"error: {kind}: {one_line(error)}; this was not foreseen: {hint}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
