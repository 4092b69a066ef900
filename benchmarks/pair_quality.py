"""How good vectors are after training on pairs, on labels, and on both: measured on development sets."""

from __future__ import annotations

import dataclasses
import json
import random
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import torch

from benchmarks.ablation import TREC, kept_results, read, summary_rows
from benchmarks.machine import describe, write_result
from mtl.checkpoints.fetch import fetch
from mtl.display import table
from mtl.encode.sentence_encoder import SentenceEncoder
from mtl.tasks.multitask import MultiTaskModel
from mtl.tasks.spec import Freeze, TaskSpec
from mtl.training.data import load_data
from mtl.training.loop import train
from mtl.training.metrics import all_logits, measure
from mtl.training.recipe import Recipe, Training
from mtl.training.report import Log
from mtl.training.run import Run, prepare
from mtl.training.start import create

MODEL = "all-MiniLM-L6-v2"
SIZES = (384, 256, 128, 64)
BASE = Training(epochs=1, batch_size=16, learning_rate=5e-6, head_learning_rate=1e-3, warmup=0.1)
SHOTS = 8  # labelled examples a class, where they are few
UNTRAINED, THEIRS = "untrained", "stsb, sentence-transformers' trainer"
PACKAGES = ("scikit-learn", "sentence-transformers", "transformers")

Rows = list[dict[str, Any]]


# The tasks


def splits(data: Path, rows: int | None) -> dict[str, dict[str, Rows]]:
    """Task -> split -> rows, of which those to train on are at most so many, in an order of their own.

    Raises:
        click.ClickException: a file is missing.
    """
    for name in ("stsb/train", "stsb/dev", "sst2/train", "sst2/dev", "trec/train"):
        if not (data / f"{name}.jsonl").is_file():
            raise click.ClickException(f"{data / name}.jsonl is no file; see `python -m benchmarks.pairs --help`")
    found = {
        name: {split: read(data / name / f"{split}.jsonl") for split in ("train", "dev")} for name in ("stsb", "sst2")
    }
    trec = read(data / "trec" / "train.jsonl")
    found["trec"] = {"train": [r for r in trec if r["fold"] != 0], "dev": [r for r in trec if r["fold"] == 0]}
    for task in found.values():
        random.Random(0).shuffle(task["train"])
        task["train"] = task["train"][:rows]
    return found


def few_of_each(rows: Rows, seed: int) -> Rows:
    """So many examples of each label, drawn by the seed."""
    by_label: dict[Any, Rows] = defaultdict(list)
    for row in rows:
        by_label[row["label"]].append(row)
    generator = random.Random(seed)
    return [
        row for label in sorted(by_label) for row in generator.sample(by_label[label], min(SHOTS, len(by_label[label])))
    ]


def write(path: Path, rows: Rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def tasks_of(found: Mapping[str, Mapping[str, Rows]], folder: Path, seed: int) -> dict[str, TaskSpec]:
    """The tasks, over files that are written to a folder; sst2-few and trec-few have few examples, by the seed."""
    few = {name: few_of_each(found[name]["train"], seed) for name in ("sst2", "trec")}
    labels = {"sst2": ("negative", "positive"), "trec": TREC}
    dev = {name: write(folder / f"{name}-dev.jsonl", task["dev"]) for name, task in found.items()}
    stsb = TaskSpec(
        "stsb", kind="similarity", text_field=("text_a", "text_b"), label_field="score", score_range=(0, 5),
        train=write(folder / "stsb.jsonl", found["stsb"]["train"]), dev=dev["stsb"],
    )  # fmt: skip
    whole = {name: TaskSpec(name, labels[name], train=write(folder / f"{name}.jsonl", found[name]["train"]),
                            dev=dev[name]) for name in labels}  # fmt: skip
    small = {f"{name}-few": dataclasses.replace(whole[name], train=write(folder / f"{name}-few.jsonl", few[name]))
             for name in labels}  # fmt: skip
    return {"stsb": stsb, **whole, **small}


def experiments(tasks: Mapping[str, TaskSpec], seed: int) -> dict[str, Recipe]:
    """Name -> recipe, in the order of their importance."""
    stsb, sst2 = tasks["stsb"], tasks["sst2"]

    def recipe(*chosen: TaskSpec, **changes: Any) -> Recipe:
        return Recipe(MODEL, chosen, dataclasses.replace(BASE, seed=seed, **changes))

    def frozen(depth: Freeze) -> Recipe:
        return recipe(dataclasses.replace(stsb, freeze=depth))

    found = {
        "stsb": recipe(stsb),
        "stsb, matryoshka": recipe(dataclasses.replace(stsb, matryoshka=SIZES)),
        "sst2": recipe(sst2),
        "stsb and sst2": recipe(stsb, sst2),
        "stsb and sst2, two micro-batches a step": recipe(stsb, sst2, accumulate=2),
        "stsb and sst2, of weight 0.5": recipe(stsb, dataclasses.replace(sst2, weight=0.5)),
        "stsb, embeddings frozen": frozen(0),
        "stsb, embeddings and 2 blocks frozen": frozen(2),
        "stsb, embeddings and 4 blocks frozen": frozen(4),
        "stsb, squared error": recipe(dataclasses.replace(stsb, loss="squared")),
    }
    for name in ("sst2", "trec"):
        few = tasks[f"{name}-few"]
        head = dataclasses.replace(few, freeze="encoder", dropout=0.0)
        pairs = TaskSpec("pairs", few.labels, kind="few-shot", train=few.train, freeze={"1": "none", "2": "encoder"})
        quick = {"learning_rate": 2e-5}  # so few rows are few steps
        options = {**quick, "head_learning_rate": 1e-2, "schedule": "constant", "batch_size": 8}
        found[f"{name} few: head on a frozen trunk"] = recipe(head, epochs=30, **options)
        found[f"{name} few: everything on labels"] = recipe(dataclasses.replace(few, dropout=0.0), epochs=30, **quick)
        found[f"{name} few: pairs, then the head"] = recipe(pairs, head, epochs=3, sampling="uniform", **options)
    return found


# Quality


def trained(recipe: Recipe) -> MultiTaskModel:
    """The model after the last epoch, no checkpoints kept."""
    model = create(recipe)
    data = load_data(recipe, model.embedder, ["train"])[0]
    with tempfile.TemporaryDirectory() as name:
        run = Run(prepare(recipe, model, {**data, "dev": {}, "test": {}}), Path(name))
        run.save = lambda: None  # type: ignore[method-assign]
        log = Log(Path(name))
        train(run, log)
        log.close()
    return model.eval()


def spearman_by_size(model: SentenceEncoder, stsb: TaskSpec) -> dict[str, float]:
    """Dev Spearman of the vectors and of their first so many dimensions."""
    sized = dataclasses.replace(stsb, matryoshka=SIZES)
    data = load_data(Recipe("", (sized,)), model, ["dev"])[0]["dev"]
    found = measure({"stsb": sized}, all_logits(MultiTaskModel(model, (sized,)), data), data)["stsb"]
    return {name: value for name, value in found.items() if name.startswith("spearman-")}


def dev_metrics(model: MultiTaskModel, stsb: TaskSpec) -> dict[str, float]:
    """Spearman by size, and the accuracy of each classifier; that alone, where examples are few."""
    labelled = tuple(task for task in model.tasks.values() if task.dev and task.labels)
    few = any(str(task.train).endswith("-few.jsonl") for task in labelled)
    found = {} if few else spearman_by_size(model.embedder, stsb)
    if labelled:
        data = load_data(Recipe("", labelled), model.embedder, ["dev"])[0]["dev"]
        for name, metrics in measure(model.tasks, all_logits(model, data), data).items():
            found[f"{name} accuracy"] = metrics["accuracy"]
    return found


def their_trainer(stsb: TaskSpec, folder: Path, seed: int, batch_size: int = BASE.batch_size) -> Any:
    """sentence-transformers' trainer with CoSENT and the settings of BASE, padding to the longest of each batch."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import CoSENTLoss

    torch.manual_seed(seed)
    model = SentenceTransformer(str(fetch(MODEL)), device="cpu")
    rows = [{"a": row["text_a"], "b": row["text_b"], "score": row["score"] / 5} for row in read(Path(str(stsb.train)))]
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder / "theirs"), per_device_train_batch_size=batch_size, num_train_epochs=1,
        learning_rate=BASE.learning_rate, warmup_steps=BASE.warmup, weight_decay=BASE.weight_decay,
        max_grad_norm=BASE.clip, seed=seed, use_cpu=True, report_to=[], save_strategy="no", logging_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    return SentenceTransformerTrainer(model, arguments, train_dataset=Dataset.from_list(rows), loss=CoSENTLoss(model))


def their_metrics(stsb: TaskSpec, folder: Path, seed: int) -> dict[str, float]:
    trainer = their_trainer(stsb, folder, seed)
    trainer.train()
    trainer.model.save(str(folder / "trained"))
    return spearman_by_size(SentenceEncoder.from_pretrained(folder / "trained"), stsb)


def result_of(title: str, tasks: Mapping[str, TaskSpec], folder: Path, seed: int) -> dict[str, float]:
    """The dev metrics of one experiment with one seed, and the seconds it took."""
    started = perf_counter()
    if title == UNTRAINED:
        found = spearman_by_size(SentenceEncoder.from_pretrained(MODEL), tasks["stsb"])
    elif title == THEIRS:
        found = their_metrics(tasks["stsb"], folder, seed)
    else:
        found = dev_metrics(trained(experiments(tasks, seed)[title]), tasks["stsb"])
    return {**found, "seconds": perf_counter() - started}


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder with stsb/, sst2/ and trec/.")
@click.option("--seeds", default=3, show_default=True, help="Seeds 0, 1, ... of each experiment.")
@click.option("--rows", type=click.IntRange(1), help="Rows to train each task on.  [default: all]")
@click.option("--only", multiple=True, help="Names of experiments; all by default.")
@click.option("--output", type=click.Path(path_type=Path), help="Where to keep the JSON.")
def quality(data: Path, seeds: int, rows: int | None, only: tuple[str, ...], output: Path | None) -> None:
    """Dev Spearman on STS-B and accuracy on SST-2 and TREC, of each experiment with each seed."""
    settings = {**dataclasses.asdict(BASE), "rows": rows, "threads": torch.get_num_threads()}
    results: dict[str, dict[str, dict[str, float]]] = kept_results(output, settings)
    found = splits(data, rows)

    def whole() -> dict[str, Any]:
        return {"machine": describe(*PACKAGES), "model": MODEL, "settings": settings, "results": results}

    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as name:
            tasks = tasks_of(found, Path(name), seed)
            for title in only or (UNTRAINED, "stsb", THEIRS, *experiments(tasks, seed)):
                if str(seed) in results.get(title, {}) or (title == UNTRAINED and seed):
                    continue
                print(f"-- {title}, seed {seed}", flush=True)
                results.setdefault(title, {})[str(seed)] = result_of(title, tasks, Path(name), seed)
                write_result(output, whole())
    print(table(list(summary_rows({title: list(runs.values()) for title, runs in results.items()}))))
    write_result(output, whole())
