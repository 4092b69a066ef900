"""From a local folder to what a model is made of: the encoder, its tokenizer, and what comes after the pooling.

Reads the folders that transformers and sentence-transformers write, DistilBERT and BERT alike. Opens nothing
but safetensors and JSON. Weights are memory-mapped; each page is read once, when they are seen to be finite.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor

from mtl.checkpoints.files import check_tensors, field, inside, positive, read_json, read_object, read_tensors, strings
from mtl.checkpoints.names import CONFIG_NAMES, DROPPED, HEAD, TOKEN_TYPES, bert_names, from_bert
from mtl.checkpoints.tokenizer import load_tokenizer
from mtl.checkpoints.uninitialized import uninitialized
from mtl.errors import ConfigError, WeightsError, shown
from mtl.model.config import LAYER_NORM_EPS, EncoderConfig
from mtl.model.encoder import DistilBert
from mtl.model.pooling import Dense, Normalize, Pooling

TASKS, BRANCHES = "tasks.json", "tasks.safetensors"

# sentence-transformers' older switches and its newer mode names, in the order in which it concatenates
POOLING_SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """All that a folder says of a model.

    ``head`` has the tensors of a sequence classifier, or none, and ``labels`` their names by index; ``after`` the
    layers behind the pooling. ``tasks`` are the fields of our own tasks (mtl.tasks.spec.TaskSpec), ``branches``
    the tensors of their poolings and heads. All tensors are float32.
    """

    encoder: DistilBert
    tokenizer: Tokenizer
    max_length: int
    lowercase: bool = False
    pooling: tuple[str, ...] = ("mean",)
    after: tuple[Dense | Normalize, ...] = ()
    prompts: dict[str, str] = dataclasses.field(default_factory=dict)
    default_prompt: str = ""
    similarity_fn_name: str = "cosine"
    head: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    labels: tuple[str, ...] = ()
    tasks: tuple[dict[str, Any], ...] = ()
    branches: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    @property
    def config(self) -> EncoderConfig:
        return self.encoder.config


def encoder_config(fields: Mapping[str, Any], source: object = "config.json") -> EncoderConfig:
    """The encoder's shape from the content of a DistilBERT or BERT config.json.

    Raises:
        ConfigError: another model type, or a variant of BERT that is not equal to a DistilBERT.
    """
    kind = fields.get("model_type")
    if kind not in ("distilbert", "bert"):
        raise ConfigError(f"{source}: model_type is {shown(kind)}; expected 'distilbert' or 'bert'")
    fixed = {"position_embedding_type": "absolute", "layer_norm_eps": LAYER_NORM_EPS, "is_decoder": False}
    for name, value in fixed.items():
        if kind == "bert" and fields.get(name) not in (value, None):
            raise ConfigError(f"{source}: {name} is {shown(fields[name])}; only {value!r} has a DistilBERT equal")
    if kind == "bert":
        fields = {ours: fields[berts] for berts, ours in CONFIG_NAMES.items() if berts in fields}
    try:
        return EncoderConfig.from_dict(fields)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def strip_prefix(tensors: Mapping[str, Tensor], kind: str, source: Path) -> dict[str, Tensor]:
    """Without the prefix that a model saved with a head puts before its encoder's names, and what we drop."""
    stripped = {name.removeprefix(f"{kind}."): tensor for name, tensor in tensors.items()}
    if len(stripped) < len(tensors):
        raise WeightsError(f"{source} holds tensors twice, with and without {kind!r} before their names")
    return {name: tensor for name, tensor in stripped.items() if not name.startswith(DROPPED)}


def check_layers(config: EncoderConfig, tensors: Mapping[str, Tensor], source: Path) -> None:
    """That a file holds as many layers as its config says, before an encoder of so many is built.

    Raises:
        WeightsError: it holds fewer.
    """
    held = len({match[1] for name in tensors if (match := re.search(r"\.layer\.(\d+)\.", name))})
    if config.n_layers > held:
        raise WeightsError(f"{source} holds {held} layers, but its config says {config.n_layers}")


def head_shapes(head: Mapping[str, Tensor], dim: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a sequence classifier's head: as many outputs as its last layer has, or one."""
    last = head["classifier.weight"].shape if "classifier.weight" in head else ()
    outputs = last[0] if last else 1
    return dict(zip(HEAD, ((dim, dim), (dim,), (outputs, dim), (outputs,)), strict=True))


def head_labels(fields: Mapping[str, Any], outputs: int, source: Path) -> tuple[str, ...]:
    """The names of a classifier's outputs, in order; none where the config has none.

    Raises:
        ConfigError: they are not one for each output.
    """
    labels = strings(fields, "id2label", source)
    if labels and labels.keys() != {str(i) for i in range(outputs)}:
        raise ConfigError(f"{source}: id2label is {shown(labels)}; expected a name for each of 0 to {outputs - 1}")
    return tuple(labels[str(i)] for i in range(len(labels)))


def load_encoder(folder: Path, part: str = "") -> tuple[DistilBert, dict[str, Tensor], tuple[str, ...]]:
    """The encoder in a model's folder, in eval mode; its classification head's tensors and labels (or none).

    Raises:
        ConfigError, WeightsError: see the functions that it calls.
    """
    source, path = inside(folder, part, "config.json"), inside(folder, part, "model.safetensors")
    fields = read_object(source)
    config = encoder_config(fields, source)
    tensors = strip_prefix(read_tensors(path), fields["model_type"], path)
    check_layers(config, tensors, path)
    with uninitialized():
        encoder = DistilBert(config).eval()
    expected: dict[str, tuple[int, ...]] = {name: tensor.shape for name, tensor in encoder.state_dict().items()}
    head: dict[str, Tensor] = {}
    labels: tuple[str, ...] = ()
    if fields["model_type"] == "bert":
        names = bert_names(config.n_layers)
        expected = {names[name]: shape for name, shape in expected.items()}
        expected[TOKEN_TYPES] = (positive(fields, "type_vocab_size", 2, source), config.dim)
        tensors = from_bert(check_tensors(tensors, expected, path), config.n_layers)
    else:
        head = {name: tensors.pop(name) for name in HEAD if name in tensors}
        tensors = check_tensors(tensors, expected, path)
    if head:
        head = check_tensors(head, head_shapes(head, config.dim), path)
        labels = head_labels(fields, len(head["classifier.bias"]), source)
    encoder.load_state_dict(tensors, assign=True)
    return encoder, head, labels


def length_limit(sentence: Mapping[str, Any], options: Mapping[str, Any], positions: int, source: Path) -> int:
    """Tokens per text: sentence-transformers' limit, or the tokenizer's, and never more than there are positions.

    Raises:
        ConfigError: it is no positive number (transformers writes 1e30 for no limit).
    """
    for fields, name in ((sentence, "max_seq_length"), (options, "model_max_length")):
        limit = fields.get(name)
        if limit is not None:
            if type(limit) not in (int, float) or not limit >= 1:
                raise ConfigError(f"{source}: {name} is {shown(limit)}; expected a positive number of tokens")
            return int(min(limit, positions))
    return positions


def pooling_modes(path: Path) -> tuple[str, ...]:
    """The modes that a 1_Pooling/config.json names, older switches or newer names, in their order.

    Raises:
        ConfigError: a mode that we have not.
    """
    fields = read_object(path)
    if not field(fields, "include_prompt", bool, True, path):
        raise ConfigError(f"{path}: include_prompt is false; leaving a prompt out of the pooling is not supported")
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


def load_dense(folder: Path, part: str, width: int) -> Dense:
    """One Dense module: config.json and model.safetensors, ``linear.weight`` and ``linear.bias``.

    Raises:
        ConfigError, WeightsError: it is none of ours, its files are damaged, or it takes other than ``width`` values.
    """
    source, path = inside(folder, part, "config.json"), inside(folder, part, "model.safetensors")
    fields = read_object(source)
    if field(fields, "use_residual", bool, False, source):
        raise ConfigError(f"{source}: use_residual is true; a Dense layer with a residual is not supported")
    name = field(fields, "activation_function", str, "Tanh", source).rsplit(".", 1)[-1]
    into, out = (positive(fields, f"{side}_features", 0, source) for side in ("in", "out"))
    if into != width:
        raise ConfigError(f"{source}: in_features is {into}; what comes before it gives {width} values")
    biased = field(fields, "bias", bool, True, source)
    shapes = {"linear.weight": (out, into), "linear.bias": (out,)}
    tensors = check_tensors(read_tensors(path), shapes if biased else {"linear.weight": (out, into)}, path)
    with uninitialized():
        dense = Dense(into, out, biased, name)
    dense.load_state_dict(tensors, assign=True)
    return dense


def read_modules(folder: Path) -> list[tuple[str, str]]:
    """The kind and the place of each module; a bare transformer is the only one, and has no pooling of its own.

    Raises:
        ConfigError: a module that is unknown or stands in the wrong place. None is ever passed over.
    """
    path = inside(folder, "modules.json")
    if not path.exists():
        return [("Transformer", "")]
    entries = read_json(path)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"{path}: expected a list of objects with 'type' and 'path'")
    kinds = [field(entry, "type", str, "", path).rsplit(".", 1)[-1] for entry in entries]
    places = [field(entry, "path", str, "", path) for entry in entries]
    unknown = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Dense", "Normalize")]
    if unknown:
        raise ConfigError(
            f"{path}: module {shown(unknown[0])} is unknown; expected Transformer, Pooling, Dense, Normalize"
        )
    if kinds[:2] != ["Transformer", "Pooling"] or {"Transformer", "Pooling"} & set(kinds[2:]):
        found = ", ".join(kinds) or "none"
        raise ConfigError(f"{path}: modules are {found}; expected Transformer, Pooling, then the others")
    return list(zip(kinds, places, strict=True))


def load_after(folder: Path, modules: Sequence[tuple[str, str]], width: int) -> tuple[Dense | Normalize, ...]:
    """What follows the pooling, which gives ``width`` values."""
    after: list[Dense | Normalize] = []
    for kind, place in modules:
        if kind == "Normalize":
            after.append(Normalize())
        else:
            after.append(dense := load_dense(folder, place, width))
            width = dense.linear.out_features
    return tuple(after)


def default_prompt(fields: Mapping[str, Any], prompts: Mapping[str, str], source: Path) -> str:
    """The prompt that goes before every text.

    Raises:
        ConfigError: there is none of the name that is said to be the default's.
    """
    name = fields.get("default_prompt_name")
    if name is None:
        return ""
    if not isinstance(name, str) or name not in prompts:
        known = ", ".join(prompts) or "no prompts"
        raise ConfigError(f"{source}: default_prompt_name is {shown(name)}; expected one of the prompts ({known})")
    return prompts[name]


def load_tasks(folder: Path) -> tuple[dict[str, Any], ...]:
    """The fields of our own tasks, one object each; a folder that others wrote has none."""
    path = inside(folder, TASKS)
    tasks = read_json(path) if path.exists() else []
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise WeightsError(f"{path}: expected a list of objects, one per task")
    return tuple(tasks)


def load(folder: Path) -> Checkpoint:
    """Read a model folder that transformers or sentence-transformers wrote, or ``mtl.checkpoints.save``.

    Raises:
        ConfigError, WeightsError: the folder describes no model of ours, or its files are not whole.
    """
    modules = read_modules(folder)
    part = modules[0][1]
    pooling = pooling_modes(inside(folder, modules[1][1], "config.json")) if len(modules) > 1 else ("mean",)
    encoder, head, labels = load_encoder(folder, part)
    source = inside(folder, part, "sentence_bert_config.json")
    sentence = read_object(source, optional=True)
    options = read_object(inside(folder, part, "tokenizer_config.json"), optional=True)
    prompting_source = inside(folder, "config_sentence_transformers.json")
    prompting = read_object(prompting_source, optional=True)
    prompts = strings(prompting, "prompts", prompting_source)
    tasks = load_tasks(folder)
    return Checkpoint(
        encoder=encoder,
        tokenizer=load_tokenizer(folder, part),
        max_length=length_limit(sentence, options, encoder.config.max_position_embeddings, source.parent),
        lowercase=field(sentence, "do_lower_case", bool, False, source),
        pooling=pooling,
        after=load_after(folder, modules[2:], len(pooling) * encoder.config.dim),
        prompts=prompts,
        default_prompt=default_prompt(prompting, prompts, prompting_source),
        similarity_fn_name=str(prompting.get("similarity_fn_name") or "cosine"),
        head=head,
        labels=labels,
        tasks=tasks,
        branches=read_tensors(inside(folder, BRANCHES)) if tasks else {},
    )
