"""One file of a corpus: read, embedded, written. Every engine runs this, so that all write the same files."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mtl.encode.precision import Precision
from mtl.encode.sentence_encoder import SentenceEncoder
from mtl.encode.tokenizer import Tokenized, Tokenizer
from mtl.errors import WeightsError
from mtl.rows.blocks import SCALE, VECTOR, Columns, blocks
from mtl.rows.manifest import Settings, note
from mtl.rows.uris import Place, Source, named
from mtl.rows.vector_files import scaled

# int8 of one file's output has the ranges of all its vectors; a corpus's has a scale for each vector, and another name
CorpusPrecision = Literal["float32", "float16", "scaled-int8"]
Vectors = NDArray[Any]

WINDOW = 8192  # rows that are read, embedded and written at once


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be made of every file. It is sent to each actor.

    ``settings`` are all that a vector depends on, the model's fingerprint among them.
    """

    model: str
    precision: Precision
    int8_least_cosine: float
    device: str
    options: dict[str, Any]
    columns: Columns
    vectors: CorpusPrecision
    output: Place
    settings: Settings

    def load(self) -> Worker:
        """A worker of its own.

        Raises:
            MtlError: the model cannot be loaded here, or is another one here.
        """
        encoder = SentenceEncoder.from_pretrained(self.model, None, self.device, self.precision, self.int8_least_cosine)
        if encoder.fingerprint != self.settings["fingerprint"]:
            raise WeightsError(f"{self.model} is another model on this machine than where the run was started")
        return Worker(self, encoder)


@dataclasses.dataclass(frozen=True)
class Done:
    """What one file came to. ``started`` is in seconds since 1970."""

    rows: int
    tokens: int
    cut_texts: int
    cut_tokens: int
    started: float
    seconds: float


class CountingTokenizer(Tokenizer):
    """The same tokenizer, which also adds up the tokens that it gives and those that it cuts off."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        vars(self).update(vars(tokenizer))
        self.tokens = self.cut_texts = self.cut_tokens = 0

    def __call__(self, *args: Any, **options: Any) -> Tokenized:
        found = super().__call__(*args, **options)
        self.tokens += sum(map(len, found.rows))
        self.cut_texts += found.cut_texts
        self.cut_tokens += found.cut_tokens
        return found


class Worker:
    """An encoder that makes a job's outputs, one after another."""

    def __init__(self, job: Job, encoder: SentenceEncoder) -> None:
        self.job, self.encoder = job, encoder

    def embed(self, source: Source, threads: int | None = None, seen: Callable[[int], object] = lambda n: None) -> Done:
        """Make one file's output; it appears once it is whole. ``seen`` is called with the rows of each window.

        Raises:
            InputError: the file cannot be read or a row cannot be used, or the output cannot be written.
        """
        started, clock, rows = time.time(), time.monotonic(), 0
        counts = self.encoder.tokenizer = CountingTokenizer(self.encoder.tokenizer)
        tables = self.tables(source, threads)
        first = next(tables)
        with (self.job.output / source.target).whole() as path, open_writer(path, first.schema) as writer:
            for table in chain([first], tables):
                writer.write_table(table)
                rows += len(table)
                seen(len(table))
        return Done(rows, counts.tokens, counts.cut_texts, counts.cut_tokens, started, time.monotonic() - clock)

    def tables(self, source: Source, threads: int | None) -> Iterator[pa.Table]:
        """A file's output, a window at a time; one empty table, if it has no rows."""
        options = {**self.job.options, "threads": threads, "progress": False}
        metadata = note(self.job.settings, source)
        with named(source.place):
            for kept, vectors in self.encoder.encode_blocks(blocks(source, self.job.columns, WINDOW), **options):
                yield with_vectors(kept, vectors, self.job.vectors, metadata)


def with_vectors(
    kept: pa.RecordBatch, vectors: Vectors, kind: CorpusPrecision, metadata: dict[bytes, bytes]
) -> pa.Table:
    """Rows with their float32 vectors (rows, dim) behind the other columns, as lists of one length."""
    numbers, scales = scaled(vectors) if kind == "scaled-int8" else (vectors.astype(kind), None)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(numbers.ravel()), vectors.shape[1])
    table = pa.Table.from_batches([kept]).append_column(VECTOR, lists)
    if scales is not None:
        table = table.append_column(SCALE, pa.array(scales))
    return table.replace_schema_metadata(metadata)


def open_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A Parquet file to be written. Dictionaries are for what repeats: not for vectors of fractions.

    For int8 they do the most: Parquet has no integers under 32 bits, but places in a dictionary of 255 take 8.
    """
    fractions = pa.types.is_floating(schema.field(VECTOR).type.value_type)
    columns = [name for name in schema.names if name != VECTOR] + ([] if fractions else [f"{VECTOR}.list.element"])
    return pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=columns)
