"""The record of each kind of task: scores, labels as they are read and said, metrics worked by hand."""

import pytest
import torch

from mtl.encode.kinds import KINDS, class_index


@pytest.mark.parametrize(
    ("kind", "expected", "words"),
    [
        ("single-label", [0.1192, 0.8808], ["b"]),
        ("multi-label", [0.5, 0.8808], [["a", "b"]]),
        ("regression", [0.0, 2.0], [0.0]),
    ],
)
def test_scores_and_words(kind: str, expected: list[float], words: list) -> None:
    scores = KINDS[kind].scores(torch.tensor([[0.0, 2.0]]))
    torch.testing.assert_close(scores, torch.tensor([expected]), atol=1e-4, rtol=0)
    assert KINDS[kind].words(scores, "ab") == words


def test_numbers_as_labels_are_names_where_names_are_numbers() -> None:
    assert class_index(1, ["1", "2"]) == 0
    assert class_index(0, ["one", "two"]) == 0
    for value, labels in [(0, ["1", "2"]), (True, ["one", "two"]), (2, ["one", "two"])]:
        with pytest.raises(ValueError, match=f"{value} is not declared; expected one of {', '.join(labels)}"):
            class_index(value, labels)


@pytest.mark.parametrize(
    ("kind", "logits", "targets", "expected"),
    [
        ("single-label", [[2, 0, 0], [0, 1, 0], [0, 3, 0], [0, 2, 0]], [0, 1, 1, 2], [0.75, (1 + 0.8 + 0) / 3]),
        ("multi-label", [[1, -1], [1, 1]], [[1.0, 0.0], [0.0, 1.0]], [(2 / 3 + 1) / 2, 4 / 5, 0.5]),
        ("regression", [[1.0], [2.0], [4.0]], [[1.0], [2.0], [6.0]], [1.0, 8 / (42 / 9 * 14) ** 0.5, (4 / 3) ** 0.5]),
        ("regression", [[1.0], [1.0]], [[1.0], [3.0]], [0.0, 0.0, 2**0.5]),
    ],
)
def test_metrics_by_hand(kind: str, logits: list, targets: list, expected: list[float]) -> None:
    found = KINDS[kind].measure(torch.tensor(logits, dtype=torch.float32), torch.tensor(targets), len(logits[0]))
    assert found.keys() == KINDS[kind].metrics.keys()
    assert [found[name] for name in KINDS[kind].metrics] == pytest.approx(expected, abs=1e-6)


def test_confusion_by_hand() -> None:
    confusion = KINDS["single-label"].confusion
    assert confusion is not None
    logits = torch.tensor([[2.0, 0, 0], [0, 1, 0], [3, 0, 0], [0, 2, 0]])
    assert confusion(logits, torch.tensor([0, 1, 1, 2]), 3) == [[1, 0, 0], [1, 1, 0], [0, 1, 0]]
