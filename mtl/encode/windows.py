"""Texts on their way to vectors, a window at a time: equal ones once, long ones perhaps in several chunks."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from mtl.display import counted
from mtl.encode.tokenizer import Overflow, Tokenized, Tokenizer, check_texts
from mtl.errors import WeightsError, shown

log = logging.getLogger("mtl")


@dataclasses.dataclass(frozen=True)
class Window:
    """Consecutive texts, the first of which is number ``start``.

    ``tokenized`` are the distinct ones among them; ``places[i]`` says which of these text i is.
    """

    start: int
    texts: list[str]
    tokenized: Tokenized
    places: list[int]

    @property
    def cuts(self) -> tuple[int, int]:
        """How many of the texts were cut, and how many tokens they lost in all."""
        lost = [self.tokenized.cuts[place] for place in self.places]
        return sum(cut > 0 for cut in lost), sum(lost)

    def vectors(self, rows: Tensor, normalize: bool = False) -> Tensor:
        """One vector per text, (texts, dim), from those of the tokenized rows; ``normalize`` is for merged chunks.

        Raises:
            WeightsError: a vector is not finite; it names the text.
        """
        distinct = merged(rows, self.tokenized, normalize) if self.tokenized.chunked else rows
        check_finite(vectors := distinct[self.places], self.texts, self.start)
        return vectors


def check_finite(vectors: Tensor, texts: Sequence[str], start: int = 0) -> None:
    """Raise a WeightsError that names the first text whose vector, a row of (texts, dim), is not finite."""
    finite = torch.isfinite(vectors).all(dim=1)
    if not finite.all():
        i = int(finite.logical_not().nonzero()[0])
        raise WeightsError(
            f"texts[{start + i}] ({shown(texts[i])}) has a vector that is not finite; compute in fp32, and if that "
            "gives the same, look for damage in the weights"
        )


def in_windows(texts: Iterable[str], size: int) -> Iterator[tuple[int, list[str]]]:
    """Consecutive lists of at most ``size`` texts, each with the index of its first."""
    iterator, start = iter(texts), 0
    while window := list(islice(iterator, size)):
        yield start, window
        start += len(window)


def tokenized_windows(
    texts: Iterable[str],
    size: int,
    tokenizer: Tokenizer,
    prompt: str,
    overflow: Overflow = "warn",
    max_length: int | None = None,
) -> Iterator[Window]:
    """Texts in windows of ``size``, tokenized with the prompt before each."""
    for start, part in in_windows(texts, size):
        check_texts(part, start)
        known: dict[str, int] = {}
        places = [known.setdefault(text, len(known)) for text in part]
        numbers = (np.unique(places, return_index=True)[1] + start).tolist()  # where each of them stands first
        tokenized = tokenizer([prompt + text for text in known], overflow, max_length, numbers)
        yield Window(start, part, tokenized, places)


def merged(vectors: Tensor, tokenized: Tokenized, normalize: bool) -> Tensor:
    """One vector per text from those of its chunks: their mean, weighted by tokens."""
    owners = torch.tensor(tokenized.owners, device=vectors.device)
    weights = torch.tensor([len(row) for row in tokenized.rows], device=vectors.device)[:, None]
    sums = vectors.new_zeros(tokenized.texts, vectors.shape[1]).index_add_(0, owners, vectors * weights)
    totals = vectors.new_zeros(tokenized.texts, 1).index_add_(0, owners, weights.to(vectors.dtype))
    means = F.normalize(sums, dim=-1) if normalize else sums / totals
    whole = torch.bincount(owners, minlength=tokenized.texts) == 1  # a text of one chunk keeps that one's bits
    means[whole] = vectors[whole[owners]]
    return means


def with_bar(windows: Iterable[Window], texts: Iterable[str], progress: bool | None) -> Iterator[Window]:
    """The same windows, with a bar on stderr that moves as they are done; None means only on a terminal."""
    total = len(texts) if isinstance(texts, Sized) else None
    with tqdm(total=total, unit="text", disable=None if progress is None else not progress, leave=False) as bar:
        for window in windows:
            yield window
            bar.update(len(window.texts))


def cuts_in_words(texts: int, tokens: int, limit: int) -> str:
    """What was cut, as "2 texts were longer than 256 tokens and lost 31 tokens"."""
    longer = f"{counted(texts, 'text')} {'was' if texts == 1 else 'were'} longer than {limit} tokens"
    return f"{longer} and lost {counted(tokens, 'token')}"


def warn_of_cuts(windows: Iterable[Window], limit: int, advice: str = "") -> Iterator[Window]:
    """The same windows, and after the last one line in the log, with advice, if anything was cut."""
    texts = tokens = 0
    for window in windows:
        more_texts, more_tokens = window.cuts
        texts, tokens = texts + more_texts, tokens + more_tokens
        yield window
    if texts:
        log.warning("%s%s", cuts_in_words(texts, tokens, limit), advice)
