"""A tagger, a pair judge and a classifier on one trunk against each alone, with freezing: a section of analysis.md.

    python -m benchmarks.sharing --data FOLDER

FOLDER holds wnut17/{train,dev}.jsonl (tokens, tags), sick/{train,dev}.jsonl (text_a, text_b, label) and
trec/train.jsonl (label, and fold, of which 0 is the dev set). Every run starts from the same pretrained trunk and is
measured on the dev sets after its last step. Each seed's runs are made one after another; --save keeps them, and
those that it has from before are not made again.
"""

from __future__ import annotations

import dataclasses
import json
import random
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.ablation import BASE, TREC, kept_results, mean_and_error, mean_and_spread, read
from benchmarks.machine import describe, result_path, write_result
from benchmarks.tagging import LABELS, MODEL, ours
from mtl.display import table
from mtl.tasks.spec import TaskSpec
from mtl.training.recipe import Recipe

METRICS = {"tagger": "f1", "judge": "accuracy", "classifier": "accuracy"}
HALF = 3  # of the trunk's six blocks, with the embeddings below them


def prepare_data(data: Path, folder: Path, rows: int) -> list[TaskSpec]:
    """The three tasks, with so many rows to train each on, the same ones in all runs.

    Raises:
        click.ClickException: a file is missing.
    """
    names = ("wnut17/train", "wnut17/dev", "sick/train", "sick/dev", "trec/train")
    paths = {name: data / f"{name}.jsonl" for name in names}
    if missing := [path for path in paths.values() if not path.is_file()]:
        raise click.ClickException(f"{missing[0]} is no file; see `python -m benchmarks.sharing --help`")
    found = {name: read(path) for name, path in paths.items()}
    folds = found.pop("trec/train")
    found |= {"trec/train": [r for r in folds if r["fold"] != 0], "trec/dev": [r for r in folds if r["fold"] == 0]}
    files = {}
    for name, whole in found.items():
        kept = random.Random(0).sample(whole, min(rows, len(whole))) if name.endswith("train") else whole
        files[name] = folder / f"{name.replace('/', '-')}.jsonl"
        files[name].write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    def of(name: str) -> dict[str, str]:
        return {split: str(files[f"{name}/{split}"]) for split in ("train", "dev")}

    pairs = {"joint": True, "text_field": ("text_a", "text_b")}
    return [
        TaskSpec("tagger", LABELS, kind="tokens", **of("wnut17")),
        TaskSpec("judge", ("entailment", "neutral", "contradiction"), **pairs, **of("sick")),
        TaskSpec("classifier", TREC, **of("trec")),
    ]


def experiments(tasks: list[TaskSpec]) -> dict[str, list[list[TaskSpec]]]:
    """Name -> the recipes' tasks: those that share a trunk stand in one list."""
    frozen = [dataclasses.replace(task, freeze=HALF) for task in tasks]
    return {
        "alone": [[task] for task in tasks],
        "one trunk": [tasks],
        "alone, the lower half frozen": [[task] for task in frozen],
        "one trunk, the lower half frozen": [frozen],
    }


def differences(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[list[object]]:
    """How far metrics lie from those of the tasks alone, seed by seed: the mean, and its standard error."""
    base = results.get("alone", {})
    yield ["less 'alone'", *METRICS]
    for title, found in results.items():
        seeds = [seed for seed in found if seed in base]
        if title != "alone" and len(seeds) > 1:
            yield [title, *(mean_and_error([found[s][task] - base[s][task] for s in seeds]) for task in METRICS)]


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder with wnut17/, sick/ and trec/.")
@click.option("--rows", default=1000, show_default=True, type=click.IntRange(1), help="Rows to train each task on.")
@click.option("--epochs", default=BASE.epochs, show_default=True, type=click.IntRange(1), help="Epochs of each run.")
@click.option("--accumulate", default=1, show_default=True, type=click.IntRange(1), help="Batches a step.")
@click.option("--precision", default="fp32", show_default=True, help="What products are computed in while training.")
@click.option("--seed", "seeds", multiple=True, type=int, default=(0, 1, 2), show_default=True, help="Seeds of each.")
@click.option("--only", multiple=True, help="Names of experiments; all by default.")
@click.option("--save", type=click.Path(path_type=Path), help="Results folder to keep the result in.")
def main(
    data: Path,
    rows: int,
    epochs: int,
    accumulate: int,
    precision: str,
    seeds: tuple[int, ...],
    only: tuple[str, ...],
    save: Path | None,
) -> None:
    training = dataclasses.replace(BASE, epochs=epochs, accumulate=accumulate, precision=precision)
    settings = {**dataclasses.asdict(training), "model": MODEL, "rows": rows, "threads": torch.get_num_threads()}
    output = result_path(save, "sharing")
    results = kept_results(output, settings)
    for seed in seeds:
        with tempfile.TemporaryDirectory() as name:
            for title, recipes in experiments(prepare_data(data, Path(name), rows)).items():
                if (only and title not in only) or str(seed) in results.get(title, {}):
                    continue
                found: dict[str, Any] = {"seconds": 0.0}
                for tasks in recipes:
                    recipe = Recipe(MODEL, tasks, dataclasses.replace(training, seed=seed))
                    seconds, dev = ours(recipe, Path(name) / "run")
                    found |= {task: dev[task][METRICS[task]] for task in dev}
                    found["seconds"] += seconds
                print(f"-- {title}, seed {seed}: {found}", flush=True)
                results.setdefault(title, {})[str(seed)] = found
                write_result(output, {"machine": describe("scikit-learn"), "settings": settings, "results": results})
    columns = (*METRICS, "seconds")
    means = [[title, len(found), *(mean_and_spread([run[key] for run in found.values()]) for key in columns)]
             for title, found in results.items()]  # fmt: skip
    print(table([["experiment", "seeds", *columns], *means]), table(list(differences(results))), sep="\n\n")
    write_result(output, {"machine": describe("scikit-learn"), "settings": settings, "results": results})


if __name__ == "__main__":
    main()
