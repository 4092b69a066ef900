"""From a local folder to what a model is made of: config, tensors under the encoder's names, tokenizer.

Reads the folders that transformers and sentence-transformers write, DistilBERT and BERT alike. Opens nothing
but safetensors and JSON. Weights are memory-mapped: a page is read when it is first used.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from mtl.errors import ConfigError, WeightsError
from mtl.model.config import EncoderConfig
from mtl.model.encoder import DistilBert
from mtl.model.pooling import ACTIVATIONS
from mtl.model.uninitialized import uninitialized
from weights.names import CONFIG_NAMES, DROPPED, HEAD, from_bert

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
class Dense:
    """A layer after the pooling: activation(weight @ x + bias). weight is (out, in); bias may be absent."""

    activation: str
    weight: Tensor
    bias: Tensor | None


@dataclasses.dataclass(frozen=True)
class Normalize:
    """Scaling to Euclidean length 1, after the pooling."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """All that a folder says of a model.

    ``encoder`` has DistilBERT's names without prefix, in float32; ``head`` the tensors of a sequence
    classifier, or none; ``labels`` their names by index; ``after`` the layers behind the pooling. ``tasks`` are
    the fields of our own tasks (mtl.tasks.TaskSpec), ``branches`` the tensors of their poolings and heads.
    """

    config: EncoderConfig
    encoder: dict[str, Tensor]
    head: dict[str, Tensor]
    labels: tuple[str, ...]
    tokenizer: Tokenizer
    max_length: int
    lowercase: bool
    pooling: tuple[str, ...]
    after: tuple[Dense | Normalize, ...]
    prompts: dict[str, str]
    default_prompt: str
    tasks: tuple[dict[str, Any], ...] = ()
    branches: dict[str, Tensor] = dataclasses.field(default_factory=dict)


def read_json(path: Path) -> Any:
    """A JSON file's content.

    Raises:
        WeightsError: the file is missing, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing; expected a folder that holds it") from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as JSON: {error}") from None


def read_object(path: Path, optional: bool = False) -> dict[str, Any]:
    """A JSON file that holds one object; an optional file that is absent counts as an empty one."""
    content = {} if optional and not path.exists() else read_json(path)
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}; expected an object")
    return content


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file's tensors, memory-mapped; those in half precision come as float32 copies.

    Raises:
        WeightsError: the file is missing, damaged, or another format.
    """
    if not path.exists():
        shards = sorted(p.name for p in path.parent.glob("*-of-*.safetensors"))
        pickles = sorted(p.name for p in path.parent.glob("*.bin"))
        found = f" (found {pickles[0]}, a pickle, which is never opened)" if pickles else ""
        found = f" (found {shards[0]}, one shard of several)" if shards else found
        raise WeightsError(
            f"{path} is missing{found}; save the model with safetensors in one file, as transformers' "
            "save_pretrained(folder, max_shard_size='10GB') does"
        )
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is no whole safetensors file ({error}); fetch or save it again") from None
    return {name: x.float() if x.is_floating_point() else x for name, x in tensors.items()}


def encoder_config(fields: Mapping[str, Any], source: str = "config.json") -> EncoderConfig:
    """The encoder's shape from the content of a DistilBERT or BERT config.json.

    Raises:
        ConfigError: another model type, or a variant of BERT that is not equal to a DistilBERT.
    """
    kind = fields.get("model_type")
    if kind not in ("distilbert", "bert"):
        raise ConfigError(f"{source}: model_type is {kind!r}; expected 'distilbert' or 'bert'")
    fixed = {"position_embedding_type": "absolute", "layer_norm_eps": 1e-12, "is_decoder": False}
    for name, value in fixed.items():
        if kind == "bert" and (fields.get(name) or value) != value:
            raise ConfigError(f"{source}: {name} is {fields[name]!r}; only {value!r} has a DistilBERT equal")
    if kind == "bert":
        fields = {ours: fields[berts] for berts, ours in CONFIG_NAMES.items() if berts in fields}
    try:
        return EncoderConfig.from_dict(fields)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def strip_prefix(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Without the prefix that a model saved with a head puts before its encoder's names."""
    return {name.removeprefix(f"{kind}."): tensor for name, tensor in tensors.items()}


def check_shapes(tensors: Mapping[str, Tensor], expected: Mapping[str, torch.Size], source: str) -> None:
    """Names compared as sets, and shapes one by one.

    Raises:
        WeightsError: tensors that are missing, unexpected or misshapen; it lists them.
    """
    problems = [f"missing {name}" for name in sorted(expected.keys() - tensors.keys())]
    problems += [f"unexpected {name}" for name in sorted(tensors.keys() - expected.keys())]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(expected[name])}"
        for name in sorted(expected.keys() & tensors.keys())
        if tensors[name].shape != expected[name]
    ]
    if problems:
        listed = "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise WeightsError(f"{source} does not fit its config: {listed}")


def encoder_shapes(config: EncoderConfig) -> dict[str, torch.Size]:
    """The name and shape of every tensor that an encoder of this config has."""
    with uninitialized():
        return {name: tensor.shape for name, tensor in DistilBert(config).state_dict().items()}


def load_tensors(folder: Path) -> tuple[EncoderConfig, dict[str, Tensor], dict[str, Tensor]]:
    """An encoder's config and tensors, and its classification head's tensors (or none).

    Raises:
        ConfigError, WeightsError: see the functions that it calls.
    """
    fields = read_object(folder / "config.json")
    config = encoder_config(fields, str(folder / "config.json"))
    path = folder / "model.safetensors"
    tensors = strip_prefix(read_tensors(path), fields["model_type"])
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(DROPPED)}
    head = {}
    if fields["model_type"] == "bert":
        tensors = from_bert(tensors, config.n_layers)
    else:
        head = {name: tensors.pop(name) for name in HEAD if name in tensors}
    check_shapes(tensors, encoder_shapes(config), str(path))
    return config, tensors, head


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder: tokenizer.json, or BERT's WordPiece over vocab.txt where there is none.

    Raises:
        WeightsError: neither is there, or the file is damaged.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        return wordpiece(folder / "vocab.txt", read_object(folder / "tokenizer_config.json", optional=True))
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises Exception itself
        raise WeightsError(f"{path} cannot be read as a tokenizer: {error}") from None


def special_token(options: Mapping[str, Any], kind: str) -> str:
    """What tokenizer_config.json calls a special token; older ones wrap it in an object."""
    token = options.get(f"{kind}_token", f"[{kind.upper()}]")
    return str(token["content"] if isinstance(token, dict) else token)


def wordpiece(path: Path, options: Mapping[str, Any]) -> Tokenizer:
    """BERT's tokenizer from a vocabulary of one token a line (Devlin et al. 2018; tokenization_bert.py)."""
    if not path.exists():
        raise WeightsError(f"{path.parent} has neither tokenizer.json nor vocab.txt; expected one of them")
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} cannot be read as UTF-8 text: {error}") from None
    vocabulary = {token: i for i, token in enumerate(lines)}
    special = {kind: special_token(options, kind) for kind in ("unk", "cls", "sep")}
    absent = [token for token in special.values() if token not in vocabulary]
    if absent:
        raise WeightsError(f"{path} lacks {', '.join(absent)}; expected BERT's special tokens in it")
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=special["unk"], max_input_chars_per_word=100))
    tokenizer.add_special_tokens([t for t in ("[PAD]", *special.values(), "[MASK]") if t in vocabulary])
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=options.get("do_lower_case", True),
        strip_accents=options.get("strip_accents"),
        handle_chinese_chars=options.get("tokenize_chinese_chars", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{special['cls']} $A {special['sep']}",
        special_tokens=[(special[kind], vocabulary[special[kind]]) for kind in ("cls", "sep")],
    )
    return tokenizer


def pooling_modes(path: Path) -> tuple[str, ...]:
    """The modes that a 1_Pooling/config.json names, older switches or newer names, in their order."""
    fields = read_object(path)
    if not fields.get("include_prompt", True):
        raise ConfigError(f"{path}: include_prompt is false; leaving a prompt out of the pooling is not supported")
    modes = fields.get("pooling_mode")
    if modes is None:
        modes = [mode for switch, mode in POOLING_SWITCHES.items() if fields.get(switch)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    return tuple("mean_sqrt_len" if mode == "mean_sqrt_len_tokens" else mode for mode in modes)


def load_dense(folder: Path) -> Dense:
    """One Dense module: config.json and model.safetensors, ``linear.weight`` and ``linear.bias``."""
    fields = read_object(folder / "config.json")
    activation = fields.get("activation_function", "torch.nn.modules.activation.Tanh").rsplit(".", 1)[-1]
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ConfigError(f"{folder}: Dense activation {activation!r} is unknown; expected one of {known}")
    if fields.get("use_residual"):
        raise ConfigError(f"{folder}: use_residual is true; a Dense layer with a residual is not supported")
    tensors = read_tensors(folder / "model.safetensors")
    out, into = fields.get("out_features", 0), fields.get("in_features", 0)
    expected = {"linear.weight": torch.Size((out, into))}
    if fields.get("bias", True):
        expected["linear.bias"] = torch.Size((out,))
    check_shapes(tensors, expected, str(folder / "model.safetensors"))
    return Dense(activation, tensors["linear.weight"], tensors.get("linear.bias"))


def read_modules(folder: Path) -> tuple[Path, tuple[str, ...], tuple[Dense | Normalize, ...]]:
    """Where the transformer is, the pooling modes, and what follows; a bare transformer gets the mean.

    Raises:
        ConfigError: a module that is unknown or stands in the wrong place. None is ever passed over.
    """
    path = folder / "modules.json"
    if not path.exists():
        return folder, ("mean",), ()
    entries = read_json(path)
    try:
        modules = [(entry["type"].rsplit(".", 1)[-1], folder / entry["path"]) for entry in entries]
    except (TypeError, KeyError, AttributeError):
        raise ConfigError(f"{path}: expected a list of objects with 'type' and 'path'") from None
    kinds = [kind for kind, _ in modules]
    unknown = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Dense", "Normalize")]
    if unknown:
        raise ConfigError(f"{path}: module {unknown[0]!r} is unknown; expected Transformer, Pooling, Dense, Normalize")
    if kinds[:2] != ["Transformer", "Pooling"] or {"Transformer", "Pooling"} & set(kinds[2:]):
        raise ConfigError(f"{path}: modules are {', '.join(kinds)}; expected Transformer, Pooling, then the others")
    after = [load_dense(where) if kind == "Dense" else Normalize() for kind, where in modules[2:]]
    return modules[0][1], pooling_modes(modules[1][1] / "config.json"), tuple(after)


def load(folder: Path) -> Checkpoint:
    """Read a model folder that transformers or sentence-transformers wrote, or ``weights.export``.

    Raises:
        ConfigError, WeightsError: the folder describes no model of ours, or its files are not whole.
    """
    transformer, pooling, after = read_modules(folder)
    config, encoder, head = load_tensors(transformer)
    fields = read_object(transformer / "config.json")
    sentence = read_object(transformer / "sentence_bert_config.json", optional=True)
    options = read_object(transformer / "tokenizer_config.json", optional=True)
    limit = sentence.get("max_seq_length") or options.get("model_max_length") or config.max_position_embeddings
    prompting = read_object(folder / "config_sentence_transformers.json", optional=True)
    prompts = prompting.get("prompts") or {}
    labels = fields.get("id2label") or {}
    tasks = read_json(folder / TASKS) if (folder / TASKS).exists() else []
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise WeightsError(f"{folder / TASKS}: expected a list of objects, one per task")
    return Checkpoint(
        config=config,
        encoder=encoder,
        head=head,
        labels=tuple(labels[str(i)] for i in range(len(labels)) if str(i) in labels),
        tokenizer=load_tokenizer(transformer),
        max_length=int(min(limit, config.max_position_embeddings)),
        lowercase=bool(sentence.get("do_lower_case", False)),
        pooling=pooling,
        after=after,
        prompts=prompts,
        default_prompt=prompts.get(prompting.get("default_prompt_name"), ""),
        tasks=tuple(tasks),
        branches=read_tensors(folder / BRANCHES) if tasks else {},
    )
