"""Tasks, and the recipes that name them: what to train on which data, as one TOML file.

Everything is checked when it is read. An error is one line that names the file, the line in it, what stands
there and what was expected.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from mtl.errors import MtlError, RecipeError, one_line, printable, shown
from mtl.rows.read import read_rows
from mtl.tasks.fields import coerce, one_of
from mtl.tasks.spec import TaskSpec, checked_tasks

T = TypeVar("T")

BUNDLED = Path(__file__).parents[1] / "recipes"


def limit(default: int) -> Any:
    """A setting that changes no number of a run: how long it goes on, what it may take, when it is saved."""
    return dataclasses.field(default=default, metadata={"limit": True})


@dataclasses.dataclass(frozen=True)
class Training:
    """How to train. A step is a window of ``accumulate`` micro-batches of ``batch_size`` rows of one task each.

    What a recipe does not say is as here, unless all its tasks are of a kind with other defaults ("few-shot").

    epochs: As often as every task's rows are seen where ``sampling`` is "proportional".
    learning_rate, head_learning_rate: AdamW's, of the trunk and of the tasks' own poolings and heads.
    weight_decay: AdamW's (Loshchilov and Hutter 2019, arXiv 1711.05101), of matrices alone.
    schedule, warmup: Rates rise over the share ``warmup`` of all steps, then fall to 0 as a line or a "cosine", or stay
        "constant".
    layer_decay: Each block's rate is the one above it times this (Howard and Ruder 2018, arXiv 1801.06146).
    clip: The largest norm of all gradients together, to which larger ones are scaled down; 0: never.
    sampling: How often tasks are drawn: "proportional" to their rows (each row once per epoch), "uniform", or
        "temperature": rows ** (1 / temperature).
    loss_weights: "fixed", as the tasks say, or "uncertainty", learned (Kendall et al. 2018, arXiv 1705.07115).
    precision: What products are computed in while training: "fp32", "bf16" (autocast: parameters and optimiser stay in
        float32), or "auto", which is bf16 where the processor or GPU computes it natively.
    best: The dev metric by which the best epoch is kept: "task.metric", or "mean" over the tasks' main ones.
    max_length: Tokens of a text, special ones included, in training and in the model that is saved; by default its own.
    seed: Decides new heads, the order of the rows, and dropout.

    What follows changes no number, and may be another where a run goes on:

    patience: Stop after so many epochs without a better one; 0 never stops early.
    micro_tokens: About how many tokens are computed with a graph at once, by all threads together, which bounds memory.
        A thread computes 1,024 at once (a GPU 8,192), or one row. 0: threads and memory are as many as there are.
    cache_mb: Memory for the hidden states of blocks that no task trains.
    save_steps: A checkpoint every so many steps, besides that of each epoch; 0: none.
    """

    epochs: int = 3
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float = 5e-5
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.1
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    layer_decay: float = 1.0
    clip: float = 1.0
    sampling: Literal["proportional", "uniform", "temperature"] = "proportional"
    temperature: float = 2.0
    loss_weights: Literal["fixed", "uncertainty"] = "fixed"
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    best: str = "mean"
    max_length: int | None = None
    seed: int = 0
    patience: int = limit(0)
    micro_tokens: int = limit(0)
    cache_mb: int = limit(1024)
    save_steps: int = limit(0)

    def __post_init__(self) -> None:
        coerce(self)
        ranges: dict[str, tuple[float, float]] = {
            "epochs": (1, 1e6), "batch_size": (1, 1e6), "accumulate": (1, 1e6), "learning_rate": (0, 1),
            "head_learning_rate": (0, 1), "weight_decay": (0, 10), "warmup": (0, 1), "layer_decay": (0, 1),
            "clip": (0, 1e9), "temperature": (1, 1e6), "patience": (0, 1e6), "cache_mb": (0, 1e9),
            "micro_tokens": (0, 1e9),
            "save_steps": (0, 1e9), "seed": (0, 2**62),
        }  # fmt: skip
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise RecipeError(f"{name} is {value}; expected {least:g} to {most:g}", name)
        for name in ("schedule", "sampling", "loss_weights", "precision"):
            one_of(name, getattr(self, name), get_args(get_type_hints(type(self))[name]))

    @property
    def limits(self) -> dict[str, int]:
        """The settings that change no number."""
        names = [field.name for field in dataclasses.fields(self) if field.metadata.get("limit")]
        return {name: getattr(self, name) for name in names}


def usual(tasks: Sequence[TaskSpec]) -> dict[str, Any]:
    """The defaults of training for these tasks that are not Training's, where all of one kind have such."""
    first, *others = (task.handler.training for task in tasks)
    return dict(first) if all(other == first for other in others) else {}


UNSAID = Training()


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A model to start from, its tasks, and how to train them. ``folder`` is where relative paths start.

    training: By default a Training() with the defaults that its tasks' kind has.
    layers: The blocks of the model that are kept, counted from 0, as [0, 2, 4]; all of them where none is named.
    """

    model: str
    tasks: Sequence[TaskSpec]
    training: Training = UNSAID
    folder: Path = Path()
    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        coerce(self)
        if not isinstance(self.training, Training):
            raise RecipeError(f"training is {shown(self.training)}; expected a Training", "training")
        if not isinstance(self.tasks, Sequence):
            raise RecipeError(f"tasks hold {shown(self.tasks)}; expected a list of TaskSpec", "tasks")
        object.__setattr__(self, "tasks", tuple(checked_tasks([*self.tasks])))
        if list(self.layers) != sorted(set(self.layers)) or min(self.layers, default=0) < 0:
            raise RecipeError(f"layers are {list(self.layers)}; expected rising numbers from 0 on", "layers")
        if not self.tasks:
            raise RecipeError("tasks are none; expected at least one TaskSpec", "tasks")
        if self.training is UNSAID:
            object.__setattr__(self, "training", Training(**usual(self.tasks)))

    def as_dict(self) -> dict[str, Any]:
        """All that decides the outcome, in plain values; two runs with equal ones are the same run."""
        tasks = {task.name: task.as_dict() for task in self.tasks}
        kept = {"layers": self.layers} if self.layers else {}
        training = {key: x for key, x in dataclasses.asdict(self.training).items() if key not in self.training.limits}
        return {"model": self.model, **kept, "training": training, "task": tasks}


def find_recipe(name: str) -> Path:
    """A recipe's file: a path, or the name of one that comes with the package; a RecipeError if there is none."""
    bundled = BUNDLED / f"{name}.toml"
    if bundled.is_file():
        return bundled
    if Path(name).is_file():
        return Path(name)
    names = ", ".join(sorted(path.stem for path in BUNDLED.glob("*.toml")))
    raise RecipeError(f"{name} is no recipe; expected a .toml file, or one of {names}")


def as_recipe(recipe: Recipe | str | Path) -> tuple[Recipe, str]:
    """A recipe: as it is, from its file, or by the name of one that comes with the package; and what to call it."""
    if isinstance(recipe, Recipe):
        return recipe, "recipe"
    path = find_recipe(str(recipe))
    return read_recipe(path), path.stem


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe; a RecipeError names file and line of what makes no sense."""
    try:
        source = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte-order mark
        content = tomllib.loads(source)
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}") from None
    except RecursionError:
        raise RecipeError(f"{path}: not TOML that we read (it is nested too deep)") from None
    except ValueError as error:  # TOML's own message names the line
        raise RecipeError(f"{path}: not TOML ({one_line(error)})") from None
    unknown = [key for key in content if key not in ("model", "layers", "training", "task")]
    if unknown:
        raise RecipeError(f"{path}{line_of(source, unknown[0])}: {shown(unknown[0])} is unknown; "
                          "expected model, layers, [training] and [[task]]")  # fmt: skip
    entries = content.get("task", [])
    if not isinstance(content.get("model"), str) or not isinstance(entries, list) or not entries:
        raise RecipeError(f'{path}: expected model = "name" and at least one [[task]]')
    tasks = [build(TaskSpec, entry, path, source, "[[task]]", i) for i, entry in enumerate(entries)]
    training = build(Training, content.get("training", {}), path, source, "[training]", 0, usual(tasks))
    names = [task.name for task in tasks]
    repeated = [line_of(source, "name", "[[task]]", i) for i, name in enumerate(names) if name in names[:i]]
    try:
        return Recipe(content["model"], tasks, training, path.parent, content.get("layers", ()))
    except RecipeError as error:
        where = line_of(source, "layers") if error.field == "layers" else "".join(repeated[:1])
        raise RecipeError(f"{path}{where}: {error}", error.field) from None


def line_of(source: str, key: str, header: str = "", nth: int = 0) -> str:
    """``, line N`` of a key below the nth header, as an error says it; nothing where it cannot be told."""
    below = -1 if header else nth
    for number, line in enumerate(source.splitlines(), 1):
        stripped = line.strip()
        below += bool(header) and stripped == header
        if below == nth and re.match(rf"(\[\[?)?[\"']?{re.escape(key)}[\"']?\s*(=|\.|\])", stripped):
            return f", line {number}"
    return ""


def in_data(train: Any, folder: Path) -> str:
    """What fields a file's first row has, as an error ends; nothing where it is no file, or its rows cannot be read."""
    try:
        path = folder / train
        names = [*next(read_rows(path))[1]] if path.is_file() else []
    except (MtlError, TypeError, ValueError, OSError, StopIteration):
        names = []
    said = ", ".join(map(printable, names))
    return f'; {printable(train)} has {said}: name them by text_field = ["...", "..."] and label_field' if names else ""


def build(
    cls: type[T], fields: Any, path: Path, source: str, header: str, nth: int, defaults: Mapping[str, Any] = {}
) -> T:
    """A data class from one table of a recipe, and other defaults than its own."""
    if not isinstance(fields, dict):
        raise RecipeError(f"{path}, {header}: expected a table")
    known = get_type_hints(cls)
    for key in fields:
        if key not in known:
            where = f"{path}{line_of(source, key, header, nth)}"
            raise RecipeError(f"{where}: {shown(key)} is unknown; expected one of {', '.join(known)}", key)
    if cls is TaskSpec and "name" not in fields:
        raise RecipeError(f"{path}, {header}: a name is missing", "name")
    try:
        return cls(**{**defaults, **fields})
    except RecipeError as error:
        line = line_of(source, error.field or "", header, nth)
        line = line or line_of(source, "name", header, nth)  # of the task, where what is wrong stands nowhere
        more = in_data(fields.get("train"), path.parent) if error.field == "text_field" else ""
        raise RecipeError(f"{path}{line}: {error}{more}", error.field) from None
