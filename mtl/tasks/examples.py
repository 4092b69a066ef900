"""A task's data as training takes them: token ids and targets."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from mtl.encode.sentence_encoder import SentenceEncoder
from mtl.encode.windows import cuts_in_words
from mtl.errors import RecipeError


@dataclasses.dataclass(frozen=True)
class Examples:
    """Texts as token ids, special tokens included, and their targets (see mtl/model/losses.py for the shapes).

    An example has ``width`` texts, which are neighbours in ``rows``.
    """

    rows: list[list[int]]
    targets: Tensor
    width: int = 1

    def __len__(self) -> int:
        return len(self.rows) // self.width

    @property
    def measured_rows(self) -> int:
        """How many rows metrics are about."""
        return len(self)

    def tokens(self, example: int) -> int:
        """How many tokens an example has."""
        return sum(map(len, self.rows[example * self.width : (example + 1) * self.width]))

    def text_indices(self, examples: Sequence[int]) -> list[int]:
        """The indices in ``rows`` of the texts of some examples."""
        return [example * self.width + i for example in examples for i in range(self.width)]

    def take(self, examples: Sequence[int]) -> Examples:
        """Some of the examples, in the order given."""
        rows = [self.rows[i] for i in self.text_indices(examples)]
        return Examples(rows, self.targets[list(examples)], self.width)

    @property
    def fingerprint(self) -> str:
        """A hash of all rows and targets: equal data, equal fingerprint."""
        digest = hashlib.sha256(repr(self.rows).encode())
        digest.update(self.targets.numpy().tobytes())
        return digest.hexdigest()[:16]


@dataclasses.dataclass
class Split:
    """A split that is being read: "train", "dev" or "test", and what its texts are tokenized with.

    folder: Where a recipe's relative paths start.
    seed: What is drawn of the data is drawn from it.
    cut: What was cut of the texts so far, in words; "" where nothing was.
    """

    name: str
    folder: Path
    embedder: SentenceEncoder
    max_length: int | None = None
    seed: int = 0
    cut: str = ""

    def tokenize(self, texts: Sequence[str], pairs: bool = False) -> list[list[int]]:
        """The token ids of each text, special tokens and the model's default prompt included; or of each pair of
        neighbours in one row, without a prompt."""
        limit, tokenizer = self.embedder.length_limit(self.max_length), self.embedder.tokenizer
        if pairs:
            found = tokenizer.pairs(list(zip(texts[::2], texts[1::2], strict=True)), "truncate", limit)
        else:
            found = tokenizer(texts, "truncate", limit, prompt=self.embedder.default_prompt)
        self.check_rows(found.rows)
        if found.cut_texts:
            self.cut = cuts_in_words(found.cut_texts, found.cut_tokens, limit, "pair" if pairs else "text")
        return found.rows

    def check_rows(self, rows: Sequence[Sequence[int]]) -> None:
        """Raise a RecipeError that names the first text without a token."""
        if not all(rows):
            number = next(i for i, row in enumerate(rows, 1) if not row)
            raise RecipeError(f"text {number} of {self.name} has no tokens; expected one or more")
