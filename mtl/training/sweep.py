"""Many runs of one recipe: every combination of some settings' values, each with several seeds, and what comes of them.

Each run has a folder, named after its settings. One that is done is not run again, and one that was stopped goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from mtl.errors import CheckpointError, RecipeError, differences, one_line
from mtl.tasks.spec import TaskSpec
from mtl.training.changes import changed, kept
from mtl.training.data import completed, fingerprints, load_data
from mtl.training.metrics import chosen_metric, metric_sign
from mtl.training.recipe import Recipe, as_recipe
from mtl.training.report import Reporter, drawing
from mtl.training.session import train
from mtl.training.start import create

SEED = "training.seed"
LONGEST = 100  # letters of a run's folder's name
WORDS = ("true", "false", "null", "NaN", "Infinity")  # strings that look like other values


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a sweep: its settings by name, and its folder."""

    settings: dict[str, Any]
    recipe: Recipe
    folder: Path

    @property
    def name(self) -> str:
        return ", ".join(f"{name}={said(value)}" for name, value in self.settings.items())

    @property
    def done(self) -> bool:
        return (self.folder / "model" / "config.json").is_file() and (self.folder / "results.json").is_file()

    @property
    def combination(self) -> tuple[tuple[str, str], ...]:
        """Its settings but the seed, as words."""
        return tuple((name, said(value)) for name, value in self.settings.items() if name != SEED)

    @cached_property
    def tasks(self) -> dict[str, TaskSpec]:
        """The tasks as they are trained and measured, with the labels of their training data."""
        return {task.name: task for task in completed(self.recipe)[0].tasks}

    @property
    def measured(self) -> dict[str, str]:
        """The main metric of each task that has dev data."""
        return {name: task.handler.main_metric for name, task in self.tasks.items() if task.dev}

    @property
    def compared(self) -> str:
        """What the metric is called by which runs are compared."""
        best, measured = self.recipe.training.best, self.measured
        task, _, metric = best.partition(".")
        if best == "mean" and len(measured) == 1:
            task, metric = next(iter(measured.items()))
        return f"{task} {metric}".strip()

    def metrics(self) -> dict[str, float]:
        """The main dev metric of each task, and ``compared``; a CheckpointError if the results are damaged."""
        path = self.folder / "results.json"
        best = self.recipe.training.best
        try:
            found = json.loads(path.read_text(encoding="utf-8"))["metrics"]["dev"]
            main = {f"{name} {metric}": float(found[name][metric]) for name, metric in self.measured.items()}
            return {**main, self.compared: chosen_metric(best, self.tasks, found) * metric_sign(best, self.tasks)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} is damaged ({one_line(error)}); delete {self.folder}") from None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a sweep came to: for each combination of settings and each metric, its value in every seed."""

    folder: Path
    values: dict[tuple[tuple[str, str], ...], dict[str, list[float]]]
    compared: str  # the metric by which runs are compared
    sign: int  # 1 where more of it is better, else -1

    @property
    def best(self) -> tuple[tuple[str, str], ...]:
        """The combination whose mean is the best; of equal ones the first."""
        return max(self.values, key=lambda key: self.sign * statistics.fmean(self.values[key][self.compared]))

    def rows(self) -> list[list[object]]:
        """A table of means and spreads (the standard deviation over seeds), with its header."""
        first = next(iter(self.values))
        metrics = [*self.values[first]]
        header = [*(name for name, _ in first), "runs"]
        rows: list[list[object]] = [[*header, *(word for metric in metrics for word in (metric, "spread"))]]
        for key, found in self.values.items():
            numbers = [x for metric in metrics for x in (statistics.fmean(found[metric]), spread(found[metric]))]
            rows.append([*(value for _, value in key), len(found[metrics[0]]), *numbers])
        return rows


def said(value: Any) -> str:
    """A setting's value in words, which no other value has."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def spread(values: Sequence[float]) -> float:
    """The standard deviation of a sample; 0 of a single one, which says nothing of it."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def folder_name(settings: Mapping[str, Any]) -> str:
    """A folder's name for settings, which no others have: where the name alone would not do, with a digest."""
    exact = json.dumps(settings, default=str)
    whole = ",".join(f"{name}={said(value)}" for name, value in settings.items())
    plain = re.sub(r"[^\w.=,+-]", "-", whole, flags=re.ASCII)[:LONGEST]
    same = all(isinstance(value, (int, float)) or (re.fullmatch(r"[A-Za-z][\w.-]*", str(value)) and value not in WORDS)
               for value in settings.values())  # fmt: skip
    return plain if plain == whole and same else f"{plain}~{hashlib.sha256(exact.encode()).hexdigest()[:8]}"


def plan(recipe: Recipe, changes: Mapping[str, Sequence[Any]], seeds: int, folder: Path) -> list[Trial]:
    """The runs, each combination's seeds side by side, from the recipe's own seed on; a RecipeError for a setting that
    is unknown, or a value that will not do or is there twice."""
    if seeds < 1:
        raise RecipeError(f"seeds are {seeds}; expected 1 or more")
    if SEED in changes and seeds != 1:
        raise RecipeError(f"{SEED} and --seeds are given; expected one of the two")
    for name, values in changes.items():
        words = [said(value) for value in values]
        if twice := [word for word in words if words.count(word) > 1]:
            raise RecipeError(f"--set {name} has {twice[0]} twice; expected each value once")
    seed = recipe.training.seed
    all_changes = {**changes, **({} if SEED in changes else {SEED: [*range(seed, seed + seeds)]})}
    trials = []
    for values in product(*all_changes.values()):
        settings = dict(zip(all_changes, values, strict=True))
        trials.append(Trial(settings, changed(recipe, settings), folder / folder_name(settings)))
    first = trials[0]
    if not all(trial.measured for trial in trials):
        raise RecipeError("a sweep compares runs on dev data, and no task names any; expected dev = a file, or a share")
    if different := [trial for trial in trials if (trial.measured, trial.compared) != (first.measured, first.compared)]:
        raise RecipeError(f"{different[0].name}: is measured otherwise than {first.name}; expected the same metrics")
    return trials


def sweep(
    recipe: Recipe | str | Path,
    changes: Mapping[str, Sequence[Any]],
    seeds: int = 1,
    folder: str | Path | None = None,
    *,
    device: str = "cpu",
    threads: int | None = None,
    report: Callable[[int, Sequence[Trial]], Reporter | None] | None = None,
) -> Outcome:
    """Run a recipe with each combination of values of some settings, and several seeds of each; what came of them.

    Args:
        recipe: As for ``train``.
        changes: The values of each setting by its name: {"training.learning_rate": [1e-5, 5e-5]}.
        seeds: Runs of each combination: with the recipe's seed, the next one and so on.
        folder: Where each run has its folder; by default ``runs/<recipe>-sweep``. The same call again goes on there.
        device, threads: As for ``train``.
        report: Gives the reporter of the run of that number, of all runs; it is asked, too, of one that is done.

    Raises:
        TrainingStopped: Ctrl-C or SIGTERM; the run is saved, and the same call goes on with it.
        CheckpointError: a run that is done had other settings, or other data.
        MtlError: see mtl.errors.
    """
    read, name = as_recipe(recipe)
    folder = Path(folder) if folder else Path("runs") / f"{name}-sweep"
    trials = plan(read, changes, seeds, folder)
    known: dict[str, Any] = {}
    for number, trial in enumerate(trials):
        told = report(number, trials) if report else None
        if trial.done:
            check_same(trial, known)
        else:
            going = trial.folder.is_dir() and any(trial.folder.iterdir())
            train(read, trial.folder, changes=trial.settings, resume=going, device=device, threads=threads, report=told)
    values: dict[tuple[tuple[str, str], ...], dict[str, list[float]]] = {}
    for trial in trials:
        for metric, value in trial.metrics().items():
            values.setdefault(trial.combination, {}).setdefault(metric, []).append(value)
    first = trials[0]
    return Outcome(folder, values, first.compared, metric_sign(first.recipe.training.best, first.tasks))


def check_same(trial: Trial, known: dict[str, Any]) -> None:
    """That a run that is done had the settings and data that are asked for now.

    ``known`` keeps the data's fingerprints, which are the same for all runs that read them alike.

    Raises:
        CheckpointError: it had others; it says which.
    """
    now = json.loads(json.dumps(trial.recipe.as_dict(), default=str))
    training = {name: now["training"][name] for name in ("max_length", "seed")}
    key = json.dumps([now["model"], now.get("layers"), now["task"], training])
    if key not in known:
        whole = completed(trial.recipe)[0]
        known[key] = fingerprints(load_data(whole, create(whole).embedder)[0])
    before = kept(trial.folder)
    found = differences(before.get("recipe", {}), now) or differences(before.get("data", {}), known[key])
    if found:
        raise CheckpointError(f"{trial.folder} is another run: {'; '.join(found)}; delete it, or say another --output")


def plot(outcome: Outcome, path: Path) -> None:
    """Write a picture with a panel for each metric: every run a point, and each combination's mean and spread."""
    metrics = [*next(iter(outcome.values.values()))]
    words = [" ".join(f"{name.rpartition('.')[2]}={value}" for name, value in key) for key in outcome.values]
    height = 1.5 + 0.4 * len(words)
    with drawing(path, len(metrics), (6 * len(metrics), height)) as panels:
        for axes, metric in zip(panels, metrics, strict=True):
            for at, found in enumerate(outcome.values.values()):
                values = found[metric]
                axes.errorbar(statistics.fmean(values), at, xerr=spread(values), fmt="o", color="C0", capsize=4)
                axes.scatter(values, [at] * len(values), s=12, alpha=0.5, color="C1", zorder=3)
            axes.set_yticks(range(len(words)), words)
            axes.invert_yaxis()
            axes.set(xlabel=f"dev {metric}", title="mean, spread and single runs")
