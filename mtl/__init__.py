"""A sentence transformer and multi-task model in plain PyTorch.

The names are looked up on first use, so that ``import mtl`` alone, and with it ``mtl --help``, loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtl.encode.multitask import MultiTaskModel as MultiTaskModel
    from mtl.encode.sentence_encoder import SentenceEncoder as SentenceEncoder

PLACES = {"MultiTaskModel": "mtl.encode.multitask", "SentenceEncoder": "mtl.encode.sentence_encoder"}
__all__ = ["MultiTaskModel", "SentenceEncoder"]


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module 'mtl' has no attribute {name!r}")
    return getattr(import_module(PLACES[name]), name)
