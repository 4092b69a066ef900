"""What a tokenizer makes of texts, or one line where it fails; without torch, so that a command's help is quick."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import Encoding

from mtl.errors import WeightsError, one_line


def encodings(encode: Callable[..., list[Encoding]], texts: Sequence[Any], special: bool = False) -> list[Encoding]:
    """What a tokenizer makes of texts, with special tokens around each or without; a WeightsError where its vocabulary
    lacks the token for what it does not know."""
    try:
        return encode(list(texts), add_special_tokens=special)
    except BaseException as error:  # tokenizers raises Exception itself, or where it panics what is none
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise WeightsError(f"the tokenizer fails at a text ({one_line(error)}); look for damage in its files") from None
