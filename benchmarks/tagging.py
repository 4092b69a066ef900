"""A tagger on WNUT 2017 against a plain loop over transformers' model: the same trunk, rows, batches and rates.

    python -m benchmarks.tagging --data FOLDER      (FOLDER/wnut17/{train,dev}.jsonl: {"tokens", "tags"})

Both train all weights in fp32 (batch 32, the trunk's rate 1e-4 and the head's 1e-3, warm-up 0.1, then down in a line)
and are measured on the dev set by exact spans. The plain loop pads each batch to its longest row.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import torch

from benchmarks.machine import describe, result_path, write_result
from mtl.checkpoints.fetch import fetch
from mtl.display import table
from mtl.model.losses import NO_LABEL
from mtl.tasks.spans import bio, overall, runs, tallied
from mtl.tasks.spec import TaskSpec
from mtl.training.data import load_data
from mtl.training.loop import train
from mtl.training.metrics import all_logits, measure
from mtl.training.optim import rate_factor
from mtl.training.recipe import Recipe, Training
from mtl.training.report import Log
from mtl.training.run import Run, prepare
from mtl.training.start import create

MODEL, LIMIT = "all-MiniLM-L6-v2", 256
LABELS = ("corporation", "creative-work", "group", "location", "person", "product")
TAGS = bio(LABELS)

Rows = list[dict[str, list[str]]]


def ours(recipe: Recipe, folder: Path) -> tuple[float, dict[str, dict[str, float]]]:
    """Seconds of training, and the dev metrics of each task after it."""
    model = create(recipe)
    data = load_data(recipe, model.embedder)[0]
    run = Run(prepare(recipe, model, {**data, "dev": {}}), folder)
    run.save = lambda: None  # type: ignore[method-assign]
    log = Log(run.folder)
    started = perf_counter()
    finished = train(run, log)
    seconds = perf_counter() - started
    log.close()
    if not finished:  # a signal stopped it: what it measures is no result
        raise click.Abort
    model.eval()
    return seconds, measure(model.tasks, all_logits(model, data["dev"]), data["dev"])


def batches(rows: Rows, tokenizer: Any, size: int) -> Iterator[tuple[Any, torch.Tensor]]:
    """Padded batches, and the tag of each word's first piece."""
    for at in range(0, len(rows), size):
        part = rows[at : at + size]
        words = [row["tokens"] for row in part]
        found = tokenizer(words, is_split_into_words=True, truncation=True, max_length=LIMIT, padding=True,
                          return_tensors="pt")  # fmt: skip
        marks = torch.full(found["input_ids"].shape, NO_LABEL)
        for i, row in enumerate(part):
            seen: set[int] = set()
            for place, word in enumerate(found.word_ids(i)):
                if word is not None and word not in seen:
                    marks[i, place] = TAGS.index(row["tags"][word])
                    seen.add(word)
        yield found, marks


def theirs(train_rows: Rows, dev: Rows, training: Training) -> tuple[float, float]:
    """Seconds of training, and dev F1 after it."""
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    torch.manual_seed(training.seed)
    source, size = str(fetch(MODEL)), training.batch_size
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForTokenClassification.from_pretrained(source, num_labels=len(TAGS))
    head = {id(parameter) for parameter in model.classifier.parameters()}
    groups = [{"params": [p for p in model.parameters() if (id(p) in head) is own], "lr": rate, "full": rate}
              for own, rate in ((False, training.learning_rate), (True, training.head_learning_rate))]  # fmt: skip
    optimiser = torch.optim.AdamW(groups, weight_decay=training.weight_decay)
    total, step = training.epochs * -(-len(train_rows) // size), 0
    generator = random.Random(training.seed)
    started = perf_counter()
    model.train()
    for _ in range(training.epochs):
        for found, marks in batches(generator.sample(train_rows, len(train_rows)), tokenizer, size):
            for group in optimiser.param_groups:
                group["lr"] = group["full"] * rate_factor(step, total, training)
            model(**found, labels=marks).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip)
            optimiser.step()
            optimiser.zero_grad()
            step += 1
    seconds = perf_counter() - started
    model.eval()
    said = []
    with torch.inference_mode():
        for found, marks in batches(dev, tokenizer, size):
            best = model(**found).logits.argmax(dim=-1)
            said += [[TAGS[i] for i in row[own != NO_LABEL]] for row, own in zip(best, marks, strict=True)]
    return seconds, overall(tallied([runs(row["tags"]) for row in dev], [*map(runs, said)], LABELS).sums())["f1"]


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder with wnut17/{train,dev}.jsonl.")
@click.option("--rows", type=int, help="Train on so many rows.  [default: all]")
@click.option("--epochs", default=4, show_default=True, help="Epochs of each.")
@click.option("--rounds", default=3, show_default=True, help="Interleaved rounds, each with a seed of its own.")
@click.option("--save", type=click.Path(path_type=Path), help="Results folder to keep the result in.")
def main(data: Path, rows: int | None, epochs: int, rounds: int, save: Path | None) -> None:
    found: dict[str, list[tuple[float, float]]] = {"mtl": [], "plain loop": []}
    parts = {}
    for split in ("train", "dev"):
        path = data / "wnut17" / f"{split}.jsonl"
        if not path.is_file():
            raise click.ClickException(f"{path} is no file; expected rows of tokens and tags")
        parts[split] = path.read_text(encoding="utf-8").splitlines()[: rows if split == "train" else None]
    read = {split: [json.loads(line) for line in lines] for split, lines in parts.items()}
    for seed in range(rounds):
        training = Training(epochs=epochs, batch_size=32, learning_rate=1e-4, head_learning_rate=1e-3, seed=seed)
        with tempfile.TemporaryDirectory() as name:
            for split, lines in parts.items():
                (Path(name) / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
            files = {split: str(Path(name) / f"{split}.jsonl") for split in parts}
            recipe = Recipe(MODEL, (TaskSpec("ner", LABELS, kind="tokens", **files),), training)
            seconds, dev = ours(recipe, Path(name) / "run")
            found["mtl"].append((seconds, dev["ner"]["f1"]))
        found["plain loop"].append(theirs(read["train"], read["dev"], training))
        print(f"round {seed + 1}: { ({side: values[-1] for side, values in found.items()}) }", flush=True)
    means = {side: [sum(column) / rounds for column in zip(*values, strict=True)] for side, values in found.items()}
    print(table([["", "seconds", "dev F1"], *([side, *values] for side, values in means.items())]))
    print(f"speed: {means['plain loop'][0] / means['mtl'][0]:.2f} times the plain loop's")
    settings = {"model": MODEL, "rows": len(parts["train"]), "epochs": epochs, "threads": torch.get_num_threads()}
    result = {"machine": describe("transformers"), "settings": settings, "seconds and F1": found}
    write_result(result_path(save, "tagging"), result)


if __name__ == "__main__":
    main()
