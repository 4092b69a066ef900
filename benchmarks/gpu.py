"""What a machine with a GPU has to show once: right vectors and gradients there, and the speed of both beside peers.

    make bench-gpu                                       with whatever python3 has torch for the GPU
    make bench-gpu BENCH="--device cpu --scale 0.002"    the same on a CPU, as a test runs it

It runs from the source tree and needs torch, tokenizers, safetensors and numpy alone; pytest, sentence-transformers and
transformers are used where they are installed. The model is looked for as everywhere, so that where nothing can be
downloaded, the tree carries it in weights/ (git passes over it):

    cp -rL "$(python -m weights fetch all-MiniLM-L6-v2)" weights/all-MiniLM-L6-v2

Parts that would begin after ``--seconds`` are left out, and said. The result is results/<gpu>/gpu.json, and the last
line. It exits with 1 where something is wrong: fp32 that differs by more than 1e-5 from the CPU's, bf16 with a cosine
under 0.999, other losses in training; slowness is no fault.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks import loops, workloads
from benchmarks.engines import Ours, SentenceTransformers
from benchmarks.machine import RESULTS, cpu_fields, describe, slug, write_result
from mtl import SentenceEncoder
from mtl.checkpoints.fetch import fetch
from mtl.errors import one_line
from mtl.kernels.attention import grouped, varlen
from mtl.model.packing import PackedBatch
from mtl.training.loop import train
from mtl.training.report import Log

ROOT = Path(__file__).parents[1]
TEXTS = {"mixed-short": 32_768, "mixed-long": 4_096}  # at full scale
ROUNDS = 3
BATCHES = (64, 256, 1024)  # what the peer may choose from
LARGEST_ERROR, LEAST_COSINE = 1e-5, 0.999
SAME_LOSSES = 1e-3  # of each other: steps follow steps, so that last bits grow
PEERS = ("sentence-transformers", "transformers", "accelerate")


class Wrong(Exception):
    """A part found what must not be; its figures are the first argument."""


def device_name(device: str) -> str:
    """The folder of a device's results."""
    if device == "cpu":
        return slug(cpu_fields())
    return re.sub(r"\W+", "-", torch.cuda.get_device_name(device).lower()).strip("-")


def texts_of(model: SentenceEncoder, name: str, scale: float) -> list[str]:
    return workloads.texts(name, model.tokenizer, max(8, round(TEXTS[name] * scale)))


def vectors(folder: str, device: str, scale: float) -> dict[str, Any]:
    """Vectors on the device beside those of the CPU in fp32, of short and long texts, and alone beside in a batch."""
    exact = SentenceEncoder.from_pretrained(folder)
    texts = [text for name in TEXTS for text in islice(texts_of(exact, name, scale), 256)]
    expected = exact.encode(texts, max_length=512, progress=False)
    found: dict[str, Any] = {"texts": len(texts)}
    wrong = False
    for precision in ("fp32", "bf16", *(["fp16"] if device != "cpu" else [])):
        model = SentenceEncoder.from_pretrained(folder, device=device, precision=precision)
        given = model.encode(texts, max_length=512, progress=False)
        alone = np.concatenate([model.encode([text], max_length=512, progress=False) for text in texts[:16]])
        error = float(np.abs(given - expected).max())
        norms = np.linalg.norm(given, axis=1) * np.linalg.norm(expected, axis=1)
        cosine = float(((given * expected).sum(axis=1) / norms).min())
        beside = float(np.abs(alone - given[:16]).max())
        found[precision] = {"largest difference": error, "smallest cosine": cosine, "alone or in a batch": beside}
        good = max(error, beside) <= LARGEST_ERROR if precision == "fp32" else cosine >= LEAST_COSINE
        wrong = wrong or not good
    if wrong:
        raise Wrong(found)
    return found


def attention(device: str) -> dict[str, Any]:
    """The errors of attention in bf16 against float64: of the kernel that knows texts' ends, and of grouped calls."""
    if device == "cpu":
        return {"left out": "the kernel is a GPU's"}
    lengths, generator = (1, 7, 7, 33, 128, 500), torch.Generator().manual_seed(0)
    batch = PackedBatch.pack([[0] * length for length in lengths])
    q, k, v = (torch.randn(sum(lengths), 12, 32, generator=generator) for _ in range(3))
    exact = grouped(*(x.double() for x in (q, k, v)), batch)
    low = [x.to(device, torch.bfloat16) for x in (q, k, v)]
    errors = {}
    for way in (varlen, grouped):
        errors[way.__name__] = float((way(*low, batch.to(device)).double().cpu() - exact).abs().max())
    if errors["varlen"] >= 3 * errors["grouped"]:
        raise Wrong(errors)
    return errors


def tests() -> dict[str, Any]:
    """The tests that are skipped without a GPU, where pytest and what its fixtures need are installed."""
    if not all(map(find_spec, ("pytest", "hypothesis", "click"))):
        return {"left out": "pytest, hypothesis and click are not all installed"}
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider",
               "tests/kernels/test_attention.py", "tests/test_device.py"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
    said = (done.stdout.strip() or done.stderr.strip() or "nothing").splitlines()[-1]
    if done.returncode:
        raise Wrong({"pytest": said})
    return {"pytest": said}


def labelled(folder: Path, texts: list[str]) -> None:
    """folder/rows.jsonl: texts with labels that can be learned, by whether the first word comes before "m"."""
    rows = [f'{{"text": "{text}", "label": {int(text[:1] < "m")}}}\n' for text in texts]
    (folder / "rows.jsonl").write_text("".join(rows), encoding="utf-8")


def losses(source: str, device: str, folder: Path, steps: int) -> list[float]:
    """The losses of the first steps in fp32, dropout on."""
    run = loops.ours(folder, "fp32", device=device, model=source)
    log = Log(folder / device.replace(":", "-"))
    try:
        train(run, log, until=steps)
    finally:
        log.close()
    return [sum(record["loss"].values()) for record in log.steps]


def training(folder: str, device: str, scale: float) -> dict[str, Any]:
    """The losses of a few steps on the device beside those on the CPU: what a text drops is the same on both."""
    model, steps = SentenceEncoder.from_pretrained(folder), 6
    with tempfile.TemporaryDirectory() as name:
        labelled(Path(name), workloads.texts("mixed-short", model.tokenizer, steps * loops.BATCH))
        found = {place: losses(folder, place, Path(name), steps) for place in dict.fromkeys(("cpu", device))}
    difference = max(abs(a - b) / abs(a) for a, b in zip(found["cpu"], found[device], strict=True))
    told = {"losses": found, "largest relative difference": difference}
    if difference > SAME_LOSSES:
        raise Wrong(told)
    return told


def timed(encode: Callable[[list[str]], Any], texts: list[str]) -> float:
    started = perf_counter()
    encode(texts)
    return perf_counter() - started


def speed(folder: str, device: str, workload: str, scale: float) -> dict[str, Any]:
    """Texts per second of a workload, tokenizing and all: rounds interleaved, medians; the peer at its best batch."""
    texts = texts_of(SentenceEncoder.from_pretrained(folder), workload, scale)
    threads, part = torch.get_num_threads(), texts[:: max(1, len(texts) // 4096)]
    ways: dict[str, Callable[[list[str]], Any]] = {}
    for precision in ("fp32", "bf16"):
        ways[f"mtl {precision}"] = partial(Ours(folder, threads, device, precision).encode, batch=0)
        if find_spec("sentence_transformers"):
            peer = SentenceTransformers(folder, threads, device, bf16=precision == "bf16")
            tried = {}
            for batch in BATCHES:
                peer.encode(part[:batch], batch)  # what is done once
                tried[batch] = timed(partial(peer.encode, batch=batch), part)
            best = min(tried, key=tried.__getitem__)
            ways[f"sentence-transformers {precision}, batch {best}"] = partial(peer.encode, batch=best)
    for encode in ways.values():
        encode(part)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, encode in ways.items():
            seconds[name].append(timed(encode, texts))
    return {"texts": len(texts), "texts per second": {n: len(texts) / statistics.median(s) for n, s in seconds.items()}}


def training_speed(folder: str, device: str, scale: float) -> dict[str, Any]:
    """Texts per second of training all weights on short texts, beside transformers' Trainer where it is installed."""
    steps = max(2, round(300 * scale))
    tokenizer = SentenceEncoder.from_pretrained(folder).tokenizer
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        labelled(Path(name), workloads.texts("mixed-short", tokenizer, steps * loops.BATCH))
        for _ in range(2):  # the first round warms up
            for precision in ("fp32", "bf16"):
                ours = loops.ours(Path(name), precision, device=device, model=folder)
                rates.setdefault(f"mtl {precision}", []).append(next(loops.rates(ours, 1)))
                if find_spec("transformers") and find_spec("accelerate"):
                    theirs = loops.their_rate(Path(name), precision, device=device, name=folder)
                    rates.setdefault(f"Trainer {precision}", []).append(theirs)
    return {"steps": steps, "batch": loops.BATCH, "texts per second": {name: each[-1] for name, each in rates.items()}}


def parts_of(folder: str, device: str, scale: float) -> dict[str, Callable[[], dict[str, Any]]]:
    """All parts by name: what must be right before what is merely fast."""
    return {
        "vectors": partial(vectors, folder, device, scale),
        "attention": partial(attention, device),
        "training": partial(training, folder, device, scale),
        "mixed-short": partial(speed, folder, device, "mixed-short", scale),
        "mixed-long": partial(speed, folder, device, "mixed-long", scale),
        "training speed": partial(training_speed, folder, device, scale),
        "tests": tests,
    }


def done(part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A part's figures; what went wrong is among them, so that the others are done still."""
    started = perf_counter()
    try:
        found = part()
    except Wrong as wrong:
        found = {**wrong.args[0], "wrong": True}
    except Exception as error:
        found = {"wrong": True, "error": f"{type(error).__name__}: {one_line(error)}"}
    return {**found, "seconds": round(perf_counter() - started, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu")
    parser.add_argument("--model", default=loops.MODEL, help="a name or a folder")
    parser.add_argument("--seconds", type=float, default=400, help="no part begins later")
    parser.add_argument("--scale", type=float, default=1.0, help="of the amounts that are timed")
    parser.add_argument("--save", type=Path, default=RESULTS, help="the results folder")
    given = parser.parse_args()
    if given.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device is {given.device}; torch {torch.__version__} sees no GPU here: say --device cpu")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    logging.disable(logging.WARNING)
    started, folder = perf_counter(), str(Path(fetch(given.model)).absolute())
    described = describe(*(name for name in PEERS if find_spec(name.replace("-", "_"))))
    result: dict[str, Any] = {"machine": described, "device": given.device, "model": given.model, "gpu": {}}
    for name, part in parts_of(folder, given.device, given.scale).items():
        if perf_counter() - started > given.seconds:
            result["gpu"][name] = {"left out": f"{given.seconds:g} seconds were over"}
            continue
        result["gpu"][name] = done(part)
        print(f"{name}: {result['gpu'][name]}", flush=True)
    write_result(given.save / device_name(given.device) / "gpu.json", result)
    sys.exit(any(part.get("wrong", False) for part in result["gpu"].values()))


if __name__ == "__main__":
    main()
