"""Whether memory grows: over a million rows, and over minutes of everything that a service does.

The model is small, so that as many texts as possible go through; what could grow grows with texts and calls.
"""

from __future__ import annotations

import gc
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import machine
from benchmarks.memory import held_mib, peaks, resident_mib
from benchmarks.small import save_small_model
from mtl import MultiTaskModel, SentenceEncoder, TaskSpec
from mtl.cli.allocator import share_memory
from mtl.rows.corpus import embed_corpus
from mtl.rows.outputs import open_output

WORDS = ("the", "train", "to", "vienna", "was", "late", "but", "view", "from", "its", "window", "worth", "all", "of")
CORPUS_FILES = 10
WARM_UP = 0.2  # of the time, in which caches fill


def short_texts(number: int) -> Iterator[str]:
    """Short texts, no two alike."""
    generator = random.Random(0)
    for i in range(number):
        yield f"{' '.join(generator.choices(WORDS, k=generator.randint(1, 12)))} {i}"


def a_million_rows(encoder: SentenceEncoder, number: int, threads: int) -> dict[str, Any]:
    """Memory while a stream of texts goes through ``encode_stream``, sampled some fifty times."""
    started, done, samples = time.monotonic(), 0, []
    for part in encoder.encode_stream(short_texts(number), threads=threads, progress=False):
        done += len(part)
        samples.append((done, resident_mib()))
    kept = samples[:: max(1, len(samples) // 50)]
    return {"rows": done, "seconds": time.monotonic() - started, "rows and MiB": [*kept, samples[-1]]}


def a_corpus(folder: Path, model: Path, number: int, threads: int) -> dict[str, Any]:
    """Memory after each file of a corpus, and the largest number of MiB on the way."""
    (folder / "corpus").mkdir()
    texts, share = short_texts(number), number // CORPUS_FILES
    for i in range(CORPUS_FILES):
        part = list(islice(texts, share))
        pq.write_table(pa.table({"text": part, "id": [f"{i}-{j}" for j in range(len(part))]}),
                       folder / "corpus" / f"{i}.parquet")  # fmt: skip
    with peaks(folder / "vectors") as found:
        done = embed_corpus([folder / "corpus"], folder / "vectors", model=model, threads=threads, progress=False)
    told = {"rows": done.rows, "files": done.files, "seconds": done.seconds}
    return {**told, "files done and peak MiB": list(found.items())}


def calls(model: MultiTaskModel, folder: Path, name: Path, threads: int) -> list[Callable[[random.Random], object]]:
    """What a service does, each on some drawn texts."""
    embedder = model.embedder
    pool = list(short_texts(20_000))

    def drawn(generator: random.Random, most: int) -> list[str]:
        return generator.sample(pool, generator.randint(1, most))

    def stream(generator: random.Random) -> None:
        for _ in embedder.encode_stream(iter(drawn(generator, 2000)), window=512, threads=threads):
            pass

    def to_file(generator: random.Random) -> None:
        texts = [(text, {"text": text}) for text in drawn(generator, 500)]
        path = folder / "out.jsonl"
        with open_output(path, embedder.dim, "float32", {}, overwrite=True) as output:
            output.remaining(iter(()))
            output.write(texts, embedder.encode([text for text, _ in texts], threads=threads))
            output.finish()

    def corpus(generator: random.Random) -> None:
        pq.write_table(pa.table({"text": drawn(generator, 500)}), folder / "in.parquet")
        shutil.rmtree(folder / "out", ignore_errors=True)
        embed_corpus([folder / "in.parquet"], folder / "out", model=name, id_column=None, threads=threads)

    return [
        lambda generator: embedder.encode(drawn(generator, 500), threads=threads),
        lambda generator: [embedder.encode(" ".join(drawn(generator, 9)), threads=threads) for _ in range(50)],
        lambda generator: embedder.encode(["word " * generator.randint(100, 2000)], overflow="chunk", threads=threads),
        lambda generator: model.predict(drawn(generator, 500), threads=threads),
        lambda generator: embedder.search(drawn(generator, 5), drawn(generator, 500), k=3),
        stream, to_file, corpus,
    ]  # fmt: skip


def slope(samples: list[tuple[float, float]]) -> float:
    """MiB per hour, of (minutes, MiB)."""
    return float(np.polyfit(*np.array(samples).T, 1)[0]) * 60


def soak(model: MultiTaskModel, folder: Path, name: Path, minutes: float, threads: int) -> dict[str, Any]:
    """All calls in turn for some minutes: the memory after each turn and, ten times, what is held; slopes once warm."""
    work, generator = calls(model, folder, name, threads), random.Random(1)
    started, resident, held, objects = time.monotonic(), [], [], []
    while (passed := (time.monotonic() - started) / 60) < minutes:
        for call in work:
            call(generator)
        resident.append((passed, resident_mib()))
        if passed >= WARM_UP * minutes and passed >= minutes * len(held) / 10:
            held.append((passed, held_mib()))
            objects.append(len(gc.get_objects()))
    warm = [sample for sample in resident if sample[0] >= WARM_UP * minutes]
    return {
        "minutes": minutes, "turns": len(resident), "calls": len(resident) * len(work),
        "resident, MiB per hour": slope(warm), "held, MiB per hour": slope(held),
        "held, minute and MiB": held, "Python objects": objects, "open files": len(os.listdir("/proc/self/fd")),
        "resident, minute and MiB": [*warm[:: max(1, len(warm) // 50)], warm[-1]],
    }  # fmt: skip


@click.command(help=__doc__)
@click.option("--minutes", type=float, default=20, show_default=True, help="0: only the rows.")
@click.option("--rows", default=1_000_000, show_default=True, help="0: only the minutes.")
@click.option("--threads", default=1, show_default=True)
@click.option("--command", is_flag=True, help="With the allocator set as `mtl serve` and `mtl embed` set it.")
@click.option("--save", type=click.Path(path_type=Path), help="Results folder; a part that is left out stays there.")
def main(minutes: float, rows: int, threads: int, command: bool, save: Path | None) -> None:
    if command:
        share_memory()
    path = machine.result_path(save, "soak")
    described = machine.describe("pyarrow")
    when = machine.when(described)
    result = machine.earlier(path) | {"machine": described, "threads": threads, "as a command": command}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        name = save_small_model(folder / "small")
        model = MultiTaskModel(SentenceEncoder.from_pretrained(name), [TaskSpec("topic", ("x", "y", "z"))])
        if rows:
            result["stream"] = a_million_rows(model.embedder, rows, threads) | when
            result["corpus"] = a_corpus(folder, name, rows, threads) | when
        if minutes:
            result["soak"] = soak(model, folder, name, minutes, threads) | when
    machine.write_result(path, result)


if __name__ == "__main__":
    main()
