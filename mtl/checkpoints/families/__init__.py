"""The kinds of encoder that are read and written, each a record."""

from __future__ import annotations

from mtl.checkpoints.families.bert import BERT
from mtl.checkpoints.families.deberta import DEBERTA
from mtl.checkpoints.families.distilbert import DISTILBERT
from mtl.checkpoints.families.electra import ELECTRA
from mtl.checkpoints.families.family import Family, Head
from mtl.checkpoints.families.mpnet import MPNET
from mtl.checkpoints.families.roberta import CAMEMBERT, ROBERTA, XLM_ROBERTA
from mtl.checkpoints.families.rotary import GTE, MODERNBERT, NEW, NOMIC

ALL = (DISTILBERT, BERT, ROBERTA, XLM_ROBERTA, CAMEMBERT, ELECTRA, MPNET, DEBERTA, MODERNBERT, NOMIC, GTE, NEW)
FAMILIES = {family.model_type: family for family in ALL}

__all__ = ["BERT", "DISTILBERT", "FAMILIES", "Family", "Head"]
