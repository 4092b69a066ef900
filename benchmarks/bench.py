"""Throughput, latency and cold start of this project's model and its peers, in one run.

    python -m benchmarks.bench                          this project alone
    python -m benchmarks.bench --peers                  and its peers (see make bench-peers)

Each engine runs in a process of its own, with the same thread budget; rounds are interleaved, and each figure is the
median of its rounds. Outputs are compared before anything is timed. The machine's limit is the speed of its own
matrix products, measured in the same rounds. The last line is the result as one JSON document.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from tqdm import tqdm

from benchmarks import workloads
from benchmarks.machine import describe, write_result
from mtl.encode.engine import one_thread_each
from mtl.encode.sentence_encoder import SentenceEncoder
from mtl.encode.tokenizer import Tokenizer
from mtl.model.config import EncoderConfig
from mtl.model.encoder import DistilBert
from mtl.model.pooling import Normalize
from mtl.training.report import table
from weights import export
from weights.fetch import fetch
from weights.load import Checkpoint
from weights.tokenizer import load_tokenizer

OURS = ("mtl", "mtl int8")
PEERS = ("sentence-transformers", "onnxruntime", "openvino", "ctranslate2", "onnxruntime int8", "ctranslate2 int8")
WORKLOADS = ("mixed-short", "mixed-long", *(f"fixed-{length}" for length in workloads.FIXED))


class Worker:
    """An engine in a process of its own; ``cold`` is the time from its start to its first vector."""

    def __init__(self, name: str, folder: str, threads: int, device: str) -> None:
        self.name = name
        limits = {key: str(threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        quiet = {"TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", name, folder, str(threads), device],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=os.environ | limits | quiet,
        )  # fmt: skip
        self.answer()
        self.cold = time.perf_counter() - started

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise click.ClickException(f"{self.name} stopped; run `python -m benchmarks.worker` by hand to see why")
        return dict(json.loads(line))

    def ask(self, texts: list[str], save: str | None = None, singly: bool = False) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"texts": texts, "save": save, "singly": singly}) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def gflops_limit(threads: int, config: EncoderConfig) -> float:
    """The better of two: one large product on all threads, and the encoder's own products, one on each thread."""
    torch.set_num_threads(threads)

    def rate(product: Callable[[], object], flops: float) -> float:
        best = float("inf")
        for _ in range(5):
            started = time.perf_counter()
            product()
            best = min(best, time.perf_counter() - started)
        return flops / best / 1e9

    square = torch.randn(1536, 1536)
    together = rate(lambda: square @ square, 2 * 1536**3)
    x, w = torch.randn(768, config.dim), torch.randn(config.dim, config.hidden_dim)
    times = 12
    with one_thread_each(threads) as pool:
        side_by_side = rate(
            lambda: list(pool.map(lambda _: [x @ w for _ in range(times)], range(threads))),
            2 * x.shape[0] * config.dim * config.hidden_dim * times * threads,
        )
    return max(together, side_by_side)


def flops(lengths: list[int], config: EncoderConfig) -> float:
    """Arithmetic of the encoder's products: per token 8 dim^2 + 4 dim hidden, and 4 length dim for attention."""
    tokens, squares = sum(lengths), sum(length**2 for length in lengths)
    per_layer = tokens * (8 * config.dim**2 + 4 * config.dim * config.hidden_dim) + 4 * squares * config.dim
    return float(config.n_layers * per_layer)


def distilbert_shape(folder: Path) -> str:
    """A DistilBERT of the published size with random weights and all-MiniLM-L6-v2's tokenizer, as a folder."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(fetch("all-MiniLM-L6-v2"))
    checkpoint = Checkpoint(DistilBert(EncoderConfig()), tokenizer, 512, after=(Normalize(),))
    export.save(checkpoint, folder / "distilbert-shape")
    return str(folder / "distilbert-shape")


@contextmanager
def workers(names: list[str], folder: str, threads: int, device: str) -> Iterator[dict[str, Worker]]:
    started: dict[str, Worker] = {}
    try:
        for name in names:
            started[name] = Worker(name, folder, threads, device)
        yield started
    finally:
        for worker in started.values():
            worker.close()


def agreement(vectors: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """The largest difference and the smallest cosine to fp32."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (vectors, expected))
    return float(np.abs(a - b).max()), float((a * b).sum(axis=1).min())


@click.command(help=__doc__)
@click.option("--peers", is_flag=True, help="Run the peers too.")
@click.option("--engine", "chosen", multiple=True, help="Only these engines.")
@click.option("--model", default="all-MiniLM-L6-v2", show_default=True, help="A name, or distilbert-shape.")
@click.option("--workload", "names", multiple=True, help=f"Only these of {', '.join(WORKLOADS)}.")
@click.option("--texts", type=click.Path(exists=True, path_type=Path), help="Your own texts, one a line.")
@click.option("--scale", default=1.0, show_default=True, help="Size of the workloads.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--threads", default=os.cpu_count() or 1, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="Where to write the JSON; the picture goes beside it.")
def main(
    peers: bool, chosen: tuple[str, ...], model: str, names: tuple[str, ...], texts: Path | None, scale: float,
    rounds: int, threads: int, device: str, output: Path | None,
) -> None:  # fmt: skip
    engines = [*chosen] or [*(OURS if device == "cpu" else ("mtl", "mtl bf16")), *(PEERS if peers else ())]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        folder = distilbert_shape(scratch) if model == "distilbert-shape" else str(fetch(model))
        if any(engine.startswith(("onnx", "open", "ctrans")) for engine in engines):
            os.environ["MTL_BENCH_EXPORTS"] = name + "/exports"
            target = Path(name) / "exports" / Path(folder).name
            subprocess.run([sys.executable, "-m", "benchmarks.export", folder, str(target)], check=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        encoder = SentenceEncoder.from_pretrained(folder)
        tokenizer = encoder.tokenizer
        sets = {w: workloads.texts(w, tokenizer, scale) for w in names or WORKLOADS}
        if texts:
            sets = {texts.name: texts.read_text(encoding="utf-8").splitlines()}
        result = run(engines, folder, sets, rounds, threads, device, encoder.encoder.config, tokenizer, scratch)
    packages = [p for p in ("sentence-transformers", "transformers", "onnxruntime", "openvino", "ctranslate2") if peers]
    result = {"machine": describe(*packages), "model": model, "threads": threads, "rounds": rounds, **result}
    show(result)
    if output:
        plot(result, output.with_suffix(".png"))
    write_result(output, result)


def run(
    engines: list[str], folder: str, sets: dict[str, list[str]], rounds: int, threads: int, device: str,
    config: EncoderConfig, tokenizer: Tokenizer, scratch: Path,
) -> dict[str, Any]:  # fmt: skip
    """All measurements, round by round."""
    sizes = {w: [len(row) for row in tokenizer(texts, "truncate", 512).rows] for w, texts in sets.items()}
    about = {
        w: {
            "texts": len(lengths), "tokens": sum(lengths), "median": statistics.median(lengths),
            "padding_sorted": workloads.padded_tokens(lengths) / sum(lengths) - 1,
            "padding_unsorted": workloads.padded_tokens(lengths, in_order=True) / sum(lengths) - 1,
            "gflop": flops(lengths, config) / 1e9,
        }
        for w, lengths in sizes.items()
    }  # fmt: skip
    seconds: dict[str, dict[str, list[float]]] = {w: {e: [] for e in engines} for w in sets}
    limits: list[float] = []
    latency: dict[str, list[float]] = {e: [] for e in engines}
    quality: dict[str, dict[str, tuple[float, float]]] = {w: {} for w in sets}
    short = ["How far is it to the next village?", "The train was late again.", "Rain."]
    cold = {e: [] for e in engines}  # type: dict[str, list[float]]
    for _ in range(3):
        for engine in engines:
            with workers([engine], folder, threads, device) as started:
                cold[engine].append(started[engine].cold)
    with workers(engines, folder, threads, device) as started:
        for w, texts in sets.items():  # outputs first; this warms up too
            vectors = {}
            for engine, worker in started.items():
                path = scratch / "vectors.npy"
                worker.ask(texts, save=str(path))
                vectors[engine] = np.load(path)
            quality[w] = {engine: agreement(found, vectors[engines[0]]) for engine, found in vectors.items()}
            for engine, (difference, cosine) in quality[w].items():
                if "int8" not in engine and "bf16" not in engine and difference > 1e-3:
                    raise click.ClickException(f"{engine} differs by {difference:.2g} on {w}; nothing was timed")
                if cosine < 0.5:
                    raise click.ClickException(f"{engine} has cosine {cosine:.2f} on {w}; nothing was timed")
        for _ in tqdm(range(rounds), disable=None, unit="round"):
            limits.append(gflops_limit(threads, config))
            for w, texts in sets.items():
                for engine, worker in started.items():
                    seconds[w][engine].append(worker.ask(texts)["seconds"])
            for engine, worker in started.items():
                answer = worker.ask(short * 12, singly=True)
                latency[engine] += answer["seconds"]
        peak = {engine: worker.ask(short)["peak_mib"] for engine, worker in started.items()}
    started_at = time.perf_counter()
    for texts in sets.values():
        tokenizer(texts, "truncate", 512)
    tokenizing = time.perf_counter() - started_at
    return {
        "gflops_limit": limits, "workloads": about, "seconds": seconds, "agreement": quality, "cold_start": cold,
        "latency_ms": {e: [float(np.percentile(np.array(v) * 1e3, q)) for q in (50, 99)] for e, v in latency.items()},
        "peak_mib": peak,
        "tokenizing_share": tokenizing / sum(statistics.median(s[engines[0]]) for s in seconds.values()),
    }  # fmt: skip


def show(result: dict[str, Any]) -> None:
    """The tables. A ratio is that of medians, how many times the engine's own speed the first engine has."""
    engines = list(result["cold_start"])
    limit = statistics.median(result["gflops_limit"])
    rows: list[list[object]] = [
        ["workload", "engine", "texts/s", "tokens/s", "of sgemm", f"{engines[0]} is", "max diff", "min cosine"]
    ]
    for w, about in result["workloads"].items():
        first = statistics.median(result["seconds"][w][engines[0]])
        for engine in engines:
            s = statistics.median(result["seconds"][w][engine])
            share = f"{about['gflop'] / s / limit:.0%}" if "int8" not in engine else ""
            difference, cosine = result["agreement"][w][engine]
            rows.append([w, engine, f"{about['texts'] / s:.1f}", f"{about['tokens'] / s:.0f}", share,
                         f"{s / first:.2f} x", f"{difference:.1e}", f"{cosine:.4f}"])  # fmt: skip
    print(table(rows))
    rows = [["engine", "cold start, s", "latency p50, ms", "p99, ms", "peak memory, MiB"]]
    for engine in engines:
        cold = statistics.median(result["cold_start"][engine])
        p50, p99 = result["latency_ms"][engine]
        rows.append([engine, f"{cold:.2f}", f"{p50:.1f}", f"{p99:.1f}", f"{result['peak_mib'][engine]:.0f}"])
    print("\n" + table(rows))
    rows = [["workload", "texts", "tokens", "median", "padding, as they come", "padding, sorted"]]
    for w, about in result["workloads"].items():
        rows.append([w, about["texts"], about["tokens"], about["median"], f"{about['padding_unsorted']:.0%}",
                     f"{about['padding_sorted']:.0%}"])  # fmt: skip
    print("\n" + table(rows))
    share = result["tokenizing_share"]
    print(f"\nsgemm limit {limit:.0f} GFLOP/s; tokenizing takes {share:.1%} of the time, beside the computing")


def plot(result: dict[str, Any], path: Path) -> None:
    """A bar per engine and workload: texts per second as multiples of the first engine's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    engines = list(result["cold_start"])
    figure, axes = pyplot.subplots(figsize=(11, 4.5), layout="constrained")
    width = 0.8 / len(engines)
    for i, engine in enumerate(engines):
        heights = []
        for times in result["seconds"].values():
            heights.append(statistics.median(times[engines[0]]) / statistics.median(times[engine]))
        axes.bar([x + i * width for x in range(len(heights))], heights, width, label=engine)
    axes.set_xticks([x + 0.4 - width / 2 for x in range(len(result["seconds"]))], list(result["seconds"]))
    axes.set(ylabel=f"texts per second, {engines[0]} = 1", title=f"{result['model']}, {result['threads']} threads")
    axes.legend(ncols=2, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
