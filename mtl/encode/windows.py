"""Texts on their way to vectors, a window at a time: equal ones once, long ones perhaps in several chunks."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.display import counted
from mtl.encode.engine import prefetch
from mtl.encode.tokenizer import Overflow, Text, Tokenized, Tokenizer, check_pairs, check_texts, filled
from mtl.errors import WeightsError, shown

R = TypeVar("R")
T = TypeVar("T")

log = logging.getLogger("mtl")


class Block(NamedTuple, Generic[R]):
    """Consecutive texts, and what travels with them: the rows that they come from."""

    texts: list[Any]  # strings, or pairs of them
    rows: R


@dataclasses.dataclass(frozen=True)
class Window(Generic[R]):
    """A block whose first text is number ``start`` of all, tokenized.

    ``tokenized`` are the distinct ones among its texts; ``inverse[i]`` says which of these text i is. ``blank`` are
    those of them that have no token; a token stands in for it, so that there is something to compute.
    """

    start: int
    texts: list[Any]
    rows: R
    tokenized: Tokenized
    inverse: list[int]
    blank: frozenset[int]

    @property
    def cuts(self) -> tuple[int, int]:
        """How many of the texts were cut, and how many tokens they lost in all."""
        lost = [self.tokenized.cuts[i] for i in self.inverse]
        return sum(cut > 0 for cut in lost), sum(lost)

    def vectors(self, rows: Tensor, normalize: bool = False) -> Tensor:
        """One vector per text, (texts, dim), from those of the tokenized rows; ``normalize`` is for merged chunks.

        The vector of a text without tokens is 0, as sentence-transformers' mean over none. One that is not finite is a
        WeightsError that names the text.
        """
        distinct = merged(rows, self.tokenized, normalize) if self.tokenized.chunked else rows
        check_finite(vectors := distinct[self.inverse], self.texts, self.start)
        if self.blank:
            vectors[[place for place, i in enumerate(self.inverse) if i in self.blank]] = 0
        return vectors


def check_finite(vectors: Tensor, texts: Sequence[Text], start: int = 0) -> None:
    """Raise a WeightsError that names the first text whose vector, a row of (texts, dim), is not finite."""
    finite = torch.isfinite(vectors).all(dim=1)
    if not finite.all():
        i = int(finite.logical_not().nonzero()[0])
        raise WeightsError(
            f"texts[{start + i}] ({shown(texts[i])}) has a vector that is not finite; compute in fp32, and if that "
            "gives the same, look for damage in the weights"
        )


def in_blocks(rows: Iterable[T], size: int, text: Callable[[T], Text] | None = None) -> Iterator[Block[list[T]]]:
    """Blocks of at most ``size`` rows; ``text`` gives a row's text, where the row is not itself one."""
    iterator = iter(rows)
    while part := list(islice(iterator, size)):
        yield Block(part if text is None else list(map(text, part)), part)


def numbered(blocks: Iterable[Block[R]]) -> Iterator[tuple[int, Block[R]]]:
    """Blocks, each with the number of its first text among all."""
    start = 0
    for block in blocks:
        yield start, block
        start += len(block.texts)


def tokenized_windows(
    blocks: Iterable[Block[R]],
    tokenizer: Tokenizer,
    prompt: str,
    overflow: Overflow = "warn",
    max_length: int | None = None,
    ahead: bool = True,
    pairs: bool = False,
) -> Iterator[Window[R]]:
    """Blocks as windows, tokenized with the prompt before each text; ``ahead``, the next while one is computed.

    With ``pairs`` the blocks hold pairs of texts, each of which becomes one row, without a prompt.
    """

    def window(block: tuple[int, Block[R]]) -> Window[R]:
        start, (given, rows) = block
        texts: Any = check_pairs(given, start) if pairs else check_texts(given, start)
        known: dict[Any, int] = {}
        inverse = [known.setdefault(text, len(known)) for text in texts]
        numbers = (np.unique(inverse, return_index=True)[1] + start).tolist()  # where each of them stands first
        if pairs:
            tokenized = tokenizer.pairs(list(known), overflow, max_length, numbers)
        else:
            tokenized = tokenizer(list(known), overflow, max_length, numbers, prompt)
        blank = frozenset(owner for owner, ids in zip(tokenized.owners, tokenized.rows, strict=True) if not ids)
        tokenized = dataclasses.replace(tokenized, rows=filled(tokenized.rows)) if blank else tokenized
        return Window(start, texts, rows, tokenized, inverse, blank)

    windows = prefetch(numbered(blocks), window) if ahead else map(window, numbered(blocks))
    return warn_of_blanks(windows)


def warn_of_blanks(windows: Iterable[Window[R]]) -> Iterator[Window[R]]:
    """The same windows, and after the last one line in the log, if texts had no tokens."""
    texts = 0
    for window in windows:
        texts += sum(i in window.blank for i in window.inverse)
        yield window
    if texts:
        log.warning("%s without a single token: a vector of zeros for each", counted(texts, "text"))


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


def without_bar(progress: bool | None) -> bool | None:
    """tqdm's ``disable``: None, by default, has it look for a terminal, if there is anything to look at."""
    return not progress if progress is not None or sys.stderr is None else None


def with_bar(windows: Iterable[Window[R]], total: int | None, progress: bool | None) -> Iterator[Window[R]]:
    """The same windows, with a bar on stderr that moves as they are done; None means only on a terminal."""
    if without_bar(progress):
        yield from windows
        return
    from tqdm import tqdm

    with tqdm(total=total, unit="text", disable=without_bar(progress), leave=False) as bar:
        for window in windows:
            yield window
            bar.update(len(window.texts))


def cuts_in_words(texts: int, tokens: int, limit: int, noun: str = "text") -> str:
    """What was cut, as "2 texts were longer than 256 tokens and lost 31 tokens"."""
    longer = f"{counted(texts, noun)} {'was' if texts == 1 else 'were'} longer than {limit} tokens"
    return f"{longer} and lost {counted(tokens, 'token')}"


def warn_of_cuts(windows: Iterable[Window[R]], limit: int, advice: str = "", noun: str = "text") -> Iterator[Window[R]]:
    """The same windows, and after the last one line in the log, with advice, if anything was cut."""
    texts = tokens = 0
    for window in windows:
        more_texts, more_tokens = window.cuts
        texts, tokens = texts + more_texts, tokens + more_tokens
        yield window
    if texts:
        log.warning("%s%s", cuts_in_words(texts, tokens, limit, noun), advice)
