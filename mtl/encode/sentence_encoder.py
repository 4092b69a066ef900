"""SentenceEncoder: texts in, one vector per text out."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, Unpack, cast, get_args, overload

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mtl import search
from mtl.checkpoints import load
from mtl.checkpoints import save as export
from mtl.checkpoints.families.family import TYPES
from mtl.checkpoints.fetch import fetch
from mtl.checkpoints.publish import PushOptions, push_saved
from mtl.encode.compat import THEIRS, accepts_their_keywords
from mtl.encode.engine import Engine, usable
from mtl.encode.options import DEFAULTS, EncodeOptions
from mtl.encode.precision import Precision, calibration_rows, check_place, effective
from mtl.encode.tokenizer import Tokenizer, filled, several
from mtl.encode.windows import Block, in_blocks, tokenized_windows, warn_of_cuts, with_bar
from mtl.errors import ConfigError, InputError, WeightsError, check_counts, check_flags, shown
from mtl.kernels.compile import FORMATS, Plain, check_saveable, compile, overridden
from mtl.kernels.gate import gated
from mtl.kernels.int8 import LEAST_COSINE, Quality
from mtl.kernels.vectors import Vectors
from mtl.kernels.watched import SAMPLES, SAMPLES_MAPPED, Compiled
from mtl.model.interface import Encoder
from mtl.model.packing import PackedBatch
from mtl.model.pooling import After, Dense, Normalize, Pooling
from mtl.search import Similarity
from mtl.search import Vectors as Embeddings

R = TypeVar("R")
Texts = str | Iterable[str]
Array = NDArray[np.float32]

log = logging.getLogger("mtl")

CHUNK = "; with overflow 'chunk' texts are embedded whole"
WINDOW = 8192  # texts that are tokenized, sorted and held at once
QUERY, DOCUMENT = ("query",), ("document", "passage", "corpus")  # what prompts are called, as sentence-transformers


def check_prompts(prompts: object) -> None:
    """Raise an InputError if this is no mapping of names to prompts."""
    if not isinstance(prompts, Mapping) or not all(isinstance(text, str) for pair in prompts.items() for text in pair):
        raise InputError(
            f"prompts is {shown(prompts)}; expected a dict of names and prompts, as {{'query': 'query: '}}"
        )


def check_default_prompt(prompt: object) -> None:
    """Raise an InputError if this is no text."""
    if not isinstance(prompt, str):
        raise InputError(f'default_prompt is {shown(prompt)}; expected a string, "" for none')


def check_truncate_dim(dim: Any) -> None:
    """Raise an InputError if this is no number of dimensions, or None for all."""
    check_counts(truncate_dim=dim)


# What is asked of attributes when they are set
CHECKS: dict[str, Callable[[Any], None]] = {
    "prompts": check_prompts,
    "default_prompt": check_default_prompt,
    "similarity_fn_name": partial(search.check_known, name="similarity_fn_name"),
    "truncate_dim": check_truncate_dim,
}


class SentenceEncoder(nn.Module):
    """An encoder, its tokenizer, a pooling, and the layers after it.

    ``prompts`` are the prompts that the checkpoint names; ``default_prompt`` goes before every text unless
    the caller gives another.
    """

    def __new__(cls, *parts: Any, **named: Any) -> Self:
        name = parts[0] if parts else named.get("model_name_or_path")
        if isinstance(name, (str, Path)):
            raise InputError(f"a pretrained model is loaded with {cls.__name__}.from_pretrained({str(name)!r})")
        return super().__new__(cls)

    def __init__(
        self,
        encoder: Encoder,
        tokenizer: Tokenizer,
        pooling: Pooling,
        after: Sequence[nn.Module] = (),
        prompts: Mapping[str, str] | None = None,
        default_prompt: str = "",
        similarity_fn_name: Similarity = "cosine",
        truncate_dim: int | None = None,
        origin: load.Origin | None = None,
    ) -> None:
        super().__init__()
        try:
            CHECKS["similarity_fn_name"](similarity_fn_name)
        except InputError as error:
            raise ConfigError(str(error)) from None
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.after = nn.Sequential(*after)
        self.prompts = dict(prompts or {})
        self.default_prompt = default_prompt
        self.similarity_fn_name = similarity_fn_name
        self.truncate_dim = truncate_dim
        self.origin = origin or load.Origin()
        self.precision: Precision = "fp32"
        self.int8_least_cosine = LEAST_COSINE
        self.mapped = False  # whether the weights are a file's, mapped into memory
        self.compiled: Compiled[Vectors | Plain] = Compiled()
        self.check_vocabulary()

    @classmethod
    @accepts_their_keywords
    def from_pretrained(
        cls,
        name: str | Path,
        revision: str | None = None,
        device: str | torch.device = "cpu",
        precision: Precision = "fp32",
        int8_least_cosine: float = LEAST_COSINE,
    ) -> SentenceEncoder:
        """A pretrained model by name (see `mtl models`), hub id or local folder, in eval mode.

        ``precision`` is what the encoder computes in: "fp32", "bf16", "fp16" (for a GPU), "int8" (for a CPU), or
        "auto", which is bf16 where it is native, else fp32. Weights stay in float32, and vectors come in it. Where int8
        brings some vector of a sample farther from that of fp32 than a cosine of ``int8_least_cosine``, the first use
        says so by an InputError; ``quality`` has what was measured.

        Raises:
            ConfigError, WeightsError: it cannot be found, is not what it should be, or is no model of ours.
            InputError: an unknown precision, or one that the device has not.
        """
        place = usable(device)
        chosen = effective(precision, place, int8_least_cosine)
        checkpoint = load.load(folder := fetch(str(name), revision))
        if checkpoint.classifier and not checkpoint.tasks:
            log.warning("%s: left out, beside the encoder: its classifier", folder)
        return cls.from_checkpoint(checkpoint).to(place).computes(chosen, place, int8_least_cosine)

    @classmethod
    def from_checkpoint(cls, checkpoint: load.Checkpoint) -> SentenceEncoder:
        """The model that a folder's content describes, of the very modules that it holds, in eval mode."""
        model = cls(
            checkpoint.encoder,
            Tokenizer(
                checkpoint.tokenizer,
                checkpoint.max_length,
                checkpoint.lowercase,
                checkpoint.truncate_left,
                checkpoint.segments,
            ),
            Pooling(*checkpoint.pooling),
            checkpoint.after,
            checkpoint.prompts,
            checkpoint.default_prompt,
            cast(Similarity, checkpoint.similarity_fn_name),  # it is checked where it is used
            checkpoint.truncate_dim,
            checkpoint.origin,
        )
        return model.eval()

    def computes(self, precision: Precision, place: torch.device, int8_least_cosine: float = LEAST_COSINE) -> Self:
        """The model itself, which computes from now on in this precision, with a file's weights."""
        self.precision, self.int8_least_cosine, self.mapped = precision, int8_least_cosine, place.type == "cpu"
        return self

    def to_checkpoint(self) -> load.Checkpoint:
        """All that a folder says of this model; the modules are the model's own.

        Raises:
            WeightsError: a module is none that a folder can describe, or holds an adapter, a wrapper or the like.
        """
        check_saveable(self.encoder)
        check_saveable(self.pooling)
        return load.Checkpoint(
            encoder=self.encoder,
            tokenizer=self.tokenizer.backend,
            max_length=self.tokenizer.max_length,
            lowercase=self.tokenizer.lowercase,
            pooling=self.pooling.modes,
            after=tuple(map(saveable, self.after)),
            prompts=self.prompts,
            default_prompt=self.default_prompt,
            similarity_fn_name=self.similarity_fn_name,
            truncate_dim=self.truncate_dim,
            truncate_left=self.tokenizer.keep_last,
            segments=self.tokenizer.segments,
            origin=self.origin,
        )

    def read_pairs(self) -> None:
        """Have the encoder tell the texts of a pair apart, where its checkpoint did and its tokenizer says them."""
        types = self.origin.types
        if types is not None and self.encoder.config.segments == 1:
            self.encoder.tell_segments_apart(types)
        self.tokenizer.segments = self.tokenizer.segments and self.encoder.config.segments > 1

    def save(self, folder: str | Path) -> None:
        """Write a folder that ``from_pretrained``, transformers and sentence-transformers load.

        Raises:
            WeightsError: the folder is not empty or cannot be written.
        """
        export.save(self.to_checkpoint(), Path(folder))

    def push_to_hub(self, repo_id: str, *, onnx: bool = False, **options: Unpack[PushOptions]) -> str:
        """Commit what ``save`` writes to a repository of the hub, ``owner/name``; gives the address of the commit.

        ``private``: nobody else sees it. ``create_pr`` proposes it in a pull request, ``revision`` names a branch,
        ``commit_message`` what was done. ``token`` is by default that of ``hf auth login`` or of HF_TOKEN. With
        ``onnx``, ONNX graphs go there too, as ``export_onnx`` writes them.

        Raises:
            InputError: the name or the token cannot be one; or what ONNX needs is not installed.
            WeightsError: the hub does not take it; or a graph gives other values than the model.
        """
        return push_saved(self.save, repo_id, options, onnx)

    def check_vocabulary(self) -> None:
        """That the encoder has a row for each token.

        Raises:
            WeightsError: it has fewer.
        """
        if self.tokenizer.vocab_size > self.encoder.config.vocab_size:
            raise WeightsError(
                f"the tokenizer gives ids up to {self.tokenizer.vocab_size - 1}, but the encoder's vocabulary has "
                f"{self.encoder.config.vocab_size} rows; expected a tokenizer and weights that belong together"
            )

    @property
    def dim(self) -> int:
        """The number of dimensions of a vector that ``encode`` gives."""
        return min(self.width, self.truncate_dim or self.width)

    @property
    def width(self) -> int:
        """The number of dimensions that the model computes, before it keeps the first ``truncate_dim`` of them."""
        if any(type(part) not in (Pooling, *get_args(After)) for part in (self.pooling, *self.after)):
            row = filled(self.tokenizer([""]).rows)
            return Engine(self.program(), self.device).run(row).shape[1]  # another part may give any number
        widths = [part.linear.out_features for part in self.after if isinstance(part, Dense)]
        return widths[-1] if widths else len(self.pooling.modes) * self.encoder.config.dim

    @property
    def fingerprint(self) -> dict[str, str]:
        """Short hashes of what makes a vector of token ids, and those of a text: where they are equal, the same texts
        give equal vectors, with the same prompt before them and the same limit of tokens.

        ``encoder`` is the encoder's config and all weights, ``tokenizer`` the tokenizer, ``pooling`` what follows.
        """
        weights = hashlib.sha256(repr(self.encoder.config).encode())
        for name, tensor in sorted(self.state_dict().items()):
            if name == f"encoder.{TYPES}":  # of the second text of a pair; what is one text has the first row, zero
                continue
            weights.update(f"{name} {tuple(tensor.shape)}".encode())
            weights.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        words = f"{self.tokenizer.lowercase} {self.tokenizer.backend.to_str()}"
        after = f"{self.pooling.modes} {self.after}"
        words += " from its end" if self.tokenizer.keep_last else ""
        after += f" {self.truncate_dim}" if self.truncate_dim else ""
        texts = {"tokenizer": words, "pooling": after}
        return {
            "encoder": weights.hexdigest()[:16],
            **{name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in texts.items()},
        }

    @property
    def default_prompt_name(self) -> str | None:
        """The name of the prompt that is ``default_prompt``, if it has one; it may be set."""
        return next((name for name, text in self.prompts.items() if text and text == self.default_prompt), None)

    @default_prompt_name.setter
    def default_prompt_name(self, name: str | None) -> None:
        self.default_prompt = "" if name is None else self.prompt_for(prompt_name=name)

    @property
    def max_seq_length(self) -> int:
        """Tokens of a text, special ones included, beyond which it is cut; it may be set."""
        return self.tokenizer.max_length

    @max_seq_length.setter
    def max_seq_length(self, tokens: int) -> None:
        if tokens is None:
            raise InputError("max_seq_length is None; expected a whole number")
        check_counts(max_seq_length=tokens)
        self.tokenizer.max_length = self.length_limit(int(tokens))

    def length_limit(self, max_length: int | None) -> int:
        """Tokens per text: max_length, or the model's own limit.

        Raises:
            InputError: the encoder has fewer positions, or there is no room for a token between the special ones.
        """
        limit = self.tokenizer.max_length if max_length is None else max_length
        positions = self.encoder.config.max_position_embeddings
        if limit > positions:
            raise InputError(f"max_length is {limit}; expected at most {positions}, the encoder's positions")
        return self.tokenizer.check_limit(limit)

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    def program(self) -> Vectors | Plain:
        """What inference computes with, made anew where this model has changed: PackedBatch -> (texts, dim).

        Where the model is not understood, that part of it runs as it stands; see mtl.kernels.
        """
        if self.precision not in FORMATS:
            raise InputError(f"precision is {shown(self.precision)}; expected one of {', '.join(FORMATS)}")
        samples = SAMPLES_MAPPED if self.mapped else SAMPLES
        return self.compiled.of(self, (self.precision, self.int8_least_cosine), self._compile, samples)

    @property
    def quality(self) -> Quality | None:
        """Of int8, the least cosine of a sample's vectors to those of fp32, and how many products stayed in fp32.

        Raises:
            InputError: the cosine is less than ``int8_least_cosine``.
        """
        return getattr(self.program(), "quality", None) if self.precision == "int8" else None

    def _compile(self) -> tuple[Vectors | Plain, list[Plain]]:
        if plain := overridden(self, FORWARD):
            return plain, [plain]
        program = self.vectors()
        return program, program.plain

    def vectors(self) -> Vectors:
        """A new program of the encoder, the pooling and what follows."""
        check_place(self.precision, self.device)
        if self.precision == "int8":
            rows = calibration_rows(self.tokenizer, self.encoder)
            return gated(self.encoder, rows, self.pooling, self.after, self.int8_least_cosine, self.mapped)
        return Vectors.of(compile(self.encoder, self.precision, mapped=self.mapped), self.pooling, self.after)

    def __getattr__(self, name: str) -> Any:
        if name in THEIRS:
            raise AttributeError(THEIRS[name])
        found = getattr(type(self), name, None)
        if isinstance(found, property) and found.fget:  # Python asks here after an AttributeError in a property
            return found.fget(self)  # which says again what was missing
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in THEIRS and not hasattr(type(self), name) and not isinstance(value, nn.Module):
            raise InputError(THEIRS[name])
        if name in CHECKS:
            CHECKS[name](value)
        if name == "truncate_dim" and value is not None and "compiled" in vars(self):  # a checkpoint may ask for more
            self._check_dim(value)
        super().__setattr__(name, value)

    def _check_dim(self, truncate_dim: int) -> None:
        """Raise an InputError if the model has fewer dimensions."""
        if truncate_dim > self.width:
            raise InputError(f"truncate_dim is {truncate_dim}; expected 1 to {self.width}, the model's dimensions")

    def __getitem__(self, place: object) -> Any:
        raise InputError("a model has no places; expected model.encoder, .tokenizer, .pooling, or .after[0]")

    def train(self, mode: bool = True) -> Self:
        if mode:  # the program would only take memory while the parameters change
            self.compiled.clear()
            self.mapped = False
        return super().train(mode)

    def forward(self, batch: PackedBatch) -> Tensor:
        """One vector per text of the batch, (texts, dim)."""
        if isinstance(batch, (str, list, tuple, Mapping)):
            raise InputError(f"the model is called with {shown(batch)}; model.encode(texts) gives the vectors of texts")
        vectors: Tensor = self.after(self.pooling(self.encoder(batch).float(), batch))
        return vectors

    def prompt_for(self, prompt: str | None = None, prompt_name: str | None = None) -> str:
        """What goes before each text: the prompt as it stands, one of the checkpoint's by its name, or its default.

        Raises:
            InputError: both are given, or the checkpoint has no prompt of that name.
        """
        if prompt is not None and prompt_name is not None:
            raise InputError("prompt and prompt_name are given; expected one of the two")
        if prompt is not None and not isinstance(prompt, str):
            raise InputError(f"prompt is {shown(prompt)}; expected a string")
        if prompt_name is not None and (not isinstance(prompt_name, str) or prompt_name not in self.prompts):
            known = ", ".join(self.prompts) or "none"
            raise InputError(f"prompt_name is {shown(prompt_name)}; the model's prompts are: {known}")
        if prompt_name is not None:
            return self.prompts[prompt_name]
        return self.default_prompt if prompt is None else prompt

    @overload
    def encode(self, texts: Texts, *, as_tensor: Literal[True], **options: Unpack[EncodeOptions]) -> Tensor: ...

    @overload
    def encode(self, texts: Texts, *, as_tensor: Literal[False] = False, **options: Unpack[EncodeOptions]) -> Array: ...

    @accepts_their_keywords
    def encode(self, texts: Texts, *, as_tensor: bool = False, **options: Unpack[EncodeOptions]) -> Array | Tensor:
        """Vectors of texts, in their order: (texts, dim) float32, or (dim,) for a single string.

        Texts may be a list, a tuple, an array, a column of a table or a generator. None gives (0, dim); an empty
        string is embedded as [CLS][SEP]. sentence-transformers' keywords are understood where they mean the same.

        Args:
            as_tensor: Give a tensor on the model's device instead of an array.
            normalize: Scale to length 1 (after truncate_dim), whether or not the model does so itself.
            truncate_dim: Keep only the first so many dimensions; by default, as many as the checkpoint says.
            prompt: Put before every text, as it stands; by default, the model's own default prompt.
            prompt_name: Which of the checkpoint's ``prompts`` to put before every text.
            overflow: What to do with what a text has beyond max_length: "warn" cuts and says how much, "truncate"
                cuts, "error" refuses, "chunk" embeds the text piece by piece, each behind the prompt, and takes the
                mean, weighted by tokens.
            max_length: Tokens per text, special ones included; by default, the model's own limit.
            batch_tokens: Tokens that are computed at once. It bounds memory, and changes no bit of the result.
            threads: CPU threads to use; by default, torch's setting.
            progress: A bar on stderr; by default, only where stderr is a terminal.

        Raises:
            InputError: something in texts is no string, or an option makes no sense.
            WeightsError: a vector is not finite.
        """
        return self._encode(texts, as_tensor, options)

    def _encode(self, texts: Texts, as_tensor: bool, options: EncodeOptions) -> Array | Tensor:
        """As ``encode``."""
        check_flags(as_tensor=as_tensor)
        listed = [texts] if isinstance(texts, str) else list(several(texts))
        parts = [vectors for _, vectors in self._encoded(in_blocks(listed, WINDOW), options, len(listed))]
        vectors = torch.cat(parts) if parts else self._no_vectors(options.get("truncate_dim"))
        vectors = vectors[0] if isinstance(texts, str) else vectors
        return vectors.to(self.device) if as_tensor else vectors.cpu().numpy()

    def _no_vectors(self, dim: int | None = None) -> Tensor:
        return torch.empty(0, dim or self.dim, dtype=torch.float32, device="cpu")

    @accepts_their_keywords
    def encode_stream(
        self, texts: Iterable[str], *, window: int = WINDOW, as_tensor: bool = False, **options: Unpack[EncodeOptions]
    ) -> Iterator[Any]:
        """As ``encode``, for texts that need not fit in memory: yields (window, dim) arrays, in order.

        ``window`` is how many texts are tokenized, sorted by length and held at once.
        """
        check_counts(window=window)
        total = len(texts) if isinstance(texts, Sized) else None
        found = self._encoded(in_blocks(several(texts), window), options, total, total is None or total > window)
        return (vectors if as_tensor else vectors.cpu().numpy() for _, vectors in found)

    @accepts_their_keywords
    def encode_rows(
        self,
        rows: Iterable[R],
        text: str | Callable[[R], str] = "text",
        *,
        window: int = WINDOW,
        **options: Unpack[EncodeOptions],
    ) -> Iterator[tuple[list[R], Array]]:
        """Rows of any kind with their vectors (rows, dim), a window of them at a time.

        ``text`` gives a row's text: the name of its field, or a function of the row.
        """
        check_counts(window=window)
        of_row: Callable[[Any], str] = field_of(text) if isinstance(text, str) else text
        if not callable(of_row):
            raise InputError(f"text is {shown(text)}; expected the name of a field, or a function of a row")
        return self.encode_blocks(in_blocks(rows, window, of_row), **options)

    @accepts_their_keywords
    def encode_blocks(self, blocks: Iterable[Block[R]], **options: Unpack[EncodeOptions]) -> Iterator[tuple[R, Array]]:
        """As ``encode_rows``, for rows that come in blocks: each block's rows, whatever they are, with its vectors."""
        return ((rows, vectors.cpu().numpy()) for rows, vectors in self._encoded(blocks, options))

    def _encoded(
        self, blocks: Iterable[Block[R]], options: EncodeOptions, total: int | None = None, ahead: bool | None = None
    ) -> Iterator[tuple[R, Tensor]]:
        """Each block's rows and vectors, on the model's device. Options are checked at once.

        ``total`` is the number of texts, if it is known; ``ahead``, whether to tokenize while the model computes.
        """
        options = {**DEFAULTS, **options}
        check_flags(normalize=options["normalize"], progress=options.get("progress"))
        normalize, shorter = options["normalize"], options.get("truncate_dim")
        overflow, max_length = options["overflow"], options.get("max_length")
        batch_tokens, threads = options.get("batch_tokens"), options.get("threads")
        truncate_dim = self.truncate_dim if shorter is None else shorter
        check_counts(batch_tokens=batch_tokens, threads=threads, max_length=max_length, truncate_dim=truncate_dim)
        if shorter is not None:
            self._check_dim(shorter)
        limit = self.length_limit(max_length)
        if self.tokenizer.backend.get_vocab_size() > self.encoder.config.vocab_size:  # tokens were added since
            self.check_vocabulary()
        prompt = self.prompt_for(options.get("prompt"), options.get("prompt_name"))
        engine = Engine(self.program(), self.device, batch_tokens, threads)
        ahead = total is None or total > WINDOW if ahead is None else ahead
        windows = tokenized_windows(blocks, self.tokenizer, prompt, overflow, max_length, ahead)
        windows = warn_of_cuts(windows, limit, CHUNK) if overflow == "warn" else windows

        def parts() -> Iterator[tuple[R, Tensor]]:
            for part in with_bar(windows, total, options.get("progress")):
                outputs = engine.run(part.tokenized.rows) if part.texts else self._no_vectors(self.width)
                vectors = part.vectors(outputs, self.normalizes)[:, :truncate_dim]
                yield part.rows, F.normalize(vectors, dim=-1) if normalize else vectors

        return parts()

    @overload
    def encode_query(self, texts: Texts, *, as_tensor: Literal[True], **options: Unpack[EncodeOptions]) -> Tensor: ...

    @overload
    def encode_query(
        self, texts: Texts, *, as_tensor: Literal[False] = False, **options: Unpack[EncodeOptions]
    ) -> Array: ...

    @accepts_their_keywords
    def encode_query(
        self, texts: Texts, *, as_tensor: bool = False, **options: Unpack[EncodeOptions]
    ) -> Array | Tensor:
        """As ``encode``, with the checkpoint's prompt "query"; without one, and if none is given, with no prompt."""
        return self._encode(texts, as_tensor, self.prompted(QUERY, options))

    @overload
    def encode_document(
        self, texts: Texts, *, as_tensor: Literal[True], **options: Unpack[EncodeOptions]
    ) -> Tensor: ...

    @overload
    def encode_document(
        self, texts: Texts, *, as_tensor: Literal[False] = False, **options: Unpack[EncodeOptions]
    ) -> Array: ...

    @accepts_their_keywords
    def encode_document(
        self, texts: Texts, *, as_tensor: bool = False, **options: Unpack[EncodeOptions]
    ) -> Array | Tensor:
        """As ``encode_query``, with the first of the prompts "document", "passage" and "corpus" that there is."""
        return self._encode(texts, as_tensor, self.prompted(DOCUMENT, options))

    def prompted(self, names: Sequence[str], options: EncodeOptions) -> EncodeOptions:
        """Options with the first of these prompts that the checkpoint has, unless they name one themselves.

        Where it has none, nothing goes before a text: a default prompt is for one side of a search, and not for this.
        """
        if options.get("prompt") is not None or options.get("prompt_name") is not None:
            return options
        prompt = next((self.prompts[name] for name in names if name in self.prompts), "")
        return {**options, "prompt": prompt, "prompt_name": None}

    def similarity(self, a: Embeddings, b: Embeddings) -> Any:
        """How similar each vector of a (n, dim) is to each of b (m, dim), (n, m), by the model's own measure."""
        return search.similarity(a, b, self.similarity_fn_name)

    @accepts_their_keywords
    def search(
        self, queries: str | Iterable[str] | Embeddings, corpus: Iterable[str] | Embeddings, k: int = 10
    ) -> tuple[Array, NDArray[np.int64]]:
        """The k most similar of the corpus for each query, by the model's own measure: scores and places.

        Texts are embedded first; a corpus that is searched more than once is better embedded once.
        """
        wanted = queries if search.are_vectors(queries) else self.encode_query(queries)
        among = corpus if search.are_vectors(corpus) else self.encode_document(several(corpus))
        return search.search(wanted, among, k, self.similarity_fn_name)

    @property
    def normalizes(self) -> bool:
        """Whether the model itself gives vectors of length 1."""
        return len(self.after) > 0 and isinstance(self.after[-1], Normalize)


def field_of(name: str) -> Callable[[Any], str]:
    """A row's field of this name; an InputError where a row has none."""

    def found(row: Any) -> str:
        try:
            return cast(str, row[name])
        except (KeyError, TypeError, IndexError):
            raise InputError(f"a row is {shown(row)}; expected one with a field {shown(name)}") from None

    return found


FORWARD = SentenceEncoder.forward  # as it is before anybody replaces it


def saveable(part: nn.Module) -> After:
    """A layer after the pooling; a WeightsError if no folder can describe it."""
    if not isinstance(part, After):
        kind = type(part).__name__
        raise WeightsError(f"a {kind} after the pooling cannot be saved; expected Dense, LayerNorm or Normalize")
    check_saveable(part)
    return part
