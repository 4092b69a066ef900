"""An encoder in other processes: a DataLoader's worker, and one that multiprocessing spawns."""

import multiprocessing

import numpy as np
import pytest
from torch.utils.data import DataLoader

from mtl import SentenceEncoder

TEXTS = [f"{a} {b} c" for a in "abcdef" for b in "ghijkl"]


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_data_loader_s_worker_encodes(tiny: SentenceEncoder, context: str) -> None:
    """After the parent has computed, so that a fork finds threads gone and a pickle finds forms and locks."""
    expected = tiny.encode(TEXTS, threads=2)
    loader = DataLoader(TEXTS, batch_size=20, num_workers=2, collate_fn=tiny.encode, multiprocessing_context=context,
                        timeout=60)  # fmt: skip
    assert np.array_equal(np.concatenate(list(loader)), expected)


@pytest.mark.slow
def test_a_spawned_pool_encodes(tiny: SentenceEncoder) -> None:
    expected = tiny.encode(TEXTS, threads=2)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert np.array_equal(pool.apply_async(tiny.encode, (TEXTS,)).get(60), expected)
