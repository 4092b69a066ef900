"""EncoderConfig: the shape of an encoder, under the field names of transformers' DistilBertConfig."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mtl.errors import ConfigError, shown
from mtl.model.activations import ACTIVATIONS

LAYER_NORM_EPS = 1e-12  # stands in no DistilBERT config.json; BERT's value
LARGEST = 10**9  # of a size; the product of two still fits what torch counts in


@dataclasses.dataclass(frozen=True, repr=False)
class EncoderConfig:
    """Shape of a DistilBERT encoder. The defaults are those of distilbert-base-uncased.

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

    def __repr__(self) -> str:
        """As a dataclass's own, without an eps that is BERT's: fingerprints of models are made of it."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if fields["layer_norm_eps"] == LAYER_NORM_EPS:
            del fields["layer_norm_eps"]
        return f"EncoderConfig({', '.join(f'{name}={value!r}' for name, value in fields.items())})"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "max_position_embeddings", "n_layers", "n_heads", "dim", "hidden_dim"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= LARGEST:
                raise ConfigError(f"{name} is {shown(value)}; expected a positive integer up to {LARGEST}")
        limits = {"dropout": 1, "attention_dropout": 1, "initializer_range": LARGEST, "layer_norm_eps": 1}
        for name, most in limits.items():
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value < most:
                raise ConfigError(f"{name} is {shown(value)}; expected a number from 0 up to, not including, {most}")
        if type(self.sinusoidal_pos_embds) is not bool:
            raise ConfigError(f"sinusoidal_pos_embds is {shown(self.sinusoidal_pos_embds)}; expected true or false")
        if self.dim % self.n_heads:
            raise ConfigError(f"n_heads {self.n_heads} does not divide dim {self.dim}; expected equal heads")
        if self.activation not in list(ACTIVATIONS):  # it may be of any type
            raise ConfigError(f"activation is {shown(self.activation)}; expected one of {', '.join(ACTIVATIONS)}")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> EncoderConfig:
        """From a DistilBERT config.json's content. Keys that do not shape the encoder are passed over."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in fields.items() if name in names})
