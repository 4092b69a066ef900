"""The keywords that users of sentence-transformers bring with them: taken where they mean the same, else named."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import torch

from mtl.encode.options import DEFAULTS, OPTIONS
from mtl.errors import InputError, shown

P = ParamSpec("P")
T = TypeVar("T")

SAME = {
    "sentences": "texts",
    "inputs": "texts",
    "normalize_embeddings": "normalize",
    "show_progress_bar": "progress",
    "convert_to_tensor": "as_tensor",
}
# Keywords without an equal: the values that ask for nothing but what is done anyway, and what to write instead
OTHERS: dict[str, tuple[tuple[Any, ...], str]] = {
    "convert_to_numpy": ((True, None), "as_tensor=True gives a tensor"),
    "precision": (("float32", None), "convert vectors with mtl.rows.vector_files.convert(vectors, precision)"),
    "output_value": (("sentence_embedding",), "model.encoder gives the vectors of tokens"),
    "device": ((None,), "move the model with model.to(device)"),
    "chunk_size": ((None,), "window= of encode_stream says how many texts are held at once"),
    "pool": ((None,), "threads= says how many CPU threads to use"),
}


IGNORED = ("batch_size",)  # batches are made by number of tokens, and change no bit of a vector
# Methods without an equal, and what an AttributeError says of each
THEIR_METHODS = {
    "save_pretrained": "save_pretrained is called save here: model.save(folder)",
    "save_to_hub": "save_to_hub is called push_to_hub here: model.push_to_hub('owner/name')",
    "get_sentence_embedding_dimension": "get_sentence_embedding_dimension() is called dim here: model.dim",
    "get_embedding_dimension": "get_embedding_dimension() is called dim here: model.dim",
    "tokenize": "there is no tokenize; model.tokenizer(texts).rows are the token ids",
    "similarity_pairwise": "there is no similarity_pairwise; (a * b).sum(axis=-1) of vectors of length 1 are cosines",
    "encode_multi_process": "there is no encode_multi_process; encode uses all cores, or as many as threads= says",
    "start_multi_process_pool": "there is no pool of processes; encode uses all cores, or as many as threads= says",
    "fit": "there is no fit; mtl.train trains a recipe (see README.md, Embeddings for your own texts)",
}


def is_on(device: torch.device, name: Any) -> bool:
    """Whether a device of this name is of the same type."""
    try:
        return torch.device(name).type == device.type
    except (RuntimeError, TypeError):  # there is none
        return False


def is_one_of(value: Any, known: Sequence[Any]) -> bool:
    """Whether a value is among those known; an array never is."""
    try:
        return value in known
    except (ValueError, RuntimeError):  # numpy's and torch's have no truth value
        return False


def own_keywords(name: str, names: Sequence[str], device: torch.device, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of something called ``name``, whose own are ``names``, by their own names; a keyword that it does not
    take is an InputError, which says which one is meant."""
    found: dict[str, Any] = {}
    for given, value in options.items():
        if given == "device" and value is not None and is_on(device, value):
            continue
        if given == "convert_to_numpy" and options.get("convert_to_tensor"):
            continue  # convert_to_tensor wins, as in sentence-transformers
        if given in IGNORED:
            continue
        known, instead = OTHERS.get(given, ((), ""))
        if given in OTHERS and not is_one_of(value, known):
            raise InputError(f"{given} is {shown(value)}, as in sentence-transformers; here, {instead}")
        if given in OTHERS:
            continue
        translated = SAME.get(given, given)
        if translated not in names:
            near = ", ".join(difflib.get_close_matches(given, names, 1) or names)
            raise InputError(f"{name} has no option {given!r}; expected one of {near}")
        if translated in found:
            raise InputError(f"{given} is given, and another keyword that means {translated}; expected one of them")
        found[translated] = value
    return found


def accepts_their_keywords(method: Callable[P, T]) -> Callable[P, T]:
    """A method of an encoder that takes sentence-transformers' keywords, too; see ``own_keywords``.

    Its signature shows every option of ``EncodeOptions``, as help() and docs/api.md do.
    """
    signature = inspect.signature(method)
    own = [parameter for parameter in signature.parameters.values() if parameter.name != "options"]
    names = [parameter.name for parameter in own if parameter.name != "self"]
    shared = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=DEFAULTS.get(name)) for name in OPTIONS]

    @functools.wraps(method)
    def with_theirs(self: Any, *args: Any, **options: Any) -> T:
        ours = own_keywords(method.__name__, [*names, *OPTIONS], self.device, options)
        if twice := [name for name, _ in zip(names, args, strict=False) if name in ours]:
            raise InputError(f"{twice[0]} is given twice to {method.__name__}; expected it once")
        return method(self, *args, **ours)

    vars(with_theirs)["__signature__"] = signature.replace(parameters=[*own, *shared])
    return with_theirs  # type: ignore[return-value]
