"""Pairs of few-shot tasks: who is drawn beside whom, how evenly, and how fast where one label has nearly all rows."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtl import SentenceEncoder
from mtl.errors import MtlError
from mtl.tasks.kinds.few_shot import partners
from mtl.tasks.spec import TaskSpec
from mtl.training.data import load_data
from mtl.training.recipe import Recipe

TASK = TaskSpec("near", ("x", "y", "z"), kind="few-shot", train="rows.jsonl", pairs=3)


def drawn(labels: list[tuple[int, ...]], count: int) -> tuple[list[list[int]], list[list[int]]]:
    likes, unlikes = partners(labels, count, torch.Generator().manual_seed(3))
    return likes.tolist(), unlikes.tolist()


@given(st.lists(st.frozensets(st.integers(0, 4), max_size=3).map(lambda x: tuple(sorted(x))), min_size=1, max_size=12))
def test_partners_are_all_those_and_only_those(labels: list[tuple[int, ...]]) -> None:
    likes, unlikes = drawn(labels, 60)
    for i, own in enumerate(labels):
        alike = {j for j, other in enumerate(labels) if j != i and {*own} & {*other}}
        others = {*range(len(labels))} - alike - {i}
        assert {*likes[i]} <= (alike or {-1})
        assert {*unlikes[i]} <= (others or {-1})


def test_partners_are_drawn_evenly() -> None:
    likes, unlikes = drawn([(0,), (0,), (0,), (1,), (0, 1), (2,), ()], 12000)
    assert Counter(likes[0]).keys() == {1, 2, 4}
    assert all(abs(n - 4000) < 250 for n in Counter(likes[0]).values())  # a deviation is 52
    assert Counter(unlikes[4]).keys() == {5, 6}
    assert all(abs(n - 6000) < 300 for n in Counter(unlikes[4]).values())
    assert {*likes[5], *likes[6]} == {-1}


def test_a_label_with_nearly_all_rows_costs_no_more() -> None:
    """A million draws; by trial, each of them took a hundred thousand tries."""
    labels = [(0,)] * 50_000 + [(1,)] * 2
    _, unlikes = partners(labels, 20, torch.Generator().manual_seed(0))
    assert unlikes[:50_000].unique().tolist() == [50_000, 50_001]


def scores(folder: Path, model: SentenceEncoder, *labels: object, split: str = "train") -> list[tuple[str, str, float]]:
    """The pairs that are drawn of rows "a", "b", ... with these labels."""
    lines = [json.dumps({"text": chr(97 + i), "label": label}) + "\n" for i, label in enumerate(labels)]
    (folder / "rows.jsonl").write_text("".join(lines))
    task = TaskSpec("near", ("x", "y", "z"), kind="few-shot", pairs=3, **{split: "rows.jsonl"})
    data, _ = load_data(Recipe("tiny", (task,), folder=folder), model, [split])
    found = data[split]["near"]
    texts = {tuple(model.tokenizer([chr(97 + i)], "truncate").rows[0]): chr(97 + i) for i in range(len(labels))}
    names = [texts[tuple(row)] for row in found.rows]
    return [(*pair, score) for *pair, (score,) in zip(names[::2], names[1::2], found.targets.tolist(), strict=True)]


@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_label_with_one_row_is_a_negative(tmp_path: Path, tiny: SentenceEncoder, split: str) -> None:
    found = scores(tmp_path, tiny, "x", "x", "y", split=split)
    assert [pair for pair in found if pair[0] == "c"]
    assert {pair[2] for pair in found if "c" in pair} == {0.0}
    assert {pair[:2] for pair in found if pair[2]} == {("a", "b"), ("b", "a")}
    assert len(found) == 3 * 5


def test_rows_of_several_labels(tmp_path: Path, tiny: SentenceEncoder) -> None:
    """Alike is what has a label in common, as in SetFit; names, "x|y" and flags are read as for a multi-label task."""
    found = scores(tmp_path, tiny, ["x", "y"], "y|z", [0, 0, 1], [], 0)
    alike = {frozenset(pair[:2]) for pair in found if pair[2]}
    assert alike == {frozenset("ab"), frozenset("bc"), frozenset("ae")}
    assert {frozenset(pair[:2]) for pair in found if not pair[2]}.isdisjoint(alike)
    assert not any(pair[2] for pair in found if "d" in pair)


def test_nothing_to_draw(tmp_path: Path, tiny: SentenceEncoder) -> None:
    for labels, what in (("xyz", "no two rows have"), ("xxx", "all rows have"), ("x", "no two rows have")):
        with pytest.raises(MtlError, match=f"task 'near': in its dev data {what} a label in common; expected rows of"):
            scores(tmp_path, tiny, *labels, split="dev")
