"""Classifiers, taggers and cross-encoders of transformers: which task of ours one is, and which of ours are one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mtl.checkpoints.families.family import Family
from mtl.checkpoints.load import Classifier
from mtl.errors import WeightsError
from mtl.tasks.kinds.base import HeadKind
from mtl.tasks.spec import TaskSpec

# A kind of task -> what transformers calls it in config.json
PROBLEMS = {
    "single-label": "single_label_classification",
    "multi-label": "multi_label_classification",
    "regression": "regression",
    "relevance": "",  # its activation says more
}


def as_classifier(task: TaskSpec, head: Mapping[str, Tensor], family: Family) -> Classifier | None:
    """A model's one task as transformers has it, of the tensors of its head; None where it has no such classifier."""
    handler = task.handler
    if task.kind == "tokens":
        return Classifier("tokens", handler.folded(head), handler.output_names)
    readable = (("cls",), ("mean",)) if family.head.pooled else (("cls",),)
    if task.pooling not in readable or task.head == "linear" or task.kind not in PROBLEMS:
        return None
    assert isinstance(handler, HeadKind)
    return Classifier(task.head, handler.folded(head), task.labels, PROBLEMS[task.kind], task.pooling[0],
                      activation=handler.activation)  # fmt: skip


def as_task(head: Classifier) -> TaskSpec:
    """The task of a classifier; a WeightsError or RecipeError where none comes of it."""
    if head.problem:
        raise WeightsError(head.problem)
    if head.kind == "tokens":
        layers = "modernbert" if "pre_classifier.weight" in head.tensors else "linear"
        return TaskSpec("tokens", kind="tokens", tags=head.labels, head=layers)
    form: dict[str, Any] = {"pooling": (head.pooling,), "head": head.kind}
    if head.activation:
        labels = head.labels if head.outputs > 1 else ()
        return TaskSpec("classification", labels, "relevance", text_field=("query", "text"), joint=True,
                        activation=head.activation, **form)  # fmt: skip
    kind = next(kind for kind, name in PROBLEMS.items() if name == head.problem_type)
    labels = () if kind == "regression" else head.labels
    return TaskSpec("classification", labels, kind, joint="either", **form)
