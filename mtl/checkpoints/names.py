"""What tensors are called: BERT's names and DistilBERT's, and the exact way between the two.

BERT with a single segment is DistilBERT: every token gets row 0 of the token-type table, so that row can be
added to each row of the position table once and for all. The rest is renaming.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

POSITIONS = "embeddings.position_embeddings.weight"
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"

# DistilBERT's name -> BERT's, for the modules of layer i that have a weight and a bias
LAYER_NAMES = {
    "transformer.layer.{i}.attention.q_lin": "encoder.layer.{i}.attention.self.query",
    "transformer.layer.{i}.attention.k_lin": "encoder.layer.{i}.attention.self.key",
    "transformer.layer.{i}.attention.v_lin": "encoder.layer.{i}.attention.self.value",
    "transformer.layer.{i}.attention.out_lin": "encoder.layer.{i}.attention.output.dense",
    "transformer.layer.{i}.sa_layer_norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "transformer.layer.{i}.ffn.lin1": "encoder.layer.{i}.intermediate.dense",
    "transformer.layer.{i}.ffn.lin2": "encoder.layer.{i}.output.dense",
    "transformer.layer.{i}.output_layer_norm": "encoder.layer.{i}.output.LayerNorm",
}
EMBEDDING_NAMES = (
    "embeddings.word_embeddings.weight",
    POSITIONS,
    "embeddings.LayerNorm.weight",
    "embeddings.LayerNorm.bias",
)

# What a checkpoint may carry beyond the encoder, and we drop: the masked-LM head, BERT's pooler and
# pre-training heads, and a buffer that only counts 0, 1, 2, ...
DROPPED = (
    "vocab_transform.",
    "vocab_layer_norm.",
    "vocab_projector.",
    "pooler.",
    "cls.",
    "embeddings.position_ids",
)
# What it may carry and we keep beside the encoder: the head of DistilBertForSequenceClassification.
HEAD = ("pre_classifier.weight", "pre_classifier.bias", "classifier.weight", "classifier.bias")

# transformers' BertConfig field -> DistilBertConfig field
CONFIG_NAMES = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "hidden_size": "dim",
    "intermediate_size": "hidden_dim",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "hidden_act": "activation",
    "initializer_range": "initializer_range",
}


def bert_names(n_layers: int) -> dict[str, str]:
    """DistilBERT's name -> BERT's for every tensor of an encoder: one to one, so that it can be inverted."""
    names = {name: name for name in EMBEDDING_NAMES}
    for i in range(n_layers):
        for ours, berts in LAYER_NAMES.items():
            for kind in ("weight", "bias"):
                names[f"{ours.format(i=i)}.{kind}"] = f"{berts.format(i=i)}.{kind}"
    return names


def from_bert(tensors: Mapping[str, Tensor], n_layers: int) -> dict[str, Tensor]:
    """BERT's tensors under DistilBERT's names, the token type folded in."""
    renamed = {ours: tensors[berts] for ours, berts in bert_names(n_layers).items()}
    renamed[POSITIONS] = renamed[POSITIONS] + tensors[TOKEN_TYPES][0]
    return renamed


def to_bert(tensors: Mapping[str, Tensor], n_layers: int) -> dict[str, Tensor]:
    """The inverse of ``from_bert``, but for the token type: it stays folded in, and its table is zero.

    BERT tables have two rows; the sum that a text of one segment sees is the same.
    """
    names = bert_names(n_layers)
    renamed = {names[name]: tensor for name, tensor in tensors.items()}
    positions = renamed[POSITIONS]
    return {**renamed, TOKEN_TYPES: positions.new_zeros(2, positions.shape[1])}
