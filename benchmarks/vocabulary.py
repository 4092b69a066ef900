"""How much memory training a model with a large vocabulary takes: XLM-RoBERTa-base's shape, with random weights.

    python -m benchmarks.vocabulary

A process trains a classifier for some steps, nothing frozen, saves checkpoints, goes on from one in a process of its
own, and writes the model. Each says its peak, what the weights and AdamW's moments take of it, and what is beyond.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import re
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from mtl.display import table

WORDS, DIM, HIDDEN = 250_002, 768, 3072
NAMES = ["<s>", "<pad>", "</s>", "<unk>"]
BOUND_MIB = 1.6 * 2**10  # beyond weights and moments


def tokenizer(words: int) -> Tokenizer:
    """Unigram, over words that are numbers."""
    pieces = [*NAMES, *(f"\u2581{i}" for i in range(words - len(NAMES)))]
    found = Tokenizer(models.Unigram([(piece, -float(i > 3)) for i, piece in enumerate(pieces)], unk_id=3))
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    found.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    found.add_special_tokens(NAMES)
    return found


def prepare(folder: Path, layers: int, rows: int) -> None:
    """A model, and rows of 30 words of which there are 20,000, the frequent ones most often."""
    import torch

    from mtl.checkpoints.load import Checkpoint, Origin
    from mtl.checkpoints.save import save
    from mtl.model.config import EncoderConfig
    from mtl.model.encoder import DistilBert

    torch.manual_seed(0)
    sizes = {"vocab_size": WORDS, "max_position_embeddings": 512, "dim": DIM, "hidden_dim": HIDDEN, "n_heads": 12}
    config = EncoderConfig(**sizes, n_layers=layers, layer_norm_eps=1e-5)
    save(Checkpoint(DistilBert(config), tokenizer(WORDS), 512, origin=Origin("xlm-roberta")), folder / "model")
    draw = random.Random(0)
    with (folder / "rows.jsonl").open("w") as file:
        for i in range(rows):
            text = " ".join(str(int(20_000 ** draw.random())) for _ in range(30))
            file.write(json.dumps({"text": text, "label": "ab"[i % 2]}) + "\n")


def work(folder: Path, epochs: int, stop: int, threads: int) -> dict[str, Any]:
    """Train up to a step, or with ``stop`` 0 to the end, in this process: its peak, and what of it is beyond."""
    from mtl import train
    from mtl.cli.allocator import keep_memory
    from mtl.errors import TrainingStopped
    from mtl.tasks.spec import TaskSpec
    from mtl.training.recipe import Recipe, Training
    from mtl.training.report import Reporter
    from mtl.training.run import Run

    class Watch(Reporter):
        run: Run

        def begin(self, run: Run, name: str, threads: int) -> None:
            self.run = run

        def step(self, record: Any, texts: int) -> None:
            if record["step"] == stop:
                raise TrainingStopped("as a kill between two checkpoints")

    task = TaskSpec("letter", ("a", "b"), train=str(folder / "rows.jsonl"))
    recipe = Recipe(str(folder / "model"), (task,), Training(epochs=epochs, batch_size=32))
    watch = Watch()
    keep_memory()  # as `mtl train`
    with suppress(TrainingStopped):
        train(recipe, folder / "run", resume=not stop, threads=threads, report=watch)
    run = watch.run
    peak = int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 2**10
    weights = sum(x.nbytes for x in run.tensors().values()) / 2**20
    moments = sum(x.nbytes for _, p in run.parameters() for x in run.state(p).values()) / 2**20
    return {"steps": run.step, "rows": len(run.of_words.rows), "weights": weights, "moments": moments, "peak": peak,
            "beyond": peak - weights - moments}  # fmt: skip


def measured(layers: int = 12, rows: int = 128, threads: int = 2) -> list[dict[str, Any]]:
    """What a run takes that is stopped in its second epoch, and what one takes that goes on, in MiB."""
    with tempfile.TemporaryDirectory() as name:
        folder, steps = Path(name), rows // 32

        def alone(job: Callable[..., Any], *arguments: Any) -> Any:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                return pool.apply(job, (folder, *arguments))

        alone(prepare, layers, rows)
        return [alone(work, 2, stop, threads) for stop in (steps + 1, 0)]


@click.command()
@click.option("--layers", type=click.IntRange(1), default=12, show_default=True, help="Blocks.")
@click.option("--rows", type=click.IntRange(32), default=128, show_default=True, help="Of an epoch; 32 a step.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="CPU threads.")
def main(layers: int, rows: int, threads: int) -> None:
    """Print what was measured, in MiB."""
    found = measured(layers, rows, threads)
    rows_of = zip(("stopped", "gone on"), found, strict=True)
    click.echo(table([["", *found[0]], *([name, *map(round, part.values())] for name, part in rows_of)]))
    click.echo(json.dumps({"layers": layers, "threads": threads, "bound": round(BOUND_MIB), "runs": found}))


if __name__ == "__main__":
    main()
