"""The shapes of encoders: of encoder.py under the field names of transformers' DistilBertConfig, and of rotary.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from mtl.errors import ConfigError, shown
from mtl.model.activations import ACTIVATIONS

LAYER_NORM_EPS = 1e-12  # stands in no DistilBERT config.json; BERT's value
LARGEST = 10**9  # of sizes: the product of two still fits an int64


def check_sizes(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if type(value) is not int or not 1 <= value <= LARGEST:
            raise ConfigError(f"{name} is {shown(value)}; expected a positive integer up to {LARGEST}")


def check_fractions(config: Any, *names: str, most: int = 1) -> None:
    for name in names:
        value = getattr(config, name)
        if type(value) not in (int, float) or not 0 <= value < most:
            raise ConfigError(f"{name} is {shown(value)}; expected a number from 0 up to, not including, {most}")


def check_flags(config: Any, *names: str) -> None:
    for name in names:
        if type(getattr(config, name)) is not bool:
            raise ConfigError(f"{name} is {shown(getattr(config, name))}; expected true or false")


def check_heads_and_activation(config: Any) -> None:
    if config.dim % config.n_heads:
        raise ConfigError(f"n_heads {config.n_heads} does not divide dim {config.dim}; expected equal heads")
    if config.activation not in list(ACTIVATIONS):  # it may be of any type
        raise ConfigError(f"activation is {shown(config.activation)}; expected one of {', '.join(ACTIVATIONS)}")


def described(config: Any, later: dict[str, Any]) -> str:
    """A dataclass's own repr, without fields that came later and are what they were before: fingerprints of models are
    made of it."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.repr}
    shown = (f"{name}={x!r}" for name, x in fields.items() if name not in later or x != later[name])
    return f"{type(config).__name__}({', '.join(shown)})"


@dataclasses.dataclass(frozen=True, repr=False)
class EncoderConfig:
    """Shape of a DistilBERT encoder. The defaults are those of distilbert-base-uncased.

    embedding_dim: The width of the embeddings, where it is another than ``dim``: a projection leads from it to that.
    padding: The token that takes no place in a text where a text itself holds it; see PackedBatch.position_ids. Its own
        place is a row of the table of positions behind the others.

    Raises:
        ConfigError: a size that is no positive integer, a dropout outside [0, 1), heads that do not
            divide ``dim``, an unknown activation, or a field of another type.
    """

    vocab_size: int = 30522
    max_position_embeddings: int = 512
    sinusoidal_pos_embds: bool = False
    n_layers: int = 6
    n_heads: int = 12
    dim: int = 768
    hidden_dim: int = 3072
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation: str = "gelu"
    initializer_range: float = 0.02
    layer_norm_eps: float = LAYER_NORM_EPS
    embedding_dim: int | None = None
    padding: int | None = None
    segments: int = dataclasses.field(default=1, repr=False)  # of a pair of texts; what is one text has the first

    def __repr__(self) -> str:
        return described(self, {"layer_norm_eps": LAYER_NORM_EPS, "embedding_dim": None, "padding": None})

    def __post_init__(self) -> None:
        check_sizes(self, "vocab_size", "max_position_embeddings", "n_layers", "n_heads", "dim", "hidden_dim",
                    "segments", *["embedding_dim"] * (self.embedding_dim is not None))  # fmt: skip
        check_fractions(self, "dropout", "attention_dropout", "layer_norm_eps")
        check_fractions(self, "initializer_range", most=LARGEST)
        check_flags(self, "sinusoidal_pos_embds")
        check_heads_and_activation(self)
        if self.padding is not None and (type(self.padding) is not int or not 0 <= self.padding < self.vocab_size):
            raise ConfigError(f"padding is {shown(self.padding)}; expected one of the {self.vocab_size} tokens")

    @property
    def position_rows(self) -> int:
        """The rows of the table of positions."""
        return self.max_position_embeddings + (self.padding is not None)

    def keeping(self, layers: Sequence[int]) -> EncoderConfig:
        """The shape with no more than these blocks."""
        return dataclasses.replace(self, n_layers=len(layers))


@dataclasses.dataclass(frozen=True, repr=False)
class DebertaConfig(EncoderConfig):
    """Shape of a DeBERTa-v2 or -v3. The defaults are deberta-v3-base's.

    position_biased_input: Whether places in the text are added to the words, from a table as BERT's.
    position_buckets: How many distances to one side are told apart, half of them one by one; 0 for all of them.
    max_relative_positions: The distance from which on there is no telling apart.
    c2p, p2c: Whether a query is compared with distances, and a key.
    share_att_key: Whether distances are projected as words are.
    norm_rel_ebd: Whether the table of distances goes through a LayerNorm.

    Raises:
        ConfigError: as EncoderConfig, or positions that have no bucket.
    """

    vocab_size: int = 128100
    layer_norm_eps: float = 1e-7
    position_biased_input: bool = False
    position_buckets: int = 256
    max_relative_positions: int = 512
    c2p: bool = True
    p2c: bool = True
    share_att_key: bool = True
    norm_rel_ebd: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "max_relative_positions")
        check_flags(self, "position_biased_input", "c2p", "p2c", "share_att_key", "norm_rel_ebd")
        if self.sinusoidal_pos_embds or self.embedding_dim is not None or self.padding is not None:
            raise ConfigError("sinusoidal_pos_embds, embedding_dim or padding is set; expected none in a DeBERTa")
        buckets, most = self.position_buckets, self.max_relative_positions
        if type(buckets) is not int or not 0 <= buckets <= LARGEST or buckets == 1:
            raise ConfigError(f"position_buckets is {shown(buckets)}; expected 0, or 2 to {LARGEST}")
        near = buckets // 2
        if near and most - 1 <= near < self.max_position_embeddings - 1:
            raise ConfigError(
                f"max_relative_positions is {most}; expected more than {near + 1}, half the position_buckets and one"
            )

    @property
    def span(self) -> int:
        """How many rows of the table of distances are for one side."""
        return self.position_buckets or self.max_relative_positions


FULL, SLIDING = "full_attention", "sliding_attention"  # as transformers calls them


@dataclasses.dataclass(frozen=True, repr=False)
class RotaryConfig:
    """Shape of an encoder with rotary positions and a gated feed-forward network. The defaults are ModernBERT-base's.

    pre_norm: LayerNorm before each sublayer, with one behind the last block; else after each sum.
    norm_bias, attention_bias, gate_bias, mlp_bias: Which have biases: all norms, Wqkv and Wo of attention, Wi, and Wo
        of the feed-forward network.
    layer_types: Of each block, whether its tokens see the whole text or a window; without any, all see all.
    local_attention: The width of that window: a token sees those that are at most half of it away.
    theta, local_theta: How slowly positions turn, in blocks of either kind.
    ntk_factor, linear_factor: How they are scaled; see positions.angles.
    embedding_dropout, attention_dropout, mlp_dropout, dropout: Of the embeddings, the attention's weights, the gated
        activations, and of what both sublayers give.

    Raises:
        ConfigError: a field of another type or size, heads that do not divide ``dim`` or have an odd width, or layer
            types that are unknown or not one for each block.
    """

    vocab_size: int = 50368
    max_position_embeddings: int = 8192
    n_layers: int = 22
    n_heads: int = 12
    dim: int = 768
    hidden_dim: int = 1152
    activation: str = "gelu"
    pre_norm: bool = True
    norm_bias: bool = False
    attention_bias: bool = False
    gate_bias: bool = False
    mlp_bias: bool = False
    norm_eps: float = 1e-5
    layer_types: tuple[str, ...] = ()
    local_attention: int = 128
    theta: float = 160000.0
    local_theta: float = 10000.0
    ntk_factor: float = 1.0
    linear_factor: float = 1.0
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    mlp_dropout: float = 0.0
    dropout: float = 0.0
    initializer_range: float = 0.02
    segments: int = dataclasses.field(default=1, repr=False)  # as in EncoderConfig

    def __repr__(self) -> str:
        return described(self, {"linear_factor": 1.0})

    def __post_init__(self) -> None:
        check_sizes(self, "vocab_size", "max_position_embeddings", "n_layers", "n_heads", "dim", "hidden_dim",
                    "local_attention", "segments")  # fmt: skip
        check_fractions(self, "norm_eps", "embedding_dropout", "attention_dropout", "mlp_dropout", "dropout")
        check_fractions(self, "initializer_range", "theta", "local_theta", "ntk_factor", "linear_factor",
                        most=LARGEST)  # fmt: skip
        check_flags(self, "pre_norm", "norm_bias", "attention_bias", "gate_bias", "mlp_bias")
        check_heads_and_activation(self)
        if self.dim // self.n_heads % 2:
            raise ConfigError(
                f"dim {self.dim} and n_heads {self.n_heads} make heads of {self.dim // self.n_heads}; "
                f"expected an even number, whose halves positions turn"
            )
        for name in ("theta", "local_theta", "ntk_factor", "linear_factor"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {shown(getattr(self, name))}; expected a number of 1 or more")
        known = isinstance(self.layer_types, tuple) and all(kind in (FULL, SLIDING) for kind in self.layer_types)
        if not known or (self.layer_types and len(self.layer_types) != self.n_layers):
            raise ConfigError(
                f"layer_types is {shown(self.layer_types)}; "
                f"expected {FULL} or {SLIDING} for each of the {self.n_layers} layers"
            )

    @property
    def scaling(self) -> tuple[float, float]:
        return self.ntk_factor, self.linear_factor

    def theta_of(self, layer: int) -> float:
        return self.theta if self.reach_of(layer) is None else self.local_theta

    def reach_of(self, layer: int) -> int | None:
        """How far a token sees in a block; None is as far as its text."""
        return self.local_attention // 2 if self.layer_types and self.layer_types[layer] == SLIDING else None

    def keeping(self, layers: Sequence[int]) -> RotaryConfig:
        """The shape with no more than these blocks; a ConfigError if another would be the first, which has no norm of
        its own."""
        if self.pre_norm and (layers[0] != 0 or 0 in layers[1:]):
            raise ConfigError(f"layers are {list(layers)}; expected to begin with 0: the first has no norm of its own")
        kinds = tuple(self.layer_types[i] for i in layers) if self.layer_types else ()
        return dataclasses.replace(self, n_layers=len(layers), layer_types=kinds)
