"""Texts to token ids, with truncation and padding always set explicitly, and never silent.

A tokenizer.json may carry truncation and padding of its own (that of all-MiniLM-L6-v2 cuts and fills every
text to 128 tokens, though the model takes 256). Both are switched off here; what a text has beyond the limit
is counted, and dealt with as the caller says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from itertools import chain, islice, pairwise
from typing import Any, Literal, TypeVar, get_args

import tokenizers
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as Normalizers

from mtl.checkpoints.encodings import encodings
from mtl.errors import InputError, WeightsError, is_unicode, shown

T = TypeVar("T")
NOWHERE = "\U0010ffff"  # no character, so that it stands in no vocabulary

Overflow = Literal["warn", "truncate", "error", "chunk"]
Pair = tuple[str, str]
Text = str | Pair


class TooLong(InputError):
    """A text, or a pair of texts, has ``tokens`` tokens, more than the limit; ``number`` says which."""

    def __init__(self, what: str, number: int, tokens: int, limit: int, text: str) -> None:
        super().__init__(f"{what} {number} has {tokens} tokens; the limit is {limit}: {shown(text)}")
        self.number, self.tokens = number, tokens


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


@dataclasses.dataclass(frozen=True)
class Template:
    """The special tokens before, between and behind the texts of a pair, and whether the second's own tokens are of
    the second segment: those are ``~id`` (see mtl/model/packing.py)."""

    before: list[int]
    between: list[int]
    behind: list[int]
    second: bool

    @classmethod
    def of(cls, tokenizer: tokenizers.Tokenizer, segments: bool) -> Template:
        """A tokenizer's own; ``segments`` says whether the model is told them. An InputError where pairs are not one
        text and then the other, in at most two segments."""
        found = encodings(tokenizer.encode_batch, [("a", "a")], True)[0]
        parts: list[list[int]] = [[], [], []]
        marks, order = [*map(str, found.sequence_ids)], 0
        own: dict[str, set[int]] = {"0": set(), "1": set()}
        for token, segment, mark in zip(found.ids, found.type_ids, marks, strict=True):
            if mark == "None":
                parts[order].append(~token if segments and segment else token)
            else:
                order = int(mark) + 1
                own[mark].add(segment)
        as_one = {*found.type_ids} <= {0, 1} and own["0"] == {0} and len(own["1"]) == 1
        texts = [mark for mark in marks if mark != "None"]
        if texts != sorted(texts) or len({*texts}) < 2 or (segments and not as_one):
            raise InputError("the tokenizer's template for pairs is not understood; expected one text, then the other")
        before, between, behind = parts
        return cls(before, between, behind, segments and 1 in own["1"])


def kept_of_pair(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each text of a pair are kept: the longer one is cut until it is as short as the other, then
    both alike, as in transformers ("longest_first")."""
    shorter, longer = sorted((first, second))
    longer = min(longer, max(shorter, room - shorter))
    if shorter + longer > room:
        shorter, longer = room // 2, room - room // 2
    return (shorter, longer) if first <= second else (longer, shorter)


class Tokenizer:
    """A tokenizer with a limit of ``max_length`` tokens a text, special tokens included.

    ``lowercase`` lowers texts before whatever the tokenizer does with them; its special tokens keep their capitals.
    ``keep_last`` cuts a text that is over the limit at its beginning instead of its end. ``segments`` says whether the
    model tells the texts of a pair apart.

    Raises:
        InputError: the limit leaves no room for a token between the special ones.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        max_length: int,
        lowercase: bool = False,
        keep_last: bool = False,
        segments: bool = False,
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.backend = tokenizer
        self.lowercase, self.keep_last, self.segments = lowercase, keep_last, segments
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
        keep_last: bool | None = None,
    ) -> Tokenized:
        """Tokenize texts; those over the limit are cut (warn, truncate), refused (error) or split (chunk).

        ``numbers`` is what an error calls each text; by default, its index. ``prompt`` goes before each text, and
        before each chunk of it; its tokens count. ``keep_last``: by default, the tokenizer's own.

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
        last = self.keep_last if keep_last is None else keep_last
        rows: list[list[int]] = []
        owners: list[int] = []
        cuts: list[int] = []
        for owner, ids in enumerate(self.ids([prompt + text for text in check_texts(texts)] if prompt else texts)):
            beyond = max(0, len(ids) - room)
            if beyond and overflow == "error":
                number = numbers[owner] if numbers else owner
                raise TooLong("text", number, len(ids) + limit - room, limit, texts[owner])
            cuts.append(0 if overflow == "chunk" else beyond)
            if beyond and overflow != "chunk":
                ids = [*cut(ids, room, last)]
            rows.append([*self.prefix, *ids[:room], *self.suffix])
            rows += [[*self.prefix, *again, *ids[i : i + step], *self.suffix] for i in range(room, len(ids), step)]
            owners += [owner] * (len(rows) - len(owners))
        return Tokenized(rows, owners, cuts)

    def pairs(
        self,
        pairs: Sequence[Pair],
        overflow: Overflow = "warn",
        max_length: int | None = None,
        numbers: Sequence[int] | None = None,
        keep_last: bool | None = None,
    ) -> Tokenized:
        """Tokenize pairs of texts, each to one row. Of one that is over the limit the longer text is cut first.

        Raises:
            InputError: something that is no pair of texts, with its index; another policy than "warn", "truncate" and
                "error"; a pair over the limit under the last; a limit that leaves no room for a token of each.
        """
        if overflow not in ("warn", "truncate", "error"):
            raise InputError(f"overflow is {overflow!r}; expected warn, truncate or error for pairs of texts")
        template = Template.of(self.backend, self.segments)
        limit = self.max_length if max_length is None else max_length
        least = len(template.before) + len(template.between) + len(template.behind) + 2
        if limit < least:
            raise InputError(f"max_length is {limit}; expected at least {least} for pairs: special tokens and two more")
        room = limit - least + 2
        rows, cuts = [], []
        last = self.keep_last if keep_last is None else keep_last
        check_pairs(pairs)
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))  # one query may stand in all of them
        known = dict(zip(texts, self.ids(texts), strict=True))
        both = ((known[one], known[other]) for one, other in pairs)
        for place, (one, other) in enumerate(both):
            kept = kept_of_pair(len(one), len(other), room)
            cuts.append(len(one) + len(other) - sum(kept))
            if cuts[-1] and overflow == "error":
                number, has = numbers[place] if numbers else place, len(one) + len(other) + limit - room
                raise TooLong("pair", number, has, limit, pairs[place][0])
            first, second = (cut(ids, n, last) for ids, n in zip((one, other), kept, strict=True))
            second = [~token for token in second] if template.second else second
            rows.append([*template.before, *first, *template.between, *second, *template.behind])
        return Tokenized(rows, [*range(len(rows))], cuts)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, whole, without special tokens."""
        check_texts(texts)
        return [encoding.ids for encoding in encodings(self.backend.encode_batch_fast, texts)]

    def unknown(self) -> list[int]:
        """The id of what stands in no vocabulary, where this one has a piece for it."""
        try:
            return [token.id for token in self.backend.model.tokenize(NOWHERE)]
        except Exception:  # itself, as tokenizers raises it where there is no such piece; of Unigram's it tells no id
            return []

    def pieces(self, texts: Sequence[str]) -> list[Pieces]:
        """The pieces of each text.

        Words are the pre-tokenizer's where the vocabulary marks what goes on with a word, as WordPiece does with ##,
        else what stands between blanks, and an unknown piece begins one too: as in transformers' token-classification
        pipeline, but that it knows no other blank than a space.
        """
        check_texts(texts)
        marked, found = bool(getattr(self.backend.model, "continuing_subword_prefix", None)), []
        unknown = [] if marked else self.unknown()
        for text, encoding in zip(texts, encodings(self.backend.encode_batch, texts), strict=True):
            if marked:
                begins = [one != other for one, other in pairwise([None, *encoding.word_ids])]
            else:
                begins = [
                    start == 0 or [i] == unknown or any(map(str.isspace, text[start - 1 : start + 1]))
                    for i, (start, _) in zip(encoding.ids, encoding.offsets, strict=True)
                ]
            found.append(Pieces(encoding.ids, encoding.offsets, begins))
        return found


def ends(tokenizer: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and behind every text; a WeightsError if it does more with a text
    than that."""
    for text in candidates(tokenizer):
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


def candidates(tokenizer: tokenizers.Tokenizer) -> Iterator[str]:
    """Texts of which a tokenizer makes a token, sooner or later; the vocabulary is asked for where "a" is none."""
    yield "a"
    yield from tokenizer.get_vocab()


def cut(ids: Sequence[int], room: int, keep_last: bool) -> Sequence[int]:
    """As many ids as there is room for: the first of them, or the last."""
    return ids[max(0, len(ids) - room) :] if keep_last else ids[:room]


def filled(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Rows in which a token stands in for each that has none, so that there is something to compute.

    A tokenizer without special tokens gives such rows; what is computed of them is nobody's.
    """
    return [[*row] or [0] for row in rows]


def several(texts: Iterable[T]) -> Iterable[T]:
    """The texts themselves, if they come one after another: a list, a tuple, an array, a column, a generator. One
    string, or what gives its parts in no order, or names instead of texts, is an InputError."""
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


def pairs_or_texts(texts: Iterable[Any]) -> tuple[bool, Iterable[Any]]:
    """Whether these are pairs of texts, as the first of them says; and all of them, pairs as tuples."""
    iterator = iter(texts)
    begin = list(islice(iterator, 1))
    if not any(isinstance(text, (tuple, list)) for text in begin):
        return False, texts if isinstance(texts, Sized) else chain(begin, iterator)
    return True, (tuple(text) if isinstance(text, list) else text for text in chain(begin, iterator))


def check_pairs(pairs: Sequence[Any], start: int = 0) -> list[Pair]:
    """As ``check_texts``, for pairs of texts, as tuples."""
    for i, pair in enumerate(pairs, start):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise InputError(f"texts[{i}] is {shown(pair)}; expected a pair of strings")
        if not all(map(is_unicode, pair)):
            raise InputError(f"texts[{i}] holds half of a surrogate pair: {shown(pair)}; expected Unicode")
    return [(one, other) for one, other in pairs]


def check_texts(texts: Sequence[str], start: int = 0) -> Sequence[str]:
    """The texts themselves; an InputError that names the index, counted from ``start``, of one that is no string of
    valid Unicode."""
    for i, text in enumerate(texts, start):
        if not isinstance(text, str):
            raise InputError(f"texts[{i}] is {type(text).__name__} ({shown(text)}); expected a string")
        if not is_unicode(text):
            raise InputError(f"texts[{i}] holds half of a surrogate pair: {shown(text)}; expected Unicode")
    return texts
