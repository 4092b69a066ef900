"""The keywords that users of sentence-transformers bring with them: taken where they mean the same, else named."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch

from mtl.errors import InputError, shown

SAME = {
    "sentences": "texts",
    "inputs": "texts",
    "normalize_embeddings": "normalize",
    "show_progress_bar": "progress",
    "convert_to_tensor": "as_tensor",
}
# Keywords without an equal: the values that ask for nothing but what is done anyway, and what to write instead
OTHERS: dict[str, tuple[tuple[Any, ...], str]] = {
    "batch_size": ((None,), "batch_tokens=, the tokens that are computed at once, bounds memory here; leave it out"),
    "convert_to_numpy": ((True, None), "as_tensor=True gives a tensor"),
    "precision": (("float32", None), "convert vectors with mtl.encode.formats.convert(vectors, precision)"),
    "output_value": (("sentence_embedding",), "model.encoder gives the vectors of tokens"),
    "device": ((None,), "move the model with model.to(device)"),
    "chunk_size": ((None,), "window= of encode_stream says how many texts are held at once"),
    "pool": ((None,), "threads= says how many CPU threads to use"),
}


def accepts_their_keywords(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of an encoder that takes sentence-transformers' keywords, too.

    Raises:
        InputError: a keyword that it does not take; the line says which is meant.
    """
    parameters = inspect.signature(method).parameters
    names = [name for name in parameters if name != "self"]

    @functools.wraps(method)
    def with_theirs(self: Any, *args: Any, **options: Any) -> Any:
        if options.get("convert_to_tensor"):
            options.pop("convert_to_numpy", None)  # as there, the other one wins
        ours: dict[str, Any] = {}
        for name, value in options.items():
            if name == "device" and value is not None and torch.device(value).type == self.device.type:
                continue
            known, instead = OTHERS.get(name, ((), ""))
            if name in OTHERS and value not in known:
                raise InputError(f"{name} is {shown(value)}, as in sentence-transformers; here, {instead}")
            if name in OTHERS:
                continue
            translated = SAME.get(name, name)
            if translated not in names:
                near = ", ".join(difflib.get_close_matches(name, names, 1) or names)
                raise InputError(f"{method.__name__} has no option {name!r}; expected one of {near}")
            if translated in ours:
                raise InputError(f"{name} is given, and another keyword that means {translated}; expected one of them")
            ours[translated] = value
        return method(self, *args, **ours)

    return with_theirs
