"""A sentence transformer and multi-task model in plain PyTorch.

The names are looked up on first use, so that ``import mtl`` alone, and with it ``mtl --help``, loads no torch.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtl import checkpoints
from mtl.errors import (
    CheckpointError,
    ConfigError,
    InputError,
    MtlError,
    RecipeError,
    TrainingError,
    TrainingStopped,
    WeightsError,
)
from mtl.shadows import import_shadowed

if TYPE_CHECKING:
    __version__: str
    from mtl.encode.sentence_encoder import SentenceEncoder
    from mtl.export.onnx import export_onnx
    from mtl.index.index import Index
    from mtl.index.shards import search_corpus
    from mtl.rows.corpus import embed_corpus
    from mtl.tasks.kinds.base import HeadKind, Kind
    from mtl.tasks.kinds.single_label import SingleLabel
    from mtl.tasks.multitask import MultiTaskModel
    from mtl.tasks.register import register_kind, register_loss, register_metric
    from mtl.tasks.spec import TaskSpec
    from mtl.training.evaluate import evaluate
    from mtl.training.recipe import Recipe, Training
    from mtl.training.report import Reporter
    from mtl.training.session import train

MODULES = {
    "Index": "mtl.index.index",
    "MultiTaskModel": "mtl.tasks.multitask",
    "SentenceEncoder": "mtl.encode.sentence_encoder",
    "TaskSpec": "mtl.tasks.spec",
    "Kind": "mtl.tasks.kinds.base",
    "HeadKind": "mtl.tasks.kinds.base",
    "SingleLabel": "mtl.tasks.kinds.single_label",
    "register_kind": "mtl.tasks.register",
    "register_loss": "mtl.tasks.register",
    "register_metric": "mtl.tasks.register",
    "Recipe": "mtl.training.recipe",
    "Reporter": "mtl.training.report",
    "Training": "mtl.training.recipe",
    "train": "mtl.training.session",
    "evaluate": "mtl.training.evaluate",
    "embed_corpus": "mtl.rows.corpus",
    "search_corpus": "mtl.index.shards",
    "export_onnx": "mtl.export.onnx",
}

__all__ = [
    "CheckpointError",
    "ConfigError",
    "HeadKind",
    "Index",
    "InputError",
    "Kind",
    "MtlError",
    "MultiTaskModel",
    "Recipe",
    "RecipeError",
    "Reporter",
    "SentenceEncoder",
    "SingleLabel",
    "TaskSpec",
    "Training",
    "TrainingError",
    "TrainingStopped",
    "WeightsError",
    "__version__",
    "embed_corpus",
    "evaluate",
    "export_onnx",
    "register_kind",
    "register_loss",
    "register_metric",
    "search_corpus",
    "train",
]


import_shadowed()


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from mtl.display import version_of

        return version_of("mtl")
    if name not in MODULES:
        raise AttributeError(f"module 'mtl' has no attribute {name!r}")
    return getattr(import_module(MODULES[name]), name)


def _export_onnx(model: Path, output: Path) -> object:
    return __getattr__("export_onnx")(model, output)


checkpoints.export_onnx = _export_onnx
