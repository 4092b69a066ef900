"""Does this machine give a text the same bits, whatever stands beside it? BLAS decides, so it is tried out."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import torch

from mtl.encode.int8 import calibration_texts
from mtl.encode.sentence_encoder import SentenceEncoder


def sample_texts(seed: int = 0) -> list[str]:
    """Bundled sentences, cut and joined to lengths from nothing to beyond the limit."""
    generator = random.Random(seed)
    sentences = calibration_texts()
    short = ["", "a", *(" ".join(s.split()[:n]) for n, s in enumerate(sentences[:14]))]
    joined = [" ".join(generator.choices(sentences, k=k)) for k in (2, 3, 5, 8, 13, 21, 34)]
    return [*short, *sentences[14:40], *joined]


def trials(model: SentenceEncoder, seed: int = 0) -> Iterator[tuple[str, int]]:
    """Each way to encode the sample, and how many texts got other bits than alone on one thread."""
    texts = sample_texts(seed)
    generator = random.Random(seed)
    before = torch.get_num_threads()

    def alone(threads: int) -> np.ndarray:
        torch.set_num_threads(threads)
        try:
            return np.stack([model.encode(text, overflow="truncate") for text in texts])
        finally:
            torch.set_num_threads(before)

    expected = alone(1)
    for threads in sorted({2, 3, before}):
        yield f"alone, {threads} threads inside", int((alone(threads) != expected).any(axis=1).sum())
    for threads in sorted({1, 2, before}):
        for budget in (1, 64, 300, 768, 4096):
            order = generator.sample(range(len(texts)), len(texts))
            shuffled = [texts[i] for i in order]
            vectors = model.encode(shuffled, overflow="truncate", batch_tokens=budget, threads=threads)
            different = (vectors != expected[order]).any(axis=1).sum()
            yield f"shuffled, {threads} batches at once of {budget} tokens", int(different)
