"""Similarities by hand, and a search in blocks that finds what a search in one piece does."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from mtl import SentenceEncoder
from mtl import search as blocks
from mtl.checkpoints.load import Checkpoint
from mtl.checkpoints.save import save
from mtl.errors import ConfigError, InputError
from mtl.search import search, similarity

A = np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32)
B = np.array([[4.0, 3.0], [-3.0, -4.0], [3.0, 0.0]], dtype=np.float32)


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
    monkeypatch.setattr(blocks, "QUERIES", 3)
    monkeypatch.setattr(blocks, "ROWS", 7)
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
