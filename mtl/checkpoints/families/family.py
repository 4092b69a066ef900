"""Family: all that sets the checkpoints of one kind of encoder apart, as data. Loading and saving both follow it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mtl.errors import ConfigError, shown
from mtl.model.config import LARGEST, EncoderConfig
from mtl.model.encoder import DistilBert
from mtl.model.interface import Encoder

POSITIONS = "embeddings.position_embeddings.weight"
TYPES = "embeddings.token_type_embeddings.weight"  # ours, where an encoder tells the texts of a pair apart


@dataclasses.dataclass(frozen=True)
class Head:
    """The family's sequence classifier: a hidden layer and an output layer over the first token.

    ``kind`` is what TaskSpec.head calls it, which says what stands between the two. ``hidden`` and ``out`` are the
    layers' names beside the trunk; ``pooler`` says that the hidden layer's has the trunk's prefix. With a ``norm``
    before the output layer, neither that nor the hidden layer has a bias. ``pooled`` is config.json's field that says
    what it reads, if not the first token, and ``fixed`` the values that others may have. ``activation`` is the field
    that says what stands between, if any does, and ``kinds`` its values with the kinds that they make it.
    """

    kind: str
    hidden: str
    out: str = "classifier"
    pooler: bool = False
    norm: str = ""
    pooled: str = ""
    fixed: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    activation: str = ""
    kinds: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def kind_of(self, fields: Mapping[str, Any]) -> str:
        said = fields.get(self.activation)
        return self.kinds.get(said, self.kind) if isinstance(said, str) else self.kind

    def written(self, kind: str, pooling: str) -> dict[str, Any]:
        """What config.json says of a head of this kind that reads this."""
        named = [(self.activation, said) for said, known in self.kinds.items() if known == kind]
        return dict(named + [(self.pooled, pooling)] * bool(self.pooled))

    def pooling(self, fields: Mapping[str, Any]) -> str:
        """What it reads, "cls" or "mean"; a ConfigError if config.json says that it is another head than ours."""
        fixed = {**self.fixed, **({self.pooled: ("cls", "mean")} if self.pooled else {})}
        fixed |= {self.activation: tuple(self.kinds)} if self.activation else {}
        for name, allowed in fixed.items():
            if fields.get(name) is not None and fields[name] not in allowed:
                raise ConfigError(f"{name} is {shown(fields[name])}; expected {' or '.join(map(repr, allowed))}")
        return fields.get(self.pooled) or "cls"

    def names(self, prefix: str = "") -> dict[str, str]:
        """Our head's tensors -> theirs."""
        hidden = prefix * self.pooler + self.hidden
        second = ("norm.weight", f"{self.norm}.weight") if self.norm else ("pre_classifier.bias", f"{hidden}.bias")
        names = dict([("pre_classifier.weight", f"{hidden}.weight"), second])
        return {**names, "classifier.weight": f"{self.out}.weight", "classifier.bias": f"{self.out}.bias"}


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of encoder, by its ``model_type`` in config.json.

    classes: How the names of transformers' classes begin: BertModel, BertForSequenceClassification.
    prefix: What those classes with a head put before the trunk's names.
    config: Their config.json's field -> that of ``shape``, the architecture's own config.
    aliases: Other names of such fields, which are read and not written.
    translate, express: More of the shape's fields of theirs, where these are no mere renaming; and the inverse.
    defaults: What the shape's fields, and theirs by their names, are where config.json says nothing.
    fixed: The values that a field may have; with another, the model would be another.
    inert: Fields of config.json that change nothing here.
    tensors, layers: Our name -> theirs: of single tensors, and of the modules of layer {i}, which have weight and bias.
    first_position: The row of their position table at which a text begins, of config.json's fields; where it is not
        the first, the one before it is that of padding, whose token has the same number.
    token_types: Their table of token types, of which a single text sees row 0: folded into our positions. What the
        other rows are beyond it stays apart, for pairs of texts.
    joined: Our module of layer {i} -> those of theirs, whose rows it has one after another.
    swapped: Our modules of layer {i} of which theirs have the second half of the rows first.
    encoder: The architecture.
    tokenizer: The class that transformers takes where no file names one.
    inputs: What their model takes of a tokenizer's results (``model_input_names``).
    beside: Tensors under the prefix that belong to no trunk; ``unread`` are more of them, of config.json's fields.
    remote: transformers knows it by code from the hub alone, which config.json's ``auto_map`` names.
    """

    model_type: str
    classes: str
    prefix: str
    config: Mapping[str, str]
    tensors: Mapping[str, str]
    layers: Mapping[str, str]
    head: Head
    tokenizer: str
    encoder: type[Encoder] = DistilBert
    shape: type[Any] = EncoderConfig
    joined: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    swapped: tuple[str, ...] = ()
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    translate: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda fields: {}
    express: Callable[[Any], Mapping[str, Any]] = lambda config: {}
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    inert: tuple[str, ...] = ()
    first_position: Callable[[Mapping[str, Any]], int] = lambda fields: 0
    token_types: str | None = None
    unread: Callable[[Mapping[str, Any]], tuple[str, ...]] = lambda fields: ()
    beside: tuple[str, ...] = ("embeddings.position_ids", "embeddings.token_type_ids")
    remote: bool = False

    @property
    def words(self) -> str:
        """Our name of the table of words."""
        return f"{self.encoder.WORDS}.weight"

    def read_config(self, fields: Mapping[str, Any]) -> Any:
        """The encoder's shape from config.json's content; a ConfigError for a field of another type or size, or a value
        that makes a model which is not ours."""
        for name, allowed in self.fixed.items():
            value = fields.get(name)
            if value is not None and value not in allowed:
                expected = " or ".join(map(repr, allowed)) or "null"
                raise ConfigError(f"{name} is {shown(value)}; expected {expected}: another model would be computed")
        given: dict[str, Any] = {}
        for theirs, ours in (*self.config.items(), *self.aliases.items()):
            value = fields.get(theirs)
            if value is not None and given.setdefault(ours, value) != value:
                raise ConfigError(f"{theirs} is {shown(value)}, but is {shown(given[ours])} under another name")
        known = {field.name for field in dataclasses.fields(self.shape)}
        standard = {name: value for name, value in self.defaults.items() if name in known}
        config = self.shape(**standard | given | dict(self.translate(fields)))
        padding, rows = fields.get("pad_token_id"), config.vocab_size
        if padding is not None and (type(padding) is not int or not -rows <= padding < rows):
            raise ConfigError(
                f"pad_token_id is {shown(padding)}; expected one of the {rows} rows of the table of words"
            )
        width = config.dim // config.n_heads
        if fields.get("head_dim") not in (None, width):
            raise ConfigError(f"head_dim is {shown(fields['head_dim'])}; expected {width}, a head's part of the width")
        first, most = self.start(fields), config.max_position_embeddings
        return dataclasses.replace(
            config, max_position_embeddings=most - first, **({"padding": first - 1} if first else {})
        )

    def write_config(self, config: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The inverse: config.json's fields of the encoder's shape. ``fields`` are those that it came with."""
        shape = dataclasses.asdict(config)
        if (padding := shape.get("padding")) is not None:
            shape["max_position_embeddings"] += padding + 1
        written = {theirs: shape[ours] for theirs, ours in self.config.items()}
        written |= self.express(config)
        return written | ({"type_vocab_size": self.types(fields)} if self.token_types else {})

    def has(self, head: str) -> bool:
        """Whether its sequence classifiers have this kind of head."""
        return head in (self.head.kind, *self.head.kinds.values())

    def expresses(self, encoder: Encoder) -> bool:
        """Whether it is this architecture, and config.json says all of its shape, by what is read of it again."""
        if type(encoder) is not self.encoder:
            return False
        try:
            read = self.read_config(self.write_config(encoder.config, {}))
            same = read == dataclasses.replace(encoder.config, segments=read.segments)
            return same and (encoder.config.segments == 1 or self.token_types is not None)
        except ConfigError:
            return False

    def start(self, fields: Mapping[str, Any]) -> int:
        """The row of their position table at which a text begins; a ConfigError where the table ends before it."""
        first = self.first_position({**self.defaults, **fields})
        rows = fields.get("max_position_embeddings", self.defaults.get("max_position_embeddings", 512))
        if type(first) is not int or first < 0 or (type(rows) is int and first >= rows):
            given = f"pad_token_id is {shown(fields.get('pad_token_id'))}"
            raise ConfigError(f"{given}; expected a whole number below the {shown(rows)} rows of the position table")
        return first

    def types(self, fields: Mapping[str, Any]) -> int:
        """The number of rows of their table of token types; a ConfigError where it cannot be one."""
        rows = fields.get("type_vocab_size", self.defaults.get("type_vocab_size", 2))
        least = int(POSITIONS in self.tensors and self.defaults.get("type_vocab_size") != 0)
        if type(rows) is not int or not least <= rows <= LARGEST:
            raise ConfigError(f"type_vocab_size is {shown(rows)}; expected a whole number of {least} or more")
        return rows

    def names(self, n_layers: int) -> dict[str, str]:
        """Our name -> theirs for every tensor of an encoder: one to one, so that it can be inverted."""
        names = dict(self.tensors)
        for i in range(n_layers):
            for ours, theirs in self.layers.items():
                for kind in ("weight", "bias"):
                    names[f"{ours.format(i=i)}.{kind}"] = f"{theirs.format(i=i)}.{kind}"
        return names

    def parts(self, n_layers: int) -> dict[str, tuple[str, ...]]:
        """Our name -> theirs for what is joined of several tensors."""
        return {
            f"{ours.format(i=i)}.{kind}": tuple(f"{part.format(i=i)}.{kind}" for part in theirs)
            for i in range(n_layers)
            for ours, theirs in self.joined.items()
            for kind in ("weight", "bias")
        }

    def halves(self, n_layers: int) -> set[str]:
        """Our names of tensors whose halves theirs have in the other order."""
        modules = [ours.format(i=i) for i in range(n_layers) for ours in self.swapped]
        return {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}

    def shapes(
        self, ours: Mapping[str, tuple[int, ...]], config: Any, fields: Mapping[str, Any]
    ) -> dict[str, tuple[int, ...]]:
        """Their trunk's names and shapes, of those of our encoder."""
        names, parts = self.names(config.n_layers), self.parts(config.n_layers)
        shapes = {names[name]: tuple(shape) for name, shape in ours.items() if name in names}
        for name in ours.keys() & parts.keys():
            rows, *rest = ours[name]
            shapes |= dict.fromkeys(parts[name], (rows // len(parts[name]), *rest))
        if POSITIONS in ours:
            shapes[names[POSITIONS]] = (config.max_position_embeddings + self.start(fields), ours[POSITIONS][1])
        if self.token_types and self.types(fields):
            shapes[self.token_types] = (self.types(fields), ours[self.words][1])
        return shapes

    def fold(self, tensors: Mapping[str, Tensor], config: Any, fields: Mapping[str, Any]) -> dict[str, Tensor]:
        """Their trunk's tensors under our names: positions from where a text begins, the token type added to them.

        Where there is no table of positions, it is added to that of words.
        """
        names, parts = self.names(config.n_layers), self.parts(config.n_layers)
        folded = {ours: tensors[theirs] for ours, theirs in names.items() if theirs in tensors}
        for ours, theirs in parts.items():
            if theirs[0] in tensors:
                folded[ours] = torch.cat([tensors[part] for part in theirs])
        for name in self.halves(config.n_layers) & folded.keys():
            folded[name] = torch.cat(folded[name].chunk(2)[::-1])
        if POSITIONS in folded and (first := self.start(fields)):
            table = folded[POSITIONS]
            folded[POSITIONS] = torch.cat([table[first:], table[first - 1 : first]])
        if self.token_types and self.token_types in tensors:
            name = POSITIONS if POSITIONS in folded else self.words
            folded[name] = folded[name] + tensors[self.token_types][0]
        return folded

    def types_apart(self, tensors: Mapping[str, Tensor]) -> Tensor | None:
        """What their token types are beyond the first, (types, dim); none where there are no others."""
        table = tensors.get(self.token_types or "")
        return None if table is None or len(table) < 2 else table - table[0]

    def unfold(
        self, tensors: Mapping[str, Tensor], config: Any, fields: Mapping[str, Any], types: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The inverse, but for the first token type: it stays folded in, and is zero, as are unused positions.

        ``types`` are those that stayed apart, where the encoder has not its own.
        """
        tensors = dict(tensors)
        types = tensors.pop(TYPES, types)
        names, parts, halves = self.names(config.n_layers), self.parts(config.n_layers), self.halves(config.n_layers)
        renamed: dict[str, Tensor] = {}
        for ours, tensor in tensors.items():
            whole = torch.cat(tensor.chunk(2)[::-1]) if ours in halves else tensor
            if ours in parts:
                renamed |= dict(zip(parts[ours], whole.chunk(len(parts[ours])), strict=True))
            else:
                renamed[names[ours]] = whole
        if POSITIONS in tensors and (first := self.start(fields)):
            table = tensors[POSITIONS]
            unused = table.new_zeros(first - 1, table.shape[1])
            renamed[names[POSITIONS]] = torch.cat([unused, table[-1:], table[:-1]])
        if self.token_types and self.types(fields):
            table = tensors[self.words].new_zeros(self.types(fields), tensors[self.words].shape[1])
            if types is not None and types.shape[1] == table.shape[1]:  # else they came with another encoder
                table[: len(types)] = types
            renamed[self.token_types] = table
        return renamed
