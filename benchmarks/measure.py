"""The measurements: throughput of engines over one workload, and one text at a time. Rounds are interleaved."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks import workloads
from benchmarks.engines import ENGINES, MAX_LENGTH
from benchmarks.limits import flops, gflops_limit
from benchmarks.processes import Place, Setting, Worker, workers
from benchmarks.search import candidates, part_of, search
from mtl.encode.tokenizer import Tokenizer
from mtl.model.config import EncoderConfig

STARTS = 3  # of each engine, for the cold start
LARGEST_DIFFERENCE = 1e-3  # between engines in fp32, of coordinates of vectors of length 1
SMALLEST_COSINE = 0.5  # of any engine to fp32; below it is a bug, not a number format


def about(lengths: list[int], config: EncoderConfig) -> dict[str, Any]:
    """What a workload is, in tokens and arithmetic."""
    return {"texts": len(lengths), "tokens": sum(lengths), "median": statistics.median(lengths),
            "gflop": flops(lengths, config) / 1e9}  # fmt: skip


def agreement(vectors: NDArray[np.float32], expected: NDArray[np.float32]) -> dict[str, float]:
    """How far vectors are from those in fp32, both scaled to length 1."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (vectors, expected))
    cosines = (a * b).sum(axis=1)
    return {
        "largest_difference": float(np.abs(a - b).max()),
        "smallest_cosine": float(cosines.min()),
        "mean_cosine": float(cosines.mean()),
    }


def check(name: str, found: dict[str, float]) -> None:
    """
    Raises:
        click.ClickException: the engine does not compute the same model.
    """
    difference, cosine = found["largest_difference"], found["smallest_cosine"]
    if ENGINES[name].precision == "fp32" and difference > LARGEST_DIFFERENCE:
        raise click.ClickException(f"{name} differs from mtl by {difference:.2g} in fp32; nothing is reported")
    if cosine < SMALLEST_COSINE:
        raise click.ClickException(f"{name} has cosine {cosine:.2f} to mtl in fp32; nothing is reported")


def first_round(
    started: dict[str, Worker], texts: list[str], scratch: Path
) -> tuple[dict[str, list[float]], dict[str, dict[str, float]]]:
    """Each engine's seconds, and its agreement with the first one over all texts, which is checked."""
    seconds, vectors = {}, {}
    for name, worker in started.items():
        path = scratch / "vectors.npy"
        seconds[name] = [worker.seconds(texts, save=str(path))]
        vectors[name] = np.load(path)
    first = next(iter(vectors.values()))
    agreements = {name: agreement(v, first) for name, v in vectors.items()}
    for name, found in agreements.items():
        check(name, found)
    return seconds, agreements


def chosen(name: str, setting: Setting) -> dict[str, int | None]:
    """What of a setting the engine takes from us."""
    entry = ENGINES[name]
    return {
        "batch": setting.batch if entry.has_batch else None,
        "streams": setting.streams if entry.has_streams else None,
    }


def throughput(
    names: list[str], texts: list[str], place: Place, rounds: int, tokenizer: Tokenizer, config: EncoderConfig,
    scratch: Path,
) -> dict[str, Any]:  # fmt: skip
    """Each engine's best setting, its seconds for all texts round by round, its agreement with fp32, its memory."""
    lengths = [len(row) for row in tokenizer(texts, "truncate", MAX_LENGTH).rows]
    batches, part = candidates(len(texts), place.threads), part_of(texts, lengths)
    found, tried = {}, {}
    for name in tqdm(names, desc="settings", disable=None):
        found[name], tried[name] = search(name, part, batches, place)
    with workers(found, place) as started:
        limits = [gflops_limit(place.threads, config)]
        seconds, agreements = first_round(started, texts, scratch)
        for _ in tqdm(range(1, rounds), desc="rounds", initial=1, total=rounds, disable=None):
            limits.append(gflops_limit(place.threads, config))
            for name, worker in started.items():
                seconds[name].append(worker.seconds(texts))
        engines = {
            name: {"precision": ENGINES[name].precision, **chosen(name, found[name]), "tried": tried[name],
                   "seconds": seconds[name], **agreements[name], "peak_mib": worker.peak_mib()}
            for name, worker in started.items()
        }  # fmt: skip
    return {**about(lengths, config), "rounds": rounds, "gflops_limit": limits, "engines": engines}


def one_text(
    names: list[str], texts: list[str], place: Place, rounds: int, tokenizer: Tokenizer, config: EncoderConfig
) -> dict[str, Any]:
    """Milliseconds for each text alone, all threads on it, and the seconds from a process's start to a vector."""
    lengths = [len(row) for row in tokenizer(texts, "truncate", MAX_LENGTH).rows]
    alone = Setting(batch=1, streams=1)
    cold: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(STARTS):
        for name in tqdm(names, desc="cold starts", disable=None):
            with workers({name: alone}, place) as started:
                cold[name].append(started[name].cold)
    latencies: dict[str, list[float]] = {name: [] for name in names}
    with workers(dict.fromkeys(names, alone), place) as started:
        for number in tqdm(range(rounds + 1), desc="rounds", disable=None):
            for name, worker in started.items():
                found = worker.latencies(texts)
                latencies[name] += found if number else []  # the first round warms up
        engines = {
            name: {"precision": ENGINES[name].precision, "cold_start": cold[name], "peak_mib": worker.peak_mib(),
                   "latency_ms": {f"p{q}": float(np.percentile(latencies[name], q)) * 1e3 for q in (50, 99)}}
            for name, worker in started.items()
        }  # fmt: skip
    return {**about(lengths, config), "rounds": rounds, "engines": engines}


def measure(
    workload: str, names: list[str], texts: list[str], place: Place, rounds: int, tokenizer: Tokenizer,
    config: EncoderConfig, scratch: Path,
) -> dict[str, Any]:  # fmt: skip
    """One part of a result."""
    if workload == workloads.ONE_TEXT:
        return one_text(names, texts, place, rounds, tokenizer, config)
    return throughput(names, texts, place, rounds, tokenizer, config, scratch)
