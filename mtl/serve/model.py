"""A model as the server sees it: rows of ids from texts, values of rows by program, and what the values say.

All that the server knows of encoders, tokenizers and tasks is in this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mtl.checkpoints.card import public_name as named_by
from mtl.checkpoints.encodings import encodings
from mtl.encode.batching import in_order
from mtl.encode.engine import Engine
from mtl.encode.precision import Precision
from mtl.encode.sentence_encoder import QUERY, SentenceEncoder
from mtl.encode.tokenizer import Pair, Tokenized, TooLong, check_texts, cut, filled
from mtl.errors import InputError, WeightsError, shown
from mtl.kernels.int8 import LEAST_COSINE
from mtl.kernels.linear import has_packed, release
from mtl.kernels.threads import computing_with
from mtl.kernels.vectors import Vectors
from mtl.model.packing import PackedBatch
from mtl.serve.contracts import PAIR
from mtl.serve.queue import Row
from mtl.tasks.kinds.base import Kind
from mtl.tasks.multitask import MultiTaskModel, with_heads
from mtl.tasks.spans import in_units

VECTORS, HEADS, TOKENS, PAIRS = "vectors", "heads", "tokens", "pairs"  # the programs
NOT_FINITE = (
    "has a value that is not finite; compute in fp32, and if that gives the same, look for damage in the weights"
)

Side = Literal["right", "left"]
Vector = NDArray[np.float32]


def public_name(model: str) -> str:
    """What a model is called in an answer: its name, or of a folder the last part that says something."""
    if not Path(model).exists():
        return model.partition("@")[0]
    return named_by(Path(model))


def own(model: nn.Module) -> None:
    """Have a model on the CPU read its mapped file no more once its program is made, so that the file may be written
    over while it is served. Of weights, a program has linear layers' laid out anew; others are copied."""
    anew = has_packed()
    for part in model.modules():
        for name, x in part.named_parameters(recurse=False):
            if x.device.type == "cpu" and not (anew and isinstance(part, nn.Linear) and name == "weight"):
                copied = x.data.clone()
                release([x.data])
                x.data = copied


class Served:
    """A model with its engines. Texts' values have the bits that `mtl embed` and `mtl predict` give them."""

    def __init__(self, model: SentenceEncoder | MultiTaskModel, name: str, threads: int | None = None) -> None:
        self.name = name.encode(errors="replace").decode()  # a folder may be called what JSON cannot hold
        self.heads = model if isinstance(model, MultiTaskModel) and (model.text_heads or model.taggers()) else None
        self.judge = model if isinstance(model, MultiTaskModel) and model.pair_heads else None
        self.encoder = model.embedder if isinstance(model, MultiTaskModel) else model
        self.tokenizer = self.encoder.tokenizer
        self.vocabulary, self.dim = self.tokenizer.vocab_size, self.encoder.dim
        self.engine = Engine(self.encoder.program(), self.encoder.device, threads=threads)
        self.programs: dict[str, Callable[[Sequence[Sequence[int]]], Iterable[Any]]] = {
            VECTORS: self.vectors,
            TOKENS: self.hidden,
        }
        if self.heads:
            self.programs[HEADS] = self.all_heads
            self.heads_engine = Engine(self.heads.side_by_side(), self.encoder.device, threads=threads)
        if self.judge:
            self.programs[PAIRS] = self.pairs
            self.pairs_engine = Engine(self.judge.side_by_side(pairs=True), self.encoder.device, threads=threads)
        for program in self.programs:  # what the first call makes is there before the first request
            self.compute(program, [tuple(row) for row in self.tokenize(["a", "a b"], truncate=True).rows])

    @classmethod
    def load(
        cls,
        model: str,
        name: str | None = None,
        device: str = "cpu",
        precision: Precision = "fp32",
        threads: int | None = None,
        int8_least_cosine: float = LEAST_COSINE,
    ) -> Served:
        """A model by name, hub id or folder, with its heads where it has some.

        Raises:
            ConfigError, WeightsError, InputError: as ``from_pretrained``.
        """
        loaded = with_heads(model, device, precision, int8_least_cosine)
        own(loaded)
        return cls(loaded, name or public_name(model), threads)

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks that have a head for texts."""
        return self.heads.text_heads if self.heads else []

    @property
    def judges(self) -> list[str]:
        """The names of the tasks that read a pair of texts."""
        return self.judge.pair_heads if self.judge else []

    @property
    def pair_names(self) -> list[Pair]:
        """What the two texts of a pair may be called: as transformers' pipelines have it, and as the tasks do."""
        fields = [self.judge.tasks[name].text_field[:2] for name in self.judges] if self.judge else []
        names = [PAIR, *((each[0], each[1]) for each in fields if len(each) > 1)]
        return [pair for pair in dict.fromkeys(names) if pair[::-1] not in names]  # else which is the first is a guess

    @property
    def taggers(self) -> dict[str, Kind]:
        """The tasks that find spans."""
        return self.heads.taggers() if self.heads else {}

    @property
    def limit(self) -> int:
        """Tokens of a text, special ones included."""
        return self.tokenizer.max_length

    @property
    def turn_tokens(self) -> int:
        """Tokens of a turn: a full batch for each thread."""
        return self.engine.batch_tokens * (self.engine.threads if self.engine.on_cpu else 1)

    def about(self) -> dict[str, Any]:
        """What the model is."""
        model = self.heads or self.judge
        tasks = {
            name: {
                "kind": task.kind,
                "labels": list(task.labels),
                **task.handler.about(),
                **({"pairs": True} if name in self.judges else {}),
            }
            for name, task in (model.tasks if model else {}).items()
            if name in self.tasks or name in self.taggers or name in self.judges
        }
        return {
            "precision": self.encoder.precision,
            "pooling": "+".join(self.encoder.pooling.modes),
            "dimensions": self.dim,
            "max_length": self.limit,
            "prompts": dict(self.encoder.prompts),
            "default_prompt": self.encoder.default_prompt,
            "tasks": tasks,
        }

    # Texts to rows

    def prompt(self, name: str | None = None, query: bool = False) -> str:
        """The text of a prompt: by default the model's own, or for a ``query`` that of ``encode_query``.

        Raises:
            InputError: no such prompt.
        """
        if query and name is None:
            return self.encoder.prompted(QUERY, {})["prompt"] or ""
        return self.encoder.prompt_for(None, name)

    def tokenize(
        self, texts: Sequence[str], prompt: str = "", truncate: bool = False, side: Side | None = None
    ) -> Tokenized:
        """The rows of texts, the prompt before each; those over the limit are cut, where that is asked for, on one
        side: by default the model's own.

        Raises:
            InputError: a text that is no Unicode.
            TooLong: a text is over the limit.
        """
        keep_last = None if side is None else side == "left"
        return self.tokenizer(texts, "truncate" if truncate else "error", prompt=prompt, keep_last=keep_last)

    def tokenize_pairs(self, pairs: Sequence[Pair], truncate: bool = False, side: Side | None = None) -> Tokenized:
        """The rows of pairs of texts, a row for each; see ``tokenize``."""
        keep_last = None if side is None else side == "left"
        return self.tokenizer.pairs(pairs, "truncate" if truncate else "error", keep_last=keep_last)

    def check_ids(self, rows: Sequence[list[int]], truncate: bool = False, side: Side | None = None) -> Tokenized:
        """Rows that came as ids, special ones included as the client put them.

        Raises:
            InputError: an id that the vocabulary has not.
            TooLong: a row is over the limit.
        """
        keep_last = self.tokenizer.keep_last if side is None else side == "left"
        for i, row in enumerate(rows):
            if unknown := [token for token in row if not 0 <= token < self.vocabulary]:
                wanted = f"expected ids of this model's own tokenizer, 0 to {self.vocabulary - 1}; send texts instead"
                raise InputError(f"token id {unknown[0]} is unknown; {wanted}")
            if len(row) > self.limit and not truncate:
                raise TooLong("row of ids", i, len(row), self.limit, str(row[:9]))
        found = [[*cut(row, self.limit, keep_last)] for row in rows]
        return Tokenized(found, [*range(len(rows))], [max(0, len(row) - self.limit) for row in rows])

    def pieces(self, text: str, special: bool = True, prompt: str = "") -> list[dict[str, Any]]:
        """A text's tokens, each with its id, the characters that it stands for, and where these start and stop."""
        (text,) = check_texts([prompt + text])
        found = encodings(self.tokenizer.backend.encode_batch, [text])[0]
        spans = [
            {"id": token, "text": text[start:stop], "special": False, "start": start, "stop": stop}
            for token, (start, stop) in zip(found.ids, found.offsets, strict=True)
        ]
        ends = (self.tokenizer.prefix, self.tokenizer.suffix) if special else ((), ())
        before, after = ([self.special(token) for token in tokens] for tokens in ends)
        return [*before, *spans, *after]

    def special(self, token: int) -> dict[str, Any]:
        name = self.tokenizer.backend.id_to_token(token)
        return {"id": token, "text": name, "special": True, "start": None, "stop": None}

    def decode(self, ids: list[int], skip_special: bool = True) -> str:
        """The text that ids stand for."""
        self.check_ids([ids], truncate=True)
        return self.tokenizer.backend.decode(ids, skip_special_tokens=skip_special)

    # Rows to values; these run in the queue's thread

    def compute(self, program: str, rows: Sequence[Row]) -> Sequence[Any]:
        """A value for each row; an exception for one that is not finite. A row without tokens has a vector of zeros,
        as everywhere, and no hidden state."""
        values = self.programs[program](filled(rows))
        if not all(rows):
            nothing = (lambda value: value[:0]) if program == TOKENS else np.zeros_like
            values = [value if row else nothing(value) for row, value in zip(rows, values, strict=True)]
        return [value if np.isfinite(value).all() else WeightsError(f"a text {NOT_FINITE}") for value in values]

    def vectors(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """The embeddings, (rows, dim)."""
        return self.engine.run(rows).cpu().numpy()

    def all_heads(self, rows: Sequence[Sequence[int]]) -> list[Vector]:
        """From one pass, of each row its embedding and all heads' logits, and behind them those of each token."""
        order, parts = self.heads_engine.computed(rows)
        texts, tokens = zip(*parts, strict=True)
        found = [*in_order(texts, order).cpu().numpy()]
        if not self.taggers:
            return found
        lengths = [*map(len, rows)]
        of_tokens = in_order(tokens, order, lengths).cpu().split(lengths)
        return [np.concatenate([x, own.flatten().numpy()]) for x, own in zip(found, of_tokens, strict=True)]

    def pairs(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """The logits of all tasks that read pairs, side by side, (pairs, outputs)."""
        order, parts = self.pairs_engine.computed(rows)
        return in_order([texts for texts, _ in parts], order).cpu().numpy()

    def hidden(self, rows: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """The last hidden states of each row, (tokens, dim)."""
        program = self.engine.model  # as it was made; to look whether it is still right would read the model's file
        encoder = program.encoder if isinstance(program, Vectors) else self.encoder.encoder
        with torch.inference_mode(), computing_with(self.engine.threads):
            batches = (PackedBatch.pack([row]).to(self.encoder.device) for row in rows)
            return [encoder(batch).float().cpu().numpy() for batch in batches]

    # What values say

    def finished(self, values: Sequence[Vector], normalize: bool, dimensions: int | None) -> Vector:
        """Vectors (texts, dim), cut to their first dimensions and then scaled to length 1, as asked for."""
        vectors = torch.from_numpy(np.stack(values))[:, : dimensions or self.dim]
        return (F.normalize(vectors, dim=-1) if normalize else vectors).contiguous().numpy()

    def split(self, values: Sequence[Vector]) -> tuple[Vector, dict[str, Tensor]]:
        """Embeddings and each task's logits, of what ``all_heads`` gave."""
        assert self.heads
        of_texts = np.stack([value[: sum(self.heads.widths())] for value in values])
        embeddings, logits = self.heads.columns(torch.from_numpy(of_texts))
        return embeddings.contiguous().numpy(), logits

    def spans(self, texts: Sequence[str], values: Sequence[Vector], prompt: str) -> list[dict[str, Any]]:
        """What the taggers find in each text, by task; the prompt stood before each, and none was cut."""
        assert self.heads
        taggers, start = self.taggers, sum(self.heads.widths())
        units = in_units(self.tokenizer, texts, self.limit, prompt)
        outputs = sum(handler.outputs for handler in taggers.values())
        words = self.heads.words(units, [torch.from_numpy(value[start:].reshape(-1, outputs)) for value in values])
        return [
            {name: {"spans": handler.spans(unit, words[name][i])} for name, handler in taggers.items()}
            for i, unit in enumerate(units)
        ]

    def of_pairs(self, values: Sequence[Vector]) -> dict[str, Tensor]:
        """The logits of each task that reads pairs, of what ``pairs`` gave."""
        assert self.judge
        return self.judge.columns(torch.from_numpy(np.stack(values)), pairs=True)[1]

    def said(self, logits: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """What the tasks say of each text: by task its label, and scores and logits by label."""
        model = self.heads or self.judge
        assert model
        tasks: dict[str, list[dict[str, Any]]] = {}
        for name, x in logits.items():
            kind = model.head_kind(name)
            scores = kind.scores(x)
            answers = zip(kind.words(scores), scores.numpy(), x.contiguous().numpy(), strict=True)
            tasks[name] = [
                {"label": label, "scores": dict(zip(kind.columns, row, strict=True)), "logits": numbers}
                for label, row, numbers in answers
            ]
        return [dict(zip(tasks, rows, strict=True)) for rows in zip(*tasks.values(), strict=True)]

    def task(self, name: str | None, pairs: bool = False) -> str:
        """The one task that a question about one task is for, of texts or of pairs.

        Raises:
            InputError: it is unknown; or it is not named, and there are several.
        """
        names = self.judges if pairs else self.tasks
        if not names and name is None:
            name = next(iter(self.taggers), None)
        if name is None and len(names) != 1:
            raise InputError(
                f'the model has the tasks {", ".join(names)}; name one as "task", or ask /v1/predict for all'
            )
        if name in self.taggers:
            raise InputError(f"the task {name!r} finds spans; ask /v1/predict")
        if name is not None and name not in names:
            raise InputError(f"task is {shown(name)}; expected one of {', '.join(names)}")
        return name or names[0]
