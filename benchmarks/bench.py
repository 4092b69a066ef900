"""Throughput, latency and cold start of this project's model and its peers, in one run.

    python -m benchmarks.bench                          this project alone
    python -m benchmarks.bench --peers                  and its peers (see make bench-peers)

Each engine runs in a process of its own, with the same thread budget and its best of several batches and streams,
which are searched first. Outputs are compared in the first round; rounds are interleaved, and each figure is the
median of its rounds. Number formats are compared each with its like: fp32, bf16 where the processor multiplies
in it, int8. Workloads can be run separately; a result that is saved keeps the others' parts. The last line is the
result as one JSON document.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks import show, workloads
from benchmarks.engines import ENGINES
from benchmarks.machine import cpu_fields, describe, earlier, flags, native_bf16, result_path, write_result
from benchmarks.measure import measure
from benchmarks.processes import Place
from mtl.checkpoints import save as export
from mtl.checkpoints.fetch import fetch
from mtl.checkpoints.load import Checkpoint
from mtl.checkpoints.tokenizer import load_tokenizer
from mtl.encode.sentence_encoder import SentenceEncoder
from mtl.model.config import EncoderConfig
from mtl.model.encoder import DistilBert
from mtl.model.pooling import Normalize

DEFAULT = ("mixed-short", "mixed-long", workloads.ONE_TEXT)
EXPORTED = ("onnxruntime", "openvino", "ctranslate2")
PACKAGES = ("sentence-transformers", "transformers", *EXPORTED)


def engines(device: str, peers: bool) -> list[str]:
    """The engines worth comparing here: those on a GPU run in torch; bf16 is compared where it is native."""
    gpu = device != "cpu"
    bf16 = gpu or native_bf16(flags(cpu_fields()))
    precisions = {"fp32", *(["bf16"] if bf16 else []), *([] if gpu else ["int8"])}
    names = [name for name, entry in ENGINES.items() if entry.precision in precisions]
    return [
        name for name in names if name.startswith("mtl") or (peers and not (gpu and name.startswith(EXPORTED)))
    ]  # fmt: skip


def distilbert_shape(folder: Path) -> str:
    """A DistilBERT of the published size with random weights and all-MiniLM-L6-v2's tokenizer, as a folder."""
    torch.manual_seed(0)
    tokenizer, _ = load_tokenizer(fetch("all-MiniLM-L6-v2"), "", {})
    checkpoint = Checkpoint(DistilBert(EncoderConfig()), tokenizer, 512, after=(Normalize(),))
    export.save(checkpoint, folder / "distilbert-shape")
    return str(folder / "distilbert-shape")


def export_for_peers(folder: str, scratch: Path) -> None:
    """Make the forms of the model that some peers run, in a process of its own; workers find them by a variable."""
    os.environ["MTL_BENCH_EXPORTS"] = str(scratch / "exports")
    target = scratch / "exports" / Path(folder).name
    made = subprocess.run([sys.executable, "-m", "benchmarks.export", folder, str(target)],
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # fmt: skip
    if made.returncode:
        raise click.ClickException(f"the model cannot be exported for the peers: {made.stderr.splitlines()[-1]}")
    if (notes := target / "notes.txt").exists():
        click.echo(notes.read_text(encoding="utf-8"), nl=False)


def merged(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    """The result with those parts of an earlier one that it has not measured itself."""
    return result | {"parts": earlier(path).get("parts", {}) | result["parts"]}


@click.command(help=__doc__)
@click.option("--peers", is_flag=True, help="Run the peers too.")
@click.option("--engine", "chosen", multiple=True, type=click.Choice(list(ENGINES)), help="mtl and these.")
@click.option("--model", default="all-MiniLM-L6-v2", show_default=True, help="A name, or distilbert-shape.")
@click.option("--workload", "names", multiple=True, type=click.Choice(workloads.NAMES), default=DEFAULT,
              show_default=True)  # fmt: skip
@click.option("--texts", type=click.Path(exists=True, path_type=Path), help="Your own texts, one a line.")
@click.option("--scale", default=1.0, show_default=True, help="Size of the workloads; 0.5 halves the largest batch.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--threads", default=os.cpu_count() or 1, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--save", type=click.Path(path_type=Path), help="Results folder to keep the result and its picture in.")
def main(
    peers: bool, chosen: tuple[str, ...], model: str, names: tuple[str, ...], texts: Path | None, scale: float,
    rounds: int, threads: int, device: str, save: Path | None,
) -> None:  # fmt: skip
    running = list(dict.fromkeys(["mtl", *chosen])) if chosen else engines(device, peers)
    parts = {}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        folder = distilbert_shape(scratch) if model == "distilbert-shape" else str(fetch(model))
        if any(engine.startswith(EXPORTED) for engine in running):
            export_for_peers(folder, scratch)
        encoder = SentenceEncoder.from_pretrained(folder)
        sets = {w: workloads.texts(w, encoder.tokenizer, workloads.count(w, threads, scale)) for w in names}
        if texts:
            sets = {texts.name: texts.read_text(encoding="utf-8").splitlines()}
        packages = [p for p in PACKAGES if any(e.startswith(p) for e in running) or (p == "transformers" and peers)]
        for w, rows in sets.items():
            place = Place(folder, threads, device)
            part = measure(w, running, rows, place, rounds, encoder.tokenizer, encoder.encoder.config, scratch)
            parts[w] = {"machine": describe(*packages), "threads": threads, "device": device, **part}
    result = {"model": model, "parts": parts}
    print(show.tables(result))
    path = result_path(save, model)
    if path:
        result = merged(path, result)
        show.picture(result, path.with_suffix(".png"))
    write_result(path, result)


if __name__ == "__main__":
    main()
