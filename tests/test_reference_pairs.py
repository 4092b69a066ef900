"""Live comparison of the training on pairs with sentence-transformers' losses, where it is installed."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from training.test_loop import build, go
from training.test_pairs import NEGATIVES, SIMILAR, SIZES, SQUARED, STUDENT, dataset

from mtl.checkpoints.load import Checkpoint
from mtl.tasks.spec import TaskSpec
from mtl.training.recipe import Recipe, Training
from mtl.training.run import Run, prepare

sentence_transformers = pytest.importorskip("sentence_transformers", reason="needs the reference extra")
losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses", reason="needs the reference extra")
pytestmark = pytest.mark.reference

ONE_WAY = dataclasses.replace(NEGATIVES, symmetric=None)
SMALL = {"batch_size": 3, "accumulate": 2}
BOTH_WAYS = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}


def column(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """Texts as a padded batch."""
    ids = [torch.tensor(row) for row in rows]
    mask = [torch.ones_like(row) for row in ids]
    return {"input_ids": pad_sequence(ids, batch_first=True), "attention_mask": pad_sequence(mask, batch_first=True)}


@pytest.mark.parametrize(
    ("task", "changes", "theirs"),
    [
        (SIMILAR, {}, lambda model: losses.CoSENTLoss(model, scale=5.0)),
        (SIMILAR, SMALL, lambda model: losses.CoSENTLoss(model, scale=5.0)),
        (SQUARED, {}, lambda model: losses.CosineSimilarityLoss(model)),
        (ONE_WAY, {}, lambda model: losses.MultipleNegativesRankingLoss(model, scale=5.0)),
        (NEGATIVES, {}, lambda model: losses.MultipleNegativesRankingLoss(model, scale=5.0, **BOTH_WAYS)),
        (
            ONE_WAY,
            SMALL | {"micro_tokens": 20},
            lambda model: losses.CachedMultipleNegativesRankingLoss(model, scale=5.0, mini_batch_size=2),
        ),
        (STUDENT, {}, lambda model: losses.MSELoss(model)),
        (
            SIZES,
            {},
            lambda model: losses.MatryoshkaLoss(model, losses.CoSENTLoss(model, scale=5.0), [12, 4], [1.0, 0.5]),
        ),
    ],
    ids=["cosent", "cosent-window", "squared", "in-batch", "symmetric", "cached", "distillation", "matryoshka"],
)
def test_the_same_losses_over_20_steps(
    checkpoint: Checkpoint, tmp_path: Path, task: TaskSpec, changes: dict[str, Any], theirs: Callable
) -> None:
    """The same rows, weights and optimiser, dropout off; then the same vectors from what we save."""
    model = build(checkpoint, (task,))
    with torch.no_grad():  # vectors that are not all alike
        for name, parameter in model.named_parameters():
            if "output_layer_norm" in name:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    model.eval().save(tmp_path / "start")
    settings = {"epochs": 5, "batch_size": 6, "learning_rate": 3e-3, "warmup": 0.0, "schedule": "constant", "clip": 0.0}
    training = Training(**{**settings, **changes})
    data = dataset(task, size=24) | {"dev": {}}
    rows = data["train"][task.name].rows
    targets = data["train"][task.name].targets.clone()
    if task.kind == "contrastive":  # equal texts are negatives to the reference
        targets[:] = torch.arange(targets.numel()).view_as(targets)
    data["train"][task.name] = dataclasses.replace(data["train"][task.name], targets=targets)
    run = Run(prepare(Recipe("tiny", (task,), training), model, data), tmp_path / "run")
    ours = [record["loss"][task.name] for record in go(run, 20)]

    reference = sentence_transformers.SentenceTransformer(str(tmp_path / "start"), device="cpu").train()
    criterion = theirs(reference)
    decayed = [p for p in reference.parameters() if p.ndim >= 2]
    others = [p for p in reference.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=3e-3)
    expected = []
    for step in range(20):
        chosen = [row for micro in run.schedule.window(step) for row in micro.rows]
        width = len(task.text_field)
        columns = [column([rows[row * width + i] for row in chosen]) for i in range(width)]
        labels = targets[chosen, 0] if task.kind == "similarity" else targets[chosen]
        loss = criterion(columns, labels)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        expected.append(loss.item())
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)
    assert max(ours) - min(ours) > 0.05

    model.eval().save(tmp_path / "trained")
    saved = sentence_transformers.SentenceTransformer(str(tmp_path / "trained"), device="cpu")
    np.testing.assert_allclose(model.embedder.encode(["a b c", "d"]), saved.encode(["a b c", "d"]), atol=2e-6, rtol=0)
