"""A sentencepiece model's file: the vocabulary that older folders have in place of tokenizer.json.

It is a protobuf (sentencepiece_model.proto of google/sentencepiece), of which these fields are read: the pieces with
their scores and kinds, the kind of model, which piece is the unknown one, and the map of characters.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from pathlib import Path

from mtl.errors import WeightsError, one_line

UNIGRAM = 1
KINDS: dict[int | bytes, str] = {2: "BPE", 3: "words", 4: "characters"}
CONTROL, USER_DEFINED = 3, 4  # kinds of pieces that are never split, the first of them special
SIZES = {1: 8, 5: 4}  # of the wire's fixed types, in bytes


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The pieces and their scores; those that are never split, and whether they are special; the unknown one's place;
    the map of characters, empty where characters stay as they are."""

    scores: list[tuple[str, float]]
    whole: dict[str, bool]
    unknown: int
    charsmap: bytes


def varint(data: bytes, at: int) -> tuple[int, int]:
    """A whole number, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128 or shift > 63:
            return value, at


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """A message's fields in order, by their numbers: whole numbers, and of all other types the bytes. What is no
    message is a ValueError or IndexError."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        value: int | bytes
        if key & 7 == 0:
            value, at = varint(data, at)
        else:
            size, at = varint(data, at) if key & 7 == 2 else (SIZES[key & 7], at)
            if at + size > len(data):
                raise ValueError("it ends within a field")
            value, at = data[at : at + size], at + size
        yield key >> 3, value


def message(data: int | bytes) -> dict[int, int | bytes]:
    """A message within another; of a field that stands twice, the last counts."""
    if not isinstance(data, bytes):
        raise ValueError("a number stands where a message should")
    return dict(fields(data))


def read(path: Path) -> Pieces:
    """A sentencepiece model's pieces; a WeightsError if it is none, is of another kind than Unigram, or falls back to
    bytes."""
    scores: list[tuple[str, float]] = []
    whole: dict[str, bool] = {}
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    try:
        for number, value in fields(path.read_bytes()):
            if number == 1:
                piece = message(value)
                text, score = bytes(piece[1]).decode(), struct.unpack("<f", bytes(piece.get(2, b"\0\0\0\0")))[0]
                scores.append((text, score))
                if piece.get(3) in (CONTROL, USER_DEFINED):
                    whole[text] = piece[3] == CONTROL
            elif number == 2:
                trainer = message(value)
            elif number == 3:
                normalizer = message(value)
        kind, unknown, charsmap = trainer.get(3, UNIGRAM), trainer.get(40, 0), normalizer.get(2, b"")
        if not scores or not isinstance(unknown, int) or not isinstance(charsmap, bytes):
            raise ValueError("it holds no pieces")
    except (OSError, ValueError, IndexError, KeyError, TypeError, struct.error) as error:
        raise WeightsError(f"{path} cannot be read as a sentencepiece model: {one_line(error)}") from None
    if kind != UNIGRAM or trainer.get(35):
        what = "falls back to bytes" if kind == UNIGRAM else f"is of {KINDS.get(kind, 'another kind')}"
        raise WeightsError(f"{path} {what}; expected a Unigram model: transformers' AutoTokenizer makes tokenizer.json "
                           "of it, with save_pretrained(folder)")  # fmt: skip
    return Pieces(scores, whole, unknown, charsmap)
