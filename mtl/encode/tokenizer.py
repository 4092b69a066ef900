"""Texts to token ids, with truncation and padding always set explicitly, and never silent.

A tokenizer.json may carry truncation and padding of its own (that of all-MiniLM-L6-v2 cuts and fills every
text to 128 tokens, though the model takes 256). Both are switched off here; what a text has beyond the limit
is counted, and dealt with as the caller says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import tokenizers
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as Normalizers

from mtl.checkpoints.tokenizer import encodings
from mtl.errors import InputError, WeightsError, is_unicode, shown

Overflow = Literal["warn", "truncate", "error", "chunk"]


@dataclasses.dataclass(frozen=True)
class Tokenized:
    """``rows[i]`` are the ids of text ``owners[i]``, or of a chunk of it, special tokens included.

    There is one row for each text, in order, unless the overflow policy "chunk" made several of one. ``cuts`` are
    the numbers of tokens that each text lost.
    """

    rows: list[list[int]]
    owners: list[int]
    cuts: list[int]

    @property
    def texts(self) -> int:
        return len(self.cuts)

    @property
    def cut_texts(self) -> int:
        """How many texts lost tokens."""
        return sum(cut > 0 for cut in self.cuts)

    @property
    def cut_tokens(self) -> int:
        """How many tokens they lost in all."""
        return sum(self.cuts)

    @property
    def chunked(self) -> bool:
        """Whether a text has more than one row."""
        return len(self.rows) > self.texts


@dataclasses.dataclass(frozen=True)
class Pieces:
    """A text's ids, whole, without special tokens; the characters of each, and whether a word begins with it."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    begins: list[bool]


class Tokenizer:
    """A tokenizer with a limit of ``max_length`` tokens a text, special tokens included.

    ``lowercase`` lowers texts before whatever the tokenizer does with them; its special tokens keep their capitals.
    ``keep_last`` cuts a text that is over the limit at its beginning instead of its end.

    Raises:
        InputError: the limit leaves no room for a token between the special ones.
    """

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, max_length: int, lowercase: bool = False, keep_last: bool = False
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.backend = tokenizer
        self.lowercase, self.keep_last = lowercase, keep_last
        before: Any = tokenizer.normalizer
        parts: list[Any] = list(before) if isinstance(before, Normalizers) else [before] * bool(before)  # type: ignore[call-overload]
        if lowercase and not any(isinstance(part, Lowercase) for part in parts):
            tokenizer.normalizer = Normalizers([Lowercase(), *parts])
        self.prefix, self.suffix = ends(tokenizer)  # [CLS] and [SEP]
        self.max_length = self.check_limit(max_length)

    def check_limit(self, max_length: int) -> int:
        """max_length itself, where at least one token fits between the special ones."""
        least = len(self.prefix) + len(self.suffix) + 1
        if max_length < least:
            raise InputError(f"max_length is {max_length}; expected at least {least}: special tokens and one more")
        return max_length

    @property
    def vocab_size(self) -> int:
        """One more than the largest id that it gives."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    def __call__(
        self,
        texts: Sequence[str],
        overflow: Overflow = "warn",
        max_length: int | None = None,
        numbers: Sequence[int] | None = None,
        prompt: str = "",
    ) -> Tokenized:
        """Tokenize texts; those over the limit are cut (warn, truncate), refused (error) or split (chunk).

        ``numbers`` is what an error calls each text; by default, its index. ``prompt`` goes before each text, and
        before each chunk of it; its tokens count.

        Raises:
            InputError: something that is no text, with its index; an unknown policy; a text over the limit under the
                policy "error"; a prompt that leaves no room for a chunk.
        """
        if overflow not in get_args(Overflow):
            raise InputError(f"overflow is {overflow!r}; expected one of {', '.join(get_args(Overflow))}")
        limit = self.max_length if max_length is None else self.check_limit(max_length)
        room = limit - len(self.prefix) - len(self.suffix)
        again = self.ids([prompt])[0] if prompt and overflow == "chunk" else []  # before a text's further chunks
        step = room - len(again)
        if step < 1:
            raise InputError(f"the prompt has {len(again)} tokens; expected fewer than {room}, all that a chunk holds")
        rows: list[list[int]] = []
        owners: list[int] = []
        cuts: list[int] = []
        for owner, ids in enumerate(self.ids([prompt + text for text in check_texts(texts)] if prompt else texts)):
            beyond = max(0, len(ids) - room)
            if beyond and overflow == "error":
                has = len(ids) + limit - room
                number = numbers[owner] if numbers else owner
                raise InputError(f"text {number} has {has} tokens; the limit is {limit}: {shown(texts[owner])}")
            cuts.append(0 if overflow == "chunk" else beyond)
            if beyond and overflow != "chunk":
                ids = [*cut(ids, room, self.keep_last)]
            rows.append([*self.prefix, *ids[:room], *self.suffix])
            rows += [[*self.prefix, *again, *ids[i : i + step], *self.suffix] for i in range(room, len(ids), step)]
            owners += [owner] * (len(rows) - len(owners))
        return Tokenized(rows, owners, cuts)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, whole, without special tokens."""
        check_texts(texts)
        return [encoding.ids for encoding in encodings(self.backend.encode_batch_fast, texts)]

    def pieces(self, texts: Sequence[str]) -> list[Pieces]:
        """The pieces of each text.

        Words are the pre-tokenizer's where the vocabulary marks what goes on with a word, as WordPiece does with ##,
        else what stands between blanks: as transformers' token-classification pipeline has them.
        """
        check_texts(texts)
        marked, found = bool(getattr(self.backend.model, "continuing_subword_prefix", None)), []
        for text, encoding in zip(texts, encodings(self.backend.encode_batch, texts), strict=True):
            before = [None, *encoding.word_ids]
            begins = [
                word != last if marked else start == 0 or any(map(str.isspace, text[start - 1 : start + 1]))
                for (start, _), word, last in zip(encoding.offsets, encoding.word_ids, before, strict=False)
            ]
            found.append(Pieces(encoding.ids, encoding.offsets, begins))
        return found


def ends(tokenizer: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and behind every text.

    Raises:
        WeightsError: it does more than that with a text, which we would not do.
    """
    for text in ("a", *tokenizer.get_vocab()):
        if inner := encodings(tokenizer.encode_batch, [text])[0].ids:
            break
    else:
        raise WeightsError("the tokenizer's vocabulary has no token that it ever gives; expected one of the model's")
    whole = encodings(tokenizer.encode_batch, [text], special=True)[0]
    kept = [i for i, special in enumerate(whole.special_tokens_mask) if not special]
    first, last = kept[0] if kept else 0, kept[-1] + 1 if kept else 0
    if whole.ids[first:last] != inner:
        raise WeightsError(f"the tokenizer makes {shown(whole.tokens)} of {shown(text)}; expected its tokens once, "
                           "with special ones around them")  # fmt: skip
    return whole.ids[:first], whole.ids[last:]


def cut(ids: Sequence[int], room: int, keep_last: bool) -> Sequence[int]:
    """As many ids as there is room for: the first of them, or the last."""
    return ids[max(0, len(ids) - room) :] if keep_last else ids[:room]


def filled(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Rows in which a token stands in for each that has none, so that there is something to compute.

    A tokenizer without special tokens gives such rows; what is computed of them is nobody's.
    """
    return [[*row] or [0] for row in rows]


def several(texts: Iterable[str]) -> Iterable[str]:
    """The texts themselves, if they come one after another: a list, a tuple, an array, a column, a generator.

    Raises:
        InputError: one string, or something that gives its parts in no order, or names instead of texts.
    """
    if isinstance(texts, (str, bytes)):
        raise InputError(f"texts is a single string ({shown(texts)}); expected several, as in [text]")
    if hasattr(texts, "to_pylist") and not hasattr(texts, "columns"):
        return list(texts.to_pylist())  # a column of pyarrow's gives scalars of its own one by one
    try:
        iter(texts)
        in_order = not isinstance(texts, (set, frozenset, Mapping)) and not hasattr(texts, "columns")
    except TypeError:
        in_order = False
    if not in_order:
        kind = type(texts).__name__
        raise InputError(f"texts is of type {kind}; expected a list, an array, a column or an iterator of strings")
    return texts


def check_texts(texts: Sequence[str], start: int = 0) -> Sequence[str]:
    """The texts themselves, if all are strings of valid Unicode; ``start`` is the index of the first.

    Raises:
        InputError: one is not; it names its index.
    """
    for i, text in enumerate(texts, start):
        if not isinstance(text, str):
            raise InputError(f"texts[{i}] is {type(text).__name__} ({shown(text)}); expected a string")
        if not is_unicode(text):
            raise InputError(f"texts[{i}] holds half of a surrogate pair: {shown(text)}; expected Unicode")
    return texts
