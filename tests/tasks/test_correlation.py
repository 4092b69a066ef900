"""Correlations against SciPy's, and where there is none."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mtl.tasks.correlation import correlations
from mtl.tasks.spec import TaskSpec

NONE = {"spearman": 0.0, "pearson": 0.0}
PAIRS = TaskSpec("t", kind="similarity", text_field=("a", "b")).handler
NUMBER = TaskSpec("t", kind="regression").handler


@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=3), st.sampled_from([1e-30, 1, 1e30]))
def test_as_scipy_says(rows: list[tuple[int, int]], unit: float) -> None:
    given_, wanted = np.array(rows, dtype=np.float64).T
    if min(np.ptp(given_), np.ptp(wanted)) == 0:
        assert correlations(given_ * unit, wanted) == NONE
        return
    found = correlations(given_ * unit, wanted)
    assert found["spearman"] == pytest.approx(stats.spearmanr(given_, wanted).statistic, abs=1e-9)
    assert found["pearson"] == pytest.approx(stats.pearsonr(given_, wanted).statistic, abs=1e-9)


@pytest.mark.parametrize("angle", [0.0, 1.0, torch.pi / 2])
def test_cosines_of_rounding_noise_say_nothing(angle: float) -> None:
    """Every row's two vectors have one cosine; what differs comes of rounding them."""
    firsts = torch.nn.functional.normalize(torch.randn(50, 2, generator=torch.Generator().manual_seed(0)), dim=1)
    turn = torch.tensor(angle)
    turned = firsts @ torch.tensor([[turn.cos(), turn.sin()], [-turn.sin(), turn.cos()]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = PAIRS.measure(torch.stack([firsts, turned], dim=1), torch.rand(50, 1))
    assert found == NONE


def test_values_of_rounding_noise_say_nothing() -> None:
    """Nor does one row, nor equal targets; small numbers that do differ say what they say."""
    targets = torch.arange(40.0, dtype=torch.float64)[:, None]
    values = 250_000 + torch.randint(-1, 2, (40, 1)) / 64  # what float32 tells apart there
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for given_, wanted in ((values, targets), (targets.float(), targets * 0 + 1e9), (values[:1], targets[:1])):
            found = NUMBER.measure(given_, wanted)
            assert (found["spearman"], found["pearson"]) == (0, 0)
        assert NUMBER.measure(targets.float() * 1e-30, targets)["pearson"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([3e38, -3e38, 0.0], [1.0, 0.0, 0.5]),
        ([1e9, 1e9 + 1, 1e9 + 4], [0.0, 0.25, 1.0]),
        ([1.0, 2.0, 5.0], [0, 0.25, 1]),
    ],
)
def test_scores_that_float32_does_not_tell_apart(scores: list[float], expected: list[float]) -> None:
    """Neither infinite, of which no correlation is a number, nor all equal."""
    assert PAIRS.stacked([[score] for score in scores])[:, 0].tolist() == expected
