"""Family: all that sets the checkpoints of one kind of encoder apart, as data. Loading and saving both follow it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from mtl.errors import ConfigError, shown
from mtl.model.config import EncoderConfig
from mtl.model.encoder import DistilBert
from mtl.model.interface import Encoder

POSITIONS = "embeddings.position_embeddings.weight"


@dataclasses.dataclass(frozen=True)
class Head:
    """The family's sequence classifier: a hidden layer and an output layer over the first token.

    ``kind`` is what TaskSpec.head calls it, which says what stands between the two. ``hidden`` and ``out`` are the
    layers' names beside the trunk; ``pooler`` says that the hidden layer's has the trunk's prefix.
    """

    kind: str
    hidden: str
    out: str = "classifier"
    pooler: bool = False

    def names(self, prefix: str = "") -> dict[str, str]:
        """Our head's tensors -> theirs."""
        layers = {"pre_classifier": prefix * self.pooler + self.hidden, "classifier": self.out}
        return {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in layers.items() for kind in ("weight", "bias")}


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of encoder, by its ``model_type`` in config.json.

    classes: How the names of transformers' classes begin: BertModel, BertForSequenceClassification.
    prefix: What those classes with a head put before the trunk's names.
    config: Their config.json's field -> EncoderConfig's.
    defaults: What EncoderConfig's fields, and theirs by their names, are where config.json says nothing.
    fixed: The values that a field may have; with another, the model would be another.
    inert: Fields of config.json that change nothing here.
    tensors, layers: Our name -> theirs: of single tensors, and of the modules of layer {i}, which have weight and bias.
    first_position: The row of their position table at which a text begins, of config.json's fields.
    token_types: Their table of token types, of which a single text sees row 0: folded into our positions.
    encoder: The architecture.
    tokenizer: The class that transformers takes where no file names one.
    inputs: What their model takes of a tokenizer's results (``model_input_names``).
    beside: Tensors under the prefix that belong to no trunk.
    """

    model_type: str
    classes: str
    prefix: str
    config: Mapping[str, str]
    tensors: Mapping[str, str]
    layers: Mapping[str, str]
    head: Head
    tokenizer: str
    encoder: type[DistilBert] = DistilBert
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    inert: tuple[str, ...] = ()
    first_position: Callable[[Mapping[str, Any]], int] = lambda fields: 0
    token_types: str | None = None
    beside: tuple[str, ...] = ("embeddings.position_ids", "embeddings.token_type_ids")

    def read_config(self, fields: Mapping[str, Any]) -> EncoderConfig:
        """The encoder's shape from config.json's content.

        Raises:
            ConfigError: a field of another type or size, or one whose value makes a model that is not ours.
        """
        for name, allowed in self.fixed.items():
            value = fields.get(name)
            if value is not None and value not in allowed:
                expected = " or ".join(map(repr, allowed))
                raise ConfigError(f"{name} is {shown(value)}; expected {expected}: another model would be computed")
        given = {ours: fields[theirs] for theirs, ours in self.config.items() if fields.get(theirs) is not None}
        ours = {field.name for field in dataclasses.fields(EncoderConfig)}
        config = EncoderConfig(**{name: value for name, value in self.defaults.items() if name in ours} | given)
        return dataclasses.replace(config, max_position_embeddings=config.max_position_embeddings - self.start(fields))

    def write_config(self, config: EncoderConfig, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The inverse: config.json's fields of the encoder's shape. ``fields`` are those that it came with."""
        shape = dataclasses.asdict(config)
        shape["max_position_embeddings"] += self.start(fields)
        written = {theirs: shape[ours] for theirs, ours in self.config.items()}
        return written | ({"type_vocab_size": self.types(fields)} if self.token_types else {})

    def expresses(self, encoder: Encoder) -> bool:
        """Whether it is this architecture, and config.json has a field for whatever in its shape is not the default."""
        config, default = encoder.config, EncoderConfig()
        if type(encoder) is not self.encoder:
            return False
        written = self.config.values()
        return all(getattr(config, f.name) == getattr(default, f.name) or f.name in written
                   for f in dataclasses.fields(config))  # fmt: skip

    def start(self, fields: Mapping[str, Any]) -> int:
        """The row of their position table at which a text begins.

        Raises:
            ConfigError: the table does not reach so far.
        """
        first = self.first_position({**self.defaults, **fields})
        rows = fields.get("max_position_embeddings", self.defaults.get("max_position_embeddings", 512))
        if type(first) is not int or first < 0 or (type(rows) is int and first >= rows):
            given = f"pad_token_id is {shown(fields.get('pad_token_id'))}"
            raise ConfigError(f"{given}; expected a whole number below the {shown(rows)} rows of the position table")
        return first

    def types(self, fields: Mapping[str, Any]) -> int:
        """The rows of their table of token types.

        Raises:
            ConfigError: no positive number.
        """
        rows = fields.get("type_vocab_size", self.defaults.get("type_vocab_size", 2))
        if type(rows) is not int or rows < 1:
            raise ConfigError(f"type_vocab_size is {shown(rows)}; expected a whole number of 1 or more")
        return rows

    def names(self, n_layers: int) -> dict[str, str]:
        """Our name -> theirs for every tensor of an encoder: one to one, so that it can be inverted."""
        names = dict(self.tensors)
        for i in range(n_layers):
            for ours, theirs in self.layers.items():
                for kind in ("weight", "bias"):
                    names[f"{ours.format(i=i)}.{kind}"] = f"{theirs.format(i=i)}.{kind}"
        return names

    def shapes(
        self, ours: Mapping[str, tuple[int, ...]], config: EncoderConfig, fields: Mapping[str, Any]
    ) -> dict[str, tuple[int, ...]]:
        """Their trunk's names and shapes, of those of our encoder."""
        names = self.names(config.n_layers)
        shapes = {names[name]: tuple(shape) for name, shape in ours.items()}
        if POSITIONS in ours:
            rows, width = ours[POSITIONS]
            shapes[names[POSITIONS]] = (rows + self.start(fields), width)
            if self.token_types:
                shapes[self.token_types] = (self.types(fields), width)
        return shapes

    def fold(
        self, tensors: Mapping[str, Tensor], config: EncoderConfig, fields: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Their trunk's tensors under our names: positions from where a text begins, the token type added to them."""
        folded = {ours: tensors[theirs] for ours, theirs in self.names(config.n_layers).items()}
        folded[POSITIONS] = folded[POSITIONS][self.start(fields) :]
        if self.token_types:
            folded[POSITIONS] = folded[POSITIONS] + tensors[self.token_types][0]
        return folded

    def unfold(
        self, tensors: Mapping[str, Tensor], config: EncoderConfig, fields: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """The inverse, but for the token type: it stays folded in, and its table is zero, as are unused positions."""
        names = self.names(config.n_layers)
        renamed = {names[name]: tensor for name, tensor in tensors.items()}
        positions = tensors[POSITIONS]
        unused = positions.new_zeros(self.start(fields), positions.shape[1])
        if len(unused):
            renamed[names[POSITIONS]] = unused.new_zeros(len(unused) + len(positions), positions.shape[1])
            renamed[names[POSITIONS]][len(unused) :] = positions
        if self.token_types:
            renamed[self.token_types] = positions.new_zeros(self.types(fields), positions.shape[1])
        return renamed
