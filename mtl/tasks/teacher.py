"""A teacher's vectors, which a distillation task trains towards: from a file, or from a model, computed once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mtl.checkpoints.files import read_tensors
from mtl.disk import atomic_write, expanded, user_cache
from mtl.encode.sentence_encoder import SentenceEncoder
from mtl.errors import RecipeError, TrainingError

if TYPE_CHECKING:
    from mtl.tasks.spec import TaskSpec

FILES = (".npy", ".safetensors")


def teacher_vectors(task: TaskSpec, split: str, texts: Sequence[str], folder: Path, dim: int) -> Tensor:
    """A vector for each text of a split: (texts, dim) float32.

    Raises:
        RecipeError: there are others than one for each text, of another width than ``dim``, or not finite.
        MtlError: the file cannot be read, or the model cannot be loaded.
    """
    source = task.teacher.replace("{split}", split)
    vectors = read_vectors(folder / expanded(source)) if source.endswith(FILES) else computed(source, folder, texts)
    if vectors.shape != (len(texts), dim):
        expected = f"({len(texts)}, {dim}): one for each text of {split}, as wide as the student's"
        raise RecipeError(f"task {task.name!r}: {source} has vectors {tuple(vectors.shape)}; expected {expected}")
    if not vectors.isfinite().all():
        raise RecipeError(f"task {task.name!r}: {source} has a vector that is not finite; expected numbers")
    return vectors.float()


def read_vectors(path: Path) -> Tensor:
    """The vectors of a .npy file, or of a .safetensors file that has no other tensor.

    Raises:
        RecipeError, WeightsError: it cannot be read, or holds something else.
    """
    if path.suffix == ".safetensors":
        tensors = list(read_tensors(path).values())
        if len(tensors) != 1:
            raise RecipeError(f"{path} has {len(tensors)} tensors; expected the teacher's vectors alone")
        return tensors[0]
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise RecipeError(f"{path} cannot be read as .npy: {' '.join(str(error).split())[:100]}") from None


def computed(name: str, folder: Path, texts: Sequence[str]) -> Tensor:
    """A model's vectors of texts, remembered in the user's cache folder under a hash of the model and the texts."""
    beside = folder / expanded(name)
    model = SentenceEncoder.from_pretrained(beside if beside.is_dir() else name)
    about = [model.fingerprint, model.default_prompt, model.tokenizer.max_length, list(texts)]
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]
    path = user_cache() / "teachers" / f"{key}.npy"
    if path.is_file():
        with suppress(RecipeError):  # damaged: it is made again
            return read_vectors(path)
    vectors = model.encode(texts, overflow="truncate")
    try:
        with atomic_write(path, TrainingError) as partial, partial.open("wb") as file:
            np.save(file, vectors)
    except TrainingError:
        pass  # nothing is lost but time
    return torch.from_numpy(vectors)
