"""The command line: mtl embed, predict, train, evaluate, check."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
import numpy as np

from mtl.encode.files import INPUTS, lines, read_texts
from mtl.encode.outputs import SUFFIXES, Output, OutputPrecision, Vectors, convert, converted_shape, value_ranges
from mtl.encode.tokenizer import Overflow, preview
from mtl.errors import InputError, MtlError

if TYPE_CHECKING:
    from mtl.encode.sentence_encoder import EncodeOptions, SentenceEncoder

DEFAULT_MODEL = "all-MiniLM-L6-v2"
SHOWN = 10  # texts up to which a table shows all cosines


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mtl")
def cli() -> None:
    """A sentence transformer and multi-task model in plain PyTorch."""
    logging.basicConfig(format="%(message)s")


def settings(**values: object) -> None:
    """The effective settings, on stderr, before long work starts."""
    click.echo("  ".join(f"{name}={value}" for name, value in values.items()), err=True)


def decoded(argument: str) -> str:
    """A command line's argument as Unicode, whatever bytes it had."""
    return argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def choose_texts(texts: tuple[str, ...], source: Path | None, field: str | None) -> Iterable[str]:
    """From the arguments, a file, or standard input: exactly one of them."""
    if texts and source:
        raise click.UsageError("texts and --input are given; expected one of the two")
    if field and not source:
        raise click.UsageError("--field goes with --input")
    if texts:
        return [decoded(text) for text in texts]
    if source is None and sys.stdin.isatty():
        raise click.UsageError('no texts; expected arguments ("..."), --input FILE, or lines on standard input')
    if source is None:
        return lines(sys.stdin.buffer, "standard input")
    if source.suffix not in INPUTS:
        raise click.UsageError(f"{source} ends in {source.suffix!r}; expected one of {', '.join(INPUTS)}")
    return read_texts(source, field)


def with_vectors(
    model: SentenceEncoder, texts: Iterable[str], options: EncodeOptions
) -> Iterator[tuple[list[str], Vectors]]:
    """Texts beside their vectors, a window at a time."""
    to_encode, to_pair = tee(texts)  # holds no more than the windows that are under way
    for vectors in model.encode_stream(to_encode, **options):
        yield [next(to_pair) for _ in range(len(vectors))], vectors


def print_table(parts: Iterable[tuple[Sequence[str], Vectors]]) -> None:
    """Each text with its vector's first values; for a few texts, all their cosines too."""
    rows, first = 0, None
    for texts, vectors in parts:
        if not rows:
            click.echo(f"{'text':<48} first of {vectors.shape[1]} values")
        for text, vector in zip(texts, vectors, strict=True):
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
@click.option("-m", "--model", default=DEFAULT_MODEL, show_default=True, help="Name, folder, or org/name[@revision].")
@click.option("-i", "--input", "source", type=click.Path(path_type=Path), help=f"A file of texts: {', '.join(INPUTS)}.")
@click.option("--field", help="Which field of a .jsonl, .csv or .tsv file holds the text.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help=f"Where to write: {', '.join(SUFFIXES)}.")
@click.option("--normalize", is_flag=True, help="Scale vectors to length 1.")
@click.option("--truncate-dim", type=click.IntRange(1), help="Keep only the first dimensions.")
@click.option("--prompt", help="Put before every text.  [default: the model's own]")
@click.option(
    "--overflow", type=click.Choice(get_args(Overflow)), default="warn", show_default=True, help="Long texts."
)
@click.option("--max-length", type=click.IntRange(1), help="Tokens per text.  [default: the model's own]")
@click.option("--batch-tokens", type=click.IntRange(1), help="Tokens computed at once.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: all cores]")
@click.option(
    "--output-precision", type=click.Choice(get_args(OutputPrecision)), default="float32", show_default=True,
    help="Number format of the output; int8 and uint8 write their ranges as OUTPUT.ranges.npy.",
)  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on with an output that was interrupted.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option(
    "--precision", default="fp32", show_default=True, help="What to compute in: fp32, bf16 or fp16 (GPU), int8 (CPU)."
)
def embed(
    texts: tuple[str, ...],
    model: str,
    source: Path | None,
    field: str | None,
    output: Path | None,
    threads: int | None,
    device: str,
    precision: str,
    output_precision: OutputPrecision,
    resume: bool,
    **options: Any,
) -> None:
    """Vectors of TEXTS, of a file's texts, or of the lines on standard input.

    Without --output, a table. An output appears under its name only when it is whole; one that was interrupted
    is kept as OUTPUT.partial, and --resume goes on with it.
    """
    if output is None and (resume or output_precision != "float32"):
        raise click.UsageError("--resume and --output-precision go with --output")
    chosen = choose_texts(texts, source, field)
    if output and output.suffix not in SUFFIXES:
        raise click.UsageError(f"{output} ends in {output.suffix!r}; expected one of {', '.join(SUFFIXES)}")
    if output and not os.access(output.parent, os.W_OK):
        raise InputError(f"{output} cannot be written: {output.parent} is no folder that we may write to")
    if source and not source.is_file():
        raise InputError(f"{source} is no file")
    import torch

    from mtl.encode.engine import usable
    from mtl.encode.sentence_encoder import SentenceEncoder

    encoder = SentenceEncoder.from_pretrained(model, None, usable(device), precision)  # type: ignore[arg-type]
    threads = threads or torch.get_num_threads()
    settings(model=model, dim=encoder.dim, max_length=options["max_length"] or encoder.tokenizer.max_length,
             overflow=options["overflow"], device=device, precision=precision, threads=threads)  # fmt: skip
    options["threads"] = threads
    if output is None:
        print_table(with_vectors(encoder, chosen, options))  # type: ignore[arg-type]
        return
    about = {key: value for key, value in options.items() if key not in ("threads", "batch_tokens")}
    about |= {"model": model, "precision": precision, "output_precision": output_precision}
    dim, dtype = converted_shape(options["truncate_dim"] or encoder.dim, output_precision)
    target = Output(output, dim, dtype, about, resume)
    try:
        remaining = iter(chosen)
        target.skip(remaining)
        write_vectors(target, with_vectors(encoder, remaining, options), output_precision)  # type: ignore[arg-type]
    except BaseException:
        if target.stop():
            click.echo(f"{target.rows} rows are kept in {target.partial}; --resume goes on with them", err=True)
        raise
    click.echo(f"wrote {output}: ({target.rows}, {dim}) {dtype}", err=True)


def write_vectors(target: Output, parts: Iterable[tuple[Sequence[str], Vectors]], precision: OutputPrecision) -> None:
    """Convert and write window by window; the ranges of int8 and uint8 are those of the first window."""
    ranges_path = target.path.with_name(target.path.name + ".ranges.npy")
    with_ranges = precision in ("int8", "uint8")
    ranges = np.load(ranges_path) if with_ranges and target.rows else None
    for texts, vectors in parts:
        if with_ranges and ranges is None:
            ranges = value_ranges(vectors)
            np.save(ranges_path, ranges)
        target.write(texts, convert(vectors, precision, ranges))
    target.finish()


@cli.command()
@click.argument("texts", nargs=-1, required=True)
@click.option("-m", "--model", required=True, help="A trained run or model folder, or a classifier's name.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per text, with embedding and logits.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: all cores]")
def predict(texts: tuple[str, ...], model: str, as_json: bool, threads: int | None) -> None:
    """Every task's label, probabilities and logits of TEXTS, and their embeddings, in one forward pass."""
    from mtl.encode.multitask import MultiTaskModel
    from mtl.training.report import table

    loaded = MultiTaskModel.from_pretrained(model)
    found = loaded.predict([decoded(text) for text in texts], threads)
    for i, text in enumerate(texts):
        tasks = {
            name: {
                "label": found.labels[name][i],
                "scores": dict(zip(task.labels or ["value"], found.scores[name][i].tolist(), strict=True)),
                "logits": found.logits[name][i].tolist(),
            }
            for name, task in loaded.tasks.items()
        }
        if as_json:
            click.echo(json.dumps({"text": text, "embedding": found.embeddings[i].tolist(), "tasks": tasks}))
            continue
        click.echo(f"{preview(text, 100)}\n  embedding ({len(found.embeddings[i])},)  "
                   f"{' '.join(f'{value:.4f}' for value in found.embeddings[i][:5])} ...")  # fmt: skip
        rows: list[list[object]] = [["task", "says", "label", "probability", "logit"]]
        for name, answer in tasks.items():
            said = answer["label"] if loaded.tasks[name].kind == "single-label" else ""
            for (label, score), logit in zip(answer["scores"].items(), answer["logits"], strict=True):
                rows.append([name, said, label, float(score), float(logit)])
                name, said = "", ""
        click.echo("\n".join(f"  {line}" for line in table(rows).splitlines()) + "\n")


@cli.command()
@click.argument("recipe", default="demo")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The run's folder.  [default: runs/<recipe>]")
@click.option("--resume", is_flag=True, help="Go on with the run in the output folder.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: all cores]")
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard's files too.")
def train(recipe: str, output: Path | None, resume: bool, device: str, threads: int | None, tensorboard: bool) -> None:
    """Train the tasks of a RECIPE: a .toml file, or one that comes with the package (demo)."""
    from mtl.training.session import train as train_in_folder

    train_in_folder(recipe, output, resume=resume, device=device, threads=threads, tensorboard=tensorboard)


@cli.command()
@click.option("-m", "--model", required=True, help="A trained run or model folder.")
@click.option("-r", "--recipe", required=True, help="The recipe that names the data.")
@click.option("--split", type=click.Choice(["train", "dev", "test"]), default="test", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: all cores]")
def evaluate(model: str, recipe: str, split: str, threads: int | None) -> None:
    """A trained model's metrics and confusion matrices on a recipe's data."""
    from mtl.training.session import show_evaluation

    show_evaluation(model, recipe, split, threads)


@cli.command()
@click.option("-m", "--model", default=DEFAULT_MODEL, show_default=True, help="Name, folder, or org/name[@revision].")
@click.option("--precision", default="fp32", show_default=True, help="fp32, bf16, fp16 or int8.")
def check(model: str, precision: str) -> None:
    """Try out whether a text gets the same bits on this machine, whatever stands beside it."""
    from mtl.encode.check import trials
    from mtl.encode.sentence_encoder import SentenceEncoder

    encoder = SentenceEncoder.from_pretrained(model, precision=precision)  # type: ignore[arg-type]
    wrong = 0
    for name, different in trials(encoder):
        click.echo(f"{'differ ' if different else 'same   '} {name}" + (f": {different} texts" if different else ""))
        wrong += bool(different)
    if wrong:
        raise InputError(f"{wrong} ways to encode gave other bits; please report them with this machine's processor")
    click.echo("the same text, the same bits")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. Exit codes: 0, 1 (failed), 2 (usage), 130 (interrupted); an error is one line."""
    try:
        cli.main(arguments, prog_name="mtl", standalone_mode=False)
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
