"""Classes that are weighed, smoothed, calibrated, cut at thresholds, and measured one by one."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from conftest import saved_tasks
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

import mtl
from mtl import MultiTaskModel, Recipe, TaskSpec, Training
from mtl.cli import cli
from mtl.errors import RecipeError
from mtl.model.losses import NO_LABEL
from mtl.tasks.examples import Examples
from mtl.tasks.kinds.multi_label import best_threshold
from mtl.tasks.tally import calibration_error, draws, intervals

LABELS = ("x", "y", "z")
ONE = TaskSpec("one", LABELS)
SETS = TaskSpec("sets", LABELS, kind="multi-label")
TAGS = TaskSpec("tags", ("x", "y"), kind="tokens")


def of(logits: Tensor, targets: Tensor) -> tuple[Tensor, Examples]:
    return logits, Examples([[2, 3]] * len(targets), targets)


def drawn(task: TaskSpec, rows: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits as a piece has them, and targets; the first class is rare."""
    generator = torch.Generator().manual_seed(seed)
    if task.kind == "tokens":
        targets = torch.randint(0, 5, (rows, 4), generator=generator)
        targets[::3, 2:] = NO_LABEL
        return torch.randn(rows, 4, 5, generator=generator) * 2, targets.to(torch.int16)
    logits = torch.randn(rows, 3, generator=generator) * 2
    if task.kind == "multi-label":
        flags = (torch.rand(rows, 3, generator=generator) < torch.tensor([0.1, 0.4, 0.6])).float()
        return logits + 2 * flags, flags
    targets = (3 * torch.rand(rows, generator=generator) ** 0.5).long()
    return logits + 2 * F.one_hot(targets, 3), targets


# Losses


def plain(task: TaskSpec, logits: Tensor, targets: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    """The mean loss of a whole window, by torch alone."""
    if task.kind == "tokens":
        flat = logits.flatten(0, 1), targets.flatten().long()
        return F.cross_entropy(*flat, weights, label_smoothing=smoothing, ignore_index=NO_LABEL)
    if task.kind == "single-label":
        return F.cross_entropy(logits, targets, weights, label_smoothing=smoothing)
    each = targets * weights + 1 - targets
    smoothed = targets * (1 - smoothing) + smoothing / 2
    return F.binary_cross_entropy_with_logits(logits, smoothed, each, reduction="sum") / each.sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("task", [ONE, SETS, TAGS], ids=lambda task: task.kind)
@pytest.mark.parametrize("sizes", [[60], [1, 29, 7, 23], [1] * 60])
def test_a_window_s_loss_is_its_weighted_mean_in_any_parts(task: TaskSpec, smoothing: float, sizes: list[int]) -> None:
    table = {"x": 7.5, "y": 0.25}
    task = dataclasses.replace(task, class_weights=table, label_smoothing=smoothing)
    each = [1, 7.5, 7.5, 0.25, 0.25] if task.kind == "tokens" else [7.5, 0.25, 1]
    logits, targets = drawn(task)
    logits.requires_grad_()
    expected = plain(task, logits, targets, torch.tensor(each), smoothing)
    (wanted,) = torch.autograd.grad(expected, logits)
    count = sum(task.handler.count(part) for part in targets.split(sizes))
    parts = [task.criterion(*pair) for pair in zip(logits.split(sizes), targets.split(sizes), strict=True)]
    assert sum(own for _, own in parts) == pytest.approx(count, rel=1e-12)
    found = sum(loss / count for loss, _ in parts)
    (gradient,) = torch.autograd.grad(found, logits)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gradient, wanted, atol=1e-7, rtol=1e-5)


def test_balanced_weights() -> None:
    _, targets = drawn(ONE)
    task = dataclasses.replace(ONE, class_weights="balanced").handler.fitted(of(targets, targets)[1])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=targets.numpy())
    assert [*task.class_weights.values()] == pytest.approx(expected)
    _, targets = drawn(SETS)
    task = dataclasses.replace(SETS, class_weights="balanced").handler.fitted(of(targets, targets)[1])
    weights = task.handler.weights
    assert (weights * targets.sum(0)).tolist() == pytest.approx((len(targets) - targets.sum(0)).tolist())
    _, marks = drawn(TAGS)
    task = dataclasses.replace(TAGS, class_weights="balanced").handler.fitted(of(marks, marks)[1])
    known = marks[marks != NO_LABEL].numpy()
    expected = compute_class_weight("balanced", classes=np.arange(5), y=known)
    assert task.handler.weights.tolist() == pytest.approx(expected)
    assert [*task.class_weights] == ["O", "B-x", "I-x", "B-y", "I-y"]


def test_a_class_without_rows_weighs_as_it_is() -> None:
    targets = torch.tensor([1, 1, 1, 2])
    task = dataclasses.replace(ONE, class_weights="balanced").handler.fitted(of(targets, targets)[1])
    assert task.class_weights == {"y": 4 / (2 * 3), "z": 4 / 2}
    flags = torch.tensor([[1.0, 0, 1], [1, 0, 0]])
    task = dataclasses.replace(SETS, class_weights="balanced").handler.fitted(of(flags, flags)[1])
    assert task.class_weights == {"z": 1.0}
    flags = torch.zeros(2, 3)
    task = dataclasses.replace(SETS, class_weights="balanced").handler.fitted(of(flags, flags)[1])
    assert task.class_weights is None


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "single-label",
            {"class_weights": "even"},
            "class_weights are 'even'; expected \"balanced\", or a table of nu",
        ),
        ("single-label", {"class_weights": [1.0, 2.0]}, r"class_weights are \[1.0, 2.0\]; expected \"balanced\""),
        ("single-label", {"class_weights": {}}, "class_weights are {}; expected"),
        ("single-label", {"class_weights": {"x": 0}}, "class_weights has 0 for 'x'; expected .* above 0 by label"),
        ("multi-label", {"class_weights": {"x": -1}}, "class_weights has -1 for 'x'"),
        ("tokens", {"class_weights": {"x": float("nan")}}, "class_weights has nan for 'x'"),
        ("single-label", {"class_weights": {"x": True}}, "class_weights has True for 'x'"),
        ("single-label", {"class_weights": {"x": "2"}}, "class_weights has '2' for 'x'"),
        ("single-label", {"class_weights": {"q": 2}}, "class_weights has 'q'; expected labels of x, y, z"),
        ("tokens", {"class_weights": {"B-q": 2}}, "class_weights has 'B-q'; expected labels of x, y, z, O, B-x"),
        ("single-label", {"label_smoothing": 1}, "label_smoothing is 1.0; expected a number from 0 up to, not incl"),
        ("single-label", {"label_smoothing": -0.1}, "label_smoothing is -0.1; expected"),
        ("multi-label", {"label_smoothing": float("nan")}, "label_smoothing is nan; expected"),
        ("tokens", {"temperature": 0}, "temperature is 0.0; expected more than 0"),
        ("single-label", {"calibrate": "yes"}, "calibrate is 'yes'; expected true or false"),
        ("multi-label", {"thresholds": [0.5, 0.5]}, r"thresholds are \[0.5, 0.5\]; expected one, or one for each of t"),
        ("multi-label", {"thresholds": 1.5}, r"thresholds are \[1.5\]; expected numbers from 0 to 1"),
        ("single-label", {"thresholds": 0.4}, r"thresholds is \(0.4,\); a single-label task has no thresholds"),
        ("regression", {"calibrate": True}, "calibrate is True; a regression task has no calibrate"),
        ("contrastive", {"class_weights": "balanced"}, "a contrastive task has no class_weights"),
    ],
)
def test_options_that_are_refused(kind: str, options: dict, message: str) -> None:
    labels = () if kind in ("regression", "contrastive") else LABELS
    with pytest.raises(RecipeError, match=message):
        TaskSpec("t", labels, kind=kind, **options)


# Probabilities


@pytest.mark.parametrize("task", [ONE, SETS], ids=lambda task: task.kind)
def test_the_temperature_is_the_likeliest(task: TaskSpec) -> None:
    """The loss at it is lower than on either side; logits that are five times as sure have five times as much."""
    task = dataclasses.replace(task, calibrate=True)
    logits, targets = drawn(task, 400)
    found, notes = task.handler.fitted_on_dev(*of(logits, targets))
    assert notes == [f"{task.name}: temperature {found.temperature:.3f}, fitted on dev"]

    def loss(temperature: float) -> float:
        scaled = dataclasses.replace(task, temperature=temperature).handler.in_units(logits.double())
        return float(task.criterion(scaled, targets.double() if task is not ONE and targets.ndim > 1 else targets)[0])

    assert loss(found.temperature) < min(loss(found.temperature * 1.01), loss(found.temperature / 1.01))
    sharper, _ = task.handler.fitted_on_dev(*of(logits * 5, targets))
    assert sharper.temperature == pytest.approx(5 * found.temperature, rel=1e-5)
    assert found.handler.fitted_on_dev(*of(logits, targets)) == (found, [])  # what is declared stays


def test_no_temperature_where_all_of_dev_is_right() -> None:
    task = dataclasses.replace(ONE, calibrate=True)
    found, notes = task.handler.fitted_on_dev(*of(torch.eye(3) * 4, torch.arange(3)))
    assert found is task
    expected = "no temperature from 0.05 to 20 is the likeliest on dev; the probabilities stay as they are"
    assert notes == [f"one: {expected}"]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=12))
def test_no_threshold_has_a_higher_f1(rows: list[tuple[int, bool]]) -> None:
    scores, given_ = torch.tensor([s / 8 for s, _ in rows]), torch.tensor([float(g) for _, g in rows])

    def f1(threshold: float) -> float:
        found = scores >= threshold
        return float(2 * (found & (given_ > 0)).sum() / max(1, found.sum() + given_.sum()))

    best = best_threshold(scores, given_)
    others = [0.5, *(s + shift for s in scores.tolist() for shift in (-1 / 32, 0, 1 / 32))]
    assert f1(best) >= max(map(f1, others)) - 1e-9
    if not given_.any():
        assert best == 0.5


def test_a_threshold_of_many_scores() -> None:
    """In memory that grows with the scores, of which all are different here."""
    scores = torch.arange(200_000) / 200_000
    assert best_threshold(scores, (scores > 0.7).float()) == pytest.approx(0.7, abs=1e-5)


def test_thresholds_decide_over_labels() -> None:
    task = dataclasses.replace(SETS, thresholds=[0.2, 0.5, 0.9])
    scores = torch.tensor([[0.2, 0.49, 0.9], [0.19, 0.5, 0.89]])
    assert task.handler.words(scores) == [["x", "z"], ["y"]]
    assert dataclasses.replace(SETS, thresholds=0.4).handler.words(scores) == [["y", "z"], ["y", "z"]]


# Measuring


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([ONE, SETS]))
def test_metrics_are_scikit_learn_s(seed: int, task: TaskSpec) -> None:
    logits, targets = drawn(task, 1 + seed % 40, seed)
    if task is SETS:
        truth, said = targets.numpy() > 0.5, logits.numpy() >= 0
        options = {}
    else:
        truth, said = targets.numpy(), logits.argmax(dim=1).numpy()
        options = {"labels": [0, 1, 2]}
    found = task.handler.detailed(*of(logits, targets))
    rows = metrics.precision_recall_fscore_support(truth, said, zero_division=0, **options)
    for name, row in zip(("precision", "recall", "f1", "support"), rows, strict=True):
        assert [found[f"{label}.{name}"] for label in LABELS] == pytest.approx(row)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, said))
    assert found["macro_f1"] == pytest.approx(
        metrics.f1_score(truth, said, average="macro", zero_division=0, **options)
    )
    if task is SETS:
        assert found["micro_f1"] == pytest.approx(metrics.f1_score(truth, said, average="micro", zero_division=0))


def test_the_calibration_error_by_hand() -> None:
    confidence, right = np.array([0.9, 0.91, 0.5, 1.0]), np.array([True, False, True, True])
    assert calibration_error(confidence, right) == pytest.approx((abs(1.81 - 1) + 0.5 + 0) / 4)
    assert calibration_error(np.zeros(0), np.zeros(0, bool)) == 0


def test_intervals_of_one_share_and_of_a_difference() -> None:
    """Of the accuracy of 400 rows, the interval is that of a binomial share, 1.96 deviations to either side."""
    targets = torch.zeros(400, dtype=torch.long)
    logits = torch.zeros(400, 3)
    logits[:300, 0] = logits[300:, 1] = 1.0
    sampled = ONE.handler.sampled(*of(logits, targets))
    value, low, high = intervals([sampled], 400)["accuracy"]
    assert value == 0.75
    assert (low, high) == pytest.approx((0.75 - 1.96 * 0.02165, 0.75 + 1.96 * 0.02165), abs=0.005)
    assert intervals([sampled], 400) == intervals([sampled], 400) != intervals([sampled], 400, seed=1)
    assert set(intervals([sampled, sampled], 400)["accuracy"]) == {0.0}


def test_a_sample_counts_its_rows_as_often_as_they_are_drawn() -> None:
    for task in (ONE, SETS):
        logits, targets = drawn(task, 30)
        sampled = task.handler.sampled(*of(logits, targets))
        for weights in draws(30, 3, 0):
            rows = np.repeat(np.arange(30), weights)
            assert sampled(weights) == pytest.approx(task.handler.measure(logits[rows], targets[rows]))


# From end to end


ROWS = [("a b", "x"), ("c d e", "y"), ("f", "y"), ("a g h", "x"), ("i", "y"), ("e j", "y"), ("a c", "y"), ("b", "z")]


@pytest.fixture
def recipe(folder: Path, tmp_path: Path) -> Recipe:
    path, marked = tmp_path / "rows.jsonl", tmp_path / "marked.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS))
    tagged = ({"tokens": [*t.split()], "tags": ["B-x" if w in "ae" else "O" for w in t.split()]} for t, _ in ROWS)
    marked.write_text("".join(json.dumps(row) + "\n" for row in tagged))
    options = {"class_weights": "balanced", "label_smoothing": 0.1, "calibrate": True, "train": path, "dev": path}
    tasks = [
        dataclasses.replace(ONE, **options),
        dataclasses.replace(SETS, **options, fit_thresholds=True),
        dataclasses.replace(TAGS, **options | {"train": marked, "dev": marked}, labels=()),
    ]
    return Recipe(folder, tasks, Training(epochs=2, batch_size=3, accumulate=2, learning_rate=1e-3))


def test_what_is_fitted_is_saved_and_predicts(recipe: Recipe, tmp_path: Path) -> None:
    model = mtl.train(recipe, tmp_path / "run")
    saved = MultiTaskModel.from_pretrained(tmp_path / "run")
    assert saved_tasks(saved) == saved_tasks(model)
    assert all(task.temperature not in (None, 1.0) for task in saved.tasks.values())
    assert len(saved.tasks["sets"].thresholds) == 3
    assert saved.tasks["tags"].class_weights.keys() == {"O", "B-x"}
    texts = [text for text, _ in ROWS]
    found = saved.predict(texts)
    again = model.predict(texts)
    for name in saved.tasks:
        assert all(np.array_equal(x, y) for x, y in zip(found.logits[name], again.logits[name], strict=True))
    for scores, labels in zip(found.scores["sets"], found.labels["sets"], strict=True):
        cut = saved.tasks["sets"].thresholds
        assert labels == [label for label, s, t in zip(LABELS, scores, np.float32(cut), strict=True) if s >= t]
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert mtl.evaluate(saved, recipe, "dev")["sets"].keys() == last["dev"]["sets"].keys()


def test_what_needs_dev_data_says_so(recipe: Recipe, tmp_path: Path) -> None:
    for task, option in zip(recipe.tasks, ("calibrate", "calibrate", "calibrate"), strict=True):
        alone = dataclasses.replace(recipe, tasks=[dataclasses.replace(task, dev=None)])
        with pytest.raises(RecipeError, match=f"task '{task.name}': {option} needs dev data; expected dev = a file"):
            mtl.train(alone, tmp_path / "run")
    cut = dataclasses.replace(recipe.tasks[1], dev=None, calibrate=False)
    with pytest.raises(RecipeError, match="task 'sets': fit_thresholds needs dev data"):
        mtl.train(dataclasses.replace(recipe, tasks=[cut]), tmp_path / "run")


def test_evaluate_says_all_of_it(recipe: Recipe, tmp_path: Path) -> None:
    mtl.train(recipe, tmp_path / "run")
    data = recipe.tasks[0].train
    toml = f"""model = "tiny"
[[task]]
name = "one"
labels = ["x", "y", "z"]
test = "{data}"
"""
    (tmp_path / "my.toml").write_text(toml)
    command = ["evaluate", "-m", str(tmp_path / "run"), "-r", str(tmp_path / "my.toml"), "--bootstrap", "50"]
    done = CliRunner().invoke(cli, [*command, "--against", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    for part in (
        "one    accuracy", "  ece", "one  precision", "support", "95 % intervals: percentiles of 50 bootstrap samples",
        "seed 0", "task  metric    difference", "on the same samples",
    ):  # fmt: skip
        assert part in done.output or part.replace("one    ", "task  ") in done.output, part
    done = CliRunner().invoke(cli, [*command[:-1], "0", "--against", "run"])
    assert done.exit_code == 2
    assert "--against goes with --recipe, and --bootstrap above 0" in done.output


@pytest.mark.reference
def test_a_published_head_has_the_temperature_in_its_weights(checkpoint, tmp_path: Path) -> None:
    from transformers import pipeline

    task = TaskSpec("one", LABELS, pooling=("cls",), head="distilbert", temperature=2.5)
    model = MultiTaskModel(mtl.SentenceEncoder.from_checkpoint(checkpoint), [task]).eval()
    model.save(tmp_path / "model")
    (theirs,) = pipeline("text-classification", str(tmp_path / "model"), top_k=None)(["a b c"])
    ours = model.predict(["a b c"]).scores["one"][0]
    for one in theirs:
        assert one["score"] == pytest.approx(ours[LABELS.index(one["label"])], abs=1e-6)
