"""What several commands share: options, the rows they are given, the settings they show."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from click.core import ParameterSource

from mtl.encode.tokenizer import Overflow
from mtl.errors import InputError
from mtl.rows.outputs import refuse_input_as_output
from mtl.rows.parquet import import_pyarrow
from mtl.rows.read import (
    CODECS,
    DELIMITERS,
    EXPECTED,
    INPUTS,
    Quoting,
    TextRow,
    kind_of,
    open_lines,
    pairs_of,
    rows_with,
    text_rows,
    texts_of,
)
from mtl.rows.vector_files import json_line

if TYPE_CHECKING:
    from mtl.encode.precision import Precision
    from mtl.encode.sentence_encoder import SentenceEncoder

DEFAULT_MODEL = "all-MiniLM-L6-v2"
STDIN = "standard input"
PRECISIONS = ("fp32", "bf16", "fp16", "int8", "auto")
LEAST_COSINE = 0.98  # as kernels/int8.py has it

precision_option = click.option(
    "--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True,
    help="What to compute in; fp16 is for a GPU, int8 for a CPU, auto is bf16 where it is native, else fp32.",
)  # fmt: skip
int8_option = click.option(
    "--int8-least-cosine", type=click.FloatRange(-1, 1), default=LEAST_COSINE, show_default=True,
    help="How near to fp32 int8 has to bring each vector of a sample, or it is refused.",
)  # fmt: skip
model_option = click.option(
    "-m", "--model", default=DEFAULT_MODEL, show_default=True, help="Name, folder, or org/name[@revision]."
)
device_option = click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
threads_option = click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: all cores]")
input_option = click.option(
    "-i", "--input", "source", type=click.Path(path_type=Path),
    help=f"A file of texts: {', '.join(INPUTS)}, or these with {', '.join(CODECS)} behind; - is standard input.",
)  # fmt: skip
field_option = click.option("--field", help="Which field of a row holds the text.  [default: text]")
quoting_option = click.option(
    "--quoting", type=click.Choice(get_args(Quoting)), default="auto", show_default=True,
    help="Fields of .csv and .tsv stand in quotes where they need to (minimal) or never (none); auto: the first in "
    ".csv, the second in .tsv.",
)  # fmt: skip
set_option = click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE",
    help="Another value of a setting, as training.seed=1 or task.topic.weight=2; may be given several times.",
)  # fmt: skip
resume_option = click.option(
    "--resume", is_flag=True, help="Go on with what there is of the output: nothing, a part, or all of it."
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an output that is there already.")
COMPUTING = [device_option, precision_option, int8_option, threads_option]
ENCODING = [
    model_option,
    click.option("--normalize", is_flag=True, help="Scale vectors to length 1."),
    click.option("--truncate-dim", type=click.IntRange(1), help="Keep only the first dimensions."),
    click.option("--prompt", help="Put before every text, as it stands.  [default: the model's own]"),
    click.option(
        "--overflow", type=click.Choice(get_args(Overflow)), default="warn", show_default=True, help="Long texts."
    ),
    click.option("--max-length", type=click.IntRange(1), help="Tokens per text.  [default: the model's own]"),
    click.option("--batch-tokens", type=click.IntRange(1), help="Tokens computed at once."),
    threads_option,
    device_option,
    precision_option,
    int8_option,
]


def encoding_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of how texts become vectors."""
    return reduce(lambda decorated, option: option(decorated), reversed(ENCODING), command)


def computing_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of what it computes on, and in which numbers."""
    return reduce(lambda decorated, option: option(decorated), reversed(COMPUTING), command)


def written(*names: str) -> list[str]:
    """Which of the command's options, by their parameters' names, the user gave; each as it is written, --like-this."""
    context, given = click.get_current_context(), ParameterSource.COMMANDLINE
    found = [each for each in context.command.params if each.name in names]
    found = [each for each in found if each.name and context.get_parameter_source(each.name) is given]
    return [next(name for name in each.opts if name.startswith("--")) for each in found]


def only_with(what: str, there: object, *names: str) -> None:
    """Raise a UsageError if options ask for something where what alone reads them is not ``there``."""
    context = click.get_current_context()
    asked = [each.name for each in context.command.params
             if each.name in names and context.params.get(each.name) != each.get_default(context)]  # fmt: skip
    if not there and (found := written(*filter(None, asked))):
        raise click.UsageError(f"{' and '.join(found)} {'go' if found[1:] else 'goes'} with {what}")


def not_both(*names: str) -> None:
    """Raise a UsageError if more than one of these options is given."""
    if (found := written(*names))[1:]:
        raise click.UsageError(f"{' and '.join(found)} are given; expected one of the two")


def settings(**values: object) -> None:
    """The effective settings, on stderr, before long work starts."""
    click.echo("  ".join(f"{name}={value}" for name, value in values.items()), err=True)


def echo_json(value: object) -> None:
    """A value as a line of JSON, which is UTF-8, whatever the terminal has."""
    click.echo(json_line(value).encode(errors="backslashreplace"))


def decoded(argument: str) -> str:
    """A command line's argument as Unicode, whatever bytes it had."""
    given = os.fsencode(argument)
    try:
        return given.decode()
    except UnicodeDecodeError:  # then they are what the locale says, or nothing
        return argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def choose_rows(
    texts: tuple[str, ...], source: Path | None, field: str | None, quoting: Quoting = "auto", whole: bool = True
) -> Iterator[TextRow]:
    """From the arguments, a file, or standard input, which is also called "-": exactly one of them.

    ``whole`` is False where nothing but the text is needed of a row.
    """
    if texts and source:
        raise click.UsageError("texts and --input are given; expected one of the two")
    from_file = source is not None and str(source) != "-"
    if field and not from_file:
        raise click.UsageError("--field goes with --input FILE")
    if quoting != "auto" and (source is None or kind_of(source) not in DELIMITERS):
        raise click.UsageError("--quoting goes with --input FILE, a .csv or .tsv file")
    if texts:
        for path in dict.fromkeys(text for text in texts if kind_of(Path(text)) in INPUTS and is_file(text)):
            click.echo(f"note: {path} is taken as a text; --input {path} reads the file", err=True)
        return ((text, {"text": text}) for text in map(decoded, texts))
    if source is not None and from_file:
        if source.is_dir():
            raise InputError(f"{source} is a folder; expected a file, or mtl embed-corpus, which takes folders")
        if kind_of(source) not in INPUTS:
            raise click.UsageError(f"{source} ends in {source.suffix!r}; {EXPECTED}")
        if not source.is_file():
            raise InputError(f"{source} is no file")
        field = field or "text"
        return texts_of(rows_with(source, [field], quoting, whole), str(source), field)
    if sys.stdin is None or (source is None and sys.stdin.isatty()):
        raise click.UsageError('no texts; expected arguments ("..."), --input FILE, or lines on standard input')
    return texts_of(text_rows(open_lines(sys.stdin.buffer, STDIN), STDIN), STDIN)


def choose_pairs(
    texts: tuple[str, ...], source: Path | None, names: tuple[str, str], quoting: Quoting = "auto"
) -> Iterator[tuple[Any, Any]]:
    """Pairs of texts from the arguments, two by two, or from two fields of a file's rows, with all fields."""
    if texts and source:
        raise click.UsageError("texts and --input are given; expected one of the two")
    if len(texts) % 2:
        raise click.UsageError(f"the model reads pairs of texts, but {len(texts)} are given; expected them two by two")
    if texts:
        given = [*map(decoded, texts)]
        return (((one, other), dict(zip(names, (one, other), strict=True)))
                for one, other in zip(given[::2], given[1::2], strict=True))  # fmt: skip
    if source is None or str(source) == "-":
        raise click.UsageError('the model reads pairs of texts; expected "ONE" "OTHER" as arguments, or --input FILE')
    choose_rows((), source, names[0], quoting)  # what is wrong with the file is said as for texts
    return pairs_of(rows_with(source, names, quoting), str(source), names)


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
    if output.is_dir():
        raise InputError(f"{output} is a folder; expected the name of a file")
    if output.suffix not in suffixes:
        raise click.UsageError(f"{output} ends in {output.suffix!r}; expected one of {', '.join(suffixes)}")
    if not os.access(output.parent, os.W_OK):
        raise InputError(f"{output} cannot be written: {output.parent} is no folder that we may write to")
    if output.suffix == ".parquet":
        import_pyarrow(output)
    refuse_input_as_output(None if str(source) == "-" else source, output)


def said_precision(encoder: SentenceEncoder) -> str:
    """What it computes in, and of int8 how near that is to fp32."""
    quality = encoder.quality
    return f"{encoder.precision} ({quality})" if quality else encoder.precision


def load_encoder(
    model: str, device: str, precision: Precision, int8_least_cosine: float, options: dict[str, Any]
) -> SentenceEncoder:
    """The model, once all settings that are in effect were shown."""
    from mtl.encode.sentence_encoder import SentenceEncoder
    from mtl.kernels.cores import default_threads

    encoder = SentenceEncoder.from_pretrained(model, None, device, precision, int8_least_cosine)
    settings(model=model, dim=encoder.dim, max_length=options["max_length"] or encoder.tokenizer.max_length,
             overflow=options["overflow"], device=device, precision=said_precision(encoder),
             threads=options["threads"] or default_threads())  # fmt: skip
    return encoder
