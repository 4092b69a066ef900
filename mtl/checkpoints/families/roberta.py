"""RoBERTa (Liu et al. 2019, arXiv 1907.11692), XLM-RoBERTa (Conneau et al. 2020, arXiv 1911.02116) and CamemBERT.

They are BERT but for the place of the first position: a text begins at row pad_token_id + 1 of the table, of whose
514 rows 512 can be used. Tokens that are no padding are counted, so that a literal <pad> in a text takes no place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mtl.checkpoints.families.bert import BERT
from mtl.checkpoints.families.family import Head


def after_padding(fields: Mapping[str, Any]) -> Any:
    """The row at which a text begins: the one behind the padding's."""
    padding = fields.get("pad_token_id")
    return padding + 1 if type(padding) is int and padding >= 0 else None


ROBERTA = dataclasses.replace(
    BERT,
    model_type="roberta",
    classes="Roberta",
    prefix="roberta.",
    head=Head("bert", "classifier.dense", "classifier.out_proj"),
    tokenizer="RobertaTokenizer",
    inputs=("input_ids", "attention_mask"),
    defaults={"n_layers": 12, "vocab_size": 50265, "pad_token_id": 1, "type_vocab_size": 2},
    inert=(*BERT.inert, "bos_token_id", "eos_token_id"),
    first_position=after_padding,
    express=lambda config: {"pad_token_id": config.padding},
)
XLM_ROBERTA = dataclasses.replace(
    ROBERTA, model_type="xlm-roberta", classes="XLMRoberta", tokenizer="XLMRobertaTokenizer",
    defaults={**ROBERTA.defaults, "vocab_size": 30522},
)  # fmt: skip
CAMEMBERT = dataclasses.replace(
    ROBERTA, model_type="camembert", classes="Camembert", tokenizer="CamembertTokenizer",
    defaults={**ROBERTA.defaults, "vocab_size": 30522},
)  # fmt: skip
