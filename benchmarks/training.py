"""Training speed on SST-2 against transformers' Trainer: the same trunk, data, batch size and number of steps.

    python -m benchmarks.training --data FOLDER     (FOLDER/sst2/train.jsonl: {"text", "label"})

Rounds are interleaved, and each figure is the median of its rounds. Three comparisons: all weights trained; the
trunk frozen; and the trunk frozen from the second epoch on, when what it gives is remembered.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

import click
import torch

from benchmarks.machine import describe, write_result
from mtl.encode.tasks import TaskSpec
from mtl.training.data import load_data
from mtl.training.loop import Run, create, train
from mtl.training.recipe import Freeze, Recipe, Training
from mtl.training.report import Log, table
from weights.fetch import fetch

BATCH = 32
MODEL = "all-MiniLM-L6-v2"


def ours(data: Path, steps: int, freeze: Freeze, folder: Path) -> float:
    """Texts per second of our loop."""
    task = TaskSpec("sst2", ("negative", "positive"), train=str(data), freeze=freeze)
    recipe = Recipe(MODEL, (task,), Training(epochs=1, batch_size=BATCH))
    model = create(recipe)
    run = Run(recipe, model, load_data(recipe, model.embedder)[0], folder)
    log = Log(folder)
    started = time.perf_counter()
    train(run, log, until=steps)
    seconds = time.perf_counter() - started
    log.close()
    return steps * BATCH / seconds


def cached(data: Path, folder: Path) -> tuple[float, float]:
    """Texts per second of the first epoch of a frozen trunk, and of those after it."""
    task = TaskSpec("sst2", ("negative", "positive"), train=str(data), freeze="encoder")
    recipe = Recipe(MODEL, (task,), Training(epochs=4, batch_size=BATCH))
    model = create(recipe)
    run = Run(recipe, model, load_data(recipe, model.embedder)[0], folder)
    log = Log(folder)
    rates = []
    epoch = run.schedule.steps_per_epoch
    for epochs in (1, 3):  # checkpoints are written at the end of an epoch: leave them out
        run.save = lambda: None  # type: ignore[method-assign]
        started = time.perf_counter()
        train(run, log, until=run.step + epochs * epoch)
        rates.append(epochs * run.schedule.sizes["sst2"] / (time.perf_counter() - started))
    log.close()
    return rates[0], rates[1]


def theirs(data: Path, steps: int, frozen: bool, folder: Path) -> float:
    """Texts per second of transformers' Trainer, by its own count; padded to the longest of each batch."""
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    source = str(fetch(MODEL))
    tokenizer = AutoTokenizer.from_pretrained(source)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    features = [{**tokenizer(r["text"], truncation=True, max_length=256), "label": int(r["label"])} for r in rows]
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=2)
    if frozen:
        model.base_model.requires_grad_(False)
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH,
        max_steps=steps,
        learning_rate=5e-5,
        warmup_steps=0.1,
        remove_unused_columns=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model, arguments, train_dataset=features,
                      data_collator=DataCollatorWithPadding(tokenizer))  # fmt: skip
    return float(trainer.train().metrics["train_samples_per_second"])


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder with sst2/train.jsonl.")
@click.option("--steps", default=30, show_default=True, help="Steps a round.")
@click.option("--rounds", default=3, show_default=True, help="Interleaved rounds.")
@click.option("--output", type=click.Path(path_type=Path), help="Where to write the JSON too.")
def main(data: Path, steps: int, rounds: int, output: Path | None) -> None:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    source = data / "sst2" / "train.jsonl"
    if not source.is_file():
        raise click.ClickException(f"{source} is no file; expected rows of text and label (0, 1)")
    measured: dict[str, list[float]] = {}
    for number in range(1, rounds + 1):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            figures = {
                "ours": ours(source, steps, "none", folder / "a"),
                "Trainer": theirs(source, steps, False, folder / "b"),
                "ours, frozen trunk": ours(source, steps, "encoder", folder / "c"),
                "Trainer, frozen trunk": theirs(source, steps, True, folder / "d"),
            }
            first, later = cached(source, folder / "e")
            figures |= {"ours, frozen, epoch 1": first, "ours, frozen, later epochs": later}
        print(f"round {number}: " + "  ".join(f"{key} {value:.1f}" for key, value in figures.items()), flush=True)
        for key, value in figures.items():
            measured.setdefault(key, []).append(value)
    medians = {key: statistics.median(values) for key, values in measured.items()}
    ratios = {
        "ours / Trainer": medians["ours"] / medians["Trainer"],
        "ours / Trainer, frozen trunk": medians["ours, frozen trunk"] / medians["Trainer, frozen trunk"],
        "frozen and remembered / Trainer": medians["ours, frozen, later epochs"] / medians["Trainer"],
        "frozen and remembered / Trainer, frozen trunk": medians["ours, frozen, later epochs"]
        / medians["Trainer, frozen trunk"],
    }
    print(table([["texts per second", "median"], *([key, value] for key, value in medians.items())]))
    print(table([["ratio", "times"], *([key, value] for key, value in ratios.items())]))
    machine = describe("transformers", "accelerate")
    settings = {"model": MODEL, "batch": BATCH, "steps": steps, "rounds": rounds, "threads": torch.get_num_threads()}
    write_result(output, {"machine": machine, "settings": settings, "measured": measured, "ratios": ratios})


if __name__ == "__main__":
    main()
