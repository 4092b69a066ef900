"""ELECTRA (Clark et al. 2020, arXiv 2003.10555): a discriminator's trunk, which is BERT's.

Small ones have embeddings of fewer dimensions than the blocks, with a projection between; these are refused.
"""

from __future__ import annotations

import dataclasses

from mtl.checkpoints.families.bert import BERT
from mtl.checkpoints.families.family import Head

ELECTRA = dataclasses.replace(
    BERT,
    model_type="electra",
    classes="Electra",
    prefix="electra.",
    head=Head("electra", "classifier.dense", "classifier.out_proj"),
    defaults={"n_layers": 12, "n_heads": 4, "dim": 256, "hidden_dim": 1024, "pad_token_id": 0, "type_vocab_size": 2},
    inert=(*BERT.inert, "embedding_size", "summary_activation", "summary_last_dropout", "summary_type",
           "summary_use_proj"),
)  # fmt: skip
