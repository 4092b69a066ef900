"""Does this machine give a window of training the same gradients on any number of threads? It is tried out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece

from mtl.checkpoints.tokenizer import Tokenizer as Cutter
