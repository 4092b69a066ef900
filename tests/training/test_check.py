"""mtl check --training: the same gradients on any number of threads, and it would tell if they were not."""

import pytest
import torch

from mtl.kernels import training_linear
from mtl.model.config import EncoderConfig
from mtl.tasks.kinds import KINDS
from mtl.training import check, gradients
from mtl.training.gradients import share_count


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide enough for oneDNN's product to be taken, and quick."""
    assert check.CONFIG.dim >= 48 >= training_linear.SMALLEST
    config = EncoderConfig(100, max_position_embeddings=64, n_layers=2, n_heads=3, dim=48, hidden_dim=96, segments=2)
    monkeypatch.setattr(check, "CONFIG", config)


@pytest.mark.parametrize("choice", ["onednn", "torch"])
def test_same_gradients(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By either kernel, whatever the processor is."""
    chosen = choice == "onednn" and training_linear.has_packed()
    monkeypatch.setattr(training_linear, "onednn", lambda: chosen)
    assert {task.kind for task in check.TASKS} == set(KINDS)
    assert [found for found in check.trials() if found[1]] == []


def test_a_sum_in_another_order_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    run = check.random_run("fp32")
    assert share_count(run.window(1), run.data["train"]) == gradients.MOST_SHARES
    real = check.gradients
    monkeypatch.setattr(check, "random_run", lambda precision: run)

    def other(run, threads: int) -> gradients.Found:
        found = real(run, threads)
        if threads == 3:
            found.gradients[5] = torch.nextafter(found.gradients[5], torch.tensor(torch.inf))
        return found

    monkeypatch.setattr(check, "gradients", other)
    assert [bool(difference) for _, difference in check.trials()] == [False, False, True, False]
