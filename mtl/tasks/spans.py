"""Spans of a text, the tags of its words that say them, and how well spans were found."""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Container, Iterator, Sequence
from itertools import pairwise
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtl.encode.tokenizer import Pieces, Tokenizer
from mtl.errors import is_unicode
from mtl.tasks.tally import Tally, rates

Span = tuple[int, int, str]  # the first character, the one behind the last, the label
Word = tuple[int, int]  # the first character, the one behind the last
OUTSIDE = "O"
PREFIXES = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S"}  # BILOU's last and unit are BIOES's end, single


def parted(tag: str) -> tuple[str, str]:
    """A tag's prefix and label: ("B", "person") of "B-person", ("", "NOUN") of a tag without one, ("O", "") of "O"."""
    prefix, dash, label = tag.partition("-")
    if tag == OUTSIDE or (dash and label and prefix in PREFIXES):
        return PREFIXES.get(prefix, prefix), label
    return "", tag


def bio(labels: Sequence[str]) -> tuple[str, ...]:
    """The tags of spans with these labels: O, and for each one B- of its first word and I- of the others."""
    return (OUTSIDE, *(f"{prefix}-{label}" for label in labels for prefix in "BI"))


def runs(tags: Sequence[str], alone: bool = False) -> list[Span]:
    """The spans that tags of neighbouring words say, from which word on up to which, not included.

    They are those of CoNLL's evaluation script (conlleval), whether the tags are IOB1, IOB2 or BIOES: a word goes on
    with a span if it is I or E, the word before is B or I, and both have the same label. A tag without a prefix is an
    I, or where ``alone`` a span of its own.
    """
    found: list[Span] = []
    before = (OUTSIDE, "")
    for i, (prefix, label) in enumerate(map(parted, tags)):
        prefix = prefix or ("S" if alone else "I")
        if prefix in "IE" and before[0] in ("B", "I") and before[1] == label:
            found[-1] = (found[-1][0], i + 1, label)
        elif prefix != OUTSIDE:
            found.append((i, i + 1, label))
        before = prefix, label
    return found


def names(label: str, words: int, known: Container[str]) -> list[str]:
    """The tags of a span of so many words, in the scheme of the known tags."""

    def tag(prefixes: str) -> str:
        wanted = [f"{prefix}-{label}" for prefix in prefixes]
        return next((name for name in (*wanted, label) if name in known), f"I-{label}")

    return [tag("SUBI")] if words == 1 else [tag("BI"), *[tag("I")] * (words - 2), tag("ELI")]


@dataclasses.dataclass(frozen=True)
class Units:
    """A text as it is tagged: in windows of token ids, special tokens included, and word by word.

    ``words`` are the characters of each word, ``places`` the window that decides over it, and where in that its first
    piece stands.
    """

    text: str
    rows: list[list[int]]
    words: list[tuple[int, int]]
    places: list[tuple[int, int]]


def windows(pieces: int, room: int) -> list[tuple[int, int]]:
    """Where windows over so many pieces start, with the first piece that each decides over.

    Neighbours share a quarter of their room, and each decides over the half of that which is nearer to its middle.
    """
    shared = room // 4
    starts = range(0, max(1, pieces - shared), room - shared)
    return [(start, start and start + shared // 2) for start in starts]


def words_of(text: str, pieces: Pieces, start: int) -> list[tuple[int, int, int]]:
    """The words of a text, behind a prompt of ``start`` characters: first piece, first character, end."""
    found: list[tuple[int, int, int]] = []
    for i, first, last in trimmed(text, pieces, start):
        if pieces.begins[i] or not found:
            found.append((i, first, last))
        else:
            found[-1] = (*found[-1][:2], last)
    return found


def trimmed(text: str, pieces: Pieces, start: int) -> Iterator[tuple[int, int, int]]:
    """The pieces that have a character which is no blank, without the blanks that some have around: number, edges."""
    for i, (first, last) in enumerate(pieces.offsets):
        first, last = max(first - start, 0), max(last - start, 0)
        if own := text[first:last].strip():
            first = text.index(own, first)
            yield i, first, first + len(own)


def first_pieces(text: str, words: Sequence[Word], pieces: Pieces, start: int) -> list[tuple[int, int, int]]:
    """The given words that have a piece which begins in them, each with the first such piece."""
    found, own, nth = [], [*trimmed(text, pieces, start)], 0
    for first, last in words:
        while nth < len(own) and own[nth][1] < first:
            nth += 1
        if nth < len(own) and own[nth][1] < last:
            found.append((own[nth][0], first, last))
    return found


def in_units(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    limit: int,
    prompt: str = "",
    words: Sequence[Sequence[tuple[int, int]] | None] | None = None,
) -> list[Units]:
    """Texts in windows of at most ``limit`` tokens, and their words: those given, or the tokenizer's own."""
    room = limit - len(tokenizer.prefix) - len(tokenizer.suffix)
    found = []
    for i, (text, pieces) in enumerate(zip(texts, tokenizer.pieces([prompt + t for t in texts]), strict=True)):
        given = words[i] if words else None
        own = words_of(text, pieces, len(prompt)) if given is None else first_pieces(text, given, pieces, len(prompt))
        edges = windows(len(pieces.ids), room)
        rows = [[*tokenizer.prefix, *pieces.ids[at : at + room], *tokenizer.suffix] for at, _ in edges]
        places = []
        for piece, _, _ in own:
            window = max(k for k, (_, first) in enumerate(edges) if first <= piece)
            places.append((window, len(tokenizer.prefix) + piece - edges[window][0]))
        found.append(Units(text, rows, [(first, last) for _, first, last in own], places))
    return found


def word_at(word: Word, words: Sequence[Word]) -> int | None:
    """Which of another tokenizer's words, in order, has the first character of a word, or else begins within it."""
    found = bisect_right(words, word[0], key=itemgetter(0)) - 1
    if found < 0 or words[found][1] <= word[0]:
        found += 1
    return found if found < len(words) and words[found][0] < word[1] else None


def tagged(units: Units, spans: Sequence[Span], known: Container[str]) -> list[str]:
    """A tag for each word, from spans in order: a word is in the first span that has one of its characters."""
    found, nth = [OUTSIDE] * len(units.words), 0
    for start, end, label in spans:
        while nth < len(units.words) and units.words[nth][1] <= start:
            nth += 1
        first = nth
        while nth < len(units.words) and units.words[nth][0] < end:
            nth += 1
        found[first:nth] = names(label, nth - first, known) if nth > first else []
    return found


def overall(counts: NDArray[np.float64]) -> dict[str, float]:
    """F1, precision and recall of counts (labels, 3) together."""
    found = rates(counts.sum(axis=0))
    return {name: float(found[name]) for name in ("f1", "precision", "recall")}


def tallied(given: Sequence[Sequence[Span]], found: Sequence[Sequence[Span]], labels: Sequence[str]) -> Tally:
    """The spans of these labels, by text; one is found rightly where start, end and label are the same."""
    index = {label: i for i, label in enumerate(labels)}
    events = [
        (row, 3 * index[label] + kind)
        for row, (one, other) in enumerate(zip(given, found, strict=True))
        for kind, group in enumerate(({*one} & {*other}, {*other}, {*one}))
        for *_, label in group
    ]
    rows, columns = np.array(events, np.int64).reshape(-1, 2).T
    return Tally(rows, columns, len(given), len(labels))


def checked_spans(value: Any, text: str) -> list[Span]:
    """Spans as they stand in the data, in order: [start, end, label] each, or an object with these names. A ValueError
    says what is wrong with them, as the end of a sentence that begins with the field's name."""
    expected = "a list of [start, end, label]"
    if not isinstance(value, list):
        raise ValueError(f"is a {type(value).__name__}; expected {expected}")
    found: list[Span] = []
    for item in value:
        parts = [item.get(name) for name in ("start", "end", "label")] if isinstance(item, dict) else item
        if not isinstance(parts, (list, tuple)) or len(parts) != 3:
            raise ValueError(f"has {item!r}; expected {expected}")
        start, end, label = parts
        if not isinstance(label, str) or not label.strip() or not is_unicode(label):
            raise ValueError(f"has {item!r}; expected {expected}")
        if type(start) is not int or type(end) is not int or not 0 <= start < end <= len(text):
            units = len(text.encode("utf-16-le", "surrogatepass")) // 2
            hint = f" ({units} in UTF-16, which is not what is counted)" if units != len(text) else ""
            raise ValueError(f"has {item!r}; expected characters from 0 to {len(text)}{hint}, the end behind the start")
        if text[start:end] != text[start:end].strip():
            raise ValueError(f"has {item!r}, which is {text[start:end]!r}; expected no blanks at its ends")
        found.append((start, end, label))
    found.sort()
    for one, other in pairwise(found):
        if other[0] < one[1]:
            raise ValueError(f"has {list(one)} and {list(other)}, which overlap; expected spans apart from each other")
    return found
