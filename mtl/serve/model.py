"""A model as the server sees it: rows of ids from texts, values of rows by program, and what the values say.

All that the server knows of encoders, tokenizers and tasks is in this file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mtl.checkpoints.card import public_name as named_by
from mtl.checkpoints.encodings import encodings
from mtl.encode.batching import in_order
from mtl.encode.engine import Engine
from mtl.encode.precision import Precision
from mtl.encode.sentence_encoder import QUERY, SentenceEncoder
from mtl.encode.tokenizer import Pair, check_texts, cut, filled
from mtl.errors import InputError, WeightsError, shown
from mtl.kernels.int8 import LEAST_COSINE
from mtl.kernels.threads import computing_with
from mtl.kernels.vectors import Vectors
from mtl.model.packing import PackedBatch
from mtl.serve.contracts import PAIR
from mtl.serve.queue import Row
from mtl.tasks.kinds.tokens import Tokens as Tagger
from mtl.tasks.multitask import MultiTaskModel, with_heads
from mtl.tasks.spans import in_units

VECTORS, HEADS, TOKENS, PAIRS = "vectors", "heads", "tokens", "pairs"  # the programs
NOT_FINITE = (
    "has a value that is not finite; compute in fp32, and if that gives the same, look for damage in the weights"
)

Side = Literal["right", "left"]
Vector = NDArray[np.float32]


class TooLong(InputError):
    """Text number ``text`` of a request has ``tokens`` tokens, more than the model takes."""

    def __init__(self, text: int, tokens: int) -> None:
        super().__init__(f"text {text} has {tokens} tokens")
        self.text, self.tokens = text, tokens


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Rows of ids, special ones included, and how many of the texts were cut."""

    rows: list[Row]
    cut: int


def public_name(model: str) -> str:
    """What a model is called in an answer: its name, or of a folder the last part that says something."""
    if not Path(model).exists():
        return model.partition("@")[0]
    return named_by(Path(model))


class Served:
    """A model with its engines. Texts' values have the bits that `mtl embed` and `mtl predict` give them."""

    def __init__(self, model: SentenceEncoder | MultiTaskModel, name: str, threads: int | None = None) -> None:
        self.name = name
        tagger = isinstance(model, MultiTaskModel) and any(isinstance(t.handler, Tagger) for t in model.tasks.values())
        self.heads = model if isinstance(model, MultiTaskModel) and (model.text_heads or tagger) else None
        self.judge = model if isinstance(model, MultiTaskModel) and model.pair_heads else None
        self.encoder = model.embedder if isinstance(model, MultiTaskModel) else model
        self.tokenizer = self.encoder.tokenizer
        self.vocabulary = self.tokenizer.vocab_size
        self.engine = Engine(self.encoder.program(), self.encoder.device, threads=threads)
        self.programs: dict[str, Callable[[Sequence[Sequence[int]]], Iterable[Any]]] = {
            VECTORS: self.vectors,
            TOKENS: self.hidden,
        }
        if self.heads:
            self.programs[HEADS] = self.all_heads
            together = side_by_side(self.heads.program(), self.tasks, [*self.taggers])
            self.heads_engine = Engine(together, self.encoder.device, threads=threads)
        if self.judge:
            self.programs[PAIRS] = self.pairs
            judged = side_by_side(self.judge.program(), self.judges, [])
            self.pairs_engine = Engine(judged, self.encoder.device, threads=threads)
        for program in self.programs:  # what the first call makes is there before the first request
            self.compute(program, self.tokenize(["a", "a b"]).rows)

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
        return cls(with_heads(model, device, precision, int8_least_cosine), name or public_name(model), threads)

    @property
    def dim(self) -> int:
        return self.encoder.dim

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
    def taggers(self) -> dict[str, Tagger]:
        """The tasks that find spans."""
        known = self.heads.tasks.items() if self.heads else ()
        return {name: task.handler for name, task in known if isinstance(task.handler, Tagger)}

    @property
    def limit(self) -> int:
        """Tokens of a text, special ones included."""
        return self.tokenizer.max_length

    @property
    def side(self) -> Side:
        """Where texts over the limit are cut, unless a request says otherwise."""
        return "left" if self.tokenizer.keep_last else "right"

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

    def tokenize(
        self, texts: Sequence[str], prompt_name: str | None = None, truncate: bool = False, side: Side | None = None,
        query: bool = False,
    ) -> Tokens:  # fmt: skip
        """The rows of texts, the prompt before each; those over the limit are cut, where that is asked for, on one
        side: by default the model's own.

        ``query``: the prompt is that of ``encode_query``.

        Raises:
            InputError: no such prompt, or a text that is no Unicode.
            TooLong: a text is over the limit.
        """
        prompt = self.encoder.prompt_for(None, prompt_name)
        prompt = self.encoder.prompted(QUERY, {})["prompt"] or "" if query else prompt
        prefix, suffix = self.tokenizer.prefix, self.tokenizer.suffix
        room = self.limit - len(prefix) - len(suffix)
        rows, shorter = [], 0
        for i, ids in enumerate(self.tokenizer.ids([prompt + text for text in check_texts(texts)])):
            if len(ids) > room:
                if not truncate:
                    raise TooLong(i, len(ids) + self.limit - room)
                ids, shorter = [*cut(ids, room, (side or self.side) == "left")], shorter + 1
            rows.append((*prefix, *ids, *suffix))
        return Tokens(rows, shorter)

    def tokenize_pairs(self, pairs: Sequence[Pair], truncate: bool = False, side: Side | None = None) -> Tokens:
        """The rows of pairs of texts, a row for each; see ``tokenize``."""
        found = self.tokenizer.pairs(pairs, "truncate", keep_last=(side or self.side) == "left")
        if found.cut_texts and not truncate:
            i = next(i for i, cut in enumerate(found.cuts) if cut)
            raise TooLong(i, len(found.rows[i]) + found.cuts[i])
        return Tokens([*map(tuple, found.rows)], found.cut_texts)

    def check_ids(self, rows: Sequence[Sequence[int]], truncate: bool = False, side: Side | None = None) -> Tokens:
        """Rows that came as ids, special ones included as the client put them.

        Raises:
            InputError: an id that the vocabulary has not.
            TooLong: a row is over the limit.
        """
        found, shorter = [], 0
        for i, row in enumerate(rows):
            for token in row:
                if not 0 <= token < self.vocabulary:
                    wanted = (
                        f"expected ids of this model's own tokenizer, 0 to {self.vocabulary - 1}; send texts instead"
                    )
                    raise InputError(f"token id {token} is unknown; {wanted}")
            if len(row) > self.limit:
                if not truncate:
                    raise TooLong(i, len(row))
                row, shorter = cut(row, self.limit, (side or self.side) == "left"), shorter + 1
            found.append(tuple(row))
        return Tokens(found, shorter)

    def pieces(self, text: str, special: bool = True, prompt_name: str | None = None) -> list[dict[str, Any]]:
        """A text's tokens, each with its id, the characters that it stands for, and where these start and stop."""
        text = self.encoder.prompt_for(None, prompt_name) + text
        check_texts([text])
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

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text that ids stand for."""
        self.check_ids([ids], truncate=True)
        return self.tokenizer.backend.decode(list(ids), skip_special_tokens=skip_special)

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
        found = in_order([texts for texts, _ in parts], order).cpu().numpy()
        return found[:, self.encoder.width :]

    def hidden(self, rows: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """The last hidden states of each row, (tokens, dim)."""
        program = self.encoder.program()
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
        widths = [self.encoder.width, *(self.heads.outputs(name) for name in self.tasks)]
        of_texts = np.stack([value[: sum(widths)] for value in values])
        embeddings, *columns = torch.from_numpy(of_texts).split(widths, dim=1)
        return embeddings[:, : self.dim].contiguous().numpy(), dict(zip(self.tasks, columns, strict=True))

    def spans(self, texts: Sequence[str], values: Sequence[Vector]) -> list[dict[str, Any]]:
        """What the taggers find in each text, by task; none of the texts was cut."""
        assert self.heads
        outputs = [handler.outputs for handler in self.taggers.values()]
        units = in_units(self.tokenizer, texts, self.limit, self.encoder.default_prompt)
        start = self.encoder.width + sum(self.heads.outputs(name) for name in self.tasks)
        tokens = torch.from_numpy(np.concatenate([value[start:].reshape(-1, sum(outputs)) for value in values]))
        columns = zip(self.taggers.items(), tokens.split(outputs, dim=1), strict=True)
        found = {
            name: [{"spans": handler.spans(*each)} for each in zip(units, handler.logits(x, units), strict=True)]
            for (name, handler), x in columns
        }
        return [dict(zip(found, each, strict=True)) for each in zip(*found.values(), strict=True)]

    def of_pairs(self, values: Sequence[Vector]) -> dict[str, Tensor]:
        """The logits of each task that reads pairs, of what ``pairs`` gave."""
        assert self.judge
        columns = torch.from_numpy(np.stack(values)).split([*map(self.judge.outputs, self.judges)], dim=1)
        return dict(zip(self.judges, columns, strict=True))

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


def side_by_side(
    program: Callable[[PackedBatch], Any], names: Sequence[str], taggers: Sequence[str]
) -> Callable[[PackedBatch], tuple[Tensor, Tensor]]:
    """Embeddings and the logits of these tasks in one matrix, and those of taggers, of each token, in another."""

    def outputs(batch: PackedBatch) -> tuple[Tensor, Tensor]:
        embeddings, logits = program(batch)
        of_tokens = [logits[name] for name in taggers] or [embeddings[:0]]
        return torch.cat([embeddings, *(logits[name] for name in names)], dim=1), torch.cat(of_tokens, dim=1)

    return outputs
