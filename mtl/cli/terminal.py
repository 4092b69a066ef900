"""What a user sees of training and of metrics: settings before, a bar, tables and pictures after."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import click
from tqdm import tqdm

from mtl.display import table
from mtl.errors import extra
from mtl.training.metrics import metric_sign
from mtl.training.plots import plot_vectors
from mtl.training.report import Confusions, Log, Metrics, Reporter, plot
from mtl.training.run import Plan, Run


def say(note: str) -> None:
    click.echo(f"note: {note}", err=True)


def metrics_table(metrics: Metrics) -> str:
    """A row per task; tasks of different kinds have different columns. What is said of labels has a table by task."""
    whole = {name: {key: x for key, x in values.items() if "." not in key} for name, values in metrics.items()}
    columns = list(dict.fromkeys(key for values in whole.values() for key in values))
    rows = [[name, *(values.get(key, "") for key in columns)] for name, values in whole.items()]
    by_label = [labels_table(name, values) for name, values in metrics.items()]
    return "\n\n".join(filter(None, [table([["task", *columns], *rows]), *by_label]))


def labels_table(task: str, values: Mapping[str, float]) -> str:
    """A row per label, of metrics called ``label.metric``; nothing where there are none."""
    by_label: dict[str, dict[str, object]] = {}
    for key, x in values.items():
        label, dot, metric = key.rpartition(".")
        if dot:
            by_label.setdefault(label, {})[metric] = int(x) if metric == "support" else x
    columns = list(dict.fromkeys(metric for found in by_label.values() for metric in found))
    rows = [[label, *(found.get(metric, "") for metric in columns)] for label, found in by_label.items()]
    return table([[task, *columns], *rows]) if rows else ""


def intervals_table(found: Mapping[str, Mapping[str, tuple[float, float, float]]], value: str) -> str:
    """A row per task and metric: what it is, and the ends of its interval."""
    rows = [[task, name, *numbers] for task, metrics in found.items() for name, numbers in metrics.items()]
    return table([["task", "metric", value, "low", "high"], *rows])


def confusion_table(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    return table([["true \\ predicted", *labels], *([label, *row] for label, row in zip(labels, counts, strict=True))])


def show_metrics(title: str, metrics: Metrics, confusions: Confusions, labels: Mapping[str, Sequence[str]]) -> None:
    """Tables of each task's metrics and confusion matrix."""
    click.echo(f"\n{title}\n{metrics_table(metrics)}")
    for name, counts in confusions.items():
        click.echo(f"\n{title.partition(',')[0]} {name}\n{confusion_table(labels[name], counts)}")


def tasks_table(plan: Plan) -> str:
    """What each task trains: a row per task and change of freezing."""
    model, data, effective = plan.model, plan.data, plan.schedule.effective_epochs(plan.recipe.training.epochs)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    rows: list[list[object]] = [
        ["task", "kind", "outputs", "from epoch", "frozen", "head", "trained", "train", "dev", "epochs"]
    ]
    for name, task in model.tasks.items():
        before: object = ""
        for phase in plan.phases:
            depth = phase.depths[name]
            if depth == before:
                continue
            before = depth
            frozen = "nothing" if depth is None else f"embeddings + {depth} of {model.encoder.config.n_layers} blocks"
            trained = f"{sum(sizes[parameter] for parameter in phase.trained[name]):,}"
            dev = len(data["dev"][name]) if name in data["dev"] else 0
            head = "frozen" if task.freeze_head else "trained"
            rows.append([name, task.kind, model.outputs(name), phase.first, frozen, head, trained,
                         plan.schedule.sizes[name], dev, f"{effective[name]:.2f}"])  # fmt: skip
    return table(rows)


class Terminal(Reporter):
    """Tables and lines on standard output, notes and a bar on standard error, pictures in the run's folder."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self.bar = tqdm(disable=True)
        self.texts, self.started = 0, time.perf_counter()

    def note(self, line: str) -> None:
        say(line)

    def begin(self, run: Run, name: str, threads: int) -> None:
        self.run, plan = run, run.plan
        values = {"recipe": name, "model": plan.recipe.model, "output": run.folder, "device": run.device,
                  "threads": threads, **dataclasses.asdict(plan.recipe.training),
                  "precision": plan.precision}  # fmt: skip
        click.echo(click.wrap_text("  ".join(f"{name}={value}" for name, value in values.items()), 110))
        if not find_spec("matplotlib"):
            say(f"no picture of the losses: it needs matplotlib; {extra('train')}")
        click.echo("\n" + tasks_table(plan))
        common = plan.phases[0].common
        if common is not None:
            click.echo(f"no task trains the embeddings and the first {common} blocks: "
                       "they are computed only once for each text")  # fmt: skip
        at = f", going on after step {run.step}" if run.step else ""
        click.echo(f"\n{run.schedule.steps_per_epoch} steps an epoch, {plan.total} in all{at}")
        self.bar = tqdm(total=plan.total, initial=run.step, unit="step", disable=None, leave=False)
        self.started = time.perf_counter()

    def step(self, record: Mapping[str, Any], texts: int) -> None:
        self.texts += texts
        self.bar.update()
        self.bar.set_postfix({name: f"{loss:.3f}" for name, loss in record["loss"].items()}, refresh=False)

    def epoch(self, record: Mapping[str, Any], losses: Mapping[str, float]) -> None:
        seconds = time.perf_counter() - self.started
        means = "  ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
        dev = "  ".join(
            f"{name} {' '.join(f'{key} {value:.4f}' for key, value in values.items() if '.' not in key)}"
            for name, values in record["dev"].items()
        )
        dev = f"  |  dev {dev}" if dev else ""
        with self.bar.external_write_mode():
            click.echo(
                f"epoch {record['epoch']}  loss {means}{dev}  |  {seconds:.1f} s, {self.texts / seconds:.0f} texts/s"
            )
        self.texts, self.started = 0, time.perf_counter()

    def trained(self, run: Run) -> None:
        self.bar.close()
        metric = run.recipe.training.best
        sign = metric_sign(metric, run.model.tasks)
        best = run.best and f"best epoch: {run.best.epoch} ({metric} {sign * run.best.value:.4f})"
        click.echo(f"\n{best or 'no dev data'}")

    def measured(self, run: Run, title: str, metrics: Metrics, confusions: Confusions) -> None:
        with self.bar.external_write_mode():
            show_metrics(title, metrics, confusions, {name: task.labels for name, task in run.model.tasks.items()})

    def end(self, run: Run, history: Log, threads: int) -> None:
        click.echo(f"\nmodel    {run.folder / 'model'}")
        if find_spec("matplotlib"):
            picture, vectors = run.folder / "loss.png", run.folder / "vectors.png"
            plot(history, picture)
            click.echo(f"picture  {picture}")
            if plot_vectors(run.model, run.data["dev"] or run.data["test"], vectors, threads):
                click.echo(f"vectors  {vectors}")
        click.echo(f"metrics  {history.path}")

    def close(self) -> None:
        self.bar.close()


class Quiet(Terminal):
    """Of one run of many: notes, the bar, and a line at the end."""

    def begin(self, run: Run, name: str, threads: int) -> None:
        self.run = run
        self.bar = tqdm(total=run.plan.total, initial=run.step, unit="step", disable=None, leave=False)

    def epoch(self, record: Mapping[str, Any], losses: Mapping[str, float]) -> None:
        pass

    def trained(self, run: Run) -> None:
        self.bar.close()

    def measured(self, run: Run, title: str, metrics: Metrics, confusions: Confusions) -> None:
        if title == "dev":
            main = {name: run.model.tasks[name].handler.main_metric for name in metrics}
            said = "  ".join(f"{name} {metric} {metrics[name][metric]:.4f}" for name, metric in main.items())
            click.echo(f"  dev {said}", err=True)

    def end(self, run: Run, history: Log, threads: int) -> None:
        pass
