"""How well one row of numbers follows another."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

ROUNDING = 4 * float(np.finfo(np.float32).eps)  # numbers that a float32 model gives differ by no less


def correlations(given: NDArray[Any], wanted: NDArray[Any], magnitude: float = 0.0) -> dict[str, float]:
    """Those of Spearman and Pearson between a model's numbers and those wanted; 0 where there is none.

    That is where one side is constant: the wanted numbers exactly, the model's but for the rounding of float32,
    relative to the largest of them or to ``magnitude``, what the model computed with. What differs in such numbers is
    noise, of which any correlation may come.
    """
    from scipy.stats import rankdata

    rounding = ROUNDING * max(magnitude, float(np.abs(given).max(initial=0)))
    if len(given) == 0 or np.ptp(wanted) == 0 or np.ptp(given) <= rounding:
        return {"spearman": 0.0, "pearson": 0.0}
    return {"spearman": pearson(rankdata(given), rankdata(wanted)), "pearson": pearson(given, wanted)}


def errors(given: NDArray[Any], wanted: NDArray[Any]) -> dict[str, float]:
    """The correlations, and the root of the mean squared error, of float64 numbers."""
    return {**correlations(given, wanted), "rmse": float(((given - wanted) ** 2).mean() ** 0.5)}


def pearson(one: NDArray[Any], other: NDArray[Any]) -> float:
    """The correlation of two rows of numbers, neither of which is constant."""
    first, second = centred(one), centred(other)
    return float(np.clip((first @ second) / np.sqrt((first @ first) * (second @ second)), -1, 1))


def centred(numbers: NDArray[Any]) -> NDArray[Any]:
    """Each number's distance from the mean, as a share of the largest: no square is too large or too small."""
    distances = numbers.astype(np.float64) - numbers.mean(dtype=np.float64)
    return distances / np.abs(distances).max()
