"""What sentence-transformers keeps beside the transformer: modules.json, the pooling, the layers behind it, prompts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl.checkpoints.fields import (
    CROSS_ENCODER,
    CROSS_SENTENCE,
    DENSE,
    DROPOUT,
    LAYER_NORM,
    MODULES,
    NORMALIZE,
    POOLING,
    PROMPTS,
    SENTENCE_CONFIG,
    SENTENCE_CONFIGS,
)
from mtl.checkpoints.files import check_tensors, field, inside, positive, read_json, read_object, read_weights, strings
from mtl.errors import ConfigError, shown
from mtl.kernels.uninitialized import uninitialized
from mtl.model.pooling import DENSE_ACTIVATIONS, After, Dense, LayerNorm, Normalize, Pooling

log = logging.getLogger("mtl")

# The older switches and the newer mode names, in the order in which sentence-transformers concatenates
POOLING_SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
SCORES = ("identity", "sigmoid", "softmax")  # what a cross-encoder's scores are of its logits
KINDS = ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize", "Dropout")
# The packages, over its versions, in which these classes are its own. A class of that name elsewhere is another one
PACKAGES = ("sentence_transformers", "models", "base", "modules", "sentence_transformer", "layer_norm",
            *map(str.lower, KINDS))  # fmt: skip
ACTIVATION_PACKAGES = ("torch.nn", "torch.nn.modules", "torch.nn.modules.activation", "torch.nn.modules.linear")


def module_kind(name: str, source: Path) -> str:
    """Which of ``KINDS`` a class is, by its full dotted name; a ConfigError if it is none of them."""
    *package, kind = name.split(".")
    ours = package[:1] == ["sentence_transformers"] and set(package) <= {*PACKAGES, kind}
    if not ours or kind not in KINDS:
        known = f"{', '.join(KINDS[:-1])} or {KINDS[-1]} of sentence_transformers"
        raise ConfigError(f"{source}: module {shown(name)} is unknown; expected {known}")
    return kind


def read_modules(folder: Path) -> list[tuple[str, str]]:
    """The kind and the place of each module; a bare transformer is the only one, as a cross-encoder's is, and has no
    pooling of its own. None is ever passed over: one that is unknown or stands in the wrong place is a ConfigError."""
    path = inside(folder, "modules.json")
    if not path.exists():
        return [("Transformer", "")]
    entries = read_json(path)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"{path}: expected a list of objects with 'type' and 'path'")
    for entry in entries:
        MODULES.review(entry, path)
    kinds = [module_kind(field(entry, "type", str, "", path), path) for entry in entries]
    places = [field(entry, "path", str, "", path) for entry in entries]
    if kinds == ["Transformer"] and is_cross_encoder(folder):
        return [("Transformer", places[0])]
    if kinds[:2] != ["Transformer", "Pooling"] or {"Transformer", "Pooling"} & set(kinds[2:]):
        found = ", ".join(kinds) or "none"
        raise ConfigError(f"{path}: modules are {found}; expected Transformer, Pooling, then the others")
    return list(zip(kinds, places, strict=True))


def is_cross_encoder(folder: Path) -> bool:
    """Whether sentence-transformers 6 wrote a folder as a CrossEncoder."""
    return read_object(inside(folder, PROMPTS.name), optional=True).get("model_type") == "CrossEncoder"


def read_cross_encoder(folder: Path, part: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What sentence-transformers 6 says of a CrossEncoder: of the model, and of its transformer. What would make its
    scores others is a ConfigError."""
    path, inner = inside(folder, PROMPTS.name), inside(folder, part, SENTENCE_CONFIGS[0])
    fields, sentence = CROSS_ENCODER.read(path), CROSS_SENTENCE.read(inner, optional=True)
    task = field(sentence, "transformer_task", str, "sequence-classification", inner)
    if task != "sequence-classification":
        raise ConfigError(f"{inner}: transformer_task is {shown(task)}; expected 'sequence-classification'")
    return fields, {**sentence, "processor_kwargs": field(sentence, "processor_kwargs", dict, {}, inner)}


def score_activation(config: Mapping[str, Any], more: Mapping[str, Any], outputs: int, source: Path) -> str:
    """What a cross-encoder's folder does to its logits: "identity", "sigmoid" or "softmax"; "" of another classifier.

    ``config`` is config.json, ``more`` what sentence-transformers 6 writes beside it. Another activation is a
    ConfigError.
    """
    older = config.get("sbert_ce_default_activation_function")
    marked = {name: value for name, value in (("sentence_transformers", config.get("sentence_transformers")),
              ("model_type", more.get("model_type")), ("sbert", older)) if value is not None}  # fmt: skip
    if not marked:
        return ""
    inner = field(config, "sentence_transformers", dict, {}, source)
    name = next((x for x in (more.get("activation_fn"), inner.get("activation_fn"), older) if x is not None), None)
    if name is None:  # as sentence-transformers has it
        return "sigmoid" if outputs == 1 else "identity"
    package, _, kind = str(name).rpartition(".")
    if package not in ACTIVATION_PACKAGES or kind.lower() not in SCORES:
        expected = ", ".join(f"torch.nn.{known.title()}" for known in SCORES)
        raise ConfigError(f"{source}: a cross-encoder's activation is {shown(name)}; expected one of {expected}")
    return kind.lower()


def read_sentence_config(folder: Path, part: str) -> tuple[dict[str, Any], Path]:
    """The transformer's own settings, from the first of the seven names that says something; and that file."""
    for name in SENTENCE_CONFIGS:
        path = inside(folder, part, name)
        if fields := SENTENCE_CONFIG.read(path, optional=True):
            field(fields, "do_lower_case", bool, False, path)
            options = field(fields, "processor_kwargs", dict, None, path) or field(
                fields, "tokenizer_args", dict, {}, path
            )
            length = {"max_seq_length": None} if "model_max_length" in options else {}
            return {**fields, **length, "processor_kwargs": options}, path
    return {}, inside(folder, part, SENTENCE_CONFIGS[0])


def pooling_modes(path: Path) -> tuple[str, ...]:
    """The modes that a 1_Pooling/config.json names, older switches or newer names, in their order; a ConfigError for a
    mode that we have not, or another field that changes the pooling."""
    fields = POOLING.read(path)
    modes = fields.get("pooling_mode")
    if modes is None:
        switched = [mode for switch, mode in POOLING_SWITCHES.items() if field(fields, switch, bool, False, path)]
        modes = switched or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or not all(isinstance(mode, str) for mode in modes):
        raise ConfigError(f"{path}: pooling_mode is {shown(modes)}; expected a name, or a list of names")
    modes = ["mean_sqrt_len" if mode == "mean_sqrt_len_tokens" else mode for mode in modes]
    try:
        return Pooling(*modes).modes
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def activation(fields: Mapping[str, Any], source: Path) -> str:
    """The name of a Dense layer's activation, of torch's own; another one is a ConfigError."""
    name = field(fields, "activation_function", str, "torch.nn.modules.activation.Tanh", source)
    package, _, kind = name.rpartition(".")
    if package not in ACTIVATION_PACKAGES or kind not in DENSE_ACTIVATIONS:
        known = ", ".join(DENSE_ACTIVATIONS)
        raise ConfigError(f"{source}: Dense activation {shown(name)} is unknown; expected one of {known} of torch.nn")
    return kind


def load_dense(folder: Path, part: str, width: int) -> Dense:
    """One Dense module, which takes ``width`` values: config.json, and ``linear.weight`` and ``linear.bias`` as
    safetensors."""
    source = inside(folder, part, "config.json")
    fields = DENSE.read(source)
    name = activation(fields, source)
    into, out = (positive(fields, f"{side}_features", source) for side in ("in", "out"))
    if into != width:
        raise ConfigError(f"{source}: in_features is {into}; what comes before it gives {width} values")
    biased = field(fields, "bias", bool, True, source)
    shapes = {"linear.weight": (out, into), **({"linear.bias": (out,)} if biased else {})}
    tensors, path = read_weights(folder, part)
    tensors = check_tensors(tensors, shapes, path)  # first of all: sizes may be any
    with uninitialized():
        dense = Dense(into, out, biased, name)
    dense.load_state_dict(tensors, assign=True)
    return dense


def load_layer_norm(folder: Path, part: str, width: int) -> LayerNorm:
    """One LayerNorm module of ``width`` values: config.json, and ``norm.weight`` and ``norm.bias`` as safetensors."""
    source = inside(folder, part, "config.json")
    fields = LAYER_NORM.read(source)
    if positive(fields, "dimension", source) != width:
        raise ConfigError(f"{source}: dimension is {fields['dimension']}; what comes before it gives {width} values")
    tensors, path = read_weights(folder, part)
    layer = LayerNorm(width)
    layer.load_state_dict(check_tensors(tensors, {"norm.weight": (width,), "norm.bias": (width,)}, path), assign=True)
    return layer


def load_after(folder: Path, modules: Sequence[tuple[str, str]], width: int) -> tuple[After, ...]:
    """What follows the pooling, which gives ``width`` values; a Dropout does nothing in inference, and is left out."""
    after: list[After] = []
    for kind, place in modules:
        source = inside(folder, place, "config.json")
        if kind == "Normalize":
            NORMALIZE.read(source, optional=True)
            after.append(Normalize())
        elif kind == "Dropout":
            DROPOUT.read(source, optional=True)
            log.info("%s: left out, as it changes no vector; training has no dropout there", source.parent)
        elif kind == "LayerNorm":
            after.append(load_layer_norm(folder, place, width))
        else:
            after.append(dense := load_dense(folder, place, width))
            width = dense.linear.out_features
    return tuple(after)


def read_prompts(folder: Path) -> dict[str, Any]:
    """Prompts by name, the default one's text, the measure of similarity and how many dimensions are kept: the
    Checkpoint's fields that config_sentence_transformers.json holds.

    Raises:
        ConfigError: one of another type, or no prompt of the name that is said to be the default's.
    """
    path = inside(folder, "config_sentence_transformers.json")
    fields = PROMPTS.read(path, optional=True)
    given: dict[str, Any] = field(fields, "prompts", dict, {}, path)  # null is the empty one
    prompts = strings({"prompts": {name: "" if x is None else x for name, x in given.items()}}, "prompts", path)
    default = field(fields, "default_prompt_name", str, None, path)
    if default is not None and default not in prompts:
        known = ", ".join(prompts) or "no prompts"
        raise ConfigError(f"{path}: default_prompt_name is {shown(default)}; expected one of the prompts ({known})")
    return {
        "prompts": prompts,
        "default_prompt": "" if default is None else prompts[default],
        "similarity_fn_name": field(fields, "similarity_fn_name", str, "cosine", path),
        "truncate_dim": positive(fields, "truncate_dim", path) if fields.get("truncate_dim") is not None else None,
    }
