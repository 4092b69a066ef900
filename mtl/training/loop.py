"""The training loop: one window of micro-batches of several tasks after another.

    window -> counts -> backward, micro-batch by micro-batch -> clip -> step

A window is one step of the optimiser, and its gradient that of one large batch (see gradients.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from mtl.encode.cores import default_threads
from mtl.encode.multitask import MultiTaskModel
from mtl.encode.precision import effective
from mtl.encode.sentence_encoder import SentenceEncoder
from mtl.encode.tasks import TaskSpec
from mtl.errors import CheckpointError, RecipeError, TrainingError
from mtl.model.dropout import drawing_from
from mtl.model.encoder import DistilBert
from mtl.training import checkpoint
from mtl.training.data import Data, fingerprints, told_apart
from mtl.training.distributed import ALONE, Processes
from mtl.training.evaluate import all_logits, check_metric, chosen_metric, measure
from mtl.training.freezing import Cache, Forward, ever_trained, phase_of, phases
from mtl.training.gradients import Piece, backward, shares
from mtl.training.optim import LossWeights, optimiser, rate_factor
from mtl.training.recipe import Recipe
from mtl.training.report import Log
from mtl.training.schedule import MicroBatch, Schedule
from mtl.training.threads import computing, division
from weights import load
from weights.fetch import fetch


def create(recipe: Recipe, device: str | torch.device = "cpu") -> MultiTaskModel:
    """The recipe's pretrained trunk with new heads; what is random follows from the recipe's seed.

    A task that has DistilBERT's own head and the checkpoint's labels starts from the checkpoint's head, and one
    that the checkpoint has too, with the same labels, pooling and form of head, from that one's.
    """
    torch.manual_seed(recipe.training.seed)
    source = Path(recipe.model)
    beside = recipe.folder / source
    pretrained = load.load(fetch(str(beside if beside.is_dir() and not source.is_dir() else recipe.model)))
    if recipe.layers:
        keep_layers(pretrained.encoder, recipe.layers)
    model = MultiTaskModel(SentenceEncoder.from_checkpoint(pretrained), recipe.tasks)
    for task in recipe.tasks:
        if pretrained.head and task.head == "distilbert" and task.labels == pretrained.labels:
            model.branch(task.name).head.load_state_dict(pretrained.head)
    if pretrained.tasks:
        before = MultiTaskModel.from_checkpoint(pretrained)
        for name, task in before.tasks.items():
            if name in model.tasks and alike(task, model.tasks[name]):
                model.branch(name).load_state_dict(before.branch(name).state_dict())
    return model.to(device)


def keep_layers(encoder: DistilBert, layers: Sequence[int]) -> None:
    """Leave only these blocks of an encoder, as DistilBERT began with every second one of BERT's.

    Raises:
        RecipeError: it has not so many.
    """
    blocks = list(encoder.transformer.layer)
    if max(layers) >= len(blocks):
        raise RecipeError(
            f"layers are {list(layers)}; expected numbers below {len(blocks)}, the model's blocks", "layers"
        )
    encoder.transformer.layer = nn.ModuleList(blocks[i] for i in layers)
    encoder.config = dataclasses.replace(encoder.config, n_layers=len(layers))


def alike(one: TaskSpec, other: TaskSpec) -> bool:
    """Whether a head that was trained for one task is right for another."""
    return all(getattr(one, field) == getattr(other, field) for field in ("labels", "kind", "pooling", "head"))


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


WORDS = "embedder.encoder.embeddings.word_embeddings.weight"  # a window's gradient touches few of its rows


class Run:
    """A training run in a folder: the recipe, the model and its data, and all that a checkpoint holds.

    ``ranks`` are the processes that share it; the first of them writes.
    """

    def __init__(
        self, recipe: Recipe, model: MultiTaskModel, data: Data, folder: Path, ranks: Processes = ALONE
    ) -> None:
        training = recipe.training
        self.recipe, self.model, self.data, self.folder, self.ranks = recipe, model, data, folder, ranks
        self.precision = effective(training.precision, model.embedder.device)
        # through JSON, so that it equals what a checkpoint gives back: lists, not tuples
        about = {**recipe.as_dict(), "data": fingerprints(data), "precision": self.precision}
        self.identity = json.loads(json.dumps(about))
        check_metric(training.best, {task: model.tasks[task] for task in data["dev"]})
        self.phases = phases(model, training.epochs)
        self.weights = LossWeights(recipe.tasks, training.loss_weights == "uncertainty").to(model.embedder.device)
        names = ever_trained(self.phases)
        self.optimiser = optimiser(model, self.weights, names, training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        sizes = {task: len(examples) for task, examples in data["train"].items()}
        self.schedule = Schedule(
            sizes,
            training.batch_size,
            training.accumulate,
            training.sampling,
            training.temperature,
            training.seed,
            told_apart(model.tasks, data["train"], training),
        )
        self.total = training.epochs * self.schedule.steps_per_epoch
        self.checkpoints = folder / "checkpoints"
        self.step = 0
        self.best: tuple[int, float] | None = None  # the best epoch on the dev data and its metric
        self.forward: Forward | None = None

    def parameters(self) -> list[tuple[str, Tensor]]:
        """The optimiser's parameters with their names."""
        groups = self.optimiser.param_groups
        return [pair for group in groups for pair in zip(group["names"], group["params"], strict=True)]

    def save(self) -> None:
        self.ranks.told(self.write)

    def write(self) -> None:
        """A checkpoint."""
        moments = {}
        for name, parameter in self.parameters():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                moments[f"{name}.{key}"] = value
        tensors = {"model": self.tensors(), "optimizer": moments}
        checkpoint.save(self.checkpoints, checkpoint.State(self.step, self.best, self.identity, tensors))

    def tensors(self) -> dict[str, Tensor]:
        """All weights, those of the losses included."""
        return {**self.model.state_dict(), **self.weights.state_dict(prefix="weights.")}

    @property
    def fingerprint(self) -> str:
        """A hash of all weights."""
        digest = hashlib.sha256()
        for _, tensor in sorted(self.tensors().items()):
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        weights = {key.removeprefix("weights."): x for key, x in tensors.items() if key.startswith("weights.")}
        self.model.load_state_dict({key: x for key, x in tensors.items() if not key.startswith("weights.")})
        self.weights.load_state_dict(weights)

    def restore(self) -> list[str]:
        """Go back to the newest whole checkpoint; gives a line for each that was not whole.

        Raises:
            CheckpointError: there is none, or it is of another run; it says what differs.
        """
        state, notes = checkpoint.latest(self.checkpoints)
        differing = checkpoint.differences(state.run, self.identity)
        if differing:
            advice = "start one in another folder"
            if [line.split()[0] for line in differing] == ["training.epochs"]:  # the rates follow from the epochs
                advice += f', with model = "{self.folder}" to start from its weights'
            raise CheckpointError(f"{self.folder} is another run: {'; '.join(differing)}; {advice}")
        self.load_tensors(state.tensors["model"])
        moments = state.tensors["optimizer"]
        for name, parameter in self.parameters():
            keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}.{key}" in moments]
            if keys:
                self.optimiser.state[parameter] = {
                    key: moments[f"{name}.{key}"].clone().to(parameter.device) for key in keys
                }
        self.step, self.best = state.step, state.best
        return notes

    def forward_of(self, epoch: int) -> Forward:
        """The forward pass of an epoch; what earlier phases remembered stays, where it is still right."""
        phase, before = phase_of(self.phases, epoch), self.forward
        if before is None or before.phase is not phase:
            same = before is not None and before.phase.common == phase.common
            cache = before.cache if before and same else Cache(self.recipe.training.cache_mb * 2**20)
            self.forward = before = Forward(self.model, self.data["train"], phase, cache)
        return before

    def compute(self, epoch: int) -> Callable[[Piece], Tensor]:
        """What gives the outputs of a piece in an epoch, in float32: any thread may call it."""
        forward, device = self.forward_of(epoch), self.model.embedder.device

        def outputs(piece: Piece) -> Tensor:
            generator = torch.Generator(device).manual_seed(piece.seed)
            with drawing_from(generator), torch.autocast(device.type, torch.bfloat16, self.precision == "bf16"):
                return forward(piece.micro).float()

        return outputs

    def add_gradients(self, window: Sequence[MicroBatch], epoch: int) -> None:
        """Make the gradients of a window, of which each process has a part, the whole window's."""
        if self.ranks.count == 1:
            return
        phase, tasks = phase_of(self.phases, epoch), {micro.task for micro in window}
        names = {name for task in tasks for name in (*phase.trained[task], f"weights.log_variance.{task}")}
        trained = {name: parameter for name, parameter in self.parameters() if name in names}
        rows = {}
        if WORDS in trained:
            data = self.data["train"]
            places = [(micro.task, place) for micro in window for place in data[micro.task].places(micro.rows)]
            ids = {word for task, place in places for word in data[task].rows[place]}
            rows = {[*trained].index(WORDS): torch.tensor(sorted(ids), device=self.model.embedder.device)}
        self.ranks.add_gradients([*trained.values()], rows)

    def window_tokens(self) -> int:
        """About how many tokens a window has."""
        data, training = self.data["train"].values(), self.recipe.training
        mean = sum(len(row) for examples in data for row in examples.rows) / sum(map(len, data))
        return int(mean * training.batch_size * training.accumulate)

    def train_mode(self) -> None:
        """Dropout on, but for heads that are frozen."""
        self.model.train()
        for name, task in self.model.tasks.items():
            self.model.branch(name).train(not task.freeze_head)

    @property
    def best_path(self) -> Path:
        return self.checkpoints / "best.safetensors"


def train(run: Run, log: Log, threads: int | None = None, until: int | None = None) -> bool:
    """Train until the recipe's end, an early stop, or step ``until``.

    False if Ctrl-C or SIGTERM stopped it or another process: a checkpoint is saved then. ``threads`` are by default
    torch's.

    Raises:
        TrainingError: a loss or a gradient is not finite; the last checkpoint is from before.
        CheckpointError: a checkpoint or the metrics cannot be written.
    """
    training, schedule, ranks = run.recipe.training, run.schedule, run.ranks
    threads = threads or default_threads()
    own_division = division(run.window_tokens() // ranks.count, threads, run.model.embedder.device)
    workers = min(ranks.heard(own_division))  # as many shares in each process
    parameters = [parameter for _, parameter in run.parameters()]
    run.train_mode()
    with stop_signal() as stopped, computing(workers) as mapped:
        while run.step < (until or run.total) and not stops_early(run):
            epoch = run.step // schedule.steps_per_epoch + 1
            factor = rate_factor(run.step, run.total, training)
            for group in run.optimiser.param_groups:
                group["lr"] = group["full_rate"] * factor

            window = [
                micro
                for micro in schedule.window(run.step)
                if phase_of(run.phases, epoch).trained[micro.task]  # it may have ended
            ]
            seeds, count = (training.seed, run.step), workers * ranks.count
            divided = shares(window, run.data["train"], count, training.micro_tokens, seeds)
            own = backward(divided, run.model.tasks, run.compute(epoch), run.weights, parameters, mapped, ranks)
            run.add_gradients(window, epoch)
            losses, stopping = ranks.agree(own, stopped.is_set())
            norm = clip(parameters, training.clip)
            check_finite(losses, norm, run.step + 1)
            run.optimiser.step()
            run.optimiser.zero_grad(set_to_none=True)
            run.step += 1

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


def clip(parameters: Sequence[Tensor], most: float) -> float:
    """The norm of all gradients together, which are scaled down to ``most`` where that is less and not 0."""
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if 0 < most < norm:  # otherwise they stay as they are, and a pass over all of them is saved
        nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return float(norm)


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
    """Measure on the dev data, and keep the weights if they are the best so far, or if nothing says otherwise."""
    tasks, dev = run.model.tasks, run.data["dev"]
    logits = all_logits(run.model, dev, threads, run.ranks)
    metrics = run.ranks.told(lambda: measure(tasks, logits, dev))
    log.epoch(run.step, epoch, metrics)
    value = chosen_metric(run.recipe.training.best, tasks, metrics) if metrics else None
    if value is not None and (run.best is None or value > run.best[1]):
        run.best = epoch, value
    if run.best is None or run.best[0] == epoch:
        run.ranks.told(lambda: checkpoint.save_tensors(run.best_path, run.tensors()))


def stops_early(run: Run) -> bool:
    """Whether ``patience`` whole epochs have gone by without a better one."""
    patience = run.recipe.training.patience
    whole = run.step // run.schedule.steps_per_epoch
    return patience > 0 and run.best is not None and whole - run.best[0] >= patience
