"""A sentence transformer and multi-task model in plain PyTorch.

The names are looked up on first use, so that ``import mtl`` alone, and with it ``mtl --help``, loads no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtl.model import SentenceEncoder as SentenceEncoder
    from mtl.multitask import MultiTaskModel as MultiTaskModel

__all__ = ["MultiTaskModel", "SentenceEncoder"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'mtl' has no attribute {name!r}")
    from mtl import model, multitask

    return getattr(model if name == "SentenceEncoder" else multitask, name)
