"""Inference leaves every module in the mode that it was in."""

import threading

import pytest
from torch import nn

from mtl.model.modes import inference


def modes(model: nn.Module) -> list[bool]:
    return [part.training for part in model.modules()]


@pytest.fixture
def model() -> nn.Sequential:
    """In training mode, but for one part that is held."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout()), nn.Dropout())
    model[1].eval()
    return model


def test_each_part_gets_its_own_mode_back(model: nn.Sequential) -> None:
    before = modes(model)
    assert before == [True, True, False, False, True]
    with inference(model), inference(model[1]):
        assert not any(modes(model))
    assert modes(model) == before
    with pytest.raises(KeyError), inference(model):
        raise KeyError
    assert modes(model) == before


def test_the_last_thread_to_leave_restores(model: nn.Sequential) -> None:
    before, inside, leave = modes(model), threading.Event(), threading.Event()

    def other() -> None:
        with inference(model):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with inference(model):
        thread.start()
        assert inside.wait(10)
    assert not any(modes(model))  # the other one still computes
    leave.set()
    thread.join()
    assert modes(model) == before
