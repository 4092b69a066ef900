"""What a teacher says, towards which a task trains: vectors, scores or tags, of a file or of a model, computed once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtl.checkpoints.files import read_tensors
from mtl.disk import atomic_write, expanded, user_cache
from mtl.encode.batching import in_order
from mtl.encode.engine import Engine
from mtl.encode.sentence_encoder import SentenceEncoder
from mtl.encode.tokenizer import Pair, filled
from mtl.errors import RecipeError, TrainingError
from mtl.tasks.predictions import fingerprint
from mtl.tasks.spans import Word, in_units

if TYPE_CHECKING:
    from mtl.tasks.multitask import MultiTaskModel
    from mtl.tasks.spec import TaskSpec

FILES = (".npy", ".safetensors")


def teacher_vectors(task: TaskSpec, split: str, texts: Sequence[str], folder: Path, dim: int) -> Tensor:
    """A vector for each text of a split, (texts, dim) float32; a RecipeError if there are others than that."""
    source = task.teacher.replace("{split}", split)
    vectors = read_vectors(folder / expanded(source)) if source.endswith(FILES) else computed(source, folder, texts)
    where, expected = f"task {task.name!r}: {source}", f"one for each text of {split}, as wide as the student's"
    return checked(vectors, (len(texts), dim), where, "vector", expected)


def teacher_scores(task: TaskSpec, split: str, texts: Sequence[str], folder: Path) -> Tensor:
    """A cross-encoder's logit of each query with each of its texts, which stand behind it, (rows, texts) float32; a
    RecipeError if there are others than that."""
    width = len(task.text_field)
    source, rows = task.teacher.replace("{split}", split), len(texts) // width
    if source.endswith(FILES):
        scores = read_vectors(folder / expanded(source))
    else:
        pairs = [(texts[i], text) for i in range(0, len(texts), width) for text in texts[i + 1 : i + width]]
        scores = computed_scores(source, folder, pairs).view(rows, width - 1)
    where, expected = f"task {task.name!r}: {source}", f"one for each text of {split} behind a query"
    return checked(scores, (rows, width - 1), where, "score", expected)


def checked(found: Tensor, shape: tuple[int, int], where: str, noun: str, expected: str) -> Tensor:
    """What a teacher gives, in float32; a RecipeError if it has another shape, or no finite real numbers."""
    if found.shape != shape:
        raise RecipeError(f"{where} has {noun}s {tuple(found.shape)}; expected {shape}: {expected}")
    found = found if found.is_complex() else found.float()
    if found.is_complex() or not found.isfinite().all():  # some float64 are endless in float32
        raise RecipeError(f"{where} has a {noun} that is not finite, or not real; expected numbers")
    return found


def teacher_tags(
    task: TaskSpec, texts: Sequence[str], words: Sequence[Sequence[Word] | None], folder: Path
) -> list[tuple[list[Word], Tensor]]:
    """A tagger's words of each text, those given or its own, and its probabilities of the task's tags (words, tags); a
    RecipeError if it is no tagger, or has other tags."""
    model, tags = with_heads(task.teacher, folder), task.handler.output_names
    taggers = {name: handler for name, handler in model.taggers().items() if {*handler.output_names} == {*tags}}
    if len(taggers) != 1:
        has = "; ".join(", ".join(handler.output_names) for handler in model.taggers().values()) or "no tags"
        expected = f"one tagger with the task's own: {', '.join(tags)}"
        raise RecipeError(f"task {task.name!r}: the teacher {task.teacher} has {has}; expected {expected}", "teacher")
    ((name, handler),) = taggers.items()
    tokenizer = model.embedder.tokenizer
    units = in_units(tokenizer, texts, tokenizer.max_length, model.embedder.default_prompt, words)

    def compute() -> NDArray[np.float32]:
        rows = filled([row for each in units for row in each.rows])
        order, parts = Engine(model.outputs_of(name), model.embedder.device).computed(rows)
        logits = in_order(parts, order, [*map(len, rows)])
        found: NDArray[np.float32] = torch.cat([*handler.logits(logits, units)]).softmax(dim=1).numpy()
        return found

    found = remembered([fingerprint(model), name, list(texts), list(words)], compute)
    columns = found[:, [handler.output_names.index(tag) for tag in tags]]
    return [*zip([each.words for each in units], columns.split([len(each.words) for each in units]), strict=True)]


def with_heads(name: str, folder: Path) -> MultiTaskModel:
    """A model with its heads: beside the recipe, or by name."""
    from mtl.tasks.multitask import MultiTaskModel  # which knows of all kinds of task

    beside = folder / expanded(name)
    return MultiTaskModel.from_pretrained(beside if beside.is_dir() else name)


def computed_scores(name: str, folder: Path, pairs: Sequence[Pair]) -> Tensor:
    """A cross-encoder's logits of pairs, (pairs,), remembered as vectors are."""
    model = with_heads(name, folder)
    task = model.ranker()
    return remembered([fingerprint(model), list(pairs)], lambda: model.predict(pairs).logits[task][:, 0])


def read_vectors(path: Path) -> Tensor:
    """The vectors of a .npy file, or of a .safetensors file that has no other tensor."""
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
    return remembered(about, lambda: model.encode(texts, overflow="truncate"))


def remembered(about: Sequence[Any], compute: Callable[[], NDArray[np.float32]]) -> Tensor:
    """What is computed, kept in the user's cache folder under a hash of what it is ``about``."""
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]
    path = user_cache() / "teachers" / f"{key}.npy"
    if path.is_file():
        with suppress(RecipeError):  # damaged: it is made again
            return read_vectors(path)
    vectors = compute()
    try:
        with atomic_write(path, TrainingError) as partial, partial.open("wb") as file:
            np.save(file, vectors)
    except TrainingError:
        pass  # nothing is lost but time
    return torch.from_numpy(vectors)
