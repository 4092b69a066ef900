"""The kinds of task: for each one record with all that sets it apart, so that a new kind is one edit.

A kind's functions stand above its record; ``KINDS`` at the end lists the records. scikit-learn and SciPy are
imported where metrics are computed and nowhere else: they are an extra.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtl import retrieval
from mtl.errors import shown
from mtl.model import losses, pair_losses

Target = int | list[float]


@dataclasses.dataclass(frozen=True)
class Kind:
    """What sets one kind of task apart.

    least_labels: How many labels a task must declare; None: it has none.
    loss: Of logits (rows, outputs) and targets (rows, ...), the summed loss and the number of labels in it. A task's
        ``options`` are passed on to it by name.
    scores: What the logits say, in numbers that people read: (rows, outputs).
    target: A label as it stands in the data, given the declared labels, as what the loss takes. A ValueError
        says what is wrong with it, as the end of a sentence that begins with the field's name. None: a row has no
        label.
    words: What scores mean: one value per row, given the declared labels.
    metrics: Each metric's name, with 1 where more is better and -1 where less is. The first is the main one.
    measure: All of these, of logits, targets and the number of labels.
    confusion: Counts by true and by predicted label, where that makes sense; it takes what ``measure`` takes.
    texts: How many texts a row has.
    uncertainty: What the loss is multiplied by under learned loss weights (see training/optim.py).
    embeds: It trains the embeddings themselves, through the embedder's own pooling and the layers behind it, and has
        no head. Where others have logits, it has a vector for each text: (rows, texts, dim).
    joint: Its loss looks at all rows of a window together, and is no sum over the rows.
    negatives: A row's first two texts belong together, and the texts of all other rows of the window do not belong to
        them, nor do the row's own further texts, of which there may be any number. Targets are the texts' numbers
        (rows, texts), equal for equal texts, and no window is drawn that holds a text twice.
    teacher: Targets are vectors too, and are cut to a size with those that are trained.
    losses: What ``loss`` may be set to, where there are several.
    options: The settings of its loss, with their defaults.
    reading: The settings by which its data are read.
    """

    name: str
    least_labels: int | None
    loss: Callable[..., tuple[Tensor, int]]
    target: Callable[[Any, Sequence[str]], Target] | None
    metrics: Mapping[str, int]
    measure: Callable[[Tensor, Tensor, int], dict[str, float]]
    scores: Callable[[Tensor], Tensor] = lambda logits: logits
    words: Callable[[Tensor, Sequence[str]], list[Any]] = lambda scores, labels: scores.tolist()
    confusion: Callable[[Tensor, Tensor, int], list[list[int]]] | None = None
    texts: int = 1
    uncertainty: float = 1.0
    embeds: bool = False
    joint: bool = False
    negatives: bool = False
    teacher: bool = False
    losses: tuple[str, ...] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reading: tuple[str, ...] = ()

    @property
    def main_metric(self) -> str:
        return next(iter(self.metrics))

    def cut(self, vectors: Tensor, targets: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """The first so many dimensions of vectors, and the targets that these have."""
        return vectors[..., :size], targets[..., :size] if self.teacher else targets


# One label of several


def class_index(value: Any, labels: Sequence[str]) -> int:
    """The index of a label by its name, or by its place (0, 1, ...) where no label is itself a number.

    Raises:
        ValueError: it is not among the labels; or it is a number that would be one label by its name and
            another by its place.
    """
    numbered = any(label.lstrip("-").isdecimal() for label in labels)
    number = isinstance(value, int) and not isinstance(value, bool)
    digits = number or (isinstance(value, str) and value.isdecimal())
    place = int(value) if digits and 0 <= int(value) < len(labels) else None
    name = labels.index(str(value)) if str(value) in labels else None
    if name is not None and place is not None and number and place != name:
        by_name, by_place = f"the label named {labels[name]!r}", f"the one at place {place} from 0, {labels[place]!r}"
        raise ValueError(f'is {value}, which could be {by_name} or {by_place}; expected its name, "{value}" in quotes')
    if name is not None:
        return name
    if place is not None and not numbered:
        return place
    raise ValueError(f"{value!r} is not declared; expected one of {', '.join(labels)}")


def best_label(scores: Tensor, labels: Sequence[str]) -> list[str]:
    return [labels[i] for i in scores.argmax(dim=1).tolist()]


def single_label_metrics(logits: Tensor, targets: Tensor, labels: int) -> dict[str, float]:
    """accuracy, and macro_f1 over all declared labels."""
    from sklearn.metrics import accuracy_score, f1_score

    truth, given = targets.numpy(), logits.argmax(dim=1).numpy()
    macro_f1 = f1_score(truth, given, labels=list(range(labels)), average="macro", zero_division=0)
    return {"accuracy": float(accuracy_score(truth, given)), "macro_f1": float(macro_f1)}


def confusion(logits: Tensor, targets: Tensor, labels: int) -> list[list[int]]:
    """A row for each true label, a column for each predicted one."""
    from sklearn.metrics import confusion_matrix

    given = logits.argmax(dim=1).numpy()
    counts: list[list[int]] = confusion_matrix(targets.numpy(), given, labels=list(range(labels))).tolist()
    return counts


SINGLE_LABEL = Kind(
    name="single-label",
    least_labels=2,
    loss=losses.cross_entropy,
    scores=lambda logits: logits.softmax(dim=-1),
    target=class_index,
    words=best_label,
    metrics={"accuracy": 1, "macro_f1": 1},
    measure=single_label_metrics,
    confusion=confusion,
)


# Any number of labels


def named_set(names: Sequence[Any], labels: Sequence[str]) -> list[float] | None:
    """The labels of these names; None where one of them is not declared."""
    given = {str(name) for name in names}
    return [float(label in given) for label in labels] if given <= set(labels) else None


def are_flags(values: Sequence[Any]) -> bool:
    return all(isinstance(value, (int, float)) and value in (0, 1) for value in values)


def multi_hot(values: Sequence[Any], labels: Sequence[str]) -> list[float] | None:
    """A 0 or 1 for each label, as it stands; None where it is something else."""
    return [float(value) for value in values] if are_flags(values) and len(values) == len(labels) else None


def label_set(value: Any, labels: Sequence[str]) -> list[float]:
    """1 for each label that a row has, 0 for the others, from a list of names, "a|b", or a 0 or 1 for each label.

    Raises:
        ValueError: it is none of these, or two of them with different outcomes.
    """
    if isinstance(value, list):
        names = value
        found = {"by name": named_set(names, labels), "as a 0 or 1 for each label": multi_hot(value, labels)}
    else:
        names = [part for part in value.split("|") if part] if isinstance(value, str) else [value]
        found = {"as one name": named_set([value], labels), "as names between |": named_set(names, labels)}
    readings = {how: reading for how, reading in found.items() if reading is not None}
    if not readings and isinstance(value, list) and are_flags(value):
        raise ValueError(f"is {value}; expected a 0 or 1 for each of the {len(labels)} labels, or names in a list")
    if not readings:
        undeclared = next(name for name in names if str(name) not in labels)
        forms = 'names in a list or as "a|b", or a list with a 0 or 1 for each'
        raise ValueError(f"{undeclared!r} is not declared; expected {forms} of {', '.join(labels)}")
    if len({tuple(reading) for reading in readings.values()}) > 1:
        said = [f"{likely_labels(Tensor([reading]), labels)[0]} {how}" for how, reading in readings.items()]
        raise ValueError(f"is {value!r}, which could be {' or '.join(said)}; rename the labels, or write names alone")
    return next(iter(readings.values()))


def likely_labels(scores: Tensor, labels: Sequence[str]) -> list[list[str]]:
    return [[labels[i] for i, score in enumerate(row) if score >= 0.5] for row in scores.tolist()]


def multi_label_metrics(logits: Tensor, targets: Tensor, labels: int) -> dict[str, float]:
    """accuracy of whole sets of labels, macro_f1 over the labels and micro_f1 over all decisions."""
    from sklearn.metrics import accuracy_score, f1_score

    truth, given = targets.numpy(), (logits.sigmoid() >= 0.5).numpy()
    f1 = {f"{mean}_f1": float(f1_score(truth, given, average=mean, zero_division=0)) for mean in ("macro", "micro")}
    return {"accuracy": float(accuracy_score(truth, given)), **f1}


MULTI_LABEL = Kind(
    name="multi-label",
    least_labels=1,
    loss=losses.binary_cross_entropy,
    scores=lambda logits: logits.sigmoid(),
    target=label_set,
    words=likely_labels,
    metrics={"macro_f1": 1, "micro_f1": 1, "accuracy": 1},
    measure=multi_label_metrics,
)


# A number


def finite_number(value: Any, labels: Sequence[str]) -> list[float]:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= torch.finfo(torch.float32).max:
        raise ValueError(f"is {shown(value)}; expected a finite number, at most 3.4e38")
    return [number]


def correlations(given: NDArray[Any], wanted: NDArray[Any]) -> dict[str, float]:
    """Those of Spearman and Pearson; 0 where one side is constant, with which no correlation is defined."""
    from scipy.stats import pearsonr, spearmanr

    if min(np.ptp(given), np.ptp(wanted)) == 0:
        return {"spearman": 0.0, "pearson": 0.0}
    spearman, pearson = spearmanr(given, wanted).statistic, pearsonr(given, wanted).statistic
    return {"spearman": float(spearman), "pearson": float(pearson)}


def regression_metrics(values: Tensor, targets: Tensor, labels: int) -> dict[str, float]:
    """The correlations of Pearson and Spearman, and the root of the mean squared error."""
    given, wanted = values[:, 0].numpy(), targets[:, 0].numpy()
    return {**correlations(given, wanted), "rmse": float(np.sqrt(np.mean((given - wanted) ** 2)))}


REGRESSION = Kind(
    name="regression",
    least_labels=None,
    loss=losses.squared_error,
    target=finite_number,
    words=lambda values, labels: [row[0] for row in values.tolist()],
    metrics={"spearman": 1, "pearson": 1, "rmse": -1},
    measure=regression_metrics,
    uncertainty=0.5,
)

# How alike two texts are


def similarity_metrics(vectors: Tensor, targets: Tensor, labels: int) -> dict[str, float]:
    """The correlations of the cosine of each row's two vectors (rows, 2, dim) with its score."""
    return correlations(pair_losses.cosines(vectors.double()).numpy(), targets[:, 0].double().numpy())


SIMILARITY = Kind(
    name="similarity",
    least_labels=None,
    loss=pair_losses.similarity,
    target=finite_number,
    metrics={"spearman": 1, "pearson": 1},
    measure=similarity_metrics,
    texts=2,
    embeds=True,
    joint=True,
    losses=("cosent", "squared"),
    options={"loss": "cosent", "scale": 20.0},
    reading=("score_range",),
)

# Whether two texts have the same label: the pairs are drawn from labelled rows, with a score of 1 or 0


FEW_SHOT = dataclasses.replace(
    SIMILARITY,
    name="few-shot",
    least_labels=2,
    target=class_index,
    texts=1,
    losses=("squared", "cosent"),
    options={"loss": "squared", "scale": 20.0},
    reading=("pairs",),
)


# Which text belongs to which


def retrieval_metrics(vectors: Tensor, numbers: Tensor, labels: int) -> dict[str, float]:
    """Search for each anchor's positives among all positives and hard negatives: (rows, texts, dim), (rows, texts)."""
    places: dict[int, int] = {}  # of a text, by its number, among the candidates
    for number in numbers[:, 1:].flatten().tolist():
        places.setdefault(number, len(places))
    relevant: dict[int, dict[int, float]] = {}
    for anchor, positive, *_ in numbers.tolist():
        relevant.setdefault(anchor, {})[places[positive]] = 1.0
    vector_of = dict(zip(numbers.flatten().tolist(), vectors.flatten(0, 1), strict=True))
    queries, corpus = (torch.stack([vector_of[number] for number in side]) for side in (relevant, places))
    return retrieval.search_metrics(
        queries, corpus.split(retrieval.BLOCK), list(relevant.values()), [places.get(anchor) for anchor in relevant]
    )


CONTRASTIVE = Kind(
    name="contrastive",
    least_labels=None,
    loss=pair_losses.contrastive,
    target=None,
    metrics=retrieval.METRICS,
    measure=retrieval_metrics,
    texts=2,
    embeds=True,
    joint=True,
    negatives=True,
    options={"scale": 20.0, "symmetric": False},
)

# What a teacher says


def distillation_metrics(vectors: Tensor, teacher: Tensor, labels: int) -> dict[str, float]:
    """The mean cosine of each vector with the teacher's, and the mean squared error: (texts, dim) both."""
    cosine = torch.nn.functional.cosine_similarity(vectors.double(), teacher.double(), dim=-1)
    return {"cosine": float(cosine.mean()), "mse": float((vectors.double() - teacher.double()).square().mean())}


DISTILLATION = Kind(
    name="distillation",
    least_labels=None,
    loss=pair_losses.distillation,
    target=None,
    metrics={"cosine": 1, "mse": -1},
    measure=distillation_metrics,
    embeds=True,
    losses=("squared", "cosine"),
    options={"loss": "squared"},
    reading=("teacher",),
    teacher=True,
    uncertainty=0.5,
)

ALL = (SINGLE_LABEL, MULTI_LABEL, REGRESSION, SIMILARITY, FEW_SHOT, CONTRASTIVE, DISTILLATION)
KINDS = {kind.name: kind for kind in ALL}
