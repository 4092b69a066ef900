"""SentenceEncoder: texts in, one vector per text out."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, Self, TypedDict, Unpack, overload

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from mtl.encode import precision as formats
from mtl.encode.engine import Engine, check_counts, prefetch, usable
from mtl.encode.precision import Precision
from mtl.encode.tokenizer import Overflow, Tokenized, Tokenizer, check_texts
from mtl.errors import InputError, WeightsError
from mtl.model.encoder import DistilBert
from mtl.model.forms import Forms, packed
from mtl.model.packing import PackedBatch
from mtl.model.pooling import Dense, Normalize, Pooling
from weights import export, load
from weights.fetch import fetch

log = logging.getLogger("mtl")

WINDOW = 8192  # texts that are tokenized, sorted and held at once


class EncodeOptions(TypedDict, total=False):
    """What ``encode`` and ``encode_stream`` take beside the texts; each may be left out.

    normalize: Scale to length 1 (after truncate_dim), whether or not the model does so itself.
    truncate_dim: Keep only the first so many dimensions.
    prompt: Put before every text; by default, the model's own default prompt.
    overflow: What to do with what a text has beyond max_length: "warn" (the default) cuts and says how much,
        "truncate" cuts, "error" refuses, "chunk" embeds the text window by window and takes the mean,
        weighted by the windows' tokens.
    max_length: Tokens per text, special ones included; by default, the model's own limit.
    batch_tokens: Tokens that are computed at once. It bounds memory, and changes no bit of the result.
    threads: CPU threads to use; by default, torch's setting.
    progress: A bar on stderr; by default, only where stderr is a terminal.
    """

    normalize: bool
    truncate_dim: int | None
    prompt: str | None
    overflow: Overflow
    max_length: int | None
    batch_tokens: int | None
    threads: int | None
    progress: bool | None


class SentenceEncoder(nn.Module):
    """An encoder, its tokenizer, a pooling, and the layers after it.

    ``prompts`` are the prompts that the checkpoint names; ``default_prompt`` goes before every text unless
    the caller gives another.
    """

    def __init__(
        self,
        encoder: DistilBert,
        tokenizer: Tokenizer,
        pooling: Pooling,
        after: Sequence[nn.Module] = (),
        prompts: Mapping[str, str] | None = None,
        default_prompt: str = "",
    ) -> None:
        super().__init__()
        if tokenizer.vocab_size > encoder.config.vocab_size:
            raise WeightsError(
                f"the tokenizer gives ids up to {tokenizer.vocab_size - 1}, but the encoder's vocabulary has "
                f"{encoder.config.vocab_size} rows; expected a tokenizer and weights that belong together"
            )
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.after = nn.Sequential(*after)
        self.prompts = dict(prompts or {})
        self.default_prompt = default_prompt
        self.precision: Precision = "fp32"
        self.mapped = False  # whether the weights are a file's, mapped into memory
        self.forms: Forms[SentenceEncoder] = Forms()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        revision: str | None = None,
        device: str | torch.device = "cpu",
        precision: Precision = "fp32",
    ) -> SentenceEncoder:
        """A pretrained model by name (see `mtl models`), hub id or local folder, in eval mode.

        ``precision`` is what the encoder computes in: "fp32", "bf16", "fp16" (for a GPU), "int8" (for a CPU), or
        "auto", which is bf16 where it is native, else fp32. Weights stay in float32, and vectors come in it.

        Raises:
            ConfigError, WeightsError: it cannot be found, is not what it should be, or is no model of ours.
            InputError: an unknown precision, or one that the device has not.
        """
        place = usable(device)
        chosen = formats.effective(precision, place)
        model = cls.from_checkpoint(load.load(fetch(str(name), revision))).to(place)
        model.precision, model.mapped = chosen, place.type == "cpu"
        return model

    @classmethod
    def from_checkpoint(cls, checkpoint: load.Checkpoint) -> SentenceEncoder:
        """The model that a folder's content describes, of the very modules that it holds, in eval mode."""
        model = cls(
            checkpoint.encoder,
            Tokenizer(checkpoint.tokenizer, checkpoint.max_length, checkpoint.lowercase),
            Pooling(*checkpoint.pooling),
            checkpoint.after,
            checkpoint.prompts,
            checkpoint.default_prompt,
        )
        return model.eval()

    def to_checkpoint(self) -> load.Checkpoint:
        """All that a folder says of this model; the modules are the model's own."""
        return load.Checkpoint(
            encoder=self.encoder,
            tokenizer=self.tokenizer.backend,
            max_length=self.tokenizer.max_length,
            lowercase=self.tokenizer.lowercase,
            pooling=self.pooling.modes,
            after=tuple(map(saveable, self.after)),
            prompts=self.prompts,
            default_prompt=self.default_prompt,
        )

    def save(self, folder: str | Path) -> None:
        """Write a folder that ``from_pretrained``, transformers and sentence-transformers load.

        Raises:
            WeightsError: the folder is not empty or cannot be written.
        """
        export.save(self.to_checkpoint(), Path(folder))

    @property
    def dim(self) -> int:
        """The number of dimensions of a vector."""
        widths = [part.linear.out_features for part in self.after if isinstance(part, Dense)]
        return widths[-1] if widths else len(self.pooling.modes) * self.encoder.config.dim

    @property
    def fingerprint(self) -> dict[str, str]:
        """Short hashes of what makes a vector of a text: where they are equal, the same texts give equal vectors.

        ``encoder`` is the encoder's config and all weights, ``tokenizer`` the tokenizer, ``pooling`` what follows.
        """
        weights = hashlib.sha256(repr(self.encoder.config).encode())
        for name, tensor in sorted(self.state_dict().items()):
            weights.update(f"{name} {tuple(tensor.shape)}".encode())
            weights.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        words = f"{self.tokenizer.lowercase} {self.tokenizer.backend.to_str()}"
        after = f"{self.pooling.modes} {self.after}"
        texts = {"tokenizer": words, "pooling": after}
        return {
            "encoder": weights.hexdigest()[:16],
            **{name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in texts.items()},
        }

    def length_limit(self, max_length: int | None) -> int:
        """Tokens per text: max_length, or the model's own limit.

        Raises:
            InputError: the encoder has fewer positions.
        """
        limit = self.tokenizer.max_length if max_length is None else max_length
        positions = self.encoder.config.max_position_embeddings
        if limit > positions:
            raise InputError(f"max_length is {limit}; expected at most {positions}, the encoder's positions")
        return limit

    @property
    def takes_first(self) -> bool:
        """Whether the pooling reads nothing but each text's first token, so that the others can be left out."""
        return self.pooling.modes == ("cls",)

    @property
    def device(self) -> torch.device:
        return self.encoder.embeddings.word_embeddings.weight.device

    def form(self) -> SentenceEncoder:
        """What inference computes with: this model in its precision, in eval mode, made anew where it has changed."""

        def make() -> SentenceEncoder:
            form = packed(self)
            form._modules["encoder"] = formats.form(self.encoder, self.precision, self.tokenizer, self.mapped)
            return form

        return self.forms.of(self, self.precision, make)

    def train(self, mode: bool = True) -> Self:
        if mode:  # the form would only take memory while the parameters change
            self.forms.clear()
            self.mapped = False
        return super().train(mode)

    def forward(self, batch: PackedBatch) -> Tensor:
        """One vector per text of the batch, (texts, dim)."""
        if self.takes_first:
            pooled = self.encoder.first(batch).float()
        else:
            pooled = self.pooling(self.encoder(batch).float(), batch)
        vectors: Tensor = self.after(pooled)
        return vectors

    @overload
    def encode(
        self, texts: str | Sequence[str], *, as_tensor: Literal[True], **options: Unpack[EncodeOptions]
    ) -> Tensor: ...

    @overload
    def encode(
        self,
        texts: str | Sequence[str],
        *,
        as_tensor: Literal[False] = False,
        **options: Unpack[EncodeOptions],
    ) -> NDArray[np.float32]: ...

    def encode(
        self, texts: str | Sequence[str], *, as_tensor: bool = False, **options: Unpack[EncodeOptions]
    ) -> NDArray[np.float32] | Tensor:
        """Vectors of texts, in their order: (texts, dim) float32, or (dim,) for a single string.

        An empty list gives (0, dim); an empty string is embedded as [CLS][SEP]. ``as_tensor`` gives a tensor
        on the model's device instead of an array. For the options, see ``EncodeOptions``.

        Raises:
            InputError: something in texts is no string, or an option makes no sense.
        """
        listed = [texts] if isinstance(texts, str) else list(texts)
        parts = list(self._stream(listed, WINDOW, len(listed), **options))
        width = options.get("truncate_dim") or self.dim
        vectors = torch.cat(parts) if parts else torch.empty(0, width, device=self.device)
        vectors = vectors[0] if isinstance(texts, str) else vectors
        return vectors if as_tensor else vectors.cpu().numpy()

    def encode_stream(
        self, texts: Iterable[str], *, window: int = WINDOW, **options: Unpack[EncodeOptions]
    ) -> Iterator[NDArray[np.float32]]:
        """As ``encode``, for texts that need not fit in memory: yields (window, dim) arrays, in order."""
        for vectors in self._stream(texts, window, None, **options):
            yield vectors.cpu().numpy()

    def _stream(
        self,
        texts: Iterable[str],
        window: int,
        total: int | None,
        *,
        normalize: bool = False,
        truncate_dim: int | None = None,
        prompt: str | None = None,
        overflow: Overflow = "warn",
        max_length: int | None = None,
        batch_tokens: int | None = None,
        threads: int | None = None,
        progress: bool | None = None,
    ) -> Iterator[Tensor]:
        """The vectors of each window of texts, on the model's device."""
        if truncate_dim is not None and not 1 <= truncate_dim <= self.dim:
            raise InputError(f"truncate_dim is {truncate_dim}; expected 1 to {self.dim}, the model's dimensions")
        check_counts(batch_tokens=batch_tokens, threads=threads, window=window)
        limit = self.length_limit(max_length)
        prefix = self.default_prompt if prompt is None else prompt
        engine = Engine(self.form(), self.device, batch_tokens, threads)
        windows = (
            self._tokenize(part, start, prefix, overflow, max_length) for start, part in in_windows(texts, window)
        )
        cut_texts = cut_tokens = 0
        hidden = None if progress is None else not progress  # None: a bar only on a terminal
        with tqdm(total=total, unit="text", disable=hidden, leave=False) as bar:
            single = total is not None and total <= window
            for tokenized, index in windows if single else prefetch(windows):
                vectors = engine.run(tokenized.rows)
                if len(tokenized.owners) > tokenized.owners[-1] + 1:
                    vectors = self._merge(vectors, tokenized)
                vectors = vectors[index, :truncate_dim]
                cut_texts, cut_tokens = cut_texts + tokenized.cut_texts, cut_tokens + tokenized.cut_tokens
                bar.update(len(index))
                yield F.normalize(vectors, dim=-1) if normalize else vectors
        if overflow == "warn":
            warn_of_cuts(cut_texts, cut_tokens, limit)

    def _tokenize(
        self, texts: Sequence[str], start: int, prefix: str, overflow: Overflow, max_length: int | None
    ) -> tuple[Tokenized, list[int]]:
        """The distinct texts' tokens, and for each text the place of its like among them."""
        check_texts(texts, start)
        places: dict[str, int] = {}
        index = [places.setdefault(text, len(places)) for text in texts]
        tokenized = self.tokenizer([prefix + text for text in places], overflow, max_length)
        return tokenized, index

    def _merge(self, vectors: Tensor, tokenized: Tokenized) -> Tensor:
        """One vector per text from those of its windows: their mean, weighted by tokens."""
        owners = torch.tensor(tokenized.owners, device=vectors.device)
        weights = torch.tensor([len(row) for row in tokenized.rows], device=vectors.device)[:, None]
        texts = tokenized.owners[-1] + 1
        sums = vectors.new_zeros(texts, vectors.shape[1]).index_add_(0, owners, vectors * weights)
        totals = vectors.new_zeros(texts, 1).index_add_(0, owners, weights.to(vectors.dtype))
        means = F.normalize(sums, dim=-1) if self.normalizes else sums / totals
        whole = torch.bincount(owners, minlength=texts) == 1  # a text of one window keeps that one's bits
        means[whole] = vectors[whole[owners]]
        return means

    @property
    def normalizes(self) -> bool:
        """Whether the model itself gives vectors of length 1."""
        return len(self.after) > 0 and isinstance(self.after[-1], Normalize)


def warn_of_cuts(texts: int, tokens: int, limit: int) -> None:
    """One line in the log, if anything was cut."""
    if texts:
        log.warning(
            "%d texts were longer than %d tokens and lost %d tokens; overflow='chunk' embeds them whole",
            texts, limit, tokens,
        )  # fmt: skip


def saveable(part: nn.Module) -> Dense | Normalize:
    """A layer after the pooling, if a folder can describe it.

    Raises:
        WeightsError: it cannot.
    """
    if not isinstance(part, (Dense, Normalize)):
        raise WeightsError(f"a {type(part).__name__} after the pooling cannot be saved; expected Dense or Normalize")
    return part


def in_windows(texts: Iterable[str], size: int) -> Iterator[tuple[int, list[str]]]:
    """Consecutive lists of at most ``size`` texts, each with the index of its first."""
    iterator, start = iter(texts), 0
    while window := list(islice(iterator, size)):
        yield start, window
        start += len(window)
