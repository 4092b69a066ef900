"""How similar vectors are, and which of many are the most similar. Nothing is approximate."""

from __future__ import annotations

from typing import Any, Literal, TypeGuard, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mtl.errors import InputError, check_counts, shown

Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
Vectors = NDArray[Any] | Tensor

QUERIES, ROWS = 1024, 16384  # of a block: 64 MB of scores at once


def are_vectors(given: Any) -> TypeGuard[Vectors]:
    """Whether something is vectors, and not texts: an array of strings is the latter."""
    return isinstance(given, Tensor) or (isinstance(given, np.ndarray) and given.dtype.kind not in "UOST")


def as_matrix(vectors: Vectors, name: str) -> Tensor:
    """Vectors as a float32 tensor (vectors, dim); a single one may come as (dim,).

    Raises:
        InputError: they have another shape, or are no floating-point numbers.
    """
    if isinstance(vectors, np.ndarray):
        vectors = torch.from_numpy(vectors.astype(vectors.dtype.newbyteorder("=")))
    tensor = vectors
    if not tensor.is_floating_point() or tensor.dim() not in (1, 2):
        kind = str(tensor.dtype).removeprefix("torch.")
        raise InputError(f"{name} is {kind} {tuple(tensor.shape)}; expected floating-point vectors (vectors, dim)")
    return tensor.float().unsqueeze(0) if tensor.dim() == 1 else tensor.float()


def scores(a: Tensor, b: Tensor, measure: Similarity) -> Tensor:
    """The similarity of each of a (n, dim) to each of b (m, dim): (n, m), of which more is nearer.

    A distance counts as its negative.
    """
    if measure == "cosine":
        return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T
    if measure == "dot":
        return a @ b.T
    exact = "donot_use_mm_for_euclid_dist"
    return -torch.cdist(a, b, p=2.0 if measure == "euclidean" else 1.0, compute_mode=exact)


def check_measure(measure: str, widths: tuple[int, int]) -> None:
    """Raise an InputError for an unknown measure, or vectors of different widths."""
    if measure not in get_args(Similarity):
        raise InputError(f"similarity is {shown(measure)}; expected one of {', '.join(get_args(Similarity))}")
    if widths[0] != widths[1]:
        raise InputError(f"the vectors have {widths[0]} and {widths[1]} dimensions; expected as many in both")


def similarity(a: Vectors, b: Vectors, measure: Similarity = "cosine") -> Any:
    """The similarity of each of a (n, dim) to each of b (m, dim): (n, m) float32, a tensor where a is one.

    Raises:
        InputError: an unknown measure, or vectors that do not go together.
    """
    left, right = as_matrix(a, "a"), as_matrix(b, "b")
    check_measure(measure, (left.shape[1], right.shape[1]))
    found = scores(left, right.to(left.device), measure)
    return found if isinstance(a, Tensor) else found.numpy()


def search(
    queries: Vectors, corpus: Vectors, k: int = 10, measure: Similarity = "cosine"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k most similar of the corpus for each query: their scores and their places, best first, both (queries, k).

    The corpus (vectors, dim) is gone through block by block, so that it may be larger than memory:
    ``np.load("vectors.npy", mmap_mode="r")``. Where it has fewer than k vectors, all of them are found.

    Raises:
        InputError: k is less than 1; an unknown measure, or vectors that do not go together.
    """
    check_counts(k=k)
    wanted = as_matrix(queries, "queries")
    check_measure(measure, (wanted.shape[1], corpus.shape[-1]))
    parts = [best(part, corpus, k, measure) for part in wanted.split(QUERIES)]
    return torch.cat([found for found, _ in parts]).numpy(), torch.cat([places for _, places in parts]).numpy()


def best(queries: Tensor, corpus: Vectors, k: int, measure: Similarity) -> tuple[Tensor, Tensor]:
    """As ``search``, for one block of queries."""
    found = torch.empty(len(queries), 0)
    places = torch.empty(len(queries), 0, dtype=torch.int64)
    for start in range(0, len(corpus), ROWS):
        block = as_matrix(corpus[start : start + ROWS], "corpus").to(queries.device)
        here, rows = scores(queries, block, measure).topk(min(k, len(block)), dim=1)
        found, places = torch.cat([found, here.cpu()], dim=1), torch.cat([places, rows.cpu() + start], dim=1)
        found, order = found.topk(min(k, found.shape[1]), dim=1)
        places = places.gather(1, order)
    return found, places
