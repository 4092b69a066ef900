"""How similar vectors are, which of many are the most similar, and how good a ranking is. Nothing is approximate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeGuard, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mtl.errors import InputError, check_counts, shown

Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
Vectors = NDArray[Any] | Tensor

Relevance = Mapping[int, float]  # a document's place, and how relevant it is

LARGE = 1e15  # a value beyond which squares are summed with care
QUERIES, BLOCK = 1024, 16384  # vectors that are compared at once: 64 MB of scores
MADE = 8192  # vectors that are made, or brought together, at once: they are compared while a cache holds them
PRODUCTS = 1 << 22  # of numbers that are summed at once
ROUNDING = {"bf16": 2.0**-8, "tf32": 2.0**-11}  # of a product's inputs where torch is told so; else float32's 2 ** -24
FEW = 512  # candidates of each query, above which the products are made anew in float64
FEW_QUERIES, ROWS = 64, 128  # up to so many queries, a block's products are made in batches of so many of its vectors
SPARE = 16  # candidates of a query, more than twice the results, before they are chosen more closely
DEPTH = 100  # results of a query that the metrics look at
METRICS = {"ndcg@10": 1, "mrr@10": 1, "recall@10": 1, "recall@100": 1}


def are_vectors(given: Any) -> TypeGuard[Vectors]:
    """Whether something is vectors, and not texts: an array of strings is the latter."""
    return isinstance(given, Tensor) or (isinstance(given, np.ndarray) and given.dtype.kind not in "UOST")


def check_vectors(vectors: Any, name: str) -> None:
    """That these are vectors, (vectors, dim), or a single one.

    Raises:
        InputError: they have another shape, or are no floating-point numbers.
    """
    if not isinstance(vectors, (Tensor, np.ndarray)):
        raise InputError(f"{name} is {shown(vectors)}; expected an array or a tensor of vectors (vectors, dim)")
    floating = vectors.is_floating_point() if isinstance(vectors, Tensor) else vectors.dtype.kind == "f"
    if not floating or vectors.ndim not in (1, 2):
        kind = str(vectors.dtype).removeprefix("torch.")
        raise InputError(f"{name} is {kind} {tuple(vectors.shape)}; expected floating-point vectors (vectors, dim)")


class Memory:
    """An array's memory without its mark that nobody may write there, of which torch warns. Nobody here does."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


def as_tensor(vectors: Vectors) -> Tensor:
    """Vectors as a tensor, which is for reading: where torch has their number format, it shares their memory."""
    if isinstance(vectors, Tensor):
        return vectors
    kind = vectors.dtype.newbyteorder("=") if vectors.dtype.itemsize <= 8 else np.float64
    return torch.from_numpy(np.asarray(Memory(vectors.astype(kind, order="C", copy=False))))


def as_matrix(vectors: Vectors, name: str) -> Tensor:
    """Vectors as a float32 tensor (vectors, dim); a single one may come as (dim,).

    Raises:
        InputError: they have another shape, or are no floating-point numbers.
    """
    check_vectors(vectors, name)
    found = as_tensor(vectors).float()
    return found.unsqueeze(0) if found.ndim == 1 else found


def unit(x: Tensor) -> Tensor:
    """Vectors at length 1, each as if alone; those whose squares a float32 cannot hold are made smaller first."""
    x = x.contiguous()  # of values that are not neighbours, torch sums the squares in another order
    largest = x.abs().amax(dim=-1, keepdim=True) if x.numel() else x
    return F.normalize(x / largest.where(largest > LARGE, 1.0) if (largest > LARGE).any() else x, dim=-1)


def all_products(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b.T``: where a has few rows, in batches of b's, since on a CPU torch has one thread multiply a matrix by a
    vector, and takes longer yet for two or three."""
    if len(a) > FEW_QUERIES or a.device.type != "cpu":
        return a @ b.T
    whole = len(b) // ROWS * ROWS
    batches = b[:whole].reshape(whole // ROWS, ROWS, b.shape[1])
    first = torch.bmm(batches, a.T.expand(len(batches), -1, -1)).flatten(0, 1)
    return torch.cat([first, b[whole:] @ a.T]).T.contiguous()


def scores(a: Tensor, b: Tensor, measure: Similarity) -> Tensor:
    """The similarity of each of a (n, dim) to each of b (m, dim): (n, m), of which more is nearer.

    A distance counts as its negative.
    """
    with torch.autocast(a.device.type, enabled=False):
        if measure == "cosine":
            return all_products(unit(a), unit(b))
        if measure == "dot":
            return all_products(a, b)
        exact = "donot_use_mm_for_euclid_dist"
        return -torch.cdist(a, b, p=2.0 if measure == "euclidean" else 1.0, compute_mode=exact)


def check_known(measure: object, name: str = "similarity") -> None:
    """Raise an InputError for an unknown measure, which is given as ``name``."""
    if not isinstance(measure, str) or measure not in get_args(Similarity):
        raise InputError(f"{name} is {shown(measure)}; expected one of {', '.join(get_args(Similarity))}")


def check_measure(measure: str, widths: tuple[int, int]) -> None:
    """Raise an InputError for an unknown measure, or vectors of different widths."""
    check_known(measure)
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
    return found if isinstance(a, Tensor) else found.detach().numpy()


def check_finite(vectors: Tensor, name: str, start: int = 0) -> Tensor:
    """The vectors themselves, (vectors, dim), if all can be compared; ``start`` is the place of the first.

    Raises:
        InputError: a value is NaN or infinite, which would rank anywhere.
    """
    finite = torch.isfinite(vectors).all(dim=1)
    if not finite.all():
        place = start + int(finite.logical_not().nonzero()[0])
        raise InputError(f"{name}[{place}] is not finite (NaN or infinity); expected numbers that can be compared")
    return vectors


def search(
    queries: Vectors, corpus: Vectors, k: int = 10, measure: Similarity = "cosine", longest: float | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k most similar of the corpus for each query: their scores and their places, best first, both (queries, k).

    Of equal ones, the first of the corpus comes first. A score depends on its two vectors alone, to the bit: on no
    other query, on no other vector, on neither's place. The corpus (vectors, dim) is gone through block by block, so
    that it may be larger than memory: ``np.load("vectors.npy", mmap_mode="r")``. Where it has fewer than k vectors,
    all of them are found. ``longest``: no vector of it is longer; measured where it is not given.

    Raises:
        InputError: k is less than 1; an unknown measure, vectors that do not go together or are not finite.
    """
    check_counts(False, k=k)
    wanted = as_matrix(queries, "queries").detach()
    check_vectors(corpus, "corpus")
    check_measure(measure, (wanted.shape[1], corpus.shape[-1]))
    corpus = corpus[None] if corpus.ndim == 1 else corpus
    found, places = nearest(wanted, blocks_of(corpus), k, measure, longest)
    return found.numpy(), places.numpy()


def blocks_of(corpus: Vectors) -> Iterator[Tensor]:
    """A corpus's float32 vectors, (rows of a block, dim) each. A block is there until the next one is made: what comes
    in another number format is made float32 where the last block was."""
    made, size = None, BLOCK if corpus.dtype in (np.float32, torch.float32) else MADE
    for start in range(0, len(corpus), size):
        part = as_tensor(corpus[start : start + size]).detach()
        if part.dtype != torch.float32:
            made = torch.empty_like(part, dtype=torch.float32) if made is None else made[: len(part)]
            part = made.copy_(part)
        yield part


def nearest(
    queries: Tensor, corpus: Iterable[Tensor], k: int, measure: Similarity = "cosine", longest: float | None = None
) -> tuple[Tensor, Tensor]:
    """As ``search``, for a corpus that comes in blocks (any number, dim), each needed only until the next one comes."""
    wanted = check_finite(queries.float(), "queries")
    groups = (unit(wanted) if measure == "cosine" else wanted).split(QUERIES)
    best = [(x.new_empty(len(x), 0), torch.empty(len(x), 0, dtype=torch.int64, device=x.device)) for x in groups]
    start = 0
    for block in corpus:
        given = block.float().to(queries.device)
        vectors = unit(given) if measure == "cosine" else given
        most = longest_of(vectors) if measure == "dot" and longest is None else longest or 0.0
        most = 1.0 if measure == "cosine" else most
        for i, group in enumerate(groups):
            alike = scores(group, vectors, "dot" if measure == "cosine" else measure)
            if not torch.isfinite(alike.sum()):  # a vector that is not finite has no finite score with any other
                check_finite(given, "corpus", start)
                if not torch.isfinite(alike).all():
                    raise InputError(f"the vectors are too large to be compared by {measure}; expected smaller numbers")
            least = best[i][0][:, -1] if best[i][0].shape[1] == k else group.new_full((len(group),), -math.inf)
            if measure in ("cosine", "dot"):
                query, place, exact = best_products(group, vectors, alike, least, k, most)
            else:
                query, place = first_best(alike, least, k)
                exact = alike[query, place]
            if len(query):
                found, places = in_rows(len(group), query, exact, place + start)
                found, places = torch.cat([best[i][0], found], dim=1), torch.cat([best[i][1], places], dim=1)
                order = found.sort(dim=1, descending=True, stable=True).indices[:, :k]
                best[i] = found.gather(1, order), places.gather(1, order)
        start += len(block)
    shape = len(queries), min(k, start)
    found, places = (torch.cat([part[i].cpu() for part in best]) for i in (0, 1))
    return found.reshape(shape), places.reshape(shape)


def best_products(
    queries: Tensor, corpus: Tensor, alike: Tensor, least: Tensor, k: int, longest: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Which pairs of queries and vectors may be among the best k, and their products; ``alike`` is what a kernel for
    matrices makes of all."""
    query, place = candidates(alike, least, k, rounding(queries, longest))
    if len(query) <= FEW * len(queries):
        return query, place, dots(queries, corpus, query, place)
    alike = products(queries, corpus)  # vectors that are nearly alike, or equal
    query, place = first_best(alike, least, k)
    return query, place, alike[query, place]


def products(queries: Tensor, corpus: Tensor) -> Tensor:
    """As ``dots``, of all pairs: made by a kernel for matrices, and those anew that its order of summing might round
    to another float32 (Higham 2002, section 3.1; no product of two float32 is rounded in float64)."""
    a, b = queries.double(), corpus.double().T
    found, off = a @ b, (a.abs() @ b.abs()).mul_(1.01 * (2 * len(b) + 8) * 2.0**-53)
    query, place = ((found - off).float() != (found + off).float()).nonzero(as_tuple=True)
    rounded = found.float()
    rounded[query, place] = dots(queries, corpus, query, place)
    return rounded


def longest_of(vectors: Tensor) -> float:
    return float(torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64).max()) if len(vectors) else 0.0


def rounding(queries: Tensor, longest: float) -> Tensor:
    """How far two products of each query with vectors no longer than ``longest`` may be off, taken together, in
    whatever order float32 sums them (Higham 2002, section 3.1), and rounded: (queries,) float64."""
    lengths = torch.linalg.vector_norm(queries, dim=1, dtype=torch.float64)
    terms = 2 * queries.shape[1] + 8  # a rounding for each term of both, and of what they are held to
    told = [getattr(torch.backends, name).matmul.fp32_precision for name in ("mkldnn", "cuda")]
    of_inputs = 4 * max(ROUNDING.get(name, 0.0) for name in told)
    return (terms * 2.0**-24 + of_inputs) * 1.01 * longest * lengths + terms * 2.0**-126


def dots(queries: Tensor, corpus: Tensor, query: Tensor, place: Tensor) -> Tensor:
    """The products of pairs of vectors, given by where each is: in float64, where no order of summing shows, then
    rounded. A kernel for matrices sums in another order at a matrix's edge, and for another number of rows."""
    parts = zip(*(x.split(max(1, PRODUCTS // max(1, queries.shape[1]))) for x in (query, place)), strict=True)
    return torch.cat([(queries[a].double() * corpus[b].double()).sum(dim=1) for a, b in parts]).float()


def first_best(alike: Tensor, least: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Which queries and which vectors of a block are among the best k of it, of equal ones the first, and better than
    ``least`` (queries,), as pairs, in rising order. ``alike`` are the scores themselves, (queries, block)."""
    chosen = alike > least[:, None]
    if int(chosen.count_nonzero()) > (2 * k + SPARE) * len(alike):
        border = alike.topk(min(k, alike.shape[1]), dim=1).values[:, -1:]
        equal = alike == border
        chosen &= (alike > border) | (equal & (equal.cumsum(dim=1) <= k))
    query, place = chosen.nonzero(as_tuple=True)
    return query, place


def candidates(alike: Tensor, least: Tensor, k: int, off: Tensor) -> tuple[Tensor, Tensor]:
    """Which queries and which vectors of a block may be among the best k, as pairs, in rising order.

    alike: The scores (queries, block), two of which are off by less than ``off`` (queries,) together.
    least: What a score has to be now, (queries,).
    """
    k = min(k, alike.shape[1])
    chosen = alike >= (least - off).float()[:, None]
    if k and int(chosen.count_nonzero()) > (2 * k + SPARE) * len(alike):
        least = torch.maximum(least, alike.topk(k, dim=1).values[:, -1])
        chosen = alike >= (least - off).float()[:, None]
    query, place = chosen.nonzero(as_tuple=True)
    return query, place


def in_rows(rows: int, row: Tensor, found: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Values and places, which come with the rising row of each, as matrices; minus infinity fills up the values."""
    counts = row.bincount(minlength=rows)
    column = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    shape = rows, int(counts.max()) if rows else 0
    values, where = found.new_full(shape, -math.inf), places.new_zeros(shape)
    values[row, column], where[row, column] = found, places
    return values, where


def gain(relevances: Sequence[float]) -> float:
    """Discounted cumulative gain of a ranking (Jarvelin and Kekalainen 2002)."""
    return sum(relevance / math.log2(rank + 2) for rank, relevance in enumerate(relevances))


def ranking_metrics(rankings: Sequence[Sequence[int]], relevant: Sequence[Relevance]) -> dict[str, float]:
    """Means over queries; a query's ranking holds places, best first, and what is relevant to it is above 0.

    ndcg@10 is the gain of the first ten by that of the best ten; mrr@10 one by the rank of the first relevant one among
    ten; recall@k the share of the relevant ones that are among the first k.
    """
    sums = dict.fromkeys(METRICS, 0.0)
    for ranking, judged in zip(rankings, relevant, strict=True):
        most = max(judged.values())
        unit = 1.0 if 1e-100 < most < 1e100 else most  # sums of others would be infinite, or 0
        gains = [judged.get(place, 0.0) / unit for place in ranking]
        ideal = sorted((value / unit for value in judged.values() if value > 0), reverse=True)
        first = next((rank for rank, value in enumerate(gains[:10], 1) if value > 0), None)
        sums["ndcg@10"] += gain(gains[:10]) / gain(ideal[:10])
        sums["mrr@10"] += 1 / first if first else 0.0
        for k in (10, 100):
            sums[f"recall@{k}"] += sum(value > 0 for value in gains[:k]) / len(ideal)
    return {name: total / len(rankings) for name, total in sums.items()}


def search_metrics(
    queries: Tensor, corpus: Iterable[Tensor], relevant: Sequence[Relevance], same: Sequence[int | None],
    measure: Similarity = "cosine",
) -> dict[str, float]:  # fmt: skip
    """Those of exact search. ``same[i]`` is the place of query i itself in the corpus, which does not count."""
    return ranking_metrics(rankings(queries, corpus, same, measure), relevant)


def rankings(
    queries: Tensor, corpus: Iterable[Tensor], same: Sequence[int | None], measure: Similarity = "cosine"
) -> list[list[int]]:
    """The places of each query's nearest, as far as metrics look, without ``same[i]``, the query's own."""
    found = nearest(queries, corpus, DEPTH + 1, measure)[1].tolist()
    return [[place for place in places if place != own][:DEPTH] for places, own in zip(found, same, strict=True)]
