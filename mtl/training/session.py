"""A whole training run in a folder, from its recipe to its model: what it needs, starting, going on, and the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from mtl.checkpoints.card import write_results
from mtl.disk import lock, sweep, writing
from mtl.encode.engine import on_the_cpu, usable
from mtl.errors import (
    CheckpointError,
    InputError,
    RecipeError,
    TrainingError,
    TrainingStopped,
    check_counts,
    check_flags,
    differing,
    extra,
    shown,
)
from mtl.kernels.cores import default_threads
from mtl.kernels.defaults import by_default
from mtl.kernels.threads import computing_with
from mtl.rows.files import on_hub
from mtl.tasks.multitask import MultiTaskModel
from mtl.training import checkpoint, loop
from mtl.training.changes import changed, keep, kept
from mtl.training.data import completed, fingerprints, load_data
from mtl.training.distributed import Processes, joined, own_device, own_threads
from mtl.training.metrics import all_logits, confusions, measure
from mtl.training.recipe import Recipe, as_recipe
from mtl.training.report import Log, Metrics, NoLog, Notes, Reporter
from mtl.training.run import Run, prepare
from mtl.training.start import create, trunk_of

ModelHook = Callable[[MultiTaskModel, Mapping[str, Any]], object]


def train(
    recipe: Recipe | str | Path,
    folder: str | Path | None = None,
    *,
    changes: Mapping[str, Any] | None = None,
    resume: bool = False,
    device: str = "cpu",
    threads: int | None = None,
    tensorboard: bool = False,
    report: Reporter | None = None,
    on_step: ModelHook | None = None,
    on_epoch: ModelHook | None = None,
) -> MultiTaskModel:
    """Train the tasks of a recipe in a folder, or go on there; gives the model of the best epoch, in eval mode.

    The folder ends up with that model and metrics.jsonl, a line for each step and epoch. Nothing is printed, and no
    setting or random number of the process is touched.

    Args:
        recipe: A ``Recipe``, a .toml file, or the name of a recipe that comes with the package.
        folder: By default a new one, ``runs/<recipe>``.
        changes: Other values of settings, by name: {"training.seed": 1, "task.topic.weight": 2.0}. A run that goes on
            has those that it was started with.
        resume: Go on with the run in the folder; the outcome is that of a run that was never stopped.
        device: "cpu", "cuda", "cuda:1", ...
        threads: CPU threads; by default, torch's setting, or under torchrun an equal part of the processors. They
            change no number.
        tensorboard: Write TensorBoard's files too.
        report: Is told of all that happens, as a bar or a table needs it: a ``mtl.training.report.Reporter``. By
            default, what you should know of goes to Python's log, as warnings of "mtl".
        on_step, on_epoch: Functions of the model as it is then, and of the line of metrics.jsonl that was just written:
            step, epoch and losses; or step, epoch and dev metrics. Under torchrun the first process calls them. What
            they raise ends the run, which can go on from its last checkpoint.

    Under torchrun, all processes that it started train one model: see docs/scale.md.

    Raises:
        TrainingStopped: Ctrl-C or SIGTERM; a checkpoint was saved.
        MtlError: see mtl.errors.
    """
    for name, hook in (("on_step", on_step), ("on_epoch", on_epoch)):
        if hook is not None and not callable(hook):
            raise InputError(f"{name} is {shown(hook)}; expected a function of the model and a record")
    check_flags(resume=resume, tensorboard=tensorboard)
    check_counts(threads=threads)
    place, threads = usable(own_device(device)), threads or own_threads() or default_threads()
    with torch_defaults(), joined(place) as ranks, closing((report or Notes()) if ranks.leads else Reporter()) as told:
        read, name = as_recipe(recipe)
        resume = resume or ranks.begun is not None
        asked = folder or ranks.begun
        folder = Path(ranks.broadcast(lambda: str(chosen_folder(asked, name, resume))))
        moved = [] if asked or folder.name == name else [f"runs/{name} is there already; this run is {folder}"]
        changes = {**(ranks.broadcast(lambda: kept(folder).get("set", {})) if resume else {}), **(changes or {})}
        read = given = changed(read, changes)
        check_extras(read, tensorboard)
        check_dev(read)
        read, found = completed(read)
        model = create(read, place)
        data, cuts = load_data(read, model.embedder)
        run = Run(prepare(read, model, data), folder, ranks)
        with claimed(folder, resume, ranks), computing_with(1):  # what is given ``threads`` uses more
            # a run that never made a step has not begun
            begun = resume and ranks.broadcast(lambda: checkpoint.begun(run.checkpoints))
            notes = moved + set_in_words(changes) + found + cuts + unmeasured(read) + (restored(run) if begun else [])
            check_alike(run)
            if ranks.leads:
                keep(folder, changes, given, fingerprints(data))
            told.begin(run, name if isinstance(recipe, Recipe) else str(recipe), threads)
            for note in notes:
                told.note(note)
            hooks = [hook and partial(hook, model) for hook in (on_step, on_epoch)]
            with closing(Log(folder, run.step, told, tensorboard, *hooks) if ranks.leads else NoLog()) as log:
                if not begun:
                    run.save()  # from here on there is always something to go on from
                    untrained(run, told, threads)
                if not loop.train(run, log, threads):
                    total = run.plan.total
                    raise TrainingStopped(
                        f"stopped after step {run.step} of {total}; go on in {folder} with resume=True"
                    )
                finish(run, told, log, threads)
    return model


def set_in_words(changes: Mapping[str, Any]) -> list[str]:
    """A line for settings that are others than the recipe's file says."""
    return [f"set: {', '.join(f'{name} = {value!r}' for name, value in changes.items())}"] if changes else []


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Within it, this thread's autocast, default device and modes of autograd are torch's own defaults, and so is what
    the process says of how a CPU computes."""
    with ExitStack() as held:
        held.enter_context(by_default)
        held.enter_context(torch.inference_mode(False))
        held.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                held.enter_context(torch.autocast(kind, enabled=False))
        held.enter_context(on_the_cpu())
        yield


def chosen_folder(given: str | Path | None, name: str, resume: bool) -> Path:
    """The run's folder, checked: as given, or runs/<name>, or where that is to be another one, a free name."""
    folder = Path(given) if given else Path("runs") / name if resume else free_folder(name)
    check_folder(folder, resume)
    return folder


def restored(run: Run) -> list[str]:
    """Go back to the newest checkpoint, in all processes; see ``Run.restore``."""
    notes = run.ranks.broadcast(run.restore)  # it may set a damaged one aside, before the others look
    if not run.ranks.leads:
        run.restore()
    return notes


def check_alike(run: Run) -> None:
    """Raise a TrainingError that says what differs, if not all processes train the same."""
    first, *others = run.ranks.all_gather(
        {**run.plan.identity, "limits": run.recipe.training.limits, "step": run.step, "weights": run.fingerprint}
    )
    for rank, other in enumerate(others, 1):
        found = [f"{key} is {a!r} in process 0 and {b!r} in process {rank}"
                 for key, a, b in differing(first, other)]  # fmt: skip
        if found:
            raise TrainingError(f"{'; '.join(found)}; start all processes with the same recipe, data and weights")


def check_extras(recipe: Recipe, tensorboard: bool) -> None:
    """Raise a TrainingError if a package is missing that is needed for what was asked for."""
    measured = any(task.dev or task.test for task in recipe.tasks)
    if measured and not find_spec("sklearn"):
        raise TrainingError(f"metrics of dev and test data need scikit-learn; {extra('train')}")
    if tensorboard and not find_spec("tensorboard"):
        raise TrainingError(f"--tensorboard needs TensorBoard; {extra('tensorboard')}")


def check_dev(recipe: Recipe) -> None:
    """Raise a RecipeError if a task takes something from dev data and has none."""
    for task in recipe.tasks:
        if (option := task.handler.wants_dev) and not task.dev:
            raise RecipeError(f"task {task.name!r}: {option} needs dev data; expected dev = a file", option)


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
    """Raise a CheckpointError if there is no run to go on with, or one where none should be."""
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
        ranks.broadcast(lambda: None)  # now it is there
        if not folder.is_dir():
            raise CheckpointError(f"process {ranks.rank} does not see {folder}, which process 0 made; "
                                  "expected a folder that all machines share")  # fmt: skip
        yield


def show(run: Run, told: Reporter, split: str, title: str, tasks: set[str], threads: int) -> Metrics:
    """Measure some tasks on a split, for the reporter; gives the metrics, in the first process."""
    data = {name: examples for name, examples in run.data[split].items() if name in tasks}
    if not data:
        return {}
    logits = all_logits(run.model, data, threads, run.ranks)
    metrics = measure(run.model.tasks, logits, data) if run.ranks.leads else {}
    if run.ranks.leads:
        told.measured(run, title, metrics, confusions(run.model.tasks, logits, data))
    return metrics


def untrained(run: Run, told: Reporter, threads: int) -> None:
    """What the embeddings are worth before they are trained, where some task trains them as they are."""
    for split in ("dev", "test"):
        show(run, told, split, f"{split}, before training", run.model.tasks.keys() - run.model.branches.keys(), threads)


def located(recipe: Recipe) -> dict[str, Any]:
    """A recipe's fields, with the model and the data by what they were found as, on this machine or on the hub."""

    def found(source: Any) -> Any:
        if isinstance(source, tuple):
            return tuple(map(found, source))
        return on_hub(source, recipe.folder) if isinstance(source, str) else source

    fields = recipe.as_dict()
    splits = ("train", "dev", "test")
    tasks = {name: task | {split: found(task[split]) for split in splits} for name, task in fields["task"].items()}
    return fields | {"model": trunk_of(recipe), "task": tasks}


def finish(run: Run, told: Reporter, log: Log, threads: int) -> None:
    """Take the best weights, measure them, and write the model."""
    run.take_best()
    dev = {name: rows for name, rows in run.data["dev"].items() if run.model.tasks[name].handler.wants_dev}
    if dev:
        for note in run.model.fit_on_dev(all_logits(run.model, dev, threads, run.ranks), dev):
            told.note(note)
    run.model.tasks.update({name: task.handler.becomes for name, task in run.model.tasks.items()})
    told.trained(run)
    metrics = {split: show(run, told, split, split, {*run.model.tasks}, threads) for split in ("dev", "test")}
    if run.ranks.leads:
        rows = {split: {name: len(examples) for name, examples in run.data[split].items()} for split in run.data}
        write_results(run.folder, located(run.plan.recipe), rows, {k: v for k, v in metrics.items() if v})
        if not (run.folder / "model" / "config.json").exists():
            run.model.save(run.folder / "model")
        told.end(run, log, threads)
