"""ModernBERT (Warner et al. 2024, arXiv 2412.13663), NomicBERT (Nussbaum et al. 2024, arXiv 2402.01613) and GTE (Zhang
et al. 2024, arXiv 2407.19669): rotary positions and gated feed-forward networks.

Both forms of config.json are read, transformers 4's and 5's, which has ``rope_parameters`` and ``layer_types``; and
both are written, where the first can say it. Rotary positions may be scaled in NomicBERT and GTE: linearly, or of the
GTE that was published with code of its own, by NTK. Other scaling is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mtl.checkpoints.families.bert import BERT, CONFIG
from mtl.checkpoints.families.family import Family, Head
from mtl.errors import ConfigError, shown
from mtl.model.config import FULL, SLIDING, RotaryConfig
from mtl.model.rotary import RotaryEncoder

LIMIT = 10**6  # of layers for which types are made; a shape of so many is refused anyway


def theta(rope: Any, older: Any, standard: float, name: str) -> Any:
    """How slowly positions turn, from what transformers 5 keeps of one kind of block, or from the older field;
    positions that are scaled, or turned in part, are a ConfigError."""
    rope = {} if rope is None else rope
    if not isinstance(rope, Mapping):
        raise ConfigError(f"{name} is {shown(rope)}; expected an object")
    kind = {key: value for key, value in rope.items() if key != "rope_theta" and value is not None}
    if any(key not in ("rope_type", "type") or value != "default" for key, value in kind.items()):
        raise ConfigError(f"{name} is {shown(rope)}; expected no more than rope_theta, with rope_type 'default'")
    given = rope.get("rope_theta", older)
    return standard if given is None else given


def modernbert(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The kinds of blocks and what belongs to each: of the older fields, every third block sees the whole text."""
    rope: Any = fields.get("rope_parameters") or {}
    if not isinstance(rope, Mapping) or not rope.keys() <= {FULL, SLIDING}:
        raise ConfigError(f"rope_parameters is {shown(rope)}; expected an object with {FULL} and {SLIDING}")
    layers, every = fields.get("num_hidden_layers", RotaryConfig.n_layers), fields.get("global_attn_every_n_layers")
    every = 3 if every is None else every
    if type(every) is not int or every < 1:
        raise ConfigError(f"global_attn_every_n_layers is {shown(every)}; expected a whole number of 1 or more")
    local, half = fields.get("local_attention"), fields.get("sliding_window")  # transformers 5's is of one side
    if half is not None and half != (whole := local if type(local) is int else RotaryConfig.local_attention) // 2:
        raise ConfigError(f"sliding_window is {shown(half)}; expected half of local_attention, {whole // 2}")
    kinds = fields.get("layer_types")
    if kinds is None and type(layers) is int and layers <= LIMIT:
        kinds = [SLIDING if i % every else FULL for i in range(layers)]
    return {
        "layer_types": tuple(kinds) if isinstance(kinds, list) else kinds,
        "theta": theta(rope.get(FULL), fields.get("global_rope_theta"), 160000.0, f"rope_parameters.{FULL}"),
        "local_theta": theta(rope.get(SLIDING), fields.get("local_rope_theta"), 10000.0, f"rope_parameters.{SLIDING}"),
        "gate_bias": fields.get("mlp_bias") or False,
    }


def as_modernbert(config: RotaryConfig) -> dict[str, Any]:
    kinds = list(config.layer_types or [FULL] * config.n_layers)
    every = next((i for i in range(1, len(kinds)) if kinds[i] == FULL), len(kinds))
    thetas = {FULL: config.theta, SLIDING: config.local_theta}
    return {
        "layer_types": kinds,
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": x} for kind, x in thetas.items()},
        "global_attn_every_n_layers": every,
        "global_rope_theta": config.theta,
        "local_rope_theta": config.local_theta,
    }


def turned(standard: float) -> dict[str, Any]:
    """How a family reads and writes its one theta, and by how much positions are scaled."""

    def translate(fields: Mapping[str, Any]) -> dict[str, Any]:
        rope, older = fields.get("rope_parameters"), fields.get("rope_theta", fields.get("rotary_emb_base"))
        linear = {}
        if isinstance(rope, Mapping) and rope.get("rope_type") == "linear" and rope.get("factor") is not None:
            linear["linear_factor"] = rope["factor"]
            rope = {name: value for name, value in rope.items() if name not in ("rope_type", "factor")}
        return {"theta": theta(rope, older, standard, "rope_parameters"), **linear}

    def express(config: RotaryConfig) -> dict[str, Any]:
        kind = {"rope_type": "default"} if config.linear_factor == 1 else {
            "rope_type": "linear", "factor": config.linear_factor}  # fmt: skip
        return {"rope_parameters": {**kind, "rope_theta": config.theta}, "rope_theta": config.theta}

    return {"translate": translate, "express": express}


def scaled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The theta of GTE's own code, and how it scales positions."""
    scaling, plain = fields.get("rope_scaling"), fields.get("rope_theta")
    found = {"theta": 10000.0 if plain is None else plain}
    if scaling is None:
        return found
    said = {k: v for k, v in scaling.items() if v is not None} if isinstance(scaling, Mapping) else {}
    factor, kinds = said.pop("factor", None), [said.pop(key) for key in ("type", "rope_type") if key in said]
    if said or factor is None or not kinds or any(kind != "ntk" for kind in kinds):
        raise ConfigError(f"rope_scaling is {shown(scaling)}; expected null, or no more than type 'ntk' and a factor")
    return {**found, "ntk_factor": factor}


def as_scaled(config: RotaryConfig) -> dict[str, Any]:
    scaling = {"type": "ntk", "factor": config.ntk_factor} if config.ntk_factor != 1 else None
    return {"rope_theta": config.theta, "rope_scaling": scaling, "position_embedding_type": "rope", "pack_qkv": True}


MODERNBERT = Family(
    model_type="modernbert",
    classes="ModernBert",
    prefix="model.",
    config={
        **{name: CONFIG[name] for name in ("vocab_size", "max_position_embeddings", "num_hidden_layers",
           "num_attention_heads", "hidden_size", "intermediate_size", "initializer_range")},
        "hidden_activation": "activation",
        **{name: name for name in ("norm_bias", "norm_eps", "attention_bias", "mlp_bias", "local_attention",
           "attention_dropout", "embedding_dropout", "mlp_dropout")},
    },
    tensors={name: name for name in ("embeddings.tok_embeddings.weight", "embeddings.norm.weight",
             "embeddings.norm.bias", "final_norm.weight", "final_norm.bias")},
    layers={f"layers.{{i}}.{name}": f"layers.{{i}}.{name}"
            for name in ("attn_norm", "attn.Wqkv", "attn.Wo", "mlp_norm", "mlp.Wi", "mlp.Wo")},
    head=Head("modernbert", "head.dense", norm="head.norm", pooled="classifier_pooling", fixed={
        "classifier_bias": (False,), "classifier_activation": ("gelu",), "norm_bias": (False,), "norm_eps": (1e-5,)}),
    encoder=RotaryEncoder,
    shape=RotaryConfig,
    tokenizer="PreTrainedTokenizerFast",
    defaults={"pad_token_id": 50283},
    fixed={"rope_scaling": (), "position_embedding_type": ("absolute", "rope")},
    inert=("pad_token_id", "cls_token_id", "layer_types", "rope_parameters", "global_attn_every_n_layers",
           "global_rope_theta", "local_rope_theta", "classifier_pooling", "classifier_bias", "classifier_activation",
           "decoder_bias", "deterministic_flash_attn", "initializer_cutoff_factor", "sparse_prediction",
           "sparse_pred_ignore_index", "sliding_window", "head_dim", "reference_compile", "repad_logits_with_grad",
           "layer_norm_eps"),
    translate=modernbert,
    express=as_modernbert,
    beside=(),
)  # fmt: skip
POST_NORM = {"pre_norm": False, "norm_bias": True, "norm_eps": 1e-12, "n_layers": 12, "hidden_dim": 3072,
             "layer_types": ()}  # fmt: skip
SHAPE = {**CONFIG, "layer_norm_eps": "norm_eps", "attention_probs_dropout_prob": "attention_dropout"}
# NomicBERT's own names, which files on the hub have, and what its code could be told beside them
ORIGINAL = {"n_embd": "dim", "n_head": "n_heads", "n_layer": "n_layers", "n_inner": "hidden_dim",
            "n_positions": "max_position_embeddings", "layer_norm_epsilon": "norm_eps", "resid_pdrop": "dropout",
            "attn_pdrop": "attention_dropout"}  # fmt: skip
NO_OTHER = {"activation_function": ("swiglu",), "rotary_emb_fraction": (1.0,), "rotary_scaling_factor": (),
            "rotary_emb_scale_base": (), "scale_attn_by_inverse_layer_idx": (False,),
            **dict.fromkeys(("prenorm", "qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias", "rotary_emb_interleaved",
                             "use_rms_norm", "parallel_block", "causal"), (False,))}  # fmt: skip
NOMIC = Family(
    model_type="nomic_bert",
    classes="NomicBert",
    prefix="nomic_bert.",
    config=SHAPE,
    tensors={
        "embeddings.tok_embeddings.weight": "embeddings.word_embeddings.weight",
        "embeddings.norm.weight": "emb_ln.weight",
        "embeddings.norm.bias": "emb_ln.bias",
    },
    layers={
        "layers.{i}.attn.Wqkv": "encoder.layers.{i}.attn.Wqkv",
        "layers.{i}.attn.Wo": "encoder.layers.{i}.attn.out_proj",
        "layers.{i}.attn_norm": "encoder.layers.{i}.norm1",
        "layers.{i}.mlp.Wo": "encoder.layers.{i}.mlp.fc2",
        "layers.{i}.mlp_norm": "encoder.layers.{i}.norm2",
    },
    joined={"layers.{i}.mlp.Wi": ("encoder.layers.{i}.mlp.fc12", "encoder.layers.{i}.mlp.fc11")},
    head=Head("bert", "pooler.dense", pooler=True),
    encoder=RotaryEncoder,
    shape=RotaryConfig,
    tokenizer="BertTokenizer",
    inputs=BERT.inputs,
    defaults={**POST_NORM, "vocab_size": 30528, "max_position_embeddings": 2048, "activation": "silu", "theta": 1000.0,
              "dropout": 0.0, "pad_token_id": 0, "type_vocab_size": 2},
    fixed={"rope_scaling": (), **NO_OTHER},
    inert=("pad_token_id", "type_vocab_size", "rope_parameters", "rope_theta", "head_dim", "rotary_emb_base",
           "embd_pdrop", "max_trained_positions", "pad_vocab_size_multiple", "scale_attn_weights", *ORIGINAL),
    aliases=ORIGINAL,
    token_types="embeddings.token_type_embeddings.weight",
    **turned(1000.0),
)  # fmt: skip
GTE = dataclasses.replace(
    NOMIC,
    model_type="gte",
    classes="Gte",
    prefix="gte.",
    tensors={
        "embeddings.tok_embeddings.weight": "embeddings.word_embeddings.weight",
        "embeddings.norm.weight": "embeddings.LayerNorm.weight",
        "embeddings.norm.bias": "embeddings.LayerNorm.bias",
    },
    layers={
        "layers.{i}.attn.Wqkv": "encoder.layer.{i}.attention.qkv_proj",
        "layers.{i}.attn.Wo": "encoder.layer.{i}.attention.o_proj",
        "layers.{i}.attn_norm": "encoder.layer.{i}.attn_ln",
        "layers.{i}.mlp.Wi": "encoder.layer.{i}.mlp.up_gate_proj",
        "layers.{i}.mlp.Wo": "encoder.layer.{i}.mlp.down_proj",
        "layers.{i}.mlp_norm": "encoder.layer.{i}.mlp_ln",
    },
    joined={},
    aliases={},
    fixed={"rope_scaling": ()},
    swapped=("layers.{i}.mlp.Wi",),
    tokenizer="XLMRobertaTokenizer",
    inputs=("input_ids", "attention_mask"),
    defaults={**POST_NORM, "vocab_size": 250048, "max_position_embeddings": 8192, "theta": 160000.0, "dropout": 0.1,
              "attention_bias": True, "mlp_bias": True, "pad_token_id": 1, "type_vocab_size": 1},
    **turned(160000.0),
)  # fmt: skip
# As published, with code of its own, which names it so
NEW = dataclasses.replace(
    GTE,
    model_type="new",
    classes="New",
    prefix="new.",
    remote=True,
    tokenizer="PreTrainedTokenizerFast",
    defaults={**GTE.defaults, "vocab_size": 30528, "max_position_embeddings": 2048, "pad_token_id": 0},
    fixed={"position_embedding_type": ("rope",), "pack_qkv": (True,), "layer_norm_type": ("layer_norm",),
           "logn_attention_scale": (False,), "logn_attention_clip1": (False,), "rope_parameters": ()},
    inert=("pad_token_id", "type_vocab_size", "rope_theta", "rope_scaling", "head_dim", "unpad_inputs",
           "use_memory_efficient_attention", "auto_map"),
    translate=scaled,
    express=as_scaled,
)  # fmt: skip
