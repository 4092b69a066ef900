"""How fast indexes are searched, and what their compressed forms find of the exact results, beside faiss and usearch.

python -m benchmarks.index [--rows 1000000] [--texts FILE] [--save benchmarks/results]

Vectors are those of texts where a file of them is given, and otherwise drawn; a corpus larger than the file is made of
mixtures of two of its vectors, so that it has their spectrum. Queries are held out, and drawn ones lie near the corpus.
Rounds are interleaved.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import machine
from mtl import Index, SentenceEncoder
from mtl.display import table
from mtl.index.store import Form, State, prepared, write_segment, write_state
from mtl.rows.read import read_rows, texts_of

FORMS: tuple[Form, ...] = ("fp32", "int8", "binary")
PART = 16384  # vectors that are made and written at once
Vectors = NDArray[np.float32]
Search = Callable[[Vectors, int], Any]


def unit(x: Vectors) -> Vectors:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def sources(texts: Path | None, dim: int) -> Vectors:
    """Vectors of which the corpus and the queries are made."""
    if texts is None:
        generator = np.random.default_rng(0)
        return unit(generator.standard_normal((20_000, dim)) * (1 + np.arange(dim)) ** -0.5)
    found = [text for text, _ in texts_of(read_rows(texts), str(texts))]
    return SentenceEncoder.from_pretrained("all-MiniLM-L6-v2").encode(list(dict.fromkeys(found))[:20_000])


def mixtures(base: Vectors, rows: int) -> Vectors:
    """As many vectors as are wanted: those that there are, then mixtures of two and a little noise."""
    generator = np.random.default_rng(1)
    made = np.empty((rows, base.shape[1]), np.float32)
    made[: len(base)] = base[:rows]
    for start in range(min(len(base), rows), rows, PART):
        size = min(PART, rows - start)
        share = generator.uniform(0.5, 1, (size, 1))
        a, b = (base[generator.integers(0, len(base), size)] for _ in range(2))
        noise = generator.standard_normal(a.shape) * base.std(axis=0) * 0.3
        made[start : start + size] = unit(share * a + (1 - share) * b + noise)
    return made


def our_index(folder: Path, form: Form, corpus: Vectors) -> Index:
    """An index of vectors, without texts."""
    segment, rows = "segment-00000001", len(corpus)
    settings = {"model": None, "field": "text", "id_field": None}
    state = State(form, corpus.shape[1], "cosine", settings, ((segment, rows),), None, 1, rows)
    parts = (([{}] * len(part), part) for part in np.split(corpus, range(PART, rows, PART)))
    write_segment(folder / segment, state, prepared(state, parts, range(rows)), rows)
    write_state(folder, state)
    return Index(folder)


def peers(corpus: Vectors, threads: int) -> dict[str, Search]:
    """What of faiss and usearch is installed: exact search, and usearch's graph as it comes."""
    found: dict[str, Search] = {}
    try:
        import faiss  # type: ignore[import-not-found]

        faiss.omp_set_num_threads(threads)
        flat = faiss.IndexFlatIP(corpus.shape[1])
        flat.add(corpus)
        found["faiss flat"] = lambda queries, k: flat.search(queries, k)[1]
    except ImportError:
        pass
    try:
        from usearch.index import Index as Graph  # type: ignore[import-not-found]
        from usearch.index import search as exact  # type: ignore[import-not-found]

        found["usearch exact"] = lambda queries, k: exact(
            corpus, queries, k, "ip", exact=True, threads=threads
        ).keys.reshape(len(queries), k)
        graph = Graph(ndim=corpus.shape[1], metric="ip", dtype="f32")
        graph.add(np.arange(len(corpus)), corpus, threads=threads)
        found["usearch graph"] = lambda queries, k: graph.search(queries, k, threads=threads).keys.reshape(-1, k)
    except ImportError:
        pass
    return found


def timed(search: Search, queries: Vectors, k: int) -> tuple[list[float], NDArray[np.int64]]:
    """Seconds of each query, one at a time, and the places that were found."""
    seconds, places = [], []
    for query in queries:
        started = time.perf_counter()
        found = search(query[None], k)
        seconds.append(time.perf_counter() - started)
        places.append(np.asarray(found)[0])
    return seconds, np.stack(places).astype(np.int64)


def recall(found: NDArray[np.int64], exact: NDArray[np.int64]) -> float:
    """The share of the exact results that were found."""
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, exact, strict=True)]))


def bench(corpus: Vectors, queries: Vectors, k: int, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """A row for each engine: milliseconds a query and recall."""
    threads, size = torch.get_num_threads(), {}
    engines: dict[str, Search] = {}
    for form in FORMS:
        index = our_index(folder / form, form, corpus)
        engines[f"mtl {form}"] = lambda queries, k, index=index: index.nearest(queries, k)[1]  # type: ignore[misc]
        size[f"mtl {form}"] = sum(path.stat().st_size for path in (folder / form).rglob("*.npy"))
    engines |= peers(corpus, threads)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    places: dict[str, NDArray[np.int64]] = {}
    for _ in range(rounds):
        for name, search in engines.items():
            search(queries[:1], k)  # reads what is mapped
            took, places[name] = timed(search, queries, k)
            seconds[name] += took
    return [
        {
            "engine": name, "p50_ms": 1000 * statistics.median(took),
            "p99_ms": 1000 * float(np.quantile(took, 0.99)), "recall": recall(places[name], places["mtl fp32"]),
            "bytes": size.get(name),
        }
        for name, took in seconds.items()
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=384, help="of drawn vectors")
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    base = sources(options.texts, options.dim)
    corpus, queries = mixtures(base[options.queries :], options.rows), base[: options.queries]
    if options.texts is None:  # what has no neighbours says nothing of who finds them
        queries = unit(queries * 0.5 + corpus[-options.queries :])
    with tempfile.TemporaryDirectory() as temporary:
        found = bench(corpus, queries, options.k, options.rounds, Path(temporary))
    print(table([["engine", "p50 ms", "p99 ms", f"recall@{options.k}", "MB"], *(
        [row["engine"], row["p50_ms"], row["p99_ms"], row["recall"], round((row["bytes"] or 0) / 1e6)] for row in found
    )]))  # fmt: skip
    about = {"rows": len(corpus), "dim": corpus.shape[1], "queries": options.queries, "k": options.k}
    drawn = options.texts is None
    result = {"machine": machine.describe("numpy"), **about, "rounds": options.rounds, "drawn": drawn, "engines": found}
    machine.write_result(machine.result_path(options.save, "index"), result)


if __name__ == "__main__":
    main()
