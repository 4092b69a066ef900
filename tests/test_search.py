"""Similarities by hand, and a search in blocks that finds what a search in one piece does."""

import dataclasses
import math
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl import SentenceEncoder
from mtl import search as module
from mtl.checkpoints.load import Checkpoint
from mtl.checkpoints.save import save
from mtl.errors import ConfigError, InputError
from mtl.search import METRICS, nearest, ranking_metrics, search, similarity
from mtl.tasks.spec import TaskSpec

A = np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32)
B = np.array([[4.0, 3.0], [-3.0, -4.0], [3.0, 0.0]], dtype=np.float32)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([[1.0, 2.0]], "is [[1.0, 2.0]]; expected an array or a tensor of vectors"),
        (None, "is None; expected an array"),
        (np.array([["a", "b"]]), "is <U1 (1, 2); expected floating-point vectors"),
        (np.array([[1.0, None]]), "is object (1, 2); expected floating-point vectors"),
        (np.array([[1 + 2j, 1]]), "is complex128 (1, 2); expected"),
        (np.array(1.0), "is float64 (); expected"),
        (torch.ones(2, 2, 2), "is float32 (2, 2, 2); expected"),
    ],
)
def test_what_is_no_vectors_is_one_line(given: object, message: str) -> None:
    for call in (
        lambda: similarity(given, B),
        lambda: similarity(A, given),
        lambda: search(given, B),
        lambda: search(A, given),
    ):  # type: ignore[arg-type]
        with pytest.raises(InputError, match=re.escape(message)):
            call()


def test_vectors_with_a_graph_and_of_other_widths() -> None:
    """Their similarities can be trained on, and be had as an array."""
    b = torch.from_numpy(B).requires_grad_()
    expected = similarity(A, B)
    found = similarity(torch.from_numpy(A), b)
    assert found.requires_grad
    for each in (found.detach(), similarity(A, b), similarity(A.astype(">f8"), B.astype(np.longdouble))):
        np.testing.assert_array_equal(each, expected)
    for scores, places in (search(A, b, 2), search(torch.from_numpy(A), B, 2)):
        np.testing.assert_array_equal(places, search(A, B, 2)[1])
        np.testing.assert_array_equal(scores, search(A, B, 2)[0])


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        ("cosine", [[0.96, -1, 0.6], [0, 0, 0]]),
        ("dot", [[24, -25, 9], [0, 0, 0]]),
        ("euclidean", [[-(2**0.5), -10, -4], [-5, -5, -3]]),
        ("manhattan", [[-2, -14, -4], [-7, -7, -3]]),
    ],
)
def test_similarities_by_hand(measure: str, expected: list[list[float]]) -> None:
    np.testing.assert_allclose(similarity(A, B, measure), expected, atol=1e-6)
    found = similarity(torch.from_numpy(A), B, measure)
    assert isinstance(found, torch.Tensor)
    np.testing.assert_allclose(similarity(A[0], B, measure), expected[:1], atol=1e-6)


@pytest.mark.parametrize("measure", ["cosine", "dot", "euclidean"])
def test_a_search_in_blocks_is_exact(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, measure: str) -> None:
    monkeypatch.setattr(module, "QUERIES", 3)
    monkeypatch.setattr(module, "BLOCK", 7)
    generator = np.random.default_rng(0)
    queries, corpus = (generator.normal(size=(n, 5)).astype(np.float32) for n in (8, 40))
    np.save(tmp_path / "corpus.npy", corpus)
    whole = similarity(queries, corpus, measure)
    expected = np.argsort(-whole, axis=1)[:, :9]
    scores, places = search(queries, np.load(tmp_path / "corpus.npy", mmap_mode="r"), 9, measure)
    assert np.array_equal(places, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(whole, expected, 1), atol=1e-5)
    assert search(queries, corpus[:2], 9)[1].shape == (8, 2)
    assert search(queries[0], corpus[:0], 9)[1].shape == (1, 0)


def test_what_does_not_go_together() -> None:
    for arguments, message in (
        ((A, B, 0), "k is 0; expected 1 or more"),
        ((A, B, 2.0), "k is 2.0; expected a whole number"),
        ((A, B[:, :1]), "the vectors have 2 and 1 dimensions; expected as many in both"),
        ((A, B, 3, "cosin"), "similarity is 'cosin'; expected one of cosine, dot, euclidean, manhattan"),
        ((A, B.astype(np.int8)), r"corpus is int8 \(3, 2\); expected floating-point vectors"),
    ):
        with pytest.raises(InputError, match=message):
            search(*arguments)


def test_numbers_of_another_byte_order() -> None:
    for one, other in zip(search(A, B), search(A.astype(">f4"), B.astype(">f8")), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_a_model_searches_by_its_own_measure(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The folder says which, and says it again when it is saved."""
    save(dataclasses.replace(checkpoint, similarity_fn_name="dot", prompts={"query": "q "}), tmp_path / "dot")
    SentenceEncoder.from_pretrained(tmp_path / "dot").save(tmp_path / "again")
    model = SentenceEncoder.from_pretrained(tmp_path / "again")
    texts = ["a b", "c", "d e f"]
    queries, vectors = model.encode(["q a", "q c"]), model.encode(texts)
    np.testing.assert_allclose(model.similarity(queries, vectors), queries @ vectors.T, rtol=1e-5)
    _, places = model.search(["a", "c"], texts, k=2)
    assert np.array_equal(places, np.argsort(-(queries @ vectors.T), axis=1)[:, :2])
    assert np.array_equal(model.search("c", vectors, k=1)[1], places[1:, :1])
    save(dataclasses.replace(checkpoint, similarity_fn_name="angle"), tmp_path / "angle")
    with pytest.raises(ConfigError, match="similarity_fn_name is 'angle'; expected one of cosine"):
        SentenceEncoder.from_pretrained(tmp_path / "angle")


@pytest.mark.parametrize("measure", ["cosine", "dot", "euclidean", "manhattan"])
def test_of_equal_ones_the_first(monkeypatch: pytest.MonkeyPatch, measure: str) -> None:
    """Whatever the blocks, and whether the equal ones fit into k: topk alone gives them in no order."""
    corpus = np.tile(np.array([[1.0, 2.0]], dtype=np.float32), (20001, 1))
    corpus[15000:15003] = [[1, 2.1], [1, 2.1], [0, 1]]
    (scores,), (places,) = search(corpus[0], corpus, 6, measure)
    first = [15000, 15001, 0, 1, 2, 3] if measure == "dot" else [0, 1, 2, 3, 4, 5]
    assert places.tolist() == first
    assert (np.diff(scores) <= 0).all()
    monkeypatch.setattr(module, "BLOCK", 700)
    assert search(corpus[:3], corpus, 6, measure)[1].tolist() == [first] * 3


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3), min_size=1, max_size=40), st.integers(1, 12),
    st.integers(1, 9),
)  # fmt: skip
def test_search_is_a_stable_sort(corpus: list[list[int]], k: int, block: int) -> None:
    vectors = torch.tensor(corpus, dtype=torch.float32)
    whole = vectors[:5] @ vectors.T  # small whole numbers, so that equal ones are equal
    expected = whole.sort(dim=1, descending=True, stable=True).indices[:, :k]
    assert torch.equal(nearest(vectors[:5], vectors.split(block), k, "dot")[1], expected)


@pytest.mark.parametrize("measure", ["cosine", "dot", "euclidean", "manhattan"])
@pytest.mark.parametrize("dim", [1, 7, 100, 384])
def test_a_score_is_that_of_its_two_vectors_alone(monkeypatch: pytest.MonkeyPatch, measure: str, dim: int) -> None:
    """A kernel for matrices gives equal vectors other bits at a matrix's edge, and beside other queries."""
    generator = torch.Generator().manual_seed(dim)
    queries, corpus = torch.randn(7, dim, generator=generator), torch.randn(60, dim, generator=generator)
    corpus[0] *= 1e20 if measure == "cosine" else 1
    alone = torch.cat([torch.cat([nearest(q[None], [c[None]], 1, measure)[0] for c in corpus], 1) for q in queries])
    corpus = corpus[torch.arange(60) % 40]  # some are there twice
    alone = alone[:, torch.arange(60) % 40]
    expected = alone.sort(dim=1, descending=True, stable=True)
    for block, rows, k in ((60, 7, 60), (17, 2, 9), (5, 1, 3), (1, 3, 1)):
        monkeypatch.setattr(module, "QUERIES", rows)
        scores, places = nearest(queries, corpus.split(block), k, measure)
        assert torch.equal(scores, expected.values[:, :k])
        assert torch.equal(places, expected.indices[:, :k])
        assert torch.equal(nearest(queries[1:2], corpus.split(block), k, measure)[0], scores[1:2])


@pytest.mark.parametrize("count", [2, 5, 17, 100, 1001])
def test_equal_vectors_come_in_their_order(count: int) -> None:
    generator = np.random.default_rng(0)
    vector, query = generator.standard_normal((2, 384)).astype(np.float32)
    scores, places = search(query, np.tile(vector, (count, 1)), 10)
    assert places[0].tolist() == [*range(min(10, count))]
    assert len({*scores[0].tolist()}) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_vectors_that_are_not_finite(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """Refused with their place: a NaN would rank first, by every measure."""
    monkeypatch.setattr(module, "BLOCK", 2)
    corpus = np.ones((5, 2), dtype=np.float32)
    corpus[3, 1] = value
    for measure in ("cosine", "dot", "euclidean", "manhattan"):
        with pytest.raises(InputError, match=r"^corpus\[3\] is not finite \(NaN or infinity\)"):
            search(corpus[0], corpus, 2, measure)
        with pytest.raises(InputError, match=r"^queries\[3\] is not finite"):
            search(corpus, corpus[:2], 2, measure)
    with pytest.raises(InputError, match=r"^corpus\[1\] is not finite"):
        search(A, np.array([[1, 1], [1e300, 1]]), 1)


def test_very_large_vectors() -> None:
    """Cosines are right where squares would not fit; a product that does not fit is refused."""
    corpus = np.array([[0, 1e30], [1e30, 1e30], [3, 4]], dtype=np.float32)
    scores, places = search(corpus[1] / 1e10, corpus, 3)
    assert places.tolist() == [[1, 2, 0]]
    np.testing.assert_allclose(scores, [[1, 7 / 50**0.5, 0.5**0.5]], rtol=1e-6)
    with pytest.raises(InputError, match="the vectors are too large to be compared by dot"):
        search(corpus, corpus, 1, "dot")


def test_metrics_by_hand() -> None:
    """Query 0: relevances 0, 3, 0, 1 of an ideal 3, 2, 1; query 1: nothing found but at rank 11."""
    rankings = [[9, 0, 8, 2], [*range(10, 20), 5]]
    relevant = [{0: 3.0, 1: 2.0, 2: 1.0, 8: 0.0}, {5: 1.0}]
    found = ranking_metrics(rankings, relevant)
    ndcg = (3 / math.log2(3) + 1 / math.log2(5)) / (3 + 2 / math.log2(3) + 1 / 2)
    expected = {"ndcg@10": ndcg / 2, "mrr@10": 1 / 4, "recall@10": 1 / 3, "recall@100": (2 / 3 + 1) / 2}
    assert found == pytest.approx(expected)
    assert found.keys() == METRICS.keys()


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, corpus = torch.randn(7, 5, generator=generator), torch.randn(23, 5, generator=generator)
    corpus[20] = corpus[3]  # equal scores: the first comes first
    cosines = torch.nn.functional.cosine_similarity(queries[:, None], corpus[None], dim=2)
    expected = cosines.sort(dim=1, descending=True, stable=True).indices[:, :9].tolist()
    assert nearest(queries, [corpus], 9)[1].tolist() == expected
    monkeypatch.setattr(module, "QUERIES", 4)
    assert nearest(queries, corpus.split(5), 9)[1].tolist() == expected
    assert [sorted(places) for places in nearest(queries, corpus.split(9), 99)[1].tolist()] == [list(range(23))] * 7


def test_rows_of_pairs_as_a_search() -> None:
    """Anchors 0 (positives 1, 2) and 3 (positive 4); hard negatives 5 and 3, which does not find itself."""
    vectors = {0: [1.0, 0], 1: [0.9, 0.1], 2: [0.0, 1], 3: [0.0, -1], 4: [0.1, -1], 5: [0.8, 0.2]}
    numbers = torch.tensor([[0, 1, 5], [0, 2, 3], [3, 4, 5]])
    rows = torch.tensor([[vectors[number] for number in row] for row in numbers.tolist()])
    task = TaskSpec("t", kind="contrastive", text_field=("a", "b"))
    found = task.handler.measure(rows, numbers)  # of 0: 1, 5, 4, 2, 3, where 4 and 3 are near 0
    ndcg = (1 + 1 / math.log2(5)) / (1 + 1 / math.log2(3))
    assert found == pytest.approx({"ndcg@10": (ndcg + 1) / 2, "mrr@10": 1.0, "recall@10": 1.0, "recall@100": 1.0})


@pytest.mark.parametrize("measure", ["cosine", "dot", "euclidean"])
def test_a_score_is_that_of_its_values_however_they_lie_in_memory(measure: str) -> None:
    x = np.random.default_rng(0).normal(size=(300, 384)).astype(np.float32)
    expected = search(x[:5], x, 20, measure)
    wide = torch.zeros(300, 768)
    wide[:, ::2] = torch.from_numpy(x)
    backwards = np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1]
    for other in (np.asfortranarray(x), wide[:, ::2], backwards):
        for queries in (x[:5], other[:5]):
            found = search(queries, other, 20, measure)
            assert all(np.array_equal(one, same) for one, same in zip(found, expected, strict=True))


def test_an_estimate_that_is_too_large_is_said() -> None:
    """The product is 0, and float32 sums its first half to minus infinity."""
    query = np.full((1, 256), 1e20, np.float32)
    corpus = np.full((100, 256), -1e-22, np.float32)
    corpus[50] = np.repeat(np.float32([-3e18, 3e18]), 128)
    with pytest.raises(InputError, match="the vectors are too large to be compared by dot"):
        search(query, corpus, 1, "dot")


@pytest.mark.parametrize("spread", [3e-3, 1e-6])
def test_vectors_that_are_nearly_alike(monkeypatch: pytest.MonkeyPatch, spread: float) -> None:
    monkeypatch.setattr(module, "FEW", 16)
    generator = np.random.default_rng(0)
    x = (1 + spread * generator.normal(size=(500, 64))).astype(np.float32)
    found, places = search(x[:9], x, 7, "dot")
    exact = (np.float64(x[:9]) @ np.float64(x).T).astype(np.float32)
    order = np.argsort(-exact, axis=1, kind="stable")[:, :7]
    assert np.array_equal(places, order)
    assert np.array_equal(found, np.take_along_axis(exact, order, 1))


def test_of_nothing() -> None:
    """No queries, no vectors, no dimensions: results of the shape that is promised."""
    x = np.ones((3, 4), np.float32)
    assert search(x[:0], x, 2)[0].shape == (0, 2)
    assert search(x, x[:0], 2)[1].shape == (3, 0)
    assert search(x[:, :0], x[:2, :0], 5)[0].tolist() == [[0, 0]] * 3


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_products_that_are_allowed_to_be_less_exact(precision: str) -> None:
    """What decides is computed exactly; the kernel only says who may be among the best."""
    x = np.random.default_rng(0).normal(size=(500, 64)).astype(np.float32)
    expected, before = search(x[:9], x, 7), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        found = search(x[:9], x, 7)
    finally:
        torch.set_float32_matmul_precision(before)
    assert all(np.array_equal(one, same) for one, same in zip(found, expected, strict=True))


@pytest.mark.parametrize("measure", ["cosine", "dot", "euclidean", "manhattan"])
def test_many_equal_vectors(monkeypatch: pytest.MonkeyPatch, measure: str) -> None:
    """Of equal ones the first come first, also where blocks are full of them, and no more than k are compared anew."""
    monkeypatch.setattr(module, "FEW", 16)
    monkeypatch.setattr(module, "BLOCK", 300)
    compared = []
    dots = module.dots
    monkeypatch.setattr(module, "dots", lambda *given: compared.append(len(given[2])) or dots(*given))
    generator = np.random.default_rng(1)
    few = generator.normal(size=(3, 32)).astype(np.float32)
    few[2] = 0
    x = few[generator.integers(0, 3, 1000)]
    scores, places = search(few, x, 7, measure)
    for query, own, row in zip(few, scores, places, strict=True):
        every = module.similarity(query, x, measure)[0]
        order = np.argsort(-every.round(4), kind="stable")[:7]
        np.testing.assert_array_equal(row, order)
        np.testing.assert_allclose(own, every[order], atol=1e-5)
    assert sum(compared) <= 4 * 3 * 32


def test_products_equal_those_of_pairs() -> None:
    """To the bit, of vectors whose products cancel, of large and small ones, and of zeros."""
    generator = np.random.default_rng(2)
    a, b = (torch.from_numpy(generator.normal(size=(n, 24)) * 10.0 ** generator.integers(-18, 18, (n, 1))).float()
            for n in (40, 60))  # fmt: skip
    a[:5], b[:20, :12], b[20:30, 12:] = 0, 0, 0
    b[30:40] = torch.cat([b[30:40, :12], -b[30:40, :12]], dim=1)
    a[5:10, 12:] = a[5:10, :12]
    query, place = torch.ones(40, 60).nonzero(as_tuple=True)
    assert torch.equal(module.products(a, b).flatten(), module.dots(a, b, query, place))


@pytest.mark.parametrize("unit", [1e308, 1.0, 5e-324])
def test_judgements_in_any_unit(unit: float) -> None:
    """Sums of the largest are infinite, and of the smallest 0: a gain of 0 for a ranking that is right."""
    found = ranking_metrics([[0, 1, 2], [2, 1, 0]], [{0: unit, 1: unit, 2: unit}, {0: unit}])
    assert found["ndcg@10"] == pytest.approx((1 + 1 / 2) / 2)


@pytest.mark.filterwarnings("error")
def test_however_a_corpus_lies_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is mapped for reading is not copied, and a block in another format is made where the last one was."""
    monkeypatch.setattr(module, "BLOCK", 300)
    monkeypatch.setattr(module, "MADE", 170)
    drawn = np.random.default_rng(0)
    corpus = drawn.standard_normal((1000, 7)).astype(np.float16).astype(np.float32)
    queries = drawn.standard_normal((3, 7)).astype(np.float32)
    np.save(tmp_path / "corpus.npy", corpus)
    mapped = np.load(tmp_path / "corpus.npy", mmap_mode="r")
    expected = search(queries, corpus, 40)
    for kind in (
        mapped, mapped[:, ::-1][:, ::-1], np.asfortranarray(corpus), corpus.astype(">f4"), corpus.astype(np.float16),
        corpus.astype(np.float64), corpus.astype(np.longdouble), torch.from_numpy(corpus),
        torch.from_numpy(corpus).half(), torch.from_numpy(corpus).double().requires_grad_(),
    ):  # fmt: skip
        for one, other in zip(search(queries, kind, 40), expected, strict=True):
            assert np.array_equal(one, other)
    assert [x.shape for x in search(queries, mapped[:0], 4)] == [(3, 0), (3, 0)]
    assert np.array_equal(similarity(mapped[:4], queries), similarity(corpus[:4], queries))
    assert not mapped.flags.writeable
    assert np.array_equal(mapped, corpus)


def in_used_memory(vectors: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    """Blocks that are there until the next one comes, as an index makes them."""
    made = torch.empty(size, vectors.shape[1])
    for part in vectors.split(size):
        yield made[: len(part)].copy_(part)
        made.fill_(math.nan)


AROUND = {
    "nothing": nullcontext,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference": torch.inference_mode,
}
LYING = {
    "rows": lambda x: x,
    "columns": lambda x: x.T.contiguous().T,
    "every second": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
    "float64": lambda x: x.double(),
}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_cut_gives_the_same_bits(data: st.DataObject) -> None:
    """Few and many queries, which are multiplied in two ways; few and many vectors; whatever the blocks, in whose
    memory the next one is made; however the numbers lie, and whatever torch is told around it."""
    measure = data.draw(st.sampled_from(["cosine", "dot", "euclidean", "manhattan"]))
    dim, rows, asked = (data.draw(st.sampled_from(sizes)) for sizes in
                        ((1, 3, 64, 257), (0, 1, 127, 128, 129, 300), (0, 1, 2, 64, 65, 70)))  # fmt: skip
    different, k, block = data.draw(st.sampled_from([2, 400])), data.draw(st.integers(1, 20)), data.draw(
        st.sampled_from([1, 50, 128, 131, 256, 999]))  # fmt: skip
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    kinds = torch.randn(different, dim, generator=generator)
    vectors = kinds[torch.randint(different, (rows,), generator=generator)]
    queries = kinds[torch.randint(different, (asked,), generator=generator)] + torch.randn(dim, generator=generator)
    single = [nearest(query[None], [vectors], k, measure) for query in queries]
    none = torch.empty(0, min(k, rows))
    scores, places = (torch.cat([each[i] for each in single]) if single else none for i in (0, 1))
    if measure in ("cosine", "dot"):
        a, b = (module.unit(x) if measure == "cosine" else x for x in (queries, vectors))
        expected = module.products(a, b).sort(dim=1, descending=True, stable=True)
        assert torch.equal(scores, expected.values[:, :k])
        assert torch.equal(places, expected.indices[:, :k].to(places.dtype))
    lying = LYING[data.draw(st.sampled_from(sorted(LYING)))]
    with AROUND[data.draw(st.sampled_from(sorted(AROUND)))]():
        for found in (
            nearest(queries, in_used_memory(vectors, block), k, measure),
            nearest(lying(queries), iter([lying(vectors)]), k, measure),
            tuple(map(torch.from_numpy, search(lying(queries), lying(vectors), k, measure))),
        ):
            assert torch.equal(found[0], scores)
            assert torch.equal(found[1], places.to(torch.int64))


@pytest.mark.parametrize("few", [3, 70])
def test_similarities_can_be_trained_on(few: int) -> None:
    """Their gradients are those of the formula, whichever way the products are made."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 24, generator=generator, requires_grad=True) for n in (few, 300))
    weights = torch.randn(few, 300, generator=generator)
    found = torch.autograd.grad((similarity(a, b, "dot") * weights).sum(), (a, b))
    for one, other in zip(found, (weights @ b, weights.T @ a), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
