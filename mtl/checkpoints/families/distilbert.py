"""DistilBERT (Sanh et al. 2019, arXiv 1910.01108), whose names are our encoder's own."""

from __future__ import annotations

from mtl.checkpoints.families.bert import LAYERS, TENSORS
from mtl.checkpoints.families.family import Family, Head

SHAPE = ("vocab_size", "max_position_embeddings", "sinusoidal_pos_embds", "n_layers", "n_heads", "dim", "hidden_dim",
         "dropout", "attention_dropout", "activation", "initializer_range")  # fmt: skip
DISTILBERT = Family(
    model_type="distilbert",
    classes="DistilBert",
    prefix="distilbert.",
    config={name: name for name in SHAPE},
    tensors={name: name for name in TENSORS},
    layers={name: name for name in LAYERS},
    aliases={"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"},
    head=Head("distilbert", "pre_classifier"),
    tokenizer="BertTokenizer",
    fixed={"pruned_heads": ({},)},
    inert=("pad_token_id", "qa_dropout", "seq_classif_dropout", "tie_weights_"),
)
