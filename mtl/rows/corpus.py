"""Embedding a corpus from beginning to end: what there is to do, the engine that does it, what came of it."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Unpack, get_args

from tqdm import tqdm

from mtl.errors import InputError, extra, one_line

try:
    import pyarrow  # noqa: F401
except ImportError:
    raise InputError(f"embedding a corpus needs pyarrow, which is not installed; {extra('parquet')}") from None

from mtl.checkpoints.fetch import lasting_name
from mtl.disk import lock
from mtl.display import counted
from mtl.encode.compat import own_keywords
from mtl.encode.engine import usable
from mtl.encode.options import OPTIONS, EncodeOptions
from mtl.encode.precision import Precision, number_format
from mtl.encode.sentence_encoder import SentenceEncoder
from mtl.encode.windows import without_bar
from mtl.kernels.int8 import LEAST_COSINE
from mtl.rows.blocks import Columns, check_source
from mtl.rows.manifest import LOOKS, claim, to_do
from mtl.rows.on_ray import import_ray, on_ray
from mtl.rows.parquet import Unit
from mtl.rows.read import Quoting
from mtl.rows.uris import Place, Source, find_sources
from mtl.rows.work import CorpusPrecision, Done, Job, Worker


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a run did. ``there`` files had been done before.

    ``seconds`` are those of it all, ``span`` those from the beginning of the first file to the end of the last, and
    ``busy`` adds up what each file took.
    """

    files: int
    there: int
    rows: int
    tokens: int
    cut_texts: int
    cut_tokens: int
    seconds: float
    span: float
    busy: float
    actors: int

    def __str__(self) -> str:
        lines = [f"{counted(self.files, 'file')}, {self.rows:,} rows, {self.tokens:,} tokens in {self.seconds:.1f} s"]
        if self.there:
            lines[0] += f"; {counted(self.there, 'file')} already there"
        if self.cut_texts:
            lines.append(f"too long: {counted(self.cut_texts, 'text')}, which lost {self.cut_tokens:,} tokens; "
                         "--overflow chunk embeds them whole")  # fmt: skip
        if self.rows:
            each = f"{self.rows / self.busy:,.0f} per second and actor ({self.actors} of them)"
            lines.append(f"{self.rows / self.span:,.0f} rows per second once it had begun, {each}")
        return "\n".join(lines)


def embed_corpus(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str],
    field: str = "text",
    id_column: str | None = "id",
    keep: str | Sequence[str] = (),
    quoting: Quoting = "auto",
    output_precision: CorpusPrecision = "float32",
    device: str = "cpu",
    precision: Precision = "fp32",
    int8_least_cosine: float = LEAST_COSINE,
    address: str | None = None,
    actors: int | None = None,
    **options: Unpack[EncodeOptions],
) -> Summary:
    """Embed the texts of files into as many Parquet files: ids, the columns to keep, and ``embedding``.

    inputs: A file or folder, or several, as paths or URLs (``s3://bucket/folder``): .parquet, .jsonl, .ndjson, .csv,
        .tsv, all but the first also with .gz, .bz2 or .zst behind it.
    output: A folder, as a path or a URL. What is there already stays; the same call again does what is missing.
    field, id_column, keep: The columns of the texts, of the ids (None: a file's rows are numbered from 1), and
        others that go to the output.
    quoting: Whether fields of .csv and .tsv stand in quotes where they need to, "minimal", or never, "none"; "auto" is
        the first for .csv and the second for .tsv.
    output_precision: The numbers of the output: "float32", "float16", or "scaled-int8": int8 that is to be multiplied
        by what the column ``embedding_scale`` has for each vector, its largest value by 127.
    int8_least_cosine: See ``SentenceEncoder.from_pretrained``, as of model, device and precision.
    address: Of a Ray cluster: "auto", "host:port", or "local" for one on this machine alone. Without it, all is done
        in this process, without Ray; the files are the same.
    actors: How many encoders run at once on the cluster; by default, as many as threads leave room for.
    options: As of ``SentenceEncoder.encode``; ``threads`` are those of each actor. ``column`` is an older name of
        field, ``vectors`` of output_precision, where "int8" is "scaled-int8".

    Raises:
        MtlError: an input, the output folder or an option will not do; what is finished stays.
    """
    started = time.monotonic()
    given, field, numbers = without_older_names(options, field, output_precision)
    inputs = [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs
    keep = (keep,) if isinstance(keep, str) else tuple(keep)
    for name, value, kind in (("quoting", quoting, Quoting), ("output_precision", numbers, CorpusPrecision)):
        if value not in get_args(kind):
            raise InputError(f"{name} is {value!r}; expected one of {', '.join(get_args(kind))}")
    columns, place = Columns(field, id_column, keep, quoting), Place.of(output)
    if address is not None:
        import_ray()
    elif actors is not None:
        raise InputError(f"actors is {actors} without an address; expected an address, as 'local' for this machine")
    where = usable(device)
    given = own_keywords("embed_corpus", OPTIONS, where, given)
    sources = find_sources(inputs, place)
    looks = look_at(sources, columns)
    if any(unit == "us" for _, unit in looks.values()):  # one for all files, so that their outputs are alike
        columns = dataclasses.replace(columns, instants="us")
    encoder = SentenceEncoder.from_pretrained(str(model), None, where, precision, int8_least_cosine)
    job = plan(encoder, lasting_name(str(model)), device, columns, numbers, place, given)
    with held(place):
        claim(place, job.model, job.settings)
        place.sweep()
        left = to_do(place, sources, job.settings)
        with progress_bar([looks[source.target][0] for source in left], given.get("progress")) as bar:
            threads = given.get("threads")
            if address is None or not left:
                worker, count = Worker(job, encoder), 1
                parts = [worker.embed(source, threads, bar.update) for source in left]
            else:
                parts, count = on_ray(job, left, address, actors, threads, bar.update)
    return summary(parts, len(sources) - len(left), count, time.monotonic() - started)


def without_older_names(
    options: Mapping[str, Any], field: str, numbers: CorpusPrecision
) -> tuple[dict[str, Any], str, CorpusPrecision]:
    """Options without ``column`` and ``vectors``, and what these say of field and output_precision."""
    given = dict(options)
    if "vectors" in given:
        older = given.pop("vectors")
        numbers = "scaled-int8" if older == "int8" else older
    return given, given.pop("column", field), numbers


def summary(parts: Sequence[Done], there: int, actors: int, seconds: float) -> Summary:
    """The sums over all files."""
    rows, tokens, cut_texts, cut_tokens = (
        sum(getattr(part, name) for part in parts) for name in ("rows", "tokens", "cut_texts", "cut_tokens")
    )
    busy = sum(part.seconds for part in parts)
    begun = min((part.started for part in parts), default=0.0)
    span = max((part.started + part.seconds for part in parts), default=0.0) - begun
    return Summary(len(parts), there, rows, tokens, cut_texts, cut_tokens, seconds, span, busy, actors)


def plan(
    encoder: SentenceEncoder,
    model: str,
    device: str,
    columns: Columns,
    vectors: CorpusPrecision,
    output: Place,
    options: dict[str, Any],
) -> Job:
    """The job, with every setting that a vector depends on as it is in effect.

    Raises:
        InputError: an option makes no sense.
    """
    encoder.encode([], **options)
    overflow = options.get("overflow", "warn")
    settings = {
        "fingerprint": encoder.fingerprint,
        **number_format(encoder.precision, encoder.int8_least_cosine),
        "max_length": int(options.get("max_length") or encoder.tokenizer.max_length),
        "overflow": "truncate" if overflow == "warn" else overflow,
        "prompt": encoder.prompt_for(options.get("prompt"), options.get("prompt_name")),
        "normalize": bool(options.get("normalize", False)),
        "dim": int(options.get("truncate_dim") or encoder.dim),
        "vectors": vectors,
        "columns": {"text": columns.text, "id": columns.id, "keep": list(columns.keep)}
        | ({} if columns.quoting == "auto" else {"quoting": columns.quoting})
        | ({} if columns.instants == "ns" else {"instants": columns.instants}),
    }
    kept: Any = {name: value for name, value in options.items() if name not in ("threads", "progress")}
    kept["overflow"] = settings["overflow"]  # what was cut is said once, at the end
    return Job(model, encoder.precision, encoder.int8_least_cosine, device, kept, columns, vectors, output, settings)


def look_at(sources: Sequence[Source], columns: Columns) -> dict[str, tuple[int | None, Unit | None]]:
    """What ``check_source`` says of each file, by its output's name.

    Raises:
        InputError: a Parquet file is damaged, or lacks a column: known before anything long begins.
    """
    with ThreadPoolExecutor(LOOKS) as pool:
        return dict(pool.map(lambda source: (source.target, check_source(source, columns)), sources))


def held(output: Place) -> AbstractContextManager[None]:
    """The output folder, kept from other runs where it is on this machine.

    In an object store nothing keeps two runs apart; they would do work twice, and write the same files.
    """
    if output.local is None:
        return nullcontext()
    try:
        output.local.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output} cannot be made: {one_line(error)}") from None
    return lock(output.local, InputError)


def progress_bar(sizes: Sequence[int | None], shown: bool | None) -> tqdm[Any]:
    """A bar of rows, of a known number where every file has said its own; only on a terminal, by default."""
    known = [size for size in sizes if size is not None]
    total = sum(known) if len(known) == len(sizes) else None
    return tqdm(total=total, unit="row", disable=without_bar(shown), leave=False)
