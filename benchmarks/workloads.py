"""Texts of wanted lengths in tokens, from the bundled sentences' words, always the same ones."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator

from mtl.encode.tokenizer import Tokenizer
from mtl.training.recipe import BUNDLED

FIXED = (16, 32, 64, 128, 256, 512)
ONE_TEXT = "one-text"
FULL_BATCHES = 16  # at least so many for each thread, or one stream would wait for another's last batch
# The largest batch worth trying; there are 16 full ones for each thread (see search.py)
LARGEST_BATCH = {"mixed-short": 16, "mixed-long": 4} | {f"fixed-{n}": max(4, 512 // n) for n in FIXED}
NAMES = (*LARGEST_BATCH, ONE_TEXT)


def single_token_words(tokenizer: Tokenizer) -> Iterator[str]:
    """The bundled sentences' words that are one token each, in a seeded order of sentences, again and again."""
    paths = sorted((BUNDLED / "demo").glob("*-train.jsonl"))
    lines = [line for path in paths for line in path.read_text("utf-8").splitlines()]
    sentences = [json.loads(line)["text"] for line in lines]
    words = {word for sentence in sentences for word in sentence.split() if word.isalpha()}
    ids = dict(zip(sorted(words), tokenizer.ids(sorted(words)), strict=True))
    generator = random.Random(0)
    while True:
        generator.shuffle(sentences)
        for sentence in sentences:
            yield from (word for word in sentence.split() if len(ids.get(word, ())) == 1)


def count(name: str, threads: int, scale: float = 1.0) -> int:
    """How many texts a workload has."""
    return max(4, round((100 if name == ONE_TEXT else FULL_BATCHES * threads * LARGEST_BATCH[name]) * scale))


def lengths(name: str, texts: int) -> list[int]:
    """The text lengths of a workload in tokens, special tokens included.

    Raises:
        ValueError: there is no workload of that name.
    """
    generator = random.Random(name)
    if name.startswith("fixed-"):
        return [int(name.removeprefix("fixed-"))] * texts
    if name == "mixed-short":  # median 22, a long tail
        drawn = (round(math.exp(generator.gauss(math.log(22), 0.6))) for _ in range(texts))
        return [min(256, max(4, length)) for length in drawn]
    if name == "mixed-long":
        return [generator.randint(40, 500) for _ in range(texts)]
    if name == ONE_TEXT:  # questions
        return [generator.randint(6, 16) for _ in range(texts)]
    raise ValueError(f"workload is {name!r}; expected one of {', '.join(NAMES)}")


def texts(name: str, tokenizer: Tokenizer, number: int) -> list[str]:
    """The first so many texts of a workload."""
    words = single_token_words(tokenizer)
    special = len(tokenizer.prefix) + len(tokenizer.suffix)
    return [" ".join(next(words) for _ in range(length - special)) for length in lengths(name, number)]
