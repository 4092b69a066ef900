"""Each kind of task: scores, labels as they are read and said, metrics worked by hand."""

from pathlib import Path

import pytest
import torch

from mtl import SentenceEncoder
from mtl.errors import RecipeError, WeightsError
from mtl.tasks.labels import class_index, is_place, label_set
from mtl.tasks.spec import TaskSpec


def task(kind: str, labels: int) -> TaskSpec:
    labelled = kind in ("single-label", "multi-label")
    return TaskSpec(
        "t", (*"abc"[:labels],) if labelled else (), kind, text_field=("a", "b") if kind == "similarity" else ("a",)
    )


@pytest.mark.parametrize(
    ("kind", "expected", "words"),
    [
        ("single-label", [0.1192, 0.8808], ["b"]),
        ("multi-label", [0.5, 0.8808], [["a", "b"]]),
        ("regression", [0.0, 2.0], [0.0]),
    ],
)
def test_scores_and_words(kind: str, expected: list[float], words: list) -> None:
    handler = task(kind, 2).handler
    scores = handler.scores(torch.tensor([[0.0, 2.0]]))
    torch.testing.assert_close(scores, torch.tensor([expected]), atol=1e-4, rtol=0)
    assert handler.words(scores) == words


@pytest.mark.parametrize("kind", ["single-label", "multi-label"])
def test_a_text_s_scores_know_no_neighbours(kind: str) -> None:
    """To the bit: among others, alone, and in a part that ends elsewhere."""
    handler = TaskSpec("t", ["a", "b", "c"], kind).handler
    logits = torch.randn(37, 3, generator=torch.Generator().manual_seed(0)) * 4
    before = logits.clone()
    whole = handler.scores(logits)
    assert torch.equal(logits, before)
    for size in (1, 2, 5, 36):
        parts = [handler.scores(part) for part in logits.split(size)]
        assert torch.equal(torch.cat(parts), whole)


def test_numbers_as_labels() -> None:
    assert class_index(1, ["0", "1"]) == 1  # by name as by place
    assert class_index("1", ["1", "2"]) == 0
    assert class_index(5, ["4", "5"]) == 1
    assert class_index(0, ["one", "two"]) == 0
    assert class_index("1", ["one", "two"]) == 1
    assert is_place(1, ["one", "two"])
    assert not is_place(1, ["0", "1"])
    assert not is_place(1, [])  # as long as labels are those of the data
    for value, labels in [(0, ["1", "2"]), (True, ["one", "two"]), (2, ["one", "two"]), (-1, ["one", "two"])]:
        with pytest.raises(ValueError, match=f"{value} is not declared; expected one of {', '.join(labels)}"):
            class_index(value, labels)


def test_a_number_that_could_be_two_labels() -> None:
    message = "is 1, which could be the label named '1' or the one at place 1 from 0, '2'; expected its name, \"1\""
    with pytest.raises(ValueError, match=message):
        class_index(1, ["1", "2"])


@pytest.mark.parametrize(
    ("value", "labels", "expected"),
    [
        ([1, 0], "xy", [1.0, 0.0]),
        ([0, 1], "xy", [0.0, 1.0]),
        ([0, 0], "xy", [0.0, 0.0]),
        ([True, 0.0, 1], "xyz", [1.0, 0.0, 1.0]),
        (["y", "x"], "xyz", [1.0, 1.0, 0.0]),
        ([], "xy", [0.0, 0.0]),
        ("y|x", "xyz", [1.0, 1.0, 0.0]),
        ("", "xy", [0.0, 0.0]),
        (7, "67", [0.0, 1.0]),
        ([6], "67", [1.0, 0.0]),
        (7.0, "67", [0.0, 1.0]),  # as a column of numbers with blanks has 7
        ("6.0|7", "67", [1.0, 1.0]),
        ([0, 0], ["0"], [1.0]),
        ([1.0, 0.0], "01", [1.0, 0.0]),  # as transformers wants them
        ([1.0, 1.0, 1.0], "123", [1.0, 1.0, 1.0]),
        ("a|b", ["a|b", "c"], [1.0, 0.0]),
    ],
)
def test_sets_of_labels(value: object, labels: list[str], expected: list[float]) -> None:
    assert label_set(value, labels) == expected


@pytest.mark.parametrize(
    ("value", "labels", "message"),
    [
        (
            [0, 2],
            "xyz",
            r"0 is not declared; expected names in a list or as \"a|b\", or a list with a 0 or 1 for each of x",
        ),
        ([1, 0, 0], "xy", r"is \[1, 0, 0\]; expected a 0 or 1 for each of the 2 labels, or names in a list"),
        ([1, 0.5], "xy", "1 is not declared"),
        (0, "xy", "0 is not declared"),
        (None, "xy", "None is not declared"),
        (None, ["None", "x"], "None is not declared"),
        (["x", None], ["None", "x"], "None is not declared"),
        ("x|q", "xy", "'q' is not declared"),
        ("1|0", "xy", "'1' is not declared"),
        ("01|02", "12", "'01' is not declared"),
        ([0, 1], "01", r"is \[0, 1\], which could be \['0', '1'\] by name or \['1'\] as a 0 or 1 for each label"),
        ("a|b", ["a", "b", "a|b"], r"could be \['a|b'\] as one name or \['a', 'b'\] as names between |"),
    ],
)
def test_sets_that_are_refused(value: object, labels: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label_set(value, labels)


@pytest.mark.parametrize(
    ("kind", "logits", "targets", "expected"),
    [
        ("single-label", [[2, 0, 0], [0, 1, 0], [0, 3, 0], [0, 2, 0]], [0, 1, 1, 2], [0.75, (1 + 0.8 + 0) / 3]),
        ("multi-label", [[1, -1], [1, 1]], [[1.0, 0.0], [0.0, 1.0]], [(2 / 3 + 1) / 2, 4 / 5, 0.5]),
        ("regression", [[1.0], [2.0], [4.0]], [[1.0], [2.0], [6.0]], [1.0, 8 / (42 / 9 * 14) ** 0.5, (4 / 3) ** 0.5]),
        ("regression", [[1.0], [1.0]], [[1.0], [3.0]], [0.0, 0.0, 2**0.5]),
        (
            "similarity",  # cosines 0.6, 0, 1 against scores 2, 1, 3
            [[[1, 0], [3, 4]], [[0, 2], [5, 0]], [[1, 1], [2, 2]]],
            [[2.0], [1.0], [3.0]],
            [1.0, 1 / (2 * (0.6**2 + 1 - 1.6**2 / 3)) ** 0.5],
        ),
    ],
)
def test_metrics_by_hand(kind: str, logits: list, targets: list, expected: list[float]) -> None:
    handler = task(kind, len(logits[0])).handler
    found = handler.measure(torch.tensor(logits, dtype=torch.float32), torch.tensor(targets))
    assert [*found] == [*handler.metrics]
    assert [*found.values()] == pytest.approx(expected, abs=1e-6)


def test_confusion_by_hand() -> None:
    logits = torch.tensor([[2.0, 0, 0], [0, 1, 0], [3, 0, 0], [0, 2, 0]])
    assert task("single-label", 3).handler.confusion(logits, torch.tensor([0, 1, 1, 2])) == [
        [1, 0, 0],
        [1, 1, 0],
        [0, 1, 0],
    ]


def test_strings_that_no_file_can_hold(tiny: SentenceEncoder, tmp_path: Path) -> None:
    """Refused where they are given, or in one line where they are written, and nothing is there then."""
    for name, value in (("labels", ("\ud800", "x")), ("train", Path("\udcff.jsonl")), ("label_field", "\ud800")):
        with pytest.raises(RecipeError, match=f"{name} holds half of a surrogate pair: .*; expected Unicode"):
            TaskSpec("a", **{"labels": ("x", "y"), name: value})
    tiny.prompts["query"] = "\ud800"
    with pytest.raises(WeightsError, match="out cannot be written: 'utf-8' codec can't encode"):
        tiny.save(tmp_path / "out")
    assert not [*tmp_path.glob("*out*")]


@pytest.mark.parametrize("name", ["keys", "pop", "training", "forward", "mean", "a.b", "", "_x", "state_dict"])
def test_names_that_a_module_cannot_have(name: str) -> None:
    with pytest.raises(RecipeError, match=f"name is '{name}'; expected letters, digits, - and _, and no word of Py"):
        TaskSpec(name, ("x", "y"))
