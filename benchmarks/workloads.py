"""Texts of wanted lengths in tokens, from the bundled sentences' words, always the same ones."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path

from mtl.encode.int8 import CALIBRATION
from mtl.encode.tokenizer import Tokenizer

FIXED = (16, 32, 64, 128, 256, 512)
TOKENS = 16384  # about so many in each workload of fixed length


def single_token_words(tokenizer: Tokenizer) -> Iterator[str]:
    """The bundled sentences' words that are one token each, in a seeded order of sentences, again and again."""
    lines = [line for path in CALIBRATION for line in Path(path).read_text("utf-8").splitlines()]
    sentences = [json.loads(line)["text"] for line in lines]
    words = {word for sentence in sentences for word in sentence.split() if word.isalpha()}
    ids = dict(zip(sorted(words), tokenizer.ids(sorted(words)), strict=True))
    generator = random.Random(0)
    while True:
        generator.shuffle(sentences)
        for sentence in sentences:
            yield from (word for word in sentence.split() if len(ids.get(word, ())) == 1)


def lengths(name: str, scale: float = 1.0) -> list[int]:
    """The workload's text lengths in tokens, special tokens included."""
    generator = random.Random(name)
    if name.startswith("fixed-"):
        length = int(name.removeprefix("fixed-"))
        return [length] * max(2, round(TOKENS * scale / length))
    if name == "mixed-short":  # median 22, a long tail
        drawn = (round(math.exp(generator.gauss(math.log(22), 0.6))) for _ in range(round(1000 * scale)))
        return [min(256, max(4, length)) for length in drawn]
    if name == "mixed-long":
        return [generator.randint(40, 500) for _ in range(max(8, round(80 * scale)))]
    raise ValueError(f"workload is {name!r}; expected fixed-N, mixed-short or mixed-long")


def texts(name: str, tokenizer: Tokenizer, scale: float = 1.0) -> list[str]:
    """The workload's texts."""
    words = single_token_words(tokenizer)
    special = len(tokenizer.prefix) + len(tokenizer.suffix)
    return [" ".join(next(words) for _ in range(length - special)) for length in lengths(name, scale)]


def padded_tokens(lengths: list[int], batch: int = 32, in_order: bool = False) -> int:
    """How many tokens batches padded to their longest compute; longest first, or as they come."""
    ordered = lengths if in_order else sorted(lengths, reverse=True)
    return sum(max(part) * len(part) for part in (ordered[i : i + batch] for i in range(0, len(ordered), batch)))
