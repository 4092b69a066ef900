"""The options of encode, which stand here once: for an editor, for mypy, and for those who pass them on."""

from __future__ import annotations

from typing import TypedDict

from mtl.encode.tokenizer import Overflow


class EncodeOptions(TypedDict, total=False):
    """What every method that embeds texts takes; ``SentenceEncoder.encode`` says what each does."""

    normalize: bool
    truncate_dim: int | None
    prompt: str | None
    prompt_name: str | None
    overflow: Overflow
    max_length: int | None
    batch_tokens: int | None
    threads: int | None
    progress: bool | None


DEFAULTS: EncodeOptions = {"normalize": False, "overflow": "warn"}  # of the others, None
OPTIONS = tuple(EncodeOptions.__annotations__)
