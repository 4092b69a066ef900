"""What the machine could do at most: the speed of its own matrix products, and an encoder's share of them."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from mtl.kernels.threads import side_by_side
from mtl.model.config import EncoderConfig


def gflops_limit(threads: int, config: EncoderConfig) -> float:
    """The better of two: one large product on all threads, and the encoder's own products, one on each thread."""
    torch.set_num_threads(threads)

    def rate(product: Callable[[], object], flops: float) -> float:
        best = float("inf")
        for _ in range(5):
            started = time.perf_counter()
            product()
            best = min(best, time.perf_counter() - started)
        return flops / best / 1e9

    square = torch.randn(1536, 1536)
    together = rate(lambda: square @ square, 2 * 1536**3)
    x, w = torch.randn(768, config.dim), torch.randn(config.dim, config.hidden_dim)
    times = 12
    with side_by_side(threads) as pool:
        apart = rate(
            lambda: list(pool.map(lambda _: [x @ w for _ in range(times)], range(threads))),
            2 * x.shape[0] * config.dim * config.hidden_dim * times * threads,
        )
    return max(together, apart)


def flops(lengths: list[int], config: EncoderConfig) -> float:
    """Arithmetic of the encoder's products: per token 8 dim^2 + 4 dim hidden, and 4 length dim for attention."""
    tokens, squares = sum(lengths), sum(length**2 for length in lengths)
    per_layer = tokens * (8 * config.dim**2 + 4 * config.dim * config.hidden_dim) + 4 * squares * config.dim
    return float(config.n_layers * per_layer)
