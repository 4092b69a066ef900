"""ELECTRA (Clark et al. 2020, arXiv 2003.10555): a discriminator's trunk, which is BERT's.

Small ones have embeddings of fewer dimensions than the blocks, with a projection between.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mtl.checkpoints.families.bert import BERT, TENSORS
from mtl.checkpoints.families.family import Head


def width(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The width of the embeddings where it is not that of the blocks."""
    found, dim = (standard if fields.get(name) is None else fields[name]
                  for name, standard in (("embedding_size", 128), ("hidden_size", 256)))  # fmt: skip
    return {} if found == dim and type(found) is type(dim) else {"embedding_dim": found}


ELECTRA = dataclasses.replace(
    BERT,
    model_type="electra",
    classes="Electra",
    prefix="electra.",
    tensors=TENSORS | {f"embeddings.project.{kind}": f"embeddings_project.{kind}" for kind in ("weight", "bias")},
    head=Head("electra", "classifier.dense", "classifier.out_proj"),
    defaults={"n_layers": 12, "n_heads": 4, "dim": 256, "hidden_dim": 1024, "pad_token_id": 0, "type_vocab_size": 2},
    inert=(*BERT.inert, "embedding_size", "summary_activation", "summary_last_dropout", "summary_type",
           "summary_use_proj"),
    translate=width,
    express=lambda config: {"embedding_size": config.embedding_dim or config.dim},
)  # fmt: skip
