"""The best batch and number of streams of each engine, found by trying them on a part of the texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from benchmarks.engines import ENGINES
from benchmarks.processes import Place, Setting, workers
from benchmarks.workloads import FULL_BATCHES

BATCHES = (1, 2, 4, 8, 16, 32, 64)
PART = 4  # a search takes every fourth text
PASSES = 2  # over them, with each setting; the better one counts


def candidates(texts: int, threads: int, most: int = 3) -> list[int]:
    """The largest few batch sizes of which there are enough full ones; 1 at least."""
    return [batch for batch in BATCHES if texts >= FULL_BATCHES * threads * batch][-most:] or [1]


def part_of(texts: Sequence[str], lengths: Sequence[int]) -> list[str]:
    """Every fourth text by length, so that lengths are spread as in the whole."""
    order = sorted(range(len(texts)), key=lambda i: -lengths[i])
    return [texts[i] for i in order[::PART]]


def settings(name: str, batches: Sequence[int], threads: int) -> list[Setting]:
    """What there is to try for an engine."""
    entry = ENGINES[name]
    streams = [1, threads] if entry.has_streams and threads > 1 else [1]
    return [Setting(batch, s) for s in streams for batch in (batches if entry.has_batch else batches[:1])]


def search(name: str, texts: list[str], batches: Sequence[int], place: Place) -> tuple[Setting, list[dict[str, Any]]]:
    """The fastest setting, and the texts per second of all of them."""
    options = settings(name, batches, place.threads)
    if len(options) == 1:
        return options[0], []
    rates: dict[Setting, float] = {}
    for streams in dict.fromkeys(option.streams for option in options):
        with workers({name: Setting(1, streams)}, place) as started:
            for option in [option for option in options if option.streams == streams] * PASSES:
                rate = len(texts) / started[name].send(texts, option.batch)["seconds"]
                rates[option] = max(rate, rates.get(option, 0))
    tried = [dataclasses.asdict(setting) | {"texts_per_second": rate} for setting, rate in rates.items()]
    return max(rates, key=rates.__getitem__), tried
