"""Inference leaves every module in the mode that it was in."""

import pytest
from torch import nn

from mtl.model.modes import evaluating


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
    with evaluating(model), evaluating(model[1]):
        assert not any(modes(model))
    assert modes(model) == before
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert modes(model) == before
