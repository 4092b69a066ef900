"""The outcome of training follows from recipe, data and seed: neither threads, limits nor the company change a bit."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WORDS
from test_cli import Done, mtl
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from training.ranks import ALL_HELD, SOME_HELD, holding, small_shares
from training.test_loop import VALUE, A, B, go, start
from training.test_pairs import NEGATIVES, dataset
from training.test_session import recipe

from mtl import MultiTaskModel, SentenceEncoder
from mtl.checkpoints.fetch import sha256_of
from mtl.checkpoints.load import Checkpoint
from mtl.kernels.threads import computing_with
from mtl.model.config import DebertaConfig, EncoderConfig
from mtl.model.deberta import Deberta
from mtl.model.dropout import Draws, drawing_from, dropout
from mtl.model.encoder import DistilBert
from mtl.model.mpnet import MPNet
from mtl.tasks.examples import Examples
from mtl.training import gradients
from mtl.training.gradients import Tree, divide, plus, share_count
from mtl.training.recipe import Recipe, Training
from mtl.training.run import Run, prepare
from mtl.training.schedule import MicroBatch
from mtl.training.session import train

__all__ = ["mtl", "recipe", "start"]  # fixtures


@pytest.fixture
def small() -> Iterator[None]:
    with small_shares():
        yield


@contextmanager
def holding_set(ask: Callable[[], Any], tell: Callable[[Any], object], value: Any) -> Iterator[None]:
    """Within it, a setting of torch's is another."""
    before = ask()
    tell(value)
    try:
        yield
    finally:
        tell(before)


default_dtype = partial(holding_set, torch.get_default_dtype, torch.set_default_dtype)
# What programs for a GPU often say; it is for a CPU too
medium = partial(holding_set, torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium")
deterministic = partial(
    holding_set, torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
)


def moments(run: Run) -> dict[str, Tensor]:
    return {name: run.state(p)["exp_avg"] for name, p in run.parameters() if run.state(p)}


@pytest.mark.parametrize("freezes", [("none",) * 8, SOME_HELD, ALL_HELD], ids=["free", "some held", "all held"])
def test_threads_and_limits_change_no_bit(start, small, freezes: tuple) -> None:
    """A window of all kinds, with dropout: losses, metrics, weights and moments; then resumed with other ones."""
    tasks = holding(freezes)
    options = {"data": dataset(*tasks), "dropout": 0.2, "batch_size": 4, "accumulate": 6, "epochs": 2}
    options |= {"loss_weights": "uncertainty", "clip": 0.5}
    runs = []
    for number, (threads, limits) in enumerate(
        [(1, {}), (2, {"micro_tokens": 50}), (3, {"cache_mb": 0}), (4, {"save_steps": 2, "patience": 5})]
    ):
        run = start(tasks, f"{number}", **options, **limits)
        runs.append((go(run, threads=threads), run))
    go(start(tasks, "resumed", save_steps=1, **options), 5, threads=3)
    run = start(tasks, "resumed", micro_tokens=90, cache_mb=0, patience=9, **options)
    run.restore()
    runs.append((go(run, threads=2), run))
    window = run.schedule.window(0)
    assert share_count(window, run.data["train"]) == 8
    records, first = runs[0]
    for other, run in runs[1:]:
        assert other == records
        for name, x in {**first.tensors(), **moments(first)}.items():
            assert torch.equal(x, {**run.tensors(), **moments(run)}[name]), name
        assert run.best == first.best


def test_a_scale_is_the_same_on_any_number_of_threads(start) -> None:
    """Of so many numbers that torch divides their sum among threads, which are added in another order."""
    numbers = torch.randn(100_001, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    data = {"train": {VALUE.name: Examples([[2, 3]] * len(numbers), numbers)}, "dev": {}, "test": {}}
    scales = []
    for threads in (1, 2, 3):
        with computing_with(threads):
            scales.append(start((VALUE,), data=data).model.tasks[VALUE.name].target_scale)
    assert len({*scales}) == 1


@pytest.mark.parametrize("family", [MPNet, Deberta])
def test_limits_change_no_bit_without_dropout(family: type[DistilBert], tokenizer, tmp_path: Path) -> None:
    """Attention with a bias that needs a gradient has another kernel in torch than one that needs none."""
    shape = {"n_layers": 2, "n_heads": 2, "dim": 32, "hidden_dim": 48, "dropout": 0.0, "attention_dropout": 0.0}
    config = DebertaConfig(len(WORDS), 40, **shape, position_buckets=0, max_relative_positions=40)
    config = EncoderConfig(len(WORDS), 40, **shape) if family is MPNet else config
    runs = []
    for micro_tokens in (0, 1):
        torch.manual_seed(0)
        embedder = SentenceEncoder.from_checkpoint(Checkpoint(family(config), tokenizer, 40))
        training = Training(epochs=1, batch_size=13, learning_rate=1e-2, micro_tokens=micro_tokens)
        made = Recipe("", (NEGATIVES,), training), MultiTaskModel(embedder, [NEGATIVES]), dataset(NEGATIVES)
        runs.append(Run(prepare(*made), tmp_path / str(micro_tokens)))
        go(runs[-1])
    one, other = (run.tensors() for run in runs)
    assert all(torch.equal(x, other[name]) for name, x in one.items())


def test_a_row_drops_the_same_in_any_company(start, small) -> None:
    """Gradients of a window, with dropout, are the same in any pieces, but for rounding."""
    tasks = (A, B)
    run = start(tasks, dropout=0.4, data=dataset(*tasks))
    window, data = (
        [MicroBatch("topic", (0, 1, 2, 5, 9)), MicroBatch("mood", (4, 3)), MicroBatch("topic", (6,))],
        run.data,
    )
    with run.training():
        objective = run.objective(window, 1)
        whole, *others = (
            gradients.backward(divide(window, data["train"], count, tokens, (7,)), objective).gradients
            for count, tokens in ((1, 10**6), (1, 12), (4, 30), (8, 1))
        )
        other_seed = gradients.backward(divide(window, data["train"], 1, 10**6, (8,)), objective).gradients
    for other in others:
        for one, two in zip(whole, other, strict=True):
            torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-4)
    assert not any(
        torch.allclose(a, b, atol=1e-4) for a, b in zip(whole, other_seed, strict=True) if a.abs().max() > 1e-3
    )


def test_dropout_by_key() -> None:
    """The same text drops the same, whatever stands beside it; rates, means and independence are as they should be."""
    lengths, keys = (7, 30, 30, 2), (11, -5, 2**63 - 1, 12)

    def drop(which: list[int], p: float = 0.1) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
        sizes = [lengths[i] for i in which]
        with drawing_from(Draws([keys[i] for i in which], sizes)):
            tokens = [dropout(torch.ones(sum(sizes), 33), p).split(sizes) for _ in range(2)]
            layers = [[dropout(torch.ones(1, 3, n, n), p) for n in sizes] for _ in range(2)]
            texts = dropout(torch.ones(len(sizes), 1001), p)
        return *tokens, layers[0], layers[1], texts

    every = drop([0, 1, 2, 3])
    for which in ([2], [3, 1], [1, 2, 0, 3]):
        for one, other in zip(drop(which), every, strict=True):
            assert all(torch.equal(x, other[i]) for x, i in zip(one, which, strict=True))
    pairs = [(every[0][1], every[0][2]), (every[0][1], every[1][1]), (every[2][1], every[3][1]), every[4][:2]]
    for one, other in pairs:  # texts, calls and layers: two drop the same value in p * p of all
        both = ((one == 0) & (other == 0)).double().mean()
        assert abs(both - 0.01) < 0.008
    with drawing_from(Draws(range(40), [50] * 40)):
        for p in (0.1, 0.5, 0.9):
            x = dropout(torch.ones(2000, 384), p)
            kept = x[x > 0]
            assert abs(len(kept) / x.numel() - (1 - p)) < 0.002
            assert torch.all(kept == kept[0])
            assert abs(kept[0] * (1 - p) - 1) < 1e-3
            assert (x == 0).double().mean(dim=0).sub(p).abs().max() < 0.06  # no column is special
        assert not dropout(torch.ones(2000, 5), 1.0).any()
        assert torch.equal(dropout(torch.ones(2000, 5), 0.0), torch.ones(2000, 5))


@pytest.mark.parametrize(
    ("rows", "megabytes", "expected"),
    [
        (1, 0, 1),
        (8, 0, 1),
        (16, 0, 2),
        (32, 0, 4),
        (200, 0, 8),
        (32, 340, 4),
        (16, 340, 2),
        (200, 340, 8),
        (32, 999, 1),
    ],
)
def test_shares_follow_the_window_and_the_gradients(rows: int, megabytes: int, expected: int) -> None:
    """Of rows of 20 tokens: no thread of two, and none of four, is idle where a model of usual size has the tokens."""
    data = {"a": Examples([[1] * 20] * rows, torch.zeros(rows))}
    window = [MicroBatch("a", tuple(range(rows)))]
    assert share_count(window, data, megabytes * 10**6) == expected
    assert share_count(window, data, megabytes * 10**6, "cuda") == 1


def test_the_tree_is_the_same_in_any_order() -> None:
    """Of numbers whose sum depends on the order; the threads finish one after another, last first."""
    values = torch.randn(8, 50, generator=torch.Generator().manual_seed(0)) * 10 ** torch.arange(8.0)[:, None]
    pairs = values[::2] + values[1::2]
    expected = (pairs[0] + pairs[1]) + (pairs[2] + pairs[3])

    def sums(numbers: Iterable[int], count: int = 8) -> list[Tensor]:
        tree = Tree[Tensor | None](range(count), plus)
        for i in numbers:
            tree.add(i, values[i].clone())
        return tree.sums

    for order in (range(8), reversed(range(8)), (3, 7, 0, 5, 2, 1, 6, 4)):
        one, other = sums(order)
        assert torch.equal(one + other, expected)
    assert [len(sums(range(n), n)) for n in (0, 1, 2, 4)] == [0, 1, 2, 2]
    tree = Tree[Tensor | None](range(4), plus)  # nothing is nothing, and not missing
    for i, value in enumerate((None, None, None, values[3])):
        tree.add(i, value)
    none, last = tree.sums
    assert none is None
    assert torch.equal(last, values[3])


def test_the_command_on_other_threads(mtl, recipe: Path, tmp_path: Path) -> None:
    """The same files, to the byte."""
    hashes = []
    for threads in (1, 3):
        done: Done = mtl("train", recipe, "--output", tmp_path / str(threads), "--threads", threads)
        assert done.returncode == 0, done.stderr
        files = ("model/model.safetensors", "model/tasks.safetensors", "metrics.jsonl")
        hashes.append([sha256_of(tmp_path / str(threads) / file) for file in files])
    assert hashes[0] == hashes[1]


def test_random_numbers_of_the_process_are_left_alone(recipe: Path, tmp_path: Path, monkeypatch) -> None:
    """Two trainings in threads end as one does alone, and torch's own generator goes on as it would have."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(41)
    expected = torch.rand(3)
    torch.manual_seed(41)
    found: dict[str, str] = {}

    def one(name: str) -> None:
        found[name] = sha256_of(tmp_path / name / "model" / "model.safetensors") if train(recipe, name) else ""

    one("alone")
    assert torch.equal(torch.rand(3), expected)
    threads = [threading.Thread(target=one, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({*found.values()}) == 1
    assert len(found) == 3


def test_settings_of_the_process_change_nothing(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(recipe.read_text().replace("epochs = 3", "epochs = 1"))
    train(recipe, tmp_path / "plain")
    states: dict[str, Callable[[], AbstractContextManager[object]]] = {
        "float64": lambda: default_dtype(torch.float64),
        "bfloat16": lambda: default_dtype(torch.bfloat16),
        "device": lambda: torch.device("meta"),
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "no_grad": torch.no_grad,
        "deterministic": deterministic,
        "medium": medium,
        "no fused attention": lambda: sdpa_kernel(SDPBackend.MATH),
        "inference": torch.inference_mode,
    }
    for state, setting in states.items():
        with setting():
            before = torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.flash_sdp_enabled()
            train(recipe, tmp_path / state)
            assert before == (torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.flash_sdp_enabled())
        for file in ("model/model.safetensors", "model/tasks.safetensors", "metrics.jsonl"):
            assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / state / file).read_bytes(), (state, file)
