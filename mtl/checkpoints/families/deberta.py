"""DeBERTa-v2 and -v3 (He et al. 2020 and 2021, arXiv 2006.03654 and 2111.09543), and mDeBERTa-v3: one model type.

Those with a convolution beside the first block (deberta-v2-xlarge) are refused, and what has no relative positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtl.checkpoints.families.bert import BERT, CONFIG, LAYERS, TENSORS
from mtl.checkpoints.families.family import POSITIONS, Family, Head
from mtl.errors import ConfigError, shown
from mtl.model.config import DebertaConfig
from mtl.model.deberta import Deberta

ATTENTION = {
    "transformer.layer.{i}.attention.q_lin": "encoder.layer.{i}.attention.self.query_proj",
    "transformer.layer.{i}.attention.k_lin": "encoder.layer.{i}.attention.self.key_proj",
    "transformer.layer.{i}.attention.v_lin": "encoder.layer.{i}.attention.self.value_proj",
    "transformer.layer.{i}.attention.pos_k_lin": "encoder.layer.{i}.attention.self.pos_key_proj",
    "transformer.layer.{i}.attention.pos_q_lin": "encoder.layer.{i}.attention.self.pos_query_proj",
}


def listed(fields: Mapping[str, Any], name: str, *known: str) -> list[str]:
    """The parts of a field such as "p2c|c2p"; others than the known ones are a ConfigError."""
    value = [] if fields.get(name) is None else fields[name]
    parts = [part.strip() for part in value.lower().split("|")] if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(part in known for part in parts):
        raise ConfigError(f"{name} is {shown(value)}; expected {' or '.join(known)}, with | between them")
    return parts


def count(fields: Mapping[str, Any], name: str, none: Any) -> Any:
    """A number, where one below 1 means none."""
    value = fields.get(name)
    return none if value is None or (type(value) is int and value < 1) else value


def read(fields: Mapping[str, Any]) -> dict[str, Any]:
    if fields.get("relative_attention") is not True:
        given = shown(fields.get("relative_attention"))
        raise ConfigError(f"relative_attention is {given}; expected true: another model would be computed")
    dim, heads = fields.get("hidden_size", 1536), fields.get("num_attention_heads", 24)
    width = dim // heads if type(dim) is int and type(heads) is int and heads > 0 else None
    for name, expected in (("embedding_size", dim), ("attention_head_size", width)):
        if fields.get(name) not in (None, expected):
            raise ConfigError(f"{name} is {shown(fields[name])}; expected {shown(expected)}: what it is without a word")
    compared = listed(fields, "pos_att_type", "c2p", "p2c")
    norms = listed(fields, "norm_rel_ebd", "none", "layer_norm")
    places = fields.get("max_position_embeddings")
    return {
        "position_buckets": count(fields, "position_buckets", 0),
        "max_relative_positions": count(fields, "max_relative_positions", 512 if places is None else places),
        "c2p": "c2p" in compared,
        "p2c": "p2c" in compared,
        "norm_rel_ebd": "layer_norm" in norms,
    }


def written(config: DebertaConfig) -> dict[str, Any]:
    most = config.max_relative_positions
    return {
        "relative_attention": True,
        "position_buckets": config.position_buckets or -1,
        "max_relative_positions": -1 if most == config.max_position_embeddings else most,
        "pos_att_type": ["p2c"] * config.p2c + ["c2p"] * config.c2p,
        "norm_rel_ebd": "layer_norm" if config.norm_rel_ebd else "none",
    }


DEBERTA = Family(
    model_type="deberta-v2",
    classes="DebertaV2",
    prefix="deberta.",
    config={**CONFIG, "position_biased_input": "position_biased_input", "share_att_key": "share_att_key"},
    tensors={
        **TENSORS,
        "rel_embeddings.weight": "encoder.rel_embeddings.weight",
        "rel_norm.weight": "encoder.LayerNorm.weight",
        "rel_norm.bias": "encoder.LayerNorm.bias",
    },
    layers=LAYERS | ATTENTION,
    head=Head("electra", "pooler.dense", activation="pooler_hidden_act",
              kinds={"gelu": "electra", "tanh": "bert", "relu": "distilbert"}),
    encoder=Deberta,
    shape=DebertaConfig,
    tokenizer="DebertaV2Tokenizer",
    inputs=BERT.inputs,
    defaults={"n_layers": 24, "n_heads": 24, "dim": 1536, "hidden_dim": 6144, "position_biased_input": True,
              "share_att_key": False, "pad_token_id": 0, "type_vocab_size": 0},
    fixed={"conv_kernel_size": (0,), **BERT.fixed},
    inert=("type_vocab_size", "pad_token_id", "conv_act", "conv_groups", "relative_attention", "embedding_size",
           "attention_head_size", "pos_att_type", "norm_rel_ebd", "position_buckets", "max_relative_positions",
           "pooler_dropout", "pooler_hidden_act", "pooler_hidden_size", "legacy", "bos_token_id", "eos_token_id"),
    translate=read,
    express=written,
    token_types=BERT.token_types,
    unread=lambda fields: () if fields.get("position_biased_input", True) else (POSITIONS,),
)  # fmt: skip
