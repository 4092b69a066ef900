"""The training loop: one window of micro-batches of several tasks after another.

    window -> counts -> backward, micro-batch by micro-batch -> clip -> step

A window is one step of the optimiser, and its gradient that of one large batch (see gradients.py).
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mtl.errors import TrainingError
from mtl.kernels.cores import default_threads
from mtl.training.metrics import all_logits, chosen_metric, fitted_on_dev, measure
from mtl.training.optim import clip, rate_factor
from mtl.training.report import Log
from mtl.training.run import Run
from mtl.training.threads import computing


def train(run: Run, log: Log, threads: int | None = None, until: int | None = None) -> bool:
    """Train until the recipe's end, an early stop, or step ``until``.

    False if Ctrl-C or SIGTERM stopped it or another process: a checkpoint is saved then. ``threads`` are by default
    torch's; they change no number.

    Raises:
        TrainingError: a loss or a gradient is not finite; the last checkpoint is from before.
        CheckpointError: a checkpoint or the metrics cannot be written.
    """
    training, schedule, total = run.recipe.training, run.schedule, run.plan.total
    threads = threads or default_threads()
    with stop_signal() as stopped, run.training(), computing(run.workers(threads)) as mapped:
        while run.step < (until or total) and not stops_early(run):
            epoch, factor = run.step // schedule.steps_per_epoch + 1, rate_factor(run.step, total, training)
            window = run.window(epoch)
            objective = run.objective(window, epoch)
            own, gradients = run.gradients(window, objective, mapped)
            losses, stopping = run.ranks.agree(own, stopped.is_set())
            norm = clip([gradient for gradient in gradients if gradient is not None], training.clip, mapped)
            check_finite(losses, norm, run.step + 1)
            run.update(gradients, objective, factor, mapped)
            del gradients  # frees their memory before the next window's take some

            texts = sum(len(micro.rows) for micro in window)
            log.step(run.step, epoch, losses, norm, training.learning_rate * factor, texts)
            ends_epoch = run.step % schedule.steps_per_epoch == 0
            if ends_epoch:
                finish_epoch(run, log, epoch, threads)
            if ends_epoch or stopping or (training.save_steps and run.step % training.save_steps == 0):
                run.save()
            if stopping:
                return False
    return True


def check_finite(losses: Mapping[str, float], norm: float, step: int) -> None:
    for task, loss in losses.items():
        if not math.isfinite(loss):
            raise TrainingError(f"the loss of task {task!r} is {loss} at step {step}; the last checkpoint is kept. "
                                "Try a lower learning_rate, or look at that task's data")  # fmt: skip
    if not math.isfinite(norm):
        tasks = ", ".join(losses)
        raise TrainingError(
            f"the gradient's norm is {norm} at step {step} (tasks: {tasks}); the last checkpoint is kept"
        )


def finish_epoch(run: Run, log: Log, epoch: int, threads: int | None) -> None:
    """Measure on the dev data, and keep the weights if they are the best so far."""
    run.model.fit_heads(run.data["train"], threads)
    tasks, dev = run.model.tasks, run.data["dev"]
    tasks, logits = fitted_on_dev(tasks, all_logits(run.model, dev, threads, run.ranks), dev)
    metrics = run.ranks.broadcast(lambda: measure(tasks, logits, dev))
    log.epoch(run.step, epoch, metrics)
    value = chosen_metric(run.recipe.training.best, tasks, metrics) if metrics else None
    if value is not None and (run.best is None or value > run.best.value):
        run.keep_best(epoch, value)


def stops_early(run: Run) -> bool:
    """Whether ``patience`` whole epochs have gone by without a better one."""
    patience = run.recipe.training.patience
    whole = run.step // run.schedule.steps_per_epoch
    return patience > 0 and run.best is not None and whole - run.best.epoch >= patience


@contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """Set by the first Ctrl-C or SIGTERM, so that the step under way is finished; a second one ends it at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(*_: object) -> None:
        event.set()
        for number in before:
            signal.signal(number, signal.default_int_handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
