"""Pictures of vectors, on axes of matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtl.model.losses import cosines


def flat(vectors: Tensor) -> Tensor:
    """The two directions in which vectors (rows, dim) differ most, of their principal components: (rows, 2)."""
    centred = vectors.double() - vectors.double().mean(dim=0)
    left, sizes, _ = torch.linalg.svd(torch.nn.functional.pad(centred, (0, 2, 0, 2)), full_matrices=False)
    return (left * sizes)[: len(vectors), :2]


def draw_cosines(axes: Any, name: str, vectors: Tensor, scores: Tensor) -> None:
    """A point for each row's two vectors (rows, 2, dim): its score (rows, 1) from 0 to 1, and their cosine."""
    axes.scatter(scores[:, 0], cosines(vectors), s=12, alpha=0.4, linewidths=0)
    axes.set(xlabel="score, from the lowest to the highest", ylabel="cosine", title=f"{name}: score and cosine")


def draw_map(axes: Any, name: str, vectors: Tensor, groups: Tensor, labels: Sequence[str]) -> None:
    """A point for each vector (rows, dim), in its group's colour."""
    points = flat(vectors)
    for group, label in enumerate(labels):
        axes.scatter(*points[groups == group].T, s=12, alpha=0.6, linewidths=0, color=f"C{group}", label=label)
    axes.set(xlabel="first principal component", ylabel="second", title=f"{name}: where the vectors lie")
    axes.legend(markerscale=2)
