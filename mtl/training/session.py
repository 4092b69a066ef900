"""What a user sees of training: settings before, tables and pictures after, and what to do next."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import click

from mtl.checkpoints.files import read_tensors
from mtl.disk import lock, sweep, writing
from mtl.encode.engine import usable
from mtl.errors import CheckpointError, TrainingError
from mtl.kernels.cores import default_threads
from mtl.tasks.multitask import MultiTaskModel
from mtl.training import checkpoint, loop
from mtl.training.data import load_data
from mtl.training.distributed import Processes, joined, own_device, own_threads
from mtl.training.evaluate import show_metrics
from mtl.training.metrics import metric_sign
from mtl.training.plots import plot_vectors
from mtl.training.recipe import Recipe, as_recipe
from mtl.training.report import Log, NoLog, plot, tasks_table
from mtl.training.run import Run
from mtl.training.start import create


def train(
    recipe: Recipe | str | Path,
    folder: str | Path | None = None,
    *,
    resume: bool = False,
    device: str = "cpu",
    threads: int | None = None,
    tensorboard: bool = False,
) -> MultiTaskModel:
    """Train the tasks of a recipe in a folder, or go on there; gives the model of the best epoch, in eval mode.

    The folder ends up with that model, pictures of the losses and of the vectors, and metrics.jsonl.

    Args:
        recipe: A ``Recipe``, a .toml file, or the name of a recipe that comes with the package.
        folder: By default a new one, ``runs/<recipe>``.
        resume: Go on with the run in the folder; the outcome is that of a run that was never stopped.
        device: "cpu", "cuda", "cuda:1", ...
        threads: CPU threads; by default, torch's setting, or under torchrun an equal part of the processors.
        tensorboard: Write TensorBoard's files too.

    Under torchrun, all processes that it started train one model: see docs/scale.md.

    Raises:
        MtlError: see mtl.errors.
        KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint was saved.
    """
    place, threads = usable(own_device(device)), threads or own_threads()
    with joined(place) as ranks, speaking(ranks.leads):
        read, name = as_recipe(recipe)
        notes = missing_extras(read, tensorboard)
        resume = resume or ranks.begun is not None
        folder = Path(ranks.told(lambda: str(chosen_folder(folder or ranks.begun, name, resume))))
        model = create(read, place)
        data, cuts = load_data(read, model.embedder)
        run = Run(read, model, data, folder, ranks)
        with claimed(folder, resume, ranks):
            begun = resume and ranks.told(lambda: checkpoint.begun(run.checkpoints))  # not, if it never made a step
            notes += cuts + unmeasured(read) + (restored(run) if begun else [])
            check_alike(run)
            show_settings(run, name if isinstance(recipe, Recipe) else str(recipe), notes, threads)
            log = Log(folder, run.step, run.total, tensorboard) if ranks.leads else NoLog()
            with closing(log):
                if not begun:
                    run.save()  # from here on there is always something to go on from
                    show_start(run, threads)
                if not loop.train(run, log, threads):
                    onward = how_to_go_on(recipe, folder)
                    click.echo(f"stopped after step {run.step} of {run.total}; go on with: {onward}", err=True)
                    raise KeyboardInterrupt
                finish(run, log, threads)
    return model


@contextmanager
def speaking(leads: bool) -> Iterator[None]:
    """Of several processes, only the first one shows anything in the block."""
    if leads:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def chosen_folder(given: str | Path | None, name: str, resume: bool) -> Path:
    """The run's folder: as given, or runs/<name>, or where that is to be another one, a free name.

    Raises:
        CheckpointError: there is a run already, or there is none to go on with.
    """
    folder = Path(given) if given else Path("runs") / name if resume else free_folder(name)
    check_folder(folder, resume)
    return folder


def restored(run: Run) -> list[str]:
    """Go back to the newest checkpoint, in all processes; see ``Run.restore``."""
    notes = run.ranks.told(run.restore)  # it may set a damaged one aside, before the others look
    if not run.ranks.leads:
        run.restore()
    return notes


def check_alike(run: Run) -> None:
    """That all processes train the same.

    Raises:
        TrainingError: they do not; it says what differs.
    """
    first, *others = run.ranks.heard({**run.identity, "step": run.step, "weights": run.fingerprint})
    for rank, other in enumerate(others, 1):
        found = [f"{key} is {a!r} in process 0 and {b!r} in process {rank}"
                 for key, a, b in checkpoint.differing(first, other)]  # fmt: skip
        if found:
            raise TrainingError(f"{'; '.join(found)}; start all processes with the same recipe, data and weights")


def how_to_go_on(recipe: Recipe | str | Path, folder: Path) -> str:
    """The command, or from Python the call, that resumes a run."""
    if isinstance(recipe, Recipe):
        return f"train(recipe, {str(folder)!r}, resume=True)"
    return f"mtl train {recipe} --output {folder} --resume"


def missing_extras(recipe: Recipe, tensorboard: bool) -> list[str]:
    """A line for what will be left out because a package is not installed.

    Raises:
        TrainingError: something that was asked for cannot be done without it.
    """
    measured = any(task.dev or task.test for task in recipe.tasks)
    if measured and not find_spec("sklearn"):
        raise TrainingError("metrics of dev and test data need scikit-learn; pip install 'mtl[train]'")
    if tensorboard and not find_spec("tensorboard"):
        raise TrainingError("--tensorboard needs TensorBoard; pip install 'mtl[tensorboard]'")
    drawn = find_spec("matplotlib")
    return [] if drawn else ["no picture of the losses: it needs matplotlib; pip install 'mtl[train]'"]


def unmeasured(recipe: Recipe) -> list[str]:
    """A line for what nobody can tell without dev data."""
    names = [task.name for task in recipe.tasks if not task.dev]
    if len(names) < len(recipe.tasks):
        return [f"{', '.join(names)}: no dev data, so no say in which epoch is the best"] if names else []
    return ["patience is set, but no task has dev data to stop by"] if recipe.training.patience else []


def free_folder(name: str) -> Path:
    """runs/<name>, or where there is something already, runs/<name>-2 and so on."""
    number = 1
    while (folder := Path("runs") / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return folder


def check_folder(folder: Path, resume: bool) -> None:
    """That there is a run to go on with, or that there is none.

    Raises:
        CheckpointError: it is the other way round.
    """
    if resume and not folder.is_dir():
        raise CheckpointError(f"{folder} holds no run to go on with; train without --resume, or say --output")
    if not resume and folder.exists():
        taken = not folder.is_dir() or any(path.name != ".lock" for path in folder.iterdir())
        if taken:
            onward = "go on there with --resume (resume=True), or choose another output folder"
            raise CheckpointError(f"{folder} exists and is not empty; {onward}")


@contextmanager
def claimed(folder: Path, resume: bool, ranks: Processes) -> Iterator[None]:
    """The folder is there, and ours alone: the first process has it locked, and all see it.

    Raises:
        CheckpointError: it cannot be made, another run is in it, or one of the processes does not see it.
    """
    with ExitStack() as held:
        if ranks.leads:
            with writing(folder, CheckpointError):
                folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(lock(folder, CheckpointError))
            sweep(folder)
            check_folder(folder, resume)  # another run may have been quicker
            ranks.begin(folder)
        ranks.told(lambda: None)  # now it is there
        if not folder.is_dir():
            raise CheckpointError(f"process {ranks.rank} does not see {folder}, which process 0 made; "
                                  "expected a folder that all machines share")  # fmt: skip
        yield


def show_settings(run: Run, name: str, notes: list[str], threads: int | None) -> None:
    """The effective settings, before anything long begins."""
    training = run.recipe.training
    values = {"recipe": name, "model": run.recipe.model, "output": run.folder, "device": run.model.embedder.device,
              "threads": threads or default_threads(), **dataclasses.asdict(training),
              "precision": run.precision}  # fmt: skip
    click.echo(click.wrap_text("  ".join(f"{name}={value}" for name, value in values.items()), 110))
    for note in notes:
        click.echo(f"note: {note}", err=True)
    click.echo("\n" + tasks_table(run.model, run.phases, run.schedule, run.data, training.epochs))
    common = run.phases[0].common
    if common is not None:
        click.echo(f"no task trains the embeddings and the first {common} blocks: "
                   "they are computed only once for each text")  # fmt: skip
    at = f", going on after step {run.step}" if run.step else ""
    click.echo(f"\n{run.schedule.steps_per_epoch} steps an epoch, {run.total} in all{at}")


def show_start(run: Run, threads: int | None) -> None:
    """What the embeddings are worth before they are trained, where some task trains them as they are."""
    for split in ("dev", "test"):
        own = {name: examples for name, examples in run.data[split].items() if name not in run.model.branches}
        if own:
            show_metrics(run.model, own, f"{split}, before training", threads, run.ranks)


def finish(run: Run, log: Log, threads: int | None) -> None:
    """Take the best weights, measure them, and write the model and the picture."""
    model_folder, picture = run.folder / "model", run.folder / "loss.png"
    run.load_tensors(read_tensors(run.best_path))
    run.model.eval()
    if run.best:
        epoch, value = run.best
        metric, sign = run.recipe.training.best, metric_sign(run.recipe.training.best, run.model.tasks)
        click.echo(f"\nbest epoch: {epoch} ({metric} {sign * value:.4f})")
    else:
        click.echo("\nno dev data")
    for split in ("dev", "test"):
        if run.data[split]:
            show_metrics(run.model, run.data[split], split, threads, run.ranks)
    if not run.ranks.leads:
        return
    if not (model_folder / "config.json").exists():
        run.model.save(model_folder)
    click.echo(f"\nmodel    {model_folder}")
    if find_spec("matplotlib"):
        plot(log, picture)
        click.echo(f"picture  {picture}")
        vectors = run.folder / "vectors.png"
        if plot_vectors(run.model, run.data["dev"] or run.data["test"], vectors, threads):
            click.echo(f"vectors  {vectors}")
    click.echo(f"metrics  {log.path}")
