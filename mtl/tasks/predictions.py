"""What a model with task heads says of texts, row by row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from mtl.errors import InputError, shown
from mtl.rows.vector_files import Fields, Vectors

if TYPE_CHECKING:
    from mtl.tasks.multitask import MultiTaskModel


def plain(values: Vectors) -> list[float]:
    """The numbers of a vector, with the fewest digits that give back each exactly."""
    return [float(str(value)) for value in values]


def answers(
    model: MultiTaskModel, rows: Iterable[tuple[Any, Any]], threads: int | None = None, pairs: bool = False
) -> Iterator[tuple[Any, Fields]]:
    """Each row's text, and its fields with ``embedding`` and ``tasks`` behind them; of ``pairs``, without the former.

    ``tasks`` has, by task, its ``label``, and ``scores`` and ``logits`` by label (by "value" for a regression); of a
    tagger, its ``spans``. A row that has a field of one of these names already is an InputError.
    """
    for part, found in model.predict_rows(rows, itemgetter(0), threads, pairs=pairs):
        for i, (text, fields) in enumerate(part):
            if taken := {"embedding", "tasks"} & fields.keys():
                raise InputError(f"a row has a field {min(taken)!r} already; rename it: {shown(text)}")
            tasks = {
                name: {"spans": label[i]}
                if model.tasks[name].handler.level == "token"
                else {
                    "label": label[i],
                    "scores": dict(zip(model.head_kind(name).columns, plain(found.scores[name][i]), strict=True)),
                    "logits": plain(found.logits[name][i]),
                }
                for name, label in found.labels.items()
            }
            vector = {} if pairs else {"embedding": plain(found.embeddings[i])}
            yield text, {**fields, **vector, "tasks": tasks}


def said(label: Any) -> str:
    """A task's label as a word: the labels of a multi-label task side by side."""
    return "|".join(label) if isinstance(label, list) else str(label)


def fingerprint(model: MultiTaskModel) -> str:
    """A hash of what answers depend on: all weights, tasks and settings of the model."""
    import torch  # not where a command is only asked for its help

    digest = hashlib.sha256(repr([model.embedder.fingerprint, model.embedder.max_seq_length, model.tasks]).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
