"""BERT (Devlin et al. 2018, arXiv 1810.04805), and what is called alike.

With a single segment BERT is DistilBERT: every token gets row 0 of the token-type table, so that row is added to each
row of the position table once and for all. The rest is renaming.
"""

from __future__ import annotations

from mtl.checkpoints.families.family import POSITIONS, Family, Head

CONFIG = {
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
    "layer_norm_eps": "layer_norm_eps",
}
TENSORS = {
    "embeddings.word_embeddings.weight": "embeddings.word_embeddings.weight",
    POSITIONS: POSITIONS,
    "embeddings.LayerNorm.weight": "embeddings.LayerNorm.weight",
    "embeddings.LayerNorm.bias": "embeddings.LayerNorm.bias",
}
LAYERS = {
    "transformer.layer.{i}.attention.q_lin": "encoder.layer.{i}.attention.self.query",
    "transformer.layer.{i}.attention.k_lin": "encoder.layer.{i}.attention.self.key",
    "transformer.layer.{i}.attention.v_lin": "encoder.layer.{i}.attention.self.value",
    "transformer.layer.{i}.attention.out_lin": "encoder.layer.{i}.attention.output.dense",
    "transformer.layer.{i}.sa_layer_norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "transformer.layer.{i}.ffn.lin1": "encoder.layer.{i}.intermediate.dense",
    "transformer.layer.{i}.ffn.lin2": "encoder.layer.{i}.output.dense",
    "transformer.layer.{i}.output_layer_norm": "encoder.layer.{i}.output.LayerNorm",
}
BERT = Family(
    model_type="bert",
    classes="Bert",
    prefix="bert.",
    config=CONFIG,
    tensors=TENSORS,
    layers=LAYERS,
    head=Head("bert", "pooler.dense", pooler=True),
    tokenizer="BertTokenizer",
    inputs=("input_ids", "token_type_ids", "attention_mask"),
    defaults={"n_layers": 12, "pad_token_id": 0, "type_vocab_size": 2},
    fixed={
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
        "pruned_heads": ({},),
    },
    inert=("type_vocab_size", "pad_token_id", "classifier_dropout", "use_cache", "directionality", "pooler_fc_size",
           "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type"),
    token_types="embeddings.token_type_embeddings.weight",
)  # fmt: skip
