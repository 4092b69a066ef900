"""The experiments behind analysis.md: what to freeze, what to start from, one task or two.

    python -m benchmarks.ablation --data FOLDER

FOLDER holds sst2/{train,dev}.jsonl (label 0, 1) and trec/train.jsonl (label, and fold, of which one is the dev set).
Each experiment trains from the same pretrained trunk, with every seed and every fold of TREC, and is measured on the
dev sets. The last line is the result as JSON; --output keeps it, and one made before is continued.
"""

from __future__ import annotations

import dataclasses
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.machine import describe, write_result
from mtl.display import table
from mtl.tasks.spec import TaskSpec
from mtl.training.data import load_data
from mtl.training.loop import train
from mtl.training.recipe import Recipe, Training
from mtl.training.report import Log
from mtl.training.run import Run, prepare
from mtl.training.start import create

TREC = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
MODEL = "all-MiniLM-L6-v2"
PLAIN = "nothing frozen"
BASE = Training(epochs=3, batch_size=16, learning_rate=1e-4, head_learning_rate=1e-3, warmup=0.1)


def prepare_data(data: Path, folder: Path, rows: int | None, fold: int) -> tuple[TaskSpec, TaskSpec]:
    """The two tasks, with a fold of TREC as its dev set, and at most so many rows to train each on.

    Raises:
        click.ClickException: a file is missing.
    """
    files = [data / "sst2" / "train.jsonl", data / "sst2" / "dev.jsonl", data / "trec" / "train.jsonl"]
    for path in files:
        if not path.is_file():
            raise click.ClickException(f"{path} is no file; see `python -m benchmarks.ablation --help`")
    sst2 = {"train": read(files[0]), "dev": read(files[1])}
    folds = read(files[2])
    trec = {"train": [r for r in folds if r["fold"] != fold], "dev": [r for r in folds if r["fold"] == fold]}
    for name, splits in (("sst2", sst2), ("trec", trec)):
        random.Random(0).shuffle(splits["train"])
        splits["train"] = splits["train"][:rows]
        for split, kept in splits.items():
            lines = "".join(json.dumps(row) + "\n" for row in kept)
            (folder / f"{name}-{split}.jsonl").write_text(lines, encoding="utf-8")
    sources = {name: {split: str(folder / f"{name}-{split}.jsonl") for split in ("train", "dev")}
               for name in ("sst2", "trec")}  # fmt: skip
    return TaskSpec("sst2", ("negative", "positive"), **sources["sst2"]), TaskSpec("trec", TREC, **sources["trec"])


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def experiments(sst2: TaskSpec, trec: TaskSpec) -> dict[str, tuple[tuple[TaskSpec, ...], Training]]:
    """Name -> tasks and settings."""

    def both(**changes: Any) -> tuple[TaskSpec, ...]:
        return tuple(dataclasses.replace(task, **changes) for task in (sst2, trec))

    more = dataclasses.replace(BASE, epochs=10)
    return {
        "heads on a frozen trunk": (both(freeze="encoder"), more),
        "heads on a frozen trunk, attention pooling": (both(freeze="encoder", pooling=("attention",)), more),
        "embeddings and 4 blocks frozen": (both(freeze=4), BASE),
        "embeddings and 2 blocks frozen": (both(freeze=2), BASE),
        "embeddings frozen": (both(freeze=0), BASE),
        PLAIN: (both(), BASE),
        "one head frozen (sst2's), the rest trained": ((dataclasses.replace(sst2, freeze_head=True), trec), BASE),
        "all frozen but the heads for one epoch, then 3, then nothing": (
            both(freeze={"1": "encoder", "2": 3, "3": "none"}),
            BASE,
        ),
        "trunk frozen for sst2, trained by trec": ((dataclasses.replace(sst2, freeze="encoder"), trec), BASE),
        "layer-wise decay 0.8": (both(), dataclasses.replace(BASE, layer_decay=0.8)),
        "sst2 alone": ((sst2,), BASE),
        "trec alone": ((trec,), BASE),
        "uniform sampling": (both(), dataclasses.replace(BASE, sampling="uniform")),
        "learned loss weights": (both(), dataclasses.replace(BASE, loss_weights="uncertainty")),
    }


def measure(tasks: tuple[TaskSpec, ...], training: Training, model_name: str) -> dict[str, Any]:
    """Train, and give the best epoch's dev metrics, seconds per epoch, and the number of trained parameters."""
    recipe = Recipe(model_name, tasks, training)
    model = create(recipe)
    with tempfile.TemporaryDirectory() as name:
        run = Run(prepare(recipe, model, load_data(recipe, model.embedder)[0]), Path(name))
        log = Log(Path(name))
        run.save = lambda: None  # type: ignore[method-assign]
        seconds = []
        for epoch in range(1, training.epochs + 1):
            started = time.perf_counter()
            train(run, log, until=epoch * run.schedule.steps_per_epoch)
            seconds.append(time.perf_counter() - started)
        log.close()
        trained = set().union(*run.plan.phases[-1].trained.values())
        sizes = {key: parameter.numel() for key, parameter in model.named_parameters()}
        return {
            "dev": [record["dev"] for record in log.epochs],
            "seconds": seconds,
            "trained": sum(sizes[key] for key in trained),
        }


def best_epoch(result: dict[str, Any]) -> dict[str, float]:
    """The dev metrics of the epoch with the highest mean of accuracies, and what it took."""
    best = max(result["dev"], key=lambda dev: statistics.mean(task["accuracy"] for task in dev.values()))
    found = {f"{task} {name}": value for task, values in best.items() for name, value in values.items()}
    return {**found, "s, epoch 1": result["seconds"][0], "s, last": result["seconds"][-1]}


def mean_and_spread(values: Sequence[float]) -> str:
    """The mean, and the standard deviation of single runs where there are several."""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}" if values else ""


def summary_rows(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> Iterator[list[object]]:
    """An experiment a row, with the number of its runs and the mean and spread of each metric."""
    columns = list(dict.fromkeys(key for found in runs.values() for run in found for key in run))
    yield ["experiment", "runs", *columns]
    for title, found in runs.items():
        cells = (mean_and_spread([run[column] for run in found if column in run]) for column in columns)
        yield [title, len(found), *cells]


def differences(results: Mapping[str, Mapping[str, Any]]) -> Iterator[list[object]]:
    """How far each experiment's accuracies lie from ``PLAIN``'s, run by run: the mean, and its standard error."""
    base = {run: best_epoch(result) for run, result in results.get(PLAIN, {}).items()}
    yield [f"less {PLAIN!r}", "runs", *(f"{task} accuracy" for task in ("sst2", "trec"))]
    for title, found in results.items():
        pairs = [(best_epoch(result), base[run]) for run, result in found.items() if run in base]
        cells = [[one[name] - other[name] for one, other in pairs if name in one]
                 for name in ("sst2 accuracy", "trec accuracy")]  # fmt: skip
        if title != PLAIN and len(pairs) > 1:
            yield [title, len(pairs), *(mean_and_error(cell) for cell in cells)]


def mean_and_error(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):+.4f} ± {statistics.stdev(values) / len(values) ** 0.5:.4f}" if values else ""


def kept_results(output: Path | None, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a file has from before: experiment -> run -> result.

    Raises:
        click.ClickException: it was made with other settings.
    """
    if not output or not output.exists():
        return {}
    kept = json.loads(output.read_text(encoding="utf-8"))
    differing = [name for name in settings if name != "threads" and kept["settings"].get(name) != settings[name]]
    if differing:
        raise click.ClickException(f"{output} was made with another {', '.join(differing)}; name another --output")
    return dict(kept["results"])


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder with sst2/ and trec/.")
@click.option("--model", default=MODEL, show_default=True, help="The trunk to start from.")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Seeds 0, 1, ... of each.")
@click.option("--folds", default=2, show_default=True, type=click.IntRange(1, 10), help="TREC's dev folds 0, 1, ...")
@click.option("--rows", type=click.IntRange(1), help="Rows to train each task on.  [default: all]")
@click.option("--only", multiple=True, help="Names of experiments; all by default.")
@click.option("--output", type=click.Path(path_type=Path), help="Where to keep the JSON.")
def main(
    data: Path, model: str, seeds: int, folds: int, rows: int | None, only: tuple[str, ...], output: Path | None
) -> None:
    settings = {**dataclasses.asdict(BASE), "model": model, "rows": rows, "threads": torch.get_num_threads()}
    results = kept_results(output, settings)

    def whole() -> dict[str, Any]:
        return {"machine": describe("scikit-learn"), "settings": settings, "results": results}

    for seed, fold in product(range(seeds), range(folds)):
        with tempfile.TemporaryDirectory() as name:
            for title, (tasks, training) in experiments(*prepare_data(data, Path(name), rows, fold)).items():
                key = f"seed {seed}, fold {fold}"
                if (only and title not in only) or key in results.get(title, {}):
                    continue
                print(f"-- {title}, {key}", flush=True)
                found = measure(tasks, dataclasses.replace(training, seed=seed), model)
                results.setdefault(title, {})[key] = found
                write_result(output, whole())
    runs = {title: [best_epoch(result) for result in found.values()] for title, found in results.items()}
    print(table(list(summary_rows(runs))), table(list(differences(results))), sep="\n\n")
    write_result(output, whole())


if __name__ == "__main__":
    main()
