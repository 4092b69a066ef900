"""MPNet (Song et al. 2020, arXiv 2004.09297): BERT without token types, with a bias by distance in attention.

A text begins at row 2 of the table of positions, and token 1 takes no place in it, whatever pad_token_id is:
transformers knows no other.
"""

from __future__ import annotations

from mtl.checkpoints.families.bert import BERT, CONFIG, LAYERS, TENSORS
from mtl.checkpoints.families.family import Family, Head
from mtl.model.mpnet import BUCKETS, MPNet

ATTENTION = {
    "transformer.layer.{i}.attention.q_lin": "encoder.layer.{i}.attention.attn.q",
    "transformer.layer.{i}.attention.k_lin": "encoder.layer.{i}.attention.attn.k",
    "transformer.layer.{i}.attention.v_lin": "encoder.layer.{i}.attention.attn.v",
    "transformer.layer.{i}.attention.out_lin": "encoder.layer.{i}.attention.attn.o",
    "transformer.layer.{i}.sa_layer_norm": "encoder.layer.{i}.attention.LayerNorm",
}
MPNET = Family(
    model_type="mpnet",
    classes="MPNet",
    prefix="mpnet.",
    config=CONFIG,
    tensors={**TENSORS, "relative_attention_bias.weight": "encoder.relative_attention_bias.weight"},
    layers=LAYERS | ATTENTION,
    head=Head("bert", "classifier.dense", "classifier.out_proj"),
    encoder=MPNet,
    tokenizer="MPNetTokenizer",
    defaults={"n_layers": 12, "vocab_size": 30527, "pad_token_id": 1},
    fixed={"relative_attention_num_buckets": (BUCKETS,), **BERT.fixed},
    inert=("pad_token_id", "bos_token_id", "eos_token_id"),
    first_position=lambda fields: 2,
)
