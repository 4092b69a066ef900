"""EncoderConfig: the shape of an encoder, under the field names of transformers' DistilBertConfig."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mtl.errors import ConfigError

ACTIVATIONS = ("gelu", "relu")


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Shape of a DistilBERT encoder. The defaults are those of distilbert-base-uncased.

    Raises:
        ConfigError: a size that is no positive integer, a dropout outside [0, 1), heads that do not
            divide ``dim``, or an activation other than gelu and relu.
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

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "max_position_embeddings", "n_layers", "n_heads", "dim", "hidden_dim")
        for name in sizes:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} is {value!r}; expected a positive integer")
        for name in ("dropout", "attention_dropout"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1:
                raise ConfigError(f"{name} is {value!r}; expected a number from 0 up to, not including, 1")
        if self.dim % self.n_heads:
            raise ConfigError(f"n_heads {self.n_heads} does not divide dim {self.dim}; expected equal heads")
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"activation is {self.activation!r}; expected one of {', '.join(ACTIVATIONS)}")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> EncoderConfig:
        """From a DistilBERT config.json's content. Keys that do not shape the encoder are passed over."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in fields.items() if name in names})
