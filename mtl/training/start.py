"""The model that a recipe starts from: a pretrained trunk, with a head for each task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mtl.checkpoints import load
from mtl.checkpoints.fetch import fetch
from mtl.encode.sentence_encoder import SentenceEncoder
from mtl.errors import RecipeError
from mtl.model.interface import Encoder
from mtl.tasks.multitask import MultiTaskModel
from mtl.training.recipe import Recipe

DRAWING = {"kaiming_uniform_", "uniform_", "normal_"}  # torch's, by which our modules are filled


class DrawingFrom(TorchFunctionMode):
    """Has this thread's new modules filled from a generator, where torch would take the process's own."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        drawn = {"generator": self.generator} if function.__name__ in DRAWING else {}
        return function(*args, **{**(kwargs or {}), **drawn})


def create(recipe: Recipe, device: str | torch.device = "cpu") -> MultiTaskModel:
    """The recipe's pretrained trunk with new heads; what is random follows from the recipe's seed.

    A task with the form of head of the checkpoint's classifier, over the first token, and its labels, or like it one
    number, starts from that, and one that the checkpoint has too, with the same labels, pooling and form of head, from
    that one's. Its embedder has the recipe's ``max_length``, which the model is saved with.
    """
    with DrawingFrom(torch.Generator().manual_seed(recipe.training.seed)):
        return created(recipe).to(device)


def trunk_of(recipe: Recipe) -> str:
    """What the recipe's model is called: a folder beside the recipe where there is none here, else as it is said."""
    beside = recipe.folder / recipe.model
    return str(beside if beside.is_dir() and not Path(recipe.model).is_dir() else recipe.model)


def created(recipe: Recipe) -> MultiTaskModel:
    pretrained = load.load(fetch(trunk_of(recipe)))
    if recipe.layers:
        keep_layers(pretrained.encoder, recipe.layers)
    embedder = SentenceEncoder.from_checkpoint(pretrained)
    if recipe.training.max_length is not None:
        embedder.max_seq_length = recipe.training.max_length
    model = MultiTaskModel(embedder, recipe.tasks)
    for task in recipe.tasks:
        theirs = pretrained.classifier
        if theirs and not theirs.problem and task.handler.begins_with(theirs):
            head, own = model.branch(task.name).head, task.handler.continued(task)
            if own and shapes(head.state_dict()) == shapes(theirs.tensors):
                head.load_state_dict(theirs.tensors)
                model.tasks[task.name] = own
    if pretrained.tasks:
        before = MultiTaskModel.from_checkpoint(pretrained)
        for task in recipe.tasks:  # as declared: the folder's classifier may have given it another scale
            if task.name in before.tasks and (own := task.handler.continued(before.tasks[task.name])):
                model.branch(task.name).load_state_dict(before.branch(task.name).state_dict())
                model.tasks[task.name] = own
    return model


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def keep_layers(encoder: Encoder, layers: Sequence[int]) -> None:
    """Leave only these blocks of an encoder, as DistilBERT began with every second one of BERT's."""
    blocks = list(encoder.blocks)
    if max(layers) >= len(blocks):
        raise RecipeError(
            f"layers are {list(layers)}; expected numbers below {len(blocks)}, the model's blocks", "layers"
        )
    encoder.config = encoder.config.keeping(layers)
    del encoder.blocks[:]
    encoder.blocks.extend(blocks[i] for i in layers)
