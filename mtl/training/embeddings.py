"""How good a model's embeddings are, measured on files without a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mtl.encode.files import read_rows
from mtl.encode.multitask import MultiTaskModel
from mtl.encode.sentence_encoder import SentenceEncoder
from mtl.encode.tasks import TaskSpec
from mtl.errors import InputError
from mtl.training.data import load_data
from mtl.training.evaluate import all_logits, measure
from mtl.training.recipe import Recipe


def sts(
    model: SentenceEncoder, path: Path, fields: Sequence[str] = (), threads: int | None = None
) -> tuple[dict[str, float], list[str]]:
    """How the cosines of pairs of texts follow their scores, and a line for what was cut.

    ``fields`` are the names of the two texts and the score; by default the file's own, of which it must have three.

    Raises:
        InputError, RecipeError: the file cannot be read, has other fields, or a row is wrong; it names the line.
    """
    names = list(fields) or list(next(read_rows(path), (0, {}))[1])
    if len(names) != 3:
        given = "fields are" if fields else f"{path} has the fields"
        expected = "three, two texts and a score; name them with --fields"
        raise InputError(f"{given} {', '.join(names) or 'of no row'}; expected {expected}")
    *texts, score = names
    task = TaskSpec("sts", kind="similarity", test=str(path.absolute()), text_field=tuple(texts), label_field=score)
    data, notes = load_data(Recipe("", (task,)), model, ["test"])
    outputs = all_logits(MultiTaskModel(model, (task,)), data["test"], threads)
    return measure({"sts": task}, outputs, data["test"])["sts"], notes
