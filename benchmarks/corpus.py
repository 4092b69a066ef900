"""What each part of embedding a corpus takes by itself, and what an engine reaches of it: for docs/scale.md."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import machine, workloads
from benchmarks.memory import peaks
from mtl import SentenceEncoder
from mtl.rows.blocks import Columns, blocks
from mtl.rows.corpus import embed_corpus
from mtl.rows.uris import Place, Source
from mtl.rows.work import WINDOW, open_writer, with_vectors

MODEL = "all-MiniLM-L6-v2"


def write_corpus(folder: Path, texts: list[str], files: int) -> None:
    """The texts with ids, in files of equal size."""
    share = -(-len(texts) // files)
    for start in range(0, len(texts), share):
        part = texts[start : start + share]
        ids = [f"doc-{start + i:012d}" for i in range(len(part))]
        pq.write_table(pa.table({"text": part, "id": ids}), folder / f"part-{start // share:04d}.parquet")


def seconds(work: Callable[[], object], least: float = 2.0) -> float:
    """The shortest of several times of some work."""
    found: list[float] = []
    while sum(found) < least or len(found) < 3:
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def exhaust(items: Iterable[object]) -> None:
    for _ in items:
        pass


def parts_alone(encoder: SentenceEncoder, texts: list[str], folder: Path) -> dict[str, float]:
    """Rows per second of reading, tokenizing and writing a window, each by itself."""
    texts = (texts * -(-WINDOW // len(texts)))[:WINDOW]
    write_corpus(folder, texts, 1)
    source = Source(Place.of(folder / "part-0000.parquet"), "", 0, 0)
    kept = pa.record_batch({"id": [f"doc-{i:012d}" for i in range(WINDOW)]})
    drawn = np.random.default_rng(0).normal(size=(WINDOW, encoder.dim)).astype(np.float32)
    vectors = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    def write(kind: Any) -> int:
        table = with_vectors(kept, vectors, kind, {})
        with open_writer(folder / "out.parquet", table.schema) as writer:
            writer.write_table(table)
        return (folder / "out.parquet").stat().st_size

    work: dict[str, Callable[[], object]] = {
        "reading": lambda: exhaust(blocks(source, Columns(), WINDOW)),
        "tokenizing": lambda: encoder.tokenizer(texts, "truncate"),
        "writing float32": lambda: write("float32"),
        "writing int8": lambda: write("int8"),
    }
    rates = {name: WINDOW / seconds(each) for name, each in work.items()}
    sizes = {f"bytes per row, {kind}": write(kind) / WINDOW for kind in ("float32", "float16", "int8")}
    return {**rates, **sizes, "bytes per row, input": Path(source.place.path).stat().st_size / WINDOW}


def same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files, to the byte."""
    names = [sorted(path.name for path in folder.iterdir()) for folder in (one, other)]
    return names[0] == names[1] and all((one / n).read_bytes() == (other / n).read_bytes() for n in names[0])


def one_engine(folder: Path, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The whole command, in this process: what it says of itself, and its memory as files get done."""
    with peaks(folder / name) as memory:
        done = embed_corpus([folder / "in"], folder / name, model=MODEL, progress=False, **options)
    print(f"{name}: {done}", flush=True)
    return {
        "rows": done.rows, "tokens": done.tokens, "seconds": done.seconds, "span": done.span, "busy": done.busy,
        "actors": done.actors, "rows per second": done.rows / done.span,
        "files done and peak MiB": list(memory.items()),
    }  # fmt: skip


def engines(folder: Path, actors: int, threads: int, one_thread: bool) -> dict[str, Any]:
    """The command in one process on all threads, on one if wanted, and on Ray; each begun in a process of its own."""
    runs: dict[str, dict[str, Any]] = {"one process": {"threads": threads}}
    if one_thread:
        runs["one process, one thread"] = {"threads": 1}
    if actors:
        runs["ray"] = {"address": "local", "actors": actors}
    found: dict[str, Any] = {}
    for name, options in runs.items():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            found[name] = pool.submit(one_engine, folder, name, options).result()
        found[name]["same bytes"] = same(folder / "one process", folder / name)
    if actors:
        ratio = found["ray"]["rows per second"] / found["one process"]["rows per second"]
        print(f"ray: {ratio:.2f} times one process; the same bytes: {found['ray']['same bytes']}")
    return found


@click.command(help=__doc__)
@click.option("--rows", default=4000, show_default=True)
@click.option("--files", default=4, show_default=True)
@click.option("--actors", default=0, show_default=True, help="On a Ray of this machine; 0: without Ray.")
@click.option("--one-thread/--no-one-thread", default=True, show_default=True, help="A run on one thread too.")
@click.option("--save", type=click.Path(path_type=Path), help="Results folder to keep the result in.")
def main(rows: int, files: int, actors: int, one_thread: bool, save: Path | None) -> None:
    encoder = SentenceEncoder.from_pretrained(MODEL)
    texts = workloads.texts("mixed-short", encoder.tokenizer, rows)
    described = machine.describe("pyarrow", *(["ray"] if actors else []))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for each in ("in", "alone"):
            (folder / each).mkdir()
        write_corpus(folder / "in", texts, files)
        alone = parts_alone(encoder, texts, folder / "alone")
        for part, rate in alone.items():
            print(f"{part}: {rate:,.0f}")
        result = {
            "machine": described, "model": MODEL, "texts": "mixed-short", "rows": rows,
            "files": files, "parts": alone,
            "engines": engines(folder, actors, described["torch_threads"], one_thread),
        }  # fmt: skip
    machine.write_result(machine.result_path(save, "corpus"), result)


if __name__ == "__main__":
    main()
