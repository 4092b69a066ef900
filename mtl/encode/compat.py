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
    "top_k": "k",
    "query_embeddings": "queries",
    "corpus_embeddings": "corpus",
    "model_name_or_path": "name",
}
NOTHING: tuple[Any, ...] = (None, {}, False)  # what asks for nothing
# Keywords without an equal: the values that ask for nothing but what is done anyway, and what to write instead
OTHERS: dict[str, tuple[tuple[Any, ...], str]] = {
    "convert_to_numpy": ((True, None), "as_tensor=True gives a tensor"),
    "precision": (("float32", None), "vectors are float32; `mtl embed --output-precision` writes others"),
    "output_value": (("sentence_embedding",), "model.encoder gives the vectors of tokens"),
    "device": ((None,), "move the model with model.to(device)"),
    "chunk_size": ((None,), "window= of encode_stream says how many texts are held at once"),
    "pool": ((None,), "threads= says how many CPU threads to use"),
    "score_function": ((None,), "model.similarity_fn_name names the measure"),
    "backend": (("torch", None), "precision= says what it computes in, and mtl.export_onnx writes graphs"),
    "trust_remote_code": (NOTHING, "no code of a checkpoint is ever run"),
    "cache_folder": (NOTHING, "HF_HOME is the hub's folder on this machine"),
    "local_files_only": (NOTHING, "HF_HUB_OFFLINE=1 keeps off the net"),
    "token": (NOTHING, "log in with `hf auth login`, or set HF_TOKEN"),
    "use_auth_token": (NOTHING, "log in with `hf auth login`, or set HF_TOKEN"),
    "model_kwargs": (NOTHING, "precision='bf16' or 'int8' says what it computes in"),
    "tokenizer_kwargs": (NOTHING, "model.max_seq_length and model.tokenizer are set afterwards"),
    "processor_kwargs": (NOTHING, "model.max_seq_length and model.tokenizer are set afterwards"),
    "config_kwargs": (NOTHING, "the config is the checkpoint's own"),
    "modules": (NOTHING, "SentenceEncoder(encoder, tokenizer, pooling) is made of parts"),
    "model_card_data": (NOTHING, "save writes the model's card"),
    **{
        name: (NOTHING, f"set it afterwards: model.{name} = ...")
        for name in ("truncate_dim", "prompts", "default_prompt_name", "similarity_fn_name", "max_seq_length")
    },
}


IGNORED = ("batch_size",)  # batches are made by number of tokens, and change no bit of a vector
# Attributes and methods without an equal, and what is said of each where it is asked for, or set
THEIRS = {
    "save_pretrained": "save_pretrained is called save here: model.save(folder)",
    "save_to_hub": "save_to_hub is called push_to_hub here: model.push_to_hub('owner/name')",
    "get_sentence_embedding_dimension": "get_sentence_embedding_dimension() is called dim here: model.dim",
    "get_embedding_dimension": "get_embedding_dimension() is called dim here: model.dim",
    "get_max_seq_length": "get_max_seq_length() is called max_seq_length here: model.max_seq_length",
    "max_length": "max_length is called max_seq_length here: model.max_seq_length, or max_length= of encode",
    "tokenize": "there is no tokenize; model.tokenizer(texts).rows are the token ids",
    "preprocess": "there is no preprocess; model.tokenizer(texts).rows are the token ids",
    "similarity_pairwise": "there is no similarity_pairwise; (a * b).sum(axis=-1) of vectors of length 1 are cosines",
    "encode_multi_process": "there is no encode_multi_process; encode uses all cores, or as many as threads= says",
    "start_multi_process_pool": "there is no pool of processes; encode uses all cores, or as many as threads= says",
    "stop_multi_process_pool": "there is no pool of processes; encode uses all cores, or as many as threads= says",
    "fit": "there is no fit; mtl.train trains a recipe (see README.md, Several tasks on one trunk)",
    "evaluate": "there is no evaluate; `mtl evaluate -m NAME --retrieval FOLDER` measures search",
    "rank": "there is no rank of vectors; MultiTaskModel.from_pretrained(name).rank is a cross-encoder's",
    "predict": "there is no predict of vectors; MultiTaskModel.from_pretrained(name).predict is that of heads",
    "model_card_data": "there is no model_card_data; save writes the model's card",
    "transformers_model": "there is no model of transformers; model.encoder is ours",
    "auto_model": "there is no auto_model; model.encoder is ours",
    "backend": "there is no backend; model.precision says what it computes in",
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
        own = given in names
        if not own and given == "device" and value is not None and is_on(device, value):
            continue
        if given == "convert_to_numpy" and options.get("convert_to_tensor"):
            continue  # convert_to_tensor wins, as in sentence-transformers
        if not own and given in IGNORED:
            continue
        known, instead = OTHERS.get(given, ((), ""))
        if not own and given in OTHERS and not is_one_of(value, known):
            said = "given" if "token" in given else shown(value)  # a secret is never shown
            raise InputError(f"{given} is {said}, as in sentence-transformers; here, {instead}")
        if not own and given in OTHERS:
            continue
        translated = given if own else SAME.get(given, given)
        if translated not in names:
            near = ", ".join(difflib.get_close_matches(given, names, 1) or names)
            raise InputError(f"{name} has no option {given!r}; expected one of {near}")
        if translated in found:
            raise InputError(f"{given} is given, and another keyword that means {translated}; expected one of them")
        found[translated] = value
    return found


def accepts_their_keywords(method: Callable[P, T]) -> Callable[P, T]:
    """A method of an encoder that takes sentence-transformers' keywords, too; see ``own_keywords``.

    Its signature shows every option of ``EncodeOptions`` where it takes them, as help() and docs/api.md do.
    """
    signature = inspect.signature(method)
    first, *own = (parameter for parameter in signature.parameters.values() if parameter.name != "options")
    names = [parameter.name for parameter in own]
    by_place = [parameter.name for parameter in own if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    taken = OPTIONS if "options" in signature.parameters else ()
    shared = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=DEFAULTS.get(name)) for name in taken]

    @functools.wraps(method)
    def with_theirs(self: Any, *args: Any, **options: Any) -> T:
        device = torch.device("cpu") if isinstance(self, type) else self.device  # a class has no device
        ours = own_keywords(method.__name__, [*names, *taken], device, options)
        if twice := [name for name, _ in zip(names, args, strict=False) if name in ours]:
            raise InputError(f"{twice[0]} is given twice to {method.__name__}; expected it once")
        if len(args) > len(by_place):
            given = f"{method.__name__} is given {shown(args[len(by_place)])} without its keyword"
            raise InputError(f"{given}; expected keywords after {', '.join(by_place)}")
        return method(self, *args, **ours)

    vars(with_theirs)["__signature__"] = signature.replace(parameters=[first, *own, *shared])
    return with_theirs  # type: ignore[return-value]
